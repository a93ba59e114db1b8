"""Redemptions: what a resident spends at a merchant's terminal, from the hold to the last refund.

All of one redemption lies in its resident's partition. Two residents of two partitions may use the same id: a row is of
both.
"""

from datetime import datetime
from typing import Literal

from msgspec import Struct
from sqlalchemy import BigInteger, Index, Table, case, func, select

from carbon_points.domain.account import HoldReleased, PointsCaptured, PointsHeld, PointsRefunded
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

Status = Literal["held", "captured", "partially_refunded", "refunded", "voided", "expired"]

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
    latest("ended"),  # captured, voided, expired; null while held
    latest("captured_points", BigInteger),
    latest("captured_fen", BigInteger),
    added("refunded_points"),
    added("refunded_fen"),
    Index("redemptions_by_merchant", "merchant", "partition", "position"),
)


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


def fold(batch: Batch, made: Made) -> None:
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
    for _, e in batch.of(PointsCaptured):
        rows.put(
            redemption_id=e.redemption_id,
            resident=e.resident,
            ended="captured",
            captured_points=e.points,
            captured_fen=e.amount_fen,
        )
    for _, e in batch.of(HoldReleased):
        rows.put(redemption_id=e.redemption_id, resident=e.resident, ended=e.cause)
    for _, e in batch.of(PointsRefunded):
        rows.put(
            redemption_id=e.redemption_id,
            resident=e.resident,
            refunded_points=e.points,
            refunded_fen=e.amount_fen,
        )


# -- reading ---------------------------------------------------------------------------------------------------------

_STATUS = case(
    (REDEMPTIONS.c.ended.is_(None), "held"),
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
    ),
)


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
