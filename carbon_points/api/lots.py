"""Pools, lots, sales, retirements and certificates: from residents' reductions to units that are used once.

A lot's id says its pool, and a sale's its lot: `pool_X`, `lot_X_...`, so that every call finds its stream by itself.
"""

from typing import Annotated, Any

from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import PathParameter, QueryParameter
from msgspec import Meta, Struct

from carbon_points.api.access import must_own, takes
from carbon_points.api.installation import (
    CURSOR,
    IDEMPOTENCY_KEY,
    LIMIT,
    MIN_POSITION,
    PLAIN,
    Installation,
    example,
    following,
    id_from_key,
    receipt,
    threaded,
)
from carbon_points.api.problems import ApiError, documented
from carbon_points.directory import Caller
from carbon_points.domain import lot as domain
from carbon_points.domain.account import ConsentMissing, NothingToPool, PoolReductions
from carbon_points.domain.event import Amount, Id, Month, Text
from carbon_points.domain.lot import (
    GatheringSealed,
    IssueLot,
    LotIssued,
    OpenPool,
    Pool,
    PoolUnknown,
    Purpose,
    RetireUnits,
    SealGathering,
    SellUnits,
    UnitsRetired,
    UnitsSold,
    VerifyPool,
)
from carbon_points.journal.partition import Write
from carbon_points.projections import lots as read_lots

GATHER_BATCH = 500
POOL = PathParameter(pattern=r"^pool_[a-z2-7]{20}$", description="the pool's id")
LOT = PathParameter(pattern=r"^lot_[a-z2-7]{20}_[a-z2-7]{20}$", description="the lot's id")


class NewPool(Struct, frozen=True, forbid_unknown_fields=True):
    """Which reductions: of one methodology version, of whole months from `from_month` to `until_month`."""

    methodology: Id
    version: Id
    from_month: Month
    until_month: Month


class Gathered(Struct, frozen=True):
    """What one call moved into the pool. Call again while `more`; then seal the gathering."""

    pool_id: str
    gathering: int
    residents: int
    reduction_mg: int
    without_consent: int
    more: bool
    next_resident: str | None


class Verification(Struct, frozen=True, forbid_unknown_fields=True):
    verifier: Text
    report: Text
    verified_mg: Annotated[int, Meta(gt=0, le=10**15)]


class Sale(Struct, frozen=True, forbid_unknown_fields=True):
    """Whole kilograms, for `price_fen` in all."""

    buyer: Id
    kg: Annotated[int, Meta(gt=0, le=10**12)]
    price_fen: Amount


class Retirement(Struct, frozen=True, forbid_unknown_fields=True):
    holder: Id
    kg: Annotated[int, Meta(gt=0, le=10**12)]
    purpose: Purpose
    beneficiary: Text
    reason: Text


class PoolShown(Struct, frozen=True):
    """A pool as the log has it: gathered >= verified >= issued, in milligrams."""

    pool_id: str
    methodology: str
    version: str
    from_month: str
    until_month: str
    gathering: int
    gathered_mg: int
    verified_mg: int
    issued_mg: int
    lots: list[str]


class LotShown(Struct, frozen=True):
    lot_id: str
    pool_id: str
    serial: str
    kg: int
    remainder_mg: int


class SaleShown(Struct, frozen=True):
    sale_id: str
    lot_id: str
    buyer: str
    kg: int
    price_fen: int
    serials: tuple[str, ...]


class RetirementShown(Struct, frozen=True):
    retirement_id: str
    certificate: str
    lot_id: str
    holder: str
    beneficiary: str
    purpose: str
    reason: str
    kg: int
    serials: tuple[str, ...]


class PoolPage(Struct, frozen=True):
    data: list[read_lots.Pool]
    next_cursor: str | None


class LotPage(Struct, frozen=True):
    data: list[read_lots.Lot]
    next_cursor: str | None


class SalePage(Struct, frozen=True):
    data: list[read_lots.Sale]
    next_cursor: str | None


def _again(kind: type) -> dict[int, ResponseSpec]:
    return {200: ResponseSpec(kind, description="The earlier answer again", generate_examples=False)}


