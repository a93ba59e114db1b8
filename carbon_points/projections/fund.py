"""The fund: money in from buyers and sponsors, out to merchants, and what of either is still to come."""

from datetime import datetime
from typing import Literal

from msgspec import Struct
from sqlalchemy import BigInteger, Table, func, select

from carbon_points.domain.fund import MerchantPaid, MoneyReceived
from carbon_points.projections import lots, merchants
from carbon_points.projections.rows import (
    Batch,
    Made,
    Moment,
    Snapshot,
    added,
    fields,
    key,
    metadata,
    once,
    paged,
    place,
    total,
)

RECEIPTS = Table(
    "receipts",
    metadata,
    *place(),
    once("receipt_id"),
    once("origin"),
    once("payer"),
    once("amount_fen", BigInteger),
    once("sale_id", nullable=True),
    once("recorded_at", Moment),
)

PAYMENTS = Table(
    "payments",
    metadata,
    *place(),
    once("merchant"),
    once("settlement_id"),
    once("amount_fen", BigInteger),
    once("recorded_at", Moment),
)

FUND = Table(
    "fund",
    metadata,
    key("flow"),  # sale, sponsor, merchant
    added("movements"),
    added("amount_fen"),
)


class Receipt(Struct, frozen=True):
    position: str
    receipt_id: str
    origin: Literal["sale", "sponsor"]
    payer: str
    amount_fen: int
    sale_id: str | None
    recorded_at: datetime


class Payment(Struct, frozen=True):
    position: str
    merchant: str
    settlement_id: str
    amount_fen: int
    recorded_at: datetime


class Fund(Struct, frozen=True):
    """`owed_fen` is what the `queued` settlements wait for, `short_fen` what the fund has too little for them all,
    `due_fen` what sold units have not brought in yet."""

    balance_fen: int
    in_fen: int
    from_sales_fen: int
    from_sponsors_fen: int
    out_fen: int
    owed_fen: int
    queued: int
    short_fen: int
    due_fen: int


def fold(batch: Batch, made: Made) -> None:
    for position, received in batch.of(MoneyReceived):
        made[RECEIPTS].put(
            partition=batch.partition,
            position=position,
            receipt_id=received.receipt_id,
            origin=received.origin,
            payer=received.payer,
            amount_fen=received.amount_fen,
            sale_id=received.sale_id,
            recorded_at=received.recorded_at,
        )
        made[FUND].put(flow=received.origin, movements=1, amount_fen=received.amount_fen)
    for position, paid in batch.of(MerchantPaid):
        made[PAYMENTS].put(
            partition=batch.partition,
            position=position,
            merchant=paid.merchant,
            settlement_id=paid.settlement_id,
            amount_fen=paid.amount_fen,
            recorded_at=paid.recorded_at,
        )
        made[FUND].put(flow="merchant", movements=1, amount_fen=paid.amount_fen)


# -- reading ---------------------------------------------------------------------------------------------------------


def fund(at: Snapshot) -> Fund:
    flows = dict[str, int](map(tuple, at.rows(select(FUND.c.flow, FUND.c.amount_fen))))
    sales, sponsors, out = (flows.get(flow, 0) for flow in ("sale", "sponsor", "merchant"))
    (settled,) = at.one(select(total(merchants.MERCHANTS.c.settled_fen)))
    (queued,) = at.one(select(func.count()).select_from(merchants.SETTLEMENTS).where(merchants.UNPAID))
    (sold,) = at.one(select(total(lots.SALES.c.price_fen)))
    return Fund(
        balance_fen=sales + sponsors - out,
        in_fen=sales + sponsors,
        from_sales_fen=sales,
        from_sponsors_fen=sponsors,
        out_fen=out,
        owed_fen=settled - out,
        queued=queued,
        short_fen=max(settled - sales - sponsors, 0),
        due_fen=sold - sales,
    )


def receipts(at: Snapshot, *, after: str | None = None, limit: int = 50) -> list[Receipt]:
    return at.placed(Receipt, paged(select(RECEIPTS.c.partition, *fields(RECEIPTS, Receipt)), RECEIPTS, after, limit))


def payments(at: Snapshot, *, after: str | None = None, limit: int = 50) -> list[Payment]:
    return at.placed(Payment, paged(select(PAYMENTS.c.partition, *fields(PAYMENTS, Payment)), PAYMENTS, after, limit))


def sales_without_receipt(at: Snapshot, *, after: str | None = None, limit: int = 50) -> list[lots.Sale]:
    """Sales whose price has not come in, or not all of it."""
    return lots.sales(at, received=False, after=after, limit=limit)
