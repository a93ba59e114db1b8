"""The fund and the books: money in and out, and the trial balance of all three assets."""

from typing import Annotated, Any, Literal

from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from msgspec import Meta, Struct

from carbon_points.api.access import takes
from carbon_points.api.installation import (
    IDEMPOTENCY_KEY,
    MIN_POSITION,
    Installation,
    example,
    id_from_key,
    receipt,
    threaded,
)
from carbon_points.api.problems import ApiError, documented
from carbon_points.directory import Caller
from carbon_points.domain.event import Text
from carbon_points.domain.fund import FEN_MOST, Fund, MoneyReceived, ReceiveMoney
from carbon_points.domain.lot import UnitsSold
from carbon_points.domain.refusal import Conflict
from carbon_points.journal import codec
from carbon_points.journal.streams import FUND
from carbon_points.projections import fund as read_fund
from carbon_points.projections import trial_balance as read_trial


class MoneyIn(Struct, frozen=True, forbid_unknown_fields=True):
    """`origin` "sale": `sale_id` says which, and buyer and price must be the sale's. "sponsor": anyone's gift."""

    origin: Literal["sale", "sponsor"]
    payer: Text
    amount_fen: Annotated[int, Meta(gt=0, le=FEN_MOST)]
    sale_id: Annotated[str, Meta(pattern=r"^sale_[a-z2-7]{20}$")] | None = None
    lot_id: Annotated[str, Meta(pattern=r"^lot_[a-z2-7]{20}_[a-z2-7]{20}$")] | None = None


class ReceiptShown(Struct, frozen=True):
    receipt_id: str
    origin: str
    payer: str
    amount_fen: int
    sale_id: str | None
    balance_fen: int


@post(
    "/v1/fund/receipts",
    operation_id="receiveMoney",
    tags=["fund"],
    summary="Record money that came in",
    description="A sale's money is received once, whatever the key: name its `sale_id` and `lot_id`.",
    guards=[takes()],
    status_code=201,
    responses={
        200: ResponseSpec(ReceiptShown, description="The earlier answer again", generate_examples=False),
        **documented("idempotency-key-missing", "identity-reused", "money-invalid", body=True),
    },
)
@threaded
def receive_money(
    request: Request[Caller, Any, Any],
    data: Annotated[MoneyIn, example(origin="sponsor", payer="国网湖州供电公司", amount_fen=500000)],
    installation: NamedDependency[Installation],
    idempotency_key: Annotated[str, IDEMPOTENCY_KEY],
) -> Response[ReceiptShown]:
    named = {data.sale_id is not None, data.lot_id is not None}
    if named != {data.origin == "sale"}:
        raise ApiError("missing-field", "a sale's money names sale_id and lot_id; a sponsor's names neither")
    if data.sale_id and data.lot_id:
        _must_match(installation, data)
    receipt_id = id_from_key("rcp_", request, "receipt")
    command = ReceiveMoney(
        receipt_id=data.sale_id or receipt_id,
        origin=data.origin,
        payer=data.payer,
        amount_fen=data.amount_fen,
        sale_id=data.sale_id,
    )
    outcome = installation.write_now(command)
    got = outcome.events[-1]
    assert isinstance(got, MoneyReceived)
    fund: Fund = installation.journal.state(FUND)
    told = ReceiptShown(got.receipt_id, got.origin, got.payer, got.amount_fen, got.sale_id, fund.balance_fen)
    return receipt(told, outcome)


def _must_match(installation: Installation, data: MoneyIn) -> None:
    entry = installation.journal.find(("sale", data.lot_id or "", data.sale_id or ""))
    sold = codec.decode(entry.type, entry.state) if entry else None
    if not isinstance(sold, UnitsSold):
        raise ApiError("parameter-invalid", f"no sale {data.sale_id} of lot {data.lot_id}")
    wrong = [
        n for n, a, b in (("payer", data.payer, sold.buyer), ("amount_fen", data.amount_fen, sold.price_fen)) if a != b
    ]
    if wrong:
        raise Conflict(fields=wrong)


@get(
    "/v1/fund",
    operation_id="getFund",
    tags=["fund"],
    summary="What came in, what went out, what is owed",
    guards=[takes("auditor")],
    responses=documented("position-not-reached"),
)
@threaded
def get_fund(
    installation: NamedDependency[Installation], min_position: Annotated[str | None, MIN_POSITION] = None
) -> read_fund.Fund:
    installation.reach(min_position)
    return installation.read_model.read(read_fund.fund)


@get(
    "/v1/trial-balance",
    operation_id="getTrialBalance",
    tags=["fund"],
    summary="All accounts, and that they sum to zero",
    description="At one vector of positions of the log. Each asset's total is zero, or somebody made a mistake.",
    guards=[takes("auditor")],
    responses=documented("position-not-reached"),
)
@threaded
def get_trial_balance(
    installation: NamedDependency[Installation], min_position: Annotated[str | None, MIN_POSITION] = None
) -> read_trial.TrialBalance:
    installation.reach(min_position)
    return installation.read_model.read(read_trial.trial_balance)


handlers = [receive_money, get_fund, get_trial_balance]
