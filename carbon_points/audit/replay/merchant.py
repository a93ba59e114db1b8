"""Merchants: prices, terminals, and settlements that must say what the log says between their two vectors."""

from bisect import bisect_left
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from msgspec import Struct

from carbon_points.audit.finding import Wrong, must, same
from carbon_points.audit.replay.days import GRACE, History
from carbon_points.audit.replay.terminal import Terminal
from carbon_points.domain.event import Event
from carbon_points.domain.merchant import (
    MerchantRegistered,
    PriceChanged,
    SettlementClosed,
    TerminalEnrolled,
    TermsChanged,
)
from carbon_points.domain.terminal import TerminalKeyAdded, TerminalKeyEnded, TerminalSuspended
from carbon_points.journal.entry import Entry

PRICE_MOST_FEN = 10_000
Vector = Mapping[int, int]


def vector(said: Mapping[str, int], partitions: int) -> Vector:
    """Positions by partition. A partition that is not named stands at 0."""
    for name, position in said.items():
        must(name.isdecimal() and str(int(name)) == name and int(name) < partitions, f"there is no partition {name}")
        must(position >= 0, f"position {position} of partition {name}")
    return {partition: said.get(str(partition), 0) for partition in range(partitions)}


def not_before(later: Vector, earlier: Vector) -> bool:
    return all(later[partition] >= position for partition, position in earlier.items())


class Sum(Struct):
    """Captures and refunds of one merchant in one piece of the log."""

    captures: int = 0
    refunds: int = 0
    points: int = 0
    amount_fen: int = 0


class Settlement(Struct, frozen=True):
    entry: Entry
    event: SettlementClosed
    through: Vector
    sum: Sum

    def check(self) -> None:
        """What it says is what was summed. Raises Wrong."""
        for field in ("captures", "refunds", "points", "amount_fen"):
            same(field, getattr(self.event, field), getattr(self.sum, field))


class Merchant:
    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        self._prices: History[int] = History()
        self.confirm_above: History[int | None] = History()
        self._terminals: dict[str, datetime] = {}
        self._keys: dict[str, Terminal] = {}
        self.settlements: list[Settlement] = []
        self._ends: dict[int, list[int]] = {}

    def take(self, entry: Entry, event: Event) -> None:
        if not isinstance(event, MerchantRegistered) and self._prices.latest is None:
            raise Wrong("the merchant is not registered")
        match event:
            case MerchantRegistered() | PriceChanged():
                first = isinstance(event, MerchantRegistered)
                must(not first or self._prices.latest is None, "the merchant is registered already")
                if first:
                    self.confirm_above.add(event.recorded_at, None)
                must(1 <= event.fen_per_point <= PRICE_MOST_FEN, f"a point is worth {event.fen_per_point} fen")
                must(self._prices.latest != event.fen_per_point, "that is the price already")
                self._prices.add(event.recorded_at, event.fen_per_point)
            case TerminalEnrolled():
                must(event.terminal not in self._terminals, "the terminal is enrolled already")
                self._terminals[event.terminal] = event.recorded_at
                self._keys[event.terminal] = Terminal()
            case TerminalKeyAdded() | TerminalKeyEnded() | TerminalSuspended():
                must(event.terminal in self._keys, f"terminal {event.terminal} is not enrolled")
                self._keys[event.terminal].take(event)
            case TermsChanged():
                must(self.confirm_above.latest != event.confirm_above, "those are the terms already")
                self.confirm_above.add(event.recorded_at, event.confirm_above)
            case SettlementClosed():
                self._close(entry, event)
            case _:
                raise Wrong("not an event of a merchant")

    def _close(self, entry: Entry, event: SettlementClosed) -> None:
        after, through = vector(event.after, self._partitions), vector(event.through, self._partitions)
        last = self.settlements[-1].through if self.settlements else vector({}, self._partitions)
        same("after", after, last)
        must(not_before(through, after), "the settlement ends before it begins")
        must(event.amount_fen > 0, "nothing is settled")
        must(all(s.event.settlement_id != event.settlement_id for s in self.settlements), "this settlement is closed")
        self.settlements.append(Settlement(entry, event, through, Sum()))

    # -- what residents' entries say of the merchant -----------------------------------------------------------------

    def check_terminal(self, terminal: str, at: datetime) -> None:
        enrolled = self._terminals.get(terminal)
        must(enrolled is not None and enrolled <= at + GRACE, f"terminal {terminal} was not enrolled then")

    def check_worth(self, points: int, amount_fen: int, at: datetime) -> None:
        worth = [points * price for price in self._prices.around(at)]
        must(amount_fen in worth, f"{points} points were not worth {amount_fen} fen then")

    def count(self, entry: Entry, points: int, amount_fen: int, *, refund: bool) -> None:
        """Put a capture or a refund into the settlement that covers its position, if one does yet."""
        ends = self._ends.get(entry.partition)
        if ends is None or len(ends) != len(self.settlements):
            ends = self._ends[entry.partition] = [s.through[entry.partition] for s in self.settlements]
        index = bisect_left(ends, entry.position)
        if index == len(ends):
            return
        total = self.settlements[index].sum
        total.captures += not refund
        total.refunds += refund
        total.points += -points if refund else points
        total.amount_fen += -amount_fen if refund else amount_fen


class Merchants(dict[str, Merchant]):
    """By id. Asking for one that is not registered is a finding."""

    def __missing__(self, merchant: str) -> Any:
        raise Wrong(f"merchant {merchant} is not registered")
