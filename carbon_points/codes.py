"""Payment codes: 18 digits that say who pays, for about a minute, and are worth nothing once they were used.

    80 123456789 123456 1       prefix, handle, time-based password, check digit

The prefix lies outside WeChat's (10 to 15) and Alipay's (25 to 30), so that a shared scanner can tell whose a code is.
The handle says whose secret to look up. The password is RFC 6238 with SHA-256 of the 60 s step in which it was made:
the phone needs no network. The check digit is Luhn's. It tells every single digit that is wrong, and all neighbours
that are swapped but for 0 and 9: those, and most of what is wrong in more than one place, only the password tells.
"""

import hmac
import re
from datetime import UTC, datetime

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.twofactor.hotp import HOTP
from msgspec import Struct

from carbon_points.domain.refusal import Refusal

PREFIX = "80"
HANDLE_DIGITS, PASSWORD_DIGITS = 9, 6
STEP_SECONDS = 60
SECRET_BYTES = 20  # RFC 4226 asks for 16 and advises 20; in base32 that is 32 characters without padding
ACCEPTED = (0, -1, 1)  # steps around the server's, the likeliest first: clocks differ, and people look for their phone
OLDER = range(-2, -11, -1)  # that are told from a code that never was: ten minutes

_DIGITS = re.compile("[0-9]{18}")


class CodeMalformed(Refusal):
    code = "code-malformed"
    title = "This is no payment code: 18 digits that begin with 80 and end with their check digit"


class CodeUnknown(Refusal):
    code = "code-unknown"
    title = "Nobody has this payment code"


class CodeExpired(Refusal):
    code = "code-expired"
    title = "The payment code is too old: the resident shows a new one"


class Code(Struct, frozen=True):
    """What a code says, taken apart. Not to be logged: it shows as nothing."""

    handle: str
    password: str

    def __repr__(self) -> str:
        return "Code(…)"


def step_at(at: datetime) -> int:
    return int(at.timestamp()) // STEP_SECONDS


def ends_at(step: int) -> datetime:
    """When a code of this step is taken no more."""
    return datetime.fromtimestamp((step + 1 - min(ACCEPTED)) * STEP_SECONDS, UTC)


def password(secret: bytes, step: int) -> str:
    """RFC 6238 is RFC 4226 with the step as its counter."""
    return HOTP(secret, PASSWORD_DIGITS, SHA256()).generate(step).decode()


def check_digit(digits: str) -> str:
    """Luhn's (ISO/IEC 7812-1) over the digits before it: from the right, every second one doubled."""
    doubled = (int(digit) * (2 - place % 2) for place, digit in enumerate(reversed(digits)))
    return str(-sum(n // 10 + n % 10 for n in doubled) % 10)


def made(handle: str, secret: bytes, step: int) -> str:
    """The code that a secret makes in a step."""
    digits = PREFIX + handle + password(secret, step)
    return digits + check_digit(digits)


def read(text: str) -> Code:
    """Raises CodeMalformed, which says what is wrong and no digit."""
    if not _DIGITS.fullmatch(text):
        raise CodeMalformed(wrong="digits")
    if not text.startswith(PREFIX):
        raise CodeMalformed(wrong="prefix")
    if check_digit(text[:-1]) != text[-1]:
        raise CodeMalformed(wrong="check digit")
    begin = len(PREFIX)
    return Code(text[begin : begin + HANDLE_DIGITS], text[begin + HANDLE_DIGITS : -1])


def step_of(code: Code, secret: bytes, now: int) -> int:
    """The step in which a code was made, seen in step `now`. Refusals, in order: CodeExpired, CodeUnknown.

    Each is compared in constant time, and all that are accepted whichever is right: how long it took tells nothing
    that the answer does not.
    """
    if right := _right(code, secret, [now + away for away in ACCEPTED]):
        return right[0]
    if _right(code, secret, [now + away for away in OLDER]):
        raise CodeExpired
    raise CodeUnknown


def _right(code: Code, secret: bytes, steps: list[int]) -> list[int]:
    same = [hmac.compare_digest(password(secret, step), code.password) for step in steps]
    return [step for step, is_same in zip(steps, same, strict=True) if is_same]
