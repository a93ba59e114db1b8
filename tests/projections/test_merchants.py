"""Merchants: what they accepted, what is settled of it, and that a settlement pays what its piece of the log says."""

from collections.abc import Sequence

import pytest

from carbon_points.domain.account import PointsCaptured, PointsRefunded
from carbon_points.domain.merchant import SettlementClosed
from carbon_points.domain.order import OrderPlaced, Tally, Totals
from carbon_points.journal.journal import Journal
from carbon_points.projections.merchants import (
    Movement,
    Row,
    Settlement,
    merchant,
    merchants,
    movements,
    settled,
    settlement,
    settlement_rows,
    settlements,
    totals_of,
    unpaid,
    with_something_to_settle,
)
from carbon_points.projections.read_model import ReadModel
from carbon_points.projections.rows import Snapshot
from tests.projections.events import events, of

SHOPS = ("bakery", "tea")


def moved(journal: Journal, shop: str) -> list[tuple[str, str, int, int]]:
    """Every capture and refund: place, kind, points, fen."""

    def kind(event: PointsCaptured | PointsRefunded) -> str:
        return "sale" if isinstance(event, PointsCaptured) else "reversal" if event.reversal else "refund"

    return [
        (f"{partition}:{position}", kind(event), event.points, event.amount_fen)
        for partition, position, event in events(journal)
        if isinstance(event, PointsCaptured | PointsRefunded) and event.merchant == shop
    ]


def net(rows: Sequence[Movement | Row]) -> tuple[int, int, int, int]:
    """Captures, refunds, points and fen, refunds taken off."""
    signs = [1 if row.kind == "sale" else -1 for row in rows]
    points = sum(sign * row.points for sign, row in zip(signs, rows, strict=True))
    fen = sum(sign * row.amount_fen for sign, row in zip(signs, rows, strict=True))
    return signs.count(1), signs.count(-1), points, fen


@pytest.mark.parametrize("shop", SHOPS)
def test_movements_are_the_captures_and_refunds_of_the_log(at: Snapshot, journal: Journal, shop: str) -> None:
    rows = movements(at, shop, limit=100)
    assert [(row.position, row.kind, row.points, row.amount_fen) for row in rows] == moved(journal, shop)


@pytest.mark.parametrize("shop", SHOPS)
def test_totals_add_up_movements_settlements_and_payments(at: Snapshot, journal: Journal, shop: str) -> None:
    found = merchant(at, shop)
    assert found is not None
    rows = movements(at, shop, limit=100)
    accepted = (found.captured_points - found.refunded_points, found.captured_fen - found.refunded_fen)
    assert (found.captures, found.refunds, *accepted) == net(rows)
    closed = [e for e in of(journal, SettlementClosed) if e.merchant == shop]
    assert found.settlements == len(closed)
    assert found.settled_fen == sum(e.amount_fen for e in closed)
    assert found.paid_fen == sum(s.amount_fen for s in settlements(at, merchant_id=shop, paid=True))


def test_a_merchant_is_as_registered_at_the_price_of_today(at: Snapshot) -> None:
    bakery, tea = merchants(at)
    assert (bakery.name, bakery.fen_per_point, bakery.county, bakery.terminals) == (
        "bakery 店",
        4,
        "330523",
        ("bakery-1",),
    )
    assert (tea.merchant, tea.fen_per_point, tea.terminals) == ("tea", 3, ("tea-1",))
    assert [m.merchant for m in merchants(at, limit=1)] == ["bakery"]
    assert [m.merchant for m in merchants(at, after="bakery")] == ["tea"]
    assert merchant(at, "nobody") is None


def test_settlements_are_those_of_the_log_and_tell_whether_they_are_paid(at: Snapshot, journal: Journal) -> None:
    rows = {(row.merchant, row.settlement_id): row for row in settlements(at)}
    for event in of(journal, SettlementClosed):
        row = rows.pop((event.merchant, event.settlement_id))
        assert (row.after, row.through, row.points, row.amount_fen) == (
            event.after,
            event.through,
            event.points,
            event.amount_fen,
        )
        assert row.paid
        assert row.paid_at is not None
        assert row.paid_at > row.closed_at
    assert not rows


