"""Redemptions: hold a resident's points for a terminal, capture or void them, refund what was captured, or undo a call
of which nobody knows what became of it.

Every call may be sent again until it is answered: a hold and a refund by their Idempotency-Key, a reversal by the key
of what it undoes, the others by the redemption itself. `GET` tells what became of one, also by its key.
"""

import asyncio
from datetime import datetime
from functools import cache
from typing import Annotated, Any, Literal

from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import PathParameter, QueryParameter
from msgspec import UNSET, Meta, Struct, UnsetType, structs

from carbon_points.api.access import must_own, takes
from carbon_points.api.installation import (
    IDEMPOTENCY_KEY,
    Installation,
    example,
    id_from_key,
    receipt,
    redemption_id_of,
    threaded,
)
from carbon_points.api.orders import Held, Parties
from carbon_points.api.problems import ApiError, documented
from carbon_points.api.sandbox import hung_up, payer_of_fixed
from carbon_points.codes import CodeUnknown
from carbon_points.directory import Caller
from carbon_points.directory.allowances import (
    TOKEN_MOST,
    Allowance,
    AllowanceElsewhere,
    AllowanceExceeded,
    AllowanceExpired,
    AllowanceInvalid,
    AllowanceUnknown,
)
from carbon_points.directory.payers import Payer
from carbon_points.domain import account
from carbon_points.domain.account import (
    POINTS_MOST,
    Account,
    AccountUnknown,
    Balance,
    CapturePoints,
    ConfirmHold,
    HoldConfirmed,
    HoldDeclined,
    HoldReleased,
    PointsCaptured,
    PointsHeld,
    PointsRefunded,
    Redemption,
    RefundPoints,
    VoidHold,
)
from carbon_points.domain.event import Event, Id
from carbon_points.domain.merchant import MerchantUnknown
from carbon_points.domain.offer import DECLINES, ITEMS_MOST
from carbon_points.domain.offline import CLAIM, CLOCK_SKEW
from carbon_points.domain.order import OrderPlaced, PlaceOrder, Reason, ReversalMismatch, ReverseOrder
from carbon_points.domain.refusal import Conflict, Refusal, codes

HOLD_SECONDS = 300
REDEMPTION = PathParameter(pattern=r"^rdm_[a-z2-7]{20}$", description="the redemption's id")
RESIDENT = PathParameter(pattern=r"^res_[a-z2-7]{20}$", description="the resident's id")
REFERENCE = QueryParameter(
    min_length=1, max_length=200, description="the Idempotency-Key of the call that asked for it"
)
Points = Annotated[int, Meta(ge=1, le=POINTS_MOST)]
Items = Annotated[int, Meta(ge=1, le=ITEMS_MOST)]


class Hold(Struct, frozen=True, forbid_unknown_fields=True):
    """`code`: the payment code that the resident shows; an app says `resident` instead. So many `points`, or so many
    `items` of an `offer`. `capture`: spend the points at once, in the same answer.

    A terminal that took `points` offline says the `allowance` instead of a code, when it did, and `capture`."""

    merchant: Id
    terminal: Id
    points: Points | UnsetType = UNSET
    offer: Id | UnsetType = UNSET
    items: Items | UnsetType = UNSET
    code: Annotated[str, Meta(min_length=1, max_length=64)] | UnsetType = UNSET
    resident: Annotated[str, Meta(pattern=r"^res_[a-z2-7]{20}$")] | UnsetType = UNSET
    hold_seconds: Annotated[int, Meta(ge=1, le=7 * 86400)] = HOLD_SECONDS
    capture: bool = False
    allowance: Annotated[str, Meta(min_length=1, max_length=TOKEN_MOST)] | UnsetType = UNSET
    captured_offline_at: Annotated[datetime, Meta(tz=True)] | UnsetType = UNSET


class Part(Struct, frozen=True, forbid_unknown_fields=True):
    """How many points, of what is held or captured."""

    points: Points


