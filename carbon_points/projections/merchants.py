"""Merchants: what they accepted and gave back, what was settled, and what was paid.

Captures and refunds lie in the residents' partitions, a merchant and its settlements in its own, payments in the
fund's: each adds its own columns to the rows, in whatever order the partitions are read.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal

from msgspec import Struct, structs
from sqlalchemy import BigInteger, ColumnElement, Index, Table, and_, case, false, null, or_, select

from carbon_points.domain.account import PointsCaptured, PointsRefunded
from carbon_points.domain.fund import MerchantPaid
from carbon_points.domain.merchant import (
    MerchantRegistered,
    PriceChanged,
    SettlementClosed,
    SettlementFacts,
    TerminalEnrolled,
)
from carbon_points.projections.rows import (
    Batch,
    Json,
    Made,
    Moment,
    Snapshot,
    added,
    fields,
    key,
    latest,
    metadata,
    once,
    paged,
    total,
)

MERCHANTS = Table(
    "merchants",
    metadata,
    key("merchant"),
    latest("name"),  # null: not registered, as far as was read
    latest("fen_per_point", BigInteger),
    latest("county"),
    latest("public", BigInteger),
    added("captures"),
    added("captured_points"),
    added("captured_fen"),
    added("refunds"),
    added("refunded_points"),
    added("refunded_fen"),
    added("settlements"),
    added("settled_points"),
    added("settled_fen"),
    added("paid_fen"),
)

TERMINALS = Table(
    "terminals",
    metadata,
    key("merchant"),
    key("terminal"),
    once("enrolled_at", Moment),
)

MOVEMENTS = Table(
    "movements",
    metadata,
    key("merchant"),
    key("partition", BigInteger),
    key("position", BigInteger),
    once("kind"),
    once("redemption_id"),
    once("points", BigInteger),
    once("amount_fen", BigInteger),
    once("recorded_at", Moment),
)

SETTLEMENTS = Table(
    "settlements",
    metadata,
    key("merchant"),
    key("settlement_id"),
    latest("partition", BigInteger),
    latest("position", BigInteger),
    latest("closed_at", Moment),
    latest("after", Json),
    latest("through", Json),
    latest("captures", BigInteger),
    latest("refunds", BigInteger),
    latest("points", BigInteger),
    latest("amount_fen", BigInteger),
    latest("paid_at", Moment),
    added("paid_fen"),
    Index("settlements_by_place", "partition", "position"),
)


class Merchant(Struct, frozen=True):
    """Totals are gross: captured less refunded is what it accepted, settled less paid what it is owed."""

    merchant: str
    name: str
    fen_per_point: int
    county: str | None
    public: bool
    captures: int
    captured_points: int
    captured_fen: int
    refunds: int
    refunded_points: int
    refunded_fen: int
    settlements: int
    settled_points: int
    settled_fen: int
    paid_fen: int
    terminals: tuple[str, ...] = ()


class Movement(Struct, frozen=True):
    """`position` is its place in the log and its cursor: "partition:position". A refund's figures are positive too."""

    position: str
    kind: Literal["capture", "refund"]
    redemption_id: str
    points: int
    amount_fen: int
    recorded_at: datetime


class Settlement(Struct, frozen=True):
    """Captures less refunds at positions in (`after`, `through`] of each partition."""

    position: str
    merchant: str
    settlement_id: str
    closed_at: datetime
    after: dict[str, int]
    through: dict[str, int]
    captures: int
    refunds: int
    points: int
    amount_fen: int
    paid: bool
    paid_at: datetime | None


# -- folding ---------------------------------------------------------------------------------------------------------


def fold(batch: Batch, made: Made) -> None:
    for feature in (_merchants, _terminals, _movements, _settlements):
        feature(batch, made)


def _merchants(batch: Batch, made: Made) -> None:
    rows = made[MERCHANTS]
    for _, e in batch.of(MerchantRegistered):
        rows.put(merchant=e.merchant, name=e.name, fen_per_point=e.fen_per_point, county=e.county, public=int(e.public))
    for _, e in batch.of(PriceChanged):
        rows.put(merchant=e.merchant, fen_per_point=e.fen_per_point)
    for _, e in batch.of(PointsCaptured):
        rows.put(merchant=e.merchant, captures=1, captured_points=e.points, captured_fen=e.amount_fen)
    for _, e in batch.of(PointsRefunded):
        rows.put(merchant=e.merchant, refunds=1, refunded_points=e.points, refunded_fen=e.amount_fen)
    for _, e in batch.of(SettlementClosed):
        rows.put(merchant=e.merchant, settlements=1, settled_points=e.points, settled_fen=e.amount_fen)
    for _, e in batch.of(MerchantPaid):
        rows.put(merchant=e.merchant, paid_fen=e.amount_fen)


def _terminals(batch: Batch, made: Made) -> None:
    rows = made[TERMINALS]
    for _, e in batch.of(TerminalEnrolled):
        rows.put(merchant=e.merchant, terminal=e.terminal, enrolled_at=e.recorded_at)


def _movements(batch: Batch, made: Made) -> None:
    rows = made[MOVEMENTS]
    for kind, type_ in (("capture", PointsCaptured), ("refund", PointsRefunded)):
        for position, e in batch.of(type_):
            rows.put(
                merchant=e.merchant,
                partition=batch.partition,
                position=position,
                kind=kind,
                redemption_id=e.redemption_id,
                points=e.points,
                amount_fen=e.amount_fen,
                recorded_at=e.recorded_at,
            )


