"""Redemptions: each with its status, from the hold to the last refund."""

from carbon_points.domain.account import Redemption as Standing
from carbon_points.journal.journal import Journal
from carbon_points.projections.read_model import ReadModel
from carbon_points.projections.redemptions import redemption, redemptions
from carbon_points.projections.rows import Snapshot
from tests.audit.scenario import ANN
from tests.projections.events import residents


def test_each_stands_as_its_resident_s_account_says(at: Snapshot, journal: Journal) -> None:
    rows = {(row.resident, row.redemption_id): row for shop in ("bakery", "tea") for row in redemptions(at, shop)}
    for resident in residents(journal):
        names = [name for owner, name in rows if owner == resident]
        state = journal.state(resident, [("redemptions", name) for name in names])
        for name in names:
            row, standing = rows[resident, name], state.redemptions[name]
            assert isinstance(standing, Standing)
            for field in (
                "merchant",
                "terminal",
                "points",
                "amount_fen",
                "expires_at",
                "status",
                "captured_points",
                "captured_fen",
                "refunded_points",
                "refunded_fen",
            ):
                assert getattr(row, field) == getattr(standing, field), (name, field)
    assert {row.status for row in rows.values()} >= {"captured", "partially_refunded", "voided", "expired"}


def test_its_status_follows_its_events(journal: Journal) -> None:
    seen = dict[str, list[str]]()
    model = ReadModel("sqlite://")
    for partition in journal.heads():
        for entry in journal.entries(partition):
            model.apply(partition, [entry])
            with model.snapshot() as at:
                for name in ("d1", "d2", "d3"):
                    if (row := redemption(at, name)) and row.status not in seen.setdefault(name, []):
                        seen[name].append(row.status)
    model.close()
    assert seen == {
        "d1": ["held", "captured", "partially_refunded"],
        "d2": ["held", "voided"],
        "d3": ["held", "expired"],
    }


def test_a_merchant_s_are_listed_in_the_order_of_their_places_by_status(at: Snapshot) -> None:
    everything = redemptions(at, "bakery")
    orders = {f"o{n}" for n in (1, 2, 3, 4, 5, 7, 8)}
    assert {row.redemption_id for row in everything} == {"d1", "d3", "d5", "w1"} | orders
    expired = redemptions(at, "bakery", status="expired")
    assert [row.redemption_id for row in expired] == ["d3", "o7"]
    first = redemptions(at, "bakery", limit=1)
    assert [*first, *redemptions(at, "bakery", after=first[-1].position)] == everything


def test_one_is_found_by_its_id(at: Snapshot) -> None:
    found = redemption(at, "d1")
    assert found is not None
    assert (found.resident, found.points, found.captured_points, found.refunded_points) == (ANN, 30, 17, 7)
    assert redemption(at, "nothing") is None
