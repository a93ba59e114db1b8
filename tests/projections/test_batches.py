"""Batches: the rows of a terminal's run are what its orders moved in it, and add up to what its end says."""

from carbon_points.domain.order import BatchClosed, OrderMoved
from carbon_points.journal.journal import Journal
from carbon_points.projections.batches import batch, batches, lines, totals_of
from carbon_points.projections.rows import Snapshot
from tests.projections.events import events, of


def test_lines_are_what_orders_moved_and_only_what_was_sold_or_given_back(at: Snapshot, journal: Journal) -> None:
    expected = {
        (e.merchant, e.terminal, e.batch, position, e.kind, e.redemption_id, e.count, e.points, e.amount_fen)
        for _, position, e in events(journal)
        if isinstance(e, OrderMoved) and e.kind in ("sale", "refund", "reversal")
    }
    assert len({move[2] for move in expected}) > 1
    found = {
        (*place, n.position, n.kind, n.redemption_id, n.count, n.points, n.amount_fen)
        for place in {move[:3] for move in expected}
        for n in lines(at, *place)
    }
    assert found == expected


def test_a_batch_adds_up_to_what_its_end_says(at: Snapshot, journal: Journal) -> None:
    closed = of(journal, BatchClosed)
    assert {e.by for e in closed} == {"auto", "terminal"}
    for e in closed:
        shown = batch(at, e.merchant, e.terminal, e.batch)
        assert shown is not None
        assert (shown.status, shown.closed_by, shown.closed_at) == ("closed", e.by, e.recorded_at)
        assert shown.totals == e.totals == totals_of(lines(at, e.merchant, e.terminal, e.batch))


def test_pages_of_batches_follow_each_other_the_newest_first(at: Snapshot) -> None:
    known = batches(at, "bakery", "bakery-1")
    assert [b.batch for b in known] == sorted((b.batch for b in known), reverse=True)
    [first] = batches(at, "bakery", "bakery-1", limit=1)
    assert [first, *batches(at, "bakery", "bakery-1", before=first.batch)] == known
    assert batches(at, "bakery", "nothing") == []
    assert batch(at, "bakery", "bakery-1", 99) is None
