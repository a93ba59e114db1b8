"""Offers: what a merchant gives for points, how many there are and who may have how many; campaigns whose budget they
share. They are ordered at terminals, as redemptions."""

from datetime import datetime
from typing import Annotated, Any

from litestar import Request, Response, get, patch, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import PathParameter, QueryParameter
from msgspec import UNSET, Struct, UnsetType, structs

from carbon_points.api.access import takes
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
from carbon_points.api.merchants import MERCHANT
from carbon_points.api.problems import documented
from carbon_points.directory import Caller
from carbon_points.domain.event import Amount, Event, Id, Text
from carbon_points.domain.merchant import Merchant, MerchantUnknown
from carbon_points.domain.offer import (
    Campaign,
    CampaignChanged,
    CampaignOpened,
    ChangeCampaign,
    ChangeOffer,
    Limit,
    Offer,
    OfferUnknown,
    OpenCampaign,
    Price,
    PublishOffer,
    Restock,
    Stock,
    Value,
)
from carbon_points.projections import offers as read_offers

OFFER = PathParameter(max_length=64, pattern=PLAIN, description="the offer's id, within its merchant")
CAMPAIGN = PathParameter(max_length=64, pattern=PLAIN, description="the campaign's id, within its merchant")
AT = QueryParameter(max_length=64, pattern=PLAIN, description="of this merchant only")
PUBLIC = QueryParameter(description="of public bodies only, or of others only")
OPEN = QueryParameter(description="only what can be had now, or only what cannot")


class NewOffer(Struct, frozen=True, forbid_unknown_fields=True):
    """`points` and `amount_fen` are of one item: what a resident gives, and what the merchant is owed. Without a
    `stock` there is always another. `per_resident`: what one may ever have; `per_resident_day`: in a day; `per_day`:
    all together in a day. It can be had from `opens_at` until before `closes_at`."""

    offer: Id
    title: Text
    points: Price
    amount_fen: Value
    stock: Stock | None = None
    per_resident: Limit | None = None
    per_resident_day: Limit | None = None
    per_day: Limit | None = None
    opens_at: datetime | None = None
    closes_at: datetime | None = None
    campaign: Id | None = None


class OfferChange(Struct, frozen=True, forbid_unknown_fields=True):
    """What is left out stays; null takes a limit or time away. `restock` adds to the stock, or takes from it."""

    title: Text | UnsetType = UNSET
    points: Price | UnsetType = UNSET
    amount_fen: Value | UnsetType = UNSET
    restock: Restock | UnsetType = UNSET
    per_resident: Limit | UnsetType | None = UNSET
    per_resident_day: Limit | UnsetType | None = UNSET
    per_day: Limit | UnsetType | None = UNSET
    opens_at: datetime | UnsetType | None = UNSET
    closes_at: datetime | UnsetType | None = UNSET
    withdrawn: bool | UnsetType = UNSET


class NewCampaign(Struct, frozen=True, forbid_unknown_fields=True):
    """What all orders of its offers together may cost, in points, in fen, or both."""

    campaign: Id
    title: Text
    budget_points: Amount | None = None
    budget_fen: Amount | None = None


class CampaignChange(Struct, frozen=True, forbid_unknown_fields=True):
    """What is left out stays; null takes a bound away. A campaign that is closed stays so."""

    title: Text | UnsetType = UNSET
    budget_points: Amount | UnsetType | None = UNSET
    budget_fen: Amount | UnsetType | None = UNSET
    closed: bool | UnsetType = UNSET


class OfferShown(Struct, frozen=True):
    """An offer as the log has it now. `stock` is left, `reserved` by orders that are on hold, `sold` less what came
    back. `open`: it can be had now, as far as its own terms, its campaign being open, and the stock say."""

    merchant: str
    public: bool
    offer: str
    title: str
    points: int
    amount_fen: int
    stock: int | None
    reserved: int
    sold: int
    per_resident: int | None
    per_resident_day: int | None
    per_day: int | None
    opens_at: datetime | None
    closes_at: datetime | None
    campaign: str | None
    withdrawn: bool
    open: bool


class CampaignShown(Struct, frozen=True):
    """`spent`: what its orders cost, those on hold too; not reckoned any more once it is closed."""

    merchant: str
    campaign: str
    title: str
    budget_points: int | None
    budget_fen: int | None
    spent_points: int | None
    spent_fen: int | None
    closed: bool = False


