"""Offers: what a merchant gives for points, how many there are, and who may have how many of it.

An offer has a price in points, a value in fen that the merchant is owed, a stock, limits, a time, and perhaps a
campaign whose budget it shares with others of the merchant. An order takes items of the stock when it is placed, and
gives them back when it comes to nothing. All of it lies in the merchant's stream.

Invariants: of each offer, stock + reserved + sold is what was ever put up; no limit and no budget is passed by an
order; what an order gives back is to the item, the point and the fen what it took.
"""

from collections.abc import Mapping
from datetime import date, datetime
from typing import Annotated, Any, ClassVar

from msgspec import UNSET, Meta, Struct, UnsetType, structs

from carbon_points.domain.event import Amount, Command, Event, Id, Text
from carbon_points.domain.quantity import civil_day, moment
from carbon_points.domain.refusal import Refusal
from carbon_points.domain.source import NothingToChange

ITEMS_MOST = 100  # of one order
ITEM_POINTS_MOST = 10**7  # so that an order stays within what one redemption may cost
ITEM_FEN_MOST = 10**7
COUNT_MOST = 10**9  # of a stock or a limit
BUDGET_MOST = 10**15
CAMPAIGNS_MOST = 100  # of one merchant at a time: they stand in the part of its state that each order writes

Price = Annotated[int, Meta(ge=1, le=ITEM_POINTS_MOST)]
Value = Annotated[int, Meta(ge=0, le=ITEM_FEN_MOST)]
Stock = Annotated[int, Meta(ge=0, le=COUNT_MOST)]
Restock = Annotated[int, Meta(ge=-COUNT_MOST, le=COUNT_MOST)]
Limit = Annotated[int, Meta(ge=1, le=COUNT_MOST)]

# -- commands --------------------------------------------------------------------------------------------------------


class PublishOffer(Command):
    """Put up an offer: `points` and `amount_fen` are of one item. `stock` None: there is always another.

    `per_resident`: items that one resident may ever have; `per_resident_day`: in a day; `per_day`: all residents
    together in a day. It can be had from `opens_at` until before `closes_at`.
    """

    merchant: Id
    offer: Id
    title: Text
    points: Price
    amount_fen: Value
    stock: Stock | None = None
    per_resident: Limit | None = None
    per_resident_day: Limit | None = None
    per_day: Limit | None = None
    opens_at: datetime | None = None
    closes_at: datetime | None = None
    campaign: Id | None = None

    def claim(self) -> tuple[str, ...]:
        return ("offer", self.merchant, self.offer)


class ChangeOffer(Command):
    """Change what is said, for orders from now on. `restock` adds items, or takes some of those that are left away."""

    merchant: Id
    offer: Id
    change_id: str
    title: Text | UnsetType = UNSET
    points: Price | UnsetType = UNSET
    amount_fen: Value | UnsetType = UNSET
    restock: Restock | UnsetType = UNSET
    per_resident: Limit | UnsetType | None = UNSET
    per_resident_day: Limit | UnsetType | None = UNSET
    per_day: Limit | UnsetType | None = UNSET
    opens_at: datetime | UnsetType | None = UNSET
    closes_at: datetime | UnsetType | None = UNSET
    withdrawn: bool | UnsetType = UNSET

    def claim(self) -> tuple[str, ...]:
        return ("offer-change", self.merchant, self.offer, self.change_id)

    def differs(self, event: Event) -> list[str]:
        return [field for field in super().differs(event) if getattr(self, field) is not UNSET]


class OpenCampaign(Command):
    """Set a budget that offers share: what all their orders together may cost. None: no bound in that."""

    merchant: Id
    campaign: Id
    title: Text
    budget_points: Amount | None = None
    budget_fen: Amount | None = None

    def claim(self) -> tuple[str, ...]:
        return ("campaign", self.merchant, self.campaign)


class ChangeCampaign(Command):
    """Change what is said. A campaign that is `closed` stays so, and its offers can no longer be had."""

    merchant: Id
    campaign: Id
    change_id: str
    title: Text | UnsetType = UNSET
    budget_points: Amount | UnsetType | None = UNSET
    budget_fen: Amount | UnsetType | None = UNSET
    closed: bool | UnsetType = UNSET

    def claim(self) -> tuple[str, ...]:
        return ("campaign-change", self.merchant, self.campaign, self.change_id)

    def differs(self, event: Event) -> list[str]:
        return [field for field in super().differs(event) if getattr(self, field) is not UNSET]