class Undo(Struct, frozen=True, forbid_unknown_fields=True):
    """`reference`: the Idempotency-Key of the call to undo; `points`, or `offer` and `items`: what it asked for.
    `merchant` and `terminal` only where the caller is neither. `repeat`: it was sent before, without an answer."""

    reference: Annotated[str, Meta(min_length=1, max_length=200)]
    reason: Reason
    points: Points | UnsetType = UNSET
    offer: Id | UnsetType = UNSET
    items: Items | UnsetType = UNSET
    merchant: Id | None = None
    terminal: Id | None = None
    repeat: bool = False


class Agreement(Struct, frozen=True, forbid_unknown_fields=True):
    accept: bool


class RedemptionShown(Struct, frozen=True):
    """A redemption. `status`: none (it never came), confirming, held, declined, captured, partially_refunded, refunded,
    voided, expired or reversed. `declined_because`: the code of the refusal, or not-agreed or not-agreed-in-time.
    Whose it is, and what is left, is told to apps only."""

    redemption_id: str
    status: str
    merchant: str
    terminal: str
    points: int
    amount_fen: int
    expires_at: datetime | None = None
    captured_points: int = 0
    captured_fen: int = 0
    refunded_points: int = 0
    refunded_fen: int = 0
    offer: str | UnsetType = UNSET
    items: int | UnsetType = UNSET
    declined_because: str | UnsetType = UNSET
    resident: str | UnsetType = UNSET
    balance: Balance | UnsetType = UNSET


class RefundShown(Struct, frozen=True):
    """One refund. How much of the redemption is given back in all, `GET` tells."""

    refund_id: str
    redemption_id: str
    points: int
    amount_fen: int
    resident: str | UnsetType = UNSET
    balance: Balance | UnsetType = UNSET


class Undone(Struct, frozen=True):
    """`action`: what had to be done. none: it never came, or had moved nothing; released; refunded, so many points."""

    redemption_id: str
    action: Literal["none", "released", "refunded"]
    points: int
    amount_fen: int
    status: Literal["reversed"] = "reversed"


class Confirmations(Struct, frozen=True):
    data: list[RedemptionShown]


def _again(kind: type) -> dict[int, ResponseSpec]:
    return {200: ResponseSpec(kind, description="The earlier answer again", generate_examples=False)}


_STATES = ("redemption-unknown", "hold-expired", "redemption-not-held", "identity-reused", "not-yours")
_OFFERED = ("offer-unknown", "items-invalid", *(refusal.code for refusal in DECLINES))
_OFFLINE = (
    "allowance-invalid",
    "allowance-elsewhere",
    "allowance-exceeded",
    "allowance-expired",
    "allowance-unknown",
    "offline-not-allowed",
    "offline-in-future",
    "offline-too-late",
    "offline-exceeds-terms",
)


@post(
    "/v1/redemptions",
    operation_id="createRedemption",
    tags=["redemptions"],
    summary="Hold points, or hold and capture them at once",
    description="A decline is final: another attempt takes another key. Where the resident must agree, on their phone, "
    "the answer is 202 and `confirming`: `GET` tells what they said.",
    guards=[takes("terminal", "app")],
    status_code=201,
    responses=_again(RedemptionShown)
    | {202: ResponseSpec(RedemptionShown, description="Waits for the resident", generate_examples=False)}
    | documented(
        "idempotency-key-missing",
        "identity-reused",
        "account-unknown",
        "account-frozen",
        "insufficient-points",
        "hold-abandoned",
        "code-malformed",
        "code-unknown",
        "code-expired",
        "code-used",
        "rate-limited",
        "redemption-reversed",
        "redemption-not-held",
        "merchant-unknown",
        "terminal-unknown",
        "terminal-suspended",
        "not-yours",
        *_OFFERED,
        *_OFFLINE,
        body=True,
    ),
)
async def create_redemption(
    request: Request[Caller, Any, Any],
    data: Annotated[
        Hold,
        example(code="800123456780654322", merchant="nanxun-teahouse", terminal="t1", points=100),
    ],
    installation: NamedDependency[Installation],
    idempotency_key: Annotated[str, IDEMPOTENCY_KEY],
) -> Response[RedemptionShown]:
    must_own(request.user, "terminal", f"{data.merchant}/{data.terminal}")
    redemption_id = redemption_id_of(request.user, idempotency_key)
    if request.user.role != "terminal" and await _used_at(installation, redemption_id, data.merchant) != data.merchant:
        raise Conflict(fields=["merchant"])
    resident, code = await _payer(installation, request.user, data, redemption_id)
    order = PlaceOrder(
        merchant=data.merchant,
        terminal=data.terminal,
        redemption_id=redemption_id,
        resident=resident,
        **_asked(data),
        hold_seconds=data.hold_seconds,
        capture=data.capture,
        code=code,
        captured_offline_at=None if data.captured_offline_at is UNSET else data.captured_offline_at,
    )
    held = await installation.orders.hold(order, account.balance)
    shown = _held(request.user, held)
    if installation.sandbox and installation.sandbox.unanswered(data.code) and not held.outcome.replayed:
        await hung_up(request)
    return receipt(shown, held.outcome, created=202 if shown.status == "confirming" else 201)


