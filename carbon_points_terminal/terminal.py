"""A terminal: it writes down what it is asked, sends it, and brings every call to its end. Decisions are in `course`.

Two ways to drive it. A till calls `pay` and its like, which return when the cashier can be told something. Whoever has
a clock and a network of their own calls `begin`, then `due`, `take` and `answered`: nothing here sleeps, asks the time
or makes a number by itself. There are no threads.
"""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

from msgspec import Struct
from msgspec.structs import replace

from carbon_points_terminal import call as calls
from carbon_points_terminal import course, offline
from carbon_points_terminal.call import (
    HOLD_SECONDS,
    Ask,
    Call,
    Capture,
    Close,
    FollowUp,
    Line,
    Offline,
    Reason,
    Redemption,
    Refund,
    Sale,
    Totals,
    Void,
)
from carbon_points_terminal.course import Facts, Timing
from carbon_points_terminal.journal import Journal
from carbon_points_terminal.offline import Key, Limits, Prepared
from carbon_points_terminal.wire import Answer, NoAnswer, Refused, Request, Silence, Transport, read

TIMING = Timing()
COUNTED = {"sale", "refund", "reversal"}  # kinds of lines that totals count
KEPT_DAYS = 400  # of the journal: as long as a sale may be refunded, and some weeks
PATIENCE = 60  # seconds that a cashier waits for what follows a sale; it goes on without them


class NotNow(Exception):
    """The terminal itself does not begin this. Nothing was sent, nothing was written. `code` is stable."""

    code = "not-now"

    def __init__(self, message: str, reference: str = "") -> None:
        super().__init__(message)
        self.reference = reference


class UnresolvedFirst(NotNow):
    """A sale whose outcome is open, and whose reversal was not begun, comes first; or a batch is being closed."""

    code = "unresolved-first"


class SaleUnknown(NotNow):
    """The journal has no sale of that reference."""

    code = "sale-unknown"


class SaleNotApproved(NotNow):
    """Only what was approved is captured, voided or refunded."""

    code = "sale-not-approved"


class UseRefund(NotNow):
    """Its batch is closed: give points back by a refund."""

    code = "use-refund"


class NotForwarded(NotNow):
    """It was taken offline, and the platform has not heard of it yet: nothing is refunded or undone without it."""

    code = "offline-not-forwarded"


class OfflineRefused(NotNow):
    """It is not taken offline. The codes are those of `offline.why_not`, and allowance-used."""

    def __init__(self, code: str, message: str, reference: str = "") -> None:
        super().__init__(message, reference)
        self.code = code


class Send(Struct, frozen=True):
    """One request to carry. It is written down already."""

    reference: str
    attempt: int
    request: Request


class Offers(Struct, frozen=True):
    """A page of what can be had."""

    data: list[dict[str, Any]]
    next_cursor: str | None = None


class Shop(Struct, frozen=True):
    """What the platform tells of a merchant, as far as it matters offline."""

    merchant: str
    offline: Limits | None = None


class Keys(Struct, frozen=True):
    data: list[Key]


class Difference(Struct, frozen=True):
    """A line that only one side has, or that is not the same on both."""

    here: Line | None
    there: Line | None


