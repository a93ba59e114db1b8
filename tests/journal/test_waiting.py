"""What waits for a writer is taken in turns, has bounds, and is not kept for ever."""

from concurrent.futures import Future

import pytest

from carbon_points.journal.partition import Unavailable, Write
from carbon_points.journal.waiting import Item, Overloaded, Waiting
from tests.given import holding, ride

PATIENT = 60.0


def put(waiting: Waiting, *names: str, source: str = "szt") -> None:
    for name in names:
        waiting.put(Write(ride(name, source=source)), Future())


def names(items: list[Item]) -> list[str]:
    return [getattr(item.write.command, "record_id", "redemption") for item in items]


def test_a_source_that_floods_delays_itself_and_not_the_others() -> None:
    waiting = Waiting(1_000, PATIENT)
    put(waiting, *(f"flood-{n}" for n in range(500)))
    put(waiting, "one", "two", source="hz")
    waiting.put(Write(holding("d1", 5)), Future())
    first, _ = waiting.take(10)
    assert {"one", "two", "redemption"} <= set(names(first))
    assert names(first)[0] == "flood-0"


def test_of_more_sources_than_a_batch_holds_each_has_its_turn() -> None:
    waiting = Waiting(1_000, PATIENT)
    for source in range(20):
        put(waiting, f"{source}-first", f"{source}-second", source=f"s{source}")
    taken = [*names(waiting.take(8)[0]), *names(waiting.take(12)[0])]
    assert taken == [f"{source}-first" for source in range(20)]


def test_of_one_source_who_came_first_is_decided_first() -> None:
    waiting = Waiting(1_000, PATIENT)
    put(waiting, *map(str, range(7)))
    assert names(waiting.take(3)[0]) + names(waiting.take(100)[0]) == list(map(str, range(7)))


def test_a_flood_leaves_room_for_the_others_until_all_room_is_taken() -> None:
    waiting = Waiting(8, PATIENT)
    put(waiting, *map(str, range(4)))
    with pytest.raises(Overloaded):
        put(waiting, "one too many")
    put(waiting, "5", "6", source="hz")
    with pytest.raises(Overloaded):
        put(waiting, "the rest is not for reports", source="third")
    for name in ("d1", "d2"):
        waiting.put(Write(holding(name, 5)), Future())
    with pytest.raises(Overloaded):
        waiting.put(Write(holding("d3", 5)), Future())
    assert len(waiting.take(100)[0]) == 8
    put(waiting, "there is room again")


def test_what_has_waited_too_long_is_told_apart_and_not_decided() -> None:
    waiting = Waiting(8, patience=0.0)
    put(waiting, "late")
    taken, late = waiting.take(10)
    assert (names(taken), names(late)) == ([], ["late"])


def test_once_closed_it_gives_what_is_there_and_takes_nothing_more() -> None:
    waiting = Waiting(8, PATIENT)
    put(waiting, "last")
    waiting.close()
    with pytest.raises(Unavailable):
        put(waiting, "later")
    assert names(waiting.take(10)[0]) == ["last"]
    assert waiting.take(10) == ([], [])
