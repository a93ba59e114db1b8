"""Rides of two taps: paired in whichever order they come, across midnight, and never twice."""

from datetime import datetime, timedelta
from decimal import Decimal
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carbon_points.domain.account import (
    TAPS_KEPT,
    ActionCredited,
    ActionNotReversible,
    ActionUnknown,
    ConsentMissing,
    GiveConsent,
    TapRecorded,
    WithdrawConsent,
)
from carbon_points.domain.methodology import UnitMismatch
from tests.given import (
    DAY,
    HOUR,
    METRO_TAPS,
    MINUTE,
    NOON,
    Life,
    china,
    consent,
    metro,
    reversal,
    ride,
    source,
    tap,
)


def living(*texts: str, at: datetime = NOON + 10 * DAY, **said: Any) -> Life:
    return Life(*(texts or (metro(),)), at=at, **said)


def entering(record_id: str, at: datetime, **said: Any) -> Any:
    return tap(record_id, "metro_in", at, **said)


def leaving(record_id: str, at: datetime, **said: Any) -> Any:
    return tap(record_id, "metro_out", at, **said)


# -- pairing ---------------------------------------------------------------------------------------------------------


def test_an_entry_waits_and_its_exit_makes_the_ride() -> None:
    life = living()
    [waiting] = life.do(entering("1", NOON))
    [ridden] = life.do(leaving("2", NOON + HOUR))
    assert isinstance(waiting, TapRecorded)
    assert waiting.refused is None
    assert isinstance(ridden, ActionCredited)
    assert (ridden.behaviour, ridden.methodology, ridden.counted, ridden.reduction_mg) == (
        "metro_out",
        "metro",
        1,
        46_000,
    )
    assert (ridden.paired_with, ridden.paired_at) == ("1", NOON)
    assert life.account.taps == {}


def test_an_exit_that_comes_first_is_refused_by_its_code_and_the_late_entry_makes_the_ride() -> None:
    life = living()
    [alone] = life.do(leaving("2", NOON + HOUR))
    [ridden] = life.do(entering("1", NOON))
    assert isinstance(alone, TapRecorded)
    assert alone.refused == "exit-without-entry"
    assert isinstance(ridden, ActionCredited)
    assert (ridden.behaviour, ridden.paired_with, ridden.paired_at) == ("metro_in", "2", NOON + HOUR)
    assert life.account.taps == {}


TWO_RIDES = [
    entering("1", NOON),
    leaving("2", NOON + HOUR),
    entering("3", NOON + 2 * HOUR),
    leaving("4", NOON + 3 * HOUR),
]
OVERTAKEN = [(0, 3, 1, 2), (0, 3, 2, 1), (3, 0, 1, 2), (3, 0, 2, 1)]  # the last exit meets the first entry alone


@pytest.mark.parametrize("order", [o for o in permutations(range(4)) if o not in OVERTAKEN], ids=str)
def test_two_rides_earn_the_same_in_whichever_order_their_taps_come(order: tuple[int, ...]) -> None:
    life = living()
    made = [event for n in order for event in life.do(TWO_RIDES[n])]
    assert sum(isinstance(event, ActionCredited) for event in made) == 2
    assert (life.available, life.account.total_mg, life.account.taps) == (20, 92_000, {})


@pytest.mark.parametrize("order", OVERTAKEN, ids=str)
def test_an_exit_that_overtakes_two_taps_makes_one_long_ride_since_what_is_credited_stands(
    order: tuple[int, ...],
) -> None:
    life = living()
    made = [event for n in order for event in life.do(TWO_RIDES[n])]
    [ridden] = [event for event in made if isinstance(event, ActionCredited)]
    assert {ridden.record_id, ridden.paired_with} == {"1", "4"}
    assert {t.record_id for t in life.account.taps["metro"]} == {"2", "3"}


def test_an_exit_takes_the_latest_entry_before_it() -> None:
    life = living()
    life.do(entering("old", NOON))
    life.do(entering("new", NOON + HOUR))
    [ridden] = life.do(leaving("3", NOON + 2 * HOUR))
    assert ridden.paired_with == "new"
    [again] = life.do(leaving("4", NOON + 2 * HOUR + MINUTE))
    assert again.paired_with == "old"


