"""Close of day: a terminal's batch, counted on both sides, and closed once both agree."""

from datetime import datetime
from typing import Annotated, Any, Literal

from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import PathParameter
from msgspec import Meta, Struct

from carbon_points.api.access import must_own, takes
from carbon_points.api.installation import (
    CURSOR,
    IDEMPOTENCY_KEY,
    LIMIT,
    MIN_POSITION,
    PLAIN,
    REPLAYED_HEADER,
    Installation,
    example,
    position_headers,
    threaded,
)
from carbon_points.api.merchants import MERCHANT
from carbon_points.api.problems import ApiError, documented
from carbon_points.directory import Caller
from carbon_points.domain.merchant import Merchant, MerchantUnknown
from carbon_points.domain.order import BatchClosed, By, CloseBatch, Tally, Till, Totals, TotalsDiffer
from carbon_points.projections import batches as read_batches
from carbon_points.projections.batches import Line

TERMINAL = PathParameter(max_length=64, pattern=PLAIN, description="the terminal's id")
BATCH = PathParameter(ge=1, le=10**9, description="the number of the batch, from 1")
CONFIRM_SECONDS = 5.0

Count = Annotated[int, Meta(ge=0, le=10**15)]


class Counted(Struct, frozen=True, forbid_unknown_fields=True):
    count: Count
    points: Count
    fen: Count


class Claimed(Struct, frozen=True, forbid_unknown_fields=True):
    """What the terminal counts in its batch. Refunds are without reversals; a reversed sale is a sale, too."""

    sales: Counted
    refunds: Counted
    reversals: Counted

    @property
    def totals(self) -> Totals:
        return Totals(*(Tally(c.count, c.points, c.fen) for c in (self.sales, self.refunds, self.reversals)))


class Agreement(Struct, frozen=True):
    """`agreed`: the batch is closed. `not-agreed`: `totals` and `lines` are ours, to be compared. `cannot-confirm`:
    something of this terminal, `unresolved`, is on its way still: ask again in a moment.

    `next_batch` is the terminal's open batch once this one is closed; `totals` are ours.
    """

    answer: Literal["agreed", "not-agreed", "cannot-confirm"]
    batch: int
    next_batch: int | None
    totals: Totals
    lines: list[Line] = []
    unresolved: list[str] = []


class BatchShown(Struct, frozen=True):
    merchant: str
    terminal: str
    batch: int
    status: Literal["open", "closed"]
    moved_at: datetime | None
    closed_at: datetime | None
    closed_by: By | None
    totals: Totals
    lines: list[Line]


class BatchPage(Struct, frozen=True):
    data: list[read_batches.Shown]
    next_cursor: str | None


@post(
    "/v1/merchants/{merchant:str}/terminals/{terminal:str}/batches/{batch:int}/close",
    operation_id="closeBatch",
    tags=["batches"],
    summary="Close a terminal's batch, if both sides count the same",
    description="A batch is closed once, whatever the key; the same close again is answered the same.",
    guards=[takes("terminal")],
    status_code=200,
    responses=documented(
        "merchant-unknown",
        "terminal-unknown",
        "batch-not-open",
        "position-not-reached",
        "idempotency-key-missing",
        "not-yours",
        body=True,
    ),
)
@threaded
def close_batch(
    request: Request[Caller, Any, Any],
    merchant: Annotated[str, MERCHANT],
    terminal: Annotated[str, TERMINAL],
    batch: Annotated[int, BATCH],
    data: Annotated[
        Claimed,
        example(
            sales={"count": 12, "points": 340, "fen": 680},
            refunds={"count": 1, "points": 10, "fen": 20},
            reversals={"count": 0, "points": 0, "fen": 0},
        ),
    ],
    installation: NamedDependency[Installation],
    idempotency_key: Annotated[str, IDEMPOTENCY_KEY],
) -> Response[Agreement]:
    must_own(request.user, "terminal", f"{merchant}/{terminal}")
    till = _till(installation, merchant, terminal)
    command = CloseBatch(merchant=merchant, terminal=terminal, batch=batch, totals=data.totals)
    if not installation.journal.find(command.claim()) and (waiting := _unresolved(installation, command)) is not None:
        return Response(Agreement("cannot-confirm", batch, None, till.totals, unresolved=waiting))
    try:
        outcome = installation.write_now(command)
    except TotalsDiffer:
        return Response(_compared(installation, command, None))
    closed = outcome.events[-1]
    assert isinstance(closed, BatchClosed)
    if closed.totals != data.totals:  # it was closed before, by what we counted
        return Response(_compared(installation, command, batch + 1), headers={REPLAYED_HEADER: "true"})
    return Response(Agreement("agreed", batch, batch + 1, closed.totals), headers=position_headers(outcome))


