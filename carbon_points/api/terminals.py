"""Terminals: activate, change keys, suspend, and see which keys there are.

A right is given in the log first and then in the directory, which requests are checked against; it is taken away in
the directory first. Whatever ends between the two, nobody can do what the log does not know of, and the same call
again does the rest: the directory is made what the log says, not what the call wanted.
"""

import base64
import hashlib
import time
from collections import deque
from datetime import datetime
from typing import Annotated, Any, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import PathParameter
from msgspec import Meta, Struct

from carbon_points.api.access import must_own, takes
from carbon_points.api.installation import (
    IDEMPOTENCY_KEY,
    PLAIN,
    Installation,
    done,
    example,
    name_of,
    position_headers,
    receipt,
    threaded,
)
from carbon_points.api.merchants import MERCHANT
from carbon_points.api.problems import ApiError, documented
from carbon_points.directory import Caller
from carbon_points.directory.terminals import ActivationCodeUnknown, TooManyAttempts
from carbon_points.domain.event import Text
from carbon_points.domain.merchant import Merchant
from carbon_points.domain.terminal import AddTerminalKey, Identity, KeyEnded, SuspendTerminal, TerminalKeyAdded
from carbon_points.journal.partition import Outcome, Write
from carbon_points.projections import merchants as read_merchants

TERMINAL = PathParameter(max_length=64, pattern=PLAIN, description="the terminal's id within the merchant")
GUESSES_MOST, GUESSES_SECONDS = 60, 60.0  # wrong codes told a process, of whichever terminal
PublicKey = Annotated[str, Meta(pattern="^[A-Za-z0-9+/]{43}=$", description="32 bytes of Ed25519, in base64")]
Proof = Annotated[str, Meta(pattern="^[A-Za-z0-9+/]{86}==$", description="a signature by that key, in base64")]
Code = Annotated[str, Meta(pattern="^[0-9]{4}([ -]?[0-9]{4}){7}$", description="as the operator was told it")]


class CodeShown(Struct, frozen=True):
    """Shown once. It activates the terminal once, until `expires_at`; the one before no longer does."""

    merchant: str
    terminal: str
    activation_code: str
    expires_at: datetime


class Activation(Struct, frozen=True, forbid_unknown_fields=True):
    """`proof` signs `carbon-points-activation`, the code and `public_key`, as they stand here, a line each."""

    activation_code: Code
    public_key: PublicKey
    proof: Proof


class Rotation(Struct, frozen=True, forbid_unknown_fields=True):
    """`proof` signs `carbon-points-rotation`, the key_id that signs the call, and `public_key`, a line each."""

    public_key: PublicKey
    proof: Proof


class Activated(Struct, frozen=True):
    key_id: str
    merchant: str
    terminal: str
    server_time: datetime


class Suspension(Struct, frozen=True, forbid_unknown_fields=True):
    suspended: bool
    reason: Text


class SuspensionShown(Struct, frozen=True):
    merchant: str
    terminal: str
    suspended: bool


class KeyShown(Struct, frozen=True):
    """`status`: in-force, ending (at `ends_at`) or ended."""

    key_id: str
    public_key: str
    status: Literal["in-force", "ending", "ended"]
    added_at: datetime
    ends_at: datetime | None


class KeysShown(Struct, frozen=True):
    merchant: str
    terminal: str
    suspended: bool
    keys: list[KeyShown]


class Guesses:
    """Wrong codes of the last minute. A right one is always taken; who guesses is told to wait."""

    def __init__(self) -> None:
        self._at: deque[float] = deque(maxlen=GUESSES_MOST)

    def wrong(self) -> None:
        """Refusals: TooManyAttempts."""
        now = time.monotonic()
        too_many = len(self._at) == GUESSES_MOST and self._at[0] > now - GUESSES_SECONDS
        if too_many:
            raise TooManyAttempts(seconds=round(GUESSES_SECONDS))
        self._at.append(now)


_AGAIN = {200: ResponseSpec(Activated, description="The earlier answer again", generate_examples=False)}


@post(
    "/v1/merchants/{merchant:str}/terminals/{terminal:str}/activation",
    operation_id="makeActivationCode",
    tags=["terminals"],
    summary="Make a code with which a terminal is activated",
    description="Each call makes another code, and the one before is worth nothing from then on.",
    guards=[takes()],
    status_code=200,
    responses=documented("merchant-unknown", "terminal-unknown"),
)
@threaded
def make_activation_code(
    merchant: Annotated[str, MERCHANT],
    terminal: Annotated[str, TERMINAL],
    installation: NamedDependency[Installation],
) -> Response[CodeShown]:
    return Response(new_code(installation, merchant, terminal), status_code=200, headers={"Cache-Control": "no-store"})


