"""The city: what was done on each day, by behaviour and county, with reversed actions taken back.

A behaviour is here its methodology: rides made of taps count once, as rides. Quantities are whole millionths of the
methodology's unit, exact; a quantity has no meaning across behaviours, and is only told by behaviour.
"""

from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from typing import Any

from msgspec import Struct
from sqlalchemy import ColumnElement, Date, Select, Table, select

from carbon_points.domain.account import AccountOpened, ActionCredited, ActionReversed
from carbon_points.domain.quantity import civil_day
from carbon_points.projections.rows import Batch, Made, Report, Snapshot, added, key, metadata, total

MILLION = 1_000_000

CITY = Table(
    "city",
    metadata,
    key("day", Date),
    key("behaviour"),
    key("county"),  # "" where nobody said it
    added("actions"),
    added("counted_millionths"),
    added("reduction_mg"),
    added("points"),
    sqlite_with_rowid=False,
)


DAYS = Table(
    "city_days",
    metadata,
    key("day", Date),
    added("actions"),
    added("reduction_mg"),
    added("points"),
    added("residents"),
    sqlite_with_rowid=False,
)


class Count(Struct, frozen=True):
    """`residents`: accounts that were opened."""

    actions: int
    reduction_mg: int
    points: int
    residents: int


class Counters(Struct, frozen=True):
    """Of one day, and of all. `positions`: the log that they follow from."""

    day: date
    today: Count
    total: Count
    positions: dict[str, int]


class DayTotal(Struct, frozen=True):
    day: date
    actions: int
    reduction_mg: int
    points: int


class BehaviourTotal(Struct, frozen=True):
    """`counted` is in the unit of the behaviour's methodology."""

    behaviour: str
    actions: int
    counted: Decimal
    reduction_mg: int
    points: int


class CountyTotal(Struct, frozen=True):
    """`county` is null for what was done nobody said where."""

    county: str | None
    actions: int
    reduction_mg: int
    points: int


def fold(batch: Batch, made: Made) -> None:
    """A reversal does not say where its action was done: the action's own row does, and brings `take_back`."""
    made[CITY].add((key, _sums(events)) for key, events in batch.city.items())


def take_back(made: Made, report: Report, county: str) -> None:
    """Count an action no more that was reversed, if it was."""
    if event := made.taken_back.pop(report, None):
        less = tuple([-figure for figure in _sums([event])])
        made[CITY].add([((event.day, event.methodology, county), less)])


def _sums(events: Sequence[ActionCredited | ActionReversed]) -> tuple[int, ...]:
    counted = sum([e.counted for e in events])
    return len(events), int(counted * MILLION), sum([e.reduction_mg for e in events]), sum([e.points for e in events])


def fold_days(batch: Batch, made: Made) -> None:
    rows = made[DAYS]
    opened = sorted([e.recorded_at for _, e in batch.of(AccountOpened)])
    if opened and civil_day(opened[0]) == civil_day(opened[-1]):  # as nearly always
        rows.add([((civil_day(opened[0]),), (0, 0, 0, len(opened)))])
    else:
        rows.add(((civil_day(at),), (0, 0, 0, 1)) for at in opened)
    for (day, _, _), events in batch.city.items():
        actions, _, mg, points = _sums(events)
        rows.add([((day,), (actions, mg, points, 0))])
    rows.add(((e.day,), (-1, -e.reduction_mg, -e.points, 0)) for _, e in batch.of(ActionReversed))


# -- reading ---------------------------------------------------------------------------------------------------------

_FIGURES = (total(CITY.c.actions), total(CITY.c.reduction_mg), total(CITY.c.points))


class Within(Struct, frozen=True):
    """Which rows count: days from `from_day` to `until_day`, both included; one behaviour; one county."""

    from_day: date | None = None
    until_day: date | None = None
    behaviour: str | None = None
    county: str | None = None

    def narrow(self, query: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
        if self.from_day is not None:
            query = query.where(CITY.c.day >= self.from_day)
        if self.until_day is not None:
            query = query.where(CITY.c.day <= self.until_day)
        if self.behaviour is not None:
            query = query.where(CITY.c.behaviour == self.behaviour)
        return query if self.county is None else query.where(CITY.c.county == self.county)


def counters(at: Snapshot, day: date) -> Counters:
    figures = [total(DAYS.c[name]) for name in Count.__struct_fields__]
    return Counters(
        day,
        Count(*at.one(select(*figures).where(DAYS.c.day == day))),
        Count(*at.one(select(*figures))),
        at.vector,
    )


def by_day(at: Snapshot, within: Within) -> list[DayTotal]:
    return at.structs(DayTotal, _grouped(within, CITY.c.day, *_FIGURES))


def by_behaviour(at: Snapshot, within: Within) -> list[BehaviourTotal]:
    # Whole units and the rest are added apart: a city's steps in millionths outgrow 64 bits.
    whole, rest = total(CITY.c.counted_millionths // MILLION), total(CITY.c.counted_millionths % MILLION)
    query = _grouped(within, CITY.c.behaviour, *_FIGURES, whole, rest)
    return [
        BehaviourTotal(behaviour, actions, Decimal(units) + Decimal(millionths) / MILLION, mg, points)
        for behaviour, actions, mg, points, units, millionths in at.rows(query)
    ]


def by_county(at: Snapshot, within: Within) -> list[CountyTotal]:
    query = _grouped(within, CITY.c.county, *_FIGURES)
    return [CountyTotal(county or None, *figures) for county, *figures in at.rows(query)]


def _grouped(within: Within, group: ColumnElement[Any], *figures: ColumnElement[Any]) -> Select[*tuple[Any, ...]]:
    return within.narrow(select(group, *figures)).group_by(group).order_by(group)
