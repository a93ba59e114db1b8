"""The fund: it never pays what it does not have, and what moves in and out was sold and settled."""

from datetime import datetime

from carbon_points.audit.finding import Wrong, must, same
from carbon_points.audit.replay.days import GRACE
from carbon_points.audit.replay.merchant import Merchants
from carbon_points.domain.event import Event
from carbon_points.domain.fund import MerchantPaid, MoneyReceived
from carbon_points.domain.lot import UnitsSold

FEN_MOST = 10**15


class Fund:
    def __init__(self) -> None:
        self._balance_fen = 0
        self._receipts: set[str] = set()
        self._paid: set[tuple[str, str]] = set()
        self._sales_paid: dict[str, int] = {}

    def take(self, event: Event) -> None:
        match event:
            case MoneyReceived():
                must(event.receipt_id not in self._receipts, "this receipt is in the log already")
                self._receipts.add(event.receipt_id)
                self._balance_fen += event.amount_fen
            case MerchantPaid():
                place = (event.merchant, event.settlement_id)
                must(place not in self._paid, "this settlement is paid already")
                self._paid.add(place)
                self._balance_fen -= event.amount_fen
            case _:
                raise Wrong("not an event of the fund")
        must(0 < event.amount_fen <= FEN_MOST, f"the amount is {event.amount_fen} fen")
        must(self._balance_fen >= 0, f"the fund would stand at {self._balance_fen} fen")

    def check_origin(self, event: Event, sales: list[UnitsSold], merchants: Merchants) -> None:
        """Money came from a sale that says so, once, or went to a settlement that says so. In the order of the log."""
        match event:
            case MoneyReceived(origin="sale"):
                same("a receipt of a sale that names it", event.sale_id is not None, True)
                fitting = [s for s in sales if _fits(s, event)]
                must(bool(fitting), f"no sale {event.sale_id} of {event.payer} was for {event.amount_fen} fen")
                paid = self._sales_paid[event.sale_id or ""] = self._sales_paid.get(event.sale_id or "", 0) + 1
                must(paid <= len(fitting), f"sale {event.sale_id} is paid already")
            case MoneyReceived():
                must(event.sale_id is None, "a sponsor's money is of no sale")
            case MerchantPaid():
                settlements = [s.event for s in merchants[event.merchant].settlements]
                closed = [s for s in settlements if s.settlement_id == event.settlement_id]
                must(bool(closed), "no such settlement was closed")
                must(_by_then(closed[0].recorded_at, event.recorded_at), "the settlement was closed later")
                same("amount_fen", event.amount_fen, closed[0].amount_fen)
            case _:
                raise Wrong("not an event of the fund")


def _fits(sale: UnitsSold, receipt: MoneyReceived) -> bool:
    sold = (sale.sale_id, sale.buyer, sale.price_fen)
    paid = (receipt.sale_id, receipt.payer, receipt.amount_fen)
    return sold == paid and _by_then(sale.recorded_at, receipt.recorded_at)


def _by_then(done: datetime, at: datetime) -> bool:
    return done <= at + GRACE
