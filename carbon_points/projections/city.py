"""The city: what was done on each day, by behaviour and county, with reversed actions taken back.

A behaviour is here its methodology: rides made of taps count once, as rides. Quantities are whole millionths of the
methodology's unit, exact; a quantity has no meaning across behaviours, and is only told by behaviour.
"""

from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from typing import Any

from msgspec import Struct
from sqlalchemy import ColumnElement, Connection, Date, Select, Table, select

from carbon_points.domain.account import AccountOpened, ActionCredited, ActionReversed
from carbon_points.domain.quantity import civil_day
from carbon_points.projections.actions import find
from carbon_points.projections.rows import Batch, Rows, Snapshot, added, key, metadata, total, write

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


def fold(batch: Batch, county_of: Mapping[tuple[str, str], str | None]) -> Rows:
    """`county_of` has the county of each action that the batch reverses, by source and record id."""
    rows = Rows(CITY)
    for _, credited in batch.of(ActionCredited):
        _add(rows, credited, credited.county, 1)
    for _, event in batch.of(ActionReversed):
        _add(rows, event, county_of[event.source, event.record_id], -1)
    return rows


def _add(rows: Rows, event: ActionCredited | ActionReversed, county: str | None, sign: int) -> None:
    rows.put(
        day=event.day,
        behaviour=event.methodology,
        county=county or "",
        actions=sign,
        counted_millionths=sign * int(event.counted * MILLION),
        reduction_mg=sign * event.reduction_mg,
        points=sign * event.points,
    )


def fold_days(batch: Batch) -> Rows:
    rows = Rows(DAYS)
    for _, opened in batch.of(AccountOpened):
        rows.put(day=civil_day(opened.recorded_at), residents=1)
    for kind, sign in ((ActionCredited, 1), (ActionReversed, -1)):
        for _, event in batch.of(kind):
            rows.put(day=event.day, actions=sign, reduction_mg=sign * event.reduction_mg, points=sign * event.points)
    return rows


def apply(connection: Connection, batch: Batch) -> None:
    """A reversal does not say where its action was done; the action's own row, written by now, does."""
    found = find(connection, batch.partition, [event.record_id for _, event in batch.of(ActionReversed)])
    county_of = {(row.source, record): row.county for record, rows in found.items() for row in rows}
    write(connection, fold(batch, county_of), fold_days(batch))


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
