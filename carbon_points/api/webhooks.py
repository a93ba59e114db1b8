"""Webhooks: who is told what happens, what became of each delivery, and the events themselves, to be asked for."""

from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from typing import Annotated, Any

from litestar import Request, Response, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import (
    OpenAPIFormat,
    OpenAPIMediaType,
    OpenAPIResponse,
    OpenAPIType,
    Operation,
    PathItem,
    Reference,
    RequestBody,
    Schema,
)
from litestar.params import PathParameter, QueryParameter
from msgspec import Meta, Struct

from carbon_points.api.access import takes
from carbon_points.api.installation import (
    CURSOR,
    IDEMPOTENCY_KEY,
    LIMIT,
    PLAIN,
    REPLAYED_HEADER,
    Installation,
    allowed,
    example,
    following,
    id_from_key,
    threaded,
)
from carbon_points.api.problems import ApiError, documented
from carbon_points.directory import Caller
from carbon_points.domain import merchant as domain
from carbon_points.domain.event import Id
from carbon_points.domain.merchant import MerchantUnknown
from carbon_points.webhooks.deliveries import Delivery, DeliveryStatus
from carbon_points.webhooks.endpoints import Endpoint, Reason, Status
from carbon_points.webhooks.messages import EVENT_TYPES, EventType, Message, message, messages, place_of
from carbon_points.webhooks.sending import URL_MOST

WEBHOOK = PathParameter(pattern=r"^whe_[a-z2-7]{20}$", description="the endpoint's id")
EVENT = PathParameter(max_length=64, pattern=r"^evt_[a-z0-9_]{1,60}$", description="the event's id")
AFTER = QueryParameter(
    max_length=16_384,
    pattern=r"^(now|[0-9]{1,15}(\.[0-9]{1,15}){0,1023})$",
    description="`after` of the page before; `now` for what comes from here on. Default: from the beginning of the log",
)
SCANNED = 2_000  # entries of each partition that one page looks at
NUMBER_MOST = 10**15

Url = Annotated[str, Meta(min_length=1, max_length=URL_MOST)]
Sequence = Annotated[int, Meta(ge=1, le=NUMBER_MOST)]


class NewWebhook(Struct, frozen=True, forbid_unknown_fields=True):
    """Of one `merchant`, told what concerns it, or of one `app`, told everything: an app's key makes its own. Without
    `types`, of all."""

    url: Url
    merchant: Id | None = None
    app: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f/]+$(?!\n)")] | None = None
    types: list[EventType] = []


class WebhookChange(Struct, frozen=True, forbid_unknown_fields=True):
    """What is not said stays. Enabled again, an endpoint is told what it missed, unless `skip_missed`."""

    url: Url | None = None
    types: list[EventType] | None = None
    enabled: bool | None = None
    skip_missed: bool = False


class Span(Struct, frozen=True, forbid_unknown_fields=True):
    """Deliveries by their numbers, both ends included; with `status`, only those that stand so."""

    first: Sequence
    last: Sequence
    status: DeliveryStatus | None = None


class WebhookShown(Struct, frozen=True):
    """`sequence` is the number of its last delivery. `reason`, where it is disabled: asked, gone or failing."""

    endpoint_id: str
    url: str
    merchant: str | None
    app: str | None
    types: list[EventType]
    status: Status
    reason: Reason | None
    sequence: int
    created_at: datetime


class WebhookMade(Struct, frozen=True):
    """`secret` verifies what it gets; it is told here, and by a rotation."""

    endpoint_id: str
    url: str
    merchant: str | None
    app: str | None
    types: list[EventType]
    status: Status
    reason: Reason | None
    sequence: int
    created_at: datetime
    secret: str


class WebhookPage(Struct, frozen=True):
    data: list[WebhookShown]
    next_cursor: str | None


class SecretShown(Struct, frozen=True):
    """The former secret signs beside it for 24 hours."""

    endpoint_id: str
    secret: str


