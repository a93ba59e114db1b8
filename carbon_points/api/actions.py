"""Actions: report them one by one or as NDJSON, look at how each was counted, take one back."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIType, Operation, RequestBody, Schema
from litestar.params import FromQuery, PathParameter, QueryParameter
from litestar.response import Stream
from msgspec import Struct

from carbon_points.api.access import must_own, takes
from carbon_points.api.installation import (
    CURSOR,
    LIMIT,
    MIN_POSITION,
    PLAIN,
    Installation,
    done,
    example,
    following,
    position_headers,
    receipt,
    threaded,
)
from carbon_points.api.intake import Receipt, Report, command_of, facts_of, judge, receipt_of
from carbon_points.api.lines import Lines, encoding_of, unpacked
from carbon_points.api.problems import ApiError, documented, of_exception
from carbon_points.directory import Caller
from carbon_points.domain import account
from carbon_points.domain.account import (
    ActionCredited,
    ActionReversed,
    Balance,
    ReversalFacts,
    ReverseAction,
    TapRecorded,
)
from carbon_points.domain.event import Event, Text
from carbon_points.domain.methodology import Table
from carbon_points.domain.source import SourceSuspended
from carbon_points.journal import codec
from carbon_points.journal.entry import Entry, key_of_action
from carbon_points.journal.partition import Outcome, Write
from carbon_points.projections import actions as read_actions

LINES_A_BATCH = 1_000
REPORTERS = takes("source", "app")
PAUSE_SECONDS = 0.05  # a caller that has sent nothing for so long waits for its verdicts
NDJSON = "application/x-ndjson"
_REPORT = {
    "source": "huzhou-bus",
    "record_id": "2026-11-21-000017",
    "resident": "card-0001",
    "behaviour": "bus",
    "quantity": "1",
    "unit": "trip",
    "occurred_at": "2026-11-21T08:15:00+08:00",
}
ACTION_ID = PathParameter(pattern=r"^act_[a-z2-7]{26}$", description="`action_id` of a receipt")


class Step(Struct, frozen=True):
    """One step of a calculation, in words and exactly."""

    what: str
    value: str
    because: str


class ActionDetail(Struct, frozen=True, omit_defaults=True):
    """An action as it stands in the log, and how its figures follow from its methodology."""

    action_id: str
    status: str
    source: str
    record_id: str
    resident: str
    behaviour: str
    quantity: Decimal
    unit: str
    occurred_at: datetime
    recorded_at: datetime
    position: str
    county: str | None = None
    methodology: str = ""
    version: str = ""
    digest: str = ""
    counted: Decimal | None = None
    reduction_mg: int | None = None
    points: int | None = None
    expires_on: date | None = None
    limits: tuple[str, ...] = ()
    paired_with: str | None = None
    refused: str | None = None
    reversed_because: str | None = None
    calculation: list[Step] = []


class Reversal(Struct, frozen=True, forbid_unknown_fields=True):
    reason: Text


class ReversalReceipt(Struct, frozen=True):
    """What was taken back; what could not be, because it was spent or pooled, is a debt."""

    action_id: str
    reason: str
    reduction_mg: int
    reduction_debt_mg: int
    points: int
    points_debt: int
    balance: Balance | None


class ActionPage(Struct, frozen=True):
    data: list[read_actions.Action]
    next_cursor: str | None


@post(
    "/v1/actions",
    operation_id="recordAction",
    tags=["actions"],
    summary="Report one action",
    description="Safe to repeat for ever: its identity is `source` and `record_id`. 201: counted. 202: half a ride, "
    "kept until the other half. 200: the earlier answer again.",
    guards=[REPORTERS],
    status_code=201,
    responses={
        200: ResponseSpec(Receipt, description="The earlier answer again", generate_examples=False),
        202: ResponseSpec(
            Receipt, description="Kept until the other half of the ride arrives", generate_examples=False
        ),
        **documented(
            "quantity-not-text",
            "quantity-invalid",
            "quantity-negative",
            "quantity-too-long",
            "time-invalid",
            "time-without-offset",
            "source-unknown",
            "source-suspended",
            "behaviour-not-allowed",
            "behaviour-unknown",
            "no-methodology-in-force",
            "unit-mismatch",
            "quantity-below-least",
            "quantity-above-most",
            "occurred-in-future",
            "reported-too-late",
            "account-unknown",
            "account-frozen",
            "consent-missing",
            "exit-without-entry",
            "identity-reused",
            "not-yours",
            body=True,
        ),
    },
)
async def record_action(
    request: Request[Caller, Any, Any],
    data: Annotated[
        Report,
        example(**_REPORT),
    ],
    installation: NamedDependency[Installation],
) -> Response[Receipt]:
    outcome = await record(installation, request.user, data)
    status, told = answer_to(outcome)
    return Response(told, status_code=status, headers=position_headers(outcome))


async def record(installation: Installation, caller: Caller, report: Report) -> Outcome:
    """Have a report decided. Raises what refuses it beforehand, Unavailable, or Overloaded."""
    _must_report(caller, report)
    rules = await installation.rules()
    facts = facts_of(rules, report)
    resident = await installation.resident(report.source, report.resident, create=facts.source.opens_accounts)
    if resident is None:
        raise account.AccountUnknown(source=report.source)
    return await installation.ask(Write(command_of(report, resident), facts, account.balance))


def record_at_once(installation: Installation, caller: Caller, report: Report) -> asyncio.Future[Outcome] | None:
    """The same where all that it takes is in memory, or else None."""
    _must_report(caller, report)
    if (rules := installation.journal.rules_at_hand()) is None:
        return None
    facts = facts_of(rules, report)
    if (resident := installation.directory.known(report.source, report.resident)) is None:
        return None
    return installation.ask(Write(command_of(report, resident), facts, account.balance))


def _must_report(caller: Caller, report: Report) -> None:
    must_own(caller, "source", report.source)
    must_own(caller, "app", report.source)


def answer_to(outcome: Outcome) -> tuple[int, Receipt]:
    """The status and the content of the answer to a report. Raises what refused it."""
    told = receipt_of(done(outcome))
    if told.verdict == "refused":
        raise account.ExitWithoutEntry(source=told.source, record_id=told.record_id, action_id=told.action_id)
    return 200 if outcome.replayed else 202 if told.verdict == "pending" else 201, told


@dataclass
class Ndjson(Operation):
    """The description of a call whose body is read as it comes, and so is no parameter of its handler."""

    def __post_init__(self) -> None:
        line = msgspec.json.encode(_REPORT).decode() + "\n"
        schema = Schema(type=OpenAPIType.STRING, description="One report a line, each at most 64 KiB", examples=[line])
        self.request_body = RequestBody({NDJSON: OpenAPIMediaType(schema)}, required=True)


@post(
    "/v1/actions/batch",
    operation_id="recordActions",
    tags=["actions"],
    summary="Report many actions as NDJSON",
    description="One report a line, `Content-Encoding: gzip` if you like; a verdict a line comes back in the same "
    "order while you send. Any size, in bounded memory; send the whole again whenever in doubt. If the stream must "
    "stop early, its last line is a problem (with `code`), and the lines without a verdict were not looked at.",
    guards=[takes("source")],
    status_code=200,
    request_max_body_size=None,
    operation_class=Ndjson,
    responses={200: ResponseSpec(Receipt, description="A receipt a line", media_type=NDJSON, generate_examples=False)}
    | documented("media-type-unsupported"),
)
async def record_actions(request: Request[Caller, Any, Any], installation: NamedDependency[Installation]) -> Stream:
    only = request.user.owner if request.user.role == "source" else None
    encoding = encoding_of(request.headers.get("Content-Encoding", ""))
    secret = request.headers["Authorization"].partition(" ")[2].strip()
    verdicts = _verdicts(unpacked(request.stream(), encoding), installation, only, secret)
    return Verdicts(verdicts, media_type=NDJSON, status_code=200)


class Verdicts(Stream):
    """An answer that begins while the request is still read.

    Litestar's own stream listens for the caller's leaving, and would take the rest of the request for that.
    """

    def to_asgi_response(self, *args: Any, **kwargs: Any) -> Any:
        made: Any = super().to_asgi_response(*args, **kwargs)  # pyright: ignore[reportUnknownMemberType]  # partly typed
        over = asyncio.Event()

        async def answering(scope: Any, receive: Any, send: Any) -> None:
            async def receive_nothing() -> Any:
                await over.wait()
                return {"type": "http.disconnect"}

            async def sending(message: Any) -> None:
                await send(message)
                if message["type"] == "http.response.body" and not message.get("more_body"):
                    over.set()

            await made(scope, receive_nothing, sending)

        return answering


async def _verdicts(
    chunks: AsyncIterator[bytes], installation: Installation, only: str | None, secret: str
) -> AsyncIterator[bytes]:
    """Read and judge at our pace, answer at the caller's: what they have not taken yet waits in a file.

    A caller that sends everything before it reads anything would otherwise stop us, and we them.
    """
    with tempfile.SpooledTemporaryFile(max_size=4 * 1024 * 1024) as spool:
        more = asyncio.Event()
        written, finished = 0, False

        async def reading() -> None:
            nonlocal written, finished
            try:
                async for receipts in _judged(chunks, installation, only, secret):
                    spool.seek(written)
                    spool.write(receipts)
                    written += len(receipts)
                    more.set()
            finally:
                finished = True
                more.set()

        reader, sent = asyncio.create_task(reading()), 0
        try:
            while not finished or sent < written:
                if sent == written:
                    await more.wait()
                    more.clear()
                    continue
                spool.seek(sent)
                piece = spool.read(min(64 * 1024, written - sent))
                sent += len(piece)
                yield piece
            await reader
        finally:
            reader.cancel()


async def _judged(
    chunks: AsyncIterator[bytes], installation: Installation, only: str | None, secret: str
) -> AsyncIterator[bytes]:
    try:
        async for batch in _batches(chunks):
            if await asyncio.to_thread(installation.directory.caller, secret) is None:  # revoked while it was sending
                raise ApiError("unauthenticated")
            yield await _batch(installation, batch, only)
    except Exception as error:  # noqa: BLE001  # the answer has begun: the last line says why it ends
        yield msgspec.json.encode(of_exception(error)) + b"\n"


async def _batches(chunks: AsyncIterator[bytes]) -> AsyncIterator[list[tuple[int, bytes]]]:
    """Lines by the thousand, or as many as there are when the caller pauses. What came whole before a fault counts."""
    lines, batch, fault = Lines(), list[tuple[int, bytes]](), None
    following = asyncio.ensure_future(anext(chunks, None))
    try:
        while True:
            arrived, _ = await asyncio.wait([following], timeout=PAUSE_SECONDS if batch else None)
            if not arrived:
                yield batch
                batch = []
                continue
            if (chunk := following.result()) is None:
                break
            batch.extend(lines.feed(chunk))
            while len(batch) >= LINES_A_BATCH:
                yield batch[:LINES_A_BATCH]
                del batch[:LINES_A_BATCH]
            following = asyncio.ensure_future(anext(chunks, None))
        batch.extend(lines.end())
    except ApiError as error:
        fault = error
    finally:
        following.cancel()
    if batch:
        yield batch
    if fault:
        raise fault


async def _batch(installation: Installation, lines: list[tuple[int, bytes]], only: str | None) -> bytes:
    receipts = await asyncio.to_thread(judge, installation, lines, only=only, view=account.balance)
    return b"".join(msgspec.json.encode(r) + b"\n" for r in receipts)


@get(
    "/v1/actions/{action_id:str}",
    operation_id="getAction",
    tags=["actions"],
    summary="An action and how it was counted",
    description="Read from the log itself: right at once.",
    guards=[takes("source", "app", "auditor")],
    responses=documented("action-unknown", "not-yours"),
)
@threaded
def get_action(
    request: Request[Caller, Any, Any],
    action_id: Annotated[str, ACTION_ID],
    installation: NamedDependency[Installation],
) -> ActionDetail:
    entry, event = _found(installation, action_id)
    must_own(request.user, "source", event.source)
    reversed_by = installation.journal.find(("reversal", event.source, event.record_id))
    because = codec.decode(reversed_by.type, reversed_by.state) if reversed_by else None
    return _explained(installation, action_id, entry, event, because)


@get(
    "/v1/actions",
    operation_id="listActions",
    tags=["actions"],
    summary="Reported actions, in the order of the log",
    guards=[takes("source", "auditor")],
    responses=documented("cursor-invalid", "position-not-reached"),
)
@threaded
def list_actions(
    request: Request[Caller, Any, Any],
    installation: NamedDependency[Installation],
    source: Annotated[str | None, QueryParameter(max_length=64, pattern=PLAIN)] = None,
    behaviour: Annotated[str | None, QueryParameter(max_length=128, pattern=PLAIN)] = None,
    status: FromQuery[read_actions.Status | None] = None,
    from_day: FromQuery[date | None] = None,
    until_day: FromQuery[date | None] = None,
    cursor: Annotated[str | None, CURSOR] = None,
    limit: Annotated[int, LIMIT] = 50,
    min_position: Annotated[str | None, MIN_POSITION] = None,
) -> ActionPage:
    installation.reach(min_position)
    own = request.user.owner if request.user.role == "source" else source
    rows = installation.read_model.read(
        read_actions.actions,
        source=own,
        behaviour=behaviour,
        status=status,
        from_day=from_day,
        until_day=until_day,
        after=cursor,
        limit=limit,
    )
    return ActionPage(rows, following([row.position for row in rows], limit))


@post(
    "/v1/actions/{action_id:str}/reversal",
    operation_id="reverseAction",
    tags=["actions"],
    summary="Take back an action that should not have counted",
    description="By its own source, once, with a reason. What was spent or pooled already is left as a debt.",
    guards=[takes("source")],
    status_code=201,
    responses={
        200: ResponseSpec(ReversalReceipt, description="The earlier answer again", generate_examples=False),
        **documented(
            "action-unknown", "source-suspended", "action-not-reversible", "identity-reused", "not-yours", body=True
        ),
    },
)
@threaded
def reverse_action(
    request: Request[Caller, Any, Any],
    action_id: Annotated[str, ACTION_ID],
    data: Annotated[Reversal, example(reason="读数错误")],
    installation: NamedDependency[Installation],
) -> Response[ReversalReceipt]:
    _, event = _found(installation, action_id)
    must_own(request.user, "source", event.source)
    if request.user.role == "source" and installation.journal.rules().sources.by_id[event.source].suspended:
        raise SourceSuspended(source=event.source)
    outcome = _reversed(installation, event, data.reason)
    for other in _cases(installation, action_id):  # one record that counted for several residents is taken from each
        if other.resident != event.resident:
            _reversed(installation, other, data.reason)
    done = outcome.events[-1]
    assert isinstance(done, ActionReversed)
    told = ReversalReceipt(
        action_id,
        done.reason,
        done.reduction_mg,
        done.debt_mg,
        done.points,
        done.debt_points,
        outcome.view if isinstance(outcome.view, Balance) else None,
    )
    return receipt(told, outcome)


def _reversed(installation: Installation, event: ActionCredited | TapRecorded, reason: str) -> Outcome:
    command = ReverseAction(resident=event.resident, source=event.source, record_id=event.record_id, reason=reason)
    return installation.write_now(command, ReversalFacts(event), account.balance)


def _cases(installation: Installation, action_id: str) -> Iterator[ActionCredited]:
    key = key_of_action(action_id)
    for entry in installation.journal.find_all(key) if key else ():
        event = codec.decode(entry.type, entry.state)
        if isinstance(event, ActionCredited):
            yield event


# -- explaining ------------------------------------------------------------------------------------------------------


def _found(installation: Installation, action_id: str) -> tuple[Entry, ActionCredited | TapRecorded]:
    key = key_of_action(action_id)
    entry = installation.journal.find_key(key) if key else None
    event = codec.decode(entry.type, entry.state) if entry else None
    if entry is None or not isinstance(event, ActionCredited | TapRecorded):
        raise account.ActionUnknown(action_id=action_id)
    return entry, event


def _explained(
    installation: Installation,
    action_id: str,
    entry: Entry,
    event: ActionCredited | TapRecorded,
    because: Event | None,
) -> ActionDetail:
    shared: dict[str, Any] = {
        name: getattr(event, name)
        for name in (
            "source",
            "record_id",
            "resident",
            "behaviour",
            "quantity",
            "unit",
            "occurred_at",
            "recorded_at",
            "county",
            "methodology",
        )
    }
    place = f"{entry.partition}:{entry.position}"
    if isinstance(event, TapRecorded):
        status = "refused" if event.refused else "pending"
        return ActionDetail(action_id=action_id, status=status, position=place, refused=event.refused, **shared)
    return ActionDetail(
        action_id=action_id,
        status="reversed" if because else "credited",
        position=place,
        version=event.version,
        digest=event.digest,
        counted=event.counted,
        reduction_mg=event.reduction_mg,
        points=event.points,
        expires_on=event.expires_on,
        limits=event.limits,
        paired_with=event.paired_with,
        reversed_because=because.reason if isinstance(because, ActionReversed) else None,
        calculation=_steps(event, _table(installation, event)),
        **shared,
    )


def _table(installation: Installation, event: ActionCredited) -> Table:
    published = installation.journal.rules().methodologies.exact(event.methodology, event.version)
    assert published is not None, "an action names a table that the log has"
    return published.table


def _steps(event: ActionCredited, table: Table) -> list[Step]:
    factor, unit = table.factors.reduction, table.quantity.unit
    caps = ", ".join(event.limits) or "no cap reached"
    ride = f"a ride with {event.paired_with}" if event.paired_with else f"reported {event.quantity} {event.unit}"
    return [
        Step("methodology", f"{table.id} {table.version}", f"in force on {event.day} by {table.adopted.from_}"),
        Step("counted", f"{event.counted} {unit}", f"{ride}; {caps}"),
        Step("factor", f"{factor.value} {factor.unit}", factor.source),
        Step(
            "reduction",
            f"{event.reduction_mg} mg CO2e",
            f"{event.counted} x {factor.value} x 1000, rounded {table.rounding.how} to {table.rounding.to}",
        ),
        Step("points", str(event.points), f"{table.points.rule.points} per {table.points.rule.per}; {caps}"),
        Step("expires", str(event.expires_on), f"{table.points.expire.months} months, {table.points.expire.at}"),
    ]


handlers = [record_action, record_actions, get_action, list_actions, reverse_action]
