"""Offers, every order of them recomputed: what it cost, that it could be had, and what was left of it then.

All of it lies in one stream, so nothing is uncertain: not even why an order was declined.
"""

from typing import TypeVar

import msgspec
from msgspec import Struct

from carbon_points.audit.finding import must, same
from carbon_points.audit.replay.book import Book
from carbon_points.audit.replay.days import china_day
from carbon_points.audit.scratch import Scratch
from carbon_points.domain.event import Event
from carbon_points.domain.merchant import Merchant
from carbon_points.domain.offer import (
    Campaign,
    CampaignChanged,
    CampaignOpened,
    Offer,
    OfferChanged,
    OfferPublished,
    Taken,
    Use,
)
from carbon_points.domain.order import OrderDeclined, OrderMoved, OrderPlaced
from carbon_points.journal.entry import Entry

S = TypeVar("S", bound=Struct)
CATALOGUE = (OfferPublished, OfferChanged, CampaignOpened, CampaignChanged)
ITEMS_MOST, CAMPAIGNS_MOST, COUNT_MOST = 100, 100, 10**9
ITEM_MOST, BUDGET_MOST = 10**7, 10**15
_encode = msgspec.json.Encoder().encode


class Shelves:
    """The offers of one partition's merchants. Campaigns lie in the main part of the merchant's state."""

    def __init__(self, book: Book, scratch: Scratch) -> None:
        self._book, self._scratch = book, scratch

    # -- the catalogue -----------------------------------------------------------------------------------------------

    def take(self, entry: Entry, event: Event) -> None:
        """Raises Wrong."""
        match event:
            case OfferPublished():
                self._published(entry, event)
            case OfferChanged():
                self._changed(entry, event)
            case CampaignOpened():
                campaigns = self._campaigns(event.merchant)
                must(event.campaign not in campaigns, "the campaign is open already")
                must(len(campaigns) < CAMPAIGNS_MOST, "so many campaigns are not open at a time")
                _check_budget(event)
                campaigns[event.campaign] = Campaign(event.campaign, event.title, event.budget_points, event.budget_fen)
            case CampaignChanged():
                self._campaign_changed(event)
            case _:
                raise AssertionError("not an event of a catalogue")

    def _published(self, entry: Entry, event: OfferPublished) -> None:
        must(self._offer(entry, event.offer) is None, "the offer is in the log already")
        campaigns = self._campaigns(event.merchant)
        must(event.campaign is None or event.campaign in campaigns, "there is no such campaign")
        must(event.stock is None or 0 <= event.stock <= COUNT_MOST, f"a stock of {event.stock}")
        offer = Offer(event.offer, "", 0, 0, stock=event.stock, campaign=event.campaign)
        _say(offer, event)
        self._keep(entry, offer)

    def _changed(self, entry: Entry, event: OfferChanged) -> None:
        offer = self._known(entry, event.offer)
        before = msgspec.structs.replace(offer)
        _say(offer, event)
        offer.withdrawn = event.withdrawn
        if event.restock:
            must(offer.stock is not None and offer.stock + event.restock >= 0, "more is taken away than is left")
            offer.stock = (offer.stock or 0) + event.restock
            must(offer.stock + offer.reserved + offer.sold <= COUNT_MOST, "so many items are never put up")
        must(offer != before, "that is how it stands already")
        self._keep(entry, offer)

    def _campaign_changed(self, event: CampaignChanged) -> None:
        campaigns = self._campaigns(event.merchant)
        must(event.campaign in campaigns, "there is no such campaign, or it was closed")
        campaign = campaigns[event.campaign]
        _check_budget(event)
        for budget, spent in (
            (event.budget_points, campaign.spent_points),
            (event.budget_fen, campaign.spent_fen),
        ):
            must(budget is None or spent <= budget, f"the campaign has spent {spent}")
        said = (event.title, event.budget_points, event.budget_fen)
        same_terms = said == (campaign.title, campaign.budget_points, campaign.budget_fen)
        must(event.closed or not same_terms, "that is how it stands already")
        campaign.title, campaign.budget_points, campaign.budget_fen = said
        if event.closed:
            del campaigns[event.campaign]

    # -- orders ------------------------------------------------------------------------------------------------------

    def placed(self, entry: Entry, event: OrderPlaced) -> Taken | None:
        """What an order has of its offer. Raises Wrong."""
        if event.offer is None:
            same("items", event.items, 0)
            return None
        must(1 <= event.items <= ITEMS_MOST, f"an order of {event.items} items")
        offer = self._known(entry, event.offer)
        same("points", event.points, event.items * offer.points)
        same("amount_fen", event.amount_fen, event.items * offer.amount_fen)
        why_not = self._why_not(entry, event, offer)
        must(why_not is None, f"it could not be had: {why_not}")
        taken = Taken(
            event.offer,
            event.resident,
            max(china_day(event.recorded_at), offer.day or china_day(event.recorded_at)),
            offer.points,
            offer.amount_fen,
            offer.campaign,
        )
        self._move(entry, event.merchant, taken, reserved=event.items)
        return taken

    def declined(self, entry: Entry, event: OrderDeclined) -> None:
        """Raises Wrong."""
        must(1 <= event.items <= ITEMS_MOST, f"an order of {event.items} items")
        offer = self._known(entry, event.offer)
        same("points", event.points, event.items * offer.points)
        same("reason", event.reason, self._why_not(entry, event, offer))

    def moved(self, entry: Entry, event: OrderMoved, taken: Taken | None) -> None:
        """Raises Wrong."""
        if taken is None:
            same("offer, items and returned", (event.offer, event.items, event.returned), (None, 0, 0))
            return
        same("offer", event.offer, taken.offer)
        items, rest = divmod(event.points, taken.points)
        if event.kind in ("refund", "reversal"):
            same("items and returned", (event.items, event.returned, rest), (0, items, 0))
            must(event.returned <= taken.sold, f"{event.returned} items are returned of {taken.sold}")
            same("amount_fen", event.amount_fen, items * taken.amount_fen)
            self._move(entry, event.merchant, taken, sold=-items)
            return
        sold = items if event.kind == "sale" else 0
        must(event.kind != "sale" or not rest, "of an offer, only whole items are sold")
        same("items and returned", (event.items, event.returned), (sold, taken.reserved - sold))
        self._move(entry, event.merchant, taken, reserved=-taken.reserved, sold=sold)

    def _why_not(self, entry: Entry, event: OrderPlaced | OrderDeclined, offer: Offer) -> str | None:
        """The code with which so many items cannot be had by that resident, if they cannot."""
        at, items, day = event.recorded_at, event.items, china_day(event.recorded_at)
        day = max(day, offer.day or day)
        campaign = self._campaigns(event.merchant).get(offer.campaign or "")
        early, late = offer.opens_at and at < offer.opens_at, offer.closes_at and at >= offer.closes_at
        if offer.withdrawn or early or late or (offer.campaign and not campaign):
            return "offer-not-open"
        if offer.stock is not None and items > offer.stock:
            return "offer-sold-out"
        use = self._use(entry, offer.id, event.resident)
        if _over(use.items + items, offer.per_resident):
            return "offer-limit-reached"
        if _over((use.day_items if use.day == day else 0) + items, offer.per_resident_day):
            return "offer-limit-reached"
        if _over((offer.day_items if offer.day == day else 0) + items, offer.per_day):
            return "offer-day-limit-reached"
        if campaign and (
            _over(campaign.spent_points + items * offer.points, campaign.budget_points)
            or _over(campaign.spent_fen + items * offer.amount_fen, campaign.budget_fen)
        ):
            return "campaign-spent"
        return None

    def _move(self, entry: Entry, merchant: str, taken: Taken, *, reserved: int = 0, sold: int = 0) -> None:
        """Change what an order has, and with it all that is counted of its offer."""
        offer, use = self._known(entry, taken.offer), self._use(entry, taken.offer, taken.resident)
        had = reserved + sold
        taken.reserved += reserved
        taken.sold += sold
        offer.reserved += reserved
        offer.sold += sold
        if offer.stock is not None:
            offer.stock -= had
        use.items += had
        for counter in (offer, use):
            if had > 0 and counter.day != taken.day:
                counter.day, counter.day_items = taken.day, 0
            if counter.day == taken.day:
                counter.day_items += had
        if campaign := self._campaigns(merchant).get(taken.campaign or ""):
            campaign.spent_points += had * taken.points
            campaign.spent_fen += had * taken.amount_fen
        self._keep(entry, offer)
        self._scratch.keep(entry.stream, f"uses/{taken.offer} {taken.resident}", entry.version, _encode(use))

    # -- what is kept ------------------------------------------------------------------------------------------------

    def _campaigns(self, merchant: str) -> dict[str, Campaign]:
        _ = self._book.merchants[merchant]  # one that is not registered is a finding
        state: Merchant = self._book.states[f"merchant/{merchant}"]
        return state.campaigns

    def _offer(self, entry: Entry, offer: str) -> Offer | None:
        return self._part(entry, f"offers/{offer}", Offer)

    def _known(self, entry: Entry, offer: str) -> Offer:
        known = self._offer(entry, offer)
        must(known is not None, "the merchant has no such offer")
        assert known is not None
        return known

    def _use(self, entry: Entry, offer: str, resident: str) -> Use:
        return self._part(entry, f"uses/{offer} {resident}", Use) or Use()

    def _part(self, entry: Entry, part: str, kind: type[S]) -> S | None:
        value = self._scratch.part(entry.stream, part)
        return msgspec.json.decode(value, type=kind) if value else None

    def _keep(self, entry: Entry, offer: Offer) -> None:
        self._scratch.keep(entry.stream, f"offers/{offer.id}", entry.version, _encode(offer))


def _say(offer: Offer, event: OfferPublished | OfferChanged) -> None:
    """Take the terms over that are told anew with each change."""
    must(1 <= event.points <= ITEM_MOST, f"an item for {event.points} points")
    must(0 <= event.amount_fen <= ITEM_MOST, f"an item worth {event.amount_fen} fen")
    for limit in (event.per_resident, event.per_resident_day, event.per_day):
        must(limit is None or 1 <= limit <= COUNT_MOST, f"a limit of {limit}")
    spans = event.opens_at is None or event.closes_at is None or event.opens_at < event.closes_at
    must(spans, "the offer closes before it opens")
    offer.title, offer.points, offer.amount_fen = event.title, event.points, event.amount_fen
    offer.per_resident, offer.per_resident_day = event.per_resident, event.per_resident_day
    offer.per_day, offer.opens_at, offer.closes_at = event.per_day, event.opens_at, event.closes_at


def _check_budget(event: CampaignOpened | CampaignChanged) -> None:
    for budget in (event.budget_points, event.budget_fen):
        must(budget is None or 0 <= budget <= BUDGET_MOST, f"a budget of {budget}")


def _over(wanted: int, most: int | None) -> bool:
    return most is not None and wanted > most
