"""Signed requests of terminals: RFC 9421 (HTTP Message Signatures) in the one form that a terminal writes.

    Content-Digest: sha-256=:...:
    Signature-Input: sig1=("@method" "@target-uri" "content-digest" "idempotency-key");created=1764072000;
        expires=1764072060;nonce="...";keyid="trm_...";alg="ed25519";tag="carbon-points-terminal"
    Signature: sig1=:...:

A GET covers the first two. Parameters may come in any order. What could be written in two ways is taken in its one
canonical form only, so that nobody reads anything else in it than what was signed. A library does all of the RFC and
takes four times as long (docs/decisions.md, 2026-11-25); tests hold this to it.
"""

import asyncio
import base64
import hashlib
import re
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import lru_cache
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from litestar import Request
from msgspec import Struct

from carbon_points.api.problems import ApiError
from carbon_points.directory import Caller, Directory
from carbon_points.directory.terminals import TerminalKey
from carbon_points.domain.terminal import TerminalIsSuspended

TAG, ALGORITHM = "carbon-points-terminal", "ed25519"
SKEW_SECONDS = 300  # between the clocks of a terminal and the server
LIFE_SECONDS = 60  # of a signature
NONCES_MOST = 1_000_000  # kept by a process: about 100 MB, and 2,700 signed requests in each second of six minutes
KEYS_KEPT = 10_000

_BARE = '"@method" "@target-uri"'
_WHOLE = f'{_BARE} "content-digest" "idempotency-key"'
_COVERED = {"GET": _BARE, "HEAD": _BARE}
_PARAMETERS = ["alg", "created", "expires", "keyid", "nonce", "tag"]
_READ = {b"signature-input", b"signature", b"content-digest", b"idempotency-key", b"host", b"authorization"}

_INPUT = re.compile(
    r'([a-z][a-z0-9_-]{0,31})=(\(([a-z0-9@" -]*)\)((?:;[a-z]+=(?:"[\x20\x21\x23-\x5b\x5d-\x7e]*"|[0-9]+))*))'
)
_PARAMETER = re.compile(r';([a-z]+)=("[^"]*"|[0-9]+)')
_SECONDS = re.compile(r"[1-9][0-9]{0,11}")
_NONCE = re.compile(r'"[\x20\x21\x23-\x5b\x5d-\x7e]{16,64}"')
_KEY_ID = re.compile(r'"(trm_[a-z2-7]{20})"')
_SIGNATURE = re.compile(r"([a-z][a-z0-9_-]{0,31})=:([A-Za-z0-9+/]{86}==):")
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,200}[\x21-\x7e])?")
_HOST = re.compile(r"[A-Za-z0-9.:_\[\]-]{1,255}")


class Signed(Struct, frozen=True):
    """What a request says of its signature. Nothing of it is true before the signature is found to hold."""

    params: str
    created: int
    expires: int
    nonce: str
    key_id: str
    signature: bytes
    digest: str
    idempotency_key: str
    host: str


def read(method: str, headers: Iterable[tuple[bytes, bytes]]) -> Signed:
    """The signature of a request, well-formed. Raises ApiError."""
    found: dict[bytes, str] = {}
    for name, value in headers:
        if name in _READ:
            if name in found:
                raise _invalid(f"there is more than one {name.decode()}")
            found[name] = value.strip(b" \t").decode("latin-1")
    if b"authorization" in found:
        raise _invalid("a call has either a signature or a key in Authorization, never both")
    written = _INPUT.fullmatch(found.get(b"signature-input", ""))
    if written is None:
        raise _invalid("signature-input is not one label with components and parameters, in canonical form")
    label, params, covered, parameters = written.groups()
    wanted = _COVERED.get(method, _WHOLE)
    if covered != wanted:
        raise _invalid(f"a {method} covers ({wanted})")
    told = _PARAMETER.findall(parameters)
    if sorted(name for name, _ in told) != _PARAMETERS:
        raise _invalid(f"the parameters are {', '.join(_PARAMETERS)}, each once")
    said = dict(told)
    if said["alg"] != f'"{ALGORITHM}"' or said["tag"] != f'"{TAG}"':
        raise _invalid(f'alg is "{ALGORITHM}" and tag is "{TAG}"')
    if not _SECONDS.fullmatch(said["created"]) or not _SECONDS.fullmatch(said["expires"]):
        raise _invalid("created and expires are whole seconds since 1970")
    if not _NONCE.fullmatch(said["nonce"]):
        raise _invalid("the nonce is 16 to 64 printable characters")
    key = _KEY_ID.fullmatch(said["keyid"])
    if key is None:
        raise _invalid("keyid is the key_id of a terminal's key")
    signature = _SIGNATURE.fullmatch(found.get(b"signature", ""))
    if signature is None or signature[1] != label:
        raise _invalid(f"signature is {label}=:64 bytes in base64:")
    idempotency_key = found.get(b"idempotency-key", "")
    if wanted is _WHOLE and not _IDEMPOTENCY_KEY.fullmatch(idempotency_key):
        raise _invalid("idempotency-key is missing, or not printable ASCII")
    return Signed(
        params,
        int(said["created"]),
        int(said["expires"]),
        said["nonce"],
        key[1],
        base64.b64decode(signature[2]),
        found.get(b"content-digest", ""),
        idempotency_key,
        found.get(b"host", ""),
    )


