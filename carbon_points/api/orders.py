"""Orders and redemptions: what spans a merchant's partition and a resident's.

No transaction does. An order is placed first, then the points are held under the same id; whatever the resident's
stream says after that is passed on to the order, and the answer does not wait for it. Each step may be repeated, and
is, by the terminal or, where nobody comes back, by the finisher: a thread that looks for orders that are behind.
"""

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from msgspec import Struct

from carbon_points.domain import account
from carbon_points.domain.account import (
    NOT_AGREED,
    NOT_AGREED_IN_TIME,
    Account,
    DeclineHold,
    HoldDeclined,
    HoldPoints,
    LapseDue,
    Redemption,
    ReverseRedemption,
)
from carbon_points.domain.event import Command, Event
from carbon_points.domain.order import FollowOrder, OrderDeclined, OrderPlaced, OrderReversed, PlaceOrder, ReverseOrder
from carbon_points.journal import codec
from carbon_points.journal.journal import Journal
from carbon_points.journal.partition import Outcome, Write
from carbon_points.projections import redemptions as read_redemptions
from carbon_points.projections.loop import Follower
from carbon_points.projections.read_model import ReadModel
from carbon_points.projections.redemptions import Loose

KNOWN = 100_000  # redemptions whose parties are kept at hand
GRACE = timedelta(seconds=30)  # after which an order whose hold did not come is declined: longer than a call lasts
SETTLE = timedelta(seconds=2)  # in which whoever changed a redemption has passed it on
EVERY_SECONDS = 1.0
BACK_OFF_SECONDS = 5.0

_log = logging.getLogger(__name__)
Ask = Callable[[Write], asyncio.Future[Outcome]]


class Parties(Struct, frozen=True):
    """Between whom a redemption is."""

    merchant: str
    terminal: str
    resident: str


class Held(Struct, frozen=True):
    """What became of a call that asks for points. `event` is what it led to, or led to when it first came."""

    placed: OrderPlaced | OrderDeclined
    event: Event
    outcome: Outcome


