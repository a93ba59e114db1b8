"""Numbers and days: exact decimals, whole milligrams, Chinese civil dates.

Nothing here rounds but `to_integer`, by the name that a methodology gives.
"""

import re
from calendar import monthrange
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP, Context, Decimal
from functools import lru_cache

from carbon_points.domain.refusal import (
    QuantityInvalid,
    QuantityNegative,
    QuantityTooLong,
    TimeInvalid,
    TimeWithoutOffset,
)

# Asia/Shanghai has had one offset since 1991, and no rule here reaches further back than 2000:
# a fixed offset is exact, and needs no time zone file.
_CHINA_AHEAD = timedelta(hours=8)
CHINA = timezone(_CHINA_AHEAD, "Asia/Shanghai")

EXACT = Context(prec=60)  # 9+6 digits times a factor of at most 12: products never round
ROUNDINGS: Mapping[str, str] = {"half-even": ROUND_HALF_EVEN, "half-up": ROUND_HALF_UP, "down": ROUND_DOWN}
MG_PER_G = Decimal(1000)
_ONE = Decimal(1)
MG_PER_KG = 1_000_000

_PLAIN = re.compile(r"(-?)(0|[1-9][0-9]*)(\.[0-9]+)?", re.ASCII)
_WHOLE_DIGITS, _FRACTION_DIGITS, _LOOKED_AT = 9, 6, 400
_YEARS = range(2000, 2200)


def decimal(text: object) -> Decimal:
    """An exact, non-negative decimal from its text; never from a float.

    Refusals, in order: QuantityInvalid (exponents, NaN, other digits, leading zeros), QuantityNegative,
    QuantityTooLong.
    """
    if not isinstance(text, str) or len(text) > _LOOKED_AT:
        raise QuantityInvalid(quantity=str(text)[:40])
    return _decimal(text)


@lru_cache(maxsize=2_000)  # most rides are "1"
def _decimal(text: str) -> Decimal:
    plain = _PLAIN.fullmatch(text)
    if plain is None:
        raise QuantityInvalid(quantity=text[:40])
    sign, whole, fraction = plain.groups(default="")
    if sign:
        raise QuantityNegative(quantity=text[:40])
    if len(whole) > _WHOLE_DIGITS or len(fraction) > _FRACTION_DIGITS + 1:
        raise QuantityTooLong(quantity=text[:40])
    return Decimal(text)


def to_integer(value: Decimal, how: str) -> int:
    """The one rounding of a formula: to a whole number, by its table's rule."""
    return int(value.quantize(_ONE, rounding=ROUNDINGS[how], context=EXACT))


def moment(value: datetime) -> datetime:
    """The same instant in UTC. Refusals, in order: TimeWithoutOffset, TimeInvalid."""
    if value.tzinfo is None:
        raise TimeWithoutOffset(time=value.isoformat())
    if value.year not in _YEARS:
        raise TimeInvalid(time=value.isoformat())
    return value if value.tzinfo is UTC else value.astimezone(UTC)


def civil_day(at: datetime) -> date:
    """The day on which an instant falls in China."""
    return (at + _CHINA_AHEAD if at.tzinfo is UTC else at.astimezone(CHINA)).date()


@lru_cache(maxsize=2_000)  # few days, asked for again with every action
def month_of(day: date) -> str:
    return day.isoformat()[:7]


@lru_cache(maxsize=2_000)
def month_after(day: date, months: int, *, at_end: bool) -> date:
    """The day that many months later, or the last day of that month. A missing day becomes the month's last."""
    count = day.year * 12 + day.month - 1 + months
    year, month = divmod(count, 12)
    last = monthrange(year, month + 1)[1]
    return date(year, month + 1, last if at_end else min(day.day, last))
