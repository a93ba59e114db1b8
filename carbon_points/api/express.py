"""The busiest call, `POST /v1/actions`, without the framework around it.

Only the plain case comes this way: a caller who is known from a moment ago, and a body of a said and modest length.
Whatever else it is goes on to Litestar and its handler, which does the same by the same functions, and describes it.
Measured (docs/decisions.md, 2026-11-25): the framework took more of a call than all that the call is about.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from carbon_points.api.actions import REPORTERS, record
from carbon_points.api.installation import Installation, position_headers
from carbon_points.api.intake import Receipt, report_of
from carbon_points.api.problems import MEDIA_TYPE, ApiError, headers_of, of_exception

Send = Callable[[Any], Awaitable[None]]
PATH = "/v1/actions"
_KEY, _JSON = b"bearer ", b"application/json"
_LENGTH_DIGITS = 9


def express(
    app: Callable[..., Awaitable[None]], installation: Installation, *, body_most: int
) -> Callable[..., Awaitable[None]]:
    """An ASGI app around another: one report by the short way, the rest by the other's."""

    async def answering(scope: Any, receive: Callable[[], Awaitable[Any]], send: Send) -> None:
        secret = _secret(scope, body_most)
        known, caller = installation.directory.known_caller(secret) if secret else (False, None)
        if not known or caller is None or caller.role not in REPORTERS.roles:
            await app(scope, receive, send)
            return
        try:
            body = await _body(receive)
            if body is None:  # the caller has left in the middle: nothing was read, nothing happens
                return
            known, caller = installation.directory.known_caller(secret or "")
            if not known:  # the body took its time
                caller = await asyncio.to_thread(installation.directory.caller, secret or "")
            if caller is None:
                raise ApiError("unauthenticated")
            told, outcome = await record(installation, caller, report_of(body))
        except Exception as error:  # noqa: BLE001  # as the exception handler of the whole API
            problem = of_exception(error)
            problem = msgspec.structs.replace(problem, request_id=scope["request_id"])
            await _send(send, problem.status, msgspec.json.encode(problem), MEDIA_TYPE.encode(), headers_of(problem))
        else:
            status = 200 if outcome.replayed else 202 if told.verdict == "pending" else 201
            await _send(send, status, _encode(told), _JSON, position_headers(outcome))

    return answering


def _secret(scope: Any, body_most: int) -> str | None:
    """The key of a call that may come this way."""
    if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST" or scope["query_string"]:
        return None
    secret, length = None, -1
    for name, value in scope["headers"]:
        if name == b"authorization":
            if secret is not None or value[: len(_KEY)].lower() != _KEY:  # which of several counts is not ours to say
                return None
            secret = value[len(_KEY) :].strip().decode("latin-1")
        elif name == b"content-length":
            length = int(value) if value.isdigit() and len(value) <= _LENGTH_DIGITS else -1
        elif name in (b"content-encoding", b"transfer-encoding", b"expect"):
            return None
    return secret if 0 < length <= body_most else None


async def _body(receive: Callable[[], Awaitable[Any]]) -> bytes | None:
    whole = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        whole += message.get("body", b"")
        if not message.get("more_body"):
            return whole


async def _send(send: Send, status: int, body: bytes, kind: bytes, more: dict[str, str]) -> None:
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    headers += [(name.lower().encode(), value.encode()) for name, value in more.items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


_encode: Callable[[Receipt], bytes] = msgspec.json.Encoder().encode
