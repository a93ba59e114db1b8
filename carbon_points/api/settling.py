"""Settling days and paying what is owed: what an operator asks for, a command does, and the server does each night.

All of it may be done by several processes at once, and again: a day of a merchant is settled under an identity of its
own, and a settlement is paid under its.
"""

import base64
import hashlib
import logging
import random
import threading
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from typing import Literal

import msgspec
from msgspec import Struct

from carbon_points.api.installation import Installation
from carbon_points.api.problems import ApiError
from carbon_points.domain import merchant as domain
from carbon_points.domain.fund import FundInsufficient, PayMerchant
from carbon_points.domain.merchant import (
    DAY_CLOSES_AFTER,
    CloseSettlement,
    DayNotOver,
    MerchantUnknown,
    NothingToSettle,
    SettlementClosed,
    SettlementFacts,
    SettlementOverlaps,
)
from carbon_points.domain.order import BatchClosed, BatchNotOpen, CloseBatch, NothingInBatch
from carbon_points.domain.quantity import CHINA, civil_day
from carbon_points.journal import codec
from carbon_points.journal.journal import Journal
from carbon_points.journal.partition import Outcome
from carbon_points.projections import batches as read_batches
from carbon_points.projections import fund as read_fund
from carbon_points.projections import merchants as read_merchants
from carbon_points.projections.batches import Left
from carbon_points.projections.settlement_file import Files, Head, files

CATCH_UP_SECONDS = 30.0
TRIES = 5  # where another closes a settlement of the same merchant at the same moment
APART = timedelta(seconds=60)  # how far entries of a partition may be out of the order of their times (FORMAT.md, 5)
LOOK_SECONDS = 30.0
IDLE = timedelta(minutes=15)  # in which nothing moved at a terminal that is left alone
PAGE = 100

log = logging.getLogger(__name__)


class Closed(Struct, frozen=True):
    merchant: str
    settlement_id: str
    day: str
    points: int
    amount_fen: int


class Settled(Struct, frozen=True):
    """`carried`: merchants of whom something is left that is worth nothing yet; it is in their next settlement."""

    day: str
    closed: tuple[Closed, ...]
    carried: tuple[str, ...]


class Payment(Struct, frozen=True):
    merchant: str
    settlement_id: str
    amount_fen: int


class Paid(Struct, frozen=True):
    """What was paid just now, and what waits: `short_fen` is missing to pay all of it."""

    paid: tuple[Payment, ...]
    balance_fen: int
    queued: int
    owed_fen: int
    short_fen: int


# -- settling --------------------------------------------------------------------------------------------------------


def id_of_day(merchant: str, day: date) -> str:
    """The settlement of a merchant's day, whoever closes it."""
    told = f"settlement\0{merchant}\0{day.isoformat()}".encode()
    return "stl_" + base64.b32encode(hashlib.sha256(told).digest()).decode().lower()[:20]


def due_day(now: datetime, at: time) -> date:
    """The last day that is to be settled by now: of each day on the next, at that time in China."""
    local = now.astimezone(CHINA)
    last = local.date() - timedelta(days=1 if local.time() >= at else 2)
    return min(last, civil_day(now - DAY_CLOSES_AFTER) - timedelta(days=1))  # a later one would be refused


def settle(installation: Installation, day: date, *, stopping: threading.Event | None = None) -> Settled:
    """Settle what is due of all merchants, each day up to this one by itself. Raises DayNotOver, ApiError.

    `stopping`: leave the other merchants to the next time, once it is set.
    """
    _must_be_over(installation, day)
    _caught_up(installation)
    ends = Ends(installation.journal)
    closed: list[Closed] = []
    carried: list[str] = []
    for merchant in installation.read_model.read(read_merchants.with_something_to_settle):
        if stopping and stopping.is_set():
            break
        found, left = _settle(installation, merchant, day, ends)
        closed += found
        carried += [merchant] * left
    return Settled(day.isoformat(), tuple(closed), tuple(carried))


def _settle(installation: Installation, merchant: str, until: date, ends: "Ends") -> tuple[list[Closed], bool]:
    """What was closed just now, and whether something is left that is worth nothing yet."""
    known = _merchant(installation, merchant)
    left = installation.read_model.read(read_merchants.settled, merchant, known.through, ends.of(until))
    found: list[Closed] = []
    # What was stamped before midnight and appended after an entry of the next day is of a later day: hence the last.
    for day in sorted({min(civil_day(row.recorded_at), until) for row in left} | {until} if left else ()):
        try:
            outcome = close(installation, merchant, id_of_day(merchant, day), day=day, ends=ends)
        except NothingToSettle:
            continue
        made = outcome.events[-1]
        assert isinstance(made, SettlementClosed)
        left = [row for row in left if row.position > made.through.get(str(row.partition), 0)]
        if not outcome.replayed:
            found.append(Closed(merchant, made.settlement_id, day.isoformat(), made.points, made.amount_fen))
        if not left:
            break
    return found, bool(left)


