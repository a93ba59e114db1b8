"""The busiest call, `POST /v1/actions`, straight from the server's parser to the journal and back.

Only the plain case comes this way: a caller and a body as every source sends them. Whatever else it is goes on to
Litestar and its handler, which does the same by the same functions, and describes it. Measured (docs/decisions.md,
2026-11-25): the framework, a task and two writes to the socket took more of a call than all that the call is about.
"""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from carbon_points.api.access import FROM_HERE, request_id_of
from carbon_points.api.actions import REPORTERS, answer_to, record, record_at_once
from carbon_points.api.installation import BODY_MOST, Installation, position_headers
from carbon_points.api.intake import Receipt, report_of
from carbon_points.api.problems import MEDIA_TYPE, headers_of, of_exception
from carbon_points.directory import Caller
from carbon_points.journal.partition import Outcome

PATH = b"/v1/actions"
_KEY, _JSON = b"bearer ", "application/json"
_LENGTH_DIGITS = 9
_LAST = b"%s: %s\r\n\r\n" % FROM_HERE
_NOT_PLAIN = {b"content-encoding", b"transfer-encoding", b"expect"}


class _Unheard:
    def set(self) -> None: ...


class Call:
    """One report and its answer. The server asks it what it asks of a request of its own (a cycle, in its words)."""

    __slots__ = ("body", "disconnected", "keep_alive", "request_id", "response_complete", "secret")
    message_event = _Unheard()

    def __init__(self, secret: str, request_id: str) -> None:
        self.secret, self.request_id = secret, request_id
        self.body = b""
        self.keep_alive = True
        self.response_complete = self.disconnected = False


class Express(HttpToolsProtocol):
    """A connection. The parser calls `on_...` as it reads."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        app: Any = self.config.app
        self._installation: Installation = app.state.installation
        self._call: Call | None = None  # that is being read

    def on_headers_complete(self) -> None:
        self._unset_keepalive_if_required()  # a refusal of the call before, in the same piece, has set it
        self._call = self._plain()
        if self._call is None:
            super().on_headers_complete()
        else:
            self.cycle = self._call  # pyright: ignore[reportAttributeAccessIssue]  # as far as it is asked

    def on_body(self, body: bytes) -> None:
        if self._call is None:
            super().on_body(body)
        else:
            self._call.body += body

    def on_message_complete(self) -> None:
        call, self._call = self._call, None
        if call is None:
            super().on_message_complete()
            return
        directory = self._installation.directory
        known, caller = directory.known_caller(call.secret)
        if known and caller is not None and caller.role in REPORTERS.roles:
            self._ask(call, caller)
        else:  # all of it is read: to be looked at from its beginning
            self.cycle = None  # pyright: ignore[reportAttributeAccessIssue]  # as before the first
            super().on_headers_complete()
            self.cycle.keep_alive &= call.keep_alive  # unless the server was told to stop
            super().on_body(call.body)
            super().on_message_complete()

    def _plain(self) -> Call | None:
        """The call that begins, where it may come this way."""
        parser: Any = self.parser
        if self.url != PATH or parser.get_method() != b"POST" or parser.get_http_version() != "1.1":
            return None
        if parser.should_upgrade() or not parser.should_keep_alive() or self.flow.write_paused:
            return None
        if self.cycle is not None and not self.cycle.response_complete:  # pyright: ignore[reportUnnecessaryComparison]
            return None  # it is answered after the one before
        secret, length = None, 0
        for name, value in self.headers:
            if name == b"authorization":
                if secret is not None or value[: len(_KEY)].lower() != _KEY:
                    return None  # which of several counts is not ours to say
                secret = value[len(_KEY) :].strip().decode("latin-1")
            elif name == b"content-length":
                length = int(value) if value.isdigit() and len(value) <= _LENGTH_DIGITS else 0
            elif name in _NOT_PLAIN:
                return None
        if not secret or not 0 < length <= BODY_MOST or not self._installation.directory.known_caller(secret)[0]:
            return None
        return Call(secret, request_id_of(self.headers))

    def _ask(self, call: Call, caller: Caller) -> None:
        try:
            report = report_of(call.body)
            waiting = record_at_once(self._installation, caller, report)
        except Exception as error:  # noqa: BLE001  # as the exception handler of the whole API
            self._refuse(call, error)
            return
        if waiting is None:
            tasks: set[Any] = self.tasks
            waiting = self.loop.create_task(record(self._installation, caller, report))
            tasks.add(waiting)
            waiting.add_done_callback(tasks.discard)
        waiting.add_done_callback(partial(self._decided, call))

    def _decided(self, call: Call, waited: asyncio.Future[Outcome]) -> None:
        if waited.cancelled():  # the server stops, and does not wait any longer
            self.transport.close()
            return
        try:
            outcome = waited.result()
            status, told = answer_to(outcome)
        except Exception as error:  # noqa: BLE001  # as above
            self._refuse(call, error)
        else:
            self._answer(call, status, _encode(told), _JSON, position_headers(outcome))

    def _refuse(self, call: Call, error: Exception) -> None:
        problem = msgspec.structs.replace(of_exception(error), request_id=call.request_id)
        self._answer(call, problem.status, msgspec.json.encode(problem), MEDIA_TYPE, headers_of(problem))

    def _answer(self, call: Call, status: int, body: bytes, kind: str, more: Mapping[str, str]) -> None:
        call.response_complete = True
        if call.disconnected:
            return
        told = "".join([f"{name}: {value}\r\n" for name, value in more.items()])
        told = f"content-type: {kind}\r\ncontent-length: {len(body)}\r\n{told}x-request-id: {call.request_id}\r\n"
        known = [b"%s: %s\r\n" % header for header in self.server_state.default_headers]
        last = _LAST if call.keep_alive else b"connection: close\r\n" + _LAST
        self.transport.write(b"".join((STATUS_LINE[status], *known, told.encode("latin-1"), last, body)))
        if not call.keep_alive:
            self.transport.close()
        self.on_response_complete()


_encode: Callable[[Receipt], bytes] = msgspec.json.Encoder().encode
