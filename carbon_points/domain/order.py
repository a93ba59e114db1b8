"""Orders: what a terminal asked for under its own reference, and what came of it.

An order lies with its merchant, the points with their resident, and no transaction spans both. So an order is placed
before anything is held, and is brought to what the resident's stream says after that, as often as it takes.

Invariant: whatever an order moves counts in one batch of its terminal, and once.
"""

from datetime import datetime
from typing import ClassVar, Literal

from msgspec import Struct, field

from carbon_points.domain import offer as offers
from carbon_points.domain import offline
from carbon_points.domain.event import Command, Event, Id
from carbon_points.domain.offer import Catalogue, Taken
from carbon_points.domain.offline import Offline
from carbon_points.domain.refusal import Refusal

Kind = Literal["sale", "refund", "reversal", "void", "expiry", "decline", "release"]
By = Literal["terminal", "auto"]
Reason = Literal["customer-cancel", "invalid-response", "timeout", "mismatch"]
CONFIRM_SECONDS = 60  # in which a resident agrees to what a terminal asks for, or it is declined
_KINDS: dict[str, Kind] = {  # what the end of a hold is to the order
    "captured": "sale",
    "voided": "void",
    "expired": "expiry",
    "declined": "decline",
    "reversed": "release",
}


class PlaceOrder(Command):
    """A terminal, or an app for it, asks for a resident's points: so many, or what the `items` of an offer cost.
    `code`: the payment code that it uses up, by its step. `captured_offline_at`: when a terminal took it offline; then
    it is an allowance that it uses up, and the resident has agreed by asking for that."""

    merchant: Id
    terminal: Id
    redemption_id: str
    resident: str
    hold_seconds: int
    points: int = 0
    capture: bool = False
    code: str | None = None
    offer: Id | None = None
    items: int = 0
    captured_offline_at: datetime | None = None

    def claim(self) -> tuple[str, ...]:
        return ("order", self.redemption_id)

    def differs(self, event: Event) -> list[str]:
        return [f for f in super().differs(event) if f != "points" or self.offer is None]  # else the offer says them


class ReverseOrder(Command):
    """Undo what a reference asked for, whether or not it has come: it may be on its way still. It is told by its
    points or, of an offer, by its items: whoever got no answer may not know what they cost."""

    merchant: Id
    terminal: Id
    redemption_id: str
    reason: Reason
    points: int = 0
    offer: Id | None = None
    items: int = 0

    def claim(self) -> tuple[str, ...]:
        return ("order-reversal", self.redemption_id)

    def differs(self, event: Event) -> list[str]:
        # It may be repeated for another reason.
        told = "points" if self.offer else "items"
        return [f for f in super().differs(event) if f not in ("reason", told)]


class FollowOrder(Command):
    """Bring an order to what the resident's stream says of its redemption. `ended` is the end of its hold; refunds
    are without what a reversal gave back. `resident` and `offer` say in time which parts of the state it needs."""

    merchant: str
    terminal: str
    redemption_id: str
    ended: str | None
    captured_points: int = 0
    captured_fen: int = 0
    refunds: int = 0
    refunded_points: int = 0
    refunded_fen: int = 0
    reversed_points: int = 0
    reversed_fen: int = 0
    resident: str = ""
    offer: str | None = None


class Tally(Struct, frozen=True, forbid_unknown_fields=True):
    """How many, and their sums."""

    count: int = 0
    points: int = 0
    fen: int = 0


class Totals(Struct, frozen=True, forbid_unknown_fields=True):
    """What was sold and what was given back. Refunds are without reversals."""

    sales: Tally = Tally()
    refunds: Tally = Tally()
    reversals: Tally = Tally()

    @property
    def points(self) -> int:
        return self.sales.points - self.refunds.points - self.reversals.points

    @property
    def fen(self) -> int:
        return self.sales.fen - self.refunds.fen - self.reversals.fen