async def _used_at(installation: Installation, redemption_id: str, merchant: str) -> str:
    """The merchant at which an app's key is used: this one, unless there was another. Raises MerchantUnknown.

    A terminal's key is its own; an app's may meet itself at two merchants, whose partitions do not know of each other.
    """

    def used_at() -> str:
        if not installation.journal.state(f"merchant/{merchant}").name:
            raise MerchantUnknown(merchant=merchant)
        return installation.directory.app_order_at(redemption_id, merchant)

    return await asyncio.to_thread(used_at)


async def _payer(installation: Installation, caller: Caller, data: Hold, redemption_id: str) -> tuple[str, str | None]:
    """Whose points are asked for, and the payment code by its step.

    A terminal has seen the resident's code; whoever knows a pseudonym only is an app, and answers for its residents.
    """
    if [data.code, data.resident, data.allowance].count(UNSET) != 2:
        raise ApiError("missing-field", "code or resident, one of them; or, of what was taken offline, the allowance")
    if (data.allowance is UNSET) != (data.captured_offline_at is UNSET):
        raise ApiError("missing-field", "allowance and captured_offline_at go together")
    if data.allowance is not UNSET:
        return await asyncio.to_thread(_by_allowance, installation, data, redemption_id)
    if data.code is not UNSET:
        till = f"{data.merchant}/{data.terminal}"
        guessing = till if caller.role == "terminal" else None  # whoever may spend without a code has none to guess
        try:
            made_up = await payer_of_fixed(installation, data.code, redemption_id, till)
            payer = made_up or await installation.payer(data.code, guessing)
        except Refusal as refusal:
            # A call that is sent again, when its code is good no more.
            placed = await asyncio.to_thread(installation.orders.placed, redemption_id)
            if placed is None:
                raise
            payer = Payer(placed.resident, placed.code or "")
            guessed_at = guessing if isinstance(refusal, CodeUnknown) else None
            was = installation.directory.payers.was
            if not placed.code or not await asyncio.to_thread(was, data.code, payer, guessed_at):
                raise Conflict(fields=["code"]) from None
        return payer.resident, payer.step
    assert data.resident is not UNSET
    if caller.role == "terminal":
        raise ApiError("code-missing")
    if not await asyncio.to_thread(_has_account, installation, data.resident):
        raise AccountUnknown(resident=data.resident)
    return data.resident, None


def _by_allowance(installation: Installation, data: Hold, redemption_id: str) -> tuple[str, str]:
    """Whose an allowance is, and what it uses up. Refusals, in order: AllowanceInvalid, AllowanceElsewhere,
    AllowanceExceeded, AllowanceExpired, AllowanceUnknown.

    A call that is sent again is answered as before, whatever has become of the allowance.
    """
    assert data.allowance is not UNSET
    if not data.capture or data.offer is not UNSET:
        raise ApiError("missing-field", "what was taken offline is points, with capture")
    allowances = installation.directory.allowances
    try:
        allowance = allowances.read(data.allowance)
    except AllowanceInvalid:
        if installation.orders.placed(redemption_id):
            raise Conflict(fields=["allowance"]) from None
        raise
    try:
        _must_cover(allowance, data)
        found = allowances.find(allowance.id)
        if found is None:
            raise AllowanceUnknown
        return found[0], CLAIM + allowance.id
    except Refusal:
        placed = installation.orders.placed(redemption_id)
        if placed is None:
            raise
        return placed.resident, CLAIM + allowance.id


