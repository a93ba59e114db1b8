"""A resident's statement: every event of theirs, newest first, adding up to what the account holds."""

import pytest

from carbon_points.domain.event import Event
from carbon_points.journal.journal import Journal
from carbon_points.projections.statements import Line, Page, statement
from tests.audit.scenario import ANN, BOB
from tests.projections.events import events, residents


def whole(journal: Journal, resident: str) -> list[Line]:
    return statement(journal, resident, limit=1_000).lines


def line(journal: Journal, resident: str, kind: str, reference: str) -> Line:
    [found] = [ln for ln in whole(journal, resident) if (ln.type, ln.reference) == (kind, reference)]
    return found


def ordered(event: Event) -> bool:
    """It names the resident, and lies in a merchant's stream."""
    return event.type_name.startswith("order-")


def test_it_has_a_line_for_each_event_of_the_resident_newest_first(journal: Journal) -> None:
    for resident in residents(journal):
        happened = [
            (partition, position, event.type_name.split("/")[0], event.recorded_at)
            for partition, position, event in events(journal)
            if getattr(event, "resident", None) == resident and not ordered(event)
        ]
        lines = [(ln.partition, ln.position, ln.type, ln.recorded_at) for ln in whole(journal, resident)]
        assert lines == happened[::-1]


def test_its_lines_add_up_to_what_the_account_holds(journal: Journal) -> None:
    for resident in residents(journal):
        account, lines = journal.state(resident), whole(journal, resident)
        assert sum(ln.reduction_mg for ln in lines) == account.total_mg
        assert sum(ln.points for ln in lines) == sum(account.grants.values())
        assert sum(ln.held_points for ln in lines) == sum(n for h in account.holds.values() for _, n in h.taken)
        assert sum(ln.debt_points for ln in lines) == account.debt_points
        unpooled = account.total_mg + account.debt_mg - sum(ln.pooled_mg for ln in lines)
        assert unpooled == sum(account.unpooled.values())


@pytest.mark.parametrize("limit", [1, 7, 1_000])
def test_pages_follow_each_other_without_gap_or_repeat(journal: Journal, limit: int) -> None:
    pages, before = list[Line](), None
    while before != 1:
        page = statement(journal, ANN, before=before, limit=limit)
        assert len(page.lines) <= limit
        pages += page.lines
        before = page.before
    assert pages == whole(journal, ANN)


def test_a_capture_in_part_tells_what_was_spent_and_what_came_back(journal: Journal) -> None:
    held, captured = line(journal, ANN, "points-held", "d1"), line(journal, ANN, "points-captured", "d1")
    assert (held.points, held.held_points, held.merchant) == (-30, 30, "bakery")
    assert (captured.points, captured.held_points, captured.merchant) == (13, -30, "bakery")


def test_a_reversal_after_spending_leaves_a_debt_that_later_rides_pay(journal: Journal) -> None:
    reversed_ = line(journal, BOB, "action-reversed", "b100")
    assert (reversed_.reduction_mg, reversed_.points, reversed_.debt_points) == (-80_000, -2, 8)
    assert line(journal, BOB, "points-refunded", "d6").debt_points == -1
    assert line(journal, BOB, "action-credited", "b102").debt_points == -7


def test_a_stranger_has_no_lines(journal: Journal) -> None:
    assert statement(journal, "res_nobody") == Page([], 1)
