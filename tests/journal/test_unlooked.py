"""Who is in memory is decided without a look for the identity: the append finds it where it was used, by whomever.

Two journals on one database stand for two processes, with one partition, since with several a report is always looked
for in the others.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from time import sleep
from typing import Any

import pytest

from carbon_points.domain.account import AccountIsFrozen, ActionCredited, FreezeAccount
from carbon_points.domain.refusal import Conflict
from carbon_points.journal import partition as partition_module
from carbon_points.journal.partition import Outcome, Partition
from carbon_points.journal.recorder import Claimed
from tests.conftest import Clock
from tests.given import NOON, holding, ride
from tests.journal.city import City, entries, events, opened
from tests.journal.test_journal import broken
from tests.journal.test_two_processes import at_once, in_balance, no_gaps
from tests.journal.test_writer import Appending, two_batches

RESIDENTS = ("res_1", "res_2", "res_3")


@pytest.fixture
def cities(shared_journal_url: str, clock: Clock) -> Iterator[tuple[City, City]]:
    """Both have the residents' states in memory."""
    with (
        opened(shared_journal_url, partitions=1, clock=clock) as one,
        opened(shared_journal_url, partitions=1, clock=clock) as other,
    ):
        one.found().all(*(ride(f"known-{name}", resident=name) for name in RESIDENTS))
        for name in RESIDENTS:
            assert other.ask(holding("none", 0, resident=name)).refusal is not None
        yield one, other