def _must_cover(allowance: Allowance, data: Hold) -> None:
    assert data.points is not UNSET
    assert data.captured_offline_at is not UNSET
    taken = int(data.captured_offline_at.timestamp())
    if allowance.merchant != data.merchant:
        raise AllowanceElsewhere(merchant=data.merchant)
    if data.points > allowance.points:
        raise AllowanceExceeded(points=data.points, allowance=allowance.points)
    if not allowance.issued_at - int(CLOCK_SKEW.total_seconds()) <= taken <= allowance.expires_at:
        raise AllowanceExpired(captured_offline_at=data.captured_offline_at)


def _asked(data: Hold | Undo) -> dict[str, Any]:
    """Points, or items of an offer (one, where nothing else is said). Raises ApiError where it is both, or neither."""
    if (data.points is UNSET) == (data.offer is UNSET):
        raise ApiError("missing-field", "points, or an offer: one of the two")
    if data.points is not UNSET:
        if data.items is not UNSET:
            raise ApiError("unknown-field", "items are of an offer")
        return {"points": data.points}
    return {"offer": data.offer, "items": 1 if data.items is UNSET else data.items}


def _has_account(installation: Installation, resident: str) -> bool:
    return installation.journal.state(resident).opened


def _held(caller: Caller, held: Held) -> RedemptionShown:
    """What the call led to, by its event. Raises the refusal for which it was declined."""
    event, placed = held.event, held.placed
    if isinstance(event, HoldDeclined):
        wanted = {"offer": placed.offer, "items": placed.items} if placed.offer else {"wanted": event.points}
        raise _refusals()[event.reason](current_state="declined", **wanted)
    assert isinstance(event, PointsHeld | PointsCaptured)
    assert isinstance(placed, OrderPlaced)
    captured = isinstance(event, PointsCaptured)
    shown = RedemptionShown(
        placed.redemption_id,
        "captured" if captured else "confirming" if event.confirm_seconds else "held",
        placed.merchant,
        placed.terminal,
        placed.points,
        placed.amount_fen,
        None if captured else event.expires_at,
        captured_points=placed.points if captured else 0,
        captured_fen=placed.amount_fen if captured else 0,
        **_offered(placed),
    )
    return _private(caller, shown, placed.resident, held.outcome.view)


def _offered(of: OrderPlaced | Redemption) -> dict[str, Any]:
    return {"offer": of.offer, "items": of.items} if of.offer else {}


@cache
def _refusals() -> dict[str, type[Refusal]]:
    return codes()


@get(
    "/v1/redemptions",
    operation_id="findRedemption",
    tags=["redemptions"],
    summary="What became of a call, by its Idempotency-Key",
    description="Read from the log itself. `none`: it has not come. It may be on its way still: a reversal makes sure "
    "that it never happens.",
    guards=[takes("terminal", "app")],
    responses=documented("idempotency-key-missing", "not-yours"),
)
@threaded
def find_redemption(
    request: Request[Caller, Any, Any],
    reference: Annotated[str, REFERENCE],
    installation: NamedDependency[Installation],
) -> RedemptionShown:
    redemption_id = redemption_id_of(request.user, reference)
    try:
        return _read(installation, request.user, redemption_id)
    except account.RedemptionUnknown:
        merchant, _, terminal = request.user.owner.partition("/") if request.user.role == "terminal" else ("", "", "")
        return RedemptionShown(redemption_id, "none", merchant, terminal, 0, 0)


@get(
    "/v1/redemptions/{redemption_id:str}",
    operation_id="getRedemption",
    tags=["redemptions"],
    summary="What became of a redemption",
    description="Read from the log itself: right at once.",
    guards=[takes("terminal", "app", "auditor")],
    responses=documented("redemption-unknown", "not-yours"),
)
@threaded
def get_redemption(
    request: Request[Caller, Any, Any],
    redemption_id: Annotated[str, REDEMPTION],
    installation: NamedDependency[Installation],
) -> RedemptionShown:
    return _read(installation, request.user, redemption_id)