class OfferPage(Struct, frozen=True):
    data: list[read_offers.Offer]
    next_cursor: str | None


class Campaigns(Struct, frozen=True):
    data: list[CampaignShown]


def _again(kind: type) -> dict[int, ResponseSpec]:
    return {200: ResponseSpec(kind, description="The earlier answer again", generate_examples=False)}


_TERMS = ("offer-invalid", "offer-span-invalid", "time-invalid", "time-without-offset", "merchant-unknown")


@post(
    "/v1/merchants/{merchant:str}/offers",
    operation_id="publishOffer",
    tags=["offers"],
    summary="Put up an offer",
    guards=[takes()],
    status_code=201,
    responses=_again(OfferShown) | documented("campaign-unknown", "identity-reused", *_TERMS, body=True),
)
@threaded
def publish_offer(
    merchant: Annotated[str, MERCHANT],
    data: Annotated[
        NewOffer,
        example(offer="green-tea", title="莫干黄芽一杯", points=200, amount_fen=400, stock=50, per_resident_day=1),
    ],
    installation: NamedDependency[Installation],
) -> Response[OfferShown]:
    outcome = installation.write_now(PublishOffer(merchant=merchant, **structs.asdict(data)))
    return receipt(_shown(installation, merchant, data.offer), outcome)


@patch(
    "/v1/merchants/{merchant:str}/offers/{offer:str}",
    operation_id="changeOffer",
    tags=["offers"],
    summary="Change an offer, add to its stock, withdraw it or put it back",
    description="For orders from now on: those that are placed keep their price.",
    guards=[takes()],
    status_code=200,
    responses=documented(
        "offer-unknown",
        "restock-exceeds-stock",
        "nothing-to-change",
        "idempotency-key-missing",
        "identity-reused",
        *_TERMS,
        body=True,
    ),
)
@threaded
def change_offer(
    request: Request[Caller, Any, Any],
    merchant: Annotated[str, MERCHANT],
    offer: Annotated[str, OFFER],
    data: Annotated[OfferChange, example(restock=20, points=180)],
    installation: NamedDependency[Installation],
    idempotency_key: Annotated[str, IDEMPOTENCY_KEY],
) -> Response[OfferShown]:
    change_id = id_from_key("chg_", request, f"offer {merchant} {offer}")
    command = ChangeOffer(merchant=merchant, offer=offer, change_id=change_id, **structs.asdict(data))
    outcome = installation.write_now(command)
    return receipt(_shown(installation, merchant, offer), outcome, created=200)


@get(
    "/v1/merchants/{merchant:str}/offers/{offer:str}",
    operation_id="getOffer",
    tags=["offers"],
    summary="An offer, and how many are left",
    description="Read from the log itself: right at once.",
    guards=[takes("terminal", "app", "auditor")],
    responses=documented("merchant-unknown", "offer-unknown"),
)
@threaded
def get_offer(
    merchant: Annotated[str, MERCHANT], offer: Annotated[str, OFFER], installation: NamedDependency[Installation]
) -> OfferShown:
    return _shown(installation, merchant, offer)


@get(
    "/v1/offers",
    operation_id="listOffers",
    tags=["offers"],
    summary="What can be had for points",
    guards=[takes("terminal", "app", "auditor")],
    responses=documented("position-not-reached", "cursor-invalid"),
)
@threaded
def list_offers(
    installation: NamedDependency[Installation],
    merchant: Annotated[str | None, AT] = None,
    public: Annotated[bool | None, PUBLIC] = None,
    only_open: Annotated[bool | None, QueryParameter(name="open", description=OPEN.description)] = None,
    cursor: Annotated[str | None, CURSOR] = None,
    limit: Annotated[int, LIMIT] = 50,
    min_position: Annotated[str | None, MIN_POSITION] = None,
) -> OfferPage:
    installation.reach(min_position)
    rows = installation.read_model.read(
        read_offers.offers,
        now=installation.clock(),
        merchant=merchant,
        public=public,
        open_now=only_open,
        after=cursor,
        limit=limit,
    )
    return OfferPage(rows, following([row.position for row in rows], limit))


