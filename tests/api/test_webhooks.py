"""Webhooks over HTTP: endpoints of merchants and apps, what became of deliveries, events to be asked for."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest
from standardwebhooks import Webhook

from carbon_points.webhooks.messages import EVENT_TYPES
from tests.api.city import City, city_in, problem, served, wait_for
from tests.api.conftest import Founded
from tests.conftest import Clock
from tests.given import NOON
from tests.webhooks.receiver import Got, Receiver, Say, receiving

HERE = {"CARBON_WEBHOOKS_HTTP": "1", "CARBON_WEBHOOKS_INTERNAL": "1"}
URL = "https://pos.example.com/hook"


@pytest.fixture
def told(founded: Founded, tmp_path: Path) -> Iterator[City]:
    """A city whose webhooks may come to this machine."""
    folder = Path(shutil.copytree(founded[0], tmp_path / "data"))
    with city_in({"CARBON_DATA_DIR": str(folder), **HERE}, NOON, founded[1]) as running:
        yield running


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as one:
        yield one


def made(city: City, url: str = URL, *, by: str = "operator", **said: Any) -> Any:
    body = {"url": url} | said | ({} if by == "app" or "app" in said else {"merchant": said.get("merchant", "shop")})
    return city.done(city.post("/v1/webhooks", body, by=by))


class TestEndpoints:
    def test_whoever_makes_one_gets_its_secret_and_the_same_again(self, city: City) -> None:
        body = {"url": URL, "merchant": "shop", "types": ["settlement.paid"]}
        first = city.post("/v1/webhooks", body, key="webhook-1")
        assert first.status_code == 201
        told = first.json()
        assert told["secret"].startswith("whsec_")
        assert (told["status"], told["reason"], told["sequence"], told["app"]) == ("enabled", None, 0, None)
        again = city.post("/v1/webhooks", body, key="webhook-1")
        assert (again.status_code, again.json()) == (200, told)
        assert again.headers["Idempotency-Replayed"] == "true"
        shown = city.done(city.get(f"/v1/webhooks/{told['endpoint_id']}"))
        assert shown == {name: value for name, value in told.items() if name != "secret"}
        other = city.post("/v1/webhooks", body | {"url": URL + "2", "types": []}, key="webhook-1")
        assert problem(other, 422, "identity-reused")["facts"]["fields"] == ["url", "types"]

    @pytest.mark.parametrize(
        ("body", "status", "code"),
        [
            ({"url": URL}, 400, "missing-field"),
            ({"url": URL, "merchant": "shop", "app": "a"}, 400, "missing-field"),
            ({"url": URL, "merchant": "nobody"}, 404, "merchant-unknown"),
            ({"url": "http://pos.example.com/", "merchant": "shop"}, 422, "webhook-url-invalid"),
            ({"url": "https://127.0.0.1/", "merchant": "shop"}, 422, "webhook-url-invalid"),
            ({"url": "https://[::ffff:10.0.0.1]/", "merchant": "shop"}, 422, "webhook-url-invalid"),
            ({"url": URL, "merchant": "shop", "types": ["redemption.dreamt"]}, 400, "wrong-type"),
        ],
    )
    def test_what_cannot_be_is_refused(self, city: City, body: Any, status: int, code: str) -> None:
        problem(city.post("/v1/webhooks", body), status, code)

    def test_an_app_has_its_own_and_sees_no_others(self, city: City) -> None:
        own = made(city, by="app")
        assert own["app"] == "city-app"
        theirs = [made(city), made(city, app="other-app")]
        problem(city.post("/v1/webhooks", {"url": URL, "merchant": "shop"}, by="app"), 403, "not-yours")
        problem(city.post("/v1/webhooks", {"url": URL, "app": "other-app"}, by="app"), 403, "not-yours")
        for one in theirs:
            at = f"/v1/webhooks/{one['endpoint_id']}"
            problem(city.get(at, by="app"), 403, "not-yours")
            problem(city.call("PATCH", at, {"enabled": False}, by="app"), 403, "not-yours")
            problem(city.call("DELETE", at, by="app"), 403, "not-yours")
            problem(city.post(f"{at}/secret", by="app"), 403, "not-yours")
            problem(city.post(f"{at}/tests", by="app"), 403, "not-yours")
            problem(city.get(f"{at}/deliveries", by="app"), 403, "not-yours")
            problem(city.post(f"{at}/resend", {"first": 1, "last": 2}, by="app"), 403, "not-yours")
        seen = city.done(city.get("/v1/webhooks", by="app"))["data"]
        assert own["endpoint_id"] in {one["endpoint_id"] for one in seen}
        assert {one["app"] for one in seen} == {"city-app"}

    def test_lists_have_pages(self, city: City) -> None:
        wanted = {made(city, merchant="mall")["endpoint_id"] for _ in range(3)}
        found, cursor = [], None
        while True:
            asked = {"merchant": "mall", "limit": 2} | ({"cursor": cursor} if cursor else {})
            page = city.done(city.get("/v1/webhooks", **asked))
            found += [one["endpoint_id"] for one in page["data"]]
            if not (cursor := page["next_cursor"]):
                break
        assert found == sorted(wanted)

    def test_what_is_changed_stays_and_what_is_removed_is_gone(self, city: City) -> None:
        at = f"/v1/webhooks/{made(city)['endpoint_id']}"
        changed = city.done(city.call("PATCH", at, {"url": URL + "/2", "types": ["settlement.paid"]}))
        assert (changed["url"], changed["types"], changed["status"]) == (URL + "/2", ["settlement.paid"], "enabled")
        assert city.done(city.call("PATCH", at, {"enabled": False}))["reason"] == "asked"
        assert city.done(city.call("PATCH", at, {"enabled": False}))["status"] == "disabled"
        assert city.done(city.call("PATCH", at, {"enabled": True}))["reason"] is None
        problem(city.call("PATCH", at, {"url": "https://10.0.0.1/"}), 422, "webhook-url-invalid")
        assert city.done(city.call("DELETE", at))["status"] == "removed"
        for answer in (city.get(at), city.call("DELETE", at), city.call("PATCH", at, {}), city.post(f"{at}/secret")):
            problem(answer, 404, "webhook-unknown")

    def test_a_secret_is_rotated_once_a_call(self, city: City) -> None:
        one = made(city)
        at = f"/v1/webhooks/{one['endpoint_id']}/secret"
        first, again, second = (city.post(at, key=key) for key in ("r-1", "r-1", "r-2"))
        assert (first.status_code, again.status_code, second.status_code) == (201, 200, 201)
        assert first.json() == again.json()
        assert len({one["secret"], first.json()["secret"], second.json()["secret"]}) == 3


def test_the_description_says_what_is_sent(city: City) -> None:
    told = city.get("/docs/openapi.json", by="").json()["webhooks"]
    assert set(told) == set(EVENT_TYPES)
    for name, said in told.items():
        schema = said["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert schema["properties"]["type"]["const"] == name
        assert set(schema["required"]) == {"type", "id", "sequence", "created_at", "data"}


class TestDeliveries:
    def test_a_merchant_is_told_of_its_redemptions_until_they_are_paid(self, told: City, receiver: Receiver) -> None:
        one = made(told, receiver.url)
        held = told.held(told.resident(points=100), 60)
        told.done(told.post(f"/v1/redemptions/{held}/capture", {"points": 50}, by="terminal"))
        told.done(told.post(f"/v1/redemptions/{held}/refunds", {"points": 10}, by="terminal"))
        settled = told.done(told.post("/v1/merchants/shop/settlements"))
        body = {"origin": "sponsor", "payer": "电力", "amount_fen": 1_000}
        told.done(told.post("/v1/fund/receipts", body))
        told.done(told.post(f"/v1/merchants/shop/settlements/{settled['settlement_id']}/payment"))
        wait_for(lambda: len(receiver.got) == 5)
        got = sorted(receiver.got, key=lambda g: g.told["sequence"])
        assert [g.told["sequence"] for g in got] == [1, 2, 3, 4, 5]
        said = {g.told["type"]: g.told["data"] for g in got}
        assert said["redemption.captured"]["points"] == 50
        assert said["redemption.captured"]["redemption_id"] == held
        assert said["redemption.refunded"]["amount_fen"] == 20
        assert said["settlement.closed"]["amount_fen"] == said["settlement.paid"]["amount_fen"] == 80
        at = f"/v1/webhooks/{one['endpoint_id']}/deliveries"
        wait_for(lambda: len(told.done(told.get(at, status="delivered"))["data"]) == 5)
        first = told.done(told.get(at, limit=2))
        assert [row["sequence"] for row in first["data"]] == [5, 4]
        rest = told.done(told.get(at, cursor=first["next_cursor"]))
        assert [row["sequence"] for row in rest["data"]] == [3, 2, 1]
        assert rest["data"][0]["answer"] == "HTTP 200"
        problem(told.get(at, cursor="x"), 400, "cursor-invalid")

    def test_what_failed_is_listed_and_sent_again_when_asked(self, told: City, receiver: Receiver) -> None:
        one = made(told, receiver.url)
        receiver.says(500, 200)
        at = f"/v1/webhooks/{one['endpoint_id']}"
        first = told.post(f"{at}/tests", key="t-1")
        again = told.post(f"{at}/tests", key="t-1")
        assert (first.status_code, again.status_code) == (201, 200)
        assert first.json()["event_id"] == again.json()["event_id"]
        wait_for(lambda: told.done(told.get(f"{at}/deliveries"))["data"][0]["tries"] == 1)
        [row] = told.done(told.get(f"{at}/deliveries", status="waiting"))["data"]
        assert (row["answer"], row["next_at"]) == ("HTTP 500", row["next_at"])
        assert told.done(told.post(f"{at}/resend", {"first": 1, "last": 9})) == {"deliveries": 1}
        wait_for(lambda: len(receiver.got) == 2)
        assert len({got.id for got in receiver.got}) == 1
        assert told.done(told.post(f"{at}/resend", {"first": 7, "last": 9})) == {"deliveries": 0}


class TestEvents:
    def test_an_event_is_found_by_its_name_by_whom_it_concerns(self, told: City, receiver: Receiver) -> None:
        made(told, receiver.url)
        resident = told.resident(points=100)
        held = told.held(resident, 60)
        wait_for(lambda: receiver.got)
        [got] = receiver.got
        event = told.done(told.get(f"/v1/events/{got.id}", by="app"))
        assert (event["id"], event["type"], event["created_at"]) == (got.id, "redemption.held", got.told["created_at"])
        assert event["data"] == got.told["data"] | {"resident": resident}
        assert event["data"]["redemption_id"] == held
        assert told.done(told.get(f"/v1/events/{got.id}", by="terminal"))["data"] == got.told["data"]
        problem(told.get(f"/v1/events/{got.id}", by="other terminal"), 403, "not-yours")

    @pytest.mark.parametrize("name", ["evt_0_1_aaaaaaaaaa", "evt_0_999_aaaaaaaaaa", "evt_9_1_aaaaaaaaaa", "evt_test_x"])
    def test_what_nobody_was_told_is_unknown(self, city: City, name: str) -> None:
        problem(city.get(f"/v1/events/{name}"), 404, "event-unknown")

    def test_all_events_are_read_page_by_page_each_once(self, told: City) -> None:
        start = told.done(told.get("/v1/events", after="now"))
        assert (start["data"], start["more"]) == ([], False)
        held = [told.held(told.resident(points=100), 1) for _ in range(7)]
        for limit in (1, 3, 100):
            found: list[Any] = []
            after, turns = start["after"], count()
            while next(turns) < 50:
                page = told.done(told.get("/v1/events", after=after, limit=limit, merchant="shop"))
                assert len(page["data"]) <= limit
                found += page["data"]
                after = page["after"]
                if not page["more"]:
                    break
            assert sorted(one["data"]["redemption_id"] for one in found) == sorted(held)
            assert told.done(told.get("/v1/events", after=after))["data"] == []
        assert told.done(told.get("/v1/events", after=start["after"], merchant="mall"))["data"] == []
        assert len(told.done(told.get("/v1/events", merchant="shop"))["data"]) == 7

    @pytest.mark.parametrize("after", ["x", "1", "1.2", "1.2.3.4.5", "-1.0.0.0", "then"])
    def test_a_place_that_no_page_told_is_refused(self, city: City, after: str) -> None:
        problem(city.get("/v1/events", after=after), 400, "parameter-invalid")


class TestKilled:
    def test_killed_while_it_sends_it_tells_again_under_the_same_name_and_number(
        self, founded: Founded, tmp_path: Path, receiver: Receiver
    ) -> None:
        """SIGKILL between the receiver's reading and its answer: whether it was told nobody has written down."""
        folder = Path(shutil.copytree(founded[0], tmp_path / "data"))
        environment = {"CARBON_DATA_DIR": str(folder), **HERE}
        with served(environment, clock := Clock(NOON), founded[1]) as city:
            assert city.installation.deliverer
            city.installation.deliverer.stop()
            one = made(city, receiver.url)
            city.held(city.resident(points=100), 1)
        command = [sys.executable, "-m", "carbon_points", "follow", "--json"]
        process = subprocess.Popen(command, env=os.environ | environment, stdin=subprocess.PIPE)
        killed = threading.Event()

        def kill(_: object) -> Say:
            process.send_signal(signal.SIGKILL)
            killed.set()
            return Say(200)

        receiver.answering = kill
        assert killed.wait(120)
        assert process.wait(60) == -signal.SIGKILL
        assert process.stdin
        process.stdin.close()
        receiver.answering = lambda _: Say(200)
        clock.move(timedelta(days=4000))  # whenever that was by the other's clock, its lease has run out

        def of_the_hold() -> list[Got]:  # that ran out in those days, and another message says so
            return [got for got in receiver.got if got.told["type"] == "redemption.held"]

        with city_in(environment, clock(), founded[1]) as city:
            wait_for(lambda: len(of_the_hold()) == 2)
            assert len({(got.id, got.body) for got in of_the_hold()}) == 1
            *_, row = city.done(city.get(f"/v1/webhooks/{one['endpoint_id']}/deliveries"))["data"]
            assert (row["sequence"], of_the_hold()[0].told["sequence"]) == (1, 1)


