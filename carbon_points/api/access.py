"""Who may call what: keys and signatures, and the roles that a call takes.

Every handler that is not public carries `guards=[takes("source", ...)]`. The caller is `request.user` from then on.
"""

import asyncio
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, cast

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.openapi.spec import OpenAPI, Parameter

from carbon_points.api.problems import ApiError, Detail
from carbon_points.api.signatures import Signatures
from carbon_points.directory import Caller, Directory, Role
from carbon_points.domain.terminal import TerminalIsSuspended

FROM_HERE = (b"content-security-policy", b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'")


class Guard:
    """Lets callers of some roles pass, and an operator everywhere. Raises ApiError."""

    def __init__(self, roles: tuple[Role, ...]) -> None:
        self.roles: list[Role] = sorted({*roles, "operator"})

    # Async, as Litestar would run a plain function in a thread: that took longer than all the rest of a call.
    async def __call__(self, connection: ASGIConnection[Any, Any, Any, Any], _route: BaseRouteHandler) -> None:
        if "Signature-Input" in connection.headers:
            connection.scope["user"] = await self._signer(connection)
            return
        scheme, _, secret = connection.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise ApiError("unauthenticated")
        directory: Directory = connection.app.state.installation.directory
        if directory.of_other_mode(secret.strip()):
            raise ApiError("key-of-other-mode")
        known, caller = directory.known_caller(secret.strip())
        if not known:
            caller = await asyncio.to_thread(directory.caller, secret.strip())
        if caller is None:
            raise ApiError("unauthenticated")
        if caller.suspended:
            raise TerminalIsSuspended(terminal=caller.owner)
        if caller.role not in self.roles:
            raise ApiError("role-not-allowed", f"this call takes {', '.join(self.roles)}; the key is {caller.role}")
        connection.scope["user"] = caller

    async def _signer(self, connection: ASGIConnection[Any, Any, Any, Any]) -> Caller:
        if "terminal" not in self.roles:
            raise ApiError("role-not-allowed", f"this call takes {', '.join(self.roles)}; only terminals sign")
        assert isinstance(connection, Request)
        signatures: Signatures = connection.app.state.signatures
        return await signatures.caller(connection)


def takes(*roles: Role) -> Guard:
    return Guard(roles)


def security_of(handler: HTTPRouteHandler) -> list[dict[str, list[str]]]:
    """What the API description says of a call: a key of any of these roles, a signature instead of a terminal's, or
    none for a public one."""
    guards = cast(Iterable[object], handler.guards or ())
    roles = [role for guard in guards if isinstance(guard, Guard) for role in guard.roles]
    signed: list[dict[str, list[str]]] = [{"signature": []}] if "terminal" in roles else []
    return [{"key": [role]} for role in roles] + signed or [{}]


def must_own(caller: Caller, role: Role, owner: str) -> None:
    """Refuse a key of that role that belongs to somebody else. Raises ApiError."""
    if caller.role == role and caller.owner != owner:
        raise ApiError("not-yours", f"the key belongs to {caller.owner}")


class KnownParameters:
    """Before every call: refuse query parameters that its description does not name, so that a misspelt filter is
    never an answer about everything, and one that is said twice, since which of them counts is not ours to say.
    Raises ApiError."""

    def __init__(self) -> None:
        self._known: dict[str, set[str]] = {}

    async def __call__(self, request: Request[Any, Any, Any]) -> None:
        if not request.scope["query_string"]:
            return
        if not self._known:
            self._known = _parameters(request.app.openapi_schema)
        handler = request.route_handler
        known = self._known.get(handler.operation_id) if isinstance(handler.operation_id, str) else None
        if known is None:
            return
        said = Counter(name for name, _ in request.query_params.multi_items())
        errors = [Detail(name, "is not a parameter of this call") for name in sorted(said.keys() - known)]
        if errors:
            raise ApiError("parameter-invalid", f"known are {', '.join(sorted(known)) or 'none'}", errors)
        if errors := [Detail(name, "is said more than once") for name, times in sorted(said.items()) if times > 1]:
            raise ApiError("parameter-invalid", errors=errors)


def _parameters(description: OpenAPI) -> dict[str, set[str]]:
    """The query parameters of each operation."""
    known: dict[str, set[str]] = {}
    for item in (description.paths or {}).values():
        for operation in (item.get, item.post, item.put, item.patch, item.delete):
            if operation and operation.operation_id:
                told = [p for p in operation.parameters or [] if isinstance(p, Parameter)]
                known[operation.operation_id] = {p.name for p in told if p.param_in == "query"}
    return known


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The caller's own, where it is fit to be told again; or a new one."""
    told = next((value.decode("latin-1") for name, value in headers if name == b"x-request-id"), "")
    return told if told.isascii() and told.isprintable() and 0 < len(told) <= 64 else secrets.token_hex(8)


def stamped(app: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Middleware: give each request an id, and say it in the answer. A caller may send its own.

    What a browser shows of an answer loads from here alone, and asks nobody else; a page may be stricter.
    """

    async def middleware(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        request_id = scope["request_id"] = request_id_of(scope["headers"])

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                stricter = any(name.lower() == FROM_HERE[0] for name, _ in message["headers"])
                policy = () if stricter else (FROM_HERE,)
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode()), *policy]
            await send(message)

        await app(scope, receive, sending)

    return middleware
