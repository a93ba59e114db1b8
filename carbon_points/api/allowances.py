"""Allowances: points that a resident may spend at a merchant's terminals while those are offline.

An allowance sets nothing aside: its points are taken when the payment is sent, and the merchant bears the risk that
they are gone by then. It is granted up to what the resident has, less what other allowances may still take.
"""

import base64
from datetime import UTC, datetime
from typing import Annotated, Any

from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from msgspec import Struct

from carbon_points.api.access import takes
from carbon_points.api.installation import (
    IDEMPOTENCY_KEY,
    REPLAYED_HEADER,
    Installation,
    example,
    id_from_key,
    threaded,
)
from carbon_points.api.problems import documented
from carbon_points.api.redemptions import Points
from carbon_points.api.residents import RESIDENT
from carbon_points.directory import Caller
from carbon_points.directory.allowances import Granted
from carbon_points.domain import account, merchant, offline
from carbon_points.domain.event import Id
from carbon_points.domain.offline import CLAIM


class Wanted(Struct, frozen=True, forbid_unknown_fields=True):
    """So many points, at that merchant's terminals."""

    merchant: Id
    points: Points


class AllowanceShown(Struct, frozen=True):
    """`allowance` is what the phone shows, as a QR code."""

    allowance_id: str
    allowance: str
    merchant: str
    points: int
    expires_at: datetime


class KeyShown(Struct, frozen=True):
    """`public_key`: 32 bytes in base64, of Ed25519."""

    key_id: str
    public_key: str


class KeyList(Struct, frozen=True):
    data: list[KeyShown]


@post(
    "/v1/residents/{resident:str}/allowances",
    operation_id="createAllowance",
    tags=["residents"],
    summary="An allowance to pay a terminal that is offline",
    description="For 24 hours, at the terminals of one merchant, to be used once. Granted up to what the resident has, "
    "less what their other allowances may still take.",
    guards=[takes("app")],
    status_code=201,
    responses={200: ResponseSpec(AllowanceShown, description="The earlier answer again", generate_examples=False)}
    | documented(
        "idempotency-key-missing",
        "identity-reused",
        "account-unknown",
        "merchant-unknown",
        "offline-not-allowed",
        "offline-exceeds-terms",
        "account-frozen",
        "insufficient-points",
        body=True,
    ),
)
@threaded
def create_allowance(
    request: Request[Caller, Any, Any],
    resident: Annotated[str, RESIDENT],
    data: Annotated[Wanted, example(merchant="nanxun-teahouse", points=100)],
    installation: NamedDependency[Installation],
    idempotency_key: Annotated[str, IDEMPOTENCY_KEY],
) -> Response[AllowanceShown]:
    allowance_id = id_from_key("alw_", request, "allowance")
    allowances = installation.directory.allowances
    if found := allowances.find(allowance_id):
        return _shown(allowances.told(found, resident, data.merchant, data.points, again=True))
    _must_have(installation, resident, data)
    return _shown(allowances.grant(allowance_id, resident, data.merchant, data.points, installation.clock()))


def _must_have(installation: Installation, resident: str, wanted: Wanted) -> None:
    """Refusals, in order: AccountUnknown, MerchantUnknown, OfflineNotAllowed, OfflineExceedsTerms, AccountIsFrozen,
    InsufficientPoints."""
    known: account.Account = installation.journal.state(resident)
    if not known.opened:
        raise account.AccountUnknown(resident=resident)
    of: merchant.Merchant = installation.journal.state(f"merchant/{wanted.merchant}")
    if not of.name:
        raise merchant.MerchantUnknown(merchant=wanted.merchant)
    offline.within(wanted.points, of.offline)
    if known.frozen:
        raise account.AccountIsFrozen(resident=resident)
    at = installation.clock()
    others = installation.directory.allowances.outstanding(resident, at)
    promised = sum(one.points for one in others if installation.journal.find(("code", CLAIM + one.id)) is None)
    available = account.balance(known, at).points_available - promised
    if wanted.points > available:
        raise account.InsufficientPoints(available=available, wanted=wanted.points)


def _shown(granted: Granted) -> Response[AllowanceShown]:
    allowance = granted.allowance
    ends = datetime.fromtimestamp(allowance.expires_at, UTC)
    shown = AllowanceShown(allowance.id, granted.token, allowance.merchant, allowance.points, ends)
    headers = {"Cache-Control": "no-store"} | ({REPLAYED_HEADER: "true"} if granted.again else {})
    return Response(shown, status_code=200 if granted.again else 201, headers=headers)


@get(
    "/v1/allowance-keys",
    operation_id="listAllowanceKeys",
    tags=["terminals"],
    summary="The public keys by which a terminal checks allowances",
    description="The newest first. To be fetched while online, and kept.",
    guards=[takes("terminal", "app", "auditor")],
    responses=documented(),
)
@threaded
def list_keys(installation: NamedDependency[Installation]) -> KeyList:
    keys = installation.directory.allowances.public_keys()
    return KeyList([KeyShown(key.key_id, base64.b64encode(key.public_key).decode()) for key in keys])


handlers = [create_allowance, list_keys]