class Orders:
    """The steps of a redemption over two partitions. One per installation."""

    def __init__(self, journal: Journal, ask: Ask) -> None:
        self._journal, self._ask = journal, ask
        self._parties: OrderedDict[str, Parties] = OrderedDict()
        self._passing: set[asyncio.Future[Outcome]] = set()

    async def hold(self, order: PlaceOrder, view: Any = None) -> Held:
        """Place an order, and hold its points or decline it. Raises refusals of the order, and of another content."""
        placed = done(await self._ask(Write(order))).events[-1]
        assert isinstance(placed, OrderPlaced | OrderDeclined)
        self._remember(order.redemption_id, Parties(order.merchant, order.terminal, placed.resident))
        outcome = await self._told(_asking(placed), view)
        if isinstance(outcome.refusal, account.CodeUsed):  # it is never held
            outcome = await self._told(declined(placed, outcome.refusal.code), view)
        if not done(outcome).events:  # there was nothing left to decline
            raise account.RedemptionNotHeld(redemption=order.redemption_id, current_state=account.REVERSED)
        return Held(placed, outcome.events[-1], outcome)

    async def change(self, command: Command, view: Any = None) -> Outcome:
        """Have a resident's stream change a redemption, and pass it on to its order. Raises its refusals."""
        return done(await self._told(command, view))

    async def reverse(self, command: ReverseOrder) -> tuple[Outcome, Event | None]:
        """Undo an order, whether it came or not. With the resident's event that did so, if any was needed."""
        outcome = done(await self._ask(Write(command)))
        told = outcome.events[-1]
        assert isinstance(told, OrderReversed)
        if told.resident is None:
            return outcome, None
        undo = ReverseRedemption(
            resident=told.resident,
            redemption_id=told.redemption_id,
            merchant=told.merchant,
            terminal=told.terminal,
            points=told.points,
        )
        events = done(await self._told(undo, None)).events
        return outcome, events[-1] if events else None

    async def parties(self, redemption_id: str) -> Parties:
        """Raises RedemptionUnknown."""
        return self._parties.get(redemption_id) or await asyncio.to_thread(self.find, redemption_id)

    def find(self, redemption_id: str) -> Parties:
        """The same from a thread. One that was reversed before it came has no resident."""
        if known := self._parties.get(redemption_id):
            return known
        for claim in (("order", redemption_id), ("redemption", redemption_id), ("order-reversal", redemption_id)):
            if entry := self._journal.find(claim):
                said: Any = codec.decode(entry.type, entry.state)
                found = Parties(said.merchant, said.terminal, said.resident or "")
                if found.resident:
                    self._remember(redemption_id, found)
                return found
        raise account.RedemptionUnknown(redemption=redemption_id)

    def placed(self, redemption_id: str) -> OrderPlaced | OrderDeclined | None:
        """The order of that id, from a thread."""
        entry = self._journal.find(("order", redemption_id))
        event = codec.decode(entry.type, entry.state) if entry else None
        return event if isinstance(event, OrderPlaced | OrderDeclined) else None

    def why_declined(self, resident: str, redemption_id: str) -> str:
        """Why a redemption is declined that is, from a thread: the code of the refusal or, where points were set aside
        until the resident agreed, what they did."""
        entry = self._journal.find_beside(resident, ("redemption", redemption_id))
        assert entry is not None, "what is declined was asked for"
        asked = codec.decode(entry.type, entry.state)
        if isinstance(asked, HoldDeclined):
            return asked.reason
        said = self._journal.find_beside(resident, ("confirmation", redemption_id))
        return NOT_AGREED if said else NOT_AGREED_IN_TIME

    def forget(self) -> None:
        """Whose redemptions they are is in the log."""
        self._parties.clear()

    def _remember(self, redemption_id: str, parties: Parties) -> None:
        self._parties[redemption_id] = parties
        while len(self._parties) > KNOWN:
            self._parties.popitem(last=False)

    async def _told(self, command: Any, view: Any) -> Outcome:
        """The outcome of a command to a resident's stream, which is passed on to the order."""
        follow: list[FollowOrder] = []

        def look(known: Account, at: datetime) -> object:
            if redemption := known.redemptions.get(command.redemption_id):
                follow[:] = [following(redemption, known.id)] if redemption.status not in ("held", "confirming") else []
            return view(known, at) if view else None

        outcome = await self._ask(Write(command, None, look))
        for passed_on in [] if outcome.replayed else follow:
            passing = self._ask(Write(passed_on))
            self._passing.add(passing)  # nobody waits for it: what fails, the finisher finds
            passing.add_done_callback(self._passed)
        return outcome

    def _passed(self, passing: asyncio.Future[Outcome]) -> None:
        self._passing.discard(passing)
        if not passing.cancelled() and (error := passing.exception()):
            _log.info("an order waits for the finisher: %s", error)


def done(outcome: Outcome) -> Outcome:
    """The outcome, where the command was carried out. Raises its refusal, or the mistake that met it."""
    if outcome.refusal:
        raise outcome.refusal
    if outcome.failure:
        raise outcome.failure
    return outcome


def _asking(placed: OrderPlaced | OrderDeclined) -> HoldPoints | DeclineHold:
    """What the resident's stream is to do for an order. One that its offer declined uses up its payment code, too."""
    if isinstance(placed, OrderDeclined):
        return declined(placed, placed.reason, placed.code)
    return HoldPoints(
        resident=placed.resident,
        redemption_id=placed.redemption_id,
        merchant=placed.merchant,
        terminal=placed.terminal,
        points=placed.points,
        amount_fen=placed.amount_fen,
        hold_seconds=placed.hold_seconds,
        code_step=placed.code,
        confirm_seconds=placed.confirm_seconds,
        capture=placed.capture,
        offer=placed.offer,
        items=placed.items,
    )


def declined(placed: OrderPlaced | OrderDeclined, reason: str, code_step: str | None = None) -> DeclineHold:
    return DeclineHold(
        resident=placed.resident,
        redemption_id=placed.redemption_id,
        merchant=placed.merchant,
        terminal=placed.terminal,
        points=placed.points,
        reason=reason,
        code_step=code_step,
    )