# -- events ----------------------------------------------------------------------------------------------------------


class OfferPublished(Event):
    type_name: ClassVar[str] = "offer-published/1"
    merchant: str
    offer: str
    title: str
    points: int
    amount_fen: int
    stock: int | None = None
    per_resident: int | None = None
    per_resident_day: int | None = None
    per_day: int | None = None
    opens_at: datetime | None = None
    closes_at: datetime | None = None
    campaign: str | None = None


class OfferChanged(Event):
    """All terms anew, and what the stock grew by."""

    type_name: ClassVar[str] = "offer-changed/1"
    merchant: str
    offer: str
    change_id: str
    title: str
    points: int
    amount_fen: int
    restock: int = 0
    per_resident: int | None = None
    per_resident_day: int | None = None
    per_day: int | None = None
    opens_at: datetime | None = None
    closes_at: datetime | None = None
    withdrawn: bool = False


class CampaignOpened(Event):
    type_name: ClassVar[str] = "campaign-opened/1"
    merchant: str
    campaign: str
    title: str
    budget_points: int | None = None
    budget_fen: int | None = None


class CampaignChanged(Event):
    """Title and budget anew."""

    type_name: ClassVar[str] = "campaign-changed/1"
    merchant: str
    campaign: str
    change_id: str
    title: str
    budget_points: int | None = None
    budget_fen: int | None = None
    closed: bool = False


# -- state -----------------------------------------------------------------------------------------------------------


class Offer(Struct, omit_defaults=True):
    """`stock`: what is left (None: no end). `day_items`: what orders of `day`, the last that had any, have taken."""

    id: str
    title: str
    points: int
    amount_fen: int
    stock: int | None = None
    reserved: int = 0
    sold: int = 0
    per_resident: int | None = None
    per_resident_day: int | None = None
    per_day: int | None = None
    opens_at: datetime | None = None
    closes_at: datetime | None = None
    campaign: str | None = None
    withdrawn: bool = False
    day: date | None = None
    day_items: int = 0

    def open(self, now: datetime) -> bool:
        """Whether it can be had at that instant, as far as its own terms say."""
        begun = self.opens_at is None or self.opens_at <= now
        return begun and not self.withdrawn and (self.closes_at is None or now < self.closes_at)


class Use(Struct, omit_defaults=True):
    """What one resident has of one offer: in all, and by the orders of `day`, the last that had any."""

    items: int = 0
    day: date | None = None
    day_items: int = 0


class Campaign(Struct, omit_defaults=True):
    """`spent_points` and `spent_fen` are what its orders cost, those that are only reserved too."""

    id: str
    title: str
    budget_points: int | None = None
    budget_fen: int | None = None
    spent_points: int = 0
    spent_fen: int = 0


class Taken(Struct, omit_defaults=True):
    """What one order has of an offer. `points` and `amount_fen` are of one item, on the `day` it counts for."""

    offer: str
    resident: str
    day: date
    points: int
    amount_fen: int
    campaign: str | None = None
    reserved: int = 0
    sold: int = 0


class Catalogue(Struct, frozen=True):
    """A merchant's offers, its campaigns that are not closed, and what residents have of offers, by `use_of`."""

    offers: dict[str, Offer] = {}
    campaigns: dict[str, Campaign] = {}
    uses: dict[str, Use] = {}


def use_of(offer: str, resident: str) -> str:
    return f"{offer} {resident}"


def parts_of(offer: str, resident: str) -> list[tuple[str, str]]:
    """The parts of a merchant's state that an order of an offer reads and changes, as (field, key)."""
    return [("offers", offer), ("uses", use_of(offer, resident))]


# -- refusals --------------------------------------------------------------------------------------------------------


class OfferInvalid(Refusal):
    code = "offer-invalid"
    title = "A number of the offer or campaign is out of its bounds"


class OfferSpanInvalid(Refusal):
    code = "offer-span-invalid"
    title = "An offer closes after it opens"


class CampaignUnknown(Refusal):
    code = "campaign-unknown"
    title = "The merchant has no such campaign, or closed it"


class CampaignsTooMany(Refusal):
    code = "campaigns-too-many"
    title = "The merchant has as many campaigns as can be open at a time"


