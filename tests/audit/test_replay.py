"""The verifier's own arithmetic and its own idea of what was in force: against the domain's, and by hand."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from carbon_points.audit.finding import Wrong
from carbon_points.audit.replay.days import GRACE, History, china_day, month_end, span
from carbon_points.audit.replay.identity import WORDS, identity
from carbon_points.audit.replay.methodology import Tables, check_quantity, expiry, recompute
from carbon_points.audit.scratch import Scratch
from carbon_points.domain import methodology as domain
from carbon_points.domain.methodology import PERIODS, MethodologyPublished, Table, Used, calculate
from carbon_points.domain.quantity import civil_day, decimal, month_after
from carbon_points.domain.refusal import Refusal
from carbon_points.journal.codec import EVENT_TYPES
from carbon_points.methodologies import shipped

NOON = datetime(2025, 6, 15, 4, tzinfo=UTC)
EARLY, LATE = NOON.replace(year=2000, tzinfo=None), NOON.replace(year=2199, tzinfo=None)
SHIPPED = [s.table for s in shipped()]
BUS = next(s for s in shipped() if s.table.id == "bus")


def _table(**said: Any) -> Table:
    text = BUS.text.split("\n[caps]")[0]
    for old, new in said.pop("replaced", {}).items():
        assert old in text
        text = text.replace(old, new)
    return domain.parse(text + said.pop("caps", ""))


# -- figures ---------------------------------------------------------------------------------------------------------

used = st.builds(Used, st.integers(0, 130), st.decimals(0, 200, places=6), st.integers(0, 1600))


@given(
    table=st.sampled_from(SHIPPED),
    quantity=st.decimals(0, 200_000, places=6),
    had=st.fixed_dictionaries(dict.fromkeys(PERIODS, used)),
    how=st.sampled_from(["half-even", "half-up", "down"]),
)
def test_two_ways_of_reckoning_come_to_the_same(table: Table, quantity: Decimal, had: Any, how: str) -> None:
    rounded = structs.replace(table, rounding=structs.replace(table.rounding, how=how))
    found, said = recompute(rounded, quantity, had), calculate(rounded, quantity, had)
    assert (found.counted, found.reduction_mg, found.points, found.limits) == (
        said.counted,
        said.reduction_mg,
        said.points,
        said.limits,
    )


@pytest.mark.parametrize(
    ("how", "quantity", "mg"),
    [
        ("half-even", "0.000025", 2),
        ("half-even", "0.000035", 4),
        ("half-up", "0.000025", 3),
        ("half-up", "0.000024", 2),
        ("down", "0.000029", 2),
        ("half-even", "0", 0),
    ],
)
def test_a_reduction_is_rounded_once_as_its_table_says(how: str, quantity: str, mg: int) -> None:
    table = _table(replaced={'value = "80"': 'value = "100"', "half-even": how})
    nothing = {"day": Used(), "month": Used(), "year": Used()}
    assert recompute(table, Decimal(quantity), nothing).reduction_mg == mg


@given(at=st.dates(date(2015, 1, 1), date(2100, 1, 1)), months=st.integers(1, 120))
def test_expiry_is_the_same_day_months_later_or_the_end_of_that_month(at: date, months: int) -> None:
    for how in ("day", "month-end"):
        table = _table(replaced={"months = 24": f"months = {months}", '"month-end"': f'"{how}"'})
        assert expiry(table, at) == month_after(at, months, at_end=how == "month-end")


@given(quantity=st.one_of(st.decimals(0, 10**10, places=7), st.sampled_from([Decimal("NaN"), Decimal("1E+2")])))
def test_no_quantity_is_let_through_that_could_not_be_reported(quantity: Decimal) -> None:
    table = _table(replaced={'least = "1"\nmost = "1"': 'least = "0.000001"\nmost = "999999999.999999"'})
    try:
        domain.check_quantity(table, decimal(str(quantity)), "trip")
    except Refusal:
        with pytest.raises(Wrong):
            check_quantity(table, quantity, "trip")
    else:
        check_quantity(table, quantity, "trip")


# -- days ------------------------------------------------------------------------------------------------------------


@given(at=st.datetimes(EARLY, LATE, timezones=st.timezones()))
def test_days_are_those_of_china(at: datetime) -> None:
    assert china_day(at) == civil_day(at)


@given(day=st.dates(date(2000, 1, 1), date(2190, 1, 1)), months=st.integers(0, 60))
def test_the_end_of_a_month_is_the_day_before_the_next(day: date, months: int) -> None:
    end = month_end(day, months)
    assert (end + timedelta(days=1)).day == 1
    assert (end.year - day.year) * 12 + end.month - day.month == months


def test_a_month_spans_from_its_first_instant_in_china_to_the_next_ones() -> None:
    assert span("2024-12") == (datetime(2024, 11, 30, 16, tzinfo=UTC), datetime(2024, 12, 31, 16, tzinfo=UTC))


# -- what was in force -----------------------------------------------------------------------------------------------


def test_within_a_minute_of_a_change_both_what_was_and_what_came_count() -> None:
    price: History[int] = History()
    price.add(NOON, 5)
    price.add(NOON + timedelta(hours=1), 4)
    second, change = timedelta(seconds=1), NOON + timedelta(hours=1)
    assert price.around(NOON - GRACE - second) == []
    assert price.around(NOON - GRACE) == [5]
    assert price.around(change - GRACE - second) == [5]
    assert price.around(change - GRACE) == [5, 4]
    assert price.around(change + GRACE) == [5, 4]
    assert price.around(change + GRACE + second) == [4]


def _published(version: str, begins: str, at: datetime, until: str = "") -> MethodologyPublished:
    text = BUS.text.replace('"2024-1"', f'"{version}"').replace("from = 2015-01-01", f"from = {begins}{until}")
    return MethodologyPublished(
        recorded_at=at, methodology="bus", version=version, digest=domain.digest_of(text), table=text
    )


def test_an_act_is_counted_by_the_latest_version_that_had_begun_and_was_known() -> None:
    tables, later = Tables(), NOON + timedelta(days=1)
    tables.take(_published("1", "2020-01-01", NOON))
    tables.take(_published("2", "2025-01-01", later, ", until = 2025-07-01"))

    def versions(day: date, at: datetime) -> list[str]:
        return [p.table.version for p in tables.in_force("bus", day, at)]

    assert versions(date(2024, 12, 31), later) == ["1"]
    assert versions(date(2025, 1, 1), later - GRACE - timedelta(seconds=1)) == ["1"]
    assert versions(date(2025, 1, 1), later) == ["1", "2"]
    assert versions(date(2025, 1, 1), later + GRACE) == ["2"]
    for day in (date(2019, 12, 31), date(2025, 7, 1)):
        with pytest.raises(Wrong):
            versions(day, later + GRACE)


def test_a_version_is_published_once_and_later_than_the_others() -> None:
    tables = Tables()
    tables.take(_published("1", "2020-01-01", NOON))
    for version, begins in (("1", "2021-01-01"), ("2", "2020-01-01"), ("0", "2019-01-01")):
        with pytest.raises(Wrong):
            tables.take(_published(version, begins, NOON))


def test_every_type_of_event_says_which_identity_it_used() -> None:
    """A type that is new must be put down as having one, or as having none."""
    without = {
        "methodology-published/1",
        "source-changed/1",
        "points-expired/1",
        "account-frozen/1",
        "price-changed/1",
        "terms-changed/1",
        "order-moved/1",
        "hold-confirmed/1",  # the account tells whether it is the last of its command
        "terminal-key-ended/1",
        "terminal-suspended/1",
    }
    assert {name for name, kind in EVENT_TYPES.items() if kind not in WORDS} == without
    assert identity(_published("1", "2020-01-01", NOON)) is None


def test_what_was_taken_offline_is_known_from_its_entry_on() -> None:
    scratch, taken = Scratch(), datetime(2024, 3, 1, 9, 0, 0, 5, tzinfo=UTC)
    scratch.keep_offline("merchant/bakery", "w1", 7, taken)
    assert scratch.offline("merchant/bakery", "w1", 7) == taken
    assert scratch.offline("merchant/bakery", "w1", 6) is None, "it lies beyond what is settled"
    assert scratch.offline("merchant/tea", "w1", 7) is None
    scratch.close()