def _read(installation: Installation, caller: Caller, redemption_id: str) -> RedemptionShown:
    """A redemption as the log has it now. One whose hold has not come yet is on its way: it has no answer either."""
    parties = installation.orders.find(redemption_id)
    _must_be_party(caller, parties)
    if not parties.resident:  # reversed before it came
        return RedemptionShown(redemption_id, "reversed", parties.merchant, parties.terminal, 0, 0)
    known: Account = installation.journal.state(parties.resident, [("redemptions", redemption_id)])
    redemption = known.redemptions.get(redemption_id)
    if redemption is None:
        raise account.RedemptionUnknown(redemption=redemption_id)
    at = installation.clock()
    shown = _shown(redemption, at)
    if shown.status == "declined":
        because = installation.orders.why_declined(known.id, redemption_id)
        shown = structs.replace(shown, declined_because=because)
    return _private(caller, shown, known.id, account.balance(known, at))


@post(
    "/v1/redemptions/{redemption_id:str}/capture",
    operation_id="captureRedemption",
    tags=["redemptions"],
    summary="Spend what is held, or part of it",
    description="The rest goes back to the resident at once. The merchant is owed the part's share of the amount.",
    guards=[takes("terminal", "app")],
    status_code=201,
    responses=_again(RedemptionShown) | documented("capture-exceeds-hold", "not-whole-items", *_STATES, body=True),
)
async def capture_redemption(
    request: Request[Caller, Any, Any],
    redemption_id: Annotated[str, REDEMPTION],
    data: Annotated[Part, example(points=60)],
    installation: NamedDependency[Installation],
) -> Response[RedemptionShown]:
    parties = await _party(installation, request.user, redemption_id)
    command = CapturePoints(resident=parties.resident, redemption_id=redemption_id, points=data.points)
    outcome = await installation.orders.change(command, _changed(redemption_id))
    redemption, balance = _viewed(outcome.view)
    captured = outcome.events[-1]
    assert isinstance(captured, PointsCaptured)
    shown = RedemptionShown(
        redemption_id,
        "captured",
        redemption.merchant,
        redemption.terminal,
        redemption.points,
        redemption.amount_fen,
        captured_points=captured.points,
        captured_fen=captured.amount_fen,
        **_offered(redemption),
    )
    return receipt(_private(request.user, shown, parties.resident, balance), outcome)


@post(
    "/v1/redemptions/{redemption_id:str}/void",
    operation_id="voidRedemption",
    tags=["redemptions"],
    summary="Release what is held",
    guards=[takes("terminal", "app")],
    status_code=201,
    responses=_again(RedemptionShown) | documented(*_STATES),
)
async def void_redemption(
    request: Request[Caller, Any, Any],
    redemption_id: Annotated[str, REDEMPTION],
    installation: NamedDependency[Installation],
) -> Response[RedemptionShown]:
    parties = await _party(installation, request.user, redemption_id)
    command = VoidHold(resident=parties.resident, redemption_id=redemption_id)
    outcome = await installation.orders.change(command, _changed(redemption_id))
    redemption, balance = _viewed(outcome.view)
    return receipt(_private(request.user, _shown(redemption, None), parties.resident, balance), outcome)