@post(
    "/v1/pools",
    operation_id="openPool",
    tags=["lots"],
    summary="Open a pool",
    guards=[takes()],
    status_code=201,
    responses=_again(PoolShown)
    | documented("idempotency-key-missing", "identity-reused", "period-invalid", "methodology-unknown", body=True),
)
@threaded
def open_pool(
    request: Request[Caller, Any, Any],
    data: Annotated[NewPool, example(methodology="bus", version="2024-1", from_month="2026-10", until_month="2026-10")],
    installation: NamedDependency[Installation],
    idempotency_key: Annotated[str, IDEMPOTENCY_KEY],
) -> Response[PoolShown]:
    if installation.journal.rules().methodologies.exact(data.methodology, data.version) is None:
        raise ApiError("methodology-unknown", f"{data.methodology} {data.version}")
    command = OpenPool(
        pool_id=id_from_key("pool_", request, "pool"),
        methodology=data.methodology,
        version=data.version,
        from_month=data.from_month,
        until_month=data.until_month,
        region=installation.settings.region,
        scheme=installation.settings.scheme,
    )
    outcome = installation.write_now(command)
    return receipt(_pool(installation, command.pool_id), outcome)


@get(
    "/v1/pools",
    operation_id="listPools",
    tags=["lots"],
    summary="All pools",
    guards=[takes("auditor", "buyer")],
    responses=documented("position-not-reached", "cursor-invalid"),
)
@threaded
def list_pools(
    installation: NamedDependency[Installation],
    cursor: Annotated[str | None, CURSOR] = None,
    limit: Annotated[int, LIMIT] = 50,
    min_position: Annotated[str | None, MIN_POSITION] = None,
) -> PoolPage:
    installation.reach(min_position)
    rows = installation.read_model.read(read_lots.pools, after=cursor, limit=limit)
    return PoolPage(rows, following([row.position for row in rows], limit))


@get(
    "/v1/pools/{pool_id:str}",
    operation_id="getPool",
    tags=["lots"],
    summary="A pool",
    guards=[takes("auditor", "buyer")],
    responses=documented("pool-unknown"),
)
@threaded
def get_pool(pool_id: Annotated[str, POOL], installation: NamedDependency[Installation]) -> PoolShown:
    return _pool(installation, pool_id)


@post(
    "/v1/pools/{pool_id:str}/gather",
    operation_id="gatherReductions",
    tags=["lots"],
    summary="Move consenting residents' reductions into the pool",
    description="Some residents a call, from `after` on; safe to repeat. A resident without a consent to trade that "
    "covers a whole month keeps it.",
    guards=[takes()],
    status_code=200,
    responses=documented("pool-unknown", "position-not-reached"),
)
@threaded
def gather(
    pool_id: Annotated[str, POOL],
    installation: NamedDependency[Installation],
    after: Annotated[str, QueryParameter(pattern=r"^(res_[a-z2-7]{20})?$")] = "",
    limit: Annotated[int, QueryParameter(ge=1, le=10_000)] = 5_000,
) -> Gathered:
    pool: Pool = installation.journal.state(f"pool/{pool_id}")
    if not pool.methodology:
        raise PoolUnknown(pool=pool_id)
    if not installation.follower.catch_up(30.0):
        raise ApiError("position-not-reached")
    residents = installation.read_model.read(
        read_lots.residents_to_pool,
        pool.methodology,
        pool.version,
        pool.from_month,
        pool.until_month,
        after=after or None,
        limit=limit,
    )
    moved = without = reduction_mg = 0
    for start in range(0, len(residents), GATHER_BATCH):
        commands = [_pooling(pool, resident) for resident in residents[start : start + GATHER_BATCH]]
        for outcome in installation.journal.commit([Write(command) for command in commands]):
            if isinstance(outcome.refusal, ConsentMissing | NothingToPool):
                without += 1
            elif outcome.refusal or outcome.failure:
                raise outcome.refusal or outcome.failure or AssertionError
            elif not outcome.replayed:
                moved += 1
                reduction_mg += getattr(outcome.events[-1], "reduction_mg", 0)
    more = len(residents) == limit
    return Gathered(
        pool_id, pool.gathering, moved, reduction_mg, without, more, residents[-1] if more and residents else None
    )


def _pooling(pool: Pool, resident: str) -> PoolReductions:
    return PoolReductions(
        resident=resident,
        pool_id=pool.id,
        gathering=pool.gathering,
        methodology=pool.methodology,
        version=pool.version,
        from_month=pool.from_month,
        until_month=pool.until_month,
    )


