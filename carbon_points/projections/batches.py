"""Batches: what each terminal's orders moved, in which run of it, and whether that run is closed.

All of a batch lies in its merchant's partition: what its orders moved, and its end.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from msgspec import Struct
from sqlalchemy import BigInteger, Index, Table, and_, case, exists, or_, select

from carbon_points.domain.order import BatchClosed, By, OrderMoved, Tally, Totals
from carbon_points.projections.redemptions import REDEMPTIONS
from carbon_points.projections.rows import (
    Batch,
    Made,
    Moment,
    Snapshot,
    added,
    fields,
    key,
    latest,
    metadata,
    once,
)

Kind = Literal["sale", "refund", "reversal"]
_COUNTED: dict[str, str] = {"sale": "sales", "refund": "refunds", "reversal": "reversals"}

MOVES = Table(
    "moves",
    metadata,
    key("merchant"),
    key("redemption_id"),
    key("position", BigInteger),  # in the merchant's partition
    once("partition", BigInteger),
    once("kind"),
    once("terminal"),
    once("batch", BigInteger),
    once("count", BigInteger),
    once("points", BigInteger),
    once("amount_fen", BigInteger),
    once("recorded_at", Moment),
    Index("moves_by_batch", "merchant", "terminal", "batch", "position"),
)

BATCHES = Table(
    "batches",
    metadata,
    key("merchant"),
    key("terminal"),
    key("batch", BigInteger),
    latest("moved_at", Moment),
    latest("closed_at", Moment),
    latest("closed_by"),
    *(added(f"{of}_{what}") for of in _COUNTED.values() for what in ("count", "points", "fen")),
)
_OPEN = BATCHES.c.closed_at.is_(None)
Index("batches_open", BATCHES.c.moved_at, sqlite_where=_OPEN, postgresql_where=_OPEN)


class Line(Struct, frozen=True):
    """What an order moved in a batch: `count` times, of so many points and fen in all. `position` is the log's."""

    position: int
    kind: Kind
    redemption_id: str
    count: int
    points: int
    amount_fen: int
    recorded_at: datetime


class Shown(Struct, frozen=True):
    """A terminal's batch. `closed_by`: the terminal, or `auto` where it did not."""

    merchant: str
    terminal: str
    batch: int
    status: Literal["open", "closed"]
    moved_at: datetime | None
    closed_at: datetime | None
    closed_by: By | None
    totals: Totals


class Left(Struct, frozen=True):
    """A batch that its terminal has left open."""

    merchant: str
    terminal: str
    batch: int


def fold(batch: Batch, made: Made) -> None:
    for position, e in batch.of(OrderMoved):
        if of := _COUNTED.get(e.kind):
            made[MOVES].put(
                merchant=e.merchant,
                redemption_id=e.redemption_id,
                position=position,
                partition=batch.partition,
                kind=e.kind,
                terminal=e.terminal,
                batch=e.batch,
                count=e.count,
                points=e.points,
                amount_fen=e.amount_fen,
                recorded_at=e.recorded_at,
            )
            sums = {f"{of}_count": e.count, f"{of}_points": e.points, f"{of}_fen": e.amount_fen}
            made[BATCHES].put(merchant=e.merchant, terminal=e.terminal, batch=e.batch, moved_at=e.recorded_at, **sums)
    for _, e in batch.of(BatchClosed):
        made[BATCHES].put(
            merchant=e.merchant, terminal=e.terminal, batch=e.batch, closed_at=e.recorded_at, closed_by=e.by
        )


# -- reading ---------------------------------------------------------------------------------------------------------


def batches(at: Snapshot, merchant: str, terminal: str, *, before: int | None = None, limit: int = 50) -> list[Shown]:
    """A terminal's batches in which anything moved or that were closed, the newest first."""
    query = _BATCHES.where(BATCHES.c.merchant == merchant, BATCHES.c.terminal == terminal)
    if before is not None:
        query = query.where(BATCHES.c.batch < before)
    return [_shown(row) for row in at.rows(query.order_by(BATCHES.c.batch.desc()).limit(limit))]


def batch(at: Snapshot, merchant: str, terminal: str, number: int) -> Shown | None:
    one = (BATCHES.c.merchant == merchant, BATCHES.c.terminal == terminal, BATCHES.c.batch == number)
    return next(map(_shown, at.rows(_BATCHES.where(*one))), None)


def lines(at: Snapshot, merchant: str, terminal: str, number: int) -> list[Line]:
    """All that moved in a batch, in the order of the log."""
    query = select(*fields(MOVES, Line)).where(
        MOVES.c.merchant == merchant, MOVES.c.terminal == terminal, MOVES.c.batch == number
    )
    return at.structs(Line, query.order_by(MOVES.c.position))


def totals_of(found: Sequence[Line]) -> Totals:
    """What lines come to."""
    sums = {kind: [line for line in found if line.kind == kind] for kind in _COUNTED}
    tallies = (
        Tally(sum(n.count for n in some), sum(n.points for n in some), sum(n.amount_fen for n in some))
        for some in (sums["sale"], sums["refund"], sums["reversal"])
    )
    return Totals(*tallies)


def unresolved(at: Snapshot, merchant: str, terminal: str) -> list[str]:
    """Redemptions of a terminal that are on their way: placed and not held yet, or to be undone and not yet so."""
    on_the_way = and_(REDEMPTIONS.c.ended.is_(None), REDEMPTIONS.c.expires_at.is_(None))
    to_be_undone = and_(REDEMPTIONS.c.ended.is_(None), REDEMPTIONS.c.reversing == 1)
    query = select(REDEMPTIONS.c.redemption_id).where(
        REDEMPTIONS.c.followed.is_(None),
        REDEMPTIONS.c.order_merchant == merchant,
        REDEMPTIONS.c.order_terminal == terminal,
        or_(on_the_way, to_be_undone),
    )
    return list(at.connection.scalars(query.order_by(REDEMPTIONS.c.redemption_id)))


def left_open(
    at: Snapshot, *, begun_before: datetime, idle_since: datetime, of: Left | None = None, limit: int = 500
) -> list[Left]:
    """Batches in which something moved before the one moment, and nothing after the other. `of`: that one, if it is."""
    begun = exists().where(
        MOVES.c.merchant == BATCHES.c.merchant,
        MOVES.c.terminal == BATCHES.c.terminal,
        MOVES.c.batch == BATCHES.c.batch,
        MOVES.c.recorded_at < begun_before,
    )
    query = select(*fields(BATCHES, Left)).where(_OPEN, BATCHES.c.moved_at <= idle_since, begun)
    if of is not None:
        one = (BATCHES.c.merchant == of.merchant, BATCHES.c.terminal == of.terminal, BATCHES.c.batch == of.batch)
        query = query.where(*one)
    return at.structs(Left, query.order_by(BATCHES.c.moved_at).limit(limit))


_BATCHES = select(
    BATCHES.c.merchant,
    BATCHES.c.terminal,
    BATCHES.c.batch,
    case((_OPEN, "open"), else_="closed"),
    BATCHES.c.moved_at,
    BATCHES.c.closed_at,
    BATCHES.c.closed_by,
    *(BATCHES.c[f"{of}_{what}"] for of in _COUNTED.values() for what in ("count", "points", "fen")),
)


def _shown(row: Sequence[Any]) -> Shown:
    own, figures = row[:-9], row[-9:]
    tallies = (Tally(*figures[start : start + 3]) for start in (0, 3, 6))
    return Shown(*own, totals=Totals(*tallies))