@post(
    "/v1/terminals/activation",
    operation_id="activateTerminal",
    tags=["terminals"],
    summary="Activate a terminal with its code and its public key",
    description="Once for each code. The same again gives the same answer; the terminal's other keys end at once.",
    status_code=201,
    responses=_AGAIN
    | documented(
        "activation-code-unknown",
        "activation-code-expired",
        "activation-code-used",
        "too-many-attempts",
        "public-key-invalid",
        "proof-invalid",
        "identity-reused",
        "key-ended",
        "terminal-unknown",
        public=True,
        body=True,
    ),
)
@threaded
def activate_terminal(
    request: Request[Any, Any, Any],
    data: Annotated[
        Activation,
        example(
            activation_code="4711-0815-1234-5678-9012-3456-7890-1234",
            public_key="JrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=",
            proof="A" * 86 + "==",
        ),
    ],
    installation: NamedDependency[Installation],
) -> Response[Activated]:
    told = f"carbon-points-activation\n{data.activation_code}\n{data.public_key}"
    _check_proof(data.public_key, data.proof, told)
    try:
        owner = installation.directory.terminals.use_code(data.activation_code, data.public_key, installation.clock())
    except ActivationCodeUnknown:
        guesses: Guesses = request.app.state.guesses
        guesses.wrong()
        raise
    return _added(installation, owner, data.public_key, None)


@post(
    "/v1/terminals/keys",
    operation_id="rotateTerminalKey",
    tags=["terminals"],
    summary="Change a terminal's key",
    description="Signed by the key in force, which then lives for 24 hours more. The same again: the same answer.",
    guards=[takes("terminal")],
    status_code=201,
    responses=_AGAIN
    | documented(
        "idempotency-key-missing",
        "signature-required",
        "public-key-invalid",
        "proof-invalid",
        "identity-reused",
        "key-ended",
        "terminal-suspended",
        body=True,
    ),
)
@threaded
def rotate_terminal_key(
    request: Request[Caller, Any, Any],
    data: Annotated[
        Rotation,
        example(public_key="JrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=", proof="A" * 86 + "=="),
    ],
    installation: NamedDependency[Installation],
    idempotency_key: Annotated[str, IDEMPOTENCY_KEY],
) -> Response[Activated]:
    signer = request.user.key_id
    if not signer.startswith("trm_"):
        raise ApiError("signature-required", "a key is changed by the key in force: sign the call with it")
    _check_proof(data.public_key, data.proof, f"carbon-points-rotation\n{signer}\n{data.public_key}")
    return _added(installation, request.user.owner, data.public_key, signer)


@post(
    "/v1/merchants/{merchant:str}/terminals/{terminal:str}/suspension",
    operation_id="suspendTerminal",
    tags=["terminals"],
    summary="Suspend a terminal, or take from it again",
    description="At once by this server process, by others within 5 seconds; by whatever key it calls.",
    guards=[takes()],
    status_code=200,
    responses=documented("merchant-unknown", "terminal-unknown", body=True),
)
@threaded
def suspend_terminal(
    merchant: Annotated[str, MERCHANT],
    terminal: Annotated[str, TERMINAL],
    data: Annotated[Suspension, example(suspended=True, reason="stolen in the night")],
    installation: NamedDependency[Installation],
) -> Response[SuspensionShown]:
    outcome = suspended(installation, merchant, terminal, suspended=data.suspended, reason=data.reason)
    headers = position_headers(outcome) if outcome.events else {}
    return Response(SuspensionShown(merchant, terminal, data.suspended), status_code=200, headers=headers)


@get(
    "/v1/merchants/{merchant:str}/terminals/{terminal:str}/keys",
    operation_id="listTerminalKeys",
    tags=["terminals"],
    summary="The keys with which a terminal signs, or signed",
    guards=[takes("auditor", "terminal")],
    responses=documented("merchant-unknown", "terminal-unknown", "not-yours"),
)
@threaded
def list_terminal_keys(
    request: Request[Caller, Any, Any],
    merchant: Annotated[str, MERCHANT],
    terminal: Annotated[str, TERMINAL],
    installation: NamedDependency[Installation],
) -> KeysShown:
    must_own(request.user, "terminal", f"{merchant}/{terminal}")
    return keys_of(installation, merchant, terminal)


# -- what the command line does, too ---------------------------------------------------------------------------------


