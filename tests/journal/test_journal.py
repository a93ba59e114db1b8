"""What a journal promises, wherever it lies: in memory, in SQLite files, in PostgreSQL."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import date, timedelta
from decimal import Decimal
from threading import Thread
from typing import Any

import msgspec
import pytest

from carbon_points.domain import account, lot
from carbon_points.domain.account import (
    AccountOpened,
    ActionCredited,
    ConsentGiven,
    HoldExpired,
    OpenAccount,
)
from carbon_points.domain.fund import FundInsufficient, MoneyReceived, PayMerchant, ReceiveMoney
from carbon_points.domain.merchant import (
    ChangePrice,
    CloseSettlement,
    EnrolTerminal,
    RegisterMerchant,
    SettlementFacts,
)
from carbon_points.domain.methodology import PublishMethodology
from carbon_points.domain.order import Tally, Totals
from carbon_points.domain.refusal import Conflict
from carbon_points.domain.source import ChangeSource, RegisterSource
from carbon_points.domain.terminal import AddTerminalKey
from carbon_points.journal import codec, partition
from carbon_points.journal import journal as journal_module
from carbon_points.journal.entry import Entry, claim_key, leaf_hash
from carbon_points.journal.journal import DecidedElsewhere, SteadyClock, open_journal
from carbon_points.journal.partition import Outcome, Unavailable, Write
from carbon_points.journal.streams import decode_state, kind_of, partition_of, stream_of
from carbon_points.journal.waiting import Overloaded
from tests import given
from tests.conftest import Clock
from tests.given import (
    DAY,
    HOUR,
    NOON,
    capturing,
    holding,
    pooling,
    refunding,
    reversal,
    ride,
    tap,
    voiding,
)
from tests.journal.city import City, balances, entries, events, folded, opened


@pytest.fixture
def city(journal_url: str, clock: Clock) -> Iterator[City]:
    with opened(journal_url, clock=clock) as city:
        yield city.found()


# -- committing and reading back -------------------------------------------------------------------------------------


def test_what_is_committed_is_read_back_in_order_with_its_leaf_hash(city: City) -> None:
    outcome = city.do(ride())
    assert [type(event) for event in outcome.events] == [AccountOpened, ConsentGiven, ActionCredited]
    read = [e for e in entries(city.journal) if e.stream == "res_1"]
    assert [codec.decode(e.type, e.state) for e in read] == list(outcome.events)
    assert [e.version for e in read] == [1, 2, 3]
    assert (outcome.partition, outcome.position, outcome.version) == (read[-1].partition, read[-1].position, 3)
    for entry in read:
        assert entry.leaf == leaf_hash(entry.partition, entry.stream, entry.version, entry.type, entry.state)


def test_a_stream_lies_in_the_partition_of_its_name(city: City) -> None:
    for n in range(20):
        city.do(ride(str(n), resident=f"res_{n}"))
    for entry in entries(city.journal):
        assert entry.partition == partition_of(entry.stream, 2)
    assert {e.partition for e in entries(city.journal)} == {0, 1}


def test_entries_are_read_from_after_a_position_up_to_another_in_chunks(city: City) -> None:
    for n in range(10):
        city.do(ride(str(n)))
    number = partition_of("res_1", 2)
    head = city.journal.heads()[number]
    everything = list(city.journal.entries(number, chunk=3))
    assert [e.position for e in everything] == list(range(1, head + 1))
    assert list(city.journal.entries(number, after=3, until=7)) == everything[3:7]
    assert list(city.journal.entries(number, after=head)) == []
    assert list(city.journal.entries(number, after=head - 1, until=head + 100)) == everything[-1:]


def test_an_outcome_s_view_is_of_the_state_after_its_own_command(city: City) -> None:
    available = [
        o.view for o in city.all(ride("1"), ride("2"), holding(points=5), view=lambda a, now: a.available(now))
    ]
    assert available == [10, 20, 15]


def test_recorded_at_is_the_clock_s_and_the_same_for_the_events_of_one_command(city: City, clock: Clock) -> None:
    outcome = city.do(ride())
    assert {event.recorded_at for event in outcome.events} == {clock.at}


def test_an_entry_is_found_by_its_claim_in_whichever_partition_it_lies(city: City) -> None:
    for n in range(6):
        city.do(ride(str(n), resident=f"res_{n}"))
    for n in range(6):
        found = city.journal.find(("action", "szt", str(n)))
        assert found is not None
        assert (found.stream, found.type) == (f"res_{n}", "action-credited/1")
        assert city.journal.find_beside(f"res_{n}", ("action", "szt", str(n))) == found
        elsewhere = city.journal.partition_of("res_0") is not city.journal.partition_of(f"res_{n}")
        assert (city.journal.find_beside("res_0", ("action", "szt", str(n))) is None) == elsewhere
    assert city.journal.find(("action", "szt", "99")) is None


# -- positions -------------------------------------------------------------------------------------------------------


def test_positions_have_no_gaps_after_refusals_conflicts_and_failures(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, "broken")
    for n in range(5):
        city.all(ride(f"{n}"), holding(f"too many {n}", 10_000), ride(f"{n}", quantity=Decimal(2)))
        city.all(ride("broken"), ride(f"{n} besides"))
    for number, head in city.journal.heads().items():
        assert [e.position for e in city.journal.entries(number)] == list(range(1, head + 1))


def test_a_refused_command_leaves_nothing_behind_but_what_was_due(city: City, clock: Clock) -> None:
    city.all(ride(), holding(points=10, hold_seconds=60))
    before = len(entries(city.journal))
    assert city.do(capturing("d1", 11)).refusal
    assert len(entries(city.journal)) == before
    clock.move(timedelta(seconds=60))
    refused = city.do(capturing("d1", 11))
    assert isinstance(refused.refusal, HoldExpired)
    assert (refused.events, refused.position) == ((), 0)
    assert len(entries(city.journal)) == before + 1
    assert codec.decode(last(city).type, last(city).state) == account.HoldReleased(
        recorded_at=clock.at,
        resident="res_1",
        redemption_id="d1",
        merchant="bakery",
        cause="expired",
        released=((date(2026, 6, 30), 10),),
    )


def last(city: City) -> Entry:
    return [entry for entry in entries(city.journal) if entry.stream == "res_1"][-1]


# -- once only -------------------------------------------------------------------------------------------------------

OPENING = lot.OpenPool(
    pool_id="pool_1",
    methodology="bus",
    version="1",
    from_month="2025-01",
    until_month="2025-12",
    region="330500",
    scheme="T",
)


def giving(name: str, purpose: str = "record") -> account.GiveConsent:
    return account.GiveConsent(resident="res_1", consent=given.consent(name, purpose))


CLAIMED: dict[str, tuple[Any, dict[str, Any]]] = {
    "a report": (ride("r"), {"quantity": Decimal(2)}),
    "a tap": (tap("t", "metro_in", NOON), {"occurred_at": NOON - HOUR}),
    "a reversal": (reversal("1"), {"reason": "another"}),
    "a hold": (holding("d2", 5), {"points": 6, "merchant": "kiosk"}),
    "a capture": (capturing("d1", 10), {"points": 9}),
    "a refund": (refunding("f1", 3, redemption_id="d0"), {"points": 4}),
    "a pooling": (pooling(from_month="2025-06", until_month="2025-06"), {"until_month": "2025-07"}),
    "an account": (OpenAccount(resident="res_2", county="330502"), {"county": "330503"}),
    "a consent": (giving("c9"), {"consent": given.consent("c9", version="2")}),
    "a withdrawal": (account.WithdrawConsent(resident="res_1", consent_id="t1"), {}),
    "a receipt": (
        ReceiveMoney(receipt_id="m1", origin="sponsor", payer="bank", amount_fen=9),
        {"amount_fen": 8, "payer": "other"},
    ),
    "a merchant": (
        RegisterMerchant(merchant="kiosk", name="报亭", fen_per_point=1),
        {"name": "书店", "fen_per_point": 2},
    ),
    "a terminal": (EnrolTerminal(merchant="bakery", terminal="till-1"), {}),
    "a terminal's key": (
        AddTerminalKey(merchant="bakery", terminal="till-0", key_id="trm_1", public_key="k"),
        {"terminal": "till-1", "key_id": "trm_2"},
    ),
    "a settlement": (CloseSettlement(merchant="bakery", settlement_id="s1"), {}),
    "a source": (RegisterSource(source="walk", name="步数", behaviours=("walk",)), {"behaviours": ("walk", "bus")}),
    "a pool": (OPENING, {"region": "330600"}),
}


def lived(city: City) -> City:
    """A resident with a consent to trade, points, a hold `d1` and a capture `d0`; a fund with money."""
    city.all(*(ride(str(n)) for n in range(1, 6)))
    city.do(giving("t1", "trade"))
    city.do(EnrolTerminal(merchant="bakery", terminal="till-0"))
    city.all(holding("d0", 10), capturing("d0", 10), holding("d1", 10))
    return city


@pytest.mark.parametrize("said", CLAIMED)
def test_the_same_again_is_the_earlier_answer_and_other_content_a_conflict(city: City, said: str) -> None:
    command, other = CLAIMED[said]
    lived(city)
    facts = SettlementFacts({}, {"0": 1}, Totals(Tally(1, 10, 50))) if isinstance(command, CloseSettlement) else None
    write = city.write(command) if facts is None else Write(command, facts)
    [first] = city.journal.commit([write])
    assert (first.refusal, first.failure) == (None, None)
    assert not first.replayed
    before = entries(city.journal)
    [again] = city.journal.commit([write])
    assert (again.replayed, again.refusal) == (True, None)
    assert again.events == first.events[-1:]
    assert (again.position, again.version, again.partition) == (first.position, first.version, first.partition)
    if other:
        [conflict] = city.journal.commit(
            [msgspec.structs.replace(write, command=msgspec.structs.replace(command, **other))]
        )
        assert isinstance(conflict.refusal, Conflict)
        assert conflict.refusal.facts == {"fields": sorted(other)}
        assert conflict.position == first.position
    assert entries(city.journal) == before


def test_the_same_again_is_the_earlier_answer_however_late(city: City, clock: Clock) -> None:
    first = city.do(ride())
    clock.move(5 * 365 * DAY)
    again = city.do(ride())
    assert (again.replayed, again.events, again.position) == (True, first.events[-1:], first.position)


def test_a_refused_command_may_be_sent_again_and_then_counts(city: City) -> None:
    city.do(ride())
    assert city.do(capturing("d1", 5)).refusal
    city.do(holding("d1", 5))
    assert city.do(capturing("d1", 5)).refusal is None


def test_a_void_again_is_the_earlier_answer_and_after_a_capture_a_refusal(city: City) -> None:
    city.all(ride(), holding("d1", 5), holding("d2", 5))
    first = city.do(voiding("d1"))
    assert city.do(voiding("d1")).position == first.position
    city.do(capturing("d2", 5))
    assert city.do(voiding("d2")).refusal


def test_one_record_id_twice_in_a_batch_counts_once(city: City) -> None:
    first, same, other, next_ = city.all(ride(), ride(), ride(quantity=Decimal(2)), ride("2"))
    assert (first.replayed, same.replayed, other.replayed, next_.replayed) == (False, True, True, False)
    assert (same.position, same.events) == (first.position, first.events[-1:])
    assert isinstance(other.refusal, Conflict)
    assert other.refusal.facts == {"fields": ["quantity"]}
    assert next_.position == first.position + 1
    assert city.resident().available(NOON) == 20


@pytest.mark.parametrize("apart", [False, True], ids=["in one partition", "in two partitions"])
def test_one_record_id_for_two_residents_is_a_conflict(city: City, apart: bool) -> None:
    other = neighbour(apart)
    city.do(ride())
    outcome = city.do(ride(resident=other))
    assert isinstance(outcome.refusal, Conflict)
    assert outcome.refusal.facts == {"fields": ["resident"]}
    assert not city.resident(other).opened


def test_one_record_id_for_two_residents_in_one_batch_counts_once_wherever_they_lie(city: City) -> None:
    """Partitions decide at the same time; neither has written yet when the other looks."""
    for n in range(50):
        outcomes = city.all(ride(str(n)), ride(str(n), resident=neighbour(apart=True)))
        assert [isinstance(o.refusal, Conflict) for o in outcomes] == [False, True]


def test_one_record_id_that_is_submitted_for_two_residents_at_once_counts_once(city: City) -> None:
    def submit(resident: str, n: int) -> bool:
        try:
            outcome = city.ask(ride(str(n), resident=resident))
        except DecidedElsewhere:  # the caller is told to send it again
            return False
        return outcome.refusal is None

    with ThreadPoolExecutor(2) as threads:
        for n in range(50):
            counted = list(threads.map(submit, ("res_1", neighbour(apart=True)), (n, n)))
            assert sum(counted) == 1


def test_a_conflict_with_an_entry_of_another_partition_tells_that_place(city: City) -> None:
    first = city.do(ride())
    conflict = city.do(ride(resident=neighbour(apart=True)))
    assert (conflict.partition, conflict.position) == (first.partition, first.position)


def neighbour(apart: bool) -> str:
    """A resident whose stream lies in the other partition than that of `res_1`, or in the same."""
    mine = partition_of("res_1", 2)
    return next(name for n in range(2, 50) if (partition_of(name := f"res_{n}", 2) != mine) is apart)


# -- neighbours ------------------------------------------------------------------------------------------------------


def broken(monkeypatch: pytest.MonkeyPatch, record_id: str) -> None:
    """A mistake of ours that meets one report."""
    decide = account.record

    def record(state: Any, command: account.RecordAction, **facts: Any) -> Any:
        if command.record_id == record_id:
            return 1 // 0
        return decide(state, command, **facts)

    monkeypatch.setattr(account, "record", record)


def test_a_refused_command_leaves_its_neighbours_alone(city: City) -> None:
    outcomes = city.all(ride("1"), capturing("d1", 999), ride("2"), ride("3", unit="mile"), ride("4"))
    assert [outcome.refusal is None for outcome in outcomes] == [True, False, True, False, True]
    assert city.resident().available(NOON) == 30


def test_an_unexpected_mistake_fails_its_own_command_only(city: City, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, "2")
    outcomes = city.all(ride("1"), ride("2"), ride("3"), ride("4", resident="res_2"))
    assert [type(outcome.failure) for outcome in outcomes] == [type(None), ZeroDivisionError, type(None), type(None)]
    assert outcomes[1].events == ()
    assert city.resident().available(NOON) == 20
    monkeypatch.undo()
    assert city.do(ride("2")).failure is None  # it did not happen, so it may still
    assert city.resident().available(NOON) == 30


def test_submitted_commands_share_their_batch_with_a_mistake_and_still_happen(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, "13")
    waiting = [city.journal.submit(city.write(ride(str(n)))) for n in range(40)]
    outcomes = [answer.result(timeout=60) for answer in waiting]
    assert [n for n, outcome in enumerate(outcomes) if outcome.failure] == [13]
    assert sum(outcome.position > 0 for outcome in outcomes) == 39


# -- submitting ------------------------------------------------------------------------------------------------------


def test_what_waits_together_is_committed_together_and_each_gets_its_own_answer(city: City) -> None:
    appended: list[int] = []
    recorder = city.journal.partition_of("res_1").recorder
    append = recorder.append

    def counted(happened: Any, claims: Any, states: Any) -> int:
        appended.append(len(happened))
        return append(happened, claims, states)

    recorder.append = counted  # pyright: ignore[reportAttributeAccessIssue]
    writes = [city.write(ride(str(n))) for n in range(300)]
    with city.journal.partition_of("res_1").turn:  # the writer is busy, so that they do wait
        waiting = [city.journal.submit(write) for write in writes]
    outcomes = [answer.result(timeout=60) for answer in waiting]
    assert [o.events[-1].record_id for o in outcomes] == [str(n) for n in range(300)]  # pyright: ignore[reportAttributeAccessIssue]
    assert [o.position for o in outcomes] == sorted(o.position for o in outcomes)
    assert sum(appended) == 302  # and the account and its consent
    assert len(appended) < 150


def test_closing_answers_everyone_who_waits(journal_url: str, clock: Clock) -> None:
    journal = open_journal(journal_url, partitions=2, clock=clock)
    city = City(journal).found()
    waiting = [journal.submit(city.write(ride(str(n), resident=f"res_{n}"))) for n in range(200)]
    journal.close()
    assert all(answer.result(timeout=0).refusal is None for answer in waiting)


def test_a_closed_journal_takes_nothing_more(journal_url: str, clock: Clock) -> None:
    journal = open_journal(journal_url, partitions=2, clock=clock)
    write = City(journal).found().write(ride())
    journal.close()
    with pytest.raises(Unavailable):
        journal.submit(write)


def test_who_submits_while_the_journal_closes_gets_an_answer_or_is_told(journal_url: str, clock: Clock) -> None:
    journal = open_journal(journal_url, partitions=2, clock=clock)
    city = City(journal).found()
    writes = [city.write(ride(str(n), resident=f"res_{n}")) for n in range(400)]

    def submit(write: Write) -> bool:
        try:
            return journal.submit(write).result(timeout=20).position > 0
        except Unavailable:
            return False

    with ThreadPoolExecutor(16) as threads:
        answers = [threads.submit(submit, write) for write in writes]
        assert answers[40].result()
        journal.close()
        assert {answer.result() for answer in answers} <= {True, False}


def test_who_submits_at_the_moment_of_closing_is_not_left_waiting(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = open_journal("sqlite://", partitions=1, clock=clock)
    city = City(journal).found()
    city.ask(ride("1"))
    [waiting] = journal._waiting
    put, closing = waiting.put, Thread(target=journal.close)

    def put_early(*item: Any) -> None:
        put(*item)
        closing.start()
        closing.join(timeout=1)  # it gets as far as it may before the writer looks

    monkeypatch.setattr(waiting, "put", put_early)
    answer = journal.submit(city.write(ride("2")))
    try:
        assert answer.result(timeout=30).position > 0
    finally:
        closing.join()


def until_overloaded(city: City, writes: list[Write]) -> Iterator[Future[Outcome]]:
    for write in writes:
        try:
            yield city.journal.submit(write)
        except Overloaded:
            return


def test_where_too_much_waits_the_caller_is_told_to_come_back(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "WAITING_MOST", 8)
    with opened("sqlite://", partitions=1, clock=clock) as city:
        city.found()
        writes = [city.write(ride(str(n))) for n in range(20)]
        with city.journal.partitions[0].turn:  # the writer is busy
            taken = list(until_overloaded(city, writes))
        assert 4 <= len(taken) < 20
        assert all(answer.result(timeout=20).position > 0 for answer in taken)


# -- states ----------------------------------------------------------------------------------------------------------


def busy(city: City, clock: Clock) -> None:
    """Something of everything that an account, a merchant, a pool and the fund can live through."""
    lived(city)
    city.all(ride("r1", resident="res_2"), ride("r2", resident="res_3"), tap("t1", "metro_in", NOON))
    clock.move(HOUR)
    city.all(tap("t2", "metro_out", NOON + HOUR), tap("t3", "metro_out", NOON + HOUR, resident="res_2"))
    city.all(holding("d3", 5), holding("d4", 5, hold_seconds=7_200), voiding("d3"), capturing("d1", 7))
    city.all(reversal("1"), refunding("f1", 4, redemption_id="d0"))
    city.all(ride("late", occurred_at=NOON - 40 * DAY), ride("later", occurred_at=NOON - 400 * DAY))
    city.do(OPENING)
    city.do(pooling())
    city.do(reversal("2"))
    city.do(ReceiveMoney(receipt_id="m1", origin="sponsor", payer="bank", amount_fen=1_000))
    city.do(PayMerchant(settlement_id="s0", merchant="bakery", amount_fen=10))
    clock.move(3 * HOUR)
    city.do(account.LapseDue(resident="res_1"))
    clock.move(500 * DAY)
    city.all(*(account.LapseDue(resident=f"res_{n}") for n in (1, 2, 3)))
    city.do(ride("after", resident="res_2", occurred_at=clock.at))


def test_kept_states_are_the_fold_of_the_log(city: City, clock: Clock) -> None:
    busy(city, clock)
    kept: dict[str, Any] = {}
    for part in city.journal.partitions:
        for row in part.recorder.all_states(("", ""), 10_000):
            kind = kind_of(row.stream)
            if not row.part:
                kept[row.stream] = decode_state(kind.state_type, row.state)
            else:
                field, _, key = row.part.partition("/")
                getattr(kept[row.stream], field)[key] = decode_state(kind.parted[field], row.state)
    assert kept == folded(city.journal)


def test_a_kept_state_is_of_its_stream_s_last_version(city: City, clock: Clock) -> None:
    busy(city, clock)
    last = {entry.stream: entry.version for entry in entries(city.journal)}
    rows = [row for part in city.journal.partitions for row in part.recorder.all_states(("", ""), 10_000)]
    assert {row.stream: row.version for row in rows if not row.part} == last
    assert all(row.version <= last[row.stream] for row in rows)


def test_kept_claims_are_those_of_the_log_and_no_others(city: City, clock: Clock) -> None:
    busy(city, clock)
    for part in city.journal.partitions:
        places = {(c.stream, c.version): c.key for c in part.recorder.all_claims(b"", 10_000)}
        for entry in city.journal.entries(part.number):
            event = codec.decode(entry.type, entry.state)
            if isinstance(event, ActionCredited | account.TapRecorded):
                assert places.pop((entry.stream, entry.version)) == claim_key(("action", event.source, event.record_id))
        assert all(key != claim_key(("action", "szt", "1")) for key in places.values())


def test_a_state_is_read_with_the_parts_that_are_asked_for(city: City, clock: Clock) -> None:
    lived(city)
    assert city.resident().redemptions == {}
    found = city.journal.state("res_1", [("redemptions", "d0"), ("redemptions", "unknown")])
    assert {name: r.status for name, r in found.redemptions.items()} == {"d0": "captured"}
    assert city.journal.state("res_9").opened is False


def test_states_that_memory_forgets_are_read_again(city: City, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in city.journal.partitions:
        each._states_kept = 1
    monkeypatch.setattr(partition, "PARTS_KEPT", 1)
    busy(city, clock)
    assert city.resident() == without_parts(folded(city.journal)["res_1"])
    assert balances(events(city.journal))[("points", "resident/res_2")] == city.resident("res_2").available(clock.at)


def without_parts(state: account.Account) -> account.Account:
    state.usage, state.redemptions = {}, {}
    return state


def test_all_claims_and_states_are_paged_through_in_order(city: City, clock: Clock) -> None:
    busy(city, clock)
    for part in city.journal.partitions:
        recorder = part.recorder
        claims, states = recorder.all_claims(b"", 10_000), recorder.all_states(("", ""), 10_000)
        assert [c.key for c in claims] == sorted(c.key for c in claims)
        assert [(s.stream, s.part) for s in states] == sorted((s.stream, s.part) for s in states)
        after, paged = b"", []
        while some := recorder.all_claims(after, 3):
            paged += some
            after = some[-1].key
        assert paged == claims
        place, found = ("", ""), []
        while rows := recorder.all_states(place, 3):
            found += rows
            place = (rows[-1].stream, rows[-1].part)
        assert found == states


def test_who_has_something_due_is_found_without_reading_the_log(city: City, clock: Clock) -> None:
    city.all(ride(), holding(points=5, hold_seconds=60), ride("2", resident="res_2"))
    assert list(city.journal.lapsed(clock.at)) == []
    assert list(city.journal.lapsed(clock.at + timedelta(seconds=60))) == ["res_1"]
    assert sorted(city.journal.lapsed(clock.at + 800 * DAY)) == ["res_1", "res_2"]


# -- time ------------------------------------------------------------------------------------------------------------


def test_recorded_at_never_goes_back_when_the_clock_does(city: City, clock: Clock) -> None:
    city.do(ride("1"))
    latest = clock.at
    clock.move(-timedelta(seconds=20))
    outcome = city.do(ride("2", occurred_at=NOON - 2 * DAY))
    assert outcome.events[-1].recorded_at == latest
    clock.move(2 * DAY)
    assert city.do(ride("3")).events[-1].recorded_at == clock.at


def test_nothing_is_written_by_a_clock_that_is_far_behind_the_log(city: City, clock: Clock) -> None:
    """An entry of another day would expire points, or keep holds, that are not due."""
    city.do(ride("1"))
    clock.move(-timedelta(seconds=31))
    with pytest.raises(Unavailable, match="clock"):
        city.do(ride("2", occurred_at=NOON - 2 * DAY))
    clock.move(timedelta(seconds=31))
    assert city.do(ride("2", occurred_at=NOON - 2 * DAY)).position > 0


def test_the_system_s_clock_is_believed_as_long_as_it_goes_as_time_does(monkeypatch: pytest.MonkeyPatch) -> None:
    steady, began = SteadyClock(), time.time()
    assert abs(steady().timestamp() - began) < 5
    monkeypatch.setattr("time.time", lambda: began + 900 * 86_400)
    with pytest.raises(Unavailable, match="jumped"):
        steady()


# -- rules -----------------------------------------------------------------------------------------------------------


def test_a_change_of_rules_by_this_process_is_seen_at_once(city: City) -> None:
    city.journal.rules()
    city.do(ChangeSource(source="szt", behaviours=("bus",), suspended=True))
    city.journal.rules_changed()
    assert city.journal.rules().sources.by_id["szt"].suspended
    text = given.table(version="2", begins="2025-06-01")
    city.do(PublishMethodology(methodology="bus", version="2", table=text))
    city.journal.rules_changed()
    assert city.journal.rules().methodologies.exact("bus", "2")


def test_other_kinds_refuse_and_commit_by_their_own_modules(city: City) -> None:
    assert isinstance(
        city.do(PayMerchant(settlement_id="s", merchant="bakery", amount_fen=1)).refusal, FundInsufficient
    )
    assert isinstance(
        city.do(ReceiveMoney(receipt_id="m", origin="sponsor", payer="b", amount_fen=1)).events[0], MoneyReceived
    )
    assert city.do(ChangePrice(merchant="bakery", fen_per_point=7)).refusal is None
    assert city.journal.state("merchant/bakery").fen_per_point == 7


@pytest.mark.parametrize(
    ("command", "stream"),
    [
        (ride(resident="res_7"), "res_7"),
        (pooling("pool_x", resident="res_7"), "res_7"),
        (ReceiveMoney(receipt_id="m", origin="sponsor", payer="b", amount_fen=1), "fund"),
        (PayMerchant(settlement_id="s", merchant="bakery", amount_fen=1), "fund"),
        (ChangeSource(source="szt", behaviours=()), "sources"),
        (PublishMethodology(methodology="bus", version="1", table=""), "methodologies"),
        (ChangePrice(merchant="bakery", fen_per_point=1), "merchant/bakery"),
        (lot.IssueLot(pool_id="pool_1", lot_id="lot_1"), "pool/pool_1"),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_a_command_writes_to_the_stream_of_what_it_is_about(command: Any, stream: str) -> None:
    assert stream_of(command) == stream


# -- opening ---------------------------------------------------------------------------------------------------------


def test_a_journal_of_an_unknown_kind_of_place_is_not_opened() -> None:
    with pytest.raises(ValueError, match="sqlite"):
        open_journal("mysql://localhost/city")


def test_two_journals_in_memory_know_nothing_of_each_other(clock: Clock) -> None:
    with opened("sqlite://", clock=clock) as one, opened("sqlite://", clock=clock) as other:
        one.found().do(ride())
        assert entries(other.journal) == []
