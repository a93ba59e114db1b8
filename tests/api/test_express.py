"""The short way of a report answers as the framework's own does, whatever comes."""

import re
import shutil
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep
from typing import Any

import msgspec
import pytest

from carbon_points import directory as of_directory
from carbon_points.api import actions, express
from carbon_points.journal.partition import Partition
from tests.api.city import Answer, City, apart, wait_for
from tests.api.conftest import Founded

MINE = ("x-request-id", "date")  # of each call its own


@pytest.fixture
def city(served_city: City) -> City:
    """The short way is the server's: there is none without."""
    return served_city


@pytest.fixture
def calls(city: City, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many reports went which way. A key that was known a moment ago is known, however slow the machine is."""
    monkeypatch.setattr(of_directory, "FRESH_SECONDS", 600.0)
    city.installation.directory._callers.clear()
    counted = {"express": 0, "handler": 0}
    ask, record = express.Express._ask, actions.record

    def asking(*args: Any) -> None:
        counted["express"] += 1
        ask(*args)

    async def recording(*args: Any) -> Any:
        counted["handler"] += 1
        return await record(*args)

    monkeypatch.setattr(express.Express, "_ask", asking)
    monkeypatch.setattr(actions, "record", recording)
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
    assert calls["express"] == 1
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
    told = said(city, raw(city, b"abcde").replace(b"Content-Length: 5", b"Content-Length: " + b"0" * 5_000 + b"5"))
    assert told.startswith(b"HTTP/1.1 4")
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


# -- on the wire -----------------------------------------------------------------------------------------------------


def raw(city: City, body: bytes, *more: str, version: str = "1.1") -> bytes:
    head = [
        f"POST /v1/actions HTTP/{version}",
        "Host: here",
        f"Authorization: Bearer {city.keys['source']}",
        f"Content-Length: {len(body)}",
        *more,
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


def said(city: City, *parts: bytes, answers: int = 1) -> bytes:
    """All that is answered to what is sent part by part, until the server closes, or has given so many answers and is
    silent."""
    city.get("/v1/actions", by="source")
    address = city.http.base_url
    with socket.create_connection((address.host, address.port), timeout=30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            connection.sendall(part)
            sleep(0.02)
        told = b""
        try:
            while more := connection.recv(65_536):
                told += more
                if len(re.findall(rb"HTTP/1.1 [2-5]", told)) >= answers:
                    connection.settimeout(0.3)
        except TimeoutError:
            pass
        return told


def test_what_comes_in_pieces_is_one_report(city: City, calls: dict[str, int]) -> None:
    whole = raw(city, msgspec.json.encode(city.report()))
    told = said(city, *(whole[n : n + 50] for n in range(0, len(whole), 50)))
    assert told.startswith(b"HTTP/1.1 201 ")
    assert calls == {"express": 1, "handler": 0}


def test_reports_sent_before_the_first_is_answered_are_answered_in_their_order(city: City) -> None:
    bodies = [city.report(), city.report(quantity="-1"), city.report(), city.report()]
    told = said(city, b"".join(raw(city, msgspec.json.encode(body)) for body in bodies), answers=4)
    assert re.findall(rb"HTTP/1.1 ([0-9]+) ", told) == [b"201", b"422", b"201", b"201"]
    records = [told.find(body["record_id"].encode() + b'"') for body in (bodies[0], *bodies[2:])]
    assert -1 not in records
    assert records == sorted(records)


@pytest.mark.parametrize(
    ("more", "version"), [(["Connection: close"], "1.1"), ([], "1.0"), (["Expect: 100-continue"], "1.1")]
)
def test_a_caller_of_other_habits_is_answered_all_the_same(
    city: City, calls: dict[str, int], more: list[str], version: str
) -> None:
    told = said(city, raw(city, msgspec.json.encode(city.report()), *more, version=version))
    assert b" 201 " in told
    assert calls == {"express": 0, "handler": 1}


def test_a_caller_who_leaves_before_the_answer_has_reported(city: City) -> None:
    body = city.report()
    address = city.http.base_url
    city.get("/v1/actions", by="source")
    with socket.create_connection((address.host, address.port)) as connection:
        connection.sendall(raw(city, msgspec.json.encode(body)))
    while (again := city.post("/v1/actions", body, by="source")).status_code == 201:
        body = city.report()  # it was not read before this one came: once more
        with socket.create_connection((address.host, address.port)) as connection:
            connection.sendall(raw(city, msgspec.json.encode(body)))
            sleep(0.1)
    assert again.json()["verdict"] == "duplicate"


def test_the_id_that_a_caller_gives_a_call_is_told_again_and_no_other_header_is_made_of_it(city: City) -> None:
    told = said(city, raw(city, msgspec.json.encode(city.report()), "X-Request-Id: mine-1"))
    assert b"x-request-id: mine-1\r\n" in told
    told = said(city, raw(city, msgspec.json.encode(city.report()), "X-Request-Id: mine\xe4"))
    assert b"mine" not in told
    assert told.count(b"x-request-id: ") == 1


def test_many_at_once_are_each_given_their_own_answer(city: City, calls: dict[str, int]) -> None:
    city.get("/v1/actions", by="source")
    bodies = [city.report() for _ in range(200)]
    with ThreadPoolExecutor(32) as threads:
        answers = list(threads.map(lambda body: city.post("/v1/actions", body, by="source"), bodies))
    assert [a.status_code for a in answers] == [201] * 200
    assert [a.json()["record_id"] for a in answers] == [body["record_id"] for body in bodies]
    assert calls["express"] == 200


def test_a_refusal_does_not_start_the_clock_of_a_quiet_caller_while_the_next_call_is_pending(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    appended, init = Partition.appended, express.Express.__init__

    def slow(*args: Any) -> Any:
        sleep(0.8)
        return appended(*args)

    def short(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.timeout_keep_alive = 0.2

    monkeypatch.setattr(Partition, "appended", slow)
    monkeypatch.setattr(express.Express, "__init__", short)
    told = said(city, raw(city, b'{"bad":1}') + raw(city, msgspec.json.encode(city.report())), answers=2)
    assert re.findall(rb"HTTP/1.1 ([0-9]+) ", told) == [b"400", b"201"]


def refused(place: tuple[str, int]) -> bool:
    """Whether nobody listens there any more: a server that stops ends the calls that are there, and takes no others."""
    try:
        socket.create_connection(place, 30).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_report_that_is_half_here_when_the_server_is_told_to_stop_is_answered_once_its_rest_comes(
    founded: Founded, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(founded[0], tmp_path / "data"))
    with apart({"CARBON_DATA_DIR": str(folder)}, founded[1]) as (city, process):
        city.get("/v1/actions", by="source")
        place = city.http.base_url.host, city.http.base_url.port
        goes_on, leaves = city.report(), city.report()
        with socket.create_connection(place, 30) as one, socket.create_connection(place, 30) as other:
            for connection, report in ((one, goes_on), (other, leaves)):
                connection.sendall(raw(city, msgspec.json.encode(report))[:-20])
            for _ in range(2):  # in the first of its turns it accepts them, in the next at the latest it has read them
                city.get("/v1/actions", by="source")
            process.terminate()
            wait_for(lambda: refused(place))
            one.sendall(msgspec.json.encode(goes_on)[-20:])
            told = b"".join(iter(lambda: one.recv(65_536), b""))
        assert told.startswith(b"HTTP/1.1 201 ")
        assert b"\r\nconnection: close\r\n" in told
        assert process.wait(20) in {0, -signal.SIGTERM}
        found = [city.installation.journal.find(("action", "szt", r["record_id"])) for r in (goes_on, leaves)]
        assert [entry is not None for entry in found] == [True, False]
