"""Redemptions: what a resident spends at a merchant's terminal, from the order to the last refund.

The order lies in its merchant's partition, what became of it in its resident's: each adds its own columns to the row.
Two residents of two partitions may use the same id: a row is of both.
"""

from datetime import datetime
from typing import Literal

from msgspec import Struct
from sqlalchemy import BigInteger, Index, Table, and_, case, func, literal_column, or_, select

from carbon_points.domain.account import (
    ENDED,
    REVERSED,
    HoldConfirmed,
    HoldDeclined,
    HoldReleased,
    PointsCaptured,
    PointsHeld,
    PointsRefunded,
)
from carbon_points.domain.order import OrderDeclined, OrderMoved, OrderPlaced, OrderReversed
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
    paged,
)

Status = Literal["held", "declined", "captured", "partially_refunded", "refunded", "voided", "expired", "reversed"]

REDEMPTIONS = Table(
    "redemptions",
    metadata,
    key("redemption_id"),
    key("resident"),
    latest("partition", BigInteger),
    latest("position", BigInteger),
    latest("merchant"),
    latest("terminal"),
    latest("points", BigInteger),
    latest("amount_fen", BigInteger),
    latest("held_at", Moment),
    latest("expires_at", Moment),
    latest("ended"),  # captured, declined, voided, expired, reversed; null while held
    latest("captured_points", BigInteger),
    latest("captured_fen", BigInteger),
    latest("changed_at", Moment),
    # what the merchant's stream says
    latest("order_merchant"),
    latest("order_terminal"),
    latest("ordered_points", BigInteger),
    latest("ordered_at", Moment),
    latest("offer"),
    latest("declined"),  # for which reason of its offer
    latest("reversing", BigInteger),
    latest("followed"),
    # and both, in sums
    added("refunds"),  # without a reversal
    added("refunded_points"),
    added("refunded_fen"),
    added("reversals"),
    added("reversed_points"),
    added("reversed_fen"),
    added("followed_refunds"),
    added("followed_reversals"),
    Index("redemptions_by_merchant", "merchant", "partition", "position"),
)
_OPEN = and_(REDEMPTIONS.c.followed.is_(None), REDEMPTIONS.c.order_merchant.is_not(None))
_BEHIND = and_(
    REDEMPTIONS.c.order_merchant.is_not(None),
    or_(
        and_(REDEMPTIONS.c.followed.is_(None), REDEMPTIONS.c.ended.is_not(None)),
        REDEMPTIONS.c.followed_refunds < REDEMPTIONS.c.refunds,
        REDEMPTIONS.c.followed_reversals < REDEMPTIONS.c.reversals,
        and_(
            REDEMPTIONS.c.reversing == literal_column("1"),
            REDEMPTIONS.c.ended == literal_column("'captured'"),
            REDEMPTIONS.c.refunded_points + REDEMPTIONS.c.reversed_points < REDEMPTIONS.c.captured_points,
        ),
    ),
)
# Nearly all rows are in neither: what is asked every second is found at once.
Index("redemptions_open", REDEMPTIONS.c.order_merchant, postgresql_where=_OPEN, sqlite_where=_OPEN)
Index("redemptions_behind", REDEMPTIONS.c.order_merchant, postgresql_where=_BEHIND, sqlite_where=_BEHIND)


class Redemption(Struct, frozen=True):
    """`status` "held" says that no end is in the log: a hold past `expires_at` may still wait for its lapse."""

    position: str
    redemption_id: str
    resident: str
    merchant: str
    terminal: str
    points: int
    amount_fen: int
    held_at: datetime
    expires_at: datetime
    status: Status
    captured_points: int
    captured_fen: int
    refunded_points: int
    refunded_fen: int


class Loose(Struct, frozen=True):
    """An order that has not taken in all that became of it, or that has nothing yet. `ended` is null where no end is in
    the log, `expires_at` where nothing was held; `declined` is why its offer refused it."""

    redemption_id: str
    resident: str
    order_merchant: str
    order_terminal: str
    ordered_points: int
    expires_at: datetime | None
    offer: str | None
    declined: str | None
    reversing: int | None
    ended: str | None
    captured_points: int
    captured_fen: int
    refunds: int
    refunded_points: int
    refunded_fen: int
    reversed_points: int
    reversed_fen: int


def fold(batch: Batch, made: Made) -> None:
    _orders(batch, made)
    rows = made[REDEMPTIONS]
    for position, e in batch.of(PointsHeld):
        rows.put(
            redemption_id=e.redemption_id,
            resident=e.resident,
            partition=batch.partition,
            position=position,
            merchant=e.merchant,
            terminal=e.terminal,
            points=e.points,
            amount_fen=e.amount_fen,
            held_at=e.recorded_at,
            expires_at=e.expires_at,
        )
    for position, e in batch.of(HoldDeclined):
        rows.put(
            redemption_id=e.redemption_id,
            resident=e.resident,
            partition=batch.partition,
            position=position,
            merchant=e.merchant,
            terminal=e.terminal,
            points=e.points,
            amount_fen=0,
            held_at=e.recorded_at,
            expires_at=e.recorded_at,
            ended=REVERSED if e.reason == REVERSED else "declined",
            changed_at=e.recorded_at,
        )
    for _, e in batch.of(HoldConfirmed):
        rows.put(redemption_id=e.redemption_id, resident=e.resident, expires_at=e.expires_at)
    for _, e in batch.of(PointsCaptured):
        rows.put(
            redemption_id=e.redemption_id,
            resident=e.resident,
            ended="captured",
            captured_points=e.points,
            captured_fen=e.amount_fen,
            changed_at=e.recorded_at,
        )
    for _, e in batch.of(HoldReleased):
        ended = ENDED[e.cause]
        rows.put(redemption_id=e.redemption_id, resident=e.resident, ended=ended, changed_at=e.recorded_at)
    for _, e in batch.of(PointsRefunded):
        figures = ("reversals", "reversed_points", "reversed_fen") if e.reversal else _REFUND
        rows.put(
            redemption_id=e.redemption_id,
            resident=e.resident,
            changed_at=e.recorded_at,
            **dict(zip(figures, (1, e.points, e.amount_fen), strict=True)),
        )