@post(
    "/v1/redemptions/{redemption_id:str}/refunds",
    operation_id="refundRedemption",
    tags=["redemptions"],
    summary="Give captured points back",
    description="To the grants they came from; a grant that has expired since is granted again for 30 days.",
    guards=[takes("terminal", "app")],
    status_code=201,
    responses=_again(RefundShown)
    | documented(
        "idempotency-key-missing",
        "redemption-unknown",
        "redemption-not-captured",
        "refund-exceeds-captured",
        "not-whole-items",
        "identity-reused",
        "not-yours",
        body=True,
    ),
)
async def refund_redemption(
    request: Request[Caller, Any, Any],
    redemption_id: Annotated[str, REDEMPTION],
    data: Annotated[Part, example(points=60)],
    installation: NamedDependency[Installation],
    idempotency_key: Annotated[str, IDEMPOTENCY_KEY],
) -> Response[RefundShown]:
    refund_id = id_from_key("rfd_", request, f"refund {redemption_id}")
    parties = await _party(installation, request.user, redemption_id)
    command = RefundPoints(
        resident=parties.resident, redemption_id=redemption_id, refund_id=refund_id, points=data.points
    )
    outcome = await installation.orders.change(command, account.balance)
    refunded = outcome.events[-1]
    assert isinstance(refunded, PointsRefunded)
    shown = RefundShown(refund_id, redemption_id, refunded.points, refunded.amount_fen)
    return receipt(_private(request.user, shown, parties.resident, outcome.view), outcome)


@post(
    "/v1/redemptions/reversal",
    operation_id="reverseRedemption",
    tags=["redemptions"],
    summary="Undo a call of which nobody knows what became of it",
    description="Whether it came, was held or captured, or has not come yet: then it never happens. Until the batch of "
    "the sale is closed; after that, refund it.",
    guards=[takes("terminal", "app")],
    status_code=201,
    responses=_again(Undone)
    | documented(
        "idempotency-key-missing",
        "reversal-mismatch",
        "use-refund",
        "merchant-unknown",
        "terminal-unknown",
        "identity-reused",
        "not-yours",
        body=True,
    ),
)
async def reverse_redemption(
    request: Request[Caller, Any, Any],
    data: Annotated[
        Undo,
        example(
            reference="01JD8QZ7Q4M5V6W7X8Y9ZABCDE",
            points=100,
            reason="timeout",
            merchant="nanxun-teahouse",
            terminal="t1",
        ),
    ],
    installation: NamedDependency[Installation],
) -> Response[Undone]:
    merchant, terminal = data.merchant, data.terminal
    if request.user.role == "terminal":
        own_merchant, _, own_terminal = request.user.owner.partition("/")
        merchant, terminal = merchant or own_merchant, terminal or own_terminal
        must_own(request.user, "terminal", f"{merchant}/{terminal}")
    if not merchant or not terminal:
        raise ApiError("missing-field", "whose call it was: merchant and terminal")
    redemption_id = redemption_id_of(request.user, data.reference)
    if request.user.role != "terminal":
        await _must_be_used_at(installation, redemption_id, merchant)
    command = ReverseOrder(
        merchant=merchant, terminal=terminal, redemption_id=redemption_id, reason=data.reason, **_asked(data)
    )
    outcome, event = await installation.orders.reverse(command)
    return receipt(_undone(redemption_id, event), outcome)


async def _must_be_used_at(installation: Installation, redemption_id: str, merchant: str) -> None:
    """Whoever names the merchant may name another one, which knows nothing of the order. Raises ReversalMismatch."""
    used_at = await _used_at(installation, redemption_id, merchant)
    if used_at == merchant:
        return
    placed = await asyncio.to_thread(installation.orders.placed, redemption_id)
    told = {f: getattr(placed, f) for f in ("points", "offer", "items", "terminal")} if placed else {}
    raise ReversalMismatch(merchant=used_at, **told)


def _undone(redemption_id: str, event: Event | None) -> Undone:
    match event:
        case HoldReleased():
            return Undone(redemption_id, "released", 0, 0)
        case PointsRefunded():
            return Undone(redemption_id, "refunded", event.points, event.amount_fen)
        case _:
            return Undone(redemption_id, "none", 0, 0)


@post(
    "/v1/redemptions/{redemption_id:str}/confirmation",
    operation_id="confirmRedemption",
    tags=["redemptions"],
    summary="The resident agrees to what a terminal asks for, or not",
    guards=[takes("app")],
    status_code=201,
    responses=_again(RedemptionShown) | documented(*_STATES, body=True),
)
async def confirm_redemption(
    request: Request[Caller, Any, Any],
    redemption_id: Annotated[str, REDEMPTION],
    data: Annotated[Agreement, example(accept=True)],
    installation: NamedDependency[Installation],
) -> Response[RedemptionShown]:
    parties = await _party(installation, request.user, redemption_id)
    command = ConfirmHold(resident=parties.resident, redemption_id=redemption_id, accept=data.accept)
    outcome = await installation.orders.change(command, _changed(redemption_id))
    redemption, balance = _viewed(outcome.view)
    return receipt(_private(request.user, _agreed(redemption, outcome.events[-1]), parties.resident, balance), outcome)