def check_time(signed: Signed, now: int) -> None:
    """Raises ApiError where the signature is too old, from the future, or made to last too long."""
    if not signed.created < signed.expires <= signed.created + LIFE_SECONDS:
        raise _invalid(f"expires is at most {LIFE_SECONDS} seconds after created")
    if signed.expires <= now:
        raise ApiError("signature-expired", f"it expired at {signed.expires}, and the server's clock says {now}")
    if abs(signed.created - now) > SKEW_SECONDS:
        raise ApiError("signature-expired", f"it was created at {signed.created}, and the server's clock says {now}")


def check_signature(signed: Signed, method: str, target: str, body: bytes, public_key: bytes) -> None:
    """Raises ApiError unless it is by that key, over that method, target, body and Idempotency-Key."""
    components = [('"@method"', method), ('"@target-uri"', target)]
    if method not in _COVERED:
        if signed.digest != content_digest(body):
            raise _invalid("content-digest is not sha-256=: of the body:")
        components += [('"content-digest"', signed.digest), ('"idempotency-key"', signed.idempotency_key)]
    elif body:
        raise _invalid(f"a {method} has no body: nothing would cover it")
    if not holds(public_key, signed.signature, signature_base(components, signed.params)):
        raise _invalid(f"it is not by this key over this request, a {method} of {target}")


def content_digest(body: bytes) -> str:
    """RFC 9530, of one algorithm."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


def signature_base(components: Iterable[tuple[str, str]], params: str) -> bytes:
    """RFC 9421, section 2.5: what is signed. Names of components and `params` are as they stand in Signature-Input."""
    lines = [f"{name}: {value}" for name, value in components]
    return "\n".join([*lines, f'"@signature-params": {params}']).encode("ascii")


def holds(public_key: bytes, signature: bytes, base: bytes) -> bool:
    """Whether the signature is by that key over that base."""
    try:
        _verifier(public_key).verify(signature, base)
    except InvalidSignature:
        return False
    return True


def _invalid(why: str) -> ApiError:
    return ApiError("signature-invalid", why)


@lru_cache(KEYS_KEPT)
def _verifier(public_key: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(public_key)


class Nonces:
    """The nonces of signatures that could still be sent again, by when they run out. As large as `most`, then closed:
    forgetting one would let it in a second time."""

    def __init__(self, most: int = NONCES_MOST) -> None:
        self._most = most
        self._used: dict[int, set[int]] = {}
        self._past = 0  # what ran out before is forgotten, and never taken again, whatever a clock does

    def use(self, key_id: str, nonce: str, expires: int, now: int) -> None:
        """Raises ApiError where it was used before, or there is no room."""
        if self._past < now // LIFE_SECONDS:
            self._past = now // LIFE_SECONDS
            for minute in [m for m in self._used if m < self._past]:
                del self._used[minute]
        minute = expires // LIFE_SECONDS
        if minute < self._past:
            raise ApiError("signature-expired", "the server's clock went back meanwhile")
        used = hash(f"{key_id} {nonce}")  # 64 bits, by a key of this process that nobody knows
        if any(used in kept for kept in self._used.values()):
            raise _invalid("the nonce was used before: sign every call anew, also one that is sent again")
        if sum(map(len, self._used.values())) >= self._most:
            raise ApiError("overloaded", "too many signatures are in force")
        self._used.setdefault(minute, set()).add(used)


class Signatures:
    """Who signed a request. One for a process, as the nonces are its own."""

    def __init__(
        self,
        directory: Directory,
        clock: Callable[[], datetime],
        public_url: str,
        *,
        real: Callable[[], datetime] | None = None,
    ) -> None:
        """`real`: the time that terminals go by, where it is not the installation's own."""
        self._directory, self._clock, self._public_url = directory, clock, public_url
        self._real = real or clock
        self._nonces = Nonces()

    async def caller(self, request: Request[Any, Any, Any]) -> Caller:
        """Raises ApiError, TerminalIsSuspended. Reads the body, once it is known whose it may be."""
        scope = request.scope
        signed = read(scope["method"], scope["headers"])
        check_time(signed, self._now())
        await self._key(signed.key_id)
        body = await request.body()
        key, now = await self._key(signed.key_id), self._now()  # again: a body may take its time
        check_time(signed, now)
        check_signature(signed, scope["method"], self._target(scope, signed.host), body, key.public_key)
        if key.suspended:
            raise TerminalIsSuspended(terminal=key.owner)
        if key.ends_at is not None and key.ends_at <= self._clock():
            raise _invalid("the key has ended")
        self._nonces.use(signed.key_id, signed.nonce, signed.expires, now)
        return Caller(signed.key_id, "terminal", key.owner)

    async def _key(self, key_id: str) -> TerminalKey:
        terminals = self._directory.terminals
        known, key = terminals.known_key(key_id)
        if not known:
            key = await asyncio.to_thread(terminals.key, key_id)
        if key is None:
            raise _invalid("no such key")
        return key

    def _now(self) -> int:
        return int(self._real().timestamp())

    def _target(self, scope: Any, host: str) -> str:
        """The address as the terminal wrote it: what stands before us may have changed scheme and host."""
        if not self._public_url and not _HOST.fullmatch(host):
            raise _invalid("there is no Host")
        path: bytes = scope["raw_path"].partition(b"?")[0]
        query: bytes = scope["query_string"]
        written = path + b"?" + query if query else path
        if not written.isascii():
            raise _invalid("the target is not ASCII")
        return (self._public_url or f"{scope['scheme']}://{host}") + written.decode()
