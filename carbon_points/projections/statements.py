"""A resident's statement: one line for each event of theirs, read from the log itself, where they lie together.

Its deltas add up to what the account holds: `reduction_mg` to its total, `points` to what is available, `held_points`
and `debt_points` to what is held and owed.
"""

from datetime import datetime
from typing import Any

from msgspec import Struct

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
from carbon_points.domain.posting import Posting, postings
from carbon_points.journal import codec
from carbon_points.journal.entry import Entry
from carbon_points.journal.journal import Journal


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


class Page(Struct, frozen=True):
    """Some lines, and the version that the next page comes before; 1 where this is the last."""

    lines: list[Line]
    before: int


def statement(journal: Journal, resident: str, *, before: int | None = None, limit: int = 50) -> Page:
    """A resident's lines, newest first, of the events before a version of their stream."""
    entries = journal.newest(resident, limit, before)
    return Page([_line(resident, entry) for entry in entries], entries[-1].version if entries else 1)


def _line(resident: str, entry: Entry) -> Line:
    event = codec.decode(entry.type, entry.state)
    told: dict[str, Any] = {
        **dict.fromkeys(Line.__struct_fields__),
        "partition": entry.partition,
        "position": entry.position,
        "recorded_at": event.recorded_at,
        "type": event.type_name.partition("/")[0],
        "reduction_mg": 0,
        "pooled_mg": 0,
        **points_moved(resident, postings(event)),
        **_told(event),
    }
    return Line(**told)


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
