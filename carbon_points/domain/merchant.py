"""Merchants: who accepts points, at what price, on which terminals, and what each run of captures is owed.

Invariant: settlements of a merchant cover disjoint pieces of the log, and each pays what its piece says.
"""

from datetime import date, datetime, timedelta
from typing import Annotated, ClassVar

from msgspec import Meta, Struct

from carbon_points.domain import offer, order
from carbon_points.domain import terminal as terminals
from carbon_points.domain.event import Command, County, Event, Id, Text
from carbon_points.domain.offer import (
    Campaign,
    CampaignChanged,
    CampaignOpened,
    Catalogue,
    ChangeCampaign,
    ChangeOffer,
    Offer,
    OfferChanged,
    OfferPublished,
    OpenCampaign,
    PublishOffer,
    Use,
)
from carbon_points.domain.offline import Offline
from carbon_points.domain.order import (
    BatchClosed,
    CloseBatch,
    FollowOrder,
    Order,
    OrderDeclined,
    OrderMoved,
    OrderPlaced,
    OrderReversed,
    PlaceOrder,
    ReverseOrder,
    Terms,
    Till,
    Totals,
)
from carbon_points.domain.quantity import civil_day
from carbon_points.domain.refusal import Refusal
from carbon_points.domain.terminal import (
    AddTerminalKey,
    Identity,
    SuspendTerminal,
    TerminalKeyAdded,
    TerminalKeyEnded,
    TerminalSuspended,
)

PRICE_MOST_FEN = 10_000
DAY_CLOSES_AFTER = timedelta(minutes=5)  # of the next day: what a slow writer stamped before midnight is there by then


class RegisterMerchant(Command):
    """`fen_per_point`: what the fund owes the merchant for each point it accepts. `county`: a GB/T 2260 code.
    `public`: a public body, whose offers are benefits of the city."""

    merchant: Id
    name: Text
    fen_per_point: Annotated[int, Meta(ge=1, le=PRICE_MOST_FEN)]
    county: County | None = None
    public: bool = False

    def claim(self) -> tuple[str, ...]:
        return ("merchant", self.merchant)


class ChangePrice(Command):
    merchant: Id
    fen_per_point: Annotated[int, Meta(ge=1, le=PRICE_MOST_FEN)]


class ChangeTerms(Command):
    """`confirm_above`: for more points than that, by a payment code, the resident must agree on their phone.
    `offline`: what terminals may take offline; None: nothing."""

    merchant: Id
    confirm_above: Annotated[int, Meta(ge=0)] | None
    offline: Offline | None = None


class EnrolTerminal(Command):
    merchant: Id
    terminal: Id

    def claim(self) -> tuple[str, ...]:
        return ("terminal", self.merchant, self.terminal)


class CloseSettlement(Command):
    """Settle what was captured and refunded between the last settlement and `through` (positions by partition).

    With a `day`, that is as far as the log goes at the end of that day in China, and the day is settled once.
    """

    merchant: Id
    settlement_id: str
    day: date | None = None

    def claim(self) -> tuple[str, ...]:
        return ("settlement", self.merchant, self.settlement_id)


class MerchantRegistered(Event):
    type_name: ClassVar[str] = "merchant-registered/1"
    merchant: str
    name: str
    fen_per_point: int
    county: str | None = None
    public: bool = False


class PriceChanged(Event):
    type_name: ClassVar[str] = "price-changed/1"
    merchant: str
    fen_per_point: int


class TermsChanged(Event):
    type_name: ClassVar[str] = "terms-changed/1"
    merchant: str
    confirm_above: int | None
    offline: Offline | None = None


class TerminalEnrolled(Event):
    type_name: ClassVar[str] = "terminal-enrolled/1"
    merchant: str
    terminal: str


class SettlementClosed(Event):
    """`points` and `amount_fen` are captures less refunds at positions in (`after`, `through`] of each partition.

    `roots` are the Merkle roots of the partitions at `through`; `json_sha256` and `csv_sha256` are of the two files
    that name each row. Settlements that older programs closed have neither, nor `day` and `totals`.
    """

    type_name: ClassVar[str] = "settlement-closed/1"
    merchant: str
    settlement_id: str
    after: dict[str, int]
    through: dict[str, int]
    captures: int
    refunds: int
    points: int
    amount_fen: int
    day: date | None = None
    totals: Totals | None = None
    roots: dict[str, str] | None = None
    json_sha256: str = ""
    csv_sha256: str = ""


