"""The short way of a report answers as the framework's own does, whatever comes."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from carbon_points.api import actions, express
from tests.api.city import Answer, City

MINE = ("x-request-id", "date")  # of each call its own


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many reports went which way."""
    counted = {"express": 0, "handler": 0}
    record = actions.record

    def by(way: str) -> Any:
        async def counting(*args: Any) -> Any:
            counted[way] += 1
            return await record(*args)

        return counting

    monkeypatch.setattr(express, "record", by("express"))
    monkeypatch.setattr(actions, "record", by("handler"))
    return counted


def both(city: City, raw: bytes, by: str = "source") -> tuple[Answer, Answer]:
    """The answers of the two ways: a body of no said length goes the long one."""
    city.get("/v1/actions", by=by)  # the key is known from a moment ago

    def piece() -> Iterator[bytes]:
        yield raw

    headers = {"Authorization": f"Bearer {city.keys[by]}"}
    short = city.http.post("/v1/actions", content=raw, headers=headers)
    return short, city.http.post("/v1/actions", content=piece(), headers=headers)


def test_a_report_and_its_repeat_are_answered_alike(city: City, calls: dict[str, int]) -> None:
    made, again = both(city, msgspec.json.encode(city.report()))
    assert calls == {"express": 1, "handler": 1}
    assert (made.status_code, again.status_code) == (201, 200)
    assert made.json() | {"verdict": "duplicate"} == again.json()
    assert {*again.headers} - {*made.headers} == {"idempotency-replayed"}
    for name in ("carbon-position", "content-type", "content-security-policy"):
        assert made.headers[name] == again.headers[name]


@pytest.mark.parametrize(
    ("change", "by"),
    [
        ({"quantity": "-1"}, "source"),
        ({"quantity": 1}, "source"),
        ({"quantity": "NaN"}, "source"),
        ({"unit": "km"}, "source"),
        ({"behaviour": "flying"}, "source"),
        ({"occurred_at": "2025-06-15T11:00:00"}, "source"),
        ({"occurred_at": "2125-06-15T11:00:00+08:00"}, "source"),
        ({"source": "hz"}, "source"),
        ({"source": "nobody"}, "operator"),
        ({"unknown": "field"}, "source"),
        ({"record_id": ""}, "source"),
    ],
)
def test_what_is_refused_is_refused_alike(city: City, calls: dict[str, int], change: dict[str, Any], by: str) -> None:
    short, long = both(city, msgspec.json.encode(city.report() | change), by)
    assert calls["express"] + calls["handler"] in (0, 2)
    assert short.status_code == long.status_code
    assert 400 <= short.status_code < 500
    own, other = short.json(), long.json()
    assert own.pop("request_id") != other.pop("request_id")
    assert own == other
    assert {k for k in short.headers if k not in MINE} == {k for k in long.headers if k not in MINE}


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b"[]", b'{"source":"szt"}', b"null"])
def test_what_is_no_report_is_refused_alike(city: City, raw: bytes) -> None:
    short, long = both(city, raw)
    own, other = short.json(), long.json()
    assert own.pop("request_id") != other.pop("request_id")
    assert (short.status_code, own) == (long.status_code, other)


@pytest.mark.parametrize("by", ["auditor", "terminal"])
def test_a_key_of_another_role_does_not_come_this_way(city: City, calls: dict[str, int], by: str) -> None:
    city.get("/v1/city/days", by=by)
    answer = city.post("/v1/actions", city.report(), by=by)
    assert (answer.status_code, answer.json()["code"]) == (403, "role-not-allowed")
    assert calls["express"] == 0


@pytest.mark.parametrize(
    "told", [("wrong", "source"), ("source", "wrong"), ("source", "other source"), ("other source", "source")]
)
def test_of_two_keys_neither_way_takes_another_than_the_other(
    city: City, calls: dict[str, int], told: tuple[str, str]
) -> None:
    for by in ("source", "other source"):
        city.get("/v1/actions", by=by)
    headers = [("Authorization", f"Bearer {city.keys.get(by, 'cp_live_wrong')}") for by in told]
    city.http.post("/v1/actions", content=msgspec.json.encode(city.report()), headers=headers)
    assert calls["express"] == 0


def test_a_length_of_thousands_of_digits_is_no_mistake_of_ours(city: City, calls: dict[str, int]) -> None:
    city.get("/v1/actions", by="source")
    headers = {"Authorization": f"Bearer {city.keys['source']}", "Content-Length": "0" * 5_000 + "5"}
    answer = city.http.post("/v1/actions", content=b"abcde", headers=headers)
    assert 400 <= answer.status_code < 500
    assert calls["express"] == 0


def test_a_key_that_is_revoked_while_a_batch_is_sent_stops_the_batch(own_city: City) -> None:
    directory = own_city.installation.directory
    key, secret = directory.issue_key("source", "szt")

    def lines() -> Iterator[bytes]:
        yield msgspec.json.encode(own_city.report()) + b"\n"
        directory.revoke_key(key.key_id)

    headers = {"Authorization": f"Bearer {secret}"}
    answer = own_city.http.post("/v1/actions/batch", content=lines(), headers=headers)
    assert msgspec.json.decode(answer.content.splitlines()[-1])["code"] == "unauthenticated"


def test_a_body_that_is_too_long_is_refused_before_it_is_read(city: City, calls: dict[str, int]) -> None:
    city.get("/v1/actions", by="source")
    assert city.post("/v1/actions", city.report(record_id="x" * 300_000), by="source").status_code == 413
    assert calls["express"] == 0
