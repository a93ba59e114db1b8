"""References, and a clock that only goes forward. The one place here that asks the system for chance and time."""

import secrets
from datetime import UTC, datetime, timedelta
from time import monotonic

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32
LENGTH = 26


def ulid(at: datetime, chance: bytes) -> str:
    """The ULID of a moment and 10 random bytes: it sorts by time."""
    assert len(chance) == 10, "a ULID has 80 random bits"  # noqa: PLR2004  # the form's own number
    number = int(at.timestamp() * 1000) << 80 | int.from_bytes(chance)
    return "".join(ALPHABET[number >> 5 * place & 31] for place in reversed(range(LENGTH)))


def new_reference() -> str:
    return ulid(datetime.now(UTC), secrets.token_bytes(10))


def new_nonce() -> str:
    return secrets.token_urlsafe(18)


def wall_clock() -> datetime:
    return datetime.now(UTC)


class SteadyClock:
    """The time of day as it was at the start, and the seconds since: a till whose clock is put right waits as long."""

    def __init__(self) -> None:
        self._at, self._since = wall_clock(), monotonic()

    def __call__(self) -> datetime:
        return self._at + timedelta(seconds=monotonic() - self._since)