class DeliveryPage(Struct, frozen=True):
    data: list[Delivery]
    next_cursor: str | None


class Resent(Struct, frozen=True):
    deliveries: int


class EventShown(Struct, frozen=True):
    """`data` names what it is about; apps and operators are told whose it is."""

    type: EventType
    id: str
    created_at: datetime
    data: dict[str, Any]


class EventPage(Struct, frozen=True):
    """`after` is where the next page begins, also where `data` is empty. `more`: there is some already."""

    data: list[EventShown]
    after: str
    more: bool


# -- endpoints -------------------------------------------------------------------------------------------------------


@post(
    "/v1/webhooks",
    operation_id="createWebhook",
    tags=["webhooks"],
    summary="Be told what happens",
    description="By POST to `url`, signed as Standard Webhooks are, from now on. The secret is in the answer.",
    guards=[takes("app")],
    status_code=201,
    responses={
        200: ResponseSpec(WebhookMade, description="The earlier answer again", generate_examples=False),
        **documented(
            "idempotency-key-missing",
            "identity-reused",
            "merchant-unknown",
            "webhook-url-invalid",
            "not-yours",
            body=True,
        ),
    },
)
@threaded
def create_webhook(
    request: Request[Caller, Any, Any],
    data: Annotated[
        NewWebhook,
        example(url="https://pos.example.com/carbon-points", merchant="nanxun-teahouse", types=["settlement.paid"]),
    ],
    installation: NamedDependency[Installation],
    idempotency_key: Annotated[str, IDEMPOTENCY_KEY],
) -> Response[WebhookMade]:
    app = data.app
    if request.user.role == "app":
        if data.merchant is not None or data.app not in (None, request.user.owner):
            raise ApiError("not-yours", f"the key belongs to {request.user.owner}")
        app = request.user.owner
    if (data.merchant is None) == (app is None):
        raise ApiError("missing-field", "an endpoint is either a merchant's or an app's: name one of them")
    allowed(installation.settings).check(data.url)
    endpoint_id = id_from_key("whe_", request, "webhook")
    if data.merchant is not None:
        known: domain.Merchant = installation.journal.state(f"merchant/{data.merchant}")
        if not known.name:
            raise MerchantUnknown(merchant=data.merchant)
    made, secret, replayed = installation.endpoints.add(
        endpoint_id,
        url=data.url,
        merchant=data.merchant,
        app=app,
        types=data.types,
        positions=installation.journal.heads(),
        now=installation.clock(),
    )
    shown = _shown(made)
    told = WebhookMade(**{name: getattr(shown, name) for name in WebhookShown.__struct_fields__}, secret=secret)
    return _answer(told, replayed=replayed)


@get(
    "/v1/webhooks",
    operation_id="listWebhooks",
    tags=["webhooks"],
    summary="Endpoints; an app sees its own",
    guards=[takes("app")],
    responses=documented(),
)
@threaded
def list_webhooks(
    request: Request[Caller, Any, Any],
    installation: NamedDependency[Installation],
    merchant: Annotated[str | None, QueryParameter(max_length=64, pattern=PLAIN, description="of this one")] = None,
    cursor: Annotated[str | None, CURSOR] = None,
    limit: Annotated[int, LIMIT] = 50,
) -> WebhookPage:
    app = request.user.owner if request.user.role == "app" else None
    found = installation.endpoints.all(merchant=merchant, app=app, after=cursor, limit=limit)
    return WebhookPage([_shown(one) for one in found], following([one.endpoint_id for one in found], limit))


@get(
    "/v1/webhooks/{endpoint_id:str}",
    operation_id="getWebhook",
    tags=["webhooks"],
    summary="An endpoint, and whether it is told",
    guards=[takes("app")],
    responses=documented("webhook-unknown", "not-yours"),
)
@threaded
def get_webhook(
    request: Request[Caller, Any, Any],
    endpoint_id: Annotated[str, WEBHOOK],
    installation: NamedDependency[Installation],
) -> WebhookShown:
    return _shown(_theirs(request, installation, endpoint_id))


