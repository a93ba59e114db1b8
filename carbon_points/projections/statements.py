"""A resident's statement: one row for each event that moved or concerns them.

One resident lies in one partition, so positions order a statement. The rows' deltas add up to what the account holds:
`reduction_mg` to its total, `points` to what is available, `held_points` and `debt_points` to what is held and owed.
"""

from datetime import datetime
from typing import Any

from msgspec import Struct
from sqlalchemy import BigInteger, Connection, Table, select

from carbon_points.domain.account import (
    AccountOpened,
    ActionCredited,
    ActionReversed,
    ConsentGiven,
    ConsentWithdrawn,
    HoldReleased,
    PointsCaptured,
    PointsHeld,
    PointsRefunded,
    ReductionsPooled,
    TapRecorded,
)
from carbon_points.domain.event import Event
from carbon_points.domain.posting import Posting
from carbon_points.projections.rows import Batch, Moment, Rows, Snapshot, fields, key, metadata, once, write

STATEMENTS = Table(
    "statements",
    metadata,
    key("resident"),
    key("position", BigInteger),
    once("partition", BigInteger),
    once("recorded_at", Moment),
    once("occurred_at", Moment, nullable=True),
    once("type"),
    once("behaviour", nullable=True),
    once("reduction_mg", BigInteger),
    once("pooled_mg", BigInteger),
    once("points", BigInteger),
    once("held_points", BigInteger),
    once("debt_points", BigInteger),
    once("reference", nullable=True),
    once("merchant", nullable=True),
    once("source", nullable=True),
    sqlite_with_rowid=False,
)


class Line(Struct, frozen=True):
    """One event. `reduction_mg` and the points are what it changed; `pooled_mg` is what it moved into a pool.

    `type` is the event's name without its version. `reference` is the record, redemption, pool or consent it is about.
    """

    partition: int
    position: int
    recorded_at: datetime
    occurred_at: datetime | None
    type: str
    behaviour: str | None
    reduction_mg: int
    pooled_mg: int
    points: int
    held_points: int
    debt_points: int
    reference: str | None
    merchant: str | None
    source: str | None


def fold(batch: Batch) -> Rows:
    rows = Rows(STATEMENTS)
    for position, event in batch.events:
        resident: str | None = getattr(event, "resident", None)
        if resident is not None:
            moves = batch.moved.get(position)
            rows.put(
                resident=resident,
                position=position,
                partition=batch.partition,
                recorded_at=event.recorded_at,
                type=event.type_name.partition("/")[0],
                **_told(event),
                **(points_moved(resident, moves) if moves else {}),
            )
    return rows


def points_moved(resident: str, moves: list[Posting]) -> dict[str, int]:
    """What an event changed in the resident's points: available, held and owed."""
    moved = {"points": 0, "held_points": 0, "debt_points": 0}
    for asset, account, amount in moves:
        if asset == "points":
            if account == f"resident/{resident}":
                moved["points"] += amount
            elif account == f"held/{resident}":
                moved["held_points"] += amount
            elif account == f"debt/{resident}":  # what is owed stands below zero in the books
                moved["debt_points"] -= amount
    return moved


def _told(event: Event) -> dict[str, Any]:
    """What else the event says, by column."""
    match event:
        case AccountOpened():
            return {"source": event.opened_by}
        case ConsentGiven():
            return {"reference": event.consent.id, "source": event.consent.asserted_by}
        case TapRecorded():
            return _reported(event)
        case ActionCredited():
            return {**_reported(event), "reduction_mg": event.reduction_mg}
        case ActionReversed():
            return {
                "behaviour": event.methodology,
                "reduction_mg": -event.reduction_mg,
                "reference": event.record_id,
                "source": event.source,
            }
        case PointsHeld() | PointsCaptured() | HoldReleased() | PointsRefunded():
            return {"reference": event.redemption_id, "merchant": event.merchant}
        case ReductionsPooled():
            return {"reference": event.pool_id, "behaviour": event.methodology, "pooled_mg": event.reduction_mg}
        case ConsentWithdrawn():
            return {"reference": event.consent_id}
        case _:
            return {}


def _reported(event: ActionCredited | TapRecorded) -> dict[str, Any]:
    return {
        "occurred_at": event.occurred_at,
        "behaviour": event.behaviour,
        "reference": event.record_id,
        "source": event.source,
    }


def apply(connection: Connection, batch: Batch) -> None:
    write(connection, fold(batch))


# -- reading ---------------------------------------------------------------------------------------------------------


def statement(at: Snapshot, resident: str, *, before: int | None = None, limit: int = 50) -> list[Line]:
    """A resident's lines, newest first; the next page begins before the position of the last one."""
    query = select(*fields(STATEMENTS, Line)).where(STATEMENTS.c.resident == resident)
    if before is not None:
        query = query.where(STATEMENTS.c.position < before)
    return at.structs(Line, query.order_by(STATEMENTS.c.position.desc()).limit(limit))
