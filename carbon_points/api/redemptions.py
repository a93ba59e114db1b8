"""Redemptions: hold a resident's points at a terminal, capture or void them, refund what was captured.

Every call may be sent again until it is answered: a hold by its Idempotency-Key, a capture and a void by the
redemption itself, a refund by its key. `GET` tells what became of one.
"""

import asyncio
from datetime import datetime
from typing import Annotated, Any

from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import PathParameter
from msgspec import Meta, Struct

from carbon_points.api.access import must_own, takes
from carbon_points.api.installation import IDEMPOTENCY_KEY, Installation, example, id_from_key, receipt, threaded
from carbon_points.api.problems import documented
from carbon_points.directory import REDEMPTIONS, Caller, SubjectBound
from carbon_points.domain import account
from carbon_points.domain.account import (
    POINTS_MOST,
    Account,
    Balance,
    CapturePoints,
    HoldPoints,
    PointsHeld,
    Redemption,
    RefundPoints,
    VoidHold,
)
from carbon_points.domain.event import Id
from carbon_points.domain.merchant import Merchant
from carbon_points.domain.refusal import Conflict
from carbon_points.journal import codec

HOLD_SECONDS = 300
REDEMPTION = PathParameter(pattern=r"^rdm_[a-z2-7]{20}$", description="the redemption's id")
Points = Annotated[int, Meta(ge=1, le=POINTS_MOST)]


class Hold(Struct, frozen=True, forbid_unknown_fields=True):
    """`capture`: spend the points at once, in the same answer."""

    resident: Annotated[str, Meta(pattern=r"^res_[a-z2-7]{20}$")]
    merchant: Id
    terminal: Id
    points: Points
    hold_seconds: Annotated[int, Meta(ge=1, le=7 * 86400)] = HOLD_SECONDS
    capture: bool = False


class Part(Struct, frozen=True, forbid_unknown_fields=True):
    """How many points, of what is held or captured."""

    points: Points


class RedemptionShown(Struct, frozen=True):
    """A redemption now. `status`: held, captured, partially_refunded, refunded, voided or expired."""

    redemption_id: str
    status: str
    resident: str
    merchant: str
    terminal: str
    points: int
    amount_fen: int
    expires_at: datetime
    captured_points: int
    captured_fen: int
    refunded_points: int
    refunded_fen: int
    balance: Balance


_AT_ONCE = "+"  # after the resident, where a redemption is captured in the same call
_AGAIN = {200: ResponseSpec(RedemptionShown, description="The earlier answer again", generate_examples=False)}
_STATES = (
    "redemption-unknown",
    "hold-expired",
    "redemption-not-held",
    "identity-reused",
    "not-yours",
    "account-unknown",
)


@post(
    "/v1/redemptions",
    operation_id="createRedemption",
    tags=["redemptions"],
    summary="Hold points, or hold and capture them at once",
    guards=[takes("terminal", "app")],
    status_code=201,
    responses=_AGAIN
    | documented(
        "idempotency-key-missing",
        "identity-reused",
        "account-unknown",
        "account-frozen",
        "insufficient-points",
        "merchant-unknown",
        "terminal-unknown",
        "not-yours",
        body=True,
    ),
)
async def create_redemption(
    request: Request[Caller, Any, Any],
    data: Annotated[
        Hold,
        example(resident="res_abcdefghijklmnopqrst", merchant="nanxun-teahouse", terminal="t1", points=100),
    ],
    installation: NamedDependency[Installation],
    idempotency_key: Annotated[str, IDEMPOTENCY_KEY],
) -> Response[RedemptionShown]:
    must_own(request.user, "terminal", f"{data.merchant}/{data.terminal}")
    redemption_id = id_from_key("rdm_", request, "redemption")
    amount_fen = data.points * await asyncio.to_thread(_price, installation, data, redemption_id)
    command = HoldPoints(
        resident=data.resident,
        redemption_id=redemption_id,
        merchant=data.merchant,
        terminal=data.terminal,
        points=data.points,
        amount_fen=amount_fen,
        hold_seconds=data.hold_seconds,
    )
    outcome = await installation.write(command, None, _view(redemption_id))
    if data.capture:
        capture = CapturePoints(resident=data.resident, redemption_id=redemption_id, points=data.points)
        outcome = await installation.write(capture, None, _view(redemption_id))
    return receipt(outcome.view, outcome)


