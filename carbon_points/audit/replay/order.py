"""Orders, every one of them recomputed: placed as the merchant's terms then were, moved once, in the open batch.

They are as many as redemptions: like the parts of accounts, they lie in the scratch. What an order says it moved is
held against what the resident's entries say when all partitions are read.
"""

from typing import Any

import msgspec

from carbon_points.audit.finding import Wrong, must, same
from carbon_points.audit.replay.book import Book
from carbon_points.audit.replay.offer import CATALOGUE, Shelves
from carbon_points.audit.scratch import Scratch
from carbon_points.domain.account import HoldDeclined, PointsHeld
from carbon_points.domain.event import Event
from carbon_points.domain.order import (
    BatchClosed,
    Order,
    OrderDeclined,
    OrderMoved,
    OrderPlaced,
    OrderReversed,
    Sum,
    Tally,
    Till,
)
from carbon_points.journal.entry import Entry

CONFIRM_SECONDS = 60
ALLOWANCE = "alw:"  # what a code begins with that is an allowance
ORDERS = (OrderPlaced, OrderDeclined, OrderReversed, OrderMoved, BatchClosed, *CATALOGUE)
_FREE = ("void", "expiry", "decline", "release")  # moves by which nothing was sold

_encode = msgspec.json.Encoder().encode
_order = msgspec.json.Decoder(Order)
_till = msgspec.json.Decoder(Till)


