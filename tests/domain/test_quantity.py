"""Numbers and days: what is read is exact or refused, and a day is a Chinese day."""

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carbon_points.domain.quantity import EXACT, civil_day, decimal, moment, month_after, month_of, to_integer
from carbon_points.domain.refusal import (
    QuantityInvalid,
    QuantityNegative,
    QuantityTooLong,
    Refusal,
    TimeInvalid,
    TimeWithoutOffset,
)
from tests.given import china


@pytest.mark.parametrize("text", ["0", "1", "0.1", "3.4182", "999999999", "999999999.999999", "0.000001", "1.000000"])
def test_a_plain_decimal_is_read_exactly(text: str) -> None:
    assert decimal(text) == Decimal(text)
    assert str(decimal(text)) == text


@pytest.mark.parametrize(
    "text",
    # Other digits and the other point are those of full-width, Arabic and Devanagari writing.
    [
        "",
        " ",
        "NaN",
        "sNaN",
        "Infinity",
        "-Infinity",
        "1e5",
        "1E5",
        "1_000",
        "1,000",
        "１",
        "٣",
        "१",
        "1．5",
        "0x1",
        "01",
        "00",
        ".5",
        "5.",
        "1.",
        "+1",
        "--1",
        " 1",
        "1 ",
        "1\n",
        "\n1",
        "1.2.3",
        "½",
        "Ⅷ",
        "1" * 401,
        "\x001",
    ],
)
def test_what_is_not_a_plain_decimal_is_refused(text: str) -> None:
    with pytest.raises(QuantityInvalid):
        decimal(text)


@pytest.mark.parametrize("value", [1.5, 1, 0, True, None, b"one", Decimal(1), float("nan"), ["1"]])
def test_what_is_not_text_is_refused_so_that_no_float_comes_near(value: object) -> None:
    with pytest.raises(QuantityInvalid):
        decimal(value)


@pytest.mark.parametrize("text", ["-1", "-0", "-0.5", "-9999999999", "-0.0000001"])
def test_a_quantity_below_zero_is_refused_before_its_length(text: str) -> None:
    with pytest.raises(QuantityNegative):
        decimal(text)


@pytest.mark.parametrize("text", ["1000000000", "9999999999", "1.0000000", "0.0000001", "1" * 400])
def test_a_tenth_digit_before_and_a_seventh_after_the_point_are_refused(text: str) -> None:
    with pytest.raises(QuantityTooLong):
        decimal(text)


@given(st.text(alphabet="0123456789.eE+-_ naNINF１٣,", max_size=14))
def test_any_text_is_an_exact_decimal_or_a_refusal(text: str) -> None:
    try:
        read = decimal(text)
    except Refusal:
        return
    assert read.is_finite()
    assert read >= 0
    assert str(read) == text


@pytest.mark.parametrize(
    ("value", "how", "whole"),
    [
        ("0.5", "half-even", 0),
        ("1.5", "half-even", 2),
        ("2.5", "half-even", 2),
        ("2.500001", "half-even", 3),
        ("0.5", "half-up", 1),
        ("2.5", "half-up", 3),
        ("2.499999", "half-up", 2),
        ("2.999999", "down", 2),
        ("0", "down", 0),
    ],
)
def test_a_result_is_rounded_by_the_rule_that_its_table_names(value: str, how: str, whole: int) -> None:
    assert to_integer(Decimal(value), how) == whole


def test_the_longest_product_of_a_quantity_and_a_factor_is_not_rounded() -> None:
    quantity, factor = Decimal("999999999.999999"), Decimal("999999999.999999999999")
    digits = 999999999999999 * 999999999999999999999
    assert int(EXACT.multiply(quantity, factor).scaleb(18, context=EXACT)) == digits


def test_a_moment_is_the_same_instant_in_utc() -> None:
    there = datetime(2025, 6, 15, 12, tzinfo=timezone(timedelta(hours=8)))
    assert moment(there) == there
    assert moment(there).tzinfo is UTC


def test_a_time_without_offset_is_refused_before_its_year() -> None:
    with pytest.raises(TimeWithoutOffset):
        moment(datetime(1999, 1, 1))  # noqa: DTZ001  # a naive time is what is refused


@pytest.mark.parametrize("year", [1, 1999, 2200, 9999])
def test_a_year_that_no_rule_knows_is_refused(year: int) -> None:
    with pytest.raises(TimeInvalid):
        moment(datetime(year, 6, 1, tzinfo=UTC))


@pytest.mark.parametrize("year", [2000, 2199])
def test_the_first_and_the_last_year_are_known(year: int) -> None:
    assert moment(datetime(year, 6, 1, tzinfo=UTC)).year == year


@pytest.mark.parametrize(
    ("instant", "day"),
    [
        (datetime(2025, 6, 14, 15, 59, 59, 999999, UTC), date(2025, 6, 14)),
        (datetime(2025, 6, 14, 16, tzinfo=UTC), date(2025, 6, 15)),
        (datetime(2024, 12, 31, 16, tzinfo=UTC), date(2025, 1, 1)),
        (datetime(2024, 2, 28, 16, tzinfo=UTC), date(2024, 2, 29)),
    ],
)
def test_a_day_begins_at_midnight_in_china(instant: datetime, day: date) -> None:
    assert civil_day(instant) == day
    assert civil_day(instant.astimezone(timezone(timedelta(hours=-7)))) == day


def test_summer_time_of_old_years_shifts_no_day() -> None:
    # China moved its clocks until 1991; an instant of 1990 is eight hours ahead here all the same.
    assert civil_day(datetime(1990, 7, 1, 15, 30, tzinfo=UTC)) == date(1990, 7, 1)


@pytest.mark.parametrize(
    ("day", "months", "at_end", "then"),
    [
        (date(2025, 1, 31), 1, False, date(2025, 2, 28)),
        (date(2024, 1, 31), 1, False, date(2024, 2, 29)),
        (date(2024, 2, 29), 12, False, date(2025, 2, 28)),
        (date(2025, 6, 15), 12, False, date(2026, 6, 15)),
        (date(2025, 12, 1), 1, False, date(2026, 1, 1)),
        (date(2025, 12, 31), 24, True, date(2027, 12, 31)),
        (date(2025, 6, 1), 20, True, date(2027, 2, 28)),
        (date(2025, 6, 30), 0, True, date(2025, 6, 30)),
    ],
)
def test_months_later_is_that_day_or_the_last_of_its_month(day: date, months: int, at_end: bool, then: date) -> None:
    assert month_after(day, months, at_end=at_end) == then


@given(st.dates(date(2000, 1, 1), date(2150, 12, 31)), st.integers(0, 240), st.booleans())
def test_months_later_lies_in_the_month_that_many_months_on(day: date, months: int, at_end: bool) -> None:
    then = month_after(day, months, at_end=at_end)
    assert then.year * 12 + then.month == day.year * 12 + day.month + months
    assert at_end is False or (then + timedelta(days=1)).day == 1


def test_a_month_is_named_by_year_and_two_digits() -> None:
    assert month_of(date(2025, 3, 9)) == "2025-03"
    assert month_of(civil_day(china("2025-03-01 00:00"))) == "2025-03"