def _price(installation: Installation, data: Hold, redemption_id: str) -> int:
    """Fen a point at this merchant. Refuses a key that was used for another resident, or for a hold and now a capture.

    The key is bound to its resident before the hold: two residents may lie in two partitions, where no claim is one.
    """
    bound = data.resident + (_AT_ONCE if data.capture else "")
    try:
        installation.directory.bind(REDEMPTIONS, [redemption_id], bound)
    except SubjectBound:
        earlier = installation.directory.resident(REDEMPTIONS, redemption_id)
        same = earlier.removesuffix(_AT_ONCE) == data.resident
        raise Conflict(fields=["capture" if same else "resident"]) from None
    merchant: Merchant = installation.journal.state(f"merchant/{data.merchant}")
    return merchant.accepting(data.terminal).fen_per_point


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
    held = _held(installation, redemption_id)
    _owned(request.user, held)
    known: Account = installation.journal.state(held.resident, [("redemptions", redemption_id)])
    return _shown(known, known.redemptions[redemption_id], installation.clock())


@post(
    "/v1/redemptions/{redemption_id:str}/capture",
    operation_id="captureRedemption",
    tags=["redemptions"],
    summary="Spend what is held, or part of it",
    description="The rest goes back to the resident at once. The merchant is owed the part's share of the amount.",
    guards=[takes("terminal", "app")],
    status_code=201,
    responses=_AGAIN | documented("capture-exceeds-hold", *_STATES, body=True),
)
async def capture_redemption(
    request: Request[Caller, Any, Any],
    redemption_id: Annotated[str, REDEMPTION],
    data: Annotated[Part, example(points=60)],
    installation: NamedDependency[Installation],
) -> Response[RedemptionShown]:
    held = await asyncio.to_thread(_held, installation, redemption_id)
    _owned(request.user, held)
    command = CapturePoints(resident=held.resident, redemption_id=redemption_id, points=data.points)
    outcome = await installation.write(command, None, _view(redemption_id))
    return receipt(outcome.view, outcome)


@post(
    "/v1/redemptions/{redemption_id:str}/void",
    operation_id="voidRedemption",
    tags=["redemptions"],
    summary="Release what is held",
    guards=[takes("terminal", "app")],
    status_code=201,
    responses=_AGAIN | documented(*_STATES),
)
async def void_redemption(
    request: Request[Caller, Any, Any],
    redemption_id: Annotated[str, REDEMPTION],
    installation: NamedDependency[Installation],
) -> Response[RedemptionShown]:
    held = await asyncio.to_thread(_held, installation, redemption_id)
    _owned(request.user, held)
    command = VoidHold(resident=held.resident, redemption_id=redemption_id)
    outcome = await installation.write(command, None, _view(redemption_id))
    return receipt(outcome.view, outcome)


@post(
    "/v1/redemptions/{redemption_id:str}/refunds",
    operation_id="refundRedemption",
    tags=["redemptions"],
    summary="Give captured points back",
    description="To the grants they came from; a grant that has expired since is granted again for 30 days.",
    guards=[takes("terminal", "app")],
    status_code=201,
    responses=_AGAIN
    | documented(
        "idempotency-key-missing",
        "redemption-unknown",
        "redemption-not-captured",
        "refund-exceeds-captured",
        "identity-reused",
        "not-yours",
        "account-unknown",
        body=True,
    ),
)
async def refund_redemption(
    request: Request[Caller, Any, Any],
    redemption_id: Annotated[str, REDEMPTION],
    data: Annotated[Part, example(points=60)],
    installation: NamedDependency[Installation],
    idempotency_key: Annotated[str, IDEMPOTENCY_KEY],
) -> Response[RedemptionShown]:
    refund_id = id_from_key("rfd_", request, f"refund {redemption_id}")
    held = await asyncio.to_thread(_held, installation, redemption_id)
    _owned(request.user, held)
    command = RefundPoints(resident=held.resident, redemption_id=redemption_id, refund_id=refund_id, points=data.points)
    outcome = await installation.write(command, None, _view(redemption_id))
    return receipt(outcome.view, outcome)


def _held(installation: Installation, redemption_id: str) -> PointsHeld:
    entry = installation.journal.find(("redemption", redemption_id))
    if entry is None:
        raise account.RedemptionUnknown(redemption=redemption_id)
    held = codec.decode(entry.type, entry.state)
    assert isinstance(held, PointsHeld)
    return held


def _owned(caller: Caller, held: PointsHeld) -> None:
    must_own(caller, "terminal", f"{held.merchant}/{held.terminal}")


def _view(redemption_id: str) -> Any:
    def view(known: Account, at: datetime) -> RedemptionShown:
        return _shown(known, known.redemptions[redemption_id], at)

    return view


def _shown(known: Account, redemption: Redemption, at: datetime) -> RedemptionShown:
    run_out = redemption.status == "held" and redemption.expires_at <= at
    return RedemptionShown(
        redemption.id,
        "expired" if run_out else redemption.status,
        known.id,
        redemption.merchant,
        redemption.terminal,
        redemption.points,
        redemption.amount_fen,
        redemption.expires_at,
        redemption.captured_points,
        redemption.captured_fen,
        redemption.refunded_points,
        redemption.refunded_fen,
        account.balance(known, at),
    )


handlers = [create_redemption, get_redemption, capture_redemption, void_redemption, refund_redemption]
