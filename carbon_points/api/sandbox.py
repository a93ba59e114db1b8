"""What a sandbox answers besides: its clock, which tests move. A live server has none of this."""

import asyncio
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any

from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from msgspec import Meta, Struct

from carbon_points.api.access import takes
from carbon_points.api.installation import (
    IDEMPOTENCY_KEY,
    REPLAYED_HEADER,
    Installation,
    example,
    id_from_key,
    threaded,
)
from carbon_points.api.problems import documented
from carbon_points.directory import Caller
from carbon_points.directory.payers import Payer
from carbon_points.sandbox.city import Sandbox

ADVANCE_MOST = 366 * 86_400
UNANSWERED_MOST_SECONDS = 600.0  # of a call that is left without an answer: longer than anybody waits


class Advance(Struct, frozen=True, forbid_unknown_fields=True):
    """Forwards only: the log's time never goes back."""

    advance_seconds: Annotated[int, Meta(ge=1, le=ADVANCE_MOST)]


class ClockShown(Struct, frozen=True):
    """`time` is the sandbox's, which is `ahead_seconds` ahead of the `real_time`."""

    time: datetime
    ahead_seconds: int
    real_time: datetime


@get(
    "/v1/sandbox/clock",
    operation_id="getSandboxClock",
    tags=["sandbox"],
    summary="What time it is in the sandbox",
    guards=[takes("source", "app", "terminal", "buyer", "auditor")],
    responses=documented(),
)
@threaded
def get_clock(installation: NamedDependency[Installation]) -> ClockShown:
    return _shown(_of(installation))


@post(
    "/v1/sandbox/clock",
    operation_id="advanceSandboxClock",
    tags=["sandbox"],
    summary="Move the sandbox's clock on",
    description="Everything that goes by the time follows: holds run out, points expire, payment codes and days change."
    " Signatures of terminals go by the real time all the same. It outlasts a restart, and other processes of the"
    " sandbox follow within a second.",
    guards=[takes()],
    status_code=201,
    responses={200: ResponseSpec(ClockShown, description="It was moved by this call before", generate_examples=False)}
    | documented("idempotency-key-missing", "identity-reused", "clock-too-far", body=True),
)
@threaded
def advance_clock(
    request: Request[Caller, Any, Any],
    data: Annotated[Advance, example(advance_seconds=301)],
    installation: NamedDependency[Installation],
    idempotency_key: Annotated[str, IDEMPOTENCY_KEY],
) -> Response[ClockShown]:
    sandbox = _of(installation)
    moves = installation.directory.moves
    assert moves is not None, "a sandbox has them"
    new = moves.add(id_from_key("mov_", request, "clock"), data.advance_seconds)
    sandbox.clock.look()
    headers = {} if new else {REPLAYED_HEADER: "true"}
    return Response(_shown(sandbox), status_code=201 if new else 200, headers=headers)


async def payer_of_fixed(installation: Installation, code: str, redemption_id: str, till: str) -> Payer | None:
    """Whose a code is that always means the same. Nobody's, where this is no sandbox. Raises what it means."""
    if installation.sandbox is None:
        return None
    return await asyncio.to_thread(installation.sandbox.payer, code, redemption_id, till)


async def hung_up(request: Request[Any, Any, Any]) -> None:
    """Wait until the caller has gone away: whatever is answered then, nobody hears. At most for a while."""
    with suppress(TimeoutError):
        async with asyncio.timeout(UNANSWERED_MOST_SECONDS):
            while (await request.receive())["type"] != "http.disconnect":
                pass


def _of(installation: Installation) -> Sandbox:
    assert installation.sandbox is not None, "these calls are a sandbox's only"
    return installation.sandbox


def _shown(sandbox: Sandbox) -> ClockShown:
    real, by = sandbox.clock.real(), sandbox.clock.by
    return ClockShown(real + by, int(by.total_seconds()), real)


handlers = [get_clock, advance_clock]