class Terminal:
    """One terminal of one merchant, on its journal.

    `clock` gives a time with an offset, `ids` a new ULID or UUIDv7 as text, `sleep` waits for seconds. What an earlier
    process left open is open again, and comes first.
    """

    def __init__(
        self,
        journal: Journal,
        transport: Transport,
        clock: Callable[[], datetime],
        ids: Callable[[], str],
        sleep: Callable[[float], None] | None = None,
        timing: Timing = TIMING,
    ) -> None:
        self.journal, self.timing = journal, timing
        self._transport, self._clock, self._ids, self._sleep = transport, clock, ids, sleep
        self._open = {call.reference: call for call in journal.unresolved()}
        for call in list(self._open.values()):
            found = course.interrupted(call, self._facts(call))
            if found != call:
                self._keep(call, found, "interrupted")

    # -- asking ------------------------------------------------------------------------------------------------------

    def begin(self, ask: Ask) -> Call:
        """Write down what is wanted. Nothing is sent yet. Raises a NotNow where the terminal must not begin it."""
        self._may_begin(ask)
        return self._begun(ask, self._clock())

    def _begun(self, ask: Ask, at: datetime) -> Call:
        call = Call(
            self._ids(),
            reversal_key=self._ids(),
            give_back_key=self._ids(),
            stan=self.journal.stan(),
            merchant=self.journal.merchant,
            terminal=self.journal.terminal,
            ask=ask,
            made=at,
            due=at,
            redemption_id=ask.redemption_id if isinstance(ask, FollowUp) else "",
            state="STORED" if isinstance(ask, Offline) else "SENT",
        )
        self._keep(None, call, "intent")
        return call

    def _may_begin(self, ask: Ask) -> None:
        """The rule of the open question. A sale waits for every sale before it, until that one is done or its reversal
        was sent at least once: from then on it can only come to nothing. A batch that is being closed stops all."""
        for call in self._open.values():
            if isinstance(call.ask, Offline) and not 0 < call.attempt < self.timing.tries:
                continue  # what was not sent counts in whatever batch is open by then; and no one record holds up all
            closing = isinstance(call.ask, Close) and not isinstance(ask, Offline)
            if closing or (call.blocking and isinstance(call.ask, Sale) and isinstance(ask, Sale | Offline)):
                raise UnresolvedFirst(f"{call.reference} is {call.state}: it comes first", call.reference)
            if isinstance(ask, Close) and (call.in_flight or not call.exception):
                raise UnresolvedFirst(f"{call.reference} is {call.state}: a batch is closed without", call.reference)
        if isinstance(ask, FollowUp):
            self._approved(ask.of)

    def _approved(self, reference: str) -> Call:
        sale = self.sale(reference)
        if isinstance(sale.ask, Offline) and sale.outcome is None:
            raise NotForwarded(f"{reference} was taken offline, and is not sent yet", reference)
        if sale.outcome is None or sale.outcome.result != "approved":
            raise SaleNotApproved(f"{reference} is {_standing(sale)}", reference)
        return sale

    def sale(self, reference: str) -> Call:
        call = self.journal.find(reference)
        if call is None or not isinstance(call.ask, Sale | Offline):
            raise SaleUnknown(f"no sale {reference} in this terminal's journal", reference)
        return call

    def reverse(self, reference: str, reason: Reason = "customer-cancel") -> Call:
        """Undo a sale, whatever became of it; begun, not finished. Raises SaleUnknown, UseRefund, SaleNotApproved."""
        if closing := self._closing():
            raise UnresolvedFirst(f"{closing.reference} closes the batch: it comes first", closing.reference)
        call = self._open.get(reference) or self.sale(reference)
        if isinstance(call.ask, Offline):
            self._approved(reference)
            raise UseRefund(f"{reference} was taken offline: refund it", reference)
        if not isinstance(call.ask, Sale):
            raise SaleUnknown(f"{reference} is no sale", reference)
        if call.state == "REVERSING":
            return call
        if call.state == "DONE":
            self._reversible(call)
        if call.attempt == 0:
            return self._keep(call, course.never_sent(call, reason), "cancelled")
        return self._keep(call, course.reversing(call, reason, self._facts(call)), "reversal begun")

    def _reversible(self, call: Call) -> None:
        if call.outcome is None or call.outcome.result != "approved":
            raise SaleNotApproved(f"{call.reference} is {_standing(call)}", call.reference)
        if self.journal.batches_of(call.reference) - {self.journal.batch}:
            raise UseRefund(f"{call.reference} is of a batch that is closed", call.reference)

    # -- driving: one request at a time ------------------------------------------------------------------------------

    def unresolved(self) -> list[Call]:
        """Every call whose outcome is open, in the order in which they were made."""
        return list(self._open.values())

    def due(self, reference: str = "") -> datetime | None:
        """When `take` will have something to send: of any call, or of one. None: nothing waits."""
        found = [call.due for call in self._candidates(reference) if call.due]
        return min(found, default=None)

    def take(self, reference: str = "") -> Send | None:
        """The next request that is due, written down as sent. Whoever takes it must bring it to `answered`."""
        at = self._clock()
        ready = [call for call in self._candidates(reference) if call.due and call.due <= at]
        if not ready:
            return None
        call = min(ready, key=lambda one: (one.exception, one.due, one.made, one.reference))
        sent = self._keep(call, course.sending(call, self._facts(call)), f"send {call.step}")
        return Send(sent.reference, sent.attempt, calls.request(sent))

    def answered(self, send: Send, answer: Answer) -> Call:
        """Take in an answer, or that there was none. One that comes after it was given up is told apart, and logged."""
        call = self._open.get(send.reference)
        if call is not None and call.in_flight and call.attempt == send.attempt:
            return self._keep(call, course.answered(call, answer, self._facts(call)), "answer")
        if call is not None:
            counted = course.late(call, answer, self._facts(call))
            if counted is not call:
                return self._keep(call, counted, "late answer")
        found = call or self.journal.find(send.reference)
        assert found is not None, "an answer to what this terminal never sent"
        self.journal.note(send.reference, "late answer ignored", course.told(answer), self._clock())
        return found

    def step(self, reference: str = "") -> Call | None:
        """Send what is due and take in its answer. None where nothing is due."""
        return self._try(reference)[0]

    def _try(self, reference: str) -> tuple[Call | None, bool]:
        """The same, and whether nobody was there."""
        send = self.take(reference)
        if send is None:
            return None, False
        answer = self._transport.send(send.request)
        return self.answered(send, answer), isinstance(answer, NoAnswer)

    def _candidates(self, reference: str) -> list[Call]:
        """What may be sent. While a batch is being closed, nothing else: it would be of either batch."""
        if closing := self._closing():
            return [closing] if reference in {"", closing.reference} and not closing.in_flight else []
        open_ = self._open
        found = [open_[reference]] if reference in open_ else [] if reference else list(open_.values())
        # What moves something in a batch waits while that is being closed.
        closing = any(isinstance(call.ask, Close) for call in open_.values())
        return [call for call in found if not call.in_flight and not (closing and isinstance(call.ask, Offline))]

    def _closing(self) -> Call | None:
        return next((call for call in self._open.values() if isinstance(call.ask, Close)), None)

    # -- driving: until a cashier can be told ------------------------------------------------------------------------

    def settle(self, reference: str, patience: float = PATIENCE) -> Call:
        """Bring a call as far as a cashier needs: to its end, or to a reversal that was begun and goes on by itself."""
        until = self._clock() + timedelta(seconds=patience)
        while call := self._open.get(reference):
            if call.in_flight:
                raise RuntimeError(f"{reference} was taken, and its answer is awaited elsewhere")
            now = self._clock()
            if (call.due or now) > now and _may_wait(call, impatient=now >= until):
                return call
            self._wait(call.due)
            self.step(reference)
        found = self.journal.find(reference)
        assert found is not None, "what was begun is in the journal"
        return found

    def resolve(self, patience: float = PATIENCE) -> list[Call]:
        """Bring whatever stands in the way of a new sale as far as it must be; then try once what else is due."""
        settled = [self.settle(call.reference, patience) for call in self.unresolved() if call.blocking]
        return settled + self.catch_up()

    def catch_up(self) -> list[Call]:
        """One try of everything that is due now, and no waiting. Where there is no network, one payment that was taken
        offline finds that out for all: the next time, another one."""
        waiting = [call for call in self._candidates("") if not isinstance(call.ask, Offline)]
        tried = [self.step(call.reference) for call in waiting]
        return [call for call in tried if call] + self._forward(1)

    def _wait(self, due: datetime | None) -> None:
        if due and (seconds := (due - self._clock()).total_seconds()) > 0:
            if self._sleep is None:
                raise RuntimeError("a terminal without `sleep` is driven by take and answered")
            self._sleep(seconds)

    # -- without a network -------------------------------------------------------------------------------------------

    def prepare(self) -> Prepared | Refused | Silence:
        """Fetch, and keep, what is needed to take payments without a network. Again every hour, while there is one."""
        shop = read(self._transport.send(Request("GET", f"/v1/merchants/{quote(self.journal.merchant)}")), Shop)
        if not isinstance(shop, Shop):
            return shop
        keys = read(self._transport.send(Request("GET", "/v1/allowance-keys")), Keys)
        if not isinstance(keys, Keys):
            return keys
        prepared = Prepared(self._clock(), shop.offline, tuple(keys.data))
        self.journal.prepare(prepared)
        return prepared

    def pay_offline(self, allowance: str, points: int) -> Call:
        """Take points without a network, by the allowance that the resident's phone shows. What is returned is stored,
        and will be sent: `catch_up`, `forward`. Raises a NotNow where it is not taken."""
        self._may_begin(Offline(points, allowance, ""))
        at, prepared = self._clock(), self.journal.prepared()
        said = offline.allowance_of(allowance.strip(), prepared.keys if prepared else ())
        if why := offline.why_not(points, said, self.journal.merchant, prepared, self.stored(), at):
            raise OfflineRefused(why.code, why.sentence)
        assert said is not None, "what is no allowance was refused"
        if earlier := self.journal.allowed(said.id):
            raise OfflineRefused("allowance-used", f"it paid {earlier} here", earlier)
        return self._begun(Offline(points, allowance.strip(), said.id), at)

    def stored(self) -> list[Call]:
        """What was taken offline and has no verdict yet."""
        return [call for call in self._open.values() if isinstance(call.ask, Offline)]

    def forward(self) -> list[Call]:
        """Send all that was taken offline now, each by itself; whatever becomes of one is nothing to the others."""
        at = self._clock()
        for call in self.stored():
            if not call.in_flight and call.due and call.due > at:
                self._keep(call, replace(call, due=at), "forward")
        return self._forward(2)

    def _forward(self, silences: int) -> list[Call]:
        """Those that are due, until nobody was there so many times in a row. Whoever was tried least comes first: none
        of them can be in the way of the others for longer than one round."""
        tried: list[Call] = []
        silent = 0
        waiting = [call for call in self._candidates("") if isinstance(call.ask, Offline)]
        for call in sorted(waiting, key=lambda one: (one.attempt, one.made, one.reference)):
            found, alone = self._try(call.reference)
            tried += [found] if found else []
            silent = silent + 1 if alone else 0
            if silent == silences:
                break
        return tried

    # -- the calls of a till -----------------------------------------------------------------------------------------

    def pay(self, points: int, code: str = "", **more: Any) -> Call:
        """Spend points of whoever shows the code. `resident`, `offer`, `items`: see `Sale`."""
        return self.settle(self.begin(Sale(points, code, **more)).reference)

    def authorise(self, points: int, code: str = "", *, hold_seconds: int = HOLD_SECONDS, **more: Any) -> Call:
        """Set points aside, to be captured or voided."""
        sale = Sale(points, code, capture=False, hold_seconds=hold_seconds, **more)
        return self.settle(self.begin(sale).reference)

    def capture(self, sale: str, points: int) -> Call:
        return self.settle(self.begin(Capture(sale, self._approved(sale).redemption_id, points)).reference)

    def void(self, sale: str) -> Call:
        return self.settle(self.begin(Void(sale, self._approved(sale).redemption_id)).reference)

    def refund(self, sale: str, points: int) -> Call:
        return self.settle(self.begin(Refund(sale, self._approved(sale).redemption_id, points)).reference)

    def cancel(self, sale: str, reason: Reason = "customer-cancel") -> Call:
        """`reverse`, and settle it."""
        return self.settle(self.reverse(sale, reason).reference)

    def close_batch(self, totals: Totals | None = None) -> Call:
        """Close the open batch by this journal's totals; or by those that somebody has compared and takes for right.

        Where the platform has closed it by itself, what it does not have there is of the next batch, and it is asked
        once more. What was taken offline is sent first.
        """
        self.forward()
        batch = self.journal.batch
        call = self.settle(self.begin(Close(batch, totals or self.journal.totals(batch))).reference)
        closed = call.outcome.closed if call.outcome else None
        if totals is None and closed and closed.answer == "not-agreed" and closed.next_batch:
            self.journal.refile(batch, closed.lines, closed.next_batch, self._clock())
            call = self.settle(self.begin(Close(batch, self.journal.totals(batch))).reference)
        self.journal.trim(self._clock() - timedelta(days=KEPT_DAYS))
        return call

    # -- asking without a change -------------------------------------------------------------------------------------

    def query(self, sale: str) -> Redemption | Refused | Silence:
        """How the platform shows a sale now. Changes nothing here."""
        request = Request("GET", f"/v1/redemptions?reference={quote(sale, safe='')}")
        answer = self._transport.send(request)
        self.journal.note(sale, "query", course.told(answer), self._clock())
        return read(answer, Redemption)

    def offers(self) -> list[dict[str, Any]] | Refused | Silence:
        """What can be had here, as the platform tells it."""
        found: list[dict[str, Any]] = []
        path = following = f"/v1/offers?open=true&limit=100&merchant={quote(self.journal.merchant, safe='')}"
        while following:
            said = read(self._transport.send(Request("GET", following)), Offers)
            if not isinstance(said, Offers):
                return said
            found += said.data
            following = f"{path}&cursor={quote(said.next_cursor, safe='')}" if said.next_cursor else ""
        return found

    # -- writing down ------------------------------------------------------------------------------------------------

    def _facts(self, call: Call) -> Facts:
        return Facts(self._clock(), self.journal.batch, self.timing, self.journal.counted(call.sale))

    def _keep(self, before: Call | None, call: Call, what: str) -> Call:
        """On disk first, then in memory: what a caller sees was written."""
        self.journal.keep(call, what, self._clock(), moved=len(before.moves) if before else 0)
        if call.state == "DONE":
            self._open.pop(call.reference, None)
        else:
            self._open[call.reference] = call
        return call


def differences(here: Iterable[Line], there: Iterable[Line]) -> list[Difference]:
    """The lines in which two sides differ, by redemption and kind; a side may tell one kind in several lines."""
    ours, theirs = _by_kind(here), _by_kind(there)
    names = list(dict.fromkeys([*ours, *theirs]))
    return [Difference(ours.get(name), theirs.get(name)) for name in names if ours.get(name) != theirs.get(name)]


def _by_kind(lines: Iterable[Line]) -> dict[tuple[str, str], Line]:
    found: dict[tuple[str, str], Line] = {}
    for line in (line for line in lines if line.kind in COUNTED):
        name = line.redemption_id, line.kind
        had = found.get(name, Line(*name, 0, 0, 0))
        found[name] = Line(*name, had.points + line.points, had.fen + line.fen, had.count + line.count)
    return found


def _standing(call: Call) -> str:
    return call.outcome.result if call.outcome else call.state


def _may_wait(call: Call, *, impatient: bool) -> bool:
    """A cashier need not stand by: the next customer may come, and the rest goes on by itself."""
    return not call.blocking if isinstance(call.ask, Sale) else impatient