class Watched:
    """How often a city looks before it decides, what its appends meet, and how often it drops what is in memory."""

    def __init__(self, city: City, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks = self.drops = 0
        self.met: list[type[Exception]] = []
        [self.partition] = city.journal.partitions
        recorder = self.partition.recorder
        look, append, drop = recorder.look, recorder.append, self.partition.drop

        def looking(*args: Any) -> Any:
            self.looks += 1
            return look(*args)

        def appending(*args: Any) -> int:
            try:
                return append(*args)
            except Exception as error:
                self.met.append(type(error))
                raise

        def dropping() -> None:
            self.drops += 1
            drop()

        monkeypatch.setattr(recorder, "look", looking)
        monkeypatch.setattr(recorder, "append", appending)
        monkeypatch.setattr(self.partition, "drop", dropping)


def credited(city: City) -> Counter[str]:
    return Counter(event.record_id for event in events(city.journal) if isinstance(event, ActionCredited))


def available(city: City, resident: str) -> object:
    return (
        city.journal.submit(
            city.write(ride(f"last-{resident}", resident=resident), lambda state, at: state.available(at))
        )
        .result(30)
        .view
    )


def test_a_report_of_who_is_in_memory_costs_no_look(cities: tuple[City, City], monkeypatch: pytest.MonkeyPatch) -> None:
    mine, _ = cities
    watched = Watched(mine, monkeypatch)
    assert all(mine.ask(ride(str(n))).position for n in range(5))
    assert (watched.looks, watched.met) == (0, [])
    assert mine.ask(ride("new", resident="res_new")).position
    assert watched.looks == 1


def test_a_report_that_was_made_before_has_its_earlier_answer(
    cities: tuple[City, City], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, _ = cities
    first = mine.ask(ride("1"))
    watched = Watched(mine, monkeypatch)
    again, other = mine.ask(ride("1")), mine.ask(ride("1", resident="res_2"))
    assert watched.met == [Claimed]  # and after that it looks
    assert (again.replayed, again.position, again.events) == (True, first.position, first.events)
    assert isinstance(other.refusal, Conflict)
    assert credited(mine)["1"] == 1
    assert available(mine, "res_1") == 30
    assert watched.drops == 0


def test_a_record_that_the_other_process_took_for_another_resident_is_not_taken_again(
    cities: tuple[City, City], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = cities
    watched = Watched(mine, monkeypatch)
    told = theirs.ask(ride("1", resident="res_2"))
    outcome = mine.ask(ride("1", resident="res_1"))
    assert watched.met == [Claimed]
    assert isinstance(outcome.refusal, Conflict)
    assert outcome.position == told.position
    assert [available(mine, name) for name in RESIDENTS] == [20, 30, 20]
    no_gaps(mine)
    in_balance(theirs)


def test_a_report_that_would_be_refused_now_has_the_answer_that_the_other_process_gave(
    cities: tuple[City, City],
) -> None:
    mine, theirs = cities
    told = theirs.ask(ride("1"))
    mine.do(FreezeAccount(resident="res_1", frozen=True, reason="-"))
    assert isinstance(mine.ask(ride("2")).refusal, AccountIsFrozen)
    again = mine.ask(ride("1"))
    assert (again.refusal, again.replayed, again.position) == (None, True, told.position)


def test_after_a_repeat_batches_look_for_a_while_and_then_no_more(
    cities: tuple[City, City], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition_module, "LOOKS", 3)
    mine, _ = cities
    mine.ask(ride("1"))
    assert mine.ask(ride("1")).replayed
    watched = Watched(mine, monkeypatch)
    looks = list[int]()
    for n in range(5):
        mine.ask(ride(f"more-{n}"))
        looks.append(watched.looks)
    assert looks == [1, 2, 3, 3, 3]
    assert mine.ask(ride("1")).replayed
    assert mine.ask(ride("1")).replayed
    assert watched.met == [Claimed]


def test_two_processes_that_send_the_same_records_at_once_accept_each_once(
    cities: tuple[City, City], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition_module, "LOOKS", 1)

    def send(city: City, order: int) -> list[Outcome]:
        names = [str(n) for n in range(60)][::order]
        waiting = [city.journal.submit(city.write(ride(name, resident=RESIDENTS[int(name) % 3]))) for name in names]
        return [answer.result(60) for answer in waiting]

    work: list[Callable[[], list[Outcome]]] = [
        lambda city=city, order=order: send(city, order) for city in cities for order in (1, -1)
    ]
    outcomes = [outcome for sent in at_once(*work) for outcome in sent]
    assert all(outcome.refusal is None and outcome.failure is None for outcome in outcomes)
    places = {(o.events[-1].record_id, o.position) for o in outcomes if isinstance(o.events[-1], ActionCredited)}
    assert len(places) == 60  # everyone was told the same place
    assert sum(not outcome.replayed for outcome in outcomes) == 60
    assert set(credited(cities[0]).values()) == {1}
    for city in cities:
        no_gaps(city)
        in_balance(city)


def test_a_batch_that_was_decided_on_one_with_a_repeat_is_decided_again(
    cities: tuple[City, City], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = cities
    theirs.ask(ride("1", resident="res_3"))
    watched, appending = Watched(mine, monkeypatch), Appending(mine)
    waiting = two_batches(mine, appending, ride("2"), ride("3", resident="res_2"))
    appending.until_decided(2)
    appending.go.set()
    first, repeat, *rest = [answer.result(30) for answer in waiting]
    assert isinstance(repeat.refusal, Conflict)
    assert all(outcome.position and not outcome.replayed for outcome in (first, *rest))
    assert watched.met == [Claimed]
    assert credited(mine) == Counter(f"known-{name}" for name in RESIDENTS) + Counter("0123")
    assert [available(mine, name) for name in RESIDENTS] == [40, 30, 30]
    no_gaps(mine)
    in_balance(theirs)


def test_a_mistake_while_a_repeat_is_appended_leaves_nothing_half_decided_in_memory(
    cities: tuple[City, City], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = cities
    theirs.ask(ride("1", resident="res_3"))
    broken(monkeypatch, "3")
    appending = Appending(mine)
    waiting = two_batches(mine, appending, ride("2"), ride("3"))  # the second report of the second batch fails
    while mine.journal._waiting[0]._count:
        sleep(0.001)
    appending.go.set()
    outcomes = [answer.result(30) for answer in waiting]
    assert [type(o.failure) for o in outcomes] == [type(None)] * 3 + [ZeroDivisionError]
    assert isinstance(outcomes[1].refusal, Conflict)
    assert available(mine, "res_1") == 40
    no_gaps(mine)
    in_balance(theirs)


def test_states_of_others_stay_in_memory_where_a_report_was_a_repeat(cities: tuple[City, City]) -> None:
    mine, _ = cities
    [partition] = mine.journal.partitions
    mine.ask(ride("1"))
    for name in RESIDENTS:
        mine.ask(ride(f"more-{name}", resident=name))
    before, size = set(partition._loaded), partition._size
    assert mine.ask(ride("1")).replayed
    assert set(partition._loaded) == before
    assert partition._size == size


def test_every_entry_is_where_its_claim_says(cities: tuple[City, City]) -> None:
    mine, theirs = cities
    for n in range(6):
        (mine, theirs)[n % 2].ask(ride(str(n // 2), resident="res_1"))
    by_place = {(entry.stream, entry.version) for entry in entries(mine.journal)}
    [partition] = mine.journal.partitions
    assert isinstance(partition, Partition)
    assert all((claim.stream, claim.version) in by_place for claim in partition.recorder.all_claims(b"", 100))
    assert mine.resident().available(NOON) == 40
