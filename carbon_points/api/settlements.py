"""Settlements: what merchants are owed, by day and with files that name each row, and its payment from the fund."""

import base64
from datetime import date
from typing import Annotated, Any, Literal

from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import PathParameter, QueryParameter
from msgspec import Struct

from carbon_points.api import settling
from carbon_points.api.access import must_own, takes
from carbon_points.api.installation import (
    CURSOR,
    IDEMPOTENCY_KEY,
    LIMIT,
    MIN_POSITION,
    Installation,
    following,
    id_from_key,
    receipt,
    threaded,
)
from carbon_points.api.merchants import MERCHANT
from carbon_points.api.problems import ApiError, documented
from carbon_points.directory import Caller
from carbon_points.domain.fund import Fund, MerchantPaid, PayMerchant
from carbon_points.domain.merchant import SettlementClosed
from carbon_points.domain.order import Totals
from carbon_points.journal import codec
from carbon_points.journal.streams import FUND
from carbon_points.projections import merchants as read_merchants

SETTLEMENT = PathParameter(pattern=r"^stl_[a-z2-7]{20}$", description="the settlement's id")
DAY = QueryParameter(description="Settle what was recorded up to the end of this day in China; without it, until now")
FORMAT = QueryParameter(description="`csv` for a spreadsheet, `json` for a program")
MEDIA = {"csv": "text/csv", "json": "application/json"}


class SettlementShown(Struct, frozen=True):
    """Captures less refunds at positions in (`after`, `through`] of each partition of the log.

    `roots` are Merkle roots of the partitions at `through`; the digests are of the two files, in hex.
    """

    settlement_id: str
    merchant: str
    captures: int
    refunds: int
    points: int
    amount_fen: int
    after: dict[str, int]
    through: dict[str, int]
    day: date | None
    totals: Totals | None
    roots: dict[str, str] | None
    json_sha256: str
    csv_sha256: str


class PaymentShown(Struct, frozen=True):
    settlement_id: str
    merchant: str
    amount_fen: int
    fund_balance_fen: int


class SettlementPage(Struct, frozen=True):
    data: list[read_merchants.Settlement]
    next_cursor: str | None


class Queue(Struct, frozen=True):
    """The next to be paid come first."""

    data: list[read_merchants.Settlement]


def _again(kind: type) -> dict[int, ResponseSpec]:
    return {200: ResponseSpec(kind, description="The earlier answer again", generate_examples=False)}


@post(
    "/v1/merchants/{merchant:str}/settlements",
    operation_id="closeSettlement",
    tags=["merchants"],
    summary="Settle a day, or what was captured since the last settlement",
    description="A day is settled once, whatever the key: the server does it each night by itself.",
    guards=[takes()],
    status_code=201,
    responses=_again(SettlementShown)
    | documented(
        "merchant-unknown",
        "nothing-to-settle",
        "day-not-over",
        "settlement-overlaps",
        "idempotency-key-missing",
        "identity-reused",
        "position-not-reached",
    ),
)
@threaded
def close_settlement(
    request: Request[Caller, Any, Any],
    merchant: Annotated[str, MERCHANT],
    installation: NamedDependency[Installation],
    idempotency_key: Annotated[str, IDEMPOTENCY_KEY],
    day: Annotated[date | None, DAY] = None,
) -> Response[SettlementShown]:
    by_key = id_from_key("stl_", request, f"settlement {merchant}")
    outcome = settling.close(installation, merchant, settling.id_of_day(merchant, day) if day else by_key, day=day)
    closed = outcome.events[-1]
    assert isinstance(closed, SettlementClosed)
    return receipt(_shown(closed), outcome)


@get(
    "/v1/merchants/{merchant:str}/settlements",
    operation_id="listSettlements",
    tags=["merchants"],
    summary="A merchant's settlements, and whether they are paid",
    guards=[takes("auditor", "terminal")],
    responses=documented("position-not-reached", "cursor-invalid", "not-yours"),
)
@threaded
def list_settlements(
    request: Request[Caller, Any, Any],
    merchant: Annotated[str, MERCHANT],
    installation: NamedDependency[Installation],
    cursor: Annotated[str | None, CURSOR] = None,
    limit: Annotated[int, LIMIT] = 50,
    min_position: Annotated[str | None, MIN_POSITION] = None,
) -> SettlementPage:
    _must_be_its_own(request.user, merchant)
    installation.reach(min_position)
    rows = installation.read_model.read(read_merchants.settlements, merchant_id=merchant, after=cursor, limit=limit)
    return SettlementPage(rows, following([row.position for row in rows], limit))