def test_a_settlement_is_unpaid_until_the_fund_has_paid_it(journal: Journal) -> None:
    """Whichever of the two partitions is read first."""
    for order in (sorted(journal.heads()), sorted(journal.heads(), reverse=True)):
        model, seen = ReadModel("sqlite://"), set[tuple[str, bool]]()
        for partition in order:
            for entry in journal.entries(partition):
                model.apply(partition, [entry])
                with model.snapshot() as at:
                    seen |= {(s.settlement_id, s.paid) for s in settlements(at, merchant_id="bakery")}
                    unpaid = settlements(at, paid=False)
        assert {("s1", True), ("s3", True)} <= seen
        assert not unpaid
        model.close()


def test_pages_of_settlements_follow_each_other(at: Snapshot) -> None:
    pages, after = list[Settlement](), None
    while page := settlements(at, after=after, limit=1):
        pages += page
        after = page[-1].position
    assert pages == settlements(at)


def test_the_rows_of_a_settlement_add_up_to_it(at: Snapshot) -> None:
    covered = list[str]()
    for closed in settlements(at):
        rows = settlement_rows(at, closed, limit=100)
        assert net(rows) == (closed.captures, closed.refunds, closed.points, closed.amount_fen)
        covered += [row.position for row in rows]
        assert settlement(at, closed.merchant, closed.settlement_id) == closed
    assert len(covered) == len(set(covered)), "two settlements cover the same row"
    assert settlement(at, "bakery", "nothing") is None


def test_what_is_settled_is_what_happened_between_two_positions(at: Snapshot, journal: Journal) -> None:
    for shop in SHOPS:
        for after in ({}, journal.state(f"merchant/{shop}").through, {"0": 10, "1": 20}):
            rows = settled(at, shop, after, {"0": 40, "1": 30, "2": 10**6})
            assert rows == sorted(rows, key=lambda row: (row.recorded_at, row.partition, row.position))
            places = sorted((row.partition, row.position) for row in rows)
            inside = [
                (place, points, fen)
                for text, _, points, fen in moved(journal, shop)
                if (place := tuple(map(int, text.split(":"))))
                and after.get(str(place[0]), 0) < place[1] <= {0: 40, 1: 30}.get(place[0], 10**6)
            ]
            assert places == [place for place, _, _ in inside]
            assert sorted((r.points, r.amount_fen) for r in rows) == sorted((p, f) for _, p, f in inside)
            assert all(row.terminal == f"{shop}-1" for row in rows)


def test_a_sale_was_taken_offline_if_its_order_says_so_as_far_as_it_is_settled(at: Snapshot, journal: Journal) -> None:
    [(partition, position, placed)] = [
        (str(partition), position, event)
        for partition, position, event in events(journal)
        if isinstance(event, OrderPlaced) and event.captured_offline_at
    ]
    [sale] = [r for r in settled(at, "bakery", {}, at.vector) if r.captured_offline_at]
    assert (sale.redemption_id, sale.kind, sale.captured_offline_at) == ("w1", "sale", placed.captured_offline_at)
    assert str(sale.partition) != partition, "else the sale would be cut off with it"
    before = settled(at, "bakery", {}, at.vector | {partition: position - 1})
    assert [r.captured_offline_at for r in before if (r.redemption_id, r.kind) == ("w1", "sale")] == [None]


def test_totals_keep_sales_refunds_and_reversals_apart(at: Snapshot) -> None:
    rows = settled(at, "bakery", {}, at.vector)
    totals = totals_of(rows)
    captures, refunds, points, fen = net(rows)
    assert (totals.sales.count, totals.refunds.count + totals.reversals.count) == (captures, refunds)
    assert (totals.points, totals.fen) == (points, fen)
    assert totals_of([]) == Totals(Tally(), Tally(), Tally())


def test_who_has_something_to_settle_is_known_from_the_totals(at: Snapshot, journal: Journal) -> None:
    waiting = [shop for shop in SHOPS if settled(at, shop, journal.state(f"merchant/{shop}").through, at.vector)]
    assert with_something_to_settle(at) == waiting == ["bakery"]


def test_the_settlement_that_was_closed_first_is_paid_next(journal: Journal) -> None:
    model = ReadModel("sqlite://")
    for partition, head in journal.heads().items():
        entries = [e for e in journal.entries(partition, 0, head) if e.stream != "fund"]
        renumbered = [
            type(e)(e.partition, n, e.stream, e.version, e.type, e.state, e.leaf) for n, e in enumerate(entries, 1)
        ]
        model.apply(partition, renumbered)
    with model.snapshot() as at:
        assert [s.settlement_id for s in unpaid(at)] == ["s1", "s2", "s3", "s5", "s6", "s4"]
        assert [s.settlement_id for s in unpaid(at, limit=1)] == ["s1"]
    model.close()
