"""A resident's account: consents, actions, reductions, points, and what they are spent on.

Invariant: no balance is below its floor after any event. Available and held points and reductions are never negative;
what a reversal cannot take back stands as a debt, which whatever comes in later pays first.

State is kept in parts, so that an account of a hundred thousand actions costs what a new one costs: `usage` by month,
`redemptions` by id. A command names the parts it needs (`parts`), and only those are loaded.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import ClassVar, Literal, TypeVar

from msgspec import Struct

from carbon_points.domain import methodology as tables
from carbon_points.domain.consent import Consent, covering
from carbon_points.domain.event import Command, County, Event, Id, Text
from carbon_points.domain.methodology import Published, Table, Used
from carbon_points.domain.quantity import CHINA, EXACT, civil_day, month_after, month_of
from carbon_points.domain.refusal import Refusal
from carbon_points.domain.source import Source

K = TypeVar("K")
Allocation = tuple[date, int]  # points of the grant that expires on that day
CLOCK_SKEW = timedelta(minutes=5)  # how far ahead of ours a source's clock may run
TAPS_KEPT = 16  # waiting taps of one resident; the oldest is given up
REGRANT_DAYS = 30  # how long refunded points live whose own grant has expired
HOLD_MOST = timedelta(days=7)
POINTS_MOST = 10**9  # of one redemption
REVERSAL = "reversal"  # the id of the refund that a reversal makes
REVERSED = "reversed"
NOT_AGREED, NOT_AGREED_IN_TIME = "not-agreed", "not-agreed-in-time"  # why a resident who was asked did not spend
CAPTURED = ("captured", "partially_refunded", "refunded")  # states of a redemption that spent points
ENDED = {  # by the cause for which a hold was released
    "voided": "voided",
    "expired": "expired",
    "reversed": REVERSED,
    "declined": "declined",
    "unconfirmed": "declined",
}

# -- commands --------------------------------------------------------------------------------------------------------


class OpenAccount(Command):
    """`county`: the GB/T 2260 code of where the resident lives, if they say so."""

    resident: str
    county: County | None = None

    def claim(self) -> tuple[str, ...]:
        return ("account", self.resident)


class GiveConsent(Command):
    resident: str
    consent: Consent

    def claim(self) -> tuple[str, ...]:
        return ("consent", self.resident, self.consent.id)


class WithdrawConsent(Command):
    resident: str
    consent_id: str

    def claim(self) -> tuple[str, ...]:
        return ("withdrawal", self.resident, self.consent_id)


class RecordAction(Command):
    """A source reports one act. `quantity` is exact; `occurred_at` is when it ended."""

    claimed_everywhere: ClassVar[bool] = True

    resident: str
    source: str
    record_id: str
    behaviour: str
    quantity: Decimal
    unit: str
    occurred_at: datetime
    county: County | None = None

    def claim(self) -> tuple[str, ...]:
        return ("action", self.source, self.record_id)

    def differs(self, event: Event) -> list[str]:
        # The county may have been filled in by the decision: only one that was said can contradict.
        return [f for f in super().differs(event) if f != "county" or self.county is not None]


class ReverseAction(Command):
    """Take back an action that should not have counted. Only its source may, and only once."""

    resident: str
    source: str
    record_id: str
    reason: Text

    def claim(self) -> tuple[str, ...]:
        return ("reversal", self.source, self.record_id)


class HoldPoints(Command):
    """Set points aside for a redemption, for `hold_seconds`, worth `amount_fen` to the merchant.

    `code_step` is the payment code that it uses up. With `confirm_seconds` the resident must agree within that time.
    `capture` spends the points at once, or as soon as the resident agrees. `offer` and `items`: what they are for, of
    which only whole items are captured and refunded.
    """

    resident: str
    redemption_id: str
    merchant: Id
    terminal: Id
    points: int
    amount_fen: int
    hold_seconds: int
    code_step: str | None = None
    confirm_seconds: int = 0
    capture: bool = False
    offer: str | None = None
    items: int = 0

    def claim(self) -> tuple[str, ...]:
        return ("redemption", self.redemption_id)

    def uses_up(self) -> tuple[str, ...] | None:
        return ("code", self.code_step) if self.code_step else None

    def used_up(self) -> Refusal:
        return CodeUsed()

    def differs(self, event: Event) -> list[str]:
        # The amount and whether to confirm followed from the merchant's terms at the time, which may have changed
        # since; and a repeated call may come with the step of a later look at the same code.
        said = [f for f in super().differs(event) if f not in ("amount_fen", "confirm_seconds", "code_step")]
        return [*said, "capture"] if isinstance(event, PointsCaptured) and not self.capture else said


class DeclineHold(Command):
    """Whatever becomes of the call that asks for this redemption: it is declined, for `reason`, unless it was held."""

    resident: str
    redemption_id: str
    merchant: str
    terminal: str
    points: int
    reason: str
    code_step: str | None = None

    def claim(self) -> tuple[str, ...]:
        return ("redemption", self.redemption_id)

    def uses_up(self) -> tuple[str, ...] | None:
        return ("code", self.code_step) if self.code_step else None

    def used_up(self) -> Refusal:
        return CodeUsed()

    def differs(self, event: Event) -> list[str]:  # noqa: ARG002  # the base names it
        return []  # what there is of it already is the answer


class ConfirmHold(Command):
    """The resident agrees to what a terminal asks for, or does not."""

    resident: str
    redemption_id: str
    accept: bool

    def claim(self) -> tuple[str, ...]:
        return ("confirmation", self.redemption_id)

    def differs(self, event: Event) -> list[str]:
        return ["accept"] if self.accept == isinstance(event, HoldReleased) else []


class CapturePoints(Command):
    """Spend what is held, or part of it; the rest is released."""

    resident: str
    redemption_id: str
    points: int

    def claim(self) -> tuple[str, ...]:
        return ("capture", self.redemption_id)


class VoidHold(Command):
    resident: str
    redemption_id: str

    def claim(self) -> tuple[str, ...]:
        return ("void", self.redemption_id)


class RefundPoints(Command):
    """Give back captured points, to the grants they came from."""

    resident: str
    redemption_id: str
    refund_id: str
    points: int

    def claim(self) -> tuple[str, ...]:
        return ("refund", self.redemption_id, self.refund_id)


class ReverseRedemption(Command):
    """Undo a redemption whatever became of it: let go of what is held, give back what is left of what was captured,
    refuse it where it never came. `points` are those that were asked for at first."""

    resident: str
    redemption_id: str
    merchant: str
    terminal: str
    points: int

    def claim(self) -> tuple[str, ...]:
        return ("redemption-reversal", self.redemption_id)

    def differs(self, event: Event) -> list[str]:  # noqa: ARG002  # the base names it
        return []  # the order that it undoes was compared


class PoolReductions(Command):
    """Move the resident's reductions of a methodology's version and a run of months into a pool."""

    resident: str
    pool_id: str
    gathering: int
    methodology: str
    version: str
    from_month: str
    until_month: str

    def claim(self) -> tuple[str, ...]:
        return ("pooling", self.pool_id, str(self.gathering), self.resident)


class FreezeAccount(Command):
    """Stop, or allow again, earning and spending. What is held may still be captured. The present state is refused."""

    resident: str
    frozen: bool
    reason: Text


class LapseDue(Command):
    """Write down what time has already decided: holds and grants past their end."""

    resident: str


# -- events ----------------------------------------------------------------------------------------------------------


class AccountOpened(Event):
    type_name: ClassVar[str] = "account-opened/1"
    resident: str
    opened_by: str | None = None
    county: str | None = None


class ConsentGiven(Event):
    type_name: ClassVar[str] = "consent-given/1"
    resident: str
    consent: Consent


class ConsentWithdrawn(Event):
    type_name: ClassVar[str] = "consent-withdrawn/1"
    resident: str
    consent_id: str


class ActionCredited(Event):
    """What was reported, what of it counted under which table, and what it earned.

    `counted` is the part of `quantity` within the caps; `limits` are the caps that cut. `paired_with` and `paired_at`
    are the other tap of a ride. `debt_points` and `debt_mg` are the part of `points` and `reduction_mg` that paid
    debts.
    """

    type_name: ClassVar[str] = "action-credited/1"
    resident: str
    source: str
    record_id: str
    behaviour: str
    quantity: Decimal
    unit: str
    occurred_at: datetime
    methodology: str
    version: str
    digest: str
    counted: Decimal
    reduction_mg: int
    points: int
    expires_on: date
    consent_id: str
    county: str | None = None
    limits: tuple[str, ...] = ()
    paired_with: str | None = None
    paired_at: datetime | None = None
    debt_points: int = 0
    debt_mg: int = 0

    @property
    def day(self) -> date:
        """The day on which it counts: of its end, in China."""
        return civil_day(max(self.occurred_at, self.paired_at) if self.paired_at else self.occurred_at)


class TapRecorded(Event):
    """One half of a ride, kept until the other arrives. An exit without entry is `refused`, with that code."""

    type_name: ClassVar[str] = "tap-recorded/1"
    resident: str
    source: str
    record_id: str
    behaviour: str
    quantity: Decimal
    unit: str
    occurred_at: datetime
    methodology: str
    county: str | None = None
    refused: str | None = None


class ActionReversed(Event):
    """`lapsed` of the points had expired unspent and are not owed; `taken` came out of available points; the rest,
    `debt_points`, could not. Of `reduction_mg`, `debt_mg` could not be taken."""

    type_name: ClassVar[str] = "action-reversed/1"
    resident: str
    source: str
    record_id: str
    reason: str
    methodology: str
    version: str
    day: date
    counted: Decimal
    points: int
    lapsed: tuple[Allocation, ...] = ()
    taken: tuple[Allocation, ...] = ()
    debt_points: int = 0
    reduction_mg: int = 0
    debt_mg: int = 0


class PointsHeld(Event):
    """`expires_at` is the end of the hold or, with `confirm_seconds`, of the resident's time to agree. `code_step` is
    the payment code that is used up. `capture`: it is spent as soon as it may be. `offer` and `items`: what it is for.
    """

    type_name: ClassVar[str] = "points-held/1"
    resident: str
    redemption_id: str
    merchant: str
    terminal: str
    points: int
    amount_fen: int
    hold_seconds: int
    expires_at: datetime
    taken: tuple[Allocation, ...]
    code_step: str | None = None
    confirm_seconds: int = 0
    capture: bool = False
    offer: str | None = None
    items: int = 0


class HoldDeclined(Event):
    """Nothing was held, for `reason`, a refusal's code, and under this id nothing ever will be. The payment code, if
    any, is used up all the same."""

    type_name: ClassVar[str] = "hold-declined/1"
    resident: str
    redemption_id: str
    merchant: str
    terminal: str
    points: int
    reason: str
    code_step: str | None = None


class HoldConfirmed(Event):
    """The resident agreed: the hold now ends at `expires_at`."""

    type_name: ClassVar[str] = "hold-confirmed/1"
    resident: str
    redemption_id: str
    merchant: str
    expires_at: datetime


class PointsCaptured(Event):
    """`taken` was spent; `released` went back to its grants, but for `debt_points` of it that paid the debt.

    `by`: a call of its own, or the one that held or confirmed.
    """

    type_name: ClassVar[str] = "points-captured/1"
    resident: str
    redemption_id: str
    merchant: str
    terminal: str
    points: int
    amount_fen: int
    taken: tuple[Allocation, ...]
    released: tuple[Allocation, ...] = ()
    debt_points: int = 0
    by: Literal["capture", "hold", "confirmation"] = "capture"


class HoldReleased(Event):
    """`declined` by the resident, who did not agree; `unconfirmed` in the time there was."""

    type_name: ClassVar[str] = "hold-released/1"
    resident: str
    redemption_id: str
    merchant: str
    cause: Literal["voided", "expired", "reversed", "declined", "unconfirmed"]
    released: tuple[Allocation, ...] = ()
    debt_points: int = 0


class PointsRefunded(Event):
    """`restored` names grants; those already expired are granted again until `REGRANT_DAYS` later. A `reversal` gives
    back all that is left, and ends the redemption."""

    type_name: ClassVar[str] = "points-refunded/1"
    resident: str
    redemption_id: str
    refund_id: str
    merchant: str
    points: int
    amount_fen: int
    restored: tuple[Allocation, ...] = ()
    debt_points: int = 0
    reversal: bool = False


class PointsExpired(Event):
    type_name: ClassVar[str] = "points-expired/1"
    resident: str
    taken: tuple[Allocation, ...]


class ReductionsPooled(Event):
    type_name: ClassVar[str] = "reductions-pooled/1"
    resident: str
    pool_id: str
    gathering: int
    methodology: str
    version: str
    from_month: str
    until_month: str
    consent_id: str
    taken: tuple[tuple[str, int], ...]  # month, milligrams
    reduction_mg: int


class AccountFrozen(Event):
    type_name: ClassVar[str] = "account-frozen/1"
    resident: str
    frozen: bool
    reason: str


# -- state -----------------------------------------------------------------------------------------------------------


class Hold(Struct, omit_defaults=True):
    expires_at: datetime
    merchant: str
    taken: tuple[Allocation, ...]
    unconfirmed: bool = False


class Redemption(Struct):
    """One redemption's own part of the state. `status`: confirming, held, declined, captured, partially_refunded,
    refunded, voided, expired or reversed. `confirm_seconds` and `hold_seconds` matter while it is confirming."""

    id: str
    merchant: str
    terminal: str
    points: int
    amount_fen: int
    expires_at: datetime
    status: str = "held"
    captured: tuple[Allocation, ...] = ()
    captured_points: int = 0
    captured_fen: int = 0
    refunded_points: int = 0
    refunded_fen: int = 0
    refunds: int = 0  # without a reversal
    reversed_points: int = 0
    reversed_fen: int = 0
    hold_seconds: int = 0
    capture: bool = False
    offer: str | None = None
    items: int = 0


class Tap(Struct, frozen=True):
    record_id: str
    source: str
    behaviour: str
    occurred_at: datetime


class Account(Struct, omit_defaults=True):
    """`grants`: available points by the day they expire. `unpooled`: milligrams by "methodology version month"."""

    id: str
    opened: bool = False
    frozen: bool = False
    county: str | None = None
    consents: dict[str, Consent] = {}
    grants: dict[date, int] = {}
    lapsed: dict[date, int] = {}  # points of a grant that expired unspent, and were not forgiven to a reversal
    unpooled: dict[str, int] = {}
    debt_points: int = 0
    debt_mg: int = 0
    total_mg: int = 0
    holds: dict[str, Hold] = {}
    taps: dict[str, tuple[Tap, ...]] = {}
    usage: dict[str, dict[str, Used]] = {}
    redemptions: dict[str, Redemption] = {}

    def available(self, now: datetime) -> int:
        """Points that can be spent at that instant: in a live grant, or in a hold that has run out."""
        today, grants = civil_day(now), dict(self.grants)
        for _, _, released, _ in _run_out(self, now):
            _add(grants, released)
        return sum(points for day, points in grants.items() if day >= today)

    def held(self, now: datetime) -> int:
        return sum(n for h in self.holds.values() if h.expires_at > now for _, n in h.taken)


class Balance(Struct, frozen=True):
    """What stands on an account at an instant. `expiring` are the points of the grant that ends next."""

    points_available: int
    points_held: int
    points_debt: int
    reduction_mg: int
    reduction_debt_mg: int
    expiring: int = 0
    expiring_on: date | None = None


def balance(account: Account, now: datetime) -> Balance:
    today = civil_day(now)
    live = [day for day, points in account.grants.items() if day >= today and points]
    first = min(live, default=None)
    return Balance(
        points_available=account.available(now),
        points_held=account.held(now),
        points_debt=account.debt_points,
        reduction_mg=account.total_mg,
        reduction_debt_mg=account.debt_mg,
        expiring=account.grants[first] if first else 0,
        expiring_on=first,
    )


class ActionFacts(Struct, frozen=True):
    """What deciding an action needs from outside the account."""

    methodologies: tables.Methodologies
    source: Source


class ReversalFacts(Struct, frozen=True):
    """The event that recorded the action, or None where there is none."""

    original: Event | None


# -- refusals --------------------------------------------------------------------------------------------------------


class AccountUnknown(Refusal):
    code = "account-unknown"
    title = "No account is open for this resident"


class AccountIsFrozen(Refusal):
    code = "account-frozen"
    title = "The account is frozen"


class FrozenAlready(Refusal):
    code = "frozen-already"
    title = "That is how the account already stands"


class ConsentMissing(Refusal):
    code = "consent-missing"
    title = "No consent of the resident covers this"


class ConsentUnknown(Refusal):
    code = "consent-unknown"
    title = "The resident gave no consent of this id, or withdrew it"


class ConsentSpanInvalid(Refusal):
    code = "consent-span-invalid"
    title = "A consent ends after it begins"


class OccurredInFuture(Refusal):
    code = "occurred-in-future"
    title = "The action is said to happen later than now"


class ReportedTooLate(Refusal):
    code = "reported-too-late"
    title = "The action happened longer ago than the source may report"


class ExitWithoutEntry(Refusal):
    code = "exit-without-entry"
    title = "No entry of this resident in the time before makes a ride with this exit"


class ActionUnknown(Refusal):
    code = "action-unknown"
    title = "No such action is recorded"


class ActionNotReversible(Refusal):
    code = "action-not-reversible"
    title = "The report earned nothing by itself: reverse the ride that it is part of"


class InsufficientPoints(Refusal):
    code = "insufficient-points"
    title = "Fewer points are available"


class PointsInvalid(Refusal):
    code = "points-invalid"
    title = "Points are a whole number from 1 to a thousand million"


class HoldTimeInvalid(Refusal):
    code = "hold-time-invalid"
    title = "A hold lasts from 1 second to 7 days"


class CodeUsed(Refusal):
    code = "code-used"
    title = "The payment code was used before"


class RedemptionUnknown(Refusal):
    code = "redemption-unknown"
    title = "No such redemption"


class HoldExpired(Refusal):
    code = "hold-expired"
    title = "The hold ran out before"


class RedemptionNotHeld(Refusal):
    code = "redemption-not-held"
    title = "The redemption is no longer on hold"


class RedemptionNotCaptured(Refusal):
    code = "redemption-not-captured"
    title = "Only a captured redemption can be refunded"


class HoldAbandoned(Refusal):
    code = "hold-abandoned"
    title = "The call that asked for it was left halfway, and was given up"


class CaptureExceedsHold(Refusal):
    code = "capture-exceeds-hold"
    title = "More than the hold would be captured"


class NotWholeItems(Refusal):
    code = "not-whole-items"
    title = "Of an offer, only whole items are captured and refunded"


class RefundExceedsCaptured(Refusal):
    code = "refund-exceeds-captured"
    title = "More than was captured, less earlier refunds, would be refunded"


class NothingToPool(Refusal):
    code = "nothing-to-pool"
    title = "The resident has no reductions of this kind that are not pooled"


# -- decisions -------------------------------------------------------------------------------------------------------


def parts(message: Command | Event, facts: object = None) -> list[tuple[str, str]]:
    """The parts of the state that a command reads or an event changes, as (field, key)."""
    match message:
        case RecordAction():  # the most frequent first
            assert isinstance(facts, ActionFacts)
            return [("usage", month) for month in _months_read(message, facts.methodologies)]
        case ActionCredited() | ActionReversed():
            return [("usage", month_of(message.day))]
        case AccountOpened() | ConsentGiven() | TapRecorded():
            return []
        case HoldPoints() | CapturePoints() | VoidHold() | RefundPoints():
            return [("redemptions", message.redemption_id)]
        case PointsHeld() | PointsCaptured() | HoldReleased() | PointsRefunded():
            return [("redemptions", message.redemption_id)]
        case DeclineHold() | ConfirmHold() | ReverseRedemption() | HoldDeclined() | HoldConfirmed():
            return [("redemptions", message.redemption_id)]
        case _:
            return []


def _months_read(command: RecordAction, known: tables.Methodologies) -> list[str]:
    """The months whose use bounds an action: its own, the whole year's where a year is capped.

    A ride counts on the day of its exit, which may be the one after the entry's.
    """
    day = civil_day(command.occurred_at)
    methodology = known.counted_by.get(command.behaviour)
    days = [day] if methodology in (None, command.behaviour) else [day, day + timedelta(days=1)]
    for published in known.tables.get(methodology or "", ()):
        if published.table.year_is_capped:
            return sorted({f"{day.year:04d}-{month:02d}" for day in days for month in range(1, 13)})
    return [month_of(day)] if len(days) == 1 else sorted(set(map(month_of, days)))


def due(account: Account, now: datetime) -> list[Event]:
    """What time alone has decided: expired holds, then expired grants. It comes before any decision."""
    if not account.holds and not (account.grants and min(account.grants) < civil_day(now)):
        return []
    events: list[Event] = []
    grants = dict(account.grants)
    for redemption_id, held, released, paid in _run_out(account, now):
        _add(grants, released)
        events.append(
            HoldReleased(
                recorded_at=now,
                resident=account.id,
                redemption_id=redemption_id,
                merchant=held.merchant,
                cause="unconfirmed" if held.unconfirmed else "expired",
                released=released,
                debt_points=paid,
            )
        )
    today = civil_day(now)
    if gone := tuple((day, points) for day, points in sorted(grants.items()) if day < today):
        events.append(PointsExpired(recorded_at=now, resident=account.id, taken=gone))
    return events


def _run_out(account: Account, now: datetime) -> Iterator[tuple[str, Hold, tuple[Allocation, ...], int]]:
    """The holds past their end, in its order: redemption, hold, what goes back, what of it pays the debt."""
    debt = account.debt_points
    for redemption_id, held in sorted(account.holds.items(), key=lambda item: (item[1].expires_at, item[0])):
        if held.expires_at <= now:
            released, paid = _give_back(held.taken, debt)
            debt -= paid
            yield redemption_id, held, released, paid


def decide(account: Account, command: Command, *, now: datetime, facts: object = None) -> list[Event]:
    """The events that follow from a command, after what was `due`. Raises a Refusal."""
    match command:
        case RecordAction():
            assert isinstance(facts, ActionFacts)
            return record(account, command, now=now, facts=facts)
        case OpenAccount():
            return open_account(account, command, now=now)
        case _ if not account.opened:
            raise AccountUnknown(resident=account.id)
        case ReverseAction():
            assert isinstance(facts, ReversalFacts)
            return reverse(account, command, now=now, facts=facts)
        case HoldPoints():
            return hold(account, command, now=now)
        case CapturePoints():
            return capture(account, command, now=now)
        case VoidHold():
            return void(account, command, now=now)
        case RefundPoints():
            return refund(account, command, now=now)
        case DeclineHold():
            return decline(account, command, now=now)
        case ConfirmHold():
            return confirm(account, command, now=now)
        case ReverseRedemption():
            return reverse_redemption(account, command, now=now)
        case GiveConsent():
            return give_consent(account, command, now=now)
        case WithdrawConsent():
            return withdraw_consent(account, command, now=now)
        case PoolReductions():
            return pool(account, command, now=now)
        case FreezeAccount():
            return freeze(account, command, now=now)
        case LapseDue():
            return []
        case _:
            raise AssertionError(f"no decision for {type(command).__name__}")


def open_account(account: Account, command: OpenAccount, *, now: datetime) -> list[Event]:
    if account.opened:  # a source opened it first
        return []
    return [AccountOpened(recorded_at=now, resident=account.id, county=command.county)]


def give_consent(account: Account, command: GiveConsent, *, now: datetime) -> list[Event]:
    """Refusals: ConsentSpanInvalid."""
    consent = command.consent
    if consent.until is not None and consent.until <= consent.from_:
        raise ConsentSpanInvalid(consent=consent.id)
    return [ConsentGiven(recorded_at=now, resident=account.id, consent=consent)]


def withdraw_consent(account: Account, command: WithdrawConsent, *, now: datetime) -> list[Event]:
    """Refusals: ConsentUnknown."""
    if command.consent_id not in account.consents:
        raise ConsentUnknown(consent=command.consent_id)
    return [ConsentWithdrawn(recorded_at=now, resident=account.id, consent_id=command.consent_id)]


def record(account: Account, command: RecordAction, *, now: datetime, facts: ActionFacts) -> list[Event]:
    """Count an action, keep half a ride until the other half, or refuse.

    Refusals, in order: BehaviourUnknown, NoMethodologyInForce, UnitMismatch, QuantityBelowLeast, QuantityAboveMost,
    OccurredInFuture, ReportedTooLate, AccountUnknown, AccountIsFrozen, ConsentMissing. An exit without entry is
    refused by an event, since the entry may still come.
    """
    source, day = facts.source, civil_day(command.occurred_at)
    published = facts.methodologies.for_behaviour(command.behaviour, day)
    taps = published.table.taps
    tapped = taps is not None and command.behaviour != published.table.id
    if not tapped:
        tables.check_quantity(published.table, command.quantity, command.unit)
    elif taps is not None and (command.unit != taps.unit or command.quantity != 1):
        raise tables.UnitMismatch(unit=command.unit, quantity=command.quantity, expected=f"1 {taps.unit}")
    if command.occurred_at > now + CLOCK_SKEW:
        raise OccurredInFuture(occurred_at=command.occurred_at.isoformat(), now=now.isoformat())
    if source.lateness_days is not None and command.occurred_at < now - timedelta(days=source.lateness_days):
        raise ReportedTooLate(occurred_at=command.occurred_at.isoformat(), lateness_days=source.lateness_days)

    opening: list[Event] = []
    consents = account.consents.values()
    if not account.opened:
        if not source.opens_accounts:
            raise AccountUnknown(resident=account.id)
        opening = _opened_by(account, command, source, now=now)
        consents = [e.consent for e in opening if isinstance(e, ConsentGiven)]
    if account.frozen:
        raise AccountIsFrozen(resident=account.id)
    at = command.occurred_at
    consent = covering(consents, "record", published.table.id, source=source.id, start=at, end=at)
    if consent is None:
        raise ConsentMissing(purpose="record", source=source.id, behaviour=published.table.id)
    if not tapped:
        return [*opening, _credit(account, command, published, consent, None, source, now=now)]
    return [*opening, *_tap(account, command, published, consent, facts, now=now)]


def _opened_by(account: Account, command: RecordAction, source: Source, *, now: datetime) -> list[Event]:
    """An account that a source opens, with the consent that it asserts to hold, for its own reports only."""
    county = command.county or source.county
    return [
        AccountOpened(recorded_at=now, resident=account.id, opened_by=source.id, county=county),
        ConsentGiven(recorded_at=now, resident=account.id, consent=_asserted_by(source.id)),
    ]


@lru_cache(maxsize=1_000)  # the same for each of its residents
def _asserted_by(source: str) -> Consent:
    return Consent(
        id=f"by-{source}",
        purpose="record",
        version="held by the source",
        from_=datetime(2000, 1, 1, tzinfo=UTC),
        source=source,
        asserted_by=source,
    )


def _credit(
    account: Account,
    command: RecordAction,
    published: Published,
    consent: Consent,
    paired: Tap | None,
    source: Source,
    *,
    now: datetime,
) -> ActionCredited:
    table = published.table
    day = civil_day(max(command.occurred_at, paired.occurred_at) if paired else command.occurred_at)
    quantity = Decimal(1) if paired else command.quantity
    found = tables.calculate(table, quantity, _used(account, table, day))
    return ActionCredited(
        recorded_at=now,
        resident=account.id,
        source=command.source,
        record_id=command.record_id,
        behaviour=command.behaviour,
        quantity=command.quantity,
        unit=command.unit,
        occurred_at=command.occurred_at,
        methodology=table.id,
        version=table.version,
        digest=published.digest,
        counted=found.counted,
        reduction_mg=found.reduction_mg,
        points=found.points,
        expires_on=tables.expires_on(table, civil_day(now)),
        consent_id=consent.id,
        county=command.county or account.county or source.county,
        limits=found.limits,
        paired_with=paired.record_id if paired else None,
        paired_at=paired.occurred_at if paired else None,
        debt_points=min(found.points, account.debt_points),
        debt_mg=min(found.reduction_mg, account.debt_mg),
    )


def _tap(
    account: Account,
    command: RecordAction,
    published: Published,
    consent: Consent,
    facts: ActionFacts,
    *,
    now: datetime,
) -> list[Event]:
    """Pair an exit with the latest entry before it, or an entry that comes late with the first exit after it."""
    table, taps = published.table, published.table.taps
    assert taps is not None
    at, within = command.occurred_at, timedelta(minutes=taps.within_minutes)
    waiting = [t for t in account.taps.get(table.id, ()) if t.source == command.source]
    if command.behaviour == taps.exit:
        fitting = [t for t in waiting if t.behaviour == taps.entry and at - within <= t.occurred_at < at]
        other = max(fitting, key=_tap_order, default=None)
        ride = published
    else:
        fitting = [t for t in waiting if t.behaviour == taps.exit and at < t.occurred_at <= at + within]
        other = min(fitting, key=_tap_order, default=None)
        # The ride ends with the exit: the table is the one in force on that day.
        ride = facts.methodologies.for_behaviour(table.id, civil_day(other.occurred_at)) if other else published
    if other is not None:
        return [_credit(account, command, ride, consent, other, facts.source, now=now)]
    return [
        TapRecorded(
            recorded_at=now,
            resident=account.id,
            source=command.source,
            record_id=command.record_id,
            behaviour=command.behaviour,
            quantity=command.quantity,
            unit=command.unit,
            occurred_at=command.occurred_at,
            methodology=table.id,
            county=command.county or account.county or facts.source.county,
            refused=ExitWithoutEntry.code if command.behaviour == taps.exit else None,
        )
    ]


def _tap_order(tap: Tap) -> tuple[datetime, str]:
    return (tap.occurred_at, tap.record_id)


def reverse(account: Account, command: ReverseAction, *, now: datetime, facts: ReversalFacts) -> list[Event]:
    """Undo what an action earned. Points that expired unspent are gone on both sides and leave no debt.

    Refusals, in order: ActionUnknown, ActionNotReversible.
    """
    original = facts.original
    if original is None or getattr(original, "resident", None) != account.id:
        raise ActionUnknown(source=command.source, record_id=command.record_id)
    if not isinstance(original, ActionCredited):
        raise ActionNotReversible(source=command.source, record_id=command.record_id)
    lapsed = min(original.points, account.lapsed.get(original.expires_on, 0))
    owed = original.points - lapsed
    first = min(owed, account.grants.get(original.expires_on, 0))
    rest = dict(account.grants)
    _subtract(rest, taken := [(original.expires_on, first)] if first else [])
    taken += _earliest(rest, min(owed - first, sum(rest.values())))
    back = sum(points for _, points in taken)
    here = account.unpooled.get(_bucket(original.methodology, original.version, original.day), 0)
    return [
        ActionReversed(
            recorded_at=now,
            resident=account.id,
            source=command.source,
            record_id=command.record_id,
            reason=command.reason,
            methodology=original.methodology,
            version=original.version,
            day=original.day,
            counted=original.counted,
            points=original.points,
            lapsed=((original.expires_on, lapsed),) if lapsed else (),
            taken=_merged(taken),
            debt_points=owed - back,
            reduction_mg=original.reduction_mg,
            debt_mg=original.reduction_mg - min(original.reduction_mg, here),
        )
    ]


def hold(account: Account, command: HoldPoints, *, now: datetime) -> list[Event]:
    """Set points aside, earliest expiry first. A frozen account and too few points decline it for good.

    Refusals, in order: PointsInvalid, HoldTimeInvalid, RedemptionNotHeld.
    """
    _check_points(command.points)
    if not 1 <= command.hold_seconds <= HOLD_MOST.total_seconds():
        raise HoldTimeInvalid(hold_seconds=command.hold_seconds)
    if earlier := account.redemptions.get(command.redemption_id):  # a reversal came first
        raise RedemptionNotHeld(redemption=earlier.id, current_state=earlier.status)
    if account.frozen:
        return [_declined(account, command, AccountIsFrozen.code, now=now)]
    if account.available(now) < command.points:
        return [_declined(account, command, InsufficientPoints.code, now=now)]
    held = PointsHeld(
        recorded_at=now,
        resident=account.id,
        redemption_id=command.redemption_id,
        merchant=command.merchant,
        terminal=command.terminal,
        points=command.points,
        amount_fen=command.amount_fen,
        hold_seconds=command.hold_seconds,
        expires_at=now + timedelta(seconds=command.confirm_seconds or command.hold_seconds),
        taken=tuple(_earliest(account.grants, command.points)),
        code_step=command.code_step,
        confirm_seconds=command.confirm_seconds,
        capture=command.capture,
        offer=command.offer,
        items=command.items,
    )
    if not command.capture or command.confirm_seconds:
        return [held]
    return [held, _captured_whole(held, now=now, by="hold")]


def _declined(account: Account, command: HoldPoints | DeclineHold, reason: str, *, now: datetime) -> HoldDeclined:
    return HoldDeclined(
        recorded_at=now,
        resident=account.id,
        redemption_id=command.redemption_id,
        merchant=command.merchant,
        terminal=command.terminal,
        points=command.points,
        reason=reason,
        code_step=command.code_step,
    )


def decline(account: Account, command: DeclineHold, *, now: datetime) -> list[Event]:
    """Nothing, where the redemption is there already."""
    if command.redemption_id in account.redemptions:
        return []
    return [_declined(account, command, command.reason, now=now)]


def confirm(account: Account, command: ConfirmHold, *, now: datetime) -> list[Event]:
    """The resident's answer, while it is waited for.

    Refusals, in order: RedemptionUnknown, HoldExpired, RedemptionNotHeld.
    """
    redemption, held = _on_hold(account, command.redemption_id, "confirming")
    if not command.accept:
        return [_release(account, redemption, held, "declined", now=now)]
    confirmed = HoldConfirmed(
        recorded_at=now,
        resident=account.id,
        redemption_id=redemption.id,
        merchant=redemption.merchant,
        expires_at=now + timedelta(seconds=redemption.hold_seconds),
    )
    if not redemption.capture:
        return [confirmed]
    return [confirmed, _capture(account, redemption, held, redemption.points, now=now, by="confirmation")]


def capture(account: Account, command: CapturePoints, *, now: datetime) -> list[Event]:
    """Refusals, in order: PointsInvalid, RedemptionUnknown, HoldExpired, RedemptionNotHeld, CaptureExceedsHold,
    NotWholeItems."""
    _check_points(command.points)
    redemption, held = _on_hold(account, command.redemption_id)
    if command.points > redemption.points:
        raise CaptureExceedsHold(held=redemption.points, wanted=command.points)
    _check_whole(redemption, command.points)
    return [_capture(account, redemption, held, command.points, now=now, by="capture")]


def _capture(
    account: Account,
    redemption: Redemption,
    held: Hold,
    points: int,
    *,
    now: datetime,
    by: Literal["capture", "confirmation"],
) -> PointsCaptured:
    taken = tuple(_earliest(dict(held.taken), points))
    left = dict(held.taken)
    _subtract(left, taken)
    released, paid = _give_back(sorted(left.items()), account.debt_points)
    return PointsCaptured(
        recorded_at=now,
        resident=account.id,
        redemption_id=redemption.id,
        merchant=redemption.merchant,
        terminal=redemption.terminal,
        points=points,
        amount_fen=redemption.amount_fen * points // redemption.points,
        taken=taken,
        released=released,
        debt_points=paid,
        by=by,
    )


def _captured_whole(held: PointsHeld, *, now: datetime, by: Literal["hold"]) -> PointsCaptured:
    return PointsCaptured(
        recorded_at=now,
        resident=held.resident,
        redemption_id=held.redemption_id,
        merchant=held.merchant,
        terminal=held.terminal,
        points=held.points,
        amount_fen=held.amount_fen,
        taken=held.taken,
        by=by,
    )


def void(account: Account, command: VoidHold, *, now: datetime) -> list[Event]:
    """Refusals, in order: RedemptionUnknown, HoldExpired, RedemptionNotHeld."""
    redemption, held = _on_hold(account, command.redemption_id, "held", "confirming")
    return [_release(account, redemption, held, "voided", now=now)]


def _release(
    account: Account,
    redemption: Redemption,
    held: Hold,
    cause: Literal["voided", "reversed", "declined"],
    *,
    now: datetime,
) -> HoldReleased:
    released, paid = _give_back(held.taken, account.debt_points)
    return HoldReleased(
        recorded_at=now,
        resident=account.id,
        redemption_id=redemption.id,
        merchant=redemption.merchant,
        cause=cause,
        released=released,
        debt_points=paid,
    )


def refund(account: Account, command: RefundPoints, *, now: datetime) -> list[Event]:
    """Give captured points back, those that live longest first.

    Refusals, in order: PointsInvalid, RedemptionUnknown, RedemptionNotCaptured, RefundExceedsCaptured, NotWholeItems.
    """
    _check_points(command.points)
    redemption = account.redemptions.get(command.redemption_id)
    if redemption is None:
        raise RedemptionUnknown(redemption=command.redemption_id)
    if redemption.status not in CAPTURED:
        raise RedemptionNotCaptured(redemption=redemption.id, current_state=redemption.status)
    left = redemption.captured_points - redemption.refunded_points
    if command.points > left:
        raise RefundExceedsCaptured(left=left, wanted=command.points, current_state=redemption.status)
    _check_whole(redemption, command.points)
    return [_refund(account, redemption, command.refund_id, command.points, now=now)]


def _refund(
    account: Account, redemption: Redemption, refund_id: str, points: int, *, now: datetime, reversal: bool = False
) -> PointsRefunded:
    left = redemption.captured_points - redemption.refunded_points
    today = civil_day(now)
    renewed = today + timedelta(days=REGRANT_DAYS)
    latest = reversed(list(_latest(redemption.captured, left, points)))
    whole = ((day if day >= today else renewed, points) for day, points in latest)
    restored, paid = _give_back(_merged(whole), account.debt_points)
    done = redemption.refunded_points + points
    return PointsRefunded(
        recorded_at=now,
        resident=account.id,
        redemption_id=redemption.id,
        refund_id=refund_id,
        merchant=redemption.merchant,
        points=points,
        amount_fen=redemption.captured_fen * done // redemption.captured_points - redemption.refunded_fen,
        restored=restored,
        debt_points=paid,
        reversal=reversal,
    )


def reverse_redemption(account: Account, command: ReverseRedemption, *, now: datetime) -> list[Event]:
    """What has ended without spending anything, or was given back whole, stays as it is."""
    redemption = account.redemptions.get(command.redemption_id)
    if redemption is None:
        return [
            HoldDeclined(
                recorded_at=now,
                resident=account.id,
                redemption_id=command.redemption_id,
                merchant=command.merchant,
                terminal=command.terminal,
                points=command.points,
                reason=REVERSED,
            )
        ]
    if held := account.holds.get(redemption.id):
        return [_release(account, redemption, held, "reversed", now=now)]
    left = redemption.captured_points - redemption.refunded_points
    if not left:
        return []
    return [_refund(account, redemption, REVERSAL, left, now=now, reversal=True)]


def pool(account: Account, command: PoolReductions, *, now: datetime) -> list[Event]:
    """Gather what is not pooled yet. A month is taken whole, by one consent in force that covers all of it.

    Refusals, in order: NothingToPool, ConsentMissing.
    """
    months: list[tuple[str, int]] = []
    for bucket, mg in sorted(account.unpooled.items()):
        methodology, version, month = bucket.split(" ")
        inside = command.from_month <= month <= command.until_month
        if inside and (methodology, version) == (command.methodology, command.version):
            months.append((month, mg))
    if not months:
        raise NothingToPool(resident=account.id, pool=command.pool_id)
    agreed = [(month, mg, consent) for month, mg in months if (consent := _trade_consent(account, command, month))]
    if not agreed:
        raise ConsentMissing(purpose="trade", behaviour=command.methodology)
    consent = agreed[0][2]
    taken = tuple((month, mg) for month, mg, by in agreed if by.id == consent.id)
    return [
        ReductionsPooled(
            recorded_at=now,
            resident=account.id,
            pool_id=command.pool_id,
            gathering=command.gathering,
            methodology=command.methodology,
            version=command.version,
            from_month=command.from_month,
            until_month=command.until_month,
            consent_id=consent.id,
            taken=taken,
            reduction_mg=sum(mg for _, mg in taken),
        )
    ]


def _trade_consent(account: Account, command: PoolReductions, month: str) -> Consent | None:
    first = date.fromisoformat(f"{month}-01")
    start = datetime.combine(first, time(), CHINA)
    end = datetime.combine(month_after(first, 1, at_end=False), time(), CHINA)
    return covering(account.consents.values(), "trade", command.methodology, source=None, start=start, end=end)


def freeze(account: Account, command: FreezeAccount, *, now: datetime) -> list[Event]:
    """Refusals: FrozenAlready."""
    if account.frozen == command.frozen:
        raise FrozenAlready(frozen=command.frozen)
    return [AccountFrozen(recorded_at=now, resident=account.id, frozen=command.frozen, reason=command.reason)]


def _check_points(points: int) -> None:
    if not 1 <= points <= POINTS_MOST:
        raise PointsInvalid(points=points)


def _check_whole(redemption: Redemption, points: int) -> None:
    if redemption.items and points % (item_points := redemption.points // redemption.items):
        raise NotWholeItems(item_points=item_points, wanted=points)


def _on_hold(account: Account, redemption_id: str, *states: str) -> tuple[Redemption, Hold]:
    """A redemption and its hold, in one of these states: by itself, held."""
    redemption = account.redemptions.get(redemption_id)
    if redemption is None:
        raise RedemptionUnknown(redemption=redemption_id)
    if redemption.status == "expired":
        expired_at = redemption.expires_at.isoformat()
        raise HoldExpired(redemption=redemption_id, expired_at=expired_at, current_state="expired")
    if redemption.status not in (states or ("held",)):
        raise RedemptionNotHeld(redemption=redemption_id, current_state=redemption.status)
    return redemption, account.holds[redemption_id]


# -- evolve ----------------------------------------------------------------------------------------------------------


def evolve(account: Account, event: Event) -> None:
    """Take an event into the state, in place."""
    match event:
        case ActionCredited():
            _credited(account, event)
        case TapRecorded():
            tap = Tap(event.record_id, event.source, event.behaviour, event.occurred_at)
            account.taps[event.methodology] = (*account.taps.get(event.methodology, ()), tap)[-TAPS_KEPT:]
        case AccountOpened():
            account.opened, account.county = True, event.county
        case ConsentGiven():
            account.consents[event.consent.id] = event.consent
        case ActionReversed():
            _reversed(account, event)
        case PointsHeld():
            _held(account, event)
        case HoldDeclined():
            account.redemptions[event.redemption_id] = Redemption(
                event.redemption_id,
                event.merchant,
                event.terminal,
                event.points,
                0,
                event.recorded_at,
                "reversed" if event.reason == REVERSED else "declined",
            )
        case HoldConfirmed():
            redemption = account.redemptions[event.redemption_id]
            redemption.status, redemption.expires_at = "held", event.expires_at
            held = account.holds[event.redemption_id]
            held.unconfirmed, held.expires_at = False, event.expires_at
        case PointsCaptured():
            _released(account, event.redemption_id, event.released, event.debt_points)
            redemption = account.redemptions[event.redemption_id]
            redemption.status, redemption.captured = "captured", event.taken
            redemption.captured_points, redemption.captured_fen = event.points, event.amount_fen
        case HoldReleased():
            _released(account, event.redemption_id, event.released, event.debt_points)
            account.redemptions[event.redemption_id].status = ENDED[event.cause]
        case PointsRefunded():
            _refunded(account, event)
        case PointsExpired():
            _subtract(account.grants, event.taken)
            _add(account.lapsed, event.taken)
        case ReductionsPooled():
            for month, mg in event.taken:
                _less(account.unpooled, f"{event.methodology} {event.version} {month}", mg)
        case ConsentWithdrawn():
            account.consents.pop(event.consent_id, None)
        case AccountFrozen():
            account.frozen = event.frozen
        case _:
            raise AssertionError(f"not an account's event: {event.type_name}")


def _credited(account: Account, event: ActionCredited) -> None:
    day = event.day
    _count(account, event, day, 1)
    if points := event.points - event.debt_points:
        _add(account.grants, [(event.expires_on, points)])
    if mg := event.reduction_mg - event.debt_mg:
        bucket = _bucket(event.methodology, event.version, day)
        account.unpooled[bucket] = account.unpooled.get(bucket, 0) + mg
    account.total_mg += event.reduction_mg
    account.debt_points -= event.debt_points
    account.debt_mg -= event.debt_mg
    if event.paired_with is not None:
        used = (event.source, event.paired_with)
        left = tuple(t for t in account.taps.get(event.methodology, ()) if (t.source, t.record_id) != used)
        account.taps[event.methodology] = left
        if not left:
            del account.taps[event.methodology]


def _reversed(account: Account, event: ActionReversed) -> None:
    _count(account, event, event.day, -1)
    _subtract(account.lapsed, event.lapsed)
    _subtract(account.grants, event.taken)
    _less(account.unpooled, _bucket(event.methodology, event.version, event.day), event.reduction_mg - event.debt_mg)
    account.total_mg -= event.reduction_mg
    account.debt_points += event.debt_points
    account.debt_mg += event.debt_mg


def _held(account: Account, event: PointsHeld) -> None:
    _subtract(account.grants, event.taken)
    unconfirmed = bool(event.confirm_seconds)
    account.holds[event.redemption_id] = Hold(event.expires_at, event.merchant, event.taken, unconfirmed)
    account.redemptions[event.redemption_id] = Redemption(
        event.redemption_id,
        event.merchant,
        event.terminal,
        event.points,
        event.amount_fen,
        event.expires_at,
        "confirming" if unconfirmed else "held",
        hold_seconds=event.hold_seconds if unconfirmed else 0,
        capture=event.capture and unconfirmed,
        offer=event.offer,
        items=event.items,
    )


def _refunded(account: Account, event: PointsRefunded) -> None:
    _add(account.grants, event.restored)
    account.debt_points -= event.debt_points
    redemption = account.redemptions[event.redemption_id]
    redemption.refunded_points += event.points
    redemption.refunded_fen += event.amount_fen
    if event.reversal:
        redemption.reversed_points, redemption.reversed_fen = event.points, event.amount_fen
    else:
        redemption.refunds += 1
    whole = redemption.refunded_points == redemption.captured_points
    redemption.status = REVERSED if event.reversal else "refunded" if whole else "partially_refunded"


def _released(account: Account, redemption_id: str, released: Iterable[Allocation], debt_points: int) -> None:
    del account.holds[redemption_id]
    _add(account.grants, released)
    account.debt_points -= debt_points


# -- the arithmetic of grants ----------------------------------------------------------------------------------------


def _used(account: Account, table: Table, day: date) -> dict[str, Used]:
    """What the resident used by a table in that day, month and, where it is capped, year (of the months loaded)."""
    month = account.usage.get(month_of(day), {})
    used = {"day": month.get(_day_key(table.id, day)) or Used(), "month": month.get(table.id) or Used()}
    if table.year_is_capped:
        used["year"] = year = Used()
        for key, counters in account.usage.items():
            if key[:4] == str(day.year) and (one := counters.get(table.id)):
                year.count += one.count
                year.quantity = EXACT.add(year.quantity, one.quantity)
                year.points += one.points
    return used


def _count(account: Account, event: ActionCredited | ActionReversed, day: date, sign: Literal[1, -1]) -> None:
    """Add an action to what is used of its day and month, or take it away. One that counted nothing uses nothing."""
    if not event.counted:
        return
    month = account.usage.setdefault(month_of(day), {})
    counted = event.counted if sign > 0 else EXACT.minus(event.counted)
    for key in (_day_key(event.methodology, day), event.methodology):
        used = month.get(key)
        if used is None:
            used = month[key] = Used()
        used.count += sign
        used.quantity = EXACT.add(used.quantity, counted)
        used.points += sign * event.points


@lru_cache(maxsize=10_000)  # few names, asked for again with every action
def _day_key(methodology: str, day: date) -> str:
    return f"{methodology} {day.day:02d}"


@lru_cache(maxsize=10_000)
def _bucket(methodology: str, version: str, day: date) -> str:
    return f"{methodology} {version} {month_of(day)}"


def _earliest(grants: Mapping[date, int], points: int) -> list[Allocation]:
    """That many points, earliest expiry first. The caller knows that there are enough."""
    taken: list[Allocation] = []
    for day in sorted(grants):
        if points <= 0:
            break
        if part := min(points, grants[day]):
            taken.append((day, part))
            points -= part
    assert points <= 0, "more points taken than there are"
    return taken


def _latest(captured: Iterable[Allocation], left: int, points: int) -> Iterable[Allocation]:
    """The last `points` of the first `left` captured ones, latest expiry first: earlier refunds took the ones after."""
    allocations = list(captured)
    skip = sum(n for _, n in allocations) - left
    for day, n in reversed(allocations):
        skipped = min(skip, n)
        skip -= skipped
        if part := min(n - skipped, points):
            points -= part
            yield (day, part)


def _give_back(allocations: Iterable[Allocation], debt: int) -> tuple[tuple[Allocation, ...], int]:
    """What goes back to its grants after the debt is paid, earliest expiry first, and what paid it."""
    kept: list[Allocation] = []
    paid = 0
    for day, points in allocations:
        pay = min(points, debt - paid)
        paid += pay
        if points > pay:
            kept.append((day, points - pay))
    return tuple(kept), paid


def _merged(allocations: Iterable[Allocation]) -> tuple[Allocation, ...]:
    total: dict[date, int] = {}
    _add(total, allocations)
    return tuple(sorted(total.items()))


def _add(grants: dict[date, int], allocations: Iterable[Allocation]) -> None:
    for day, points in allocations:
        grants[day] = grants.get(day, 0) + points


def _subtract(grants: dict[date, int], allocations: Iterable[Allocation]) -> None:
    for day, points in allocations:
        _less(grants, day, points)


def _less(amounts: dict[K, int], key: K, amount: int) -> None:
    if not amount:
        return
    left = amounts[key] - amount
    assert left >= 0, f"{key} would fall below zero"
    if left:
        amounts[key] = left
    else:
        del amounts[key]