class Merchant(Struct):
    """Kept in parts: `orders` by redemption, `tills` by terminal, `offers` by id, `uses` by offer and resident."""

    id: str
    name: str = ""
    fen_per_point: int = 0
    county: str | None = None
    terminals: dict[str, bool] = {}
    through: dict[str, int] = {}
    confirm_above: int | None = None
    orders: dict[str, Order] = {}
    tills: dict[str, Till] = {}
    public: bool = False
    campaigns: dict[str, Campaign] = {}
    offers: dict[str, Offer] = {}
    uses: dict[str, Use] = {}
    identities: dict[str, Identity] = {}  # by terminal
    offline: Offline | None = None

    @property
    def catalogue(self) -> Catalogue:
        return Catalogue(self.offers, self.campaigns, self.uses)

    def accepting(self, terminal: str) -> "Merchant":
        """This merchant, if it may redeem at that terminal. Refusals, in order: MerchantUnknown, TerminalUnknown."""
        if not self.name:
            raise MerchantUnknown(merchant=self.id)
        if terminal not in self.terminals:
            raise TerminalUnknown(merchant=self.id, terminal=terminal)
        return self

    def identity(self, terminal: str) -> Identity:
        return self.identities.get(terminal) or Identity()


class SettlementFacts(Struct, frozen=True):
    """What the log says of a merchant between two vectors of positions, and the digests of the files that say so."""

    after: dict[str, int]
    through: dict[str, int]
    totals: Totals
    roots: dict[str, str] | None = None
    json_sha256: str = ""
    csv_sha256: str = ""


class MerchantUnknown(Refusal):
    code = "merchant-unknown"
    title = "No such merchant"


class TerminalUnknown(Refusal):
    code = "terminal-unknown"
    title = "The merchant has no such terminal"


class PriceInvalid(Refusal):
    code = "price-invalid"
    title = "A point is worth from 1 to 10,000 fen"


class PriceUnchanged(Refusal):
    code = "price-unchanged"
    title = "That is already the price"


class TermsUnchanged(Refusal):
    code = "terms-unchanged"
    title = "Those are already the terms"


class DayNotOver(Refusal):
    code = "day-not-over"
    title = "A day is settled once it has been over for five minutes"


class NothingToSettle(Refusal):
    code = "nothing-to-settle"
    title = "Captures less refunds since the last settlement are worth nothing"


class SettlementOverlaps(Refusal):
    code = "settlement-overlaps"
    title = "Another settlement was closed meanwhile: compute it again"


def parts(message: Command | Event, facts: object = None) -> list[tuple[str, str]]:  # noqa: ARG001  # as for accounts
    """The parts of the state that a command reads or an event changes, as (field, key)."""
    match message:
        case PlaceOrder():
            own = [("orders", message.redemption_id), ("identities", message.terminal)]
            return [*own, *_of_offer(message.offer, message.resident)]
        case OrderPlaced():
            return [("orders", message.redemption_id), *_of_offer(message.offer, message.resident)]
        case FollowOrder() | OrderMoved():
            own = [("orders", message.redemption_id), ("tills", message.terminal)]
            return [*own, *_of_offer(message.offer, message.resident)]
        case ReverseOrder() | OrderReversed():
            return [("orders", message.redemption_id), ("tills", message.terminal)]
        case OrderDeclined():
            return [("orders", message.redemption_id)]
        case PublishOffer() | OfferPublished() | ChangeOffer() | OfferChanged():
            return [("offers", message.offer)]
        case AddTerminalKey() | SuspendTerminal() | TerminalKeyAdded() | TerminalKeyEnded() | TerminalSuspended():
            return [("identities", message.terminal)]
        case CloseBatch() | BatchClosed():
            return [("tills", message.terminal)]
        case _:
            return []


def _of_offer(name: str | None, resident: str) -> list[tuple[str, str]]:
    return offer.parts_of(name, resident) if name else []


