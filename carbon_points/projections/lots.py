"""Lots: what may still be pooled, pools and what they gathered, issued units and who holds them, and their last use.

Gatherings lie in the residents' partitions, a pool and all its lots in its own, receipts in the fund's. Blocks of units
are moved by the domain's own `evolve`, on lots made from the stored blocks: one arithmetic, lowest numbers first.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from msgspec import Struct, structs
from sqlalchemy import BigInteger, Connection, Index, Table, delete, func, select, tuple_

from carbon_points.domain import lot as domain
from carbon_points.domain.account import ActionReversed, ReductionsPooled
from carbon_points.domain.fund import MoneyReceived
from carbon_points.domain.lot import (
    GatheringFacts,
    GatheringSealed,
    LotIssued,
    PoolOpened,
    PoolVerified,
    Purpose,
    UnitsRetired,
    UnitsSold,
)
from carbon_points.domain.quantity import MG_PER_KG, month_of
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
    place,
    total,
)

BlockState = Literal["for_sale", "sold", "retired"]

UNPOOLED = Table(
    "unpooled",
    metadata,
    key("methodology"),
    key("version"),
    key("resident"),
    key("month"),
    added("mg"),
    sqlite_with_rowid=False,
)

POOLED = Table(
    "pooled",
    metadata,
    key("pool_id"),
    key("resident"),
    added("mg"),
    sqlite_with_rowid=False,
)

POOLS = Table(
    "pools",
    metadata,
    key("pool_id"),
    latest("partition", BigInteger),
    latest("position", BigInteger),
    latest("opened_at", Moment),  # null: not opened, as far as was read
    latest("methodology"),
    latest("version"),
    latest("from_month"),
    latest("until_month"),
    latest("region"),
    latest("scheme"),
    latest("sealed", BigInteger),
    latest("sealed_mg", BigInteger),
    added("pooled_mg"),
    added("verified_mg"),
    added("issued_mg"),
    Index("pools_by_place", "partition", "position"),
)

VERIFICATIONS = Table(
    "verifications",
    metadata,
    *place(),
    once("pool_id"),
    once("verification_id"),
    once("verifier"),
    once("report"),
    once("verified_mg", BigInteger),
    once("recorded_at", Moment),
    Index("verifications_by_pool", "pool_id"),
)

LOTS = Table(
    "lots",
    metadata,
    key("lot_id"),
    key("pool_id"),
    latest("partition", BigInteger),
    latest("position", BigInteger),
    latest("issued_at", Moment),
    latest("number", BigInteger),
    latest("serial"),
    latest("kg", BigInteger),
    added("sold_kg"),
    added("retired_kg"),
    Index("lots_by_place", "partition", "position"),
)

BLOCKS = Table(
    "blocks",
    metadata,
    key("lot_id"),
    key("pool_id"),
    key("state"),
    key("holder"),  # "" is the registry's own, and of what is retired
    key("first", BigInteger),
    once("last", BigInteger),
    Index("blocks_by_holder", "holder"),
)

SALES = Table(
    "sales",
    metadata,
    *place(),
    once("pool_id"),
    once("lot_id"),
    once("sale_id"),
    once("buyer"),
    once("kg", BigInteger),
    once("price_fen", BigInteger),
    once("serials", Json),
    once("sold_at", Moment),
    Index("sales_by_lot", "lot_id"),
    Index("sales_by_id", "sale_id"),
)

RECEIVED = Table(
    "received",
    metadata,
    key("sale_id"),
    added("amount_fen"),
)

RETIREMENTS = Table(
    "retirements",
    metadata,
    *place(),
    once("certificate"),
    once("pool_id"),
    once("lot_id"),
    once("retirement_id"),
    once("holder"),
    once("beneficiary"),
    once("purpose"),
    once("reason"),
    once("kg", BigInteger),
    once("serials", Json),
    once("retired_at", Moment),
    Index("retirements_by_certificate", "certificate"),
    Index("retirements_by_lot", "lot_id"),
)


class Pool(Struct, frozen=True):
    """`pooled_mg` is all that was gathered so far; `sealed_mg` of it may be verified, after `sealed` gatherings."""

    position: str
    pool_id: str
    opened_at: datetime
    methodology: str
    version: str
    from_month: str
    until_month: str
    region: str
    scheme: str
    sealed: int
    sealed_mg: int
    pooled_mg: int
    verified_mg: int
    issued_mg: int


class Verification(Struct, frozen=True):
    verification_id: str
    verifier: str
    report: str
    verified_mg: int
    recorded_at: datetime


class Lot(Struct, frozen=True):
    position: str
    pool_id: str
    lot_id: str
    issued_at: datetime
    number: int
    serial: str
    kg: int
    sold_kg: int
    retired_kg: int
    for_sale_kg: int


class Block(Struct, frozen=True):
    """Units `first` to `last` of a lot, both included. `holder` is "" for what is for sale, and for what is retired."""

    pool_id: str
    lot_id: str
    state: BlockState
    holder: str
    first: int
    last: int


class Sale(Struct, frozen=True):
    """`received_fen` is what came in for this sale so far."""

    position: str
    pool_id: str
    lot_id: str
    sale_id: str
    buyer: str
    kg: int
    price_fen: int
    received_fen: int
    serials: list[str]
    sold_at: datetime


class Certificate(Struct, frozen=True):
    """One retirement, with all that its reader needs to know of the units."""

    position: str
    certificate: str
    pool_id: str
    lot_id: str
    retirement_id: str
    holder: str
    beneficiary: str
    purpose: Purpose
    reason: str
    kg: int
    serials: list[str]
    retired_at: datetime
    methodology: str
    version: str
    from_month: str
    until_month: str
    region: str
    scheme: str


# -- folding ---------------------------------------------------------------------------------------------------------


def fold(batch: Batch, made: Made) -> None:
    for feature in (_unpooled, _pooled, _pools, _verifications, _lots, _sales, _received, _retirements):
        feature(batch, made)
    if any(batch.of(kind) for kind in (LotIssued, UnitsSold, UnitsRetired)):
        made.units += [e for _, e in batch.events if isinstance(e, LotIssued | UnitsSold | UnitsRetired)]


def _unpooled(batch: Batch, made: Made) -> None:
    """Milligrams by month that no pool took. What paid a debt was never there to be taken."""
    rows = made[UNPOOLED]
    for (day, methodology, _), events in batch.city.items():
        month = month_of(day)
        rows.add(((methodology, e.version, e.resident, month), (e.reduction_mg - e.debt_mg,)) for e in events)
    rows.add(
        ((e.methodology, e.version, e.resident, month_of(e.day)), (e.debt_mg - e.reduction_mg,))
        for _, e in batch.of(ActionReversed)
    )
    for _, e in batch.of(ReductionsPooled):
        rows.add(((e.methodology, e.version, e.resident, month), (-mg,)) for month, mg in e.taken)


def _pooled(batch: Batch, made: Made) -> None:
    rows = made[POOLED]
    for _, e in batch.of(ReductionsPooled):
        rows.put(pool_id=e.pool_id, resident=e.resident, mg=e.reduction_mg)


def _pools(batch: Batch, made: Made) -> None:
    rows = made[POOLS]
    for position, e in batch.of(PoolOpened):
        rows.put(
            pool_id=e.pool_id,
            partition=batch.partition,
            position=position,
            opened_at=e.recorded_at,
            methodology=e.methodology,
            version=e.version,
            from_month=e.from_month,
            until_month=e.until_month,
            region=e.region,
            scheme=e.scheme,
        )
    for _, e in batch.of(ReductionsPooled):
        rows.put(pool_id=e.pool_id, pooled_mg=e.reduction_mg)
    for _, e in batch.of(GatheringSealed):
        rows.put(pool_id=e.pool_id, sealed=e.gathering, sealed_mg=e.gathered_mg)
    for _, e in batch.of(PoolVerified):
        rows.put(pool_id=e.pool_id, verified_mg=e.verified_mg)
    for _, e in batch.of(LotIssued):
        rows.put(pool_id=e.pool_id, issued_mg=e.kg * MG_PER_KG)


def _verifications(batch: Batch, made: Made) -> None:
    rows = made[VERIFICATIONS]
    for position, e in batch.of(PoolVerified):
        rows.put(
            partition=batch.partition,
            position=position,
            pool_id=e.pool_id,
            verification_id=e.verification_id,
            verifier=e.verifier,
            report=e.report,
            verified_mg=e.verified_mg,
            recorded_at=e.recorded_at,
        )


def _lots(batch: Batch, made: Made) -> None:
    rows = made[LOTS]
    for position, e in batch.of(LotIssued):
        rows.put(
            pool_id=e.pool_id,
            lot_id=e.lot_id,
            partition=batch.partition,
            position=position,
            issued_at=e.recorded_at,
            number=e.number,
            serial=e.serial,
            kg=e.kg,
        )
    for _, e in batch.of(UnitsSold):
        rows.put(pool_id=e.pool_id, lot_id=e.lot_id, sold_kg=e.kg)
    for _, e in batch.of(UnitsRetired):
        rows.put(pool_id=e.pool_id, lot_id=e.lot_id, retired_kg=e.kg)


def _sales(batch: Batch, made: Made) -> None:
    rows = made[SALES]
    for position, e in batch.of(UnitsSold):
        rows.put(
            partition=batch.partition,
            position=position,
            pool_id=e.pool_id,
            lot_id=e.lot_id,
            sale_id=e.sale_id,
            buyer=e.buyer,
            kg=e.kg,
            price_fen=e.price_fen,
            serials=e.serials,
            sold_at=e.recorded_at,
        )


def _received(batch: Batch, made: Made) -> None:
    rows = made[RECEIVED]
    for _, e in batch.of(MoneyReceived):
        if e.sale_id is not None:
            rows.put(sale_id=e.sale_id, amount_fen=e.amount_fen)


def _retirements(batch: Batch, made: Made) -> None:
    rows = made[RETIREMENTS]
    for position, e in batch.of(UnitsRetired):
        rows.put(
            partition=batch.partition,
            position=position,
            certificate=e.certificate,
            pool_id=e.pool_id,
            lot_id=e.lot_id,
            retirement_id=e.retirement_id,
            holder=e.holder,
            beneficiary=e.beneficiary,
            purpose=e.purpose,
            reason=e.reason,
            kg=e.kg,
            serials=e.serials,
            retired_at=e.recorded_at,
        )


# -- blocks of units -------------------------------------------------------------------------------------------------


def move_units(connection: Connection, made: Made) -> None:
    """Write the blocks of every lot whose units moved anew."""
    moves = [e for e in made.units if isinstance(e, LotIssued | UnitsSold | UnitsRetired)]
    if not moves:
        return
    made.units.clear()
    touched = tuple_(BLOCKS.c.pool_id, BLOCKS.c.lot_id).in_({(e.pool_id, e.lot_id) for e in moves})
    stored = connection.execute(select(*fields(BLOCKS, Block)).where(touched))
    after = moved([Block(*row) for row in stored], moves)
    connection.execute(delete(BLOCKS).where(touched))
    for block in after:
        made[BLOCKS].put(**structs.asdict(block))


def moved(stored: Sequence[Block], moves: Sequence[LotIssued | UnitsSold | UnitsRetired]) -> list[Block]:
    """The blocks of some lots after some of their events, from all blocks that they had before."""
    pools: dict[str, domain.Pool] = {}
    for block in stored:
        lots = pools.setdefault(block.pool_id, domain.Pool(block.pool_id)).lots
        lot = lots.setdefault(block.lot_id, domain.Lot(block.lot_id, 0, 0, {}))
        if block.state == "retired":
            lot.retired = (*lot.retired, (block.first, block.last))
        else:
            lot.held[block.holder] = (*lot.held.get(block.holder, ()), (block.first, block.last))
    for event in moves:
        domain.evolve(pools.setdefault(event.pool_id, domain.Pool(event.pool_id)), event)
    found: list[Block] = []
    for pool_id, pool in pools.items():
        for lot_id, lot in pool.lots.items():
            found += (Block(pool_id, lot_id, "retired", "", *block) for block in lot.retired)
            for holder, blocks in lot.held.items():
                state = "sold" if holder else "for_sale"
                found += (Block(pool_id, lot_id, state, holder, *block) for block in blocks)
    return found


# -- pools -----------------------------------------------------------------------------------------------------------


def residents_to_pool(
    at: Snapshot,
    methodology: str,
    version: str,
    from_month: str,
    until_month: str,
    *,
    after: str | None = None,
    limit: int = 500,
) -> list[str]:
    """Who has reductions of these months, both included, that no pool took: in the order of their ids."""
    query = select(UNPOOLED.c.resident).where(
        UNPOOLED.c.methodology == methodology,
        UNPOOLED.c.version == version,
        UNPOOLED.c.month >= from_month,
        UNPOOLED.c.month <= until_month,
        UNPOOLED.c.mg > 0,
    )
    if after is not None:
        query = query.where(UNPOOLED.c.resident > after)
    grouped = query.group_by(UNPOOLED.c.resident).order_by(UNPOOLED.c.resident).limit(limit)
    return [resident for (resident,) in at.rows(grouped)]


def gathering_facts(at: Snapshot, pool_id: str) -> GatheringFacts:
    """What the log moved into a pool up to the snapshot."""
    query = select(func.count(), total(POOLED.c.mg)).where(POOLED.c.pool_id == pool_id)
    residents, gathered_mg = at.one(query)
    return GatheringFacts(at.vector, residents, gathered_mg)


def pools(at: Snapshot, *, after: str | None = None, limit: int = 50) -> list[Pool]:
    """Pools in the order of their places."""
    return at.placed(Pool, paged(_POOLS, POOLS, after, limit))


def pool(at: Snapshot, pool_id: str) -> Pool | None:
    return next(iter(at.placed(Pool, _POOLS.where(POOLS.c.pool_id == pool_id))), None)


def verifications(at: Snapshot, pool_id: str) -> list[Verification]:
    """What verifiers found of a pool, in order."""
    query = select(*fields(VERIFICATIONS, Verification))
    ordered = query.where(VERIFICATIONS.c.pool_id == pool_id).order_by(VERIFICATIONS.c.position)
    return at.structs(Verification, ordered)


_POOLS = select(
    POOLS.c.partition,
    *fields(POOLS, Pool, sealed=func.coalesce(POOLS.c.sealed, 0), sealed_mg=func.coalesce(POOLS.c.sealed_mg, 0)),
).where(POOLS.c.opened_at.is_not(None))

# -- lots, sales, retirements ----------------------------------------------------------------------------------------


def lots(at: Snapshot, *, pool_id: str | None = None, after: str | None = None, limit: int = 50) -> list[Lot]:
    """Lots in the order of their places: of one pool, or all."""
    query = _LOTS if pool_id is None else _LOTS.where(LOTS.c.pool_id == pool_id)
    return at.placed(Lot, paged(query, LOTS, after, limit))


def lot(at: Snapshot, lot_id: str, *, pool_id: str | None = None) -> Lot | None:
    """A lot. Its id is unique within a pool, and by chance beyond: name the pool if that is not enough."""
    query = _LOTS.where(LOTS.c.lot_id == lot_id)
    if pool_id is not None:
        query = query.where(LOTS.c.pool_id == pool_id)
    return next(iter(at.placed(Lot, paged(query, LOTS, None, 1))), None)


_LOTS = select(LOTS.c.partition, *fields(LOTS, Lot, for_sale_kg=LOTS.c.kg - LOTS.c.sold_kg))


def blocks(
    at: Snapshot, *, lot_id: str | None = None, holder: str | None = None, state: BlockState | None = None
) -> list[Block]:
    """Blocks of units by lot, state, holder and number; neighbours of one holder are one block."""
    query = select(*fields(BLOCKS, Block))
    for column, wanted in ((BLOCKS.c.lot_id, lot_id), (BLOCKS.c.holder, holder), (BLOCKS.c.state, state)):
        if wanted is not None:
            query = query.where(column == wanted)
    return at.structs(Block, query.order_by(*BLOCKS.primary_key))


def sales(
    at: Snapshot,
    *,
    lot_id: str | None = None,
    buyer: str | None = None,
    received: bool | None = None,
    after: str | None = None,
    limit: int = 50,
) -> list[Sale]:
    """Sales in the order of their places; `received` tells those that are paid in full from the others."""
    query = _SALES
    if lot_id is not None:
        query = query.where(SALES.c.lot_id == lot_id)
    if buyer is not None:
        query = query.where(SALES.c.buyer == buyer)
    if received is not None:
        query = query.where(SALES.c.price_fen <= _RECEIVED_FEN if received else SALES.c.price_fen > _RECEIVED_FEN)
    return at.placed(Sale, paged(query, SALES, after, limit))


_RECEIVED_FEN = func.coalesce(RECEIVED.c.amount_fen, 0)
_SALES = select(SALES.c.partition, *fields(SALES, Sale, received_fen=_RECEIVED_FEN)).join_from(
    SALES, RECEIVED, RECEIVED.c.sale_id == SALES.c.sale_id, isouter=True
)


def certificate(at: Snapshot, number: str) -> Certificate | None:
    """The retirement that a certificate number stands for."""
    query = _RETIREMENTS.where(RETIREMENTS.c.certificate == number)
    return next(iter(at.placed(Certificate, paged(query, RETIREMENTS, None, 1))), None)


def retirements(
    at: Snapshot,
    *,
    lot_id: str | None = None,
    holder: str | None = None,
    after: str | None = None,
    limit: int = 50,
) -> list[Certificate]:
    """Retirements in the order of their places."""
    query = _RETIREMENTS
    if lot_id is not None:
        query = query.where(RETIREMENTS.c.lot_id == lot_id)
    if holder is not None:
        query = query.where(RETIREMENTS.c.holder == holder)
    return at.placed(Certificate, paged(query, RETIREMENTS, after, limit))


_OF_POOL = ("methodology", "version", "from_month", "until_month", "region", "scheme")
_RETIREMENTS = select(
    RETIREMENTS.c.partition, *fields(RETIREMENTS, Certificate, **{name: POOLS.c[name] for name in _OF_POOL})
).join_from(RETIREMENTS, POOLS, POOLS.c.pool_id == RETIREMENTS.c.pool_id)
