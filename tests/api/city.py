"""A city with somebody of every role, spoken to over HTTP: two sources, two merchants, two buyers, and residents."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import count
from threading import Thread
from time import monotonic, sleep
from typing import Any

import httpx
import msgspec
import uvicorn
from litestar.testing import TestClient

from carbon_points import codes
from carbon_points.api.app import create_app
from carbon_points.api.installation import Installation, open_installation
from carbon_points.api.orders import Finisher
from carbon_points.api.server import configured
from carbon_points.directory import Role
from carbon_points.settings import load
from tests.conftest import Clock
from tests.given import table

# Who is called by which name here: role and owner of the key.
CALLERS: dict[str, tuple[Role, str]] = {
    "operator": ("operator", "hall"),
    "app": ("app", "city-app"),
    "auditor": ("auditor", "audit"),
    "source": ("source", "szt"),
    "other source": ("source", "hz"),
    "terminal": ("terminal", "shop/t1"),
    "next terminal": ("terminal", "shop/t2"),
    "other terminal": ("terminal", "mall/t1"),
    "buyer": ("buyer", "marathon"),
    "other buyer": ("buyer", "airline"),
}
POINTS = 100  # of a kilometre of `green`, and of its kilogram
SINCE = "2015-01-01T00:00:00+08:00"
Answer = httpx.Response


def green() -> str:
    """A kilogram and a hundred points a kilometre, uncapped: what takes many rides elsewhere, in one report."""
    return table("green", grams="1000", per="1 km", points=POINTS, most="1000")


class City:
    """`http` speaks to the installation, which is there to be looked at, not to be asked instead."""

    def __init__(self, http: httpx.Client, installation: Installation, keys: dict[str, str]) -> None:
        self.http, self.installation, self.keys = http, installation, keys
        self._new = count()
        self._codes: dict[tuple[str, ...], str] = {}

    def name(self, of: str) -> str:
        """A name that nobody had."""
        return f"{of}-{next(self._new)}"

    # -- calls -------------------------------------------------------------------------------------------------------

    def call(self, method: str, path: str, body: object = None, *, by: str = "operator", **more: Any) -> Answer:
        """`key` is the Idempotency-Key: a new one if it is not said, none if it is None. `raw` is a body as bytes."""
        headers = {"Authorization": f"Bearer {self.keys[by]}"} if by else {}
        key = more.pop("key", "new")
        if key is not None:
            headers["Idempotency-Key"] = self.name("key") if key == "new" else key
        headers |= more.pop("headers", {})
        if path == "/v1/redemptions" and by.endswith("terminal") and isinstance(body, dict) and "resident" in body:
            body = self.coded(body, by, headers.get("Idempotency-Key", ""))
        raw = more.pop("raw", None)
        if raw is None and body is not None:
            raw = msgspec.json.encode(body)
        return self.http.request(method, path, content=raw, headers=headers, params=more or None)

    def coded(self, body: dict[str, Any], by: str, key: str) -> dict[str, Any]:
        """What a terminal says: not the resident, but the code that they show; the same one when it asks again."""
        told, resident = dict(body), str(body["resident"])
        del told["resident"]
        if (resident, by, key) not in self._codes:
            made = self.installation.directory.payers.issue(resident)  # anew: there is no end to codes in one minute
            step = codes.step_at(self.installation.clock())
            self._codes[resident, by, key] = codes.made(made.handle, made.secret, step)
        return told | {"code": self._codes[resident, by, key]}

    def get(self, path: str, *, by: str = "operator", **more: Any) -> Answer:
        return self.call("GET", path, by=by, **more)

    def post(self, path: str, body: object = None, *, by: str = "operator", **more: Any) -> Answer:
        return self.call("POST", path, body, by=by, **more)

    def done(self, answer: Answer) -> Any:
        """The content of an answer that must be none of refusal."""
        assert answer.is_success, (answer.request.url, answer.text)
        return answer.json()

    # -- what is there -----------------------------------------------------------------------------------------------

    def found(self) -> "City":
        """Sources that open accounts, merchants with terminals, and the table of `green`."""
        self.done(self.post("/v1/methodologies", {"table": green()}))
        for source, behaviours in (("szt", BEHAVIOURS), ("hz", ("bus",))):
            body = {"source": source, "name": source, "behaviours": behaviours, "opens_accounts": True}
            self.done(self.post("/v1/sources", body))
        for merchant, terminals in (("shop", ("t1", "t2")), ("mall", ("t1",))):
            body = {"merchant": merchant, "name": "南浔小店", "fen_per_point": 2, "county": "330503"}
            self.done(self.post("/v1/merchants", body))
            for terminal in terminals:
                self.done(self.post(f"/v1/merchants/{merchant}/terminals", {"terminal": terminal}))
        return self

    def report(self, **said: Any) -> dict[str, Any]:
        """A bus ride at eleven in the morning of the city's day, by a card that nobody had."""
        fields = {
            "source": "szt",
            "record_id": self.name("record"),
            "resident": self.name("card"),
            "behaviour": "bus",
            "quantity": "1",
            "unit": "trip",
            "occurred_at": "2025-06-15T11:00:00+08:00",
        }
        return fields | said

    def recorded(self, **said: Any) -> Any:
        """The receipt of a report that counts."""
        return self.done(self.post("/v1/actions", self.report(**said), by="source"))

    def resident(self, *, points: int = 0, trade: bool = False, **said: Any) -> str:
        """A resident whose card is their name at `szt`, with points of as many hundredths of a kilometre."""
        card = said.pop("card", None) or self.name("card")
        purposes = ("record", "trade") if trade else ("record",)
        consents = [{"purpose": purpose, "version": "2025-1", "from": SINCE} for purpose in purposes]
        body = {"subjects": [{"source": "szt", "subject": card}], "consents": consents, **said}
        resident = self.done(self.post("/v1/residents", body, by="app"))["resident"]
        if points:
            self.earn(card, points)
        return resident

    def earn(self, card: str, points: int, **said: Any) -> Any:
        """`points` // 100 kilometres of `green`."""
        assert points % POINTS == 0
        fields = {"behaviour": "green", "quantity": str(points // POINTS), "unit": "km"}
        return self.recorded(resident=card, **(fields | said))

    def held(self, resident: str, points: int, **more: Any) -> str:
        """The id of a redemption on hold at the first terminal."""
        said = {name: more.pop(name) for name in ("hold_seconds", "capture") if name in more}
        return self.done(self.post("/v1/redemptions", hold(resident, points, **said), by="terminal", **more))[
            "redemption_id"
        ]

    def captured(self, resident: str, points: int) -> str:
        return self.held(resident, points, capture=True)

    def balance(self, resident: str) -> Any:
        return self.done(self.get(f"/v1/residents/{resident}"))["balance"]

    def settled(self) -> "City":
        """The read models have taken in whatever was written until now."""
        assert self.installation.follower.catch_up(120)
        return self

    def finisher(self) -> Finisher:
        """It ends something when it is told to, from now on, and not every second by itself."""
        self.settled().installation.finisher.stop()
        return self.installation.finisher


BEHAVIOURS = ("green", "bus", "metro_in", "metro_out", "shared_bike", "walk", "waste_sorting", "nobody_counts_this")


def hold(resident: str, points: int, **said: Any) -> dict[str, Any]:
    return {"resident": resident, "merchant": "shop", "terminal": "t1", "points": points} | said


def problem(answer: Answer, status: int, code: str) -> Any:
    """What was answered, which must be this problem and told as one."""
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert told["status"] == status
    assert told["type"] == f"/problems/{code}"
    assert told["title"]
    assert told["retryable"] in {"never", "same-key", "new-key", "query-first"}
    assert told["request_id"] == answer.headers["x-request-id"]
    return told


def position(answer: Answer) -> str:
    return answer.headers["Carbon-Position"]


def same_again(first: Answer, again: Answer) -> None:
    """A repeated call is answered as at first, and says that it is repeated."""
    assert first.status_code in {200, 201, 202}, first.text
    assert "Idempotency-Replayed" not in first.headers
    assert again.status_code == 200, again.text
    assert again.headers["Idempotency-Replayed"] == "true"
    assert position(again) == position(first)
    assert again.json() == first.json()


# -- running ---------------------------------------------------------------------------------------------------------


def keys_of(installation: Installation) -> dict[str, str]:
    """The secrets of one key for every caller."""
    return {name: installation.directory.issue_key(role, owner)[1] for name, (role, owner) in CALLERS.items()}


def opened(environment: dict[str, str], clock: Callable[[], datetime] | None) -> Installation:
    # Nobody settles while a test moves its clock; the tests of that say when.
    quiet = {"CARBON_PARTITIONS": "4", "CARBON_SETTLE_AT": "off", "CARBON_BATCHES_AT": "off"}
    return open_installation(load({**quiet, **environment}), clock=clock)


@contextmanager
def served(environment: dict[str, str], clock: Callable[[], datetime], keys: dict[str, str]) -> Iterator[City]:
    """The same behind a real server on a real socket, for what is streamed, and for many callers at once."""
    installation = opened(environment, clock)
    config = configured(create_app(installation), host="127.0.0.1", port=0, log="error")
    socket = config.bind_socket()
    server = uvicorn.Server(config)
    thread = Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{socket.getsockname()[1]}", timeout=60) as http:
            wait_for(lambda: server.started)
            yield City(http, installation, keys)
    finally:
        server.should_exit = True
        thread.join()
        socket.close()


@contextmanager
def apart(environment: dict[str, str], keys: dict[str, str]) -> Iterator[tuple[City, subprocess.Popen[bytes]]]:
    """The same in a process of its own, as it is served: to be measured, and killed. It goes by the real time."""
    command = [sys.executable, "-m", "carbon_points", "serve", "--port", "0", "--json"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CARBON_")}
    process = subprocess.Popen(command, env=clean | environment, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        url = msgspec.json.decode(process.stdout.readline())["url"]
        installation = opened(environment, datetime.now)  # to be looked at from outside
        with httpx.Client(base_url=url, timeout=60) as http:
            wait_for(lambda: _answers(http))
            yield City(http, installation, keys), process
        installation.close()
    finally:
        process.terminate()
        process.wait(40)
        assert process.stdout is not None
        process.stdout.close()


def _answers(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def wait_for(promised: Callable[[], object], seconds: float = 120) -> None:
    """Until it is so. How soon is no promise here: the seconds are those after which it never will be."""
    deadline = monotonic() + seconds
    while not promised():
        assert monotonic() < deadline, "it did not happen in time"
        sleep(0.01)


@contextmanager
def city_in(environment: dict[str, str], at: datetime, keys: dict[str, str] | None = None) -> Iterator[City]:
    """A city over an installation of its own, without a network. `keys` are those that its directory already has."""
    clock = Clock(at)
    installation = opened(environment, clock)
    known = keys or keys_of(installation)
    with TestClient(create_app(installation)) as http:
        yield City(http, installation, known)
