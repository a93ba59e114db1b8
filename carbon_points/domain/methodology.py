"""Methodologies: dated, cited tables, and the arithmetic that they name.

A table is published into the log as its own text, never changed and never taken back; a correction is a later version.
Invariant: an action's figures follow from the text of the one table that was in force on the day it happened.
"""

import hashlib
import re
import tomllib
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta, Struct

from carbon_points.domain.event import Command, Event
from carbon_points.domain.quantity import EXACT, MG_PER_G, ROUNDINGS, month_after, to_integer
from carbon_points.domain.refusal import Refusal

Count = Annotated[int, Meta(ge=0, le=10**6)]
PERIODS = ("day", "month", "year")
MG_MOST = 2**53  # what a JSON number carries exactly everywhere


# -- the table -------------------------------------------------------------------------------------------------------


class Title(Struct, frozen=True, forbid_unknown_fields=True):
    en: str
    zh: str


class Adopted(Struct, frozen=True, rename={"from_": "from"}, forbid_unknown_fields=True):
    """This installation's own dates: the first day in force and, if known, the first day no longer."""

    from_: date
    until: date | None = None

    @property
    def comes_before_its_end(self) -> bool:
        return self.until is None or self.from_ < self.until


class Bounds(Struct, frozen=True, forbid_unknown_fields=True):
    unit: str
    least: Decimal
    most: Decimal


class Factor(Struct, frozen=True, forbid_unknown_fields=True):
    """A published number with its citation. `unit` is gCO2e per unit of quantity."""

    value: Decimal
    unit: str
    source: str
    note: str = ""


class Factors(Struct, frozen=True, forbid_unknown_fields=True):
    reduction: Factor


class Rounding(Struct, frozen=True, forbid_unknown_fields=True):
    to: Literal["1 mg"]
    how: str


class PointsRule(Struct, frozen=True, forbid_unknown_fields=True):
    """`per` is "action", or an amount and unit of quantity ("500 step"): whole amounts earn `points` each."""

    per: str
    points: Count


class Expiry(Struct, frozen=True, forbid_unknown_fields=True):
    months: Annotated[int, Meta(ge=1, le=1200)]
    at: Literal["day", "month-end"]


class Points(Struct, frozen=True, forbid_unknown_fields=True):
    rule: PointsRule
    expire: Expiry


class Cap(Struct, frozen=True, forbid_unknown_fields=True):
    """The most that one resident may count of a behaviour in a period: actions, quantity, points."""

    count: Count | None = None
    quantity: Decimal | None = None
    points: Count | None = None


UNCAPPED = Cap()


class Caps(Struct, frozen=True, forbid_unknown_fields=True):
    day: Cap = Cap()
    month: Cap = Cap()
    year: Cap = Cap()


class Taps(Struct, frozen=True, forbid_unknown_fields=True):
    """A ride is made of two reports of one subject: an entry and the first exit after it, within the minutes."""

    entry: str
    exit: str
    unit: str
    within_minutes: Annotated[int, Meta(ge=1, le=1440)]  # a ride ends on the day of its entry, or the next


