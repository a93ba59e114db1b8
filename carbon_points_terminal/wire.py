"""What a terminal sends and what comes back, without saying how: a transport is whoever carries it.

The one invariant: what is not an answer of the platform in a form that it promises is no answer. A page of a hotel's
network, a proxy's 404 and half a body tell a till nothing about a customer's points.
"""

from typing import Any, Literal, Protocol, TypeVar

import msgspec
from msgspec import Struct

T = TypeVar("T")
Retryable = Literal["never", "same-key", "new-key", "query-first"]
PROBLEM = "application/problem+json"
WAIT_MOST = 60  # seconds of a Retry-After that a till honours in full


class Request(Struct, frozen=True):
    """`path` begins with a slash and carries its query. `key` is the Idempotency-Key of a POST."""

    method: Literal["GET", "POST"]
    path: str
    key: str = ""
    body: bytes = b""


class Response(Struct, frozen=True):
    """Names of `headers` are in lower case."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = {}


class NoAnswer(Struct, frozen=True):
    """Nothing came in time, or nothing could be sent. What became of the request is not known."""

    reason: str


Answer = Response | NoAnswer


class Transport(Protocol):
    """Carries one request and waits for its answer, for as long as `Timing.answer` says and no longer."""

    def send(self, request: Request) -> Answer: ...


# -- what an answer says ---------------------------------------------------------------------------------------------


class Problem(Struct, frozen=True):
    """A refusal of the platform: RFC 9457, with a stable `code`."""

    code: str
    status: int = 0
    retryable: str = "query-first"
    title: str = ""
    detail: str = ""
    facts: dict[str, Any] = {}
    request_id: str = ""


class Refused(Struct, frozen=True):
    """The platform refused. `wait`: the seconds that it asks for, if it does."""

    problem: Problem
    wait: int | None

    @property
    def again(self) -> bool:
        """The same request with the same key may yet succeed."""
        return self.problem.retryable == "same-key"

    @property
    def failed(self) -> bool:
        """The platform could not: whether it did all the same is not known."""
        return self.problem.status >= 500

    @property
    def unheard(self) -> bool:
        """It was stopped at the door: this says nothing about an earlier copy of the same request."""
        return self.problem.status in {401, 403, 413, 429}


class Silence(Struct, frozen=True):
    """Nothing that can be relied on. `invalid`: something came, but not what was promised."""

    reason: str
    wait: int | None = None
    invalid: bool = False


def read(answer: Answer, shape: type[T]) -> T | Refused | Silence:
    """What an answer says: the shape that the call promises, a refusal, or nothing."""
    if isinstance(answer, NoAnswer):
        return Silence(answer.reason)
    wait = _wait(answer.headers.get("retry-after", ""))
    if 200 <= answer.status < 300:
        try:
            return msgspec.json.decode(answer.body, type=shape)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return Silence(f"{answer.status} without what was promised: {error}", invalid=True)
    if not answer.headers.get("content-type", "").startswith(PROBLEM):
        return Silence(f"{answer.status} that is not the platform's", wait)
    try:
        problem = msgspec.json.decode(answer.body, type=Problem)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Silence(f"{answer.status} with an unreadable problem: {error}", wait)
    problem = msgspec.structs.replace(problem, status=answer.status)
    if answer.status >= 500 and (answer.status != 503 or problem.retryable != "same-key"):
        return Silence(f"{answer.status} {problem.code}", wait)
    return Refused(problem, wait)


def _wait(text: str) -> int | None:
    """Seconds of a Retry-After. Its other form, a date, needs two clocks that agree: it is not read."""
    return min(int(text), WAIT_MOST) if text.isascii() and text.isdigit() else None
