"""The transport of a real till: HTTP through httpx, each request signed or with a bearer key."""

from datetime import datetime
from email.utils import parsedate_to_datetime
from time import monotonic
from types import TracebackType

import httpx

from carbon_points_terminal.course import Timing
from carbon_points_terminal.signing import Signer
from carbon_points_terminal.wire import Answer, NoAnswer, Request, Response

ANSWER_MOST = 1 << 20  # bytes: what is longer is none of the platform's answers
KEEP_SECONDS = 3.0  # an idle connection; servers drop theirs after five
UNAUTHENTICATED = 401


class OverHttp:
    """`caller`: who signs, or a bearer key (for a till behind a merchant's own server), or nobody yet.

    Redirects are not followed: a signature is for one address, and a till has no business elsewhere.
    """

    def __init__(
        self,
        url: str,
        caller: Signer | str | None,
        *,
        seconds: float = Timing().answer,
        client: httpx.Client | None = None,
    ) -> None:
        limits = httpx.Limits(max_connections=1, keepalive_expiry=KEEP_SECONDS)
        self._client = client or httpx.Client(limits=limits)
        self._url, self._caller, self._seconds = url.rstrip("/"), caller, seconds

    def send(self, request: Request) -> Answer:
        """One request, one answer. A till whose clock went wrong is put right by the platform's, once, and signs anew:
        it was stopped at the door, so nothing has been done twice."""
        answer = self._send(request)
        if isinstance(answer, Response) and answer.status == UNAUTHENTICATED and isinstance(self._caller, Signer):
            there = _date(answer.headers.get("date", ""))
            if there and self._caller.told_time(there):
                return self._send(request)
        return answer

    def _send(self, request: Request) -> Answer:
        until = monotonic() + self._seconds
        built = self._client.build_request(
            request.method, self._url + request.path, content=request.body or None, timeout=self._seconds
        )
        built.extensions |= {"timeout": (left := _Left(until)), "trace": left.again}
        built.headers["Accept"] = "application/json"
        if request.body:
            built.headers["Content-Type"] = "application/json"
        if request.key:
            built.headers["Idempotency-Key"] = request.key
        if isinstance(self._caller, Signer):
            built.headers.update(self._caller.headers(request.method, str(built.url), request.key, request.body))
        elif self._caller:
            built.headers["Authorization"] = f"Bearer {self._caller}"
        try:
            answer = self._client.send(built, stream=True)
            try:
                return _read(answer, until)
            finally:
                answer.close()
        except httpx.HTTPError as error:
            return NoAnswer(f"{type(error).__name__}: {error}")

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> "OverHttp":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class _Left(dict[str, float]):
    """Seconds for each phase of a request, of which every phase that ends leaves less: httpx alone gives each its own.

    A connection is two phases, TCP and TLS, and may take half of the time each.
    """

    def __init__(self, until: float) -> None:
        self._until = until
        self.again("", {})
        self["connect"] /= 2

    def again(self, event: str, info: dict[str, object]) -> None:  # noqa: ARG002  # what httpx calls a trace
        left = max(self._until - monotonic(), 0.001)
        self.update(connect=left, read=left, write=left, pool=left)


def _read(answer: httpx.Response, until: float) -> Answer:
    """The whole answer, if it comes in time: a body that drips must not hold up a queue."""
    body = b""
    for piece in answer.iter_bytes():
        body += piece
        if monotonic() > until:
            return NoAnswer("the answer did not end in time")
        if len(body) > ANSWER_MOST:
            return NoAnswer("the answer has no end")
    headers = {name.lower(): value for name, value in answer.headers.items()}
    return Response(answer.status_code, body, headers)


def _date(text: str) -> datetime | None:
    try:
        return parsedate_to_datetime(text)
    except ValueError:
        return None