def decide(merchant: Merchant, command: Command, *, now: datetime, facts: object = None) -> list[Event]:
    """Refusals, in order: PriceInvalid; MerchantUnknown; TerminalUnknown; what the command itself is refused for."""
    if isinstance(command, RegisterMerchant | ChangePrice) and not 1 <= command.fen_per_point <= PRICE_MOST_FEN:
        raise PriceInvalid(fen_per_point=command.fen_per_point)
    match command:
        case RegisterMerchant():
            return [
                MerchantRegistered(
                    recorded_at=now,
                    merchant=merchant.id,
                    name=command.name,
                    fen_per_point=command.fen_per_point,
                    county=command.county,
                    public=command.public,
                )
            ]
        case _ if not merchant.name:
            raise MerchantUnknown(merchant=merchant.id)
        case ChangePrice():
            if command.fen_per_point == merchant.fen_per_point:
                raise PriceUnchanged(fen_per_point=command.fen_per_point)
            return [PriceChanged(recorded_at=now, merchant=merchant.id, fen_per_point=command.fen_per_point)]
        case ChangeTerms():
            terms = command.confirm_above, command.offline
            if terms == (merchant.confirm_above, merchant.offline):
                raise TermsUnchanged(confirm_above=command.confirm_above)
            return [
                TermsChanged(
                    recorded_at=now,
                    merchant=merchant.id,
                    confirm_above=command.confirm_above,
                    offline=command.offline,
                )
            ]
        case CloseBatch():
            till = merchant.accepting(command.terminal).tills.get(command.terminal) or Till()
            return order.close(command, till, now=now)
        case PlaceOrder() | ReverseOrder() | FollowOrder():
            return _order(merchant.accepting(command.terminal), command, now=now)
        case PublishOffer() | ChangeOffer() | OpenCampaign() | ChangeCampaign():
            return offer.decide(merchant.catalogue, command, now=now)
        case EnrolTerminal():
            return [TerminalEnrolled(recorded_at=now, merchant=merchant.id, terminal=command.terminal)]
        case AddTerminalKey():
            return terminals.add_key(merchant.accepting(command.terminal).identity(command.terminal), command, now=now)
        case SuspendTerminal():
            return terminals.suspend(merchant.accepting(command.terminal).identity(command.terminal), command, now=now)
        case CloseSettlement():
            assert isinstance(facts, SettlementFacts)
            return [_settle(merchant, command, now=now, facts=facts)]
        case _:
            raise AssertionError(f"no decision for {type(command).__name__}")


def _order(merchant: Merchant, command: PlaceOrder | ReverseOrder | FollowOrder, *, now: datetime) -> list[Event]:
    known = merchant.orders.get(command.redemption_id)
    till = merchant.tills.get(command.terminal) or Till()
    match command:
        case PlaceOrder():
            if merchant.identity(command.terminal).suspended:  # also where an app names the terminal
                raise terminals.TerminalIsSuspended(merchant=merchant.id, terminal=command.terminal)
            terms = Terms(merchant.fen_per_point, merchant.confirm_above, merchant.catalogue, merchant.offline)
            return order.place(command, known, terms, now=now)
        case ReverseOrder():
            return order.reverse(command, known, till, now=now)
        case FollowOrder():
            return order.follow(command, known, till, now=now) if known else []


def _settle(merchant: Merchant, command: CloseSettlement, *, now: datetime, facts: SettlementFacts) -> Event:
    if command.day is not None and civil_day(now - DAY_CLOSES_AFTER) <= command.day:
        raise DayNotOver(day=command.day)
    if facts.after != merchant.through:
        raise SettlementOverlaps(settled_through=merchant.through)
    totals = facts.totals
    if totals.fen <= 0:  # the points may be below zero: dear captures less refunds of older, cheaper ones
        raise NothingToSettle(points=totals.points, amount_fen=totals.fen)
    return SettlementClosed(
        recorded_at=now,
        merchant=merchant.id,
        settlement_id=command.settlement_id,
        after=facts.after,
        through=facts.through,
        captures=totals.sales.count,
        refunds=totals.refunds.count + totals.reversals.count,
        points=totals.points,
        amount_fen=totals.fen,
        day=command.day,
        totals=totals,
        roots=facts.roots,
        json_sha256=facts.json_sha256,
        csv_sha256=facts.csv_sha256,
    )


def evolve(merchant: Merchant, event: Event) -> None:
    match event:
        case MerchantRegistered():
            merchant.name, merchant.fen_per_point, merchant.county = event.name, event.fen_per_point, event.county
            merchant.public = event.public
        case PriceChanged():
            merchant.fen_per_point = event.fen_per_point
        case TerminalEnrolled():
            merchant.terminals[event.terminal] = True
        case SettlementClosed():
            merchant.through = event.through
        case TermsChanged():
            merchant.confirm_above, merchant.offline = event.confirm_above, event.offline
        case OrderPlaced():
            merchant.orders[event.redemption_id] = order.placed(event, merchant.catalogue)
        case OrderDeclined():
            merchant.orders[event.redemption_id] = order.refused(event)
        case OrderMoved():
            till = merchant.tills.setdefault(event.terminal, Till())
            order.moved(event, merchant.orders[event.redemption_id], till, merchant.catalogue)
        case BatchClosed():
            merchant.tills[event.terminal] = Till(batch=event.batch + 1)
        case OrderReversed():
            if event.redemption_id not in merchant.orders:
                merchant.orders[event.redemption_id] = Order(event.terminal, "", event.points, 0, "reversed")
        case OfferPublished() | OfferChanged() | CampaignOpened() | CampaignChanged():
            offer.evolve(merchant.catalogue, event)
        case TerminalKeyAdded() | TerminalKeyEnded() | TerminalSuspended():
            terminals.evolve(merchant.identities.setdefault(event.terminal, Identity()), event)
        case _:
            raise AssertionError(f"not a merchant's event: {event.type_name}")
