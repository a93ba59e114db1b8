"""Residents' accounts, every movement recomputed: consents, actions and rides, points, redemptions, pooling.

An account has the shape that the journal caches (so that the two can be compared), but what changes it here is
written from FORMAT.md: neither the domain's decisions nor its evolve. What grows with years lies in the scratch.
"""

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from carbon_points.audit.finding import Wrong, must, same
from carbon_points.audit.replay import methodology
from carbon_points.audit.replay.book import Book
from carbon_points.audit.replay.days import china_day, month, span
from carbon_points.audit.replay.identity import Words, identity
from carbon_points.audit.replay.methodology import Period
from carbon_points.audit.replay.order import asked, terms
from carbon_points.audit.replay.settlement_file import Line
from carbon_points.audit.scratch import Scratch
from carbon_points.domain import account as shapes
from carbon_points.domain.account import Account, Hold, Redemption, Tap
from carbon_points.domain.consent import Consent
from carbon_points.domain.event import Event
from carbon_points.domain.methodology import Table, Taps, Used
from carbon_points.domain.posting import Posting, postings
from carbon_points.journal.entry import Entry, claim_key

T = TypeVar("T")
Allocations = Iterable[tuple[date, int]]
# The numbers of format 1 (FORMAT.md): not the domain's, which may change with a later format.
CLOCK_SKEW = timedelta(minutes=5)
TAPS_KEPT = 16
REGRANT_DAYS = 30
HOLD_MOST_SECONDS = 7 * 24 * 3600
POINTS_MOST = 10**9
EXIT_WITHOUT_ENTRY = "exit-without-entry"
CONFIRM_SECONDS = 60
RUN_OUT = ("expired", "unconfirmed")  # causes that are time's alone

_encode = msgspec.json.Encoder(decimal_format="string").encode


class Original(Struct, frozen=True, array_like=True):
    """What a reversal must know of the action that it takes back."""

    methodology: str
    version: str
    day: date
    counted: Decimal
    points: int
    reduction_mg: int
    expires_on: date


_used = msgspec.json.Decoder(dict[str, Used])
_redemption = msgspec.json.Decoder(Redemption)
_original = msgspec.msgpack.Decoder(Original)


class Resident:
    """One account. `opening` is the source that opens it, until its report is there; `spending` the redemption that
    the same command captures, until it has; `pools` is where it gave."""

    __slots__ = ("account", "opening", "pools", "position", "spending", "version")

    def __init__(self, stream: str) -> None:
        self.account = Account(stream)
        self.opening: str | None = None
        self.spending: tuple[str, str] | None = None
        self.pools: frozenset[str] = frozenset()
        self.position = self.version = 0


