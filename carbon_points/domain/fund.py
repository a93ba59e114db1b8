"""The fund: money in from buyers and sponsors, out to merchants.

Invariant: the balance is never below zero; a payment that it cannot cover is refused, and may be made later.
"""

from datetime import datetime
from typing import ClassVar, Literal

from msgspec import Struct

from carbon_points.domain.event import Amount, Command, Event, Id, Text
from carbon_points.domain.refusal import Refusal

FEN_MOST = 10**15  # ten trillion yuan: beyond any fund, below 2^53


class ReceiveMoney(Command):
    """Money that came in: `origin` "sale" with its `sale_id`, or "sponsor"."""

    receipt_id: str
    origin: Literal["sale", "sponsor"]
    payer: Text
    amount_fen: Amount
    sale_id: Id | None = None

    def claim(self) -> tuple[str, ...]:
        return ("receipt", self.receipt_id)


class PayMerchant(Command):
    """Pay what a settlement owes."""

    settlement_id: str
    merchant: str
    amount_fen: Amount

    def claim(self) -> tuple[str, ...]:
        return ("payment", self.merchant, self.settlement_id)


class MoneyReceived(Event):
    type_name: ClassVar[str] = "money-received/1"
    receipt_id: str
    origin: Literal["sale", "sponsor"]
    payer: str
    amount_fen: int
    sale_id: str | None = None


class MerchantPaid(Event):
    type_name: ClassVar[str] = "merchant-paid/1"
    settlement_id: str
    merchant: str
    amount_fen: int


class Fund(Struct):
    balance_fen: int = 0


class FundInsufficient(Refusal):
    code = "fund-insufficient"
    title = "The fund cannot cover the payment now"


class MoneyInvalid(Refusal):
    code = "money-invalid"
    title = "Money is a whole number of fen above zero"


def decide(fund: Fund, command: Command, *, now: datetime) -> list[Event]:
    """Refusals, in order: MoneyInvalid, FundInsufficient."""
    assert isinstance(command, ReceiveMoney | PayMerchant)
    if not 0 < command.amount_fen <= FEN_MOST:
        raise MoneyInvalid(amount_fen=command.amount_fen)
    if isinstance(command, ReceiveMoney):
        return [
            MoneyReceived(
                recorded_at=now,
                receipt_id=command.receipt_id,
                origin=command.origin,
                payer=command.payer,
                amount_fen=command.amount_fen,
                sale_id=command.sale_id,
            )
        ]
    if command.amount_fen > fund.balance_fen:
        raise FundInsufficient(balance_fen=fund.balance_fen, wanted_fen=command.amount_fen)
    return [
        MerchantPaid(
            recorded_at=now,
            settlement_id=command.settlement_id,
            merchant=command.merchant,
            amount_fen=command.amount_fen,
        )
    ]


def evolve(fund: Fund, event: Event) -> None:
    match event:
        case MoneyReceived():
            fund.balance_fen += event.amount_fen
        case MerchantPaid():
            fund.balance_fen -= event.amount_fen
        case _:
            raise AssertionError(f"not a fund's event: {event.type_name}")