class BudgetBelowSpent(Refusal):
    code = "budget-below-spent"
    title = "The campaign has spent more than that already"


class RestockExceedsStock(Refusal):
    code = "restock-exceeds-stock"
    title = "Fewer items are left than would be taken away, or there is no count of them"


class OfferUnknown(Refusal):
    code = "offer-unknown"
    title = "The merchant has no such offer"


class ItemsInvalid(Refusal):
    code = "items-invalid"
    title = "An order is for 1 to 100 items"


class OfferNotOpen(Refusal):
    code = "offer-not-open"
    title = "The offer cannot be had now"


class OfferSoldOut(Refusal):
    code = "offer-sold-out"
    title = "Fewer items are left"


class OfferLimitReached(Refusal):
    code = "offer-limit-reached"
    title = "The resident may not have more of this offer"


class OfferDayLimitReached(Refusal):
    code = "offer-day-limit-reached"
    title = "No more of this offer can be had today"


class CampaignSpent(Refusal):
    code = "campaign-spent"
    title = "The campaign's budget does not cover the order"


# -- the catalogue ---------------------------------------------------------------------------------------------------

_BOUNDS: Mapping[str, tuple[int, int]] = {
    "points": (1, ITEM_POINTS_MOST),
    "amount_fen": (0, ITEM_FEN_MOST),
    "stock": (0, COUNT_MOST),
    "restock": (-COUNT_MOST, COUNT_MOST),
    "per_resident": (1, COUNT_MOST),
    "per_resident_day": (1, COUNT_MOST),
    "per_day": (1, COUNT_MOST),
    "budget_points": (0, BUDGET_MOST),
    "budget_fen": (0, BUDGET_MOST),
}
_TERMS = (
    "title",
    "points",
    "amount_fen",
    "per_resident",
    "per_resident_day",
    "per_day",
    "opens_at",
    "closes_at",
    "withdrawn",
)


def decide(catalogue: Catalogue, command: Command, *, now: datetime) -> list[Event]:
    """Refusals: OfferInvalid first of all, then those of each decision."""
    for field, (least, most) in _BOUNDS.items():
        value = getattr(command, field, None)
        if isinstance(value, int) and not least <= value <= most:
            raise OfferInvalid(field=field, value=value, least=least, most=most)
    match command:
        case PublishOffer():
            return publish(catalogue, command, now=now)
        case ChangeOffer():
            return change(catalogue, command, now=now)
        case OpenCampaign():
            return open_campaign(catalogue, command, now=now)
        case ChangeCampaign():
            return change_campaign(catalogue, command, now=now)
        case _:
            raise AssertionError(f"no decision for {type(command).__name__}")


def publish(catalogue: Catalogue, command: PublishOffer, *, now: datetime) -> list[Event]:
    """Refusals, in order: TimeWithoutOffset, TimeInvalid, OfferSpanInvalid, CampaignUnknown."""
    opens_at, closes_at = _span(command.opens_at, command.closes_at)
    if command.campaign is not None and command.campaign not in catalogue.campaigns:
        raise CampaignUnknown(campaign=command.campaign)
    said: dict[str, Any] = structs.asdict(command) | {"opens_at": opens_at, "closes_at": closes_at}
    return [OfferPublished(recorded_at=now, **said)]


def change(catalogue: Catalogue, command: ChangeOffer, *, now: datetime) -> list[Event]:
    """Refusals, in order: OfferUnknown, TimeWithoutOffset, TimeInvalid, OfferSpanInvalid, RestockExceedsStock,
    OfferInvalid (the stock that it would come to), NothingToChange."""
    offer = catalogue.offers.get(command.offer)
    if offer is None:
        raise OfferUnknown(offer=command.offer)
    terms: dict[str, Any] = {field: _said(command, field, offer) for field in _TERMS}
    terms["opens_at"], terms["closes_at"] = _span(terms["opens_at"], terms["closes_at"])
    restock = 0 if command.restock is UNSET else command.restock
    if restock and (offer.stock is None or offer.stock + restock < 0):
        raise RestockExceedsStock(stock=offer.stock, restock=restock)
    if offer.stock is not None and offer.stock + offer.reserved + offer.sold + restock > COUNT_MOST:
        raise OfferInvalid(field="restock", value=restock, most=COUNT_MOST - offer.stock - offer.reserved - offer.sold)
    if not restock and all(getattr(offer, field) == value for field, value in terms.items()):
        raise NothingToChange(offer=offer.id)
    return [
        OfferChanged(
            recorded_at=now,
            merchant=command.merchant,
            offer=offer.id,
            change_id=command.change_id,
            restock=restock,
            **terms,
        )
    ]


