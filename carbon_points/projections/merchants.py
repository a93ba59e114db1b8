"""Merchants: what they accepted and gave back, what was settled, and what was paid.

Captures and refunds lie in the residents' partitions, a merchant and its settlements in its own, payments in the
fund's: each adds its own columns to the rows, in whatever order the partitions are read.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Literal

from msgspec import Struct, structs
from sqlalchemy import BigInteger, ColumnElement, Index, Table, and_, false, literal_column, null, or_, select

from carbon_points.domain.account import PointsCaptured, PointsRefunded
from carbon_points.domain.fund import MerchantPaid
from carbon_points.domain.merchant import (
    MerchantRegistered,
    PriceChanged,
    SettlementClosed,
    TerminalEnrolled,
)
from carbon_points.domain.order import OrderPlaced, Tally, Totals
from carbon_points.projections.batches import MOVES
from carbon_points.projections.redemptions import REDEMPTIONS
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
)

AT_ONCE = 500  # redemptions of one query

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
    added("settled_movements"),
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
    once("refund_id", nullable=True),
    once("points", BigInteger),
    once("amount_fen", BigInteger),
    once("recorded_at", Moment),
)

# Orders that a terminal took without a network, and where they lie in their merchant's partition.
OFFLINE = Table(
    "taken_offline",
    metadata,
    key("merchant"),
    key("redemption_id"),
    once("partition", BigInteger),
    once("position", BigInteger),
    once("captured_offline_at", Moment),
)

_REFUND = MOVEMENTS.c.kind == literal_column("'refund'")
Index("movements_refund", MOVEMENTS.c.redemption_id, sqlite_where=_REFUND, postgresql_where=_REFUND)

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
    latest("day"),
    latest("paid_at", Moment),
    added("paid_fen"),
    Index("settlements_by_place", "partition", "position"),
)
UNPAID = and_(SETTLEMENTS.c.closed_at.is_not(None), SETTLEMENTS.c.paid_at.is_(None))
Index("settlements_unpaid", SETTLEMENTS.c.closed_at, sqlite_where=UNPAID, postgresql_where=UNPAID)


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


Kind = Literal["sale", "refund", "reversal"]


class Movement(Struct, frozen=True):
    """`position` is its place in the log and its cursor: "partition:position". A refund's figures are positive too."""

    position: str
    kind: Kind
    redemption_id: str
    points: int
    amount_fen: int
    recorded_at: datetime


class Row(Struct, frozen=True):
    """A movement as a settlement's files tell it. `batch`: of its terminal, where known. `captured_offline_at`: of a
    sale that its terminal took without a network, by that one's clock."""

    recorded_at: datetime
    partition: int
    position: int
    kind: Kind
    terminal: str
    batch: int | None
    redemption_id: str
    refund_id: str | None
    points: int
    amount_fen: int
    captured_offline_at: datetime | None = None


class Settlement(Struct, frozen=True):
    """Captures less refunds at positions in (`after`, `through`] of each partition. `day`: of those of a day."""

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
    day: str | None
    paid: bool
    paid_at: datetime | None


# -- folding ---------------------------------------------------------------------------------------------------------


def fold(batch: Batch, made: Made) -> None:
    for feature in (_merchants, _terminals, _movements, _offline, _settlements):
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
        rows.put(
            merchant=e.merchant,
            settlements=1,
            settled_movements=e.captures + e.refunds,
            settled_points=e.points,
            settled_fen=e.amount_fen,
        )
    for _, e in batch.of(MerchantPaid):
        rows.put(merchant=e.merchant, paid_fen=e.amount_fen)


def _terminals(batch: Batch, made: Made) -> None:
    rows = made[TERMINALS]
    for _, e in batch.of(TerminalEnrolled):
        rows.put(merchant=e.merchant, terminal=e.terminal, enrolled_at=e.recorded_at)


def _movements(batch: Batch, made: Made) -> None:
    rows = made[MOVEMENTS]
    moved: list[tuple[int, Kind, PointsCaptured | PointsRefunded]] = [
        *((position, "sale", e) for position, e in batch.of(PointsCaptured)),
        *((position, _given_back(e), e) for position, e in batch.of(PointsRefunded)),
    ]
    for position, kind, e in moved:
        rows.put(
            merchant=e.merchant,
            partition=batch.partition,
            position=position,
            kind=kind,
            redemption_id=e.redemption_id,
            refund_id=e.refund_id if isinstance(e, PointsRefunded) else None,
            points=e.points,
            amount_fen=e.amount_fen,
            recorded_at=e.recorded_at,
        )


def _offline(batch: Batch, made: Made) -> None:
    for position, e in batch.of(OrderPlaced):
        if e.captured_offline_at is not None:
            made[OFFLINE].put(
                merchant=e.merchant,
                redemption_id=e.redemption_id,
                partition=batch.partition,
                position=position,
                captured_offline_at=e.captured_offline_at,
            )


def _given_back(refunded: PointsRefunded) -> Kind:
    return "reversal" if refunded.reversal else "refund"


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
            day=e.day.isoformat() if e.day else None,
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


def with_something_to_settle(at: Snapshot) -> list[str]:
    """Merchants that have captures or refunds which no settlement covers."""
    moved = MERCHANTS.c.captures + MERCHANTS.c.refunds
    query = select(MERCHANTS.c.merchant).where(MERCHANTS.c.name.is_not(None), moved > MERCHANTS.c.settled_movements)
    return list(at.connection.scalars(query.order_by(MERCHANTS.c.merchant)))