class CloseBatch(Command):
    """A terminal ends its batch and says what it counted; without `totals` it is ended as it stands."""

    merchant: str
    terminal: str
    batch: int
    by: By = "terminal"
    totals: Totals | None = None

    def claim(self) -> tuple[str, ...]:
        return ("batch", self.merchant, self.terminal, str(self.batch))

    def differs(self, event: Event) -> list[str]:  # noqa: ARG002  # a batch is closed once, whoever counted otherwise
        return []


class OrderPlaced(Event):
    """With an offer, `points` and `amount_fen` are what its items cost by then, and they are reserved.

    `captured_offline_at`: by the terminal's clock; `code` is an allowance then.
    """

    type_name: ClassVar[str] = "order-placed/1"
    merchant: str
    terminal: str
    redemption_id: str
    resident: str
    points: int
    amount_fen: int
    hold_seconds: int
    capture: bool = False
    code: str | None = None
    confirm_seconds: int = 0
    offer: str | None = None
    items: int = 0
    captured_offline_at: datetime | None = None


class OrderDeclined(Event):
    """Nothing is reserved, for `reason`, the code of the offer's refusal, and under this id nothing ever will be.
    `points` is what it would have cost."""

    type_name: ClassVar[str] = "order-declined/1"
    merchant: str
    terminal: str
    redemption_id: str
    resident: str
    offer: str
    items: int
    reason: str
    code: str | None = None
    points: int = 0


class OrderReversed(Event):
    """What the reference asked for is undone or, where it had not come (`resident` is not known), never happens."""

    type_name: ClassVar[str] = "order-reversed/1"
    merchant: str
    terminal: str
    redemption_id: str
    points: int
    reason: Reason
    resident: str | None = None
    offer: str | None = None
    items: int = 0


class OrderMoved(Event):
    """Something came of an order, and counts in this batch: `count` times, of so many points and fen in all. With an
    offer, so many `items` of what it reserved are sold, and so many of those that it had are `returned` to the stock.
    """

    type_name: ClassVar[str] = "order-moved/1"
    merchant: str
    terminal: str
    redemption_id: str
    resident: str
    batch: int
    kind: Kind
    points: int
    amount_fen: int
    count: int = 1
    offer: str | None = None
    items: int = 0
    returned: int = 0


class BatchClosed(Event):
    """The sums of all that moved in a terminal's batch. What comes after it counts in the next."""

    type_name: ClassVar[str] = "batch-closed/1"
    merchant: str
    terminal: str
    batch: int
    totals: Totals
    by: By = "terminal"


class Order(Struct, omit_defaults=True):
    """`status`: placed, declined (by its offer), reversed (before it came), or the kind of its first move. `batch` is
    the sale's, `taken` what it has of an offer."""

    terminal: str
    resident: str
    points: int
    amount_fen: int
    status: str = "placed"
    batch: int = 0
    offer: str | None = None
    items: int = 0
    refunds: int = 0
    refunded_points: int = 0
    refunded_fen: int = 0
    reversed: bool = False
    taken: Taken | None = None


class Sum(Struct):
    count: int = 0
    points: int = 0
    fen: int = 0

    def add(self, event: OrderMoved) -> None:
        self.count += event.count
        self.points += event.points
        self.fen += event.amount_fen

    @property
    def tally(self) -> Tally:
        return Tally(self.count, self.points, self.fen)


class Till(Struct):
    """A terminal's open batch, and what counts in it so far."""

    batch: int = 1
    sales: Sum = field(default_factory=Sum)
    refunds: Sum = field(default_factory=Sum)
    reversals: Sum = field(default_factory=Sum)
    moved_at: datetime | None = None

    @property
    def totals(self) -> Totals:
        return Totals(self.sales.tally, self.refunds.tally, self.reversals.tally)


class RedemptionReversed(Refusal):
    code = "redemption-reversed"
    title = "The redemption was reversed before it came"