@get(
    "/v1/merchants/{merchant:str}/terminals/{terminal:str}/batches",
    operation_id="listBatches",
    tags=["batches"],
    summary="A terminal's batches, the newest first",
    guards=[takes("terminal", "auditor")],
    responses=documented("position-not-reached", "cursor-invalid", "not-yours"),
)
@threaded
def list_batches(
    request: Request[Caller, Any, Any],
    merchant: Annotated[str, MERCHANT],
    terminal: Annotated[str, TERMINAL],
    installation: NamedDependency[Installation],
    cursor: Annotated[str | None, CURSOR] = None,
    limit: Annotated[int, LIMIT] = 50,
    min_position: Annotated[str | None, MIN_POSITION] = None,
) -> BatchPage:
    must_own(request.user, "terminal", f"{merchant}/{terminal}")
    installation.reach(min_position)
    if cursor is not None and not (cursor.isascii() and cursor.isdecimal() and len(cursor) <= 10):
        raise ApiError("cursor-invalid")
    before = None if cursor is None else int(cursor)
    found = installation.read_model.read(read_batches.batches, merchant, terminal, before=before, limit=limit)
    return BatchPage(found, str(found[-1].batch) if len(found) == limit else None)


@get(
    "/v1/merchants/{merchant:str}/terminals/{terminal:str}/batches/{batch:int}",
    operation_id="getBatch",
    tags=["batches"],
    summary="A terminal's batch: what moved in it",
    guards=[takes("terminal", "auditor")],
    responses=documented("merchant-unknown", "terminal-unknown", "batch-unknown", "position-not-reached", "not-yours"),
)
@threaded
def get_batch(
    request: Request[Caller, Any, Any],
    merchant: Annotated[str, MERCHANT],
    terminal: Annotated[str, TERMINAL],
    batch: Annotated[int, BATCH],
    installation: NamedDependency[Installation],
    min_position: Annotated[str | None, MIN_POSITION] = None,
) -> BatchShown:
    must_own(request.user, "terminal", f"{merchant}/{terminal}")
    till = _till(installation, merchant, terminal)
    if batch > till.batch:
        raise ApiError("batch-unknown", f"the open batch is {till.batch}")
    installation.reach(min_position)
    with installation.read_model.snapshot() as at:
        known = read_batches.batch(at, merchant, terminal, batch)
        lines = read_batches.lines(at, merchant, terminal, batch)
    shown = known or read_batches.Shown(merchant, terminal, batch, "open", None, None, None, Totals())
    return BatchShown(
        shown.merchant,
        shown.terminal,
        shown.batch,
        shown.status,
        shown.moved_at,
        shown.closed_at,
        shown.closed_by,
        shown.totals,
        lines,
    )


def _till(installation: Installation, merchant: str, terminal: str) -> Till:
    """Raises MerchantUnknown, TerminalUnknown."""
    known: Merchant = installation.journal.state(f"merchant/{merchant}", [("tills", terminal)])
    if not known.name:
        raise MerchantUnknown(merchant=merchant)
    return known.accepting(terminal).tills.get(terminal) or Till()


def _unresolved(installation: Installation, command: CloseBatch) -> list[str] | None:
    """What keeps us from counting this terminal's batch: None if nothing does."""
    settled = installation.finisher.settled(command.merchant, CONFIRM_SECONDS)
    waiting = installation.read_model.read(read_batches.unresolved, command.merchant, command.terminal)
    return None if settled and not waiting else waiting


def _compared(installation: Installation, command: CloseBatch, next_batch: int | None) -> Agreement:
    if not installation.follower.catch_up(CONFIRM_SECONDS):
        raise ApiError("position-not-reached")
    lines = installation.read_model.read(read_batches.lines, command.merchant, command.terminal, command.batch)
    return Agreement("not-agreed", command.batch, next_batch, read_batches.totals_of(lines), lines)


handlers = [close_batch, list_batches, get_batch]