def close(
    installation: Installation,
    merchant: str,
    settlement_id: str,
    *,
    day: date | None = None,
    ends: "Ends | None" = None,
) -> Outcome:
    """Settle a merchant's day, or all until now. Raises the refusals of the decision, and ApiError."""
    for attempt in range(TRIES):
        known = _merchant(installation, merchant)
        if day is not None:
            _must_be_over(installation, day)
        if ends is None or attempt:  # who knows the ends has caught up with them, but not with whoever came between
            _caught_up(installation)
        try:
            facts = _facts(installation, known, settlement_id, day, ends or Ends(installation.journal))
            return installation.write_now(
                CloseSettlement(merchant=merchant, settlement_id=settlement_id, day=day), facts
            )
        except (SettlementOverlaps, ApiError):  # the other: an entry came that the rows do not follow yet
            if attempt == TRIES - 1:
                raise
    raise AssertionError("the last try returns or raises")


def _facts(
    installation: Installation, known: domain.Merchant, settlement_id: str, day: date | None, ends: "Ends"
) -> SettlementFacts:
    after = dict(known.through)
    with installation.read_model.snapshot() as at:
        reach = after | dict(ends.of(day) if day is not None else at.vector)
        through = {p: further for p, n in reach.items() if (further := max(n, after.get(p, 0)))}
        if any(at.positions.get(int(p), 0) < n for p, n in through.items()):
            raise ApiError("position-not-reached")
        rows = read_merchants.settled(at, known.id, after, through)
    totals = read_merchants.totals_of(rows)
    if totals.fen <= 0:  # it will be refused: spare the files
        return SettlementFacts(after, through, totals)
    roots = installation.roots.at(through)
    made = files(Head(known.id, known.name, settlement_id, day, after, through, roots), rows)
    return SettlementFacts(after, through, totals, roots, _sha256(made.json), _sha256(made.csv))


def _merchant(installation: Installation, merchant: str) -> domain.Merchant:
    known: domain.Merchant = installation.journal.state(f"merchant/{merchant}")
    if not known.name:
        raise MerchantUnknown(merchant=merchant)
    return known


def _must_be_over(installation: Installation, day: date) -> None:
    """The decision says so too; this is before everything that the facts cost."""
    if civil_day(installation.clock() - DAY_CLOSES_AFTER) <= day:
        raise DayNotOver(day=day)


def _caught_up(installation: Installation) -> None:
    if not installation.follower.catch_up(CATCH_UP_SECONDS):
        raise ApiError("position-not-reached")


# -- paying ----------------------------------------------------------------------------------------------------------


def pay(installation: Installation) -> Paid:
    """Pay what was settled first, and so on while the fund suffices. Raises ApiError.

    The first that it cannot pay stops it: nobody is paid before who waited longer.
    """
    _caught_up(installation)
    paid: list[Payment] = []
    while page := installation.read_model.read(read_merchants.unpaid, limit=PAGE):
        for waiting in page:
            command = PayMerchant(
                settlement_id=waiting.settlement_id, merchant=waiting.merchant, amount_fen=waiting.amount_fen
            )
            try:
                outcome = installation.write_now(command)
            except FundInsufficient:
                return _stopped(installation, paid)
            if not outcome.replayed:
                paid.append(Payment(waiting.merchant, waiting.settlement_id, waiting.amount_fen))
        _caught_up(installation)
    return _stopped(installation, paid)


def _stopped(installation: Installation, paid: list[Payment]) -> Paid:
    _caught_up(installation)
    found = installation.read_model.read(read_fund.fund)
    if found.queued:
        log.warning(
            "the fund is short: %d settlements wait for %d fen, it has %d and lacks %d",
            found.queued,
            found.owed_fen,
            found.balance_fen,
            found.short_fen,
        )
    return Paid(tuple(paid), found.balance_fen, found.queued, found.owed_fen, found.short_fen)


# -- each night ------------------------------------------------------------------------------------------------------


def close_batches(installation: Installation, at: time) -> list[BatchClosed]:
    """Close the batches that their terminals left open over that time of night, once they are quiet.

    One whose orders have not taken in everything is left to the next look.
    """
    now = installation.clock()

    def left_open(of: Left | None = None) -> list[Left]:
        begun, idle = last_time(now, at), now - IDLE
        return installation.read_model.read(read_batches.left_open, begun_before=begun, idle_since=idle, of=of)

    closed: list[BatchClosed] = []
    for one in left_open():
        # What its orders take in only now may have moved a moment ago: then it is not quiet.
        if not installation.finisher.settled(one.merchant, CATCH_UP_SECONDS) or not left_open(one):
            continue
        command = CloseBatch(merchant=one.merchant, terminal=one.terminal, batch=one.batch, by="auto")
        try:
            outcome = installation.write_now(command)
        except (BatchNotOpen, NothingInBatch):  # the rows were behind: it is closed
            continue
        made = outcome.events[-1]
        assert isinstance(made, BatchClosed)
        closed += [] if outcome.replayed else [made]
    return closed