def test_a_late_entry_takes_the_first_exit_after_it() -> None:
    life = living()
    life.do(leaving("late", NOON + 2 * HOUR))
    life.do(leaving("soon", NOON + HOUR))
    [ridden] = life.do(entering("1", NOON))
    assert ridden.paired_with == "soon"


@pytest.mark.parametrize(
    ("apart", "a_ride"),
    [
        (timedelta(0), False),
        (timedelta(seconds=-1), False),
        (timedelta(seconds=1), True),
        (240 * MINUTE, True),
        (240 * MINUTE + timedelta(seconds=1), False),
    ],
)
@pytest.mark.parametrize("late_entry", [False, True])
def test_an_exit_belongs_to_an_entry_before_it_within_the_table_s_minutes(
    apart: timedelta, a_ride: bool, late_entry: bool
) -> None:
    life = living()
    taps = [entering("1", NOON), leaving("2", NOON + apart)]
    for command in reversed(taps) if late_entry else taps:
        made = life.do(command)
    assert isinstance(made[-1], ActionCredited) is a_ride


def test_of_two_taps_at_one_moment_the_record_id_decides_so_that_replay_pairs_the_same() -> None:
    for order in permutations("ab"):
        life = living()
        for name in order:
            life.do(entering(name, NOON))
        assert life.do(leaving("c", NOON + HOUR))[0].paired_with == "b"


def test_taps_of_one_source_do_not_pair_with_those_of_another() -> None:
    """A source names people its own way, and two sources two systems of gates."""
    life = living(sources=[source(), source("hz-metro")])
    life.do(entering("1", NOON))
    [made] = life.do(leaving("2", NOON + HOUR, source="hz-metro"))
    assert isinstance(made, TapRecorded)


def test_a_ride_uses_up_its_own_tap_and_no_other_source_s_of_the_same_record_id() -> None:
    life = living(sources=[source(), source("hz-metro")])
    life.do(entering("1", NOON))
    life.do(entering("1", NOON + MINUTE, source="hz-metro"))
    life.do(leaving("2", NOON + HOUR, source="hz-metro"))
    [ridden] = life.do(leaving("3", NOON + 2 * HOUR))
    assert isinstance(ridden, ActionCredited)
    assert ridden.paired_with == "1"


def test_waiting_taps_are_kept_up_to_a_number_and_the_oldest_are_given_up() -> None:
    life = living()
    for n in range(TAPS_KEPT + 1):
        life.do(entering(f"{n:02d}", NOON + n * MINUTE))
    kept = life.account.taps["metro"]
    assert [t.record_id for t in kept] == [f"{n:02d}" for n in range(1, TAPS_KEPT + 1)]


# -- the day of a ride -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late_entry", [False, True])
def test_a_ride_across_midnight_counts_on_the_day_of_its_exit(late_entry: bool) -> None:
    life = living(metro(caps="day = { count = 1 }"))
    taps = [entering("1", china("2025-06-15 23:50")), leaving("2", china("2025-06-16 00:10"))]
    for command in reversed(taps) if late_entry else taps:
        made = life.do(command)
    assert str(made[-1].day) == "2025-06-16"
    the_day_before = [entering("3", china("2025-06-15 20:00")), leaving("4", china("2025-06-15 21:00"))]
    assert [life.do(command) for command in the_day_before][-1][0].points == 10
    the_same_day = [entering("5", china("2025-06-16 20:00")), leaving("6", china("2025-06-16 21:00"))]
    assert [life.do(command) for command in the_same_day][-1][0].points == 0


@pytest.mark.parametrize("late_entry", [False, True])
def test_a_ride_across_a_change_of_tables_counts_by_the_one_of_its_exit(late_entry: bool) -> None:
    life = living(metro("1"), metro("2", begins="2025-06-16", grams="50"))
    taps = [entering("1", china("2025-06-15 23:50")), leaving("2", china("2025-06-16 00:10"))]
    for command in reversed(taps) if late_entry else taps:
        made = life.do(command)
    assert (made[-1].version, made[-1].reduction_mg) == ("2", 50_000)