def settled(at: Snapshot, merchant_id: str, after: Mapping[str, int], through: Mapping[str, int]) -> list[Row]:
    """The captures and refunds between two vectors of positions, as they were recorded.

    Each is of the batch that its order counted it in, if the merchant's partition says so as far as `through`; and was
    taken offline, if it says that.
    """
    known = and_(
        REDEMPTIONS.c.redemption_id == MOVEMENTS.c.redemption_id,
        REDEMPTIONS.c.partition == MOVEMENTS.c.partition,  # all of one redemption lies in its resident's partition
    )
    query = (
        select(
            *fields(MOVEMENTS, Row, terminal=REDEMPTIONS.c.terminal, batch=null(), captured_offline_at=null()),
        )
        .join_from(MOVEMENTS, REDEMPTIONS, known)
        .where(MOVEMENTS.c.merchant == merchant_id, _between(after, through))
        .order_by(MOVEMENTS.c.recorded_at, MOVEMENTS.c.partition, MOVEMENTS.c.position)
    )
    rows = at.structs(Row, query)
    batches = _batches(at, merchant_id, rows, through)
    taken = _taken_offline(at, merchant_id, rows, through)
    told = ((r, batches[r.partition, r.position], taken.get((r.redemption_id, r.kind))) for r in rows)
    return [structs.replace(r, batch=batch, captured_offline_at=offline) for r, batch, offline in told]


def _batches(
    at: Snapshot, merchant_id: str, rows: Sequence[Row], through: Mapping[str, int]
) -> dict[tuple[int, int], int | None]:
    """By place, the batch of each row: a refund's is that of the move by which as many were counted."""
    moves: dict[tuple[str, str], list[tuple[int, int]]] = {}
    refunds: dict[tuple[str, int], list[int]] = {}
    for some in _chunks({row.redemption_id for row in rows}):
        query = select(
            MOVES.c.redemption_id, MOVES.c.kind, MOVES.c.batch, MOVES.c.count, MOVES.c.partition, MOVES.c.position
        ).where(MOVES.c.merchant == merchant_id, MOVES.c.redemption_id.in_(some))
        for redemption, kind, batch, count, partition, position in at.rows(query.order_by(MOVES.c.position)):
            if position <= through.get(str(partition), 0):
                moves.setdefault((redemption, kind), []).append((batch, count))
    for some in _chunks({row.redemption_id for row in rows if row.kind == "refund"}):
        query = select(MOVEMENTS.c.redemption_id, MOVEMENTS.c.partition, MOVEMENTS.c.position).where(
            MOVEMENTS.c.merchant == merchant_id, MOVEMENTS.c.redemption_id.in_(some), _REFUND
        )
        for redemption, partition, position in at.rows(query.order_by(MOVEMENTS.c.position)):
            refunds.setdefault((redemption, partition), []).append(position)
    found: dict[tuple[int, int], int | None] = {}
    for r in rows:
        nth = refunds[r.redemption_id, r.partition].index(r.position) + 1 if r.kind == "refund" else 1
        found[r.partition, r.position] = _batch_of(moves.get((r.redemption_id, r.kind), []), nth)
    return found


def _taken_offline(
    at: Snapshot, merchant_id: str, rows: Sequence[Row], through: Mapping[str, int]
) -> dict[tuple[str, Kind], datetime]:
    """When sales were taken offline that were. A refund is not taken so."""
    found: dict[tuple[str, Kind], datetime] = {}
    for some in _chunks({row.redemption_id for row in rows if row.kind == "sale"}):
        query = select(OFFLINE).where(OFFLINE.c.merchant == merchant_id, OFFLINE.c.redemption_id.in_(some))
        for _, redemption, partition, position, captured_at in at.rows(query):
            if position <= through.get(str(partition), 0):
                found[redemption, "sale"] = captured_at
    return found


def _batch_of(moves: Sequence[tuple[int, int]], nth: int) -> int | None:
    counted = 0
    for batch, count in moves:
        counted += count
        if counted >= nth:
            return batch
    return None


def _chunks(redemptions: Iterable[str]) -> Iterator[list[str]]:
    left = sorted(redemptions)
    return (left[start : start + AT_ONCE] for start in range(0, len(left), AT_ONCE))


def totals_of(rows: Iterable[Row]) -> Totals:
    """Counts and sums of rows."""
    sums: dict[Kind, list[int]] = {"sale": [0, 0, 0], "refund": [0, 0, 0], "reversal": [0, 0, 0]}
    for row in rows:
        found = sums[row.kind]
        found[0] += 1
        found[1] += row.points
        found[2] += row.amount_fen
    return Totals(Tally(*sums["sale"]), Tally(*sums["refund"]), Tally(*sums["reversal"]))


def _between(after: Mapping[str, int], through: Mapping[str, int]) -> ColumnElement[bool]:
    return or_(
        false(),
        *(
            and_(
                MOVEMENTS.c.partition == int(partition),
                MOVEMENTS.c.position > after.get(partition, 0),
                MOVEMENTS.c.position <= last,
            )
            for partition, last in through.items()
        ),
    )


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


def unpaid(at: Snapshot, *, limit: int = 100) -> list[Settlement]:
    """Settlements that wait for money, in the order of closing: the one to be paid next comes first."""
    order = (SETTLEMENTS.c.closed_at, SETTLEMENTS.c.partition, SETTLEMENTS.c.position)
    return at.placed(Settlement, _SETTLEMENTS.where(UNPAID).order_by(*order).limit(limit))


def settlement_rows(at: Snapshot, closed: Settlement, *, after: str | None = None, limit: int = 50) -> list[Movement]:
    """The captures and refunds that a settlement covers, in the order of their places."""
    inside = _between(closed.after, closed.through)
    return movements(at, closed.merchant, after=after, limit=limit, inside=inside)


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