@patch(
    "/v1/webhooks/{endpoint_id:str}",
    operation_id="changeWebhook",
    tags=["webhooks"],
    summary="Change, disable or enable an endpoint",
    description="Counts for what happens a second later. Saying the present state again changes nothing.",
    guards=[takes("app")],
    status_code=200,
    responses=documented("webhook-unknown", "webhook-url-invalid", "not-yours", body=True),
)
@threaded
def change_webhook(
    request: Request[Caller, Any, Any],
    endpoint_id: Annotated[str, WEBHOOK],
    data: Annotated[WebhookChange, example(enabled=True)],
    installation: NamedDependency[Installation],
) -> WebhookShown:
    _theirs(request, installation, endpoint_id)
    if data.url is not None:
        allowed(installation.settings).check(data.url)
    changed = installation.endpoints.change(
        endpoint_id,
        now=installation.clock(),
        url=data.url,
        types=data.types,
        enabled=data.enabled,
        positions=installation.journal.heads() if data.skip_missed else None,
    )
    return _shown(changed)


@delete(
    "/v1/webhooks/{endpoint_id:str}",
    operation_id="removeWebhook",
    tags=["webhooks"],
    summary="Forget an endpoint, its secrets and its deliveries",
    guards=[takes("app")],
    status_code=200,
    responses=documented("webhook-unknown", "not-yours"),
)
@threaded
def remove_webhook(
    request: Request[Caller, Any, Any],
    endpoint_id: Annotated[str, WEBHOOK],
    installation: NamedDependency[Installation],
) -> WebhookShown:
    _theirs(request, installation, endpoint_id)
    return _shown(installation.endpoints.remove(endpoint_id))


@post(
    "/v1/webhooks/{endpoint_id:str}/secret",
    operation_id="rotateWebhookSecret",
    tags=["webhooks"],
    summary="A new secret; for a day both sign",
    guards=[takes("app")],
    status_code=201,
    responses={
        200: ResponseSpec(SecretShown, description="The earlier answer again", generate_examples=False),
        **documented("webhook-unknown", "idempotency-key-missing", "not-yours"),
    },
)
@threaded
def rotate_webhook_secret(
    request: Request[Caller, Any, Any],
    endpoint_id: Annotated[str, WEBHOOK],
    installation: NamedDependency[Installation],
    idempotency_key: Annotated[str, IDEMPOTENCY_KEY],
) -> Response[SecretShown]:
    _theirs(request, installation, endpoint_id)
    call = id_from_key("", request, f"rotation {endpoint_id}")
    secret, replayed = installation.endpoints.rotate(endpoint_id, call, now=installation.clock())
    return _answer(SecretShown(endpoint_id, secret), replayed=replayed)


# -- deliveries ------------------------------------------------------------------------------------------------------


@get(
    "/v1/webhooks/{endpoint_id:str}/deliveries",
    operation_id="listWebhookDeliveries",
    tags=["webhooks"],
    summary="What was told or is to be, the newest first",
    guards=[takes("app")],
    responses=documented("webhook-unknown", "cursor-invalid", "not-yours"),
)
@threaded
def list_webhook_deliveries(
    request: Request[Caller, Any, Any],
    endpoint_id: Annotated[str, WEBHOOK],
    installation: NamedDependency[Installation],
    status: Annotated[DeliveryStatus | None, QueryParameter(description="only those that stand so")] = None,
    cursor: Annotated[str | None, CURSOR] = None,
    limit: Annotated[int, LIMIT] = 50,
) -> DeliveryPage:
    _theirs(request, installation, endpoint_id)
    if cursor is not None and not (cursor.isascii() and cursor.isdigit() and int(cursor) <= NUMBER_MOST):
        raise ApiError("cursor-invalid")
    before = None if cursor is None else int(cursor)
    found = installation.deliveries.of(endpoint_id, status=status, before=before, limit=limit)
    return DeliveryPage(found, following([str(one.sequence) for one in found], limit))