def open_campaign(catalogue: Catalogue, command: OpenCampaign, *, now: datetime) -> list[Event]:
    """Refusals: CampaignsTooMany."""
    if len(catalogue.campaigns) >= CAMPAIGNS_MOST:
        raise CampaignsTooMany(most=CAMPAIGNS_MOST)
    return [CampaignOpened(recorded_at=now, **structs.asdict(command))]


def change_campaign(catalogue: Catalogue, command: ChangeCampaign, *, now: datetime) -> list[Event]:
    """Refusals, in order: CampaignUnknown, BudgetBelowSpent, NothingToChange."""
    campaign = catalogue.campaigns.get(command.campaign)
    if campaign is None:
        raise CampaignUnknown(campaign=command.campaign)
    terms: dict[str, Any] = {
        field: _said(command, field, campaign) for field in ("title", "budget_points", "budget_fen")
    }
    for asset in ("points", "fen"):
        budget, spent = terms[f"budget_{asset}"], getattr(campaign, f"spent_{asset}")
        if budget is not None and budget < spent:
            raise BudgetBelowSpent(asset=asset, budget=budget, spent=spent)
    if command.closed is not True and all(getattr(campaign, field) == value for field, value in terms.items()):
        raise NothingToChange(campaign=campaign.id)
    return [
        CampaignChanged(
            recorded_at=now,
            merchant=command.merchant,
            campaign=campaign.id,
            change_id=command.change_id,
            closed=command.closed is True,
            **terms,
        )
    ]


def _said(command: Struct, field: str, present: Struct) -> Any:
    """What a change makes of a field: what it says, or what stands."""
    said = getattr(command, field)
    return getattr(present, field) if said is UNSET else said


def _span(opens_at: datetime | None, closes_at: datetime | None) -> tuple[datetime | None, datetime | None]:
    opens_at, closes_at = opens_at and moment(opens_at), closes_at and moment(closes_at)
    if opens_at and closes_at and closes_at <= opens_at:
        raise OfferSpanInvalid(opens_at=opens_at.isoformat(), closes_at=closes_at.isoformat())
    return opens_at, closes_at


def evolve(catalogue: Catalogue, event: Event) -> None:
    match event:
        case OfferPublished():
            terms: dict[str, Any] = {field: getattr(event, field) for field in _TERMS if field != "withdrawn"}
            catalogue.offers[event.offer] = Offer(id=event.offer, stock=event.stock, campaign=event.campaign, **terms)
        case OfferChanged():
            offer = catalogue.offers[event.offer]
            for field in _TERMS:
                setattr(offer, field, getattr(event, field))
            if offer.stock is not None:
                offer.stock += event.restock
        case CampaignOpened():
            catalogue.campaigns[event.campaign] = Campaign(
                event.campaign, event.title, event.budget_points, event.budget_fen
            )
        case CampaignChanged():
            campaign = catalogue.campaigns[event.campaign]
            campaign.title = event.title
            campaign.budget_points, campaign.budget_fen = event.budget_points, event.budget_fen
            if event.closed:  # what is given back to it later is nobody's to spend
                del catalogue.campaigns[event.campaign]
        case _:
            raise AssertionError(f"not an event of a catalogue: {event.type_name}")


# -- orders ----------------------------------------------------------------------------------------------------------


def reserve(catalogue: Catalogue, *, offer: str, resident: str, items: int, now: datetime) -> Taken:
    """What an order of so many items takes. It changes nothing: `take` does.

    Refusals, in order: ItemsInvalid, OfferUnknown, OfferNotOpen, OfferSoldOut, OfferLimitReached (the resident's, in
    all and then in the day), OfferDayLimitReached, CampaignSpent.
    """
    if not 1 <= items <= ITEMS_MOST:
        raise ItemsInvalid(items=items)
    wanted = catalogue.offers.get(offer)
    if wanted is None:
        raise OfferUnknown(offer=offer)
    campaign = catalogue.campaigns.get(wanted.campaign) if wanted.campaign else None
    if not wanted.open(now) or (wanted.campaign and campaign is None):
        raise OfferNotOpen(offer=offer)
    if wanted.stock is not None and items > wanted.stock:
        raise OfferSoldOut(offer=offer, left=wanted.stock, wanted=items)
    day = _day(wanted, now)
    _check_limits(wanted, catalogue.uses.get(use_of(offer, resident)) or Use(), day, items)
    if campaign:
        _check_budget(campaign, items * wanted.points, items * wanted.amount_fen)
    return taken_by(catalogue, offer, resident, items, points=wanted.points, amount_fen=wanted.amount_fen, now=now)