def new_code(installation: Installation, merchant: str, terminal: str) -> CodeShown:
    """Refusals, in order: MerchantUnknown, TerminalUnknown."""
    _identity(installation, merchant, terminal)
    code, expires_at = installation.directory.terminals.new_code(f"{merchant}/{terminal}", installation.clock())
    return CodeShown(merchant, terminal, code, expires_at)


def suspended(installation: Installation, merchant: str, terminal: str, *, suspended: bool, reason: str) -> Outcome:
    """Refusals, in order: MerchantUnknown, TerminalUnknown."""
    _identity(installation, merchant, terminal)
    if suspended:
        installation.directory.terminals.refuse(f"{merchant}/{terminal}")
    command = SuspendTerminal(merchant=merchant, terminal=terminal, suspended=suspended, reason=reason)
    outcome = done(installation.journal.commit([Write(command)])[0])
    _copied(installation, merchant, terminal)
    return outcome


def keys_of(installation: Installation, merchant: str, terminal: str) -> KeysShown:
    """As the log has them: the directory, if it was behind, is so no longer. Refusals as above."""
    known = _copied(installation, merchant, terminal)
    keys = installation.directory.terminals.keys(f"{merchant}/{terminal}")
    now = installation.clock()
    shown = [
        KeyShown(
            k.key_id,
            base64.b64encode(k.public_key).decode(),
            "in-force" if k.ends_at is None else "ending" if k.ends_at > now else "ended",
            k.added_at,
            k.ends_at,
        )
        for k in keys
    ]
    return KeysShown(merchant, terminal, known.suspended, shown)


def refresh(installation: Installation) -> int:
    """Copy what the log says of every terminal, after a directory was restored from a backup: how many there are."""
    terminals, after = 0, None
    while page := installation.read_model.read(read_merchants.merchants, after=after, limit=100):
        after = page[-1].merchant
        for merchant in page:
            for terminal in merchant.terminals:
                _copied(installation, merchant.merchant, terminal)
                terminals += 1
    return terminals


def _identity(installation: Installation, merchant: str, terminal: str) -> Identity:
    known: Merchant = installation.journal.state(f"merchant/{merchant}", [("identities", terminal)])
    return known.accepting(terminal).identity(terminal)


def _copied(installation: Installation, merchant: str, terminal: str) -> Identity:
    """What the log says of a terminal, copied into the directory."""
    known = _identity(installation, merchant, terminal)
    installation.directory.terminals.copy(f"{merchant}/{terminal}", known, installation.clock())
    return known


def _added(installation: Installation, owner: str, public_key: str, replaces: str | None) -> Response[Activated]:
    merchant, _, terminal = owner.partition("/")
    command = AddTerminalKey(
        merchant=merchant,
        terminal=terminal,
        key_id=_key_id(installation, owner, public_key),
        public_key=public_key,
        replaces=replaces,
    )
    outcome = done(installation.journal.commit([Write(command)])[0])
    added = outcome.events[-1]
    assert isinstance(added, TerminalKeyAdded)
    known = _copied(installation, merchant, terminal).keys.get(added.key_id)
    if known is None or known.ends_at is not None:  # it was taken long ago, and another has taken its place since
        raise KeyEnded(key_id=added.key_id)
    return receipt(Activated(added.key_id, merchant, terminal, installation.clock()), outcome)


def _key_id(installation: Installation, owner: str, public_key: str) -> str:
    """Of this installation, terminal and key: what the same key signs for another of them is worth nothing here."""
    told = f"{name_of(installation.journal)}\0{owner}\0{public_key}".encode()
    return "trm_" + base64.b32encode(hashlib.sha256(told).digest()).decode().lower()[:20]


# -- keys ------------------------------------------------------------------------------------------------------------

_PRIME = 2**255 - 19
# The y of points of order 1, 2, 4 and 8: under such a key anybody can make signatures.
_ORDER_8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL = {0, 1, _PRIME - 1, _ORDER_8, _PRIME - _ORDER_8}


def _check_proof(public_key: str, proof: str, told: str) -> None:
    """Whoever shows a key has its private half, and means this. Raises ApiError."""
    raw = base64.b64decode(public_key)
    y = int.from_bytes(raw, "little") % 2**255
    if y >= _PRIME or y in _SMALL or base64.b64encode(raw).decode() != public_key:
        raise ApiError("public-key-invalid")
    try:
        Ed25519PublicKey.from_public_bytes(raw).verify(base64.b64decode(proof), told.encode())
    except InvalidSignature:
        raise ApiError(
            "proof-invalid", f"it is not by this key over {told.partition(chr(10))[0]} and the other lines"
        ) from None


handlers = [make_activation_code, activate_terminal, rotate_terminal_key, suspend_terminal, list_terminal_keys]
