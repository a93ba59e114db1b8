"""Whatever the API description allows, and much that it does not, is answered as the description says."""

from typing import Any, NamedTuple

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode, SerializationContext
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from tests.api.city import City, hold
from tests.api.test_access import operations
from tests.api.test_lots import MAY, gathered, pool_of, sale, traders, verified

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
# There is nothing in these calls that could be wrong; and a batch is judged line by line, never refused for one.
NEVER_WRONG = {"getHealth", "getReadiness", "getVersion", "listSources", "listMethodologies", "recordActions"}


@schemathesis.serializer("application/x-ndjson")
def ndjson(_: SerializationContext, value: Any) -> bytes:
    return str(value).encode(errors="replace")


class Known(NamedTuple):
    """What is there: by the names of path parameters and of fields of bodies."""

    places: dict[str, str]
    fields: dict[str, Any]


@pytest.fixture(scope="module")
def schema(served_apart: City) -> Any:
    return schemathesis.openapi.from_url(f"{served_apart.http.base_url}/docs/openapi.json")


@pytest.fixture(scope="module")
def known(served_apart: City) -> Known:
    """A city in which every kind of thing is there once, so that calls meet more than what is not."""
    city = served_apart
    resident = city.resident(points=10_000, trade=True)
    traders(city, 5)
    pool = pool_of(city, MAY)
    verified(city, pool, gathered(city, pool)[1]["gathered_mg"])
    lot = city.done(city.post(f"/v1/pools/{pool}/lots"))["lot_id"]
    sold = city.done(city.post(f"/v1/lots/{lot}/sales", sale(2)))["sale_id"]
    captured = city.captured(resident, 100)
    settled = city.done(city.post("/v1/merchants/shop/settlements"))["settlement_id"]
    city.done(city.post("/v1/merchants/shop/campaigns", {"campaign": "spring", "title": "春"}))
    tea = {"offer": "tea", "title": "茶", "points": 1, "amount_fen": 1, "campaign": "spring"}
    city.done(city.post("/v1/merchants/shop/offers", tea))
    endpoint = city.done(city.post("/v1/webhooks", {"url": "https://127.0.0.1.invalid/", "merchant": "shop"}))
    event = city.done(city.get("/v1/events", merchant="shop"))["data"][0]["id"]
    places = {
        "resident": resident,
        "action_id": city.recorded()["action_id"],
        "redemption_id": captured,
        "pool_id": pool,
        "lot_id": lot,
        "settlement_id": settled,
        "endpoint_id": endpoint["endpoint_id"],
        "event_id": event,
        "consent_id": city.get(f"/v1/residents/{resident}").json()["consents"][0]["id"],
        "merchant": "shop",
        "terminal": "t2",
        "offer": "tea",
        "campaign": "spring",
        "source": "szt",
        "methodology": "bus",
    }
    fields = hold(resident, 7) | {"source": "szt", "behaviour": "green", "unit": "km", "quantity": "1"}
    fields |= {"occurred_at": "2025-06-15T11:00:00+08:00", "sale_id": sold, "lot_id": lot, "verified_mg": 1}
    fields |= {"methodology": "green", "version": "1", "buyer": "marathon", "holder": "marathon", "kg": 1}
    fields |= {"offer": "tea", "campaign": "spring"}
    return Known(places, fields)


def aimed(case: Case, known: Known) -> Case:
    """The case at something that is there."""
    case.path_parameters.update({n: v for n, v in known.places.items() if n in case.path_parameters})
    if isinstance(case.body, dict):
        replaced = {n: v for n, v in known.fields.items() if n in case.body}
        if "resident" in replaced and "record_id" in case.body:
            del replaced["resident"]
        case.body = case.body | replaced
    return case


def examples(share: int) -> settings:
    return settings(
        max_examples=max(settings().max_examples // share, 1),
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        deadline=None,
        database=None,
    )


CALLS = pytest.mark.parametrize(
    ("operation", "method", "path"),
    [(operation, method, path) for operation, method, path, _ in operations()],
    ids=lambda value: value if value.isalnum() and not value.isupper() else "",
)


@CALLS
def test_what_the_description_allows_is_answered_as_it_says(
    served_apart: City, schema: Any, known: Known, operation: str, method: str, path: str
) -> None:
    keys = {"Authorization": f"Bearer {served_apart.keys['operator']}"}

    @given(case=schema[path][method].as_strategy(generation_mode=GenerationMode.POSITIVE), there=st.booleans())
    @examples(3)
    def holds(case: Case, there: bool) -> None:
        (aimed(case, known) if there else case).call_and_validate(headers=keys, checks=CHECKS)

    holds()


@pytest.mark.parametrize(
    ("operation", "method", "path"),
    [(operation, method, path) for operation, method, path, _ in operations() if operation not in NEVER_WRONG],
    ids=lambda value: value if value.isalnum() and not value.isupper() else "",
)
def test_what_the_description_does_not_allow_is_refused_as_it_says(
    served_apart: City, schema: Any, operation: str, method: str, path: str
) -> None:
    keys = {"Authorization": f"Bearer {served_apart.keys['operator']}"}

    @given(case=schema[path][method].as_strategy(generation_mode=GenerationMode.NEGATIVE))
    @examples(3)
    def holds(case: Case) -> None:
        case.call_and_validate(headers=keys, checks=[*CHECKS, negative_data_rejection])

    holds()
