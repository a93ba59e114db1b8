"""Payments without a network: what a terminal takes while the platform cannot be reached, and how it knows.

The resident's phone shows an allowance that the platform signed: so many points, at this merchant, for a day, once. The
terminal checks it with keys and terms that it fetched before. Whether the points are still there nobody can know: the
merchant bears that risk, and its terms say how much of it there may be. Pure functions: no clock, no network.
"""

import base64
from collections.abc import Iterable
from datetime import datetime, timedelta

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from msgspec import Struct

from carbon_points_terminal.call import Call, Offline, Sum

PREFIX = "cpa1"
PARTS = 4
TOKEN_MOST = 1000  # characters
SKEW = 300  # seconds by which a till's clock may be behind the platform's


class Limits(Struct, frozen=True):
    """The merchant's terms: of one payment; of all that this terminal keeps; and for how long it may keep one."""

    most_points: int
    most_count: int
    most_sum: int
    most_age_hours: int

    @property
    def age(self) -> timedelta:
        return timedelta(hours=self.most_age_hours)


class Key(Struct, frozen=True):
    """`public_key`: 32 bytes in base64."""

    key_id: str
    public_key: str


class Prepared(Struct, frozen=True):
    """What was fetched while there was a network. Without `limits` the merchant takes nothing offline."""

    at: datetime
    limits: Limits | None
    keys: tuple[Key, ...]


class Allowance(Struct, frozen=True):
    """What an allowance says. Times are seconds since 1970."""

    id: str
    merchant: str
    points: int
    issued_at: int
    expires_at: int


class Why(Struct, frozen=True):
    """Why an offline payment is not taken: a stable code, and a sentence."""

    code: str
    sentence: str


def allowance_of(token: str, keys: Iterable[Key]) -> Allowance | None:
    """What an allowance says, if one of these keys signed it."""
    parts = token.split(".")
    known = {key.key_id: key.public_key for key in keys}
    if len(token) > TOKEN_MOST or len(parts) != PARTS or parts[0] != PREFIX or parts[1] not in known:
        return None
    try:
        public = Ed25519PublicKey.from_public_bytes(base64.b64decode(known[parts[1]], validate=True))
        public.verify(_bytes(parts[3]), token.rpartition(".")[0].encode())
        return msgspec.json.decode(_bytes(parts[2]), type=Allowance)
    except (InvalidSignature, ValueError, msgspec.DecodeError):
        return None


def why_not(
    points: int,
    allowance: Allowance | None,
    merchant: str,
    prepared: Prepared | None,
    kept: Iterable[Call],
    at: datetime,
) -> Why | None:
    """Why these points are not taken offline now; None where they are. `kept`: what waits to be sent.

    In this order: offline-not-prepared, offline-not-allowed, offline-terms-old, allowance-invalid, allowance-elsewhere,
    clock-behind, allowance-expired, points-invalid, allowance-exceeded, offline-exceeds-terms, offline-too-old,
    offline-too-many, offline-sum.
    """
    if prepared is None:
        return Why("offline-not-prepared", "terms and keys were never fetched: go online once")
    if (limits := prepared.limits) is None:
        return Why("offline-not-allowed", "the merchant takes nothing offline")
    if at - prepared.at > limits.age:
        return Why("offline-terms-old", f"terms and keys are of {prepared.at.isoformat()}: go online once")
    return _of_allowance(points, allowance, merchant, at) or _of_limits(points, limits, list(kept), at)


def _of_allowance(points: int, allowance: Allowance | None, merchant: str, at: datetime) -> Why | None:
    if allowance is None:
        return Why("allowance-invalid", "no allowance, or not one that the platform signed")
    if allowance.merchant != merchant:
        return Why("allowance-elsewhere", f"the allowance is for {allowance.merchant}")
    if at.timestamp() < allowance.issued_at - SKEW:
        return Why("clock-behind", "the allowance was made later than this terminal's clock shows")
    if at.timestamp() > allowance.expires_at:
        return Why("allowance-expired", "the allowance has ended")
    if points < 1:
        return Why("points-invalid", "at least one point")
    if points > allowance.points:
        return Why("allowance-exceeded", f"the allowance is for {allowance.points} points")
    return None


def _of_limits(points: int, limits: Limits, kept: list[Call], at: datetime) -> Why | None:
    total = total_of(kept)
    if points > limits.most_points:
        return Why("offline-exceeds-terms", f"at most {limits.most_points} points at once")
    if any(at - call.made > limits.age for call in kept):
        return Why("offline-too-old", f"a payment waits for more than {limits.most_age_hours} hours: send it first")
    if total.count + 1 > limits.most_count:
        return Why("offline-too-many", f"{total.count} payments wait: send them first")
    if total.points + points > limits.most_sum:
        return Why("offline-sum", f"{total.points} points wait, of at most {limits.most_sum}: send them first")
    return None


def total_of(kept: Iterable[Call]) -> Sum:
    found = [call.ask.points for call in kept if isinstance(call.ask, Offline)]
    return Sum(len(found), sum(found))


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