@post(
    "/v1/merchants/{merchant:str}/campaigns",
    operation_id="openCampaign",
    tags=["offers"],
    summary="Set a budget that offers of a merchant share",
    guards=[takes()],
    status_code=201,
    responses=_again(CampaignShown)
    | documented("campaigns-too-many", "offer-invalid", "merchant-unknown", "identity-reused", body=True),
)
@threaded
def open_campaign(
    merchant: Annotated[str, MERCHANT],
    data: Annotated[NewCampaign, example(campaign="spring-2027", title="春日绿行", budget_fen=2_000_000)],
    installation: NamedDependency[Installation],
) -> Response[CampaignShown]:
    outcome = installation.write_now(OpenCampaign(merchant=merchant, **structs.asdict(data)))
    return receipt(_campaign(installation, outcome.events[-1]), outcome)


@patch(
    "/v1/merchants/{merchant:str}/campaigns/{campaign:str}",
    operation_id="changeCampaign",
    tags=["offers"],
    summary="Change a campaign's budget, or close it",
    guards=[takes()],
    status_code=200,
    responses=documented(
        "campaign-unknown",
        "budget-below-spent",
        "nothing-to-change",
        "offer-invalid",
        "merchant-unknown",
        "idempotency-key-missing",
        "identity-reused",
        body=True,
    ),
)
@threaded
def change_campaign(
    request: Request[Caller, Any, Any],
    merchant: Annotated[str, MERCHANT],
    campaign: Annotated[str, CAMPAIGN],
    data: Annotated[CampaignChange, example(budget_fen=3_000_000)],
    installation: NamedDependency[Installation],
    idempotency_key: Annotated[str, IDEMPOTENCY_KEY],
) -> Response[CampaignShown]:
    change_id = id_from_key("chg_", request, f"campaign {merchant} {campaign}")
    command = ChangeCampaign(merchant=merchant, campaign=campaign, change_id=change_id, **structs.asdict(data))
    outcome = installation.write_now(command)
    return receipt(_campaign(installation, outcome.events[-1]), outcome, created=200)


@get(
    "/v1/merchants/{merchant:str}/campaigns",
    operation_id="listCampaigns",
    tags=["offers"],
    summary="A merchant's campaigns that are open, and what they have spent",
    description="Read from the log itself: right at once.",
    guards=[takes("auditor")],
    responses=documented("merchant-unknown"),
)
@threaded
def list_campaigns(merchant: Annotated[str, MERCHANT], installation: NamedDependency[Installation]) -> Campaigns:
    known = _known(installation, merchant)
    return Campaigns([_of_campaign(merchant, one) for _, one in sorted(known.campaigns.items())])


def _known(installation: Installation, merchant: str, *offers: str) -> Merchant:
    known: Merchant = installation.journal.state(f"merchant/{merchant}", [("offers", offer) for offer in offers])
    if not known.name:
        raise MerchantUnknown(merchant=merchant)
    return known


def _shown(installation: Installation, merchant: str, offer: str) -> OfferShown:
    known = _known(installation, merchant, offer)
    found: Offer | None = known.offers.get(offer)
    if found is None:
        raise OfferUnknown(offer=offer)
    running = found.campaign is None or found.campaign in known.campaigns
    return OfferShown(
        merchant,
        known.public,
        found.id,
        found.title,
        found.points,
        found.amount_fen,
        found.stock,
        found.reserved,
        found.sold,
        found.per_resident,
        found.per_resident_day,
        found.per_day,
        found.opens_at,
        found.closes_at,
        found.campaign,
        found.withdrawn,
        found.open(installation.clock()) and running and found.stock != 0,
    )


def _campaign(installation: Installation, event: Event) -> CampaignShown:
    """As it stands now or, where it is closed by now, as that event has it."""
    assert isinstance(event, CampaignOpened | CampaignChanged)
    if found := _known(installation, event.merchant).campaigns.get(event.campaign):
        return _of_campaign(event.merchant, found)
    said = (event.merchant, event.campaign, event.title, event.budget_points, event.budget_fen)
    return CampaignShown(*said, None, None, closed=True)


def _of_campaign(merchant: str, campaign: Campaign) -> CampaignShown:
    return CampaignShown(merchant, *structs.astuple(campaign))


handlers = [
    publish_offer,
    change_offer,
    get_offer,
    list_offers,
    open_campaign,
    change_campaign,
    list_campaigns,
]