def _agreed(redemption: Redemption, event: Event) -> RedemptionShown:
    """What the resident's word led to, whatever came later."""
    captured = event if isinstance(event, PointsCaptured) else None
    declined = isinstance(event, HoldReleased)
    return RedemptionShown(
        redemption.id,
        "captured" if captured else "declined" if declined else "held",
        redemption.merchant,
        redemption.terminal,
        redemption.points,
        redemption.amount_fen,
        event.expires_at if isinstance(event, HoldConfirmed) else None,
        captured.points if captured else 0,
        captured.amount_fen if captured else 0,
        **_offered(redemption),
        declined_because=account.NOT_AGREED if declined else UNSET,
    )


@get(
    "/v1/residents/{resident:str}/confirmations",
    operation_id="listConfirmations",
    tags=["redemptions"],
    summary="What waits for the resident to agree",
    description="Read from the log itself: right at once. What is not agreed to in time is declined.",
    guards=[takes("app")],
    responses=documented("account-unknown"),
)
@threaded
def list_confirmations(
    request: Request[Caller, Any, Any],
    resident: Annotated[str, RESIDENT],
    installation: NamedDependency[Installation],
) -> Confirmations:
    known: Account = installation.journal.state(resident)
    if not known.opened:
        raise AccountUnknown(resident=resident)
    at = installation.clock()
    waiting = [name for name, held in known.holds.items() if held.unconfirmed and held.expires_at > at]
    if not waiting:
        return Confirmations([])
    known = installation.journal.state(resident, [("redemptions", name) for name in waiting])
    found = [_shown(known.redemptions[name], at) for name in waiting if name in known.redemptions]
    return Confirmations([structs.replace(one, resident=resident) for one in found])


async def _party(installation: Installation, caller: Caller, redemption_id: str) -> Parties:
    """Between whom a redemption is, for one who may change it."""
    parties = await installation.orders.parties(redemption_id)
    _must_be_party(caller, parties)
    if not parties.resident:
        raise account.RedemptionNotHeld(redemption=redemption_id, current_state="reversed")
    return parties


def _must_be_party(caller: Caller, parties: Parties) -> None:
    must_own(caller, "terminal", f"{parties.merchant}/{parties.terminal}")


def _changed(redemption_id: str) -> Any:
    def view(known: Account, at: datetime) -> tuple[Redemption, Balance]:
        # As it is now: the state goes on changing.
        return structs.replace(known.redemptions[redemption_id]), account.balance(known, at)

    return view


def _viewed(view: Any) -> tuple[Redemption, Balance]:
    return view


def _private(caller: Caller, shown: Any, resident: str, balance: Any) -> Any:
    """With what concerns the resident alone, for those whom it concerns."""
    return shown if caller.role == "terminal" else structs.replace(shown, resident=resident, balance=balance)


def _shown(redemption: Redemption, at: datetime | None) -> RedemptionShown:
    run_out = at is not None and redemption.expires_at <= at
    status = redemption.status
    if run_out and status in ("held", "confirming"):
        status = "expired" if status == "held" else "declined"
    return RedemptionShown(
        redemption.id,
        status,
        redemption.merchant,
        redemption.terminal,
        redemption.points,
        redemption.amount_fen,
        redemption.expires_at if status in ("held", "confirming", "expired") else None,
        redemption.captured_points,
        redemption.captured_fen,
        redemption.refunded_points,
        redemption.refunded_fen,
        **_offered(redemption),
    )


handlers = [
    create_redemption,
    find_redemption,
    get_redemption,
    capture_redemption,
    void_redemption,
    refund_redemption,
    reverse_redemption,
    confirm_redemption,
    list_confirmations,
]