@post(
    "/v1/webhooks/{endpoint_id:str}/resend",
    operation_id="resendWebhookDeliveries",
    tags=["webhooks"],
    summary="Send deliveries again",
    description="Under the same ids and numbers, from the first try on. Those that are kept: 30 days when over.",
    guards=[takes("app")],
    status_code=200,
    responses=documented("webhook-unknown", "not-yours", body=True),
)
@threaded
def resend_webhook_deliveries(
    request: Request[Caller, Any, Any],
    endpoint_id: Annotated[str, WEBHOOK],
    data: Annotated[Span, example(first=1, last=20, status="failed")],
    installation: NamedDependency[Installation],
) -> Resent:
    _theirs(request, installation, endpoint_id)
    now = installation.clock()
    return Resent(installation.deliveries.resend(endpoint_id, data.first, data.last, now=now, status=data.status))


@post(
    "/v1/webhooks/{endpoint_id:str}/tests",
    operation_id="testWebhook",
    tags=["webhooks"],
    summary="Send an event that is only a test",
    guards=[takes("app")],
    status_code=201,
    responses={
        200: ResponseSpec(Delivery, description="The earlier answer again", generate_examples=False),
        **documented("webhook-unknown", "idempotency-key-missing", "not-yours"),
    },
)
@threaded
def tell_test(
    request: Request[Caller, Any, Any],
    endpoint_id: Annotated[str, WEBHOOK],
    installation: NamedDependency[Installation],
    idempotency_key: Annotated[str, IDEMPOTENCY_KEY],
) -> Response[Delivery]:
    _theirs(request, installation, endpoint_id)
    name = id_from_key("evt_test_", request, f"test {endpoint_id}")
    told, replayed = installation.deliveries.test(endpoint_id, name, now=installation.clock())
    return _answer(told, replayed=replayed)


# -- events ----------------------------------------------------------------------------------------------------------