class Table(Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """What follows from it alone is worked out once and kept with it (`dict`): it counts millions of actions."""

    id: str
    version: str
    title: Title
    adopted: Adopted
    formula: str
    quantity: Bounds
    factors: Factors
    rounding: Rounding
    points: Points
    caps: Caps = Caps()
    taps: Taps | None = None

    def counts(self, behaviour: str, day: date) -> bool:
        """Whether it is in force on that day, and this behaviour is its own or one of its taps."""
        in_force = self.adopted.from_ <= day and (self.adopted.until is None or day < self.adopted.until)
        return in_force and (behaviour == self.id or behaviour in _reported(self))

    @cached_property
    def capped(self) -> tuple[tuple[str, Cap], ...]:
        """The periods that have a cap, and it."""
        caps = ((period, getattr(self.caps, period)) for period in PERIODS)
        return tuple((period, cap) for period, cap in caps if cap != UNCAPPED)

    @cached_property
    def year_is_capped(self) -> bool:
        return self.caps.year != UNCAPPED

    @cached_property
    def mg_per_unit(self) -> Decimal:
        """The factor in milligrams CO2e per unit of quantity."""
        return EXACT.multiply(self.factors.reduction.value, MG_PER_G)

    @cached_property
    def points_every(self) -> Decimal | None:
        """The amount of quantity that earns the rule's points, or None where each action does."""
        return _points_per(self)


# -- commands, events, state -----------------------------------------------------------------------------------------


class PublishMethodology(Command):
    methodology: str
    version: str
    table: str


class MethodologyPublished(Event):
    """`table` is the whole TOML text; `digest` is `digest_of(table)` and stands in every action that used it."""

    type_name: ClassVar[str] = "methodology-published/1"
    methodology: str
    version: str
    digest: str
    table: str


class Published(Struct, frozen=True):
    table: Table
    digest: str
    recorded_at: datetime


class Methodologies(Struct):
    """Every published table by id, in the order of their first days, and which of them counts each behaviour."""

    tables: dict[str, list[Published]] = {}
    counted_by: dict[str, str] = {}

    def for_behaviour(self, behaviour: str, day: date) -> Published:
        """The table in force on that day. Refusals, in order: BehaviourUnknown, NoMethodologyInForce."""
        versions = self.tables.get(self.counted_by.get(behaviour, ""))
        if not versions:
            raise BehaviourUnknown(behaviour=behaviour)
        for newest in reversed(versions):
            if newest.table.adopted.from_ <= day:
                if newest.table.counts(behaviour, day):
                    return newest
                break
        raise NoMethodologyInForce(behaviour=behaviour, day=day)

    def exact(self, methodology: str, version: str) -> Published | None:
        return next((p for p in self.tables.get(methodology, ()) if p.table.version == version), None)


class BehaviourUnknown(Refusal):
    code = "behaviour-unknown"
    title = "No methodology is published for this behaviour"


class NoMethodologyInForce(Refusal):
    code = "no-methodology-in-force"
    title = "No version of the methodology was in force on that day"


class MethodologyInvalid(Refusal):
    code = "methodology-invalid"
    title = "The methodology table is not well-formed"


class MethodologyAltered(Refusal):
    code = "methodology-altered"
    title = "This version is published with another text; a correction is a new version"


class VersionNotLater(Refusal):
    code = "version-not-later"
    title = "A new version begins after every published one"


class QuantityBelowLeast(Refusal):
    code = "quantity-below-least"
    title = "The quantity is below the least that counts"


class QuantityAboveMost(Refusal):
    code = "quantity-above-most"
    title = "The quantity is above the most that is believed of one action"


class UnitMismatch(Refusal):
    code = "unit-mismatch"
    title = "The unit is not the methodology's"


def decide(known: Methodologies, command: PublishMethodology, *, now: datetime) -> list[Event]:
    """Put a table in the log; the same text again changes nothing.

    Refusals, in order: MethodologyInvalid, MethodologyAltered, VersionNotLater.
    """
    table = parse(command.table)
    if (table.id, table.version) != (command.methodology, command.version):
        raise MethodologyInvalid(reason="id or version differs from the file's place", id=table.id)
    if same := known.exact(table.id, table.version):
        if same.digest == digest_of(command.table):
            return []
        raise MethodologyAltered(methodology=table.id, version=table.version)
    earlier = known.tables.get(table.id)
    if earlier and table.adopted.from_ <= earlier[-1].table.adopted.from_:
        raise VersionNotLater(methodology=table.id, newest=earlier[-1].table.version)
    for name in _reported(table):
        if known.counted_by.get(name, table.id) != table.id:
            raise MethodologyInvalid(reason="another methodology counts this behaviour", behaviour=name)
    return [
        MethodologyPublished(
            recorded_at=now,
            methodology=table.id,
            version=table.version,
            digest=digest_of(command.table),
            table=command.table,
        )
    ]


def evolve(known: Methodologies, event: Event) -> None:
    if isinstance(event, MethodologyPublished):
        table = parse(event.table)
        known.tables.setdefault(table.id, []).append(Published(table, event.digest, event.recorded_at))
        known.counted_by |= dict.fromkeys(_reported(table), table.id)


# -- reading a table -------------------------------------------------------------------------------------------------

_DIGEST_HEX = 32
_PLAIN = re.compile(r"(0|[1-9][0-9]{0,8})(\.[0-9]{1,12})?", re.ASCII)


def digest_of(text: str) -> str:
    """The first 16 bytes of the SHA-256 of the table's UTF-8 text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_HEX]


def parse(text: str) -> Table:
    """A table from its TOML text, checked for sense. Raises MethodologyInvalid."""
    try:
        raw = tomllib.loads(text)
        table = msgspec.convert(raw, Table)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise MethodologyInvalid(reason=str(error)[:200]) from None
    if not all(_PLAIN.fullmatch(number) for number in _numbers(raw)):
        raise MethodologyInvalid(reason="a number is not a plain quoted decimal", id=table.id)
    for wrong, reason in (
        (table.formula not in FORMULAS, "unknown formula"),
        (table.rounding.how not in ROUNDINGS, "unknown rounding"),
        (not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", table.id), "id is not a lower-case name"),
        (not re.fullmatch(r"[0-9a-z][0-9a-z.-]{0,15}", table.version), "version is not a short name"),
        (not table.adopted.comes_before_its_end, "it ends before it begins"),
        (table.taps is not None and table.taps.entry == table.taps.exit, "a ride's entry is also its exit"),
        (not 0 < table.quantity.least <= table.quantity.most, "bounds are not 0 < least <= most"),
        (quantity_times_factor(table, table.quantity.most) >= MG_MOST, "one action could exceed 2^53 mg"),
        (table.factors.reduction.unit != f"gCO2e/{table.quantity.unit}", "factor is not gCO2e per unit of quantity"),
    ):
        if wrong:
            raise MethodologyInvalid(reason=reason, id=table.id)
    _points_per(table)  # raises what is wrong with it
    return table


def _numbers(raw: dict[str, Any]) -> list[str]:
    """The decimals of a table, as they are written."""
    quoted = [raw["quantity"]["least"], raw["quantity"]["most"], raw["factors"]["reduction"]["value"]]
    quoted += [cap["quantity"] for cap in raw.get("caps", {}).values() if "quantity" in cap]
    return [str(number) if isinstance(number, str) else "" for number in quoted]


def _reported(table: Table) -> list[str]:
    return [table.id, table.taps.entry, table.taps.exit] if table.taps else [table.id]


def _points_per(table: Table) -> Decimal | None:
    """The amount of quantity that earns the rule's points, or None where each action does."""
    per = table.points.rule.per
    if per == "action":
        return None
    amount, _, unit = per.partition(" ")
    if unit != table.quantity.unit or not _PLAIN.fullmatch(amount) or (every := Decimal(amount)) == 0:
        raise MethodologyInvalid(reason="points rule is not per action or per amount of the unit", per=per)
    return every


# -- arithmetic ------------------------------------------------------------------------------------------------------


class Used(Struct, array_like=True):
    """What one resident has counted of one behaviour in one period."""

    count: int = 0
    quantity: Decimal = Decimal(0)
    points: int = 0


class Calculation(Struct, frozen=True):
    """`counted` of the quantity, its reduction in milligrams, its points, and the caps that cut something."""

    counted: Decimal
    reduction_mg: int
    points: int
    limits: tuple[str, ...]


def check_quantity(table: Table, quantity: Decimal, unit: str) -> None:
    """Refusals, in order: UnitMismatch, QuantityBelowLeast, QuantityAboveMost."""
    bounds = table.quantity
    if unit != bounds.unit:
        raise UnitMismatch(unit=unit, expected=bounds.unit)
    if quantity < bounds.least:
        raise QuantityBelowLeast(quantity=quantity, least=bounds.least, unit=unit)
    if quantity > bounds.most:
        raise QuantityAboveMost(quantity=quantity, most=bounds.most, unit=unit)


def calculate(table: Table, quantity: Decimal, used: Mapping[str, Used]) -> Calculation:
    """What a quantity counts, given what the resident already used by period ("day", "month", "year") that is capped.

    A used-up count leaves nothing; a quantity cap cuts the quantity; a points cap cuts the points.
    """
    caps = [(period, cap, used[period]) for period, cap in table.capped]
    full = [f"{p}.count" for p, cap, had in caps if cap.count is not None and had.count >= cap.count]
    if full:
        return Calculation(Decimal(0), 0, 0, tuple(full))
    counted, limits = quantity, set[str]()
    for period, cap, had in caps:
        if (
            cap.quantity is not None
            and (left := EXACT.subtract(cap.quantity, min(had.quantity, cap.quantity))) < counted
        ):
            counted = left
            limits.add(f"{period}.quantity")
    reduction_mg = to_integer(FORMULAS[table.formula](table, counted), table.rounding.how)
    points = _points(table, counted)
    for period, cap, had in caps:
        if cap.points is not None and (left_points := max(cap.points - had.points, 0)) < points:
            points = left_points
            limits.add(f"{period}.points")
    told = tuple([name for name in _LIMITS if name in limits]) if limits else ()
    return Calculation(counted, reduction_mg, points, told)


def expires_on(table: Table, credited: date) -> date:
    """The last day on which points credited that day can be spent."""
    rule = table.points.expire
    return month_after(credited, rule.months, at_end=rule.at == "month-end")


def _points(table: Table, counted: Decimal) -> int:
    if not counted:
        return 0
    every = table.points_every
    return table.points.rule.points * (1 if every is None else int(EXACT.divide_int(counted, every)))


def quantity_times_factor(table: Table, counted: Decimal) -> Decimal:
    """Counted quantity x factor, in milligrams CO2e, unrounded."""
    return EXACT.multiply(counted, table.mg_per_unit)


FORMULAS = {"quantity_times_factor": quantity_times_factor}
_LIMITS = [f"{period}.{what}" for period in PERIODS for what in ("count", "quantity", "points")]