@post(
    "/v1/pools/{pool_id:str}/seal",
    operation_id="sealGathering",
    tags=["lots"],
    summary="End a gathering",
    description="What the log says was gathered until now may be verified; what comes later is another gathering's. "
    "Naming the gathering makes the call safe to repeat.",
    guards=[takes()],
    status_code=201,
    responses=_again(PoolShown)
    | documented("pool-unknown", "gathering-not-open", "nothing-gathered", "position-not-reached", "identity-reused"),
)
@threaded
def seal(
    pool_id: Annotated[str, POOL],
    installation: NamedDependency[Installation],
    gathering: Annotated[int, QueryParameter(ge=1, le=10**9, description="as `gather` told it")],
) -> Response[PoolShown]:
    if not installation.follower.catch_up(30.0):
        raise ApiError("position-not-reached")
    facts = installation.read_model.read(read_lots.gathering_facts, pool_id)
    outcome = installation.write_now(SealGathering(pool_id=pool_id, gathering=gathering), facts)
    assert isinstance(outcome.events[-1], GatheringSealed)
    return receipt(_pool(installation, pool_id), outcome)


@post(
    "/v1/pools/{pool_id:str}/verifications",
    operation_id="verifyPool",
    tags=["lots"],
    summary="Record a verifier's finding",
    guards=[takes()],
    status_code=201,
    responses=_again(PoolShown)
    | documented(
        "pool-unknown",
        "amount-invalid",
        "verified-exceeds-gathered",
        "idempotency-key-missing",
        "identity-reused",
        body=True,
    ),
)
@threaded
def verify_pool(
    request: Request[Caller, Any, Any],
    pool_id: Annotated[str, POOL],
    data: Annotated[Verification, example(verifier="核证机构", report="湖州 2026-10 第 1 号", verified_mg=1476000000)],
    installation: NamedDependency[Installation],
    idempotency_key: Annotated[str, IDEMPOTENCY_KEY],
) -> Response[PoolShown]:
    command = VerifyPool(
        pool_id=pool_id,
        verification_id=id_from_key("ver_", request, f"verification {pool_id}"),
        verifier=data.verifier,
        report=data.report,
        verified_mg=data.verified_mg,
    )
    outcome = installation.write_now(command)
    return receipt(_pool(installation, pool_id), outcome)


@post(
    "/v1/pools/{pool_id:str}/lots",
    operation_id="issueLot",
    tags=["lots"],
    summary="Issue all whole kilograms that are verified",
    description="With serials; the remainder below a kilogram stays in the pool.",
    guards=[takes()],
    status_code=201,
    responses=_again(LotShown)
    | documented("pool-unknown", "less-than-one-kilogram", "idempotency-key-missing", "identity-reused"),
)
@threaded
def issue_lot(
    request: Request[Caller, Any, Any],
    pool_id: Annotated[str, POOL],
    installation: NamedDependency[Installation],
    idempotency_key: Annotated[str, IDEMPOTENCY_KEY],
) -> Response[LotShown]:
    lot_id = f"lot_{pool_id.removeprefix('pool_')}_{id_from_key('', request, f'lot {pool_id}')}"
    outcome = installation.write_now(IssueLot(pool_id=pool_id, lot_id=lot_id))
    issued = outcome.events[-1]
    assert isinstance(issued, LotIssued)
    return receipt(LotShown(lot_id, pool_id, issued.serial, issued.kg, issued.remainder_mg), outcome)


@get(
    "/v1/lots",
    operation_id="listLots",
    tags=["lots"],
    summary="All lots, and who holds their units",
    guards=[takes("auditor", "buyer")],
    responses=documented("position-not-reached", "cursor-invalid"),
)
@threaded
def list_lots(
    installation: NamedDependency[Installation],
    cursor: Annotated[str | None, CURSOR] = None,
    limit: Annotated[int, LIMIT] = 50,
    min_position: Annotated[str | None, MIN_POSITION] = None,
) -> LotPage:
    installation.reach(min_position)
    rows = installation.read_model.read(read_lots.lots, after=cursor, limit=limit)
    return LotPage(rows, following([row.position for row in rows], limit))


@post(
    "/v1/lots/{lot_id:str}/sales",
    operation_id="sellUnits",
    tags=["lots"],
    summary="Sell kilograms of a lot",
    guards=[takes()],
    status_code=201,
    responses=_again(SaleShown)
    | documented(
        "pool-unknown",
        "lot-unknown",
        "amount-invalid",
        "units-not-for-sale",
        "idempotency-key-missing",
        "identity-reused",
        body=True,
    ),
)
@threaded
def sell(
    request: Request[Caller, Any, Any],
    lot_id: Annotated[str, LOT],
    data: Annotated[Sale, example(buyer="huzhou-marathon", kg=1000, price_fen=5000)],
    installation: NamedDependency[Installation],
    idempotency_key: Annotated[str, IDEMPOTENCY_KEY],
) -> Response[SaleShown]:
    command = SellUnits(
        pool_id=_pool_of(lot_id),
        lot_id=lot_id,
        sale_id=id_from_key("sale_", request, f"sale {lot_id}"),
        buyer=data.buyer,
        kg=data.kg,
        price_fen=data.price_fen,
    )
    outcome = installation.write_now(command)
    sold = outcome.events[-1]
    assert isinstance(sold, UnitsSold)
    return receipt(SaleShown(sold.sale_id, lot_id, sold.buyer, sold.kg, sold.price_fen, sold.serials), outcome)