DECLINES = (OfferNotOpen, OfferSoldOut, OfferLimitReached, OfferDayLimitReached, CampaignSpent)  # for good


def taken_by(
    catalogue: Catalogue, offer: str, resident: str, items: int, *, points: int, amount_fen: int, now: datetime
) -> Taken:
    """What an order takes that was placed at that moment, at these prices of one item."""
    known = catalogue.offers[offer]
    return Taken(
        offer=offer,
        resident=resident,
        day=_day(known, now),
        points=points,
        amount_fen=amount_fen,
        campaign=known.campaign,
        reserved=items,
    )


def _day(offer: Offer, now: datetime) -> date:
    """The day for which an order counts. It never goes back, though the clocks of two processes differ."""
    today = civil_day(now)
    return today if offer.day is None else max(today, offer.day)


def _check_limits(offer: Offer, use: Use, day: date, items: int) -> None:
    had = use.day_items if use.day == day else 0
    for limit, used, most in (
        ("per_resident", use.items, offer.per_resident),
        ("per_resident_day", had, offer.per_resident_day),
    ):
        if most is not None and used + items > most:
            raise OfferLimitReached(offer=offer.id, limit=limit, used=used, most=most, wanted=items)
    gone = offer.day_items if offer.day == day else 0
    if offer.per_day is not None and gone + items > offer.per_day:
        raise OfferDayLimitReached(offer=offer.id, used=gone, most=offer.per_day, wanted=items)


def _check_budget(campaign: Campaign, points: int, fen: int) -> None:
    for asset, cost, spent, budget in (
        ("points", points, campaign.spent_points, campaign.budget_points),
        ("fen", fen, campaign.spent_fen, campaign.budget_fen),
    ):
        if budget is not None and spent + cost > budget:
            raise CampaignSpent(campaign=campaign.id, asset=asset, left=budget - spent, wanted=cost)


def take(catalogue: Catalogue, taken: Taken) -> None:
    """An order was placed: its items are reserved."""
    offer = catalogue.offers[taken.offer]
    if offer.stock is not None:
        offer.stock -= taken.reserved
    offer.reserved += taken.reserved
    _count(catalogue, taken, taken.reserved)


def sell(catalogue: Catalogue, taken: Taken, items: int) -> None:
    """An order was captured: so many of its items are sold, and the rest goes back."""
    offer = catalogue.offers[taken.offer]
    offer.reserved -= items
    offer.sold += items
    taken.reserved -= items
    taken.sold += items
    if taken.reserved:
        give_back(catalogue, taken, taken.reserved)


def give_back(catalogue: Catalogue, taken: Taken, items: int) -> None:
    """So many items of an order come back: of those it holds or, once it was captured, of those it bought."""
    offer = catalogue.offers[taken.offer]
    if taken.reserved:
        assert items <= taken.reserved, "more given back than is reserved"
        taken.reserved -= items
        offer.reserved -= items
    else:
        assert items <= taken.sold, "more given back than was sold"
        taken.sold -= items
        offer.sold -= items
    if offer.stock is not None:
        offer.stock += items
    _count(catalogue, taken, -items)


def _count(catalogue: Catalogue, taken: Taken, items: int) -> None:
    """Add to what is used of limits and budget, or take away. A day that is over limits nothing any more."""
    offer = catalogue.offers[taken.offer]
    use = catalogue.uses.setdefault(use_of(taken.offer, taken.resident), Use())
    use.items += items
    for counter in (offer, use):
        if items > 0 and counter.day != taken.day:
            counter.day, counter.day_items = taken.day, 0
        if counter.day == taken.day:
            counter.day_items += items
    if campaign := catalogue.campaigns.get(taken.campaign or ""):
        campaign.spent_points += items * taken.points
        campaign.spent_fen += items * taken.amount_fen
