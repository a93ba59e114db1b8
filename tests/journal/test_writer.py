"""One batch is appended while the next is decided: whatever becomes of the first, both are right."""

import asyncio
import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from threading import Event, Thread
from time import sleep
from typing import Any

import pytest

from carbon_points.domain.account import ActionCredited
from carbon_points.domain.refusal import Conflict
from carbon_points.journal import partition as partition_module
from carbon_points.journal.journal import open_journal
from carbon_points.journal.partition import Outcome, Partition, Unavailable
from carbon_points.journal.recorder import Contended, Unreachable
from tests.conftest import Clock
from tests.given import capturing, holding, ride
from tests.journal.city import City, entries, events, opened


@pytest.fixture
def city(journal_url: str, clock: Clock) -> Iterator[City]:
    with opened(journal_url, partitions=1, clock=clock) as city:
        yield city.found()


class Appending:
    """What a partition's appends meet, one after another: `go` lets the first begin, and it is told when it has."""

    def __init__(self, city: City, *met: Callable[[], None]) -> None:
        self.go, self.begun = Event(), Event()
        self.met, self.decided = list(met), 0
        [self.partition] = city.journal.partitions
        appended, decided = self.partition.appended, self.partition.decided

        def appending(batch: Any) -> list[Outcome]:
            self.begun.set()
            self.go.wait(30)
            if self.met:
                self.met.pop(0)()
            return appended(batch)

        def deciding(*args: Any) -> Any:
            batch = decided(*args)
            self.decided += 1
            return batch

        self.partition.appended = appending  # pyright: ignore[reportAttributeAccessIssue]
        self.partition.decided = deciding  # pyright: ignore[reportAttributeAccessIssue]

    def until_decided(self, count: int) -> None:
        while self.decided < count:
            sleep(0.001)


def fails(error: Exception) -> Callable[[], None]:
    def failing() -> None:
        raise error

    return failing


def passes() -> None: ...


def credited(city: City) -> list[str]:
    return [event.record_id for event in events(city.journal) if isinstance(event, ActionCredited)]


def gapless(city: City) -> bool:
    versions: dict[str, int] = {}
    for entry in entries(city.journal):
        if entry.version != versions.get(entry.stream, 0) + 1:
            return False
        versions[entry.stream] = entry.version
    return True


def two_batches(city: City, appending: Appending, *second: Future[Outcome] | Any) -> list[Future[Outcome]]:
    """Two reports that are being appended, and then others, decided meanwhile."""
    with appending.partition.turn:
        first = [city.journal.submit(city.write(ride(str(n)))) for n in range(2)]
    appending.begun.wait(30)
    rest = [city.journal.submit(city.write(command)) for command in second]
    return first + rest


MEETS: dict[str, Callable[[], None]] = {
    "nothing": passes,
    "a lost race": fails(Contended("lost")),
    "no database": fails(Unreachable("gone")),
    "a mistake of ours": fails(ValueError("a mistake")),
}


@pytest.mark.parametrize("met", MEETS.values(), ids=MEETS.keys())
def test_whatever_meets_the_first_batch_each_report_counts_once_and_in_order(city: City, met: Any) -> None:
    appending = Appending(city, met)
    waiting = two_batches(city, appending, *(ride(str(n)) for n in range(2, 6)))
    appending.until_decided(2)  # the second on states that the first has not stored yet
    appending.go.set()
    outcomes = [answer.result(30) for answer in waiting]
    assert all(o.position and not o.refusal and not o.failure and not o.replayed for o in outcomes)
    assert [o.position for o in outcomes] == sorted({o.position for o in outcomes})
    assert credited(city) == ["0", "1", "2", "3", "4", "5"]
    assert gapless(city)


@pytest.mark.parametrize("met", [MEETS["a lost race"], MEETS["no database"]], ids=["a lost race", "no database"])
def test_where_the_second_batch_fails_the_first_is_not_repeated(city: City, met: Any) -> None:
    appending = Appending(city, passes, met)
    waiting = two_batches(city, appending, ride("2"), ride("3"))
    appending.go.set()
    assert all(answer.result(30).position for answer in waiting)
    assert credited(city) == ["0", "1", "2", "3"]
    assert gapless(city)


def test_the_same_identity_again_while_it_is_appended_is_its_repeat(city: City) -> None:
    appending = Appending(city)
    waiting = two_batches(city, appending, ride("1"), ride("1", unit="mile"))
    sleep(0.05)
    appending.go.set()
    first, made, again, other = [answer.result(30) for answer in waiting]
    assert (made.replayed, again.replayed) == (False, True)
    assert again.position == made.position > first.position
    assert isinstance(other.refusal, Conflict)
    assert credited(city) == ["0", "1"]


def test_a_refusal_that_rests_on_what_is_being_appended_stands_only_with_it(city: City) -> None:
    """There is no such redemption: neither in what is stored, nor in a batch that never was."""
    appending = Appending(city, fails(Contended("lost")))
    waiting = two_batches(city, appending, capturing("d1", 10), ride("2"))
    appending.until_decided(2)
    appending.go.set()
    outcomes = [answer.result(30) for answer in waiting]
    assert [o.refusal is None for o in outcomes] == [True, True, False, True]
    assert gapless(city)


def test_a_database_that_is_gone_for_long_is_told_to_all_and_nobody_hangs(city: City) -> None:
    appending = Appending(city, *(fails(Unreachable("gone")) for _ in range(20)))
    waiting = two_batches(city, appending, ride("2"), ride("3"))
    appending.go.set()
    done, not_done = wait(waiting, timeout=30)
    assert not not_done
    assert all(isinstance(answer.exception(), Unavailable) for answer in done)
    assert credited(city) == []


