"""Methodology tables in the log, and every figure of an action recomputed from their text.

The table is read as the domain reads it; the arithmetic is the verifier's own, in exact ratios of whole numbers.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta
from decimal import Context, Decimal, Inexact
from typing import Literal

from msgspec import Struct

from carbon_points.audit.finding import Wrong, must, same
from carbon_points.audit.replay.days import GRACE, month_end
from carbon_points.domain.event import Event
from carbon_points.domain.methodology import Cap, MethodologyPublished, Table, Taps, Used, parse

Period = Literal["day", "month", "year"]
PERIODS: tuple[Period, ...] = ("day", "month", "year")
_MG_PER_G = 1000
_EXACT = Context(prec=200, traps=[Inexact])  # a product that would round raises instead
_QUANTITY = re.compile(r"(0|[1-9][0-9]{0,8})(\.[0-9]{1,6})?", re.ASCII)


class Published(Struct, frozen=True):
    table: Table
    digest: str
    since: datetime


class Counted(Struct, frozen=True):
    """What a quantity comes to: the part within the caps, milligrams, points, and the caps that cut."""

    counted: Decimal
    reduction_mg: int
    points: int
    limits: tuple[str, ...]


class Tables:
    """Every table in the log, by its methodology, in the order of their first days."""

    def __init__(self) -> None:
        self._versions: dict[str, list[Published]] = {}
        self._counted_by: dict[str, str] = {}

    def take(self, event: Event) -> None:
        if not isinstance(event, MethodologyPublished):
            raise Wrong("not an event of the methodologies")
        same("digest", event.digest, hashlib.sha256(event.table.encode()).hexdigest()[:32])
        table = parse(event.table)
        same("methodology", event.methodology, table.id)
        same("version", event.version, table.version)
        versions = self._versions.setdefault(table.id, [])
        must(all(p.table.version != table.version for p in versions), "this version is published already")
        begun = not versions or versions[-1].table.adopted.from_ < table.adopted.from_
        must(begun, "a version begins after every earlier one")
        for behaviour in (table.id, *((table.taps.entry, table.taps.exit) if table.taps else ())):
            same(f"the methodology that counts {behaviour}", table.id, self._counted_by.setdefault(behaviour, table.id))
        versions.append(Published(table, event.digest, event.recorded_at))

    def in_force(self, methodology: str, day: date, at: datetime) -> list[Published]:
        """The tables that count an act of that day as known at that time: one, or two around a publication."""
        begun = [
            p for p in self._versions.get(methodology, ()) if p.table.adopted.from_ <= day and p.since <= at + GRACE
        ]
        surely = [index for index, p in enumerate(begun) if p.since <= at - GRACE]
        known = begun[surely[-1] :] if surely else begun
        found = [p for p in known if p.table.adopted.until is None or day < p.table.adopted.until]
        if not found:
            raise Wrong(f"no table of {methodology} was published and in force on {day}")
        return found

    def used(self, methodology: str, version: str, digest: str, day: date, at: datetime) -> Table:
        """The table that an event names, if it is the one in force, with the digest of its text."""
        for published in self.in_force(methodology, day, at):
            if published.table.version == version:
                same("digest", digest, published.digest)
                return published.table
        raise Wrong(f"{methodology} {version} is not the version in force on {day}")


# -- what a report may say -------------------------------------------------------------------------------------------


def check_quantity(table: Table, quantity: Decimal, unit: str) -> None:
    bounds = table.quantity
    same("unit", unit, bounds.unit)
    must(bool(_QUANTITY.fullmatch(str(quantity))), f"quantity {quantity} is not plain")
    must(bounds.least <= quantity <= bounds.most, f"quantity {quantity} is outside {bounds.least} to {bounds.most}")


def check_tap(taps: Taps, quantity: Decimal, unit: str) -> None:
    same("unit", unit, taps.unit)
    same("quantity", str(quantity), "1")


def within(taps: Taps) -> timedelta:
    return timedelta(minutes=taps.within_minutes)


# -- what it comes to ------------------------------------------------------------------------------------------------


def recompute(table: Table, quantity: Decimal, used: Mapping[Period, Used]) -> Counted:
    """The caps that are used up leave nothing; a cap of quantity cuts the quantity; a cap of points the points."""
    caps: dict[Period, Cap] = {"day": table.caps.day, "month": table.caps.month, "year": table.caps.year}
    full = tuple(f"{p}.count" for p, cap in caps.items() if cap.count is not None and used[p].count >= cap.count)
    if full:
        return Counted(Decimal(0), 0, 0, full)
    cut: list[str] = []
    counted = quantity
    for period, cap in caps.items():
        if cap.quantity is not None:
            left = max(_EXACT.subtract(cap.quantity, used[period].quantity), Decimal(0))
            if left < counted:
                counted = left
                cut.append(f"{period}.quantity")
    points = _points(table, counted)
    for period, cap in caps.items():
        if cap.points is not None:
            left_points = max(cap.points - used[period].points, 0)
            if left_points < points:
                points = left_points
                cut.append(f"{period}.points")
    order = [f"{period}.{what}" for period in PERIODS for what in ("quantity", "points")]
    return Counted(counted, _reduction_mg(table, counted), points, tuple(sorted(cut, key=order.index)))


def expiry(table: Table, credited: date) -> date:
    """The last day on which points credited that day can be spent."""
    end = month_end(credited, table.points.expire.months)
    if table.points.expire.at == "month-end":
        return end
    return end.replace(day=min(credited.day, end.day))


def _reduction_mg(table: Table, counted: Decimal) -> int:
    must(table.formula == "quantity_times_factor", "the formula is not known to this verifier")
    grams = _EXACT.multiply(counted, table.factors.reduction.value)
    over, under = grams.as_integer_ratio()
    return _ROUNDED[table.rounding.how](over * _MG_PER_G, under)


def _half_even(over: int, under: int) -> int:
    whole, rest = divmod(over, under)
    return whole + (2 * rest > under or (2 * rest == under and whole % 2))


def _half_up(over: int, under: int) -> int:
    return (2 * over + under) // (2 * under)


def _down(over: int, under: int) -> int:
    return over // under


_ROUNDED: dict[str, Callable[[int, int], int]] = {"half-even": _half_even, "half-up": _half_up, "down": _down}


def _points(table: Table, counted: Decimal) -> int:
    rule = table.points.rule
    if counted == 0:
        return 0
    if rule.per == "action":
        return rule.points
    every = Decimal(rule.per.split(" ")[0])
    (over, under), (part, of) = counted.as_integer_ratio(), every.as_integer_ratio()
    return rule.points * (over * of // (under * part))
