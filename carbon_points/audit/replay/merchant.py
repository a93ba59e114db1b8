"""Merchants: prices, terminals, and settlements that must say what the log says between their two vectors."""

from bisect import bisect_left
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from msgspec import Struct

from carbon_points.audit.finding import Wrong, must, same
from carbon_points.audit.replay.days import GRACE, History, china_day
from carbon_points.audit.replay.settlement_file import Heading, Line, decode, digests, encode, sums
from carbon_points.audit.replay.terminal import Terminal
from carbon_points.audit.scratch import Scratch
from carbon_points.domain.event import Event
from carbon_points.domain.merchant import (
    MerchantRegistered,
    PriceChanged,
    SettlementClosed,
    TerminalEnrolled,
    TermsChanged,
)
from carbon_points.domain.offline import Offline
from carbon_points.domain.terminal import TerminalKeyAdded, TerminalKeyEnded, TerminalSuspended
from carbon_points.journal.entry import Entry

PRICE_MOST_FEN = 10_000
DAY_CLOSES_AFTER = timedelta(minutes=5)
CLOCK_SKEW = timedelta(minutes=5)
POINTS_MOST, COUNT_MOST, HOURS_MOST = 10**9, 500, 24  # of what is taken offline
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


class Mark(Struct, frozen=True):
    """A partition as far as some position: its Merkle root in hex, and when its latest entry was recorded."""

    root: str
    latest: datetime


class Settlement(Struct, frozen=True):
    entry: Entry
    event: SettlementClosed
    after: Vector
    through: Vector
    sum: Sum

    def check(self) -> None:
        """What it says is what was summed. Raises Wrong."""
        for field in ("captures", "refunds", "points", "amount_fen"):
            same(field, getattr(self.event, field), getattr(self.sum, field))

    def check_files(self, name: str, marks: Mapping[tuple[int, int], Mark], scratch: Scratch) -> None:
        """Its day, its roots of the log and its files are what the log comes to. Raises Wrong."""
        event = self.event
        if not event.json_sha256:  # of before there were files
            extra = (event.day, event.totals, event.roots, event.csv_sha256)
            same("what settlements say that have files", extra, (None, None, None, ""))
            return
        reached = {partition: marks[partition, position] for partition, position in self.through.items() if position}
        for partition, mark in reached.items():
            late = event.day is not None and china_day(mark.latest) > event.day
            must(not late or self.after[partition] == self.through[partition], f"partition {partition}: a later day's")
        roots = {str(partition): mark.root for partition, mark in reached.items()}
        same("roots", event.roots, roots)
        until = self.through[self.entry.partition]
        lines = [
            line.in_batch(scratch.moves(self.entry.stream, line.redemption_id, line.kind, until)).taken(
                scratch.offline(self.entry.stream, line.redemption_id, until)
            )
            for line in map(decode, scratch.lines(event.merchant, event.settlement_id))
        ]
        same("totals", msgspec.to_builtins(event.totals), sums(lines))
        heading = Heading(event.merchant, name, event.settlement_id, event.day, event.after, event.through, roots)
        same("digests of the files", (event.json_sha256, event.csv_sha256), digests(heading, lines))


class Merchant:
    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        self.name = ""
        self._prices: History[int] = History()
        self.confirm_above: History[int | None] = History()
        self.offline: History[Offline | None] = History()
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
                    self.offline.add(event.recorded_at, None)
                must(1 <= event.fen_per_point <= PRICE_MOST_FEN, f"a point is worth {event.fen_per_point} fen")
                must(self._prices.latest != event.fen_per_point, "that is the price already")
                self.name = event.name if isinstance(event, MerchantRegistered) else self.name
                self._prices.add(event.recorded_at, event.fen_per_point)
            case TerminalEnrolled():
                must(event.terminal not in self._terminals, "the terminal is enrolled already")
                self._terminals[event.terminal] = event.recorded_at
                self._keys[event.terminal] = Terminal()
            case TerminalKeyAdded() | TerminalKeyEnded() | TerminalSuspended():
                must(event.terminal in self._keys, f"terminal {event.terminal} is not enrolled")
                self._keys[event.terminal].take(event)
            case TermsChanged():
                now = self.confirm_above.latest, self.offline.latest
                must(now != (event.confirm_above, event.offline), "those are the terms already")
                must(event.offline is None or _sound(event.offline), "the terms of what is taken offline are none")
                self.confirm_above.add(event.recorded_at, event.confirm_above)
                self.offline.add(event.recorded_at, event.offline)
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
        over = event.day is None or china_day(event.recorded_at - DAY_CLOSES_AFTER) > event.day
        must(over, f"the day {event.day} was not over")
        self.settlements.append(Settlement(entry, event, after, through, Sum()))

    # -- what residents' entries say of the merchant -----------------------------------------------------------------

    def check_terminal(self, terminal: str, at: datetime) -> None:
        enrolled = self._terminals.get(terminal)
        must(enrolled is not None and enrolled <= at + GRACE, f"terminal {terminal} was not enrolled then")

    def check_worth(self, points: int, amount_fen: int, at: datetime) -> None:
        worth = [points * price for price in self._prices.around(at)]
        must(amount_fen in worth, f"{points} points were not worth {amount_fen} fen then")

    def check_offline(self, points: int, captured_at: datetime, at: datetime) -> None:
        """Some terms of then let a terminal take that many points offline, that long before."""
        must(captured_at <= at + CLOCK_SKEW, "it was taken offline at a time that had not come")
        allowed = any(
            terms is not None and points <= terms.most_points and at - captured_at <= _hours(terms.most_age_hours)
            for terms in self.offline.around(at)
        )
        must(allowed, f"the merchant's terms say otherwise of {points} points taken offline at {captured_at}")

    def count(self, line: Line, scratch: Scratch) -> None:
        """Put a capture or a refund into the settlement that covers its position, if one does yet."""
        ends = self._ends.get(line.partition)
        if ends is None or len(ends) != len(self.settlements):
            ends = self._ends[line.partition] = [s.through[line.partition] for s in self.settlements]
        index = bisect_left(ends, line.position)
        if index == len(ends):
            return
        total, event = self.settlements[index].sum, self.settlements[index].event
        refund = line.kind != "sale"
        total.captures += not refund
        total.refunds += refund
        total.points += -line.points if refund else line.points
        total.amount_fen += -line.amount_fen if refund else line.amount_fen
        if event.json_sha256:
            place = (line.recorded_at.astimezone(UTC).isoformat(timespec="microseconds"), line.partition, line.position)
            scratch.keep_line(event.merchant, event.settlement_id, place, encode(line))


def _hours(hours: int) -> timedelta:
    return timedelta(hours=hours)


def _sound(terms: Offline) -> bool:
    amounts = 1 <= terms.most_points <= POINTS_MOST and 1 <= terms.most_sum <= POINTS_MOST
    return amounts and 1 <= terms.most_count <= COUNT_MOST and 1 <= terms.most_age_hours <= HOURS_MOST


class Merchants(dict[str, Merchant]):
    """By id. Asking for one that is not registered is a finding."""

    def __missing__(self, merchant: str) -> Any:
        raise Wrong(f"merchant {merchant} is not registered")
