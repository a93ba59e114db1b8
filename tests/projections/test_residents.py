"""Residents: what stands on each account, as a replay of the log finds it too."""

from carbon_points.domain.account import ActionCredited, ActionReversed
from carbon_points.journal.journal import Journal
from carbon_points.projections import residents as read
from carbon_points.projections.residents import Balance, resident, residents
from carbon_points.projections.rows import Snapshot
from tests.audit.scenario import ANN, BOB
from tests.projections import events


def test_balances_are_those_of_the_accounts(at: Snapshot, journal: Journal) -> None:
    expected = list[Balance]()
    for name in events.residents(journal):
        account = journal.state(name)
        held = sum(points for hold in account.holds.values() for _, points in hold.taken)
        points = sum(account.grants.values())
        expected.append(Balance(name, account.total_mg, account.debt_mg, points, held, account.debt_points))
    assert read.balances(at) == expected


def test_some_of_them_are_in_debt_and_some_are_not(at: Snapshot) -> None:
    assert any(balance.debt_points for balance in read.balances(at))
    assert not all(balance.debt_points for balance in read.balances(at))


def test_actions_are_those_that_count(at: Snapshot, journal: Journal) -> None:
    for row in residents(at):
        credited = [e for e in events.of(journal, ActionCredited) if e.resident == row.resident]
        taken_back = [e for e in events.of(journal, ActionReversed) if e.resident == row.resident]
        assert row.actions == len(credited) - len(taken_back)


def test_a_resident_is_as_they_opened_their_account(at: Snapshot, journal: Journal) -> None:
    ann, bob = resident(at, ANN), resident(at, BOB)
    assert ann
    assert bob
    assert (ann.county, bob.county) == ("330523", "440300")  # her own word, and his source's
    assert not bob.frozen  # frozen, and allowed again
    assert resident(at, "res_nobody") is None


def test_pages_follow_each_other(at: Snapshot) -> None:
    first = residents(at, limit=2)
    assert [*first, *residents(at, after=first[-1].resident)] == residents(at)