class TestCommands:
    def test_everything_is_done_by_the_command_line_too(
        self, founded: Founded, tmp_path: Path, receiver: Receiver
    ) -> None:
        from tests.test_command_line import Installed  # noqa: PLC0415  # its fixtures are not ours

        folder = Path(shutil.copytree(founded[0], tmp_path / "data"))
        here = Installed(folder, **HERE)
        one = here.told("webhooks", "add", receiver.url, "--merchant", "shop", "--type", "webhook.test")
        name = one["endpoint_id"]
        assert one["secret"].startswith("whsec_")
        [shown] = here.told("webhooks", "list")["webhooks"]
        assert shown == {field: value for field, value in one.items() if field != "secret"}
        assert here.told("webhooks", "disable", name)["reason"] == "asked"
        assert here.told("webhooks", "enable", name, "--skip-missed")["status"] == "enabled"
        with city_in({"CARBON_DATA_DIR": str(folder), **HERE}, NOON, founded[1]) as city:
            city.done(city.post(f"/v1/webhooks/{name}/tests"))
            wait_for(lambda: receiver.got)
        [row] = here.told("webhooks", "deliveries", name)["deliveries"]
        assert (row["sequence"], row["status"]) == (1, "delivered")
        assert here.told("webhooks", "resend", name, "1") == {"deliveries": 1}
        assert here.told("webhooks", "deliveries", name, "--status", "delivered") == {"deliveries": []}
        assert here.told("webhooks", "rotate", name)["secret"] != one["secret"]
        assert here.told("webhooks", "remove", name)["status"] == "removed"
        for words in (("deliveries", name), ("disable", name), ("add", "http://10.0.0.1:1/", "--merchant", "shop")):
            code, output, errors = here.ended("webhooks", *words, "--json")
            assert (code, "webhook-" in output, "Traceback" in errors) == (1, True, False)
        assert here.ended("webhooks", "add", URL, "--merchant", "nobody", "--json")[0] == 1

    def test_a_developers_machine_is_handed_each_event_signed(self, served_city: City, receiver: Receiver) -> None:
        from tests.test_command_line import Installed  # noqa: PLC0415  # its fixtures are not ours

        for _ in range(2):
            served_city.held(served_city.resident(points=100), 1)
        here = Installed(Path("nowhere"), CARBON_KEY=served_city.keys["app"])
        words = ("--at", str(served_city.http.base_url), "--forward-to", receiver.url, "--merchant", "shop")
        result = here.run("listen", *words, "--after", "start", "--count", "2", "--json")
        first, *lines = [msgspec.json.decode(line) for line in result.stdout.splitlines()]
        assert [(line["sequence"], line["answer"]) for line in lines] == [(1, "HTTP 200"), (2, "HTTP 200")]
        assert [line["id"] for line in lines] == [got.id for got in receiver.got]
        for got in receiver.got:
            assert Webhook(first["secret"]).verify(got.body, got.headers) == got.told
            assert got.headers["webhook-sequence"] == str(got.told["sequence"])
        code, output, errors = Installed(Path("nowhere"), CARBON_KEY="wrong").ended("listen", *words, "--json")
        assert (code, "401" in output, "Traceback" in errors) == (1, True, False)