def following(redemption: Redemption, resident: str) -> FollowOrder:
    """What an order is to take in of its redemption."""
    ended = {"partially_refunded": "captured", "refunded": "captured"}.get(redemption.status, redemption.status)
    return FollowOrder(
        merchant=redemption.merchant,
        terminal=redemption.terminal,
        redemption_id=redemption.id,
        ended="captured" if redemption.captured_points else ended,
        captured_points=redemption.captured_points,
        captured_fen=redemption.captured_fen,
        refunds=redemption.refunds,
        refunded_points=redemption.refunded_points - redemption.reversed_points,
        refunded_fen=redemption.refunded_fen - redemption.reversed_fen,
        reversed_points=redemption.reversed_points,
        reversed_fen=redemption.reversed_fen,
        resident=resident,
        offer=redemption.offer,
    )


# -- what nobody came back for ---------------------------------------------------------------------------------------


class Finisher:
    """Ends what was begun and left: by a process that died, a terminal that went away, or time.

    Any number may run, in several processes: whatever they send changes nothing the second time.
    """

    def __init__(
        self, journal: Journal, read_model: ReadModel, follower: Follower, clock: Callable[[], datetime]
    ) -> None:
        self._journal, self._read_model, self._follower, self._clock = journal, read_model, follower, clock
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="finisher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        wait = EVERY_SECONDS
        while not self._stopping.wait(wait):
            try:
                wait = 0.0 if self.finish() else EVERY_SECONDS
            except Exception:  # noqa: BLE001  # whatever it is, the log is still there: to stop would mend nothing
                wait = BACK_OFF_SECONDS
                _log.exception("orders are not finished; trying again in %.0f s", wait)

    def finish(self, *, settle: timedelta = SETTLE, merchant: str | None = None) -> int:
        """Bring every order on that the read models show behind; how many were. Raises Unavailable."""
        now = self._clock()
        read = self._read_model.read
        overdue = read(read_redemptions.overdue, now=now, placed_before=now - GRACE)
        commands = [_ending(loose, now) for loose in overdue]
        behind = read(read_redemptions.behind, changed_before=now - settle, merchant=merchant)
        commands += [_catching_up(loose) for loose in behind]
        if commands:
            self._journal.commit([Write(command) for command in commands])
            # What this changed shows in the rows a moment later: until then they would be found again.
            self._follower.catch_up(EVERY_SECONDS)
        return len(commands)

    def settled(self, merchant: str, seconds: float) -> bool:
        """Whether every order of a merchant has taken in what became of it until now, in that time."""
        deadline = time.monotonic() + seconds
        while True:
            if not self._follower.catch_up(max(deadline - time.monotonic(), 0)):
                return False
            if not self._read_model.read(
                read_redemptions.behind, changed_before=self._clock(), merchant=merchant, limit=1
            ):
                return True
            if time.monotonic() > deadline:
                return False
            self.finish(settle=timedelta(0), merchant=merchant)


def _ending(loose: Loose, now: datetime) -> Command:
    """What ends an order that hangs: undone where that was asked for, else by time."""
    if loose.reversing:
        return _undoing(loose)
    if loose.expires_at is not None and loose.expires_at <= now:
        return LapseDue(resident=loose.resident)
    return DeclineHold(
        resident=loose.resident,
        redemption_id=loose.redemption_id,
        merchant=loose.order_merchant,
        terminal=loose.order_terminal,
        points=loose.ordered_points,
        reason=loose.declined or account.HoldAbandoned.code,
    )


def _undoing(loose: Loose) -> ReverseRedemption:
    return ReverseRedemption(
        resident=loose.resident,
        redemption_id=loose.redemption_id,
        merchant=loose.order_merchant,
        terminal=loose.order_terminal,
        points=loose.ordered_points,
    )


def _catching_up(loose: Loose) -> Command:
    if loose.reversing and not loose.reversed_points and loose.refunded_points < loose.captured_points:
        return _undoing(loose)
    return FollowOrder(
        merchant=loose.order_merchant,
        terminal=loose.order_terminal,
        redemption_id=loose.redemption_id,
        ended=loose.ended,
        captured_points=loose.captured_points,
        captured_fen=loose.captured_fen,
        refunds=loose.refunds,
        refunded_points=loose.refunded_points,
        refunded_fen=loose.refunded_fen,
        reversed_points=loose.reversed_points,
        reversed_fen=loose.reversed_fen,
        resident=loose.resident,
        offer=loose.offer,
    )
