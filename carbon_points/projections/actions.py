"""Reported actions: one row each, with what became of it.

A tap is pending, or refused as an exit without entry, until the other tap makes a ride with it: then it is paired, and
the ride is the row of the report that completed it. A reversal leaves the figures and changes the status.
"""

from datetime import date
from typing import Any, Literal

from msgspec import Struct
from sqlalchemy import (
    BigInteger,
    Connection,
    Date,
    Index,
    Select,
    SmallInteger,
    Table,
    bindparam,
    func,
    null,
    select,
    update,
)

from carbon_points.domain.account import ActionReversed, TapRecorded
from carbon_points.domain.quantity import civil_day
from carbon_points.journal.entry import action_id
from carbon_points.projections import city
from carbon_points.projections.rows import Batch, Made, Snapshot, fields, key, metadata, once, paged

REPORTS_A_QUERY = 400
Status = Literal["credited", "pending", "refused", "paired", "reversed"]

ACTIONS = Table(  # nearly all rows there are: in an order that leaves no holes between the columns
    "actions",
    metadata,
    key("partition", SmallInteger),
    once("day", Date),
    key("position", BigInteger),
    once("reduction_mg", BigInteger),
    once("points", BigInteger),
    once("source"),
    once("record_id"),
    once("resident"),
    once("behaviour"),
    once("methodology"),
    once("version"),  # "": a tap has none
    once("county"),  # "" where nobody said it
    once("status"),
    Index("actions_by_record", "record_id"),
    Index("actions_by_source", "source", "partition", "position"),
    # Days come nearly in order: on PostgreSQL it is enough to know which are in which stretch of the table.
    Index("actions_by_day", "day", postgresql_using="brin", postgresql_with={"autosummarize": True}),
)


class Action(Struct, frozen=True):
    """`position` is its place in the log and its cursor: "partition:position". A tap has no version and no figures."""

    position: str
    action_id: str
    source: str
    record_id: str
    resident: str
    behaviour: str
    methodology: str
    version: str | None
    day: date
    county: str | None
    reduction_mg: int
    points: int
    status: Status


def fold(batch: Batch, made: Made) -> None:
    n = batch.partition
    made[ACTIONS].written += [
        (
            *(n, day, position, e.reduction_mg, e.points, e.source, e.record_id, e.resident),
            *(e.behaviour, e.methodology, e.version, e.county or "", "credited"),
        )
        for position, e, day in batch.credited
    ]
    for position, e in batch.of(TapRecorded):
        made[ACTIONS].put(
            partition=n,
            day=civil_day(e.occurred_at),
            position=position,
            source=e.source,
            record_id=e.record_id,
            resident=e.resident,
            behaviour=e.behaviour,
            methodology=e.methodology,
            version="",
            county=e.county or "",
            status="refused" if e.refused else "pending",
        )
    for _, e, _ in batch.credited:
        if e.paired_with is not None:  # a ride's two taps are reports of one source
            made.become[n, e.source, e.paired_with] = "paired"
    for _, e in batch.of(ActionReversed):
        made.become[n, e.source, e.record_id] = "reversed"
        made.taken_back[n, e.source, e.record_id] = e


_PARTITION, _SOURCE, _RECORD, _COUNTY, _STATUS = (
    list(ACTIONS.c).index(ACTIONS.c[name]) for name in ("partition", "source", "record_id", "county", "status")
)


def become(made: Made) -> None:
    """Tell those rows what became of them that are not written yet. What is left waits for `become_stored`."""
    if not made.become:
        return
    rows = made[ACTIONS].written
    for i, row in enumerate(rows):
        report = row[_PARTITION], row[_SOURCE], row[_RECORD]
        if status := made.become.pop(report, None):
            rows[i] = (*row[:_STATUS], status)
            city.take_back(made, report, row[_COUNTY])


def become_stored(connection: Connection, made: Made) -> None:
    """Tell the stored rows what became of them."""
    waiting = sorted(made.become)
    changed: list[dict[str, Any]] = []
    for start in range(0, len(waiting), REPORTS_A_QUERY):
        records = {record for _, _, record in waiting[start : start + REPORTS_A_QUERY]}
        for partition, position, source, record, county in connection.execute(_FIND, {"records": records}):
            report = partition, source, record
            if status := made.become.pop(report, None):
                changed.append({"of_partition": partition, "of_position": position, "becomes": status})
                city.take_back(made, report, county)
    if changed:  # by their places: by record, SQLite's planner reads a partition from its beginning instead
        connection.execute(_BECOME, changed)


_FIND: Select[*tuple[Any, ...]] = select(
    *(ACTIONS.c[name] for name in ("partition", "position", "source", "record_id", "county"))
).where(ACTIONS.c.record_id.in_(bindparam("records", expanding=True)))
_BECOME = (
    update(ACTIONS)
    .where(ACTIONS.c.partition == bindparam("of_partition"), ACTIONS.c.position == bindparam("of_position"))
    .values(status=bindparam("becomes"))
)


# -- reading ---------------------------------------------------------------------------------------------------------

_LISTED = select(
    ACTIONS.c.partition,
    *fields(
        ACTIONS,
        Action,
        action_id=null(),
        version=func.nullif(ACTIONS.c.version, ""),
        county=func.nullif(ACTIONS.c.county, ""),
    ),
)


def actions(
    at: Snapshot,
    *,
    source: str | None = None,
    behaviour: str | None = None,
    status: Status | None = None,
    from_day: date | None = None,
    until_day: date | None = None,
    after: str | None = None,
    limit: int = 50,
) -> list[Action]:
    """Actions in the order of their places, of the days from `from_day` to `until_day`, both included."""
    query = _LISTED
    for column, wanted in ((ACTIONS.c.source, source), (ACTIONS.c.behaviour, behaviour), (ACTIONS.c.status, status)):
        if wanted is not None:
            query = query.where(column == wanted)
    if from_day is not None:
        query = query.where(ACTIONS.c.day >= from_day)
    if until_day is not None:
        query = query.where(ACTIONS.c.day <= until_day)
    return at.placed(_action, paged(query, ACTIONS, after, limit))


def action(at: Snapshot, source: str, record_id: str) -> Action | None:
    """One action. A record that two partitions hold, for two residents, is told by its first place."""
    # By record alone: an index of the source's own would lead through all of its actions.
    found = at.placed(_action, paged(_LISTED.where(ACTIONS.c.record_id == record_id), ACTIONS, None, REPORTS_A_QUERY))
    return next((action for action in found if action.source == source), None)


def _action(position: str, _: None, source: str, record_id: str, *rest: Any) -> Action:
    return Action(position, action_id(source, record_id), source, record_id, *rest)