class Residents:
    """The accounts of one partition."""

    def __init__(self, partition: int, book: Book, scratch: Scratch) -> None:
        self.by_stream: dict[str, Resident] = {}
        self._partition, self._book, self._scratch = partition, book, scratch

    def take(self, entry: Entry, event: Event) -> list[Posting]:
        """Check an event against the account, and change the account. Its postings. Raises Wrong."""
        same("resident", getattr(event, "resident", None), entry.stream)
        resident = self.by_stream.get(entry.stream) or Resident(entry.stream)
        account = resident.account
        must(account.opened or isinstance(event, shapes.AccountOpened), "no account is open for this resident")
        _nothing_due(account, event)
        _opens_as_it_should(resident, event)
        _spends_as_it_should(resident, event)
        moved = postings(event)
        before = _standing(account) if moved else None
        self._check(resident, event, entry)
        resident.version, resident.position = entry.version, entry.position
        self.by_stream[entry.stream] = resident
        if before:
            _check_moves(entry.stream, before, _standing(account), moved)
        return moved

    def _check(self, resident: Resident, event: Event, entry: Entry) -> None:
        account = resident.account
        match event:
            case shapes.TapRecorded():
                self._tapped(account, event)
            case shapes.ActionCredited():
                self._credited(account, event, entry)
            case shapes.ConsentGiven():
                _consented(account, event)
            case shapes.AccountOpened():
                self._opened(resident, event)
            case shapes.PointsHeld():
                self._held(resident, event, entry)
            case shapes.HoldDeclined():
                self._declined(account, event, entry)
            case shapes.HoldConfirmed():
                self._confirmed(resident, event, entry)
            case shapes.PointsCaptured():
                self._captured(resident, event, entry)
            case shapes.HoldReleased():
                self._released(account, event, entry)
            case shapes.PointsRefunded():
                self._refunded(account, event, entry)
            case shapes.PointsExpired():
                _expired(account, event)
            case shapes.ActionReversed():
                self._reversed(account, event, entry)
            case shapes.ReductionsPooled():
                self._pooled(resident, event, entry)
            case shapes.ConsentWithdrawn():
                must(account.consents.pop(event.consent_id, None) is not None, "no such consent is in force")
            case shapes.AccountFrozen():
                must(event.frozen != account.frozen, "that is how the account stands already")
                account.frozen = event.frozen
            case _:
                raise Wrong("not an event of a resident")

    def identity(self, event: Any) -> Words | None:
        """The identity that an event used, once it is taken: the last one of its command has it."""
        resident = self.by_stream[event.resident]
        if isinstance(event, shapes.ConsentGiven) and resident.opening is not None:
            return None
        if isinstance(event, shapes.HoldConfirmed):
            return None if resident.spending else ("confirmation", event.redemption_id)
        return identity(event)

    def kept(self, event: Event) -> bytes | None:
        """What a later reversal must know of this event."""
        if not isinstance(event, shapes.ActionCredited):
            return None
        e = event
        original = Original(e.methodology, e.version, _day(e), e.counted, e.points, e.reduction_mg, e.expires_on)
        return msgspec.msgpack.encode(original)

    def used(self, stream: str, part: str) -> dict[str, Used]:
        value = self._scratch.part(stream, part)
        return _used.decode(value) if value else {}

    def _opened(self, resident: Resident, event: shapes.AccountOpened) -> None:
        must(not resident.account.opened, "the account is open already")
        if event.opened_by is not None:
            self._book.sources.check_opening(event.opened_by, event.recorded_at)
        resident.opening = event.opened_by
        resident.account.opened, resident.account.county = True, event.county

    # -- actions -----------------------------------------------------------------------------------------------------

    def _reported(self, account: Account, event: shapes.ActionCredited | shapes.TapRecorded) -> list[Consent]:
        """What holds of every report: its source, its time, the account. The consents that cover it."""
        at = event.occurred_at
        must(at <= event.recorded_at + CLOCK_SKEW, "the act is said to happen later than it was recorded")
        self._book.sources.check_report(event.source, event.behaviour, at, event.recorded_at)
        must(not account.frozen, "the account is frozen")
        consents = [
            consent
            for consent in account.consents.values()
            if consent.purpose == "record" and _covers(consent, event.methodology, event.source, at, at)
        ]
        must(bool(consents), "no consent in force covers the act")
        return consents

    def _credited(self, account: Account, event: shapes.ActionCredited, entry: Entry) -> None:
        day = _day(event)
        consents = self._reported(account, event)
        must(event.consent_id in [c.id for c in consents], f"consent {event.consent_id} does not cover the act")
        tables = self._book.tables
        table = tables.used(event.methodology, event.version, event.digest, day, event.recorded_at)
        if event.paired_with is None:
            same("behaviour", event.behaviour, table.id)
            methodology.check_quantity(table, event.quantity, event.unit)
            quantity = event.quantity
        else:
            self._check_pair(account, event)
            quantity = Decimal(1)
        self._check_figures(account, event, table, quantity, day)
        self._count(entry, event, day, 1)
        _credit(account, event, day)

    def _check_figures(
        self, account: Account, event: shapes.ActionCredited, table: Table, quantity: Decimal, day: date
    ) -> None:
        counted = methodology.recompute(table, quantity, self._used_until_now(account.id, event.methodology, day))
        same("counted", event.counted, counted.counted)
        same("reduction_mg", event.reduction_mg, counted.reduction_mg)
        same("points", event.points, counted.points)
        same("limits", event.limits, counted.limits)
        same("expires_on", event.expires_on, methodology.expiry(table, china_day(event.recorded_at)))
        same("debt_points", event.debt_points, min(event.points, account.debt_points))
        same("debt_mg", event.debt_mg, min(event.reduction_mg, account.debt_mg))

    def _check_pair(self, account: Account, event: shapes.ActionCredited) -> None:
        """The other tap was waiting, and is the one that makes the ride."""
        others: list[Tap | None] = []
        for taps in self._taps(event):
            methodology.check_tap(taps, event.quantity, event.unit)
            others.append(_other_tap(account, event, taps))
        must(
            any(o is not None and (o.record_id, o.occurred_at) == (event.paired_with, event.paired_at) for o in others),
            f"tap {event.paired_with} is not the one that was waiting for this",
        )

    def _tapped(self, account: Account, event: shapes.TapRecorded) -> None:
        self._reported(account, event)
        refused: list[str | None] = []
        for taps in self._taps(event):
            methodology.check_tap(taps, event.quantity, event.unit)
            if _other_tap(account, event, taps) is None:
                refused.append(EXIT_WITHOUT_ENTRY if event.behaviour == taps.exit else None)
        must(bool(refused), "the other tap of the ride was waiting")
        must(event.refused in refused, f"refused: the log says {event.refused}")
        tap = Tap(event.record_id, event.source, event.behaviour, event.occurred_at)
        account.taps[event.methodology] = (*account.taps.get(event.methodology, ()), tap)[-TAPS_KEPT:]

    def _taps(self, event: shapes.ActionCredited | shapes.TapRecorded) -> list[Taps]:
        """How the table of the day on which this tap happened makes rides: one answer, or two around a publication."""
        day = china_day(event.occurred_at)
        tables = self._book.tables.in_force(event.methodology, day, event.recorded_at)
        found = [p.table.taps for p in tables if p.table.taps]
        fitting = [taps for taps in found if event.behaviour in (taps.entry, taps.exit)]
        must(bool(fitting), f"{event.behaviour} is not a tap of {event.methodology}")
        return fitting

    def _reversed(self, account: Account, event: shapes.ActionReversed, entry: Entry) -> None:
        row = self._scratch.used_by(self._partition, claim_key(("action", event.source, event.record_id)))
        if row is None or row[0] != account.id or row[2] is None:
            raise Wrong("there is no such action to reverse")
        original = _original.decode(row[2])
        for field in ("methodology", "version", "day", "counted", "points", "reduction_mg"):
            same(field, getattr(event, field), getattr(original, field))
        lapsed = min(original.points, account.lapsed.get(original.expires_on, 0))
        same("lapsed", event.lapsed, ((original.expires_on, lapsed),) if lapsed else ())
        owed = original.points - lapsed
        grants = dict(account.grants)
        first = min(owed, grants.get(original.expires_on, 0))
        grants[original.expires_on] = grants.get(original.expires_on, 0) - first
        others = _earliest(grants.items(), min(owed - first, sum(grants.values())))
        taken = _merged([(original.expires_on, first), *others])
        same("taken", event.taken, taken)
        same("debt_points", event.debt_points, owed - _sum(taken))
        bucket = f"{original.methodology} {original.version} {month(original.day)}"
        back_mg = min(original.reduction_mg, account.unpooled.get(bucket, 0))
        same("debt_mg", event.debt_mg, original.reduction_mg - back_mg)
        self._count(entry, event, event.day, -1)
        _take(account.lapsed, event.lapsed)
        _take(account.grants, taken)
        _take(account.unpooled, [(bucket, back_mg)])
        account.total_mg -= original.reduction_mg
        account.debt_points += event.debt_points
        account.debt_mg += event.debt_mg

    # -- what is used of the caps ------------------------------------------------------------------------------------

    def _used_until_now(self, stream: str, of: str, day: date) -> dict[Period, Used]:
        months, year = self.used(stream, f"usage/{month(day)}"), self.used(stream, f"year/{day.year}")
        return {
            "day": months.get(f"{of} {day.day:02d}", Used()),
            "month": months.get(of, Used()),
            "year": year.get(of, Used()),
        }

    def _count(
        self, entry: Entry, event: shapes.ActionCredited | shapes.ActionReversed, day: date, sign: Literal[1, -1]
    ) -> None:
        if not event.counted:
            return
        of = event.methodology
        for part, keys in ((f"usage/{month(day)}", (f"{of} {day.day:02d}", of)), (f"year/{day.year}", (of,))):
            used = self.used(entry.stream, part)
            for key in keys:
                had = used.setdefault(key, Used())
                had.count += sign
                had.quantity += sign * event.counted
                had.points += sign * event.points
            self._scratch.keep(entry.stream, part, entry.version, _encode(used))

    # -- redemptions -------------------------------------------------------------------------------------------------

    def _held(self, resident: Resident, event: shapes.PointsHeld, entry: Entry) -> None:
        account = resident.account
        must(1 <= event.points <= POINTS_MOST, f"{event.points} points are held")
        must(1 <= event.hold_seconds <= HOLD_MOST_SECONDS, f"the hold lasts {event.hold_seconds} seconds")
        must(not account.frozen, "the account is frozen")
        merchant = self._book.merchants[event.merchant]
        merchant.check_terminal(event.terminal, event.recorded_at)
        if event.offer is None:  # else its order says what it is worth
            merchant.check_worth(event.points, event.amount_fen, event.recorded_at)
        even = event.items > 0 and event.points % event.items == 0
        must(event.items == 0 if event.offer is None else even, f"{event.points} points for {event.items} items")
        must(event.confirm_seconds in (0, CONFIRM_SECONDS), f"the resident has {event.confirm_seconds} s to agree")
        ends = event.recorded_at + timedelta(seconds=event.confirm_seconds or event.hold_seconds)
        same("expires_at", event.expires_at, ends)
        same("taken", event.taken, _earliest(account.grants.items(), event.points))
        _take(account.grants, event.taken)
        must(self._scratch.part(account.id, _part(event)) is None, "the redemption is in the log already")
        unconfirmed = event.confirm_seconds > 0
        account.holds[event.redemption_id] = Hold(event.expires_at, event.merchant, event.taken, unconfirmed)
        redemption = Redemption(
            event.redemption_id, event.merchant, event.terminal, event.points, event.amount_fen, event.expires_at
        )
        if unconfirmed:
            redemption.status, redemption.hold_seconds = "confirming", event.hold_seconds
            redemption.capture = event.capture
        redemption.offer, redemption.items = event.offer, event.items
        if event.capture and not unconfirmed:
            resident.spending = (event.redemption_id, "hold")
        self._keep(entry, event, redemption)
        self._scratch.held(event.redemption_id, account.id, asked(event), terms(event), offered=event.offer is not None)

    def _declined(self, account: Account, event: shapes.HoldDeclined, entry: Entry) -> None:
        """Why is not checked: it may be what only another stream or nobody knows. That nothing follows is."""
        must(self._scratch.part(account.id, _part(event)) is None, "the redemption is in the log already")
        status = "reversed" if event.reason == "reversed" else "declined"
        at = event.recorded_at
        redemption = Redemption(event.redemption_id, event.merchant, event.terminal, event.points, 0, at, status)
        self._keep(entry, event, redemption)
        self._scratch.held(event.redemption_id, account.id, asked(event), None)

    def _confirmed(self, resident: Resident, event: shapes.HoldConfirmed, entry: Entry) -> None:
        redemption = self._redemption(resident.account, event)
        held = resident.account.holds.get(event.redemption_id)
        if held is None or not held.unconfirmed:
            raise Wrong("nobody waits for the resident to agree")
        must(event.recorded_at < held.expires_at, "the resident agreed too late")
        same("expires_at", event.expires_at, event.recorded_at + timedelta(seconds=redemption.hold_seconds))
        held.unconfirmed, held.expires_at = False, event.expires_at
        redemption.status, redemption.expires_at = "held", event.expires_at
        if redemption.capture:
            resident.spending = (event.redemption_id, "confirmation")
        self._keep(entry, event, redemption)

    def _captured(self, resident: Resident, event: shapes.PointsCaptured, entry: Entry) -> None:
        account = resident.account
        redemption = self._redemption(account, event)
        waited = event.redemption_id in account.holds and account.holds[event.redemption_id].unconfirmed
        must(not waited, "the resident has not agreed yet")
        same("by", event.by, resident.spending[1] if resident.spending else "capture")
        must(not resident.spending or event.points == redemption.points, "it was to be captured whole")
        resident.spending = None
        held = self._on_hold(account, event)
        same("terminal", event.terminal, redemption.terminal)
        must(1 <= event.points <= redemption.points, f"{event.points} points are captured of {redemption.points}")
        _check_whole(redemption, event.points)
        same("amount_fen", event.amount_fen, redemption.amount_fen * event.points // redemption.points)
        same("taken", event.taken, _earliest(held.taken, event.points))
        rest = dict(held.taken)
        _take(rest, event.taken)
        self._give_back(account, sorted(rest.items()), event.released, event.debt_points)
        redemption.status, redemption.captured = "captured", event.taken
        redemption.captured_points, redemption.captured_fen = event.points, event.amount_fen
        self._keep(entry, event, redemption)
        self._count_for_merchant(entry, event, redemption)
        self._scratch.spent(event.redemption_id, account.id, "sale", event.points, event.amount_fen)

    def _released(self, account: Account, event: shapes.HoldReleased, entry: Entry) -> None:
        redemption = self._redemption(account, event)
        held = self._on_hold(account, event)
        place = (held.expires_at, event.redemption_id)
        earlier = any((other.expires_at, name) < place for name, other in account.holds.items())
        must(event.cause not in RUN_OUT or not earlier, "another hold ran out before this one")
        unconfirmed = event.cause in ("declined", "unconfirmed")
        must(held.unconfirmed if unconfirmed else event.cause != "expired" or not held.unconfirmed, "that was no cause")
        self._give_back(account, held.taken, event.released, event.debt_points)
        redemption.status = "declined" if unconfirmed else event.cause
        self._keep(entry, event, redemption)

    def _refunded(self, account: Account, event: shapes.PointsRefunded, entry: Entry) -> None:
        redemption = self._redemption(account, event)
        must(redemption.captured_points > 0, "nothing of the redemption was captured")
        must(redemption.status != "reversed", "the redemption was reversed")
        left = redemption.captured_points - redemption.refunded_points
        must(1 <= event.points <= left, f"{event.points} points are refunded of {left}")
        _check_whole(redemption, event.points)
        # What earlier refunds gave back lay last; this one gives back what lies last of the rest.
        here = _earliest(redemption.captured, left)
        stay = dict(_earliest(here, left - event.points))
        today = china_day(event.recorded_at)
        renewed = today + timedelta(days=REGRANT_DAYS)
        back = [(day if day >= today else renewed, points - stay.get(day, 0)) for day, points in here]
        self._give_back(account, _merged(back), event.restored, event.debt_points)
        done = redemption.refunded_points + event.points
        fen = redemption.captured_fen * done // redemption.captured_points - redemption.refunded_fen
        same("amount_fen", event.amount_fen, fen)
        redemption.refunded_points, redemption.refunded_fen = done, redemption.refunded_fen + fen
        redemption.status = "refunded" if done == redemption.captured_points else "partially_refunded"
        if event.reversal:
            same("points", event.points, left)
            redemption.status = "reversed"
            redemption.reversed_points, redemption.reversed_fen = event.points, fen
        else:
            redemption.refunds += 1
        self._keep(entry, event, redemption)
        kind = "reversal" if event.reversal else "refund"
        self._count_for_merchant(entry, event, redemption)
        self._scratch.spent(event.redemption_id, account.id, kind, event.points, fen)

    def _count_for_merchant(
        self, entry: Entry, event: shapes.PointsCaptured | shapes.PointsRefunded, redemption: Redemption
    ) -> None:
        back = event if isinstance(event, shapes.PointsRefunded) else None
        line = Line(
            nth=redemption.refunds if back and not back.reversal else 1,
            recorded_at=event.recorded_at,
            partition=entry.partition,
            position=entry.position,
            kind=("reversal" if back.reversal else "refund") if back else "sale",
            terminal=redemption.terminal,
            batch=None,
            redemption_id=redemption.id,
            refund_id=back.refund_id if back else None,
            points=event.points,
            amount_fen=event.amount_fen,
        )
        self._book.merchants[event.merchant].count(line, self._scratch)

    def _give_back(self, account: Account, whole: Allocations, said: Allocations, said_debt: int) -> None:
        """Points go back to their grants, but for those that pay the debt: of the earliest expiry first."""
        allocations = list(whole)
        paid = min(account.debt_points, _sum(allocations))
        same("debt_points", said_debt, paid)
        pays = dict(_earliest(allocations, paid))
        back = tuple((day, points - pays.get(day, 0)) for day, points in allocations if points > pays.get(day, 0))
        same("points given back", said, back)
        account.debt_points -= paid
        for day, points in back:
            account.grants[day] = account.grants.get(day, 0) + points

    def _redemption(self, account: Account, event: Any) -> Redemption:
        value = self._scratch.part(account.id, _part(event))
        if value is None:
            raise Wrong(f"there is no redemption {event.redemption_id}")
        redemption = _redemption.decode(value)
        same("merchant", event.merchant, redemption.merchant)
        return redemption

    def _on_hold(self, account: Account, event: shapes.PointsCaptured | shapes.HoldReleased) -> Hold:
        """Take the hold off. One that has run out can only be released, and for that cause."""
        held = account.holds.pop(event.redemption_id, None)
        if held is None:
            raise Wrong("the redemption is not on hold")
        expired = isinstance(event, shapes.HoldReleased) and event.cause in RUN_OUT
        same("whether the hold had run out", expired, held.expires_at <= event.recorded_at)
        return held

    def _keep(self, entry: Entry, event: Any, redemption: Redemption) -> None:
        self._scratch.keep(entry.stream, _part(event), entry.version, _encode(redemption))

    # -- pooling ------------------------------------------------------------------------------------------

    def _pooled(self, resident: Resident, event: shapes.ReductionsPooled, entry: Entry) -> None:
        account, pool = resident.account, self._book.pools[event.pool_id]
        pool.check_pooling(event)
        consent = account.consents.get(event.consent_id)
        if consent is None or consent.purpose != "trade":
            raise Wrong("no consent to trade is in force")
        months = [name for name, _ in event.taken]
        must(bool(months) and months == sorted(set(months)), "months are named once, in order")
        for name, mg in event.taken:
            must(event.from_month <= name <= event.until_month, f"{name} is outside the pool's months")
            must(_covers(consent, event.methodology, None, *span(name)), f"the consent does not cover {name}")
            bucket = f"{event.methodology} {event.version} {name}"
            same(f"milligrams of {name}", mg, account.unpooled.get(bucket, 0))
            must(mg > 0, f"nothing is taken of {name}")
            _take(account.unpooled, [(bucket, mg)])
        same("reduction_mg", event.reduction_mg, _sum(event.taken))
        pool.gather(entry, event.reduction_mg, first=event.pool_id not in resident.pools)
        resident.pools |= {event.pool_id}


# -- what holds before every event -----------------------------------------------------------------------------------


def _check_whole(redemption: Redemption, points: int) -> None:
    whole = not redemption.items or points % (redemption.points // redemption.items) == 0
    must(whole, "of an offer, only whole items are captured and refunded")


def _nothing_due(account: Account, event: Any) -> None:
    """Time has its say first: holds that ran out are released, grants past their day expire, before anything else."""
    if isinstance(event, shapes.PointsExpired) or (isinstance(event, shapes.HoldReleased) and event.cause in RUN_OUT):
        return
    if account.holds and any(h.expires_at <= event.recorded_at for h in account.holds.values()):
        raise Wrong("a hold had run out and was not released before")
    if account.grants and min(account.grants) < china_day(event.recorded_at):
        raise Wrong("a grant was past its day and did not expire before")


def _spends_as_it_should(resident: Resident, event: Any) -> None:
    """What is captured by the call that held it, or confirmed it, is captured next."""
    if resident.spending:
        must(isinstance(event, shapes.PointsCaptured), "what was held to be spent at once is spent")
        same("redemption", event.redemption_id, resident.spending[0])


def _opens_as_it_should(resident: Resident, event: Any) -> None:
    """A source opens an account with the consent that it asserts, for its own reports, and then comes its report."""
    source = resident.opening
    if source is None:
        return
    if resident.version == 1:
        must(isinstance(event, shapes.ConsentGiven), "a source that opens an account asserts a consent")
        same("consent", event.consent, _asserted(source))
        return
    must(isinstance(event, shapes.ActionCredited | shapes.TapRecorded), "a source that opens an account reports an act")
    same("source", event.source, source)
    resident.opening = None


@cache
def _asserted(source: str) -> Consent:
    return Consent(
        id=f"by-{source}",
        purpose="record",
        version="held by the source",
        from_=datetime(2000, 1, 1, tzinfo=UTC),
        source=source,
        asserted_by=source,
    )


def _covers(consent: Consent, behaviour: str, source: str | None, start: datetime, end: datetime) -> bool:
    in_time = consent.from_ <= start and (consent.until is None or end <= consent.until)
    of_source = source is None or consent.source in (None, source)
    return in_time and of_source and (consent.behaviours is None or behaviour in consent.behaviours)


def _consented(account: Account, event: shapes.ConsentGiven) -> None:
    consent = event.consent
    must(consent.until is None or consent.from_ < consent.until, "a consent ends after it begins")
    account.consents[consent.id] = consent


def _expired(account: Account, event: shapes.PointsExpired) -> None:
    today = china_day(event.recorded_at)
    must(all(h.expires_at > event.recorded_at for h in account.holds.values()), "holds run out before grants do")
    gone = tuple(sorted((day, points) for day, points in account.grants.items() if day < today))
    must(bool(gone), "no grant is past its day")
    same("taken", event.taken, gone)
    _take(account.grants, gone)
    for day, points in gone:
        account.lapsed[day] = account.lapsed.get(day, 0) + points


# -- movements -------------------------------------------------------------------------------------------------------


def _credit(account: Account, event: shapes.ActionCredited, day: date) -> None:
    if points := event.points - event.debt_points:
        account.grants[event.expires_on] = account.grants.get(event.expires_on, 0) + points
    if mg := event.reduction_mg - event.debt_mg:
        bucket = f"{event.methodology} {event.version} {month(day)}"
        account.unpooled[bucket] = account.unpooled.get(bucket, 0) + mg
    account.total_mg += event.reduction_mg
    account.debt_points -= event.debt_points
    account.debt_mg -= event.debt_mg
    if event.paired_with is not None:
        used = (event.source, event.paired_with)
        waiting = tuple(t for t in account.taps[event.methodology] if (t.source, t.record_id) != used)
        account.taps[event.methodology] = waiting
        if not waiting:
            del account.taps[event.methodology]


def _standing(account: Account) -> dict[tuple[str, str], int]:
    """What stands on the accounts of a resident, under the names that postings use."""
    return {
        ("mg", "resident"): sum(account.unpooled.values()),
        ("mg", "debt"): -account.debt_mg,
        ("points", "resident"): sum(account.grants.values()),
        ("points", "held"): sum(points for hold in account.holds.values() for _, points in hold.taken),
        ("points", "debt"): -account.debt_points,
    }


def _check_moves(
    stream: str, before: dict[tuple[str, str], int], after: dict[tuple[str, str], int], moved: list[Posting]
) -> None:
    """The postings say what the account did, and nothing of it is below its floor."""
    said = dict(before)
    for asset, name, amount in moved:
        kind, _, owner = name.partition("/")
        if owner == stream:
            said[asset, kind] += amount
    same("the resident's postings", said, after)
    for (asset, kind), amount in after.items():
        if amount < 0 if kind != "debt" else amount > 0:
            raise Wrong(f"{asset} {kind} would stand at {amount}")


def _day(event: shapes.ActionCredited) -> date:
    """The day on which an action counts: of its end."""
    return china_day(max(event.occurred_at, event.paired_at) if event.paired_at else event.occurred_at)


def _part(event: Any) -> str:
    return f"redemptions/{event.redemption_id}"


def _other_tap(account: Account, event: shapes.ActionCredited | shapes.TapRecorded, taps: Taps) -> Tap | None:
    """The tap that makes a ride with this one: the latest entry before an exit, the first exit after an entry."""
    at, within = event.occurred_at, methodology.within(taps)
    waiting = [t for t in account.taps.get(event.methodology, ()) if t.source == event.source]
    if event.behaviour == taps.exit:
        fitting = [t for t in waiting if t.behaviour == taps.entry and at - within <= t.occurred_at < at]
        return max(fitting, key=lambda t: (t.occurred_at, t.record_id), default=None)
    fitting = [t for t in waiting if t.behaviour == taps.exit and at < t.occurred_at <= at + within]
    return min(fitting, key=lambda t: (t.occurred_at, t.record_id), default=None)


def _earliest(allocations: Allocations, points: int) -> tuple[tuple[date, int], ...]:
    """That many points of the allocations, earliest expiry first."""
    taken: list[tuple[date, int]] = []
    for day, here in sorted(allocations):
        if part := min(here, points):
            taken.append((day, part))
            points -= part
    must(points == 0, f"{points} points more are taken than there are")
    return tuple(taken)


def _merged(allocations: Allocations) -> tuple[tuple[date, int], ...]:
    total: dict[date, int] = {}
    for day, points in allocations:
        total[day] = total.get(day, 0) + points
    return tuple((day, points) for day, points in sorted(total.items()) if points)


def _take(amounts: dict[T, int], taken: Iterable[tuple[T, int]]) -> None:
    for key, amount in taken:
        left = amounts.get(key, 0) - amount
        must(left >= 0, f"{key} would stand at {left}")
        if left:
            amounts[key] = left
        else:
            amounts.pop(key, None)


def _sum(allocations: Iterable[tuple[object, int]]) -> int:
    return sum(amount for _, amount in allocations)