class ReversalMismatch(Refusal):
    code = "reversal-mismatch"
    title = "The redemption was for something else, or at another terminal"


class UseRefund(Refusal):
    code = "use-refund"
    title = "The batch of this sale is closed: refund it"


class BatchNotOpen(Refusal):
    code = "batch-not-open"
    title = "That is not the terminal's open batch"


class TotalsDiffer(Refusal):
    code = "totals-differ"
    title = "The terminal and we count otherwise"


class NothingInBatch(Refusal):
    code = "nothing-in-batch"
    title = "Nothing moved in the batch: only its terminal ends it"


class Terms(Struct, frozen=True):
    """What a merchant's orders go by."""

    fen_per_point: int
    confirm_above: int | None
    catalogue: Catalogue
    offline: Offline | None = None


def place(command: PlaceOrder, order: Order | None, terms: Terms, *, now: datetime) -> list[Event]:
    """What an offer cannot give now declines the order for good.

    Refusals, in order: RedemptionReversed; those of `offline.admit`; ItemsInvalid, OfferUnknown.
    """
    if order is not None:  # the claim knows of those that were placed
        raise RedemptionReversed(redemption=command.redemption_id, current_state="reversed")
    if command.captured_offline_at is not None:
        offline.admit(command.points, command.captured_offline_at, terms.offline, now=now)
    points, amount_fen = command.points, command.points * terms.fen_per_point
    if command.offer is not None:
        try:
            taken = offers.reserve(
                terms.catalogue, offer=command.offer, resident=command.resident, items=command.items, now=now
            )
        except offers.DECLINES as refusal:
            points = command.items * terms.catalogue.offers[command.offer].points
            return [_declined(command, command.offer, points, refusal.code, now=now)]
        points, amount_fen = command.items * taken.points, command.items * taken.amount_fen
    asked = command.code is not None and command.captured_offline_at is None
    asks = asked and terms.confirm_above is not None and points > terms.confirm_above
    return [
        OrderPlaced(
            recorded_at=now,
            merchant=command.merchant,
            terminal=command.terminal,
            redemption_id=command.redemption_id,
            resident=command.resident,
            points=points,
            amount_fen=amount_fen,
            hold_seconds=command.hold_seconds,
            capture=command.capture,
            code=command.code,
            confirm_seconds=CONFIRM_SECONDS if asks else 0,
            offer=command.offer,
            items=command.items,
            captured_offline_at=command.captured_offline_at,
        )
    ]


def _declined(command: PlaceOrder, offer: str, points: int, reason: str, *, now: datetime) -> OrderDeclined:
    return OrderDeclined(
        recorded_at=now,
        merchant=command.merchant,
        terminal=command.terminal,
        redemption_id=command.redemption_id,
        resident=command.resident,
        offer=offer,
        items=command.items,
        reason=reason,
        code=command.code,
        points=points,
    )


def reverse(command: ReverseOrder, order: Order | None, till: Till, *, now: datetime) -> list[Event]:
    """Refusals, in order: ReversalMismatch, UseRefund."""
    if order and not _tells(command, order):
        raise ReversalMismatch(points=order.points, offer=order.offer, items=order.items, terminal=order.terminal)
    if order and order.status == "sale" and order.batch != till.batch:
        raise UseRefund(redemption=command.redemption_id, batch=order.batch)
    return [
        OrderReversed(
            recorded_at=now,
            merchant=command.merchant,
            terminal=command.terminal,
            redemption_id=command.redemption_id,
            points=order.points if order else command.points,
            reason=command.reason,
            resident=order.resident if order else None,
            offer=command.offer,
            items=command.items,
        )
    ]


def _tells(command: ReverseOrder, order: Order) -> bool:
    """Whether a reversal means that order: by its terminal, and its points or, where it names an offer, its items."""
    if command.terminal != order.terminal:
        return False
    if command.offer is None:
        return order.points == command.points
    return (order.offer, order.items) == (command.offer, command.items)