class Orders:
    """Those of one partition's merchants."""

    def __init__(self, book: Book, scratch: Scratch) -> None:
        self._book, self._scratch = book, scratch
        self._shelves = Shelves(book, scratch)

    def take(self, entry: Entry, event: Event) -> None:
        """Raises Wrong."""
        said: Any = event
        same("merchant", f"merchant/{said.merchant}", entry.stream)
        match event:
            case OrderPlaced():
                self._placed(entry, event)
            case OrderDeclined():
                self._declined(entry, event)
            case OrderReversed():
                self._reversed(entry, event)
            case OrderMoved():
                self._moved(entry, event)
            case BatchClosed():
                self._closed(entry, event)
            case _:
                self._shelves.take(entry, event)

    def _placed(self, entry: Entry, event: OrderPlaced) -> None:
        must(self._find(entry, event.redemption_id) is None, "the order is in the log already")
        merchant = self._book.merchants[event.merchant]
        merchant.check_terminal(event.terminal, event.recorded_at)
        if event.offer is None:
            merchant.check_worth(event.points, event.amount_fen, event.recorded_at)
        must(event.points > 0, f"an order of {event.points} points")
        offline = event.captured_offline_at
        if offline is not None:
            merchant.check_offline(event.points, offline, event.recorded_at)
            must(event.capture and event.offer is None, "what was taken offline was no payment of points")
            self._scratch.keep_offline(entry.stream, event.redemption_id, entry.position, offline)
        by_allowance = event.code is not None and event.code.startswith(ALLOWANCE)
        must((offline is not None) == by_allowance, "an allowance pays what was taken offline, and nothing else does")
        asks = [
            event.code is not None and not by_allowance and above is not None and event.points > above
            for above in merchant.confirm_above.around(event.recorded_at)
        ]
        must((event.confirm_seconds > 0) in (asks or [False]), "the merchant's terms say otherwise of agreeing")
        must(event.confirm_seconds in (0, CONFIRM_SECONDS), f"the resident has {event.confirm_seconds} s to agree")
        order = Order(event.terminal, event.resident, event.points, event.amount_fen)
        order.offer, order.items = event.offer, event.items
        order.taken = self._shelves.placed(entry, event)
        self._keep(entry, event, order)
        self._scratch.ordered(event.redemption_id, event.resident, asked(event), terms(event))

    def _declined(self, entry: Entry, event: OrderDeclined) -> None:
        must(self._find(entry, event.redemption_id) is None, "the order is in the log already")
        self._book.merchants[event.merchant].check_terminal(event.terminal, event.recorded_at)
        self._shelves.declined(entry, event)
        order = Order(event.terminal, event.resident, event.points, 0, "declined", offer=event.offer, items=event.items)
        self._keep(entry, event, order)
        self._scratch.ordered(event.redemption_id, event.resident, asked(event), None)

    def _reversed(self, entry: Entry, event: OrderReversed) -> None:
        order = self._find(entry, event.redemption_id)
        if order is None:
            must(event.resident is None, "an order that never came has no resident")
            self._keep(entry, event, Order(event.terminal, "", event.points, 0, "reversed"))
            return
        same("terminal", event.terminal, order.terminal)
        same("resident", event.resident, order.resident)
        same("points", event.points, order.points)
        if event.offer is not None:
            same("offer and items", (event.offer, event.items), (order.offer, order.items))
        open_batch = self._till(entry, event.terminal).batch
        must(order.status != "sale" or order.batch == open_batch, "the batch of the sale was closed")

    def _moved(self, entry: Entry, event: OrderMoved) -> None:
        order, till = self._find(entry, event.redemption_id), self._till(entry, event.terminal)
        if order is None:
            raise Wrong("there is no such order")
        same("terminal", event.terminal, order.terminal)
        same("resident", event.resident, order.resident)
        same("batch", event.batch, till.batch)
        must(event.points > 0, f"{event.points} points are moved")
        must(event.count == 1 if event.kind != "refund" else event.count > 0, f"it counts {event.count} times")
        if event.kind in ("refund", "reversal"):
            must(order.status == "sale" and not order.reversed, "there is no sale to give back")
        else:
            must(order.status in ("placed", "declined"), "the order has moved already")
            must(order.status == "placed" or event.kind != "sale", "the order was declined")
        self._shelves.moved(entry, event, order.taken)
        match event.kind:
            case "sale":
                must(event.points <= order.points, f"{event.points} points are sold of {order.points}")
                same("amount_fen", event.amount_fen, order.amount_fen * event.points // order.points)
                order.status, order.batch = "sale", event.batch
                _add(till.sales, event)
            case "refund":
                order.refunds += event.count
                order.refunded_points += event.points
                order.refunded_fen += event.amount_fen
                _add(till.refunds, event)
            case "reversal":
                order.reversed = True
                _add(till.reversals, event)
            case kind:
                must(kind in _FREE and event.points == order.points and event.amount_fen == 0, "nothing is sold by it")
                order.status = kind
        till.moved_at = event.recorded_at
        self._keep(entry, event, order)
        self._scratch.keep(entry.stream, f"tills/{event.terminal}", entry.version, _encode(till))
        figures = (event.count, event.points, event.amount_fen)
        self._scratch.moved(event.redemption_id, event.resident, event.kind, *figures)
        self._scratch.keep_move(entry.stream, event.redemption_id, event.kind, entry.position, event.batch, event.count)

    def _closed(self, entry: Entry, event: BatchClosed) -> None:
        till = self._till(entry, event.terminal)
        self._book.merchants[event.merchant].check_terminal(event.terminal, event.recorded_at)
        same("batch", event.batch, till.batch)
        summed = {name: _figures(getattr(till, name)) for name in ("sales", "refunds", "reversals")}
        same("totals", {name: _figures(getattr(event.totals, name)) for name in summed}, summed)
        must(event.by == "terminal" or any(map(any, summed.values())), "nothing moved in the batch")
        after = Till(batch=event.batch + 1)
        self._scratch.keep(entry.stream, f"tills/{event.terminal}", entry.version, _encode(after))

    def _find(self, entry: Entry, redemption_id: str) -> Order | None:
        value = self._scratch.part(entry.stream, f"orders/{redemption_id}")
        return _order.decode(value) if value else None

    def _till(self, entry: Entry, terminal: str) -> Till:
        value = self._scratch.part(entry.stream, f"tills/{terminal}")
        return _till.decode(value) if value else Till()

    def _keep(self, entry: Entry, event: Any, order: Order) -> None:
        self._scratch.keep(entry.stream, f"orders/{event.redemption_id}", entry.version, _encode(order))


def asked(event: OrderPlaced | OrderDeclined | HoldDeclined | PointsHeld) -> str:
    """What an order asks for, as one word."""
    return f"{event.merchant} {event.terminal} {event.points}"


def terms(event: OrderPlaced | PointsHeld) -> str:
    code = event.code if isinstance(event, OrderPlaced) else event.code_step
    hold = f"{event.amount_fen} {event.hold_seconds} {event.confirm_seconds} {event.capture}"
    return f"{hold} {code} {event.offer} {event.items}"


def _figures(total: Sum | Tally) -> tuple[int, int, int]:
    return total.count, total.points, total.fen


def _add(total: Sum, event: OrderMoved) -> None:
    total.count += event.count
    total.points += event.points
    total.fen += event.amount_fen
