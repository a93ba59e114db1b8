"""The API description: complete, stable, with examples that work."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.city import City
from tests.api.test_access import PLACES, PUBLIC, operations

WRITES = {"POST", "PATCH", "PUT", "DELETE"}


@pytest.fixture(scope="module")
def description(city: City) -> Any:
    return city.get("/docs/openapi.json", by="").json()


@pytest.fixture(scope="module")
def calls(description: Any) -> dict[str, tuple[str, str, Any]]:
    """Each operation by its id: method, path and what is said of it."""
    return {
        told["operationId"]: (method.upper(), path, told)
        for path, methods in description["paths"].items()
        for method, told in methods.items()
    }


def bodies(calls: dict[str, tuple[str, str, Any]]) -> Iterator[tuple[str, str, Any]]:
    """The operation, path and schema of each body that is sent as JSON."""
    for name, (_, path, told) in calls.items():
        for media, content in told.get("requestBody", {}).get("content", {}).items():
            if media == "application/json":
                yield name, path, content["schema"]


def test_it_is_openapi_3_1_and_says_what_this_is(description: Any) -> None:
    assert description["openapi"].startswith("3.1.")
    assert description["info"]["title"] == "carbon_points"
    assert description["info"]["version"]
    assert description["info"]["license"]["identifier"] == "Apache-2.0"
    assert "碳普惠" in description["info"]["description"]
    schemes = description["components"]["securitySchemes"]
    assert schemes["key"] == {"type": "http", "scheme": "bearer"}
    assert (schemes["signature"]["type"], schemes["signature"]["name"]) == ("apiKey", "Signature")


def test_operations_are_those_of_the_list_and_take_the_roles_that_it_says(
    calls: dict[str, tuple[str, str, Any]],
) -> None:
    told = {
        name: [method, path, ",".join(sorted(r["key"][0] for r in said["security"] if "key" in r)) or "public"]
        for name, (method, path, said) in calls.items()
    }
    listed = {name: rest for name, *rest in operations()}
    assert told == listed, "tests/api/operations.txt is what callers were promised: add to it, rename nothing"
    assert {name for name, (*_, roles) in told.items() if roles == "public"} == PUBLIC


def test_every_operation_has_a_summary_a_tag_and_a_described_answer(
    description: Any, calls: dict[str, tuple[str, str, Any]]
) -> None:
    tags = {tag["name"] for tag in description["tags"]}
    for name, (_, _, told) in calls.items():
        assert told["summary"], name
        assert set(told["tags"]) <= tags, name
        assert any(status.startswith("2") and "content" in said for status, said in told["responses"].items()), name


def test_every_write_documents_its_problems_and_that_it_may_be_repeated(
    calls: dict[str, tuple[str, str, Any]],
) -> None:
    for name, (method, _, told) in calls.items():
        if method not in WRITES:
            continue
        problems = {s: said for s, said in told["responses"].items() if s[0] in "45"}
        needed = {"400", "503"} if name in PUBLIC else {"400", "401", "403", "503"}
        assert needed <= set(problems), name
        for status, said in problems.items():
            assert said["description"], (name, status)
            assert list(said["content"]) == ["application/problem+json"], (name, status)
            assert said["content"]["application/problem+json"]["examples"], (name, status)
        assert "201" not in told["responses"] or "200" in told["responses"], (
            f"{name} does not say what a repeat answers"
        )


def test_every_body_has_an_example_that_the_call_can_read(city: City, calls: dict[str, tuple[str, str, Any]]) -> None:
    """What is told of the example is about what is there or not, never about its form."""
    seen = set()
    for name, path, schema in bodies(calls):
        seen.add(name)
        for example in schema["examples"]:
            method = calls[name][0]
            answer = city.call(method, path.format(**PLACES), example)
            assert answer.status_code not in {400, 500}, (name, answer.text)
    assert len(seen) >= 18


def test_every_parameter_that_is_a_text_is_bounded(calls: dict[str, tuple[str, str, Any]]) -> None:
    for name, (_, _, told) in calls.items():
        for parameter in told.get("parameters", ()):
            schema = parameter["schema"]
            kinds = [schema.get("type"), *(one.get("type") for one in schema.get("oneOf", ()))]
            dated = any(one.get("format") == "date" for one in (schema, *schema.get("oneOf", ())))
            if "string" in kinds and not dated:
                assert {"pattern", "enum", "maxLength"} & set(schema), (name, parameter["name"])


def test_every_schema_that_is_named_is_there(description: Any) -> None:
    named: set[str] = set()

    def look(at: Any) -> None:
        if isinstance(at, dict):
            named.update([at["$ref"].rpartition("/")[2]] if "$ref" in at else [])
            for value in at.values():
                look(value)
        elif isinstance(at, list):
            for value in at:
                look(value)

    look(description)
    assert named == set(description["components"]["schemas"])
