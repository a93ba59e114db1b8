"""Orders: what a terminal asked for under its own reference, and what came of it.

An order lies with its merchant, the points with their resident, and no transaction spans both. So an order is placed
before anything is held, and is brought to what the resident's stream says after that, as often as it takes.

Invariant: whatever an order moves counts in one batch of its terminal, and once.
"""

from datetime import datetime
from typing import Annotated, ClassVar, Literal

from msgspec import Meta, Struct, field

from carbon_points.domain.event import Command, Event, Id
from carbon_points.domain.refusal import Refusal

Kind = Literal["sale", "refund", "reversal", "void", "expiry", "decline", "release"]
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
    """A terminal, or an app for it, asks for a resident's points. `code`: the payment code that it uses
    up, by its step."""

    claimed_everywhere: ClassVar[bool] = True

    merchant: Id
    terminal: Id
    redemption_id: str
    resident: str
    points: int
    hold_seconds: int
    capture: bool = False
    code: str | None = None

    def claim(self) -> tuple[str, ...]:
        return ("order", self.redemption_id)


class ReverseOrder(Command):
    """Undo what a reference asked for, whether or not it has come: it may be on its way still."""

    merchant: Id
    terminal: Id
    redemption_id: str
    points: Annotated[int, Meta(ge=1)]
    reason: Reason

    def claim(self) -> tuple[str, ...]:
        return ("order-reversal", self.redemption_id)

    def differs(self, event: Event) -> list[str]:
        return [f for f in super().differs(event) if f != "reason"]  # it may be repeated for another one


class FollowOrder(Command):
    """Bring an order to what the resident's stream says of its redemption. `ended` is the end of its hold; refunds
    are without what a reversal gave back."""

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


class OrderPlaced(Event):
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


class OrderReversed(Event):
    """What the reference asked for is undone or, where it had not come (`resident` is not known), never happens."""

    type_name: ClassVar[str] = "order-reversed/1"
    merchant: str
    terminal: str
    redemption_id: str
    points: int
    reason: Reason
    resident: str | None = None


class OrderMoved(Event):
    """Something came of an order, and counts in this batch: `count` times, of so many points and fen in all."""

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


class Order(Struct, omit_defaults=True):
    """`status`: placed, reversed (before it came), or the kind of its first move. `batch` is the sale's."""

    terminal: str
    resident: str
    points: int
    amount_fen: int
    status: str = "placed"
    batch: int = 0
    refunds: int = 0
    refunded_points: int = 0
    refunded_fen: int = 0
    reversed: bool = False


class Sum(Struct):
    count: int = 0
    points: int = 0
    fen: int = 0

    def add(self, event: OrderMoved) -> None:
        self.count += event.count
        self.points += event.points
        self.fen += event.amount_fen


class Till(Struct):
    """A terminal's open batch, and what counts in it so far."""

    batch: int = 1
    sales: Sum = field(default_factory=Sum)
    refunds: Sum = field(default_factory=Sum)
    reversals: Sum = field(default_factory=Sum)
    moved_at: datetime | None = None


class RedemptionReversed(Refusal):
    code = "redemption-reversed"
    title = "The redemption was reversed before it came"


class ReversalMismatch(Refusal):
    code = "reversal-mismatch"
    title = "The redemption was for another number of points"


class UseRefund(Refusal):
    code = "use-refund"
    title = "The batch of this sale is closed: refund it"


def place(
    command: PlaceOrder, order: Order | None, *, fen_per_point: int, confirm_above: int | None, now: datetime
) -> list[Event]:
    """Refusals: RedemptionReversed."""
    if order is not None:  # the claim knows of those that were placed
        raise RedemptionReversed(redemption=command.redemption_id, current_state="reversed")
    asks = command.code is not None and confirm_above is not None and command.points > confirm_above
    return [
        OrderPlaced(
            recorded_at=now,
            merchant=command.merchant,
            terminal=command.terminal,
            redemption_id=command.redemption_id,
            resident=command.resident,
            points=command.points,
            amount_fen=command.points * fen_per_point,
            hold_seconds=command.hold_seconds,
            capture=command.capture,
            code=command.code,
            confirm_seconds=CONFIRM_SECONDS if asks else 0,
        )
    ]


def reverse(command: ReverseOrder, order: Order | None, till: Till, *, now: datetime) -> list[Event]:
    """Refusals, in order: ReversalMismatch, UseRefund."""
    if order and order.points != command.points:
        raise ReversalMismatch(points=order.points, wanted=command.points)
    if order and order.status == "sale" and order.batch != till.batch:
        raise UseRefund(redemption=command.redemption_id, batch=order.batch)
    return [
        OrderReversed(
            recorded_at=now,
            merchant=command.merchant,
            terminal=command.terminal,
            redemption_id=command.redemption_id,
            points=command.points,
            reason=command.reason,
            resident=order.resident if order else None,
        )
    ]


def follow(command: FollowOrder, order: Order, till: Till, *, now: datetime) -> list[Event]:
    """What the order has not counted yet, in the terminal's open batch."""
    moves: list[tuple[Kind, int, int, int]] = []
    if order.status == "placed" and command.ended:
        kind = _KINDS[command.ended]
        moves.append((kind, 1, command.captured_points or order.points, command.captured_fen))
    if refunds := command.refunds - order.refunds:
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
        )
        for kind, count, points, amount_fen in moves
    ]


def placed(event: OrderPlaced) -> Order:
    return Order(event.terminal, event.resident, event.points, event.amount_fen)


def moved(event: OrderMoved, order: Order, till: Till) -> None:
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