def last_time(now: datetime, at: time) -> datetime:
    """The last moment at which it was that time of day in China."""
    today = datetime.combine(now.astimezone(CHINA).date(), at, CHINA)
    return today if today <= now else today - timedelta(days=1)


class Nightly:
    """Settles each day on the next, and closes batches that were left open, at the installation's times; in a thread
    of the server's. Several may do so.

    A server that was down then does it once it is up; and what failed is tried again at the next look.
    """

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._done: date | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="nightly", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Return when the settlement at hand is done."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def look(self) -> None:
        """Do what is due. Raises what settling and paying raise."""
        if (at := self._installation.settings.closing_at) is not None:
            for closed in close_batches(self._installation, at):
                log.info("closed batch %d of %s/%s by itself", closed.batch, closed.merchant, closed.terminal)
        at = self._installation.settings.settling_at
        if at is None or (day := due_day(self._installation.clock(), at)) == self._done:
            return
        found = settle(self._installation, day, stopping=self._stopping)
        log.info("settled %s: %d closed, %d carried", day, len(found.closed), len(found.carried))
        if self._installation.settings.pay_daily:
            pay(self._installation)
        self._done = day

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS * random.uniform(0.5, 1)):  # noqa: S311  # no secret: who is first
            try:
                self.look()
            except Exception:  # whatever it is, tomorrow comes: the loop must be there
                log.exception("what is due at night is not done; trying again")


# -- files -----------------------------------------------------------------------------------------------------------


class File(Struct, frozen=True):
    """The bytes of a settlement's file, and their SHA-256 in hex as the log has it."""

    content: bytes
    sha256: str
    day: date | None


def file_of(installation: Installation, merchant: str, settlement_id: str, form: Literal["csv", "json"]) -> File:
    """A settlement's file, made again from the log. Raises ApiError."""
    entry = installation.journal.find(("settlement", merchant, settlement_id))
    closed = codec.decode(entry.type, entry.state) if entry else None
    if not isinstance(closed, SettlementClosed):
        raise ApiError("settlement-unknown", settlement_id)
    if not closed.json_sha256:
        raise ApiError("settlement-without-file", settlement_id)
    made = _made_again(installation, closed)
    content = made.csv if form == "csv" else made.json
    sha256 = closed.csv_sha256 if form == "csv" else closed.json_sha256
    if _sha256(content) != sha256:
        # Read models that are wrong, or a program that writes files otherwise: never hand out another file.
        raise RuntimeError(f"the {form} file of {settlement_id} does not have the digest that the log says")
    return File(content, sha256, closed.day)


def _made_again(installation: Installation, closed: SettlementClosed) -> Files:
    for partition, position in closed.through.items():
        if not installation.read_model.wait_for(int(partition), position, CATCH_UP_SECONDS):
            raise ApiError("position-not-reached")
    rows = installation.read_model.read(read_merchants.settled, closed.merchant, closed.after, closed.through)
    name = _merchant(installation, closed.merchant).name
    head = Head(
        closed.merchant, name, closed.settlement_id, closed.day, closed.after, closed.through, closed.roots or {}
    )
    return files(head, rows)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# -- the log at a moment ---------------------------------------------------------------------------------------------


class _Recorded(Struct, frozen=True):
    recorded_at: datetime


_recorded = msgspec.json.Decoder(_Recorded)


class Ends:
    """How far each partition of the log goes at the end of a day in China: to before its first later entry."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._known: dict[date, dict[str, int]] = {}

    def of(self, day: date) -> Mapping[str, int]:
        if day not in self._known:
            end = datetime.combine(day, time.max, CHINA)
            heads = self._journal.heads()
            self._known[day] = {str(p): self._end(p, head, end) for p, head in heads.items()}
        return self._known[day]

    def _end(self, partition: int, head: int, end: datetime) -> int:
        """By halves to where all may be earlier or later, then one by one: times are nearly in order, not quite."""
        low, high = 0, head + 1  # nothing up to `low` is later than the end
        while high - low > 1:
            middle = (low + high) // 2
            if self._at(partition, middle) <= end - APART:
                low = middle
            else:
                high = middle
        for entry in self._journal.entries(partition, low, head):
            if _recorded.decode(entry.state).recorded_at > end:
                return entry.position - 1
        return head

    def _at(self, partition: int, position: int) -> datetime:
        [entry] = self._journal.entries(partition, position - 1, position)
        return _recorded.decode(entry.state).recorded_at