@get(
    "/v1/merchants/{merchant:str}/settlements/{settlement_id:str}/file",
    operation_id="getSettlementFile",
    tags=["merchants"],
    summary="A settlement's file: each capture and refund that it covers",
    description="The same bytes for ever, made again from the log and checked against the digest in it.",
    guards=[takes("auditor", "terminal")],
    responses={
        200: ResponseSpec(bytes, description="The file", media_type=MEDIA["csv"], generate_examples=False),
        304: ResponseSpec(None, description="You have it: `If-None-Match` names its ETag"),
    }
    | documented("settlement-unknown", "settlement-without-file", "position-not-reached", "not-yours"),
)
@threaded
def get_settlement_file(
    request: Request[Caller, Any, Any],
    merchant: Annotated[str, MERCHANT],
    settlement_id: Annotated[str, SETTLEMENT],
    installation: NamedDependency[Installation],
    form: Annotated[Literal["csv", "json"], QueryParameter(name="format")] = "csv",
) -> Response[bytes | None]:
    _must_be_its_own(request.user, merchant)
    found = settling.file_of(installation, merchant, settlement_id, form)
    digest = base64.b64encode(bytes.fromhex(found.sha256)).decode()
    headers = {"ETag": f'"{found.sha256}"', "Repr-Digest": f"sha-256=:{digest}:", "Cache-Control": "private, immutable"}
    if headers["ETag"] in [
        tag.strip().removeprefix("W/") for tag in request.headers.get("If-None-Match", "").split(",")
    ]:
        return Response(None, status_code=304, headers=headers)
    name = f"settlement-{merchant}-{found.day or settlement_id}.{form}"
    headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return Response(found.content, headers=headers, media_type=MEDIA[form])


@post(
    "/v1/merchants/{merchant:str}/settlements/{settlement_id:str}/payment",
    operation_id="paySettlement",
    tags=["merchants"],
    summary="Pay a settlement from the fund",
    description="Once, and before all that wait longer. While the fund is short the call is refused, and may be sent "
    "again.",
    guards=[takes()],
    status_code=201,
    responses=_again(PaymentShown)
    | documented("settlement-unknown", "fund-insufficient", "identity-reused", "money-invalid"),
)
@threaded
def pay_settlement(
    merchant: Annotated[str, MERCHANT],
    settlement_id: Annotated[str, SETTLEMENT],
    installation: NamedDependency[Installation],
) -> Response[PaymentShown]:
    entry = installation.journal.find(("settlement", merchant, settlement_id))
    closed = codec.decode(entry.type, entry.state) if entry else None
    if not isinstance(closed, SettlementClosed):
        raise ApiError("settlement-unknown", settlement_id)
    command = PayMerchant(settlement_id=settlement_id, merchant=merchant, amount_fen=closed.amount_fen)
    outcome = installation.write_now(command)
    paid = outcome.events[-1]
    assert isinstance(paid, MerchantPaid)
    fund: Fund = installation.journal.state(FUND)
    return receipt(PaymentShown(settlement_id, merchant, paid.amount_fen, fund.balance_fen), outcome)


@get(
    "/v1/fund/queue",
    operation_id="listUnpaid",
    tags=["fund"],
    summary="Settlements that wait for money, in the order in which they are paid",
    guards=[takes("auditor")],
    responses=documented("position-not-reached"),
)
@threaded
def list_unpaid(
    installation: NamedDependency[Installation],
    limit: Annotated[int, LIMIT] = 50,
    min_position: Annotated[str | None, MIN_POSITION] = None,
) -> Queue:
    installation.reach(min_position)
    return Queue(installation.read_model.read(read_merchants.unpaid, limit=limit))


def _must_be_its_own(caller: Caller, merchant: str) -> None:
    """A terminal sees its own merchant's settlements. Raises ApiError."""
    if caller.role == "terminal":
        must_own(caller, "terminal", f"{merchant}/{caller.owner.partition('/')[2]}")


def _shown(closed: SettlementClosed) -> SettlementShown:
    return SettlementShown(
        closed.settlement_id,
        closed.merchant,
        closed.captures,
        closed.refunds,
        closed.points,
        closed.amount_fen,
        closed.after,
        closed.through,
        closed.day,
        closed.totals,
        closed.roots,
        closed.json_sha256,
        closed.csv_sha256,
    )


handlers = [
    close_settlement,
    list_settlements,
    get_settlement_file,
    pay_settlement,
    list_unpaid,
]