def _settlements(batch: Batch, made: Made) -> None:
    rows = made[SETTLEMENTS]
    for position, e in batch.of(SettlementClosed):
        rows.put(
            merchant=e.merchant,
            settlement_id=e.settlement_id,
            partition=batch.partition,
            position=position,
            closed_at=e.recorded_at,
            after=e.after,
            through=e.through,
            captures=e.captures,
            refunds=e.refunds,
            points=e.points,
            amount_fen=e.amount_fen,
        )
    for _, e in batch.of(MerchantPaid):
        rows.put(merchant=e.merchant, settlement_id=e.settlement_id, paid_at=e.recorded_at, paid_fen=e.amount_fen)


# -- merchants -------------------------------------------------------------------------------------------------------


def merchants(at: Snapshot, *, after: str | None = None, limit: int = 50) -> list[Merchant]:
    """Merchants in the order of their ids, from after one of them."""
    query = _MERCHANTS if after is None else _MERCHANTS.where(MERCHANTS.c.merchant > after)
    return _with_terminals(at, at.structs(Merchant, query.order_by(MERCHANTS.c.merchant).limit(limit)))


def merchant(at: Snapshot, merchant_id: str) -> Merchant | None:
    found = at.structs(Merchant, _MERCHANTS.where(MERCHANTS.c.merchant == merchant_id))
    return next(iter(_with_terminals(at, found)), None)


_MERCHANTS = select(*fields(MERCHANTS, Merchant, public=MERCHANTS.c.public == 1, terminals=null())).where(
    MERCHANTS.c.name.is_not(None)
)


def _with_terminals(at: Snapshot, found: Sequence[Merchant]) -> list[Merchant]:
    query = select(TERMINALS.c.merchant, TERMINALS.c.terminal).where(
        TERMINALS.c.merchant.in_([m.merchant for m in found])
    )
    names: dict[str, list[str]] = {}
    for owner, terminal in at.rows(query.order_by(TERMINALS.c.merchant, TERMINALS.c.terminal)):
        names.setdefault(owner, []).append(terminal)
    return [structs.replace(m, terminals=tuple(names.get(m.merchant, ()))) for m in found]


# -- settlements -----------------------------------------------------------------------------------------------------


def settlement_facts(at: Snapshot, merchant_id: str, after: Mapping[str, int]) -> SettlementFacts:
    """What the merchant is owed from after these positions (0 where there is none) up to those of the snapshot."""
    since = or_(
        false(),
        *(
            and_(MOVEMENTS.c.partition == partition, MOVEMENTS.c.position > after.get(str(partition), 0))
            for partition in at.positions
        ),
    )
    refund = MOVEMENTS.c.kind == "refund"

    def net(column: ColumnElement[int]) -> ColumnElement[int]:
        return total(case((refund, -column), else_=column))

    captures, refunds, points, amount_fen = at.one(
        select(
            total(case((refund, 0), else_=1)),
            total(case((refund, 1), else_=0)),
            net(MOVEMENTS.c.points),
            net(MOVEMENTS.c.amount_fen),
        ).where(MOVEMENTS.c.merchant == merchant_id, since)
    )
    return SettlementFacts(dict(after), at.vector, captures, refunds, points, amount_fen)


def settlements(
    at: Snapshot,
    *,
    merchant_id: str | None = None,
    paid: bool | None = None,
    after: str | None = None,
    limit: int = 50,
) -> list[Settlement]:
    """Settlements in the order of their places: of one merchant or all, paid, unpaid or both."""
    query = _SETTLEMENTS
    if merchant_id is not None:
        query = query.where(SETTLEMENTS.c.merchant == merchant_id)
    if paid is not None:
        query = query.where(SETTLEMENTS.c.paid_at.is_not(None) if paid else SETTLEMENTS.c.paid_at.is_(None))
    return at.placed(Settlement, paged(query, SETTLEMENTS, after, limit))


def settlement(at: Snapshot, merchant_id: str, settlement_id: str) -> Settlement | None:
    query = _SETTLEMENTS.where(SETTLEMENTS.c.merchant == merchant_id, SETTLEMENTS.c.settlement_id == settlement_id)
    return next(iter(at.placed(Settlement, query)), None)


def settlement_rows(at: Snapshot, settled: Settlement, *, after: str | None = None, limit: int = 50) -> list[Movement]:
    """The captures and refunds that a settlement covers, in the order of their places."""
    inside = or_(
        false(),
        *(
            and_(
                MOVEMENTS.c.partition == int(partition),
                MOVEMENTS.c.position > settled.after.get(partition, 0),
                MOVEMENTS.c.position <= last,
            )
            for partition, last in settled.through.items()
        ),
    )
    return movements(at, settled.merchant, after=after, limit=limit, inside=inside)


def movements(
    at: Snapshot,
    merchant_id: str,
    *,
    after: str | None = None,
    limit: int = 50,
    inside: ColumnElement[bool] | None = None,
) -> list[Movement]:
    """A merchant's captures and refunds in the order of their places."""
    query = select(MOVEMENTS.c.partition, *fields(MOVEMENTS, Movement)).where(MOVEMENTS.c.merchant == merchant_id)
    return at.placed(Movement, paged(query if inside is None else query.where(inside), MOVEMENTS, after, limit))


_SETTLEMENTS = select(
    SETTLEMENTS.c.partition, *fields(SETTLEMENTS, Settlement, paid=SETTLEMENTS.c.paid_at.is_not(None))
).where(SETTLEMENTS.c.closed_at.is_not(None))