_REFUND = ("refunds", "refunded_points", "refunded_fen")


def _orders(batch: Batch, made: Made) -> None:
    rows = made[REDEMPTIONS]
    for _, e in batch.of(OrderPlaced):
        rows.put(
            redemption_id=e.redemption_id,
            resident=e.resident,
            order_merchant=e.merchant,
            order_terminal=e.terminal,
            ordered_points=e.points,
            ordered_at=e.recorded_at,
            offer=e.offer,
        )
    for _, e in batch.of(OrderDeclined):
        rows.put(
            redemption_id=e.redemption_id,
            resident=e.resident,
            order_merchant=e.merchant,
            order_terminal=e.terminal,
            ordered_points=e.points,
            ordered_at=e.recorded_at,
            offer=e.offer,
            declined=e.reason,
        )
    for _, e in batch.of(OrderReversed):
        if e.resident is not None:
            rows.put(redemption_id=e.redemption_id, resident=e.resident, reversing=1)
    for _, e in batch.of(OrderMoved):
        if e.kind == "refund":
            rows.put(redemption_id=e.redemption_id, resident=e.resident, followed_refunds=e.count)
        elif e.kind == "reversal":
            rows.put(redemption_id=e.redemption_id, resident=e.resident, followed_reversals=1)
        else:
            rows.put(redemption_id=e.redemption_id, resident=e.resident, followed=e.kind)


# -- reading ---------------------------------------------------------------------------------------------------------

_STATUS = case(
    (REDEMPTIONS.c.ended.is_(None), "held"),
    (REDEMPTIONS.c.reversals > 0, REVERSED),
    (REDEMPTIONS.c.refunded_points == 0, REDEMPTIONS.c.ended),
    (REDEMPTIONS.c.refunded_points == REDEMPTIONS.c.captured_points, "refunded"),
    else_="partially_refunded",
)
_REDEMPTIONS = select(
    REDEMPTIONS.c.partition,
    *fields(
        REDEMPTIONS,
        Redemption,
        status=_STATUS,
        captured_points=func.coalesce(REDEMPTIONS.c.captured_points, 0),
        captured_fen=func.coalesce(REDEMPTIONS.c.captured_fen, 0),
        refunded_points=REDEMPTIONS.c.refunded_points + REDEMPTIONS.c.reversed_points,
        refunded_fen=REDEMPTIONS.c.refunded_fen + REDEMPTIONS.c.reversed_fen,
    ),
).where(REDEMPTIONS.c.held_at.is_not(None))


def redemptions(
    at: Snapshot,
    merchant_id: str,
    *,
    status: Status | None = None,
    after: str | None = None,
    limit: int = 50,
) -> list[Redemption]:
    """A merchant's redemptions in the order in which they were held."""
    query = _REDEMPTIONS.where(REDEMPTIONS.c.merchant == merchant_id)
    if status is not None:
        query = query.where(status == _STATUS)
    return at.placed(Redemption, paged(query, REDEMPTIONS, after, limit))


def redemption(at: Snapshot, redemption_id: str) -> Redemption | None:
    query = _REDEMPTIONS.where(REDEMPTIONS.c.redemption_id == redemption_id)
    return next(iter(at.placed(Redemption, paged(query, REDEMPTIONS, None, 1))), None)


_LOOSE = select(
    *fields(
        REDEMPTIONS,
        Loose,
        captured_points=func.coalesce(REDEMPTIONS.c.captured_points, 0),
        captured_fen=func.coalesce(REDEMPTIONS.c.captured_fen, 0),
    )
)


def behind(at: Snapshot, *, changed_before: datetime, merchant: str | None = None, limit: int = 500) -> list[Loose]:
    """Orders that have not taken in what became of them by that moment or, since nobody else tells them, by time."""
    lapsed = REDEMPTIONS.c.ended == "expired"
    query = _LOOSE.where(_BEHIND, or_(REDEMPTIONS.c.changed_at <= changed_before, lapsed))
    if merchant is not None:
        query = query.where(REDEMPTIONS.c.order_merchant == merchant)
    return at.structs(Loose, query.limit(limit))


def overdue(at: Snapshot, *, now: datetime, placed_before: datetime, limit: int = 500) -> list[Loose]:
    """Orders without an end whose hold has run out, or never came, or that are to be undone."""
    ran_out = REDEMPTIONS.c.expires_at <= now
    never_held = and_(REDEMPTIONS.c.expires_at.is_(None), REDEMPTIONS.c.ordered_at <= placed_before)
    undone = and_(REDEMPTIONS.c.reversing == 1, REDEMPTIONS.c.ordered_at <= placed_before)
    query = _LOOSE.where(_OPEN, REDEMPTIONS.c.ended.is_(None), or_(ran_out, never_held, undone))
    return at.structs(Loose, query.limit(limit))