def follow(command: FollowOrder, order: Order, till: Till, *, now: datetime) -> list[Event]:
    """What the order has not counted yet, in the terminal's open batch. What it is told late changes nothing."""
    moves: list[tuple[Kind, int, int, int]] = []
    if order.status in ("placed", "declined") and command.ended:
        kind = _KINDS[command.ended]
        moves.append((kind, 1, command.captured_points or order.points, command.captured_fen))
    if (refunds := command.refunds - order.refunds) > 0:
        points = command.refunded_points - order.refunded_points
        moves.append(("refund", refunds, points, command.refunded_fen - order.refunded_fen))
    if command.reversed_points and not order.reversed:
        moves.append(("reversal", 1, command.reversed_points, command.reversed_fen))
    return [
        OrderMoved(
            recorded_at=now,
            merchant=command.merchant,
            terminal=command.terminal,
            redemption_id=command.redemption_id,
            resident=order.resident,
            batch=till.batch,
            kind=kind,
            points=points,
            amount_fen=amount_fen,
            count=count,
            offer=order.taken.offer if order.taken else None,
            items=(sold := _sold(order.taken, kind, points)),
            returned=_returned(order.taken, kind, points, sold),
        )
        for kind, count, points, amount_fen in moves
    ]


def close(command: CloseBatch, till: Till, *, now: datetime) -> list[Event]:
    """Refusals, in order: BatchNotOpen, TotalsDiffer, NothingInBatch."""
    totals = till.totals
    if command.batch != till.batch:
        raise BatchNotOpen(batch=command.batch, open_batch=till.batch)
    if command.totals not in (None, totals):
        raise TotalsDiffer(batch=command.batch, totals=totals)
    if command.by == "auto" and totals == Totals():
        raise NothingInBatch(batch=command.batch)
    return [
        BatchClosed(
            recorded_at=now,
            merchant=command.merchant,
            terminal=command.terminal,
            batch=command.batch,
            totals=totals,
            by=command.by,
        )
    ]


def _sold(taken: Taken | None, kind: Kind, points: int) -> int:
    return points // taken.points if taken and kind == "sale" else 0


def _returned(taken: Taken | None, kind: Kind, points: int, sold: int) -> int:
    """Where points come back, their items do; else all that is reserved and not sold."""
    if taken is None:
        return 0
    return points // taken.points if kind in ("refund", "reversal") else taken.reserved - sold


def placed(event: OrderPlaced, catalogue: Catalogue) -> Order:
    taken = None
    if event.offer is not None:
        taken = offers.taken_by(
            catalogue,
            event.offer,
            event.resident,
            event.items,
            points=event.points // event.items,
            amount_fen=event.amount_fen // event.items,
            now=event.recorded_at,
        )
        offers.take(catalogue, taken)
    return Order(
        event.terminal,
        event.resident,
        event.points,
        event.amount_fen,
        offer=event.offer,
        items=event.items,
        taken=taken,
    )


def refused(event: OrderDeclined) -> Order:
    return Order(event.terminal, event.resident, event.points, 0, "declined", offer=event.offer, items=event.items)


def moved(event: OrderMoved, order: Order, till: Till, catalogue: Catalogue) -> None:
    if order.taken and event.items:
        offers.sell(catalogue, order.taken, event.items)
    elif order.taken:
        offers.give_back(catalogue, order.taken, event.returned)
    till.moved_at = event.recorded_at
    match event.kind:
        case "refund":
            order.refunds += event.count
            order.refunded_points += event.points
            order.refunded_fen += event.amount_fen
            till.refunds.add(event)
        case "reversal":
            order.reversed = True
            till.reversals.add(event)
        case kind:
            order.status = kind
            if kind == "sale":
                order.batch = event.batch
                till.sales.add(event)
