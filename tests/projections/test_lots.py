"""Lots: who may be pooled, what was gathered, and which unit is whose, until its one and final use."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carbon_points.domain import lot as domain
from carbon_points.domain.account import ReductionsPooled
from carbon_points.domain.lot import GatheringFacts, LotIssued, UnitsRetired, UnitsSold
from carbon_points.domain.refusal import Refusal
from carbon_points.journal.journal import Journal
from carbon_points.projections.lots import (
    Block,
    blocks,
    certificate,
    gathering_facts,
    lot,
    lots,
    moved,
    pool,
    pools,
    residents_to_pool,
    retirements,
    sales,
    verifications,
)
from carbon_points.projections.rows import Snapshot
from tests.audit.scenario import ALL, CLOTHES
from tests.projections.events import of, residents

NOW = datetime(2025, 6, 15, tzinfo=UTC)


def held(pool_id: str, of_it: domain.Pool) -> set[Block]:
    """Every block of a pool's lots as the domain's state has them."""
    found = set[Block]()
    for name, one in of_it.lots.items():
        found |= {Block(pool_id, name, "retired", "", *block) for block in one.retired}
        for holder, own in one.held.items():
            found |= {Block(pool_id, name, "sold" if holder else "for_sale", holder, *block) for block in own}
    return found


class TestPooling:
    @pytest.mark.parametrize("methodology", ALL)
    def test_those_are_asked_who_have_something_left_in_those_months(
        self, at: Snapshot, journal: Journal, methodology: str
    ) -> None:
        for version in ("2023-1", "2024-1", "2025-1"):
            for months in (("2000-01", "2100-01"), ("2024-02", "2024-02"), ("2024-03", "2025-01")):
                expected = [
                    name
                    for name in residents(journal)
                    if any(
                        bucket.split(" ")[:2] == [methodology, version]
                        and months[0] <= bucket.split(" ")[2] <= months[1]
                        for bucket in journal.state(name).unpooled
                    )
                ]
                assert residents_to_pool(at, methodology, version, *months) == expected

    def test_pages_of_residents_follow_each_other(self, at: Snapshot) -> None:
        everyone = residents_to_pool(at, "bus", "2024-1", "2000-01", "2100-01")
        first = residents_to_pool(at, "bus", "2024-1", "2000-01", "2100-01", limit=2)
        rest = residents_to_pool(at, "bus", "2024-1", "2000-01", "2100-01", after=first[-1])
        assert [*first, *rest] == everyone
        assert rest

    def test_facts_are_what_the_log_moved_into_the_pool(self, at: Snapshot, journal: Journal) -> None:
        gathered = of(journal, ReductionsPooled)
        through = {str(partition): head for partition, head in journal.heads().items()}
        assert gathering_facts(at, "pool_a") == GatheringFacts(
            through, len({e.resident for e in gathered}), sum(e.reduction_mg for e in gathered)
        )
        assert gathering_facts(at, "pool_b") == GatheringFacts(through, 0, 0)

    def test_a_pool_stands_as_its_state_says(self, at: Snapshot, journal: Journal) -> None:
        row, state = pool(at, "pool_a"), journal.state("pool/pool_a")
        assert row is not None
        assert (row.methodology, row.version, row.region, row.scheme) == (CLOTHES, "2024-1", "330500", "HZ")
        assert (row.sealed, row.sealed_mg) == (state.gathering - 1, state.gathered_mg)
        assert (row.verified_mg, row.issued_mg) == (state.verified_mg, state.issued_mg)
        assert row.pooled_mg == gathering_facts(at, "pool_a").gathered_mg
        assert [v.verification_id for v in verifications(at, "pool_a")] == ["v1", "v2"]
        assert pools(at) == [row]
        assert pools(at, after=row.position) == []
        assert pool(at, "pool_b") is None


class TestUnits:
    def test_blocks_are_where_the_domain_has_them(self, at: Snapshot, journal: Journal) -> None:
        rows = blocks(at)
        assert set(rows) == held("pool_a", journal.state("pool/pool_a"))
        assert len(rows) == len(set(rows))

    def test_blocks_are_found_by_lot_holder_and_state(self, at: Snapshot) -> None:
        rows = blocks(at)
        assert blocks(at, lot_id="lot_a1") == [b for b in rows if b.lot_id == "lot_a1"]
        assert blocks(at, holder="acme") == [b for b in rows if b.holder == "acme"]
        assert blocks(at, lot_id="lot_a1", state="retired") == [Block("pool_a", "lot_a1", "retired", "", 1, 3)]

    def test_lots_tell_how_many_of_their_units_are_sold_and_retired(self, at: Snapshot) -> None:
        for row in lots(at):
            of_it = blocks(at, lot_id=row.lot_id)
            size = {
                state: sum(b.last - b.first + 1 for b in of_it if b.state == state)
                for state in ("for_sale", "sold", "retired")
            }
            assert (row.for_sale_kg, row.sold_kg, row.retired_kg) == (
                size["for_sale"],
                size["sold"] + size["retired"],
                size["retired"],
            )
            assert sum(size.values()) == row.kg
            assert lot(at, row.lot_id) == lot(at, row.lot_id, pool_id="pool_a") == row
        assert [row.lot_id for row in lots(at, pool_id="pool_a")] == ["lot_a1", "lot_a2"]
        assert lot(at, "lot_a1", pool_id="pool_b") is None

    @given(st.lists(st.tuples(st.sampled_from(["acme", "bolt", "retire acme", "retire bolt"]), st.integers(1, 6))))
    def test_blocks_kept_in_rows_move_as_those_kept_in_the_state(self, moves: list[tuple[str, int]]) -> None:
        """After each event, and again after all of them at once."""
        made = _events(moves)
        pool_, rows = domain.Pool("p"), list[Block]()
        for event in made:
            domain.evolve(pool_, event)
            rows = moved(rows, [event])
            assert set(rows) == held("p", pool_)
        assert set(moved([], made)) == set(rows)


def _events(moves: list[tuple[str, int]]) -> list[LotIssued | UnitsSold | UnitsRetired]:
    """A lot of 20 units, and what of these moves the domain allows."""
    pool_ = domain.Pool("p", methodology="bus", gathered_mg=20_500_000, verified_mg=20_500_000)
    events = list[Any]()

    def decide(command: Any) -> None:
        try:
            for event in domain.decide(pool_, command, now=NOW):
                domain.evolve(pool_, event)
                events.append(event)
        except Refusal:
            pass

    decide(domain.IssueLot(pool_id="p", lot_id="l"))
    for number, (who, kg) in enumerate(moves):
        said: dict[str, Any] = {"pool_id": "p", "lot_id": "l", "kg": kg}
        if who.startswith("retire "):
            why: dict[str, Any] = {"purpose": "event", "beneficiary": "b", "reason": "r"}
            name = who.removeprefix("retire ")
            decide(domain.RetireUnits(retirement_id=f"r{number}", holder=name, **why, **said))
        else:
            decide(domain.SellUnits(sale_id=f"s{number}", buyer=who, price_fen=1, **said))
    return events


class TestSalesAndRetirements:
    def test_sales_are_those_of_the_log(self, at: Snapshot, journal: Journal) -> None:
        rows = {row.sale_id: row for row in sales(at)}
        for event in of(journal, UnitsSold):
            row = rows.pop(event.sale_id)
            assert (row.lot_id, row.buyer, row.kg, row.price_fen) == (
                event.lot_id,
                event.buyer,
                event.kg,
                event.price_fen,
            )
            assert row.serials == list(event.serials)
        assert not rows

    def test_a_sale_waits_until_its_price_came_in(self, at: Snapshot) -> None:
        assert {row.sale_id: row.received_fen for row in sales(at, received=True)} == {"sale1": 1200, "sale2": 0}
        assert {row.sale_id for row in sales(at, received=False)} == {"sale3", "sale1b"}
        assert {row.sale_id for row in sales(at, buyer="bolt")} == {"sale2"}
        assert {row.sale_id for row in sales(at, lot_id="lot_a2")} == {"sale1b"}

    def test_a_certificate_tells_all_of_its_retirement(self, at: Snapshot, journal: Journal) -> None:
        for event in of(journal, UnitsRetired):
            found = certificate(at, event.certificate)
            assert found is not None
            assert (found.holder, found.kg, found.purpose) == (event.holder, event.kg, event.purpose)
            assert (found.beneficiary, found.reason) == ("马拉松", "2024 湖州")
            assert found.serials == list(event.serials)
            assert (found.methodology, found.from_month, found.scheme) == (CLOTHES, "2024-01", "HZ")
        assert [row.retirement_id for row in retirements(at, holder="acme")] == ["t1", "t2"]
        assert retirements(at, lot_id="lot_a2") == []
        assert certificate(at, "none") is None