@get(
    "/v1/events",
    operation_id="listEvents",
    tags=["webhooks"],
    summary="What webhooks tell, to be asked for",
    description="Each partition's in the order of the log, a stretch a page. Ask again with `after` of the answer.",
    guards=[takes("app")],
    responses=documented(),
)
@threaded
def list_events(
    installation: NamedDependency[Installation],
    after: Annotated[str | None, AFTER] = None,
    merchant: Annotated[str | None, QueryParameter(max_length=64, pattern=PLAIN, description="of this one")] = None,
    limit: Annotated[int, LIMIT] = 50,
) -> EventPage:
    heads = installation.journal.heads()
    if after == "now":
        return EventPage([], _cursor(heads), more=False)
    at = dict.fromkeys(heads, 0) if after is None else dict(zip(heads, map(int, after.split(".")), strict=False))
    if len(at) != len(heads) or (after and after.count(".") + 1 != len(heads)):
        raise ApiError("parameter-invalid", f"after has a position for each of {len(heads)} partitions")
    found: list[Message] = []
    for partition, head in heads.items():
        share = -(-(limit - len(found)) // (len(heads) - partition))  # what one leaves is the next ones'
        read, at[partition] = _read(installation, partition, at[partition], head, share, merchant)
        found += read
    found.sort(key=lambda one: one.created_at)
    more = any(at[partition] < head for partition, head in heads.items())
    return EventPage([_event(one, whole=True) for one in found], _cursor(at), more=more)


@get(
    "/v1/events/{event_id:str}",
    operation_id="getEvent",
    tags=["webhooks"],
    summary="One event",
    guards=[takes("app", "auditor", "terminal")],
    responses=documented("event-unknown", "not-yours"),
)
@threaded
def get_event(
    request: Request[Caller, Any, Any],
    event_id: Annotated[str, EVENT],
    installation: NamedDependency[Installation],
) -> EventShown:
    place = place_of(event_id)
    if place is None or place[0] >= len(installation.journal.partitions) or place[1] < 1:
        raise ApiError("event-unknown", event_id)
    entry = next(installation.journal.entries(place[0], place[1] - 1, place[1]), None)
    told = message(entry) if entry else None
    if told is None or told.id != event_id:
        raise ApiError("event-unknown", event_id)
    terminal = request.user.role == "terminal"
    if terminal and request.user.owner.partition("/")[0] != told.merchant:
        raise ApiError("not-yours", f"the key belongs to {request.user.owner}")
    return _event(told, whole=not terminal)


def _read(
    installation: Installation, partition: int, after: int, head: int, most: int, merchant: str | None
) -> tuple[list[Message], int]:
    """Up to so many messages of a stretch, and the position up to which they are all there is."""
    if after >= head or most <= 0:
        return [], after
    entries = list(islice(installation.journal.entries(partition, after, head), SCANNED))
    wanted: Iterator[Message] = (one for one in messages(entries) if merchant in (None, one.merchant))
    found = list(islice(wanted, most))
    return found, found[-1].position if len(found) == most else entries[-1].position


def _cursor(positions: dict[int, int]) -> str:
    return ".".join(str(position) for _, position in sorted(positions.items()))


def _event(told: Message, *, whole: bool) -> EventShown:
    return EventShown(told.type, told.id, told.created_at, told.told(whole=whole))


def _theirs(request: Request[Caller, Any, Any], installation: Installation, endpoint_id: str) -> Endpoint:
    """An endpoint that the caller may look at. Raises WebhookUnknown, ApiError."""
    found = installation.endpoints.one(endpoint_id)
    if request.user.role == "app" and found.app != request.user.owner:
        raise ApiError("not-yours", f"the key belongs to {request.user.owner}")
    return found


def _shown(one: Endpoint) -> WebhookShown:
    return WebhookShown(
        one.endpoint_id,
        one.url,
        one.merchant,
        one.app,
        list(one.types),
        one.status,
        one.reason,
        one.sequence,
        one.created_at,
    )


def _answer(body: Any, *, replayed: bool) -> Response[Any]:
    headers = {REPLAYED_HEADER: "true"} if replayed else {}
    return Response(body, status_code=200 if replayed else 201, headers=headers)


# -- what is sent, for the API description ---------------------------------------------------------------------------


def _sent(name: EventType) -> PathItem:
    said = {
        "type": Schema(type=OpenAPIType.STRING, const=name),
        "id": Schema(type=OpenAPIType.STRING, description="the same each time it is sent; also `webhook-id`"),
        "sequence": Schema(type=OpenAPIType.INTEGER, minimum=1, description="to this endpoint, without gaps"),
        "created_at": Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.DATE_TIME),
        "data": Schema(type=OpenAPIType.OBJECT, description="ids and amounts"),
    }
    body = Schema(type=OpenAPIType.OBJECT, properties={**said}, required=list(said))
    return PathItem(
        post=Operation(
            operation_id=name,
            tags=["webhooks"],
            summary=name,
            description="Signed as Standard Webhooks are: `webhook-id`, `webhook-timestamp`, `webhook-signature`.",
            request_body=RequestBody(content={"application/json": OpenAPIMediaType(schema=body)}, required=True),
            responses={"2XX": OpenAPIResponse(description="Taken. Anything else is tried again, for three days.")},
        )
    )


sent: dict[str, PathItem | Reference] = {name: _sent(name) for name in EVENT_TYPES}

handlers = [
    create_webhook,
    list_webhooks,
    get_webhook,
    change_webhook,
    remove_webhook,
    rotate_webhook_secret,
    list_webhook_deliveries,
    resend_webhook_deliveries,
    tell_test,
    list_events,
    get_event,
]
