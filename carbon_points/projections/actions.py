"""Reported actions: one row each, with what became of it.

A tap is pending, or refused as an exit without entry, until the other tap makes a ride with it: then it is paired, and
the ride is the row of the report that completed it. A reversal leaves the figures and changes the status.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import Any, Literal, NamedTuple

from msgspec import Struct
from sqlalchemy import BigInteger, Connection, Date, Index, Table, bindparam, select, update

from carbon_points.domain.account import ActionCredited, ActionReversed, TapRecorded
from carbon_points.domain.quantity import civil_day
from carbon_points.journal.entry import action_id
from carbon_points.projections.rows import Batch, Rows, Snapshot, metadata, once, paged, place, write

IDS_A_QUERY = 400
Status = Literal["credited", "pending", "refused", "paired", "reversed"]

ACTIONS = Table(
    "actions",
    metadata,
    *place(),
    once("source"),
    once("record_id"),
    once("resident"),
    once("behaviour"),
    once("methodology"),
    once("version", nullable=True),
    once("day", Date),
    once("county", nullable=True),
    once("reduction_mg", BigInteger),
    once("points", BigInteger),
    once("status"),
    Index("actions_by_record", "record_id", "partition"),
    Index("actions_by_source", "source", "partition", "position"),
    Index("actions_by_day", "day"),
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


def fold(batch: Batch) -> Rows:
    rows = Rows(ACTIONS)
    for position, credited in batch.of(ActionCredited):
        rows.put(
            **_reported(batch, position, credited),
            version=credited.version,
            day=credited.day,
            reduction_mg=credited.reduction_mg,
            points=credited.points,
            status="credited",
        )
    for position, tap in batch.of(TapRecorded):
        status = "refused" if tap.refused else "pending"
        rows.put(**_reported(batch, position, tap), day=civil_day(tap.occurred_at), status=status)
    return rows


def _reported(batch: Batch, position: int, event: ActionCredited | TapRecorded) -> dict[str, object]:
    return {
        "partition": batch.partition,
        "position": position,
        "source": event.source,
        "record_id": event.record_id,
        "resident": event.resident,
        "behaviour": event.behaviour,
        "methodology": event.methodology,
        "county": event.county,
    }


class Stored(NamedTuple):
    """What the rest of a batch needs to know of a row."""

    position: int
    source: str
    resident: str
    methodology: str
    county: str | None
    status: Status


def changes(batch: Batch, stored: Mapping[str, Sequence[Stored]]) -> dict[int, Status]:
    """What becomes of which rows, by position, through the batch's rides and reversals. `stored`: by record id.

    A ride does not say which source reported its other tap: whichever did, for this resident, before the ride.
    """
    changed: dict[int, Status] = {}
    for position, ride in batch.of(ActionCredited):
        for row in stored.get(ride.paired_with or "", ()):
            theirs = (row.resident, row.methodology) == (ride.resident, ride.methodology)
            if theirs and row.position < position and row.status in ("pending", "refused"):
                changed[row.position] = "paired"
    for _, event in batch.of(ActionReversed):
        for row in stored[event.record_id]:
            if row.source == event.source and row.status == "credited":
                changed[row.position] = "reversed"
    return changed


def find(connection: Connection, partition: int, records: Iterable[str]) -> dict[str, list[Stored]]:
    """The rows of a partition that have one of these record ids."""
    wanted, found = sorted(set(records)), dict[str, list[Stored]]()
    columns = (ACTIONS.c[name] for name in Stored._fields)
    query = select(ACTIONS.c.record_id, *columns).where(ACTIONS.c.partition == partition)
    for start in range(0, len(wanted), IDS_A_QUERY):
        some = query.where(ACTIONS.c.record_id.in_(wanted[start : start + IDS_A_QUERY]))
        for record, *rest in connection.execute(some):
            found.setdefault(record, []).append(Stored(*rest))
    return found


_BECOME = (
    update(ACTIONS)
    .where(ACTIONS.c.partition == bindparam("of_partition"), ACTIONS.c.position == bindparam("of_position"))
    .values(status=bindparam("becomes"))
)


def apply(connection: Connection, batch: Batch) -> None:
    """Rows come first, so that a tap and its ride, or an action and its reversal, may share a batch.

    Others are changed by their places: by record, SQLite's planner reads a partition from its beginning instead.
    """
    write(connection, fold(batch))
    paired = [ride.paired_with for _, ride in batch.of(ActionCredited) if ride.paired_with is not None]
    reversed_ = [event.record_id for _, event in batch.of(ActionReversed)]
    changed = changes(batch, find(connection, batch.partition, paired + reversed_))
    if changed:
        rows = [
            {"of_partition": batch.partition, "of_position": position, "becomes": status}
            for position, status in changed.items()
        ]
        connection.execute(_BECOME, rows)


# -- reading ---------------------------------------------------------------------------------------------------------

_LISTED = select(ACTIONS.c.partition, *(ACTIONS.c[name] for name in Action.__struct_fields__ if name != "action_id"))


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
    found = at.placed(_action, paged(_LISTED.where(ACTIONS.c.record_id == record_id), ACTIONS, None, IDS_A_QUERY))
    return next((action for action in found if action.source == source), None)


def _action(position: str, source: str, record_id: str, *rest: Any) -> Action:
    return Action(position, action_id(source, record_id), source, record_id, *rest)
