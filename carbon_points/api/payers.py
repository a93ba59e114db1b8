"""Payment codes: give a resident's phone the secret that makes them, or make one for an app that asks.

A secret and a code are told in the answer and nowhere else: no log, no address, no error has them. So neither call
is replayed. A secret whose answer was lost is replaced by the next one; a code is the same within its minute.
"""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime
from io import BytesIO
from typing import Annotated, Any, Literal

import segno
from barcode import Code128  # pyright: ignore[reportMissingTypeStubs]  # it has none
from litestar import Response, post
from litestar.di import NamedDependency
from litestar.openapi.spec import OpenAPIMediaType, Operation
from litestar.params import QueryParameter
from msgspec import Struct

from carbon_points import codes
from carbon_points.api.access import takes
from carbon_points.api.installation import Installation, threaded
from carbon_points.api.problems import documented
from carbon_points.api.residents import RESIDENT
from carbon_points.directory.payers import Throttled
from carbon_points.domain import account

SVG, PNG = "image/svg+xml", "image/png"
Form = Literal["json", "svg", "png", "barcode"]
_TOLD_ONCE = {"Cache-Control": "no-store"}


class SecretShown(Struct, frozen=True):
    """What makes codes on a phone. `secret` is base32, without padding."""

    handle: str
    secret: str
    step_seconds: int


class CodeShown(Struct, frozen=True):
    """`expires_at`: from then on it is refused. Used once, it is refused, too."""

    code: str
    expires_at: datetime


@dataclass
class _Pictures(Operation):
    """The description of an answer that may be a picture."""

    def __post_init__(self) -> None:
        answer: Any = (self.responses or {})["200"]
        answer.content |= {SVG: OpenAPIMediaType(), PNG: OpenAPIMediaType()}


@post(
    "/v1/residents/{resident:str}/payment-secret",
    operation_id="issuePaymentSecret",
    tags=["residents"],
    summary="Give a phone a new payment secret",
    description="Told once. It replaces the one before, whose codes are refused from now on, by other processes of the "
    "server within 5 seconds. Sent again, the call makes another: keep what the latest answer says.",
    guards=[takes("app")],
    status_code=200,
    responses=documented("account-unknown"),
)
@threaded
def issue_secret(
    resident: Annotated[str, RESIDENT], installation: NamedDependency[Installation]
) -> Response[SecretShown]:
    _must_be_open(installation, resident)
    made = installation.directory.payers.issue(resident)
    told = SecretShown(made.handle, base64.b32encode(made.secret).decode(), codes.STEP_SECONDS)
    return Response(told, headers=_TOLD_ONCE)


@post(
    "/v1/residents/{resident:str}/payment-codes",
    operation_id="createPaymentCode",
    tags=["residents"],
    summary="A payment code to show now",
    description="For an app that is online: the code that the resident's phone would make, or, where no phone has a "
    "secret, one of a secret that stays here. The same within its minute until it is used, then the next one. As "
    "JSON or as a picture, whose `Expires` header is the code's: `svg` and `png` are QR codes, `barcode` is "
    "a Code 128 as SVG.",
    guards=[takes("app")],
    status_code=200,
    operation_class=_Pictures,
    responses=documented("account-unknown", "rate-limited"),
)
@threaded
def create_code(
    resident: Annotated[str, RESIDENT],
    installation: NamedDependency[Installation],
    form: Annotated[Form, QueryParameter(name="as", description="JSON, a QR code, or a barcode")] = "json",
) -> Response[CodeShown]:
    _must_be_open(installation, resident)
    code, expires_at = _unused(installation, resident)
    if form == "json":
        return Response(CodeShown(code, expires_at), headers=_TOLD_ONCE)
    media_type, draw = _DRAWN[form]
    head = {**_TOLD_ONCE, "Expires": format_datetime(expires_at, usegmt=True)}
    picture: Any = draw(code)
    return Response(picture, media_type=media_type, headers=head)


def _must_be_open(installation: Installation, resident: str) -> None:
    if not installation.journal.state(resident).opened:
        raise account.AccountUnknown(resident=resident)


def _unused(installation: Installation, resident: str) -> tuple[str, datetime]:
    """A code that would be taken now and was not used yet, and when it ends. Raises Throttled."""
    at = installation.clock()
    now = codes.step_at(at)
    for step in (now, now + max(codes.ACCEPTED)):
        code, payer = installation.directory.payers.code(resident, step)
        if installation.journal.find(("code", payer.step)) is None:
            return code, codes.ends_at(step)
    raise Throttled(seconds=codes.STEP_SECONDS - int(at.timestamp()) % codes.STEP_SECONDS)


def _qr(kind: str) -> Callable[[str], bytes]:
    def draw(code: str) -> bytes:
        drawn = BytesIO()
        segno.make_qr(code).save(drawn, kind=kind, scale=8, light="white")
        return drawn.getvalue()

    return draw


def _barcode(code: str) -> bytes:
    """Bars of two pixels of a screen, with ten times that free on both sides, as the standard asks; and the digits."""
    size = {"module_width": 0.529, "module_height": 20.0, "quiet_zone": 5.3}
    drawing: Any = Code128(code)  # whose types stop half way
    return drawing.render(size)


_DRAWN: dict[str, tuple[str, Callable[[str], bytes]]] = {
    "svg": (SVG, _qr("svg")),
    "png": (PNG, _qr("png")),
    "barcode": (SVG, _barcode),
}

handlers = [issue_secret, create_code]
