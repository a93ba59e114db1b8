"""Offers: what can be had for points, at which merchant, and how many are left.

All of it lies in the merchant's stream. How an offer stands this very moment is read from the log; this is for lists.
"""

from datetime import datetime

from msgspec import Struct
from sqlalchemy import BigInteger, ColumnElement, Index, Table, and_, case, func, literal, null, or_, select

from carbon_points.domain.offer import CampaignChanged, CampaignOpened, OfferChanged, OfferPublished
from carbon_points.domain.order import OrderMoved, OrderPlaced
from carbon_points.projections.merchants import MERCHANTS
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

# What an offer does not say: a term that is told again must not stand for "as before".
_NO_LIMIT = 0
_ALWAYS, _FOR_EVER = datetime.fromisoformat("1900-01-01T00:00:00Z"), datetime.fromisoformat("2900-01-01T00:00:00Z")

OFFERS = Table(
    "offers",
    metadata,
    key("merchant"),
    key("offer"),
    latest("partition", BigInteger),
    latest("position", BigInteger),
    latest("title"),
    latest("points", BigInteger),
    latest("amount_fen", BigInteger),
    latest("counted", BigInteger),  # 0: there is always another
    latest("per_resident", BigInteger),
    latest("per_resident_day", BigInteger),
    latest("per_day", BigInteger),
    latest("opens_at", Moment),
    latest("closes_at", Moment),
    latest("withdrawn", BigInteger),
    latest("campaign"),
    added("stock"),
    added("sold"),
    Index("offers_by_place", "partition", "position"),
)

CAMPAIGNS = Table(
    "campaigns",
    metadata,
    key("merchant"),
    key("campaign"),
    latest("closed", BigInteger),
)


class Offer(Struct, frozen=True):
    """`stock`: what is left (null: no end); `sold`: without what came back. `open`: it can be had now, as far as its
    own terms, its campaign being open, and the stock say."""

    position: str
    merchant: str
    merchant_name: str
    public: bool
    offer: str
    title: str
    points: int
    amount_fen: int
    stock: int | None
    sold: int
    per_resident: int | None
    per_resident_day: int | None
    per_day: int | None
    opens_at: datetime | None
    closes_at: datetime | None
    campaign: str | None
    withdrawn: bool
    open: bool


def fold(batch: Batch, made: Made) -> None:
    _catalogue(batch, made)
    rows = made[OFFERS]
    for _, e in batch.of(OrderPlaced):
        if e.offer is not None:
            rows.put(merchant=e.merchant, offer=e.offer, stock=-e.items)
    for _, e in batch.of(OrderMoved):
        if e.offer is not None:
            back = e.returned if e.kind in ("refund", "reversal") else 0
            rows.put(merchant=e.merchant, offer=e.offer, stock=e.returned, sold=e.items - back)


def _catalogue(batch: Batch, made: Made) -> None:
    rows, campaigns = made[OFFERS], made[CAMPAIGNS]
    for position, e in batch.of(OfferPublished):
        rows.put(
            merchant=e.merchant,
            offer=e.offer,
            partition=batch.partition,
            position=position,
            counted=int(e.stock is not None),
            campaign=e.campaign,
            withdrawn=0,
            stock=e.stock or 0,
            **_terms(e),
        )
    for _, e in batch.of(OfferChanged):
        rows.put(merchant=e.merchant, offer=e.offer, withdrawn=int(e.withdrawn), stock=e.restock, **_terms(e))
    for _, e in batch.of(CampaignOpened):
        campaigns.put(merchant=e.merchant, campaign=e.campaign, closed=0)
    for _, e in batch.of(CampaignChanged):
        campaigns.put(merchant=e.merchant, campaign=e.campaign, closed=int(e.closed))


def _terms(event: OfferPublished | OfferChanged) -> dict[str, object]:
    return {
        "title": event.title,
        "points": event.points,
        "amount_fen": event.amount_fen,
        "per_resident": event.per_resident or _NO_LIMIT,
        "per_resident_day": event.per_resident_day or _NO_LIMIT,
        "per_day": event.per_day or _NO_LIMIT,
        "opens_at": event.opens_at or _ALWAYS,
        "closes_at": event.closes_at or _FOR_EVER,
    }


# -- reading ---------------------------------------------------------------------------------------------------------


def offers(
    at: Snapshot,
    *,
    now: datetime,
    merchant: str | None = None,
    public: bool | None = None,
    open_now: bool | None = None,
    after: str | None = None,
    limit: int = 50,
) -> list[Offer]:
    """Offers in the order in which they were published: of one merchant or all, of public bodies, that can be had."""
    is_open = _open(now)
    told = {
        "merchant_name": MERCHANTS.c.name,
        "public": MERCHANTS.c.public == 1,
        "stock": case((OFFERS.c.counted == 1, OFFERS.c.stock), else_=null()),
        "opens_at": _unless(OFFERS.c.opens_at, _ALWAYS),
        "closes_at": _unless(OFFERS.c.closes_at, _FOR_EVER),
        "withdrawn": OFFERS.c.withdrawn == 1,
        "open": is_open,
    } | {name: _unless(OFFERS.c[name], _NO_LIMIT) for name in ("per_resident", "per_resident_day", "per_day")}
    query = (
        select(OFFERS.c.partition, *fields(OFFERS, Offer, **told))
        .join_from(OFFERS, MERCHANTS, MERCHANTS.c.merchant == OFFERS.c.merchant)
        .outerjoin(
            CAMPAIGNS, and_(CAMPAIGNS.c.merchant == OFFERS.c.merchant, CAMPAIGNS.c.campaign == OFFERS.c.campaign)
        )
    )
    if merchant is not None:
        query = query.where(OFFERS.c.merchant == merchant)
    if public is not None:
        query = query.where(MERCHANTS.c.public == int(public))
    if open_now is not None:
        query = query.where(is_open if open_now else ~is_open)
    return at.placed(Offer, paged(query, OFFERS, after, limit))


def _open(now: datetime) -> ColumnElement[bool]:
    return and_(
        OFFERS.c.withdrawn == 0,
        OFFERS.c.opens_at <= now,
        OFFERS.c.closes_at > now,
        or_(OFFERS.c.counted == 0, OFFERS.c.stock > 0),
        or_(OFFERS.c.campaign.is_(None), CAMPAIGNS.c.closed == 0),
    )


def _unless(column: ColumnElement[object], nothing: object) -> ColumnElement[object]:
    return func.nullif(column, literal(nothing, column.type), type_=column.type)