def test_a_program_that_commits_has_its_turn_while_reports_keep_coming(city: City) -> None:
    stopping, sent = Event(), list[Future[Outcome]]()

    def flood() -> None:
        n = 0
        while not stopping.is_set():
            sent.append(city.journal.submit(city.write(ride(f"f{n}", resident=f"res_{n % 50}"))))
            n += 1
            if n % 20 == 0:
                sent[-20].result(30)

    flooding = Thread(target=flood)
    flooding.start()
    try:
        for n in range(20):
            assert city.do(ride(f"c{n}", resident="res_c")).position
    finally:
        stopping.set()
        flooding.join()
    assert all(answer.result(30).position for answer in sent)


def test_closing_while_a_batch_is_appended_answers_it_and_what_waits(clock: Clock) -> None:
    journal = open_journal("sqlite://", partitions=1, clock=clock)
    city = City(journal).found()
    appending = Appending(city)
    waiting = two_batches(city, appending, ride("2"), ride("3"))
    closing = Thread(target=journal.close)
    closing.start()
    sleep(0.05)
    appending.go.set()
    closing.join(30)
    assert not closing.is_alive()
    assert all(answer.result(0).position for answer in waiting)


@pytest.mark.parametrize("away", [0.0, 0.03])
@pytest.mark.parametrize("seed", range(4))
def test_appends_that_fail_at_random_lose_and_double_nothing(
    city: City, seed: int, away: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before they happen, or after: then the claims tell that they did."""
    monkeypatch.setattr(partition_module, "AWAY_SECONDS", away)
    monkeypatch.setattr(partition_module, "RECONNECTS", 0)
    chance = random.Random(seed)
    [partition] = city.journal.partitions
    appended = Partition.appended
    if seed % 2:  # memory forgets all that it may
        partition._states_kept = 1
        monkeypatch.setattr(partition_module, "PARTS_KEPT", 1)

    def faulty(batch: Any) -> list[Outcome]:
        kind = chance.choice(["fine", "fine", "fine", "before", "after", "contended"])
        if kind == "before":
            raise Unreachable("gone before")
        if kind == "contended":
            raise Contended("lost")
        outcomes = appended(partition, batch)
        if kind == "after":
            raise Unreachable("the answer was lost")
        return outcomes

    partition.appended = faulty  # pyright: ignore[reportAttributeAccessIssue]
    ids = [str(n // 2 if n % 5 == 0 else n) for n in range(300)]  # some of them twice
    waiting = list[tuple[str, Future[Outcome]]]()
    for n, name in enumerate(ids):  # in bursts, and one alone now and then
        waiting.append((name, city.journal.submit(city.write(ride(name, resident=f"res_{int(name) % 7}")))))
        if n % 30 in (0, 10, 11, 12, 20):
            sleep(0.01)
    counted = set[str]()
    for name, answer in waiting:
        try:
            outcome = answer.result(60)
        except Unavailable:
            continue
        assert not outcome.failure
        counted.add(name)
    partition.appended = lambda batch: appended(partition, batch)  # pyright: ignore[reportAttributeAccessIssue]
    sleep(away)
    recorded = credited(city)
    assert len(recorded) == len(set(recorded))
    assert counted <= set(recorded) <= set(ids)
    assert gapless(city)
    for n in range(7):  # what is in memory is what the log says
        theirs = [e for e in events(city.journal) if isinstance(e, ActionCredited) and e.resident == f"res_{n}"]
        if theirs:
            before = sum(event.points for event in theirs)
            outcome = city.do(ride(f"last{n}", resident=f"res_{n}"), view=lambda state, at: state.available(at))
            last = outcome.events[-1]
            assert isinstance(last, ActionCredited)
            assert outcome.view == before + last.points


def test_commands_about_residents_who_are_not_there_do_not_fill_the_memory(city: City) -> None:
    [partition] = city.journal.partitions
    partition._states_kept = 10_000
    for n in range(300):
        assert city.ask(holding(f"d{n}", resident=f"res_nobody{n}")).refusal
    assert len(partition._loaded) < 60


def test_a_repeat_of_what_is_being_appended_does_not_cost_the_others_their_states(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped: list[int] = []
    drop = Partition.drop
    monkeypatch.setattr(Partition, "drop", lambda self: (dropped.append(1), drop(self)))
    appending = Appending(city)
    waiting = two_batches(city, appending, ride("1"), ride("2"))
    sleep(0.05)
    appending.go.set()
    assert [answer.result(30).replayed for answer in waiting] == [False, False, True, False]
    assert not dropped


def test_a_mistake_on_the_way_to_the_writer_is_told_to_one_and_the_others_are_answered(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, failing = city.journal._submit, [RuntimeError("no thread to be had")]

    def submitting(*item: Any) -> None:
        if failing:
            raise failing.pop()
        submit(*item)

    monkeypatch.setattr(city.journal, "_submit", submitting)

    async def asked() -> list[Outcome | BaseException]:
        first = [city.journal.ask(city.write(ride(str(n)))) for n in range(3)]
        told = await asyncio.wait_for(asyncio.gather(*first, return_exceptions=True), 30)
        return [*told, await asyncio.wait_for(city.journal.ask(city.write(ride("9"))), 30)]

    told = asyncio.run(asked())
    assert isinstance(told[0], RuntimeError)
    assert [isinstance(each, Outcome) and each.position > 0 for each in told] == [False, True, True, True]


def test_an_answer_that_nobody_waits_for_any_more_does_not_stop_the_writer(city: City) -> None:
    appending = Appending(city)
    waiting = two_batches(city, appending, ride("2"))
    assert waiting[0].cancel()
    appending.go.set()
    assert waiting[2].result(30).position
    assert city.ask(ride("3")).position