@pytest.mark.parametrize("late_entry", [False, True])
def test_a_ride_across_new_year_counts_within_the_new_year_s_cap(late_entry: bool) -> None:
    life = living(metro(caps="year = { count = 1 }"), at=china("2026-02-01 00:00"))
    for n, hour in enumerate(("2025-12-31 08:00", "2025-12-31 09:00")):
        life.do((entering, leaving)[n](f"old {n}", china(hour)))
    taps = [entering("1", china("2025-12-31 23:50")), leaving("2", china("2026-01-01 00:10"))]
    for command in reversed(taps) if late_entry else taps:
        made = life.do(command)
    assert (str(made[-1].day), made[-1].points) == ("2026-01-01", 10)


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [{"unit": "trip"}, {"quantity": Decimal(2)}, {"quantity": Decimal("0.5")}])
def test_a_tap_is_one_tap_and_nothing_else(said: dict[str, Any]) -> None:
    with pytest.raises(UnitMismatch):
        living().do(ride("1", **({"behaviour": "metro_in", "unit": "tap", "quantity": Decimal(1)} | said)))


def test_a_whole_ride_may_be_reported_by_itself() -> None:
    life = living()
    [ridden] = life.do(ride("1", behaviour="metro", unit="trip"))
    assert (ridden.points, ridden.paired_with) == (10, None)


def test_a_tap_needs_the_consent_for_the_ride_that_it_is_part_of() -> None:
    life = living()
    life.do(WithdrawConsent(resident="res_1", consent_id="c1"))
    life.do(GiveConsent(resident="res_1", consent=consent("c2", behaviours=("metro_in",))))
    with pytest.raises(ConsentMissing) as refused:
        life.do(entering("1", NOON))
    assert refused.value.facts["behaviour"] == "metro"


# -- reversal --------------------------------------------------------------------------------------------------------


def test_a_ride_is_reversed_by_the_tap_that_earned_it_and_not_by_the_other() -> None:
    life = living()
    life.do(entering("1", NOON))
    life.do(leaving("2", NOON + HOUR))
    with pytest.raises(ActionNotReversible):
        life.do(reversal("1"))
    [reversed_] = life.do(reversal("2"))
    assert (reversed_.points, reversed_.reduction_mg, life.available, life.account.total_mg) == (10, 46_000, 0, 0)


def test_the_refusals_of_reversing_come_in_order() -> None:
    life = living()
    with pytest.raises(ActionUnknown):
        life.do(reversal("1"))
    life.do(entering("1", NOON))
    with pytest.raises(ActionNotReversible):
        life.do(reversal("1"))


# -- any order of any taps -------------------------------------------------------------------------------------------

TAPS = st.lists(st.tuples(st.booleans(), st.integers(0, 600)), max_size=TAPS_KEPT, unique=True)


@given(TAPS, st.randoms())
def test_every_ride_is_one_entry_and_one_later_exit_and_no_tap_rides_twice(
    taps: list[tuple[bool, int]], shuffled: Any
) -> None:
    shuffled.shuffle(taps)
    life = living(metro(taps=METRO_TAPS))
    used: list[str] = []
    at = {f"{entry:d}-{minute:03d}": (entry, minute) for entry, minute in taps}
    for name, (entry, minute) in at.items():
        [made] = life.do((entering if entry else leaving)(name, NOON + minute * MINUTE))
        if isinstance(made, ActionCredited):
            assert made.paired_with is not None
            into, out = (name, made.paired_with) if entry else (made.paired_with, name)
            assert at[into][0]
            assert not at[out][0]
            assert 0 < at[out][1] - at[into][1] <= 240
            used += [into, out]
    assert len(used) == len(set(used))
    waiting = {t.record_id for taps in life.account.taps.values() for t in taps}
    assert waiting == set(at) - set(used)
    assert life.available == 5 * len(used)
