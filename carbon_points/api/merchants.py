"""Merchants: register, enrol terminals, change the price, see totals."""

from typing import Annotated

from litestar import Response, get, patch, post, put
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import PathParameter
from msgspec import Meta, Struct

from carbon_points.api.access import takes
from carbon_points.api.installation import (
    CURSOR,
    LIMIT,
    MIN_POSITION,
    PLAIN,
    Installation,
    example,
    following,
    receipt,
    threaded,
)
from carbon_points.api.problems import documented
from carbon_points.domain import merchant as domain
from carbon_points.domain.account import POINTS_MOST
from carbon_points.domain.event import Id
from carbon_points.domain.merchant import (
    PRICE_MOST_FEN,
    ChangePrice,
    ChangeTerms,
    EnrolTerminal,
    Merchant,
    MerchantUnknown,
    RegisterMerchant,
)
from carbon_points.domain.offline import Offline
from carbon_points.projections import merchants as read_merchants

MERCHANT = PathParameter(max_length=64, pattern=PLAIN, description="the merchant's id")


class Price(Struct, frozen=True, forbid_unknown_fields=True):
    fen_per_point: Annotated[int, Meta(ge=1, le=PRICE_MOST_FEN)]


class Terms(Struct, frozen=True, forbid_unknown_fields=True):
    """`confirm_above`: for more points than that a resident who pays by code must agree on their phone; null: never.
    `offline`: what terminals may take offline, at the merchant's risk; null: nothing."""

    confirm_above: Annotated[int, Meta(ge=0, le=POINTS_MOST)] | None
    offline: Offline | None = None


class NewTerminal(Struct, frozen=True, forbid_unknown_fields=True):
    terminal: Id


class MerchantShown(Struct, frozen=True):
    merchant: str
    name: str
    fen_per_point: int
    county: str | None
    terminals: list[str]
    confirm_above: int | None = None
    public: bool = False
    offline: Offline | None = None


class MerchantPage(Struct, frozen=True):
    data: list[read_merchants.Merchant]
    next_cursor: str | None


def _again(kind: type) -> dict[int, ResponseSpec]:
    return {200: ResponseSpec(kind, description="The earlier answer again", generate_examples=False)}


@post(
    "/v1/merchants",
    operation_id="registerMerchant",
    tags=["merchants"],
    summary="Register a merchant",
    guards=[takes()],
    status_code=201,
    responses=_again(MerchantShown) | documented("identity-reused", "price-invalid", body=True),
)
@threaded
def register_merchant(
    data: Annotated[
        RegisterMerchant,
        example(merchant="nanxun-teahouse", name="南浔古镇茶馆", fen_per_point=2, county="330503"),
    ],
    installation: NamedDependency[Installation],
) -> Response[MerchantShown]:
    outcome = installation.write_now(data)
    return receipt(_shown(installation, data.merchant), outcome)


@get(
    "/v1/merchants",
    operation_id="listMerchants",
    tags=["merchants"],
    summary="Merchants and their totals",
    guards=[takes("auditor", "app")],
    responses=documented("position-not-reached", "cursor-invalid"),
)
@threaded
def list_merchants(
    installation: NamedDependency[Installation],
    cursor: Annotated[str | None, CURSOR] = None,
    limit: Annotated[int, LIMIT] = 50,
    min_position: Annotated[str | None, MIN_POSITION] = None,
) -> MerchantPage:
    installation.reach(min_position)
    rows = installation.read_model.read(read_merchants.merchants, after=cursor, limit=limit)
    return MerchantPage(rows, following([row.merchant for row in rows], limit))


@get(
    "/v1/merchants/{merchant:str}",
    operation_id="getMerchant",
    tags=["merchants"],
    summary="A merchant, its price and terminals",
    guards=[takes("terminal", "auditor", "app")],
    responses=documented("merchant-unknown"),
)
@threaded
def get_merchant(merchant: Annotated[str, MERCHANT], installation: NamedDependency[Installation]) -> MerchantShown:
    return _shown(installation, merchant)


@patch(
    "/v1/merchants/{merchant:str}",
    operation_id="changePrice",
    tags=["merchants"],
    summary="Change what a point is worth at a merchant",
    description="For holds from now on.",
    guards=[takes()],
    status_code=200,
    responses=documented("merchant-unknown", "price-invalid", "price-unchanged", body=True),
)
@threaded
def change_price(
    merchant: Annotated[str, MERCHANT],
    data: Annotated[Price, example(fen_per_point=3)],
    installation: NamedDependency[Installation],
) -> Response[MerchantShown]:
    outcome = installation.write_now(ChangePrice(merchant=merchant, fen_per_point=data.fen_per_point))
    return receipt(_shown(installation, merchant), outcome, created=200)


@put(
    "/v1/merchants/{merchant:str}/terms",
    operation_id="changeTerms",
    tags=["merchants"],
    summary="Change from how many points on residents are asked on their phone, and what is taken offline",
    description="For holds from now on. What is not said is null.",
    guards=[takes()],
    status_code=200,
    responses=documented("merchant-unknown", "terms-unchanged", body=True),
)
@threaded
def change_terms(
    merchant: Annotated[str, MERCHANT],
    data: Annotated[Terms, example(confirm_above=500)],
    installation: NamedDependency[Installation],
) -> Response[MerchantShown]:
    command = ChangeTerms(merchant=merchant, confirm_above=data.confirm_above, offline=data.offline)
    outcome = installation.write_now(command)
    return receipt(_shown(installation, merchant), outcome, created=200)


@post(
    "/v1/merchants/{merchant:str}/terminals",
    operation_id="enrolTerminal",
    tags=["merchants"],
    summary="Enrol a terminal",
    guards=[takes()],
    status_code=201,
    responses=_again(MerchantShown) | documented("merchant-unknown", "identity-reused", body=True),
)
@threaded
def enrol_terminal(
    merchant: Annotated[str, MERCHANT],
    data: Annotated[NewTerminal, example(terminal="t1")],
    installation: NamedDependency[Installation],
) -> Response[MerchantShown]:
    outcome = installation.write_now(EnrolTerminal(merchant=merchant, terminal=data.terminal))
    return receipt(_shown(installation, merchant), outcome)


def _known(installation: Installation, merchant: str) -> Merchant:
    known: domain.Merchant = installation.journal.state(f"merchant/{merchant}")
    if not known.name:
        raise MerchantUnknown(merchant=merchant)
    return known


def _shown(installation: Installation, merchant: str) -> MerchantShown:
    known = _known(installation, merchant)
    terminals = sorted(known.terminals)
    return MerchantShown(
        known.id,
        known.name,
        known.fen_per_point,
        known.county,
        terminals,
        known.confirm_above,
        known.public,
        known.offline,
    )


handlers = [
    register_merchant,
    list_merchants,
    get_merchant,
    change_price,
    change_terms,
    enrol_terminal,
]