@get(
    "/v1/sales",
    operation_id="listSales",
    tags=["lots"],
    summary="All sales, and whether they are paid",
    guards=[takes("auditor")],
    responses=documented("position-not-reached", "cursor-invalid"),
)
@threaded
def list_sales(
    installation: NamedDependency[Installation],
    cursor: Annotated[str | None, CURSOR] = None,
    limit: Annotated[int, LIMIT] = 50,
    min_position: Annotated[str | None, MIN_POSITION] = None,
) -> SalePage:
    installation.reach(min_position)
    rows = installation.read_model.read(read_lots.sales, after=cursor, limit=limit)
    return SalePage(rows, following([row.position for row in rows], limit))


@post(
    "/v1/lots/{lot_id:str}/retirements",
    operation_id="retireUnits",
    tags=["lots"],
    summary="Use units, once and for good",
    guards=[takes("buyer")],
    status_code=201,
    responses=_again(RetirementShown)
    | documented(
        "pool-unknown",
        "lot-unknown",
        "amount-invalid",
        "units-not-held",
        "not-yours",
        "idempotency-key-missing",
        "identity-reused",
        body=True,
    ),
)
@threaded
def retire(
    request: Request[Caller, Any, Any],
    lot_id: Annotated[str, LOT],
    data: Annotated[
        Retirement,
        example(holder="huzhou-marathon", kg=500, purpose="event", beneficiary="湖州马拉松", reason="赛事碳中和"),
    ],
    installation: NamedDependency[Installation],
    idempotency_key: Annotated[str, IDEMPOTENCY_KEY],
) -> Response[RetirementShown]:
    must_own(request.user, "buyer", data.holder)
    command = RetireUnits(
        pool_id=_pool_of(lot_id),
        lot_id=lot_id,
        retirement_id=id_from_key("ret_", request, f"retirement {lot_id}"),
        holder=data.holder,
        kg=data.kg,
        purpose=data.purpose,
        beneficiary=data.beneficiary,
        reason=data.reason,
    )
    outcome = installation.write_now(command)
    done = outcome.events[-1]
    assert isinstance(done, UnitsRetired)
    told = RetirementShown(
        done.retirement_id,
        done.certificate,
        lot_id,
        done.holder,
        done.beneficiary,
        done.purpose,
        done.reason,
        done.kg,
        done.serials,
    )
    return receipt(told, outcome)


@get(
    "/v1/certificates/{certificate:str}",
    operation_id="getCertificate",
    tags=["lots"],
    summary="What a certificate stands for",
    description="Public: anyone may look up a retirement. No resident's data is in it.",
    responses=documented("certificate-unknown", "position-not-reached", public=True),
)
@threaded
def get_certificate(
    certificate: Annotated[str, PathParameter(max_length=128, pattern=PLAIN)],
    installation: NamedDependency[Installation],
    min_position: Annotated[str | None, MIN_POSITION] = None,
) -> read_lots.Certificate:
    installation.reach(min_position)
    found = installation.read_model.read(read_lots.certificate, certificate)
    if found is None:
        raise ApiError("certificate-unknown", certificate)
    return found


def _pool(installation: Installation, pool_id: str) -> PoolShown:
    pool: domain.Pool = installation.journal.state(f"pool/{pool_id}")
    if not pool.methodology:
        raise PoolUnknown(pool=pool_id)
    return PoolShown(
        pool.id,
        pool.methodology,
        pool.version,
        pool.from_month,
        pool.until_month,
        pool.gathering,
        pool.gathered_mg,
        pool.verified_mg,
        pool.issued_mg,
        list(pool.lots),
    )


def _pool_of(lot_id: str) -> str:
    return "pool_" + lot_id.split("_")[1]


handlers = [
    open_pool,
    list_pools,
    get_pool,
    gather,
    seal,
    verify_pool,
    issue_lot,
    list_lots,
    sell,
    list_sales,
    retire,
    get_certificate,
]
