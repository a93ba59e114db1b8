"""The sandbox: codes that always mean the same, a clock that tests move, and nothing that a live server has of it."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from click.testing import CliRunner

from carbon_points import codes
from carbon_points.__main__ import cli
from carbon_points.api.installation import Installation, create_installation, open_installation
from carbon_points.audit.verify import verify
from carbon_points.directory import ROLES
from carbon_points.journal.journal import OtherMode
from carbon_points.sandbox.city import CONFIRM_ABOVE, EARLIER, FIXED, MERCHANT, POINTS, SUSPENDED
from carbon_points.sandbox.clock import MOST_DAYS
from carbon_points.settings import Settings, load
from tests.api.city import Answer, City, problem, same_again, served, wait_for
from tests.api.test_terminals import Terminal
from tests.conftest import PROJECT, Clock
from tests.given import NOON

CODE = {fixed.name: fixed.code for fixed in FIXED}


def sandbox_of(city: City) -> Any:
    assert city.installation.sandbox is not None
    return city.installation.sandbox


@contextmanager
def opened_sandbox(folder: Path) -> Iterator[City]:
    """A sandbox behind a real server, whose real time stands still."""
    with served({"CARBON_DATA_DIR": str(folder), "CARBON_SANDBOX": "1"}, Clock(NOON), {}) as city:
        ready = sandbox_of(city).keys()
        city.keys |= ready.keys | {"terminal": ready.keys[f"terminal {MERCHANT}/t1"]}
        city.keys |= {"suspended": ready.refused_keys[f"terminal {MERCHANT}/{SUSPENDED}, suspended"]}
        city.keys |= {"revoked": ready.refused_keys["revoked"]}
        yield city


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a sandbox in which nothing has happened yet. To be copied."""
    folder = tmp_path_factory.mktemp("made") / "data"
    with opened(folder) as installation:
        assert installation.sandbox is not None
        installation.sandbox.found()
    return folder


@pytest.fixture(scope="module")
def sandbox(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[City]:
    with opened_sandbox(Path(shutil.copytree(made, tmp_path_factory.mktemp("sandbox") / "data"))) as city:
        yield city


@contextmanager
def opened(folder: Path, *, mode: str = "1", url: str = "") -> Iterator[Installation]:
    installation = open_installation(settings(folder, mode=mode, url=url), clock=Clock(NOON))
    try:
        yield installation
    finally:
        installation.close()


def settings(folder: Path, *, mode: str, url: str = "") -> Settings:
    told = {"CARBON_DATA_DIR": str(folder), "CARBON_SANDBOX": mode, "CARBON_PARTITIONS": "2"}
    return load(told | ({"CARBON_DATABASE_URL": url} if url else {}))


def sale(code: str, points: int = 100, **said: Any) -> dict[str, Any]:
    return {"code": CODE[code], "merchant": MERCHANT, "terminal": "t1", "points": points} | said


def sell(city: City, code: str, points: int = 100, **said: Any) -> Answer:
    by, key = said.pop("by", "terminal"), said.pop("key", "new")
    return city.post("/v1/redemptions", sale(code, points, **said), by=by, key=key)


def advanced(city: City, seconds: int, **said: Any) -> Any:
    return city.done(city.post("/v1/sandbox/clock", {"advance_seconds": seconds}, **said))


def status(city: City, redemption: str) -> str:
    return city.get(f"/v1/redemptions/{redemption}", by="terminal").json()["status"]


class TestCodes:
    def test_they_are_payment_codes_like_any_other(self) -> None:
        assert [codes.read(fixed.code).handle for fixed in FIXED] == [f"{n:09}" for n in range(1, len(FIXED) + 1)]

    def test_the_guide_says_what_each_of_them_means(self) -> None:
        guide = (PROJECT / "docs" / "api.md").read_text("utf-8")
        for fixed in FIXED:
            assert f"| `{fixed.code}` | {fixed.name} |" in guide, fixed

    def test_one_is_always_good(self, sandbox: City) -> None:
        answers = [sell(sandbox, "ok", capture=capture) for capture in (False, True, False)]
        assert [(a.status_code, a.json()["status"]) for a in answers] == [
            (201, "held"),
            (201, "captured"),
            (201, "held"),
        ]
        held = answers[0].json()["redemption_id"]
        assert status(sandbox, held) == "held"
        sandbox.done(sandbox.post(f"/v1/redemptions/{held}/capture", {"points": 60}, by="terminal"))
        sandbox.done(sandbox.post(f"/v1/redemptions/{held}/refunds", {"points": 60}, by="terminal"))
        assert status(sandbox, held) == "refunded"

    @pytest.mark.parametrize(
        ("name", "code"),
        [
            ("insufficient", "insufficient-points"),
            ("expired", "code-expired"),
            ("used", "code-used"),
            ("frozen", "account-frozen"),
        ],
    )
    def test_others_are_refused_each_time_for_their_own_reason(self, sandbox: City, name: str, code: str) -> None:
        for points in (1, 1_000):
            told = problem(sell(sandbox, name, points), 409, code)
            assert told["retryable"] in {"new-key", "query-first"}

    def test_a_terminal_is_refused_by_a_code_and_goes_on_with_another(self, sandbox: City) -> None:
        problem(sell(sandbox, "suspended"), 403, "terminal-suspended")
        assert sell(sandbox, "ok").status_code == 201

    def test_a_terminal_that_is_suspended_is_refused_whatever_it_says(self, sandbox: City) -> None:
        problem(sell(sandbox, "ok", terminal=SUSPENDED, by="suspended"), 403, "terminal-suspended")

    def test_a_key_that_was_revoked_is_taken_no_more(self, sandbox: City) -> None:
        problem(sell(sandbox, "ok", by="revoked"), 401, "unauthenticated")

    def test_the_same_call_again_is_the_same_and_another_one_under_its_key_is_refused(self, sandbox: City) -> None:
        same_again(*(sell(sandbox, "ok", key="again") for _ in range(2)))
        told = problem(sell(sandbox, "ok", 99, key="again"), 422, "identity-reused")
        assert told["facts"] == {"fields": ["points"]}
        told = problem(sell(sandbox, "agrees", key="again"), 422, "identity-reused")
        assert told["facts"] == {"fields": ["code", "resident"]}

    def test_whoever_pays_has_points_however_many_were_spent(self, sandbox: City) -> None:
        agreed = sell(sandbox, "ok", POINTS, capture=True).json()["redemption_id"]
        advanced(sandbox, 3)
        wait_for(lambda: status(sandbox, agreed) == "captured")
        assert sell(sandbox, "ok").json()["status"] == "held"

    def test_an_offer_is_had_with_them_too(self, sandbox: City) -> None:
        said = {key: value for key, value in sale("ok").items() if key != "points"}
        told = sandbox.done(sandbox.post("/v1/redemptions", said | {"offer": "tea"}, by="terminal"))
        assert (told["points"], told["offer"]) == (50, "tea")
        gone = sandbox.post("/v1/redemptions", said | {"offer": "sold-out"}, by="terminal")
        problem(gone, 409, "offer-sold-out")

    def test_any_other_code_is_a_code_as_ever(self, sandbox: City) -> None:
        resident = sandbox_of(sandbox).resident("ok")
        made = sandbox.done(sandbox.post(f"/v1/residents/{resident}/payment-codes", by="app"))["code"]
        body = sale("ok") | {"code": made}
        assert sandbox.post("/v1/redemptions", body, by="terminal").status_code == 201
        problem(sandbox.post("/v1/redemptions", body, by="terminal"), 409, "code-used")
        nobodys = codes.PREFIX + "0" * 15
        unknown = sale("ok") | {"code": nobodys + codes.check_digit(nobodys)}
        problem(sandbox.post("/v1/redemptions", unknown, by="terminal"), 404, "code-unknown")


class TestAsking:
    """Above the shop's limit residents are asked, and say what they always say."""

    def test_up_to_the_limit_nobody_is_asked(self, sandbox: City) -> None:
        for name in ("agrees", "refuses", "ignores"):
            assert sell(sandbox, name, CONFIRM_ABOVE).json()["status"] == "held"

    @pytest.mark.parametrize(("name", "capture", "said"), [("agrees", False, "held"), ("refuses", False, "declined")])
    def test_one_agrees_after_three_seconds_and_one_does_not(
        self, sandbox: City, name: str, capture: bool, said: str
    ) -> None:
        answer = sell(sandbox, name, CONFIRM_ABOVE + 1, capture=capture)
        assert (answer.status_code, answer.json()["status"]) == (202, "confirming")
        redemption = answer.json()["redemption_id"]
        advanced(sandbox, 2)
        sandbox_of(sandbox).answer()
        assert status(sandbox, redemption) == "confirming"
        advanced(sandbox, 1)
        wait_for(lambda: status(sandbox, redemption) == said)

    def test_one_never_answers_and_is_asked_no_longer_than_a_minute(self, sandbox: City) -> None:
        redemption = sell(sandbox, "ignores", CONFIRM_ABOVE + 1).json()["redemption_id"]
        advanced(sandbox, 59)
        sandbox_of(sandbox).answer()
        assert status(sandbox, redemption) == "confirming"
        advanced(sandbox, 1)
        assert status(sandbox, redemption) == "declined"


def unheard(city: City, body: dict[str, Any], key: str) -> None:
    """Send a call over a connection of its own, and hear nothing, though it is done."""
    headers = {"Authorization": f"Bearer {city.keys['terminal']}", "Idempotency-Key": key}
    patience = httpx.Timeout(30, read=0.8)
    with httpx.Client(base_url=city.http.base_url, timeout=patience) as impatient, pytest.raises(httpx.ReadTimeout):
        impatient.post("/v1/redemptions", json=body, headers=headers)
    wait_for(lambda: city.get("/v1/redemptions", by="terminal", reference=key).status_code == 200)


class TestSilence:
    def test_what_was_done_is_not_answered_and_the_same_call_again_is(self, sandbox: City) -> None:
        resident = sandbox_of(sandbox).resident("silent")
        before = sandbox.balance(resident)["points_available"]
        key = sandbox.name("key")
        unheard(sandbox, sale("silent", 70, capture=True), key)
        found = sandbox.get("/v1/redemptions", by="terminal", reference=key).json()
        assert found["status"] == "captured"
        again = sell(sandbox, "silent", 70, capture=True, key=key)
        assert (again.status_code, again.headers["Idempotency-Replayed"]) == (200, "true")
        assert again.json()["redemption_id"] == found["redemption_id"]
        assert sandbox.balance(resident)["points_available"] == before - 70

    def test_it_can_be_reversed_as_any_call_of_which_nobody_heard(self, sandbox: City) -> None:
        key = sandbox.name("key")
        unheard(sandbox, sale("silent", 70), key)
        undo = {"reference": key, "points": 70, "reason": "timeout"}
        told = sandbox.done(sandbox.post("/v1/redemptions/reversal", undo, by="terminal"))
        assert (told["status"], told["action"]) == ("reversed", "released")


class TestClock:
    def test_a_hold_runs_out_when_it_is_moved_on(self, sandbox: City) -> None:
        held = sell(sandbox, "ok", hold_seconds=300).json()["redemption_id"]
        advanced(sandbox, 299)
        assert status(sandbox, held) == "held"
        advanced(sandbox, 1)
        assert status(sandbox, held) == "expired"
        late = sandbox.post(f"/v1/redemptions/{held}/capture", {"points": 100}, by="terminal")
        problem(late, 409, "hold-expired")

    def test_payment_codes_go_by_it(self, sandbox: City) -> None:
        path = f"/v1/residents/{sandbox_of(sandbox).resident('agrees')}/payment-codes"
        first = sandbox.done(sandbox.post(path, by="app"))
        advanced(sandbox, 120)
        second = sandbox.done(sandbox.post(path, by="app"))
        ends = [datetime.fromisoformat(told["expires_at"]) for told in (first, second)]
        assert ends[1] - ends[0] == timedelta(seconds=120)
        old = sandbox.post("/v1/redemptions", sale("ok") | {"code": first["code"]}, by="terminal")
        problem(old, 409, "code-expired")

    def test_it_is_shown_to_everybody_and_moved_by_operators(self, sandbox: City) -> None:
        told = [sandbox.done(sandbox.get("/v1/sandbox/clock", by=by)) for by in ("terminal", "app", "operator")]
        assert told[0] == told[1] == told[2]
        time, real = (datetime.fromisoformat(told[0][name]) for name in ("time", "real_time"))
        assert time - real == timedelta(seconds=told[0]["ahead_seconds"])
        body = {"advance_seconds": 1}
        problem(sandbox.post("/v1/sandbox/clock", body, by="terminal"), 403, "role-not-allowed")

    def test_a_move_is_made_once_however_often_it_is_asked_for(self, sandbox: City) -> None:
        first, again = (sandbox.post("/v1/sandbox/clock", {"advance_seconds": 5}, key="five") for _ in range(2))
        assert (first.status_code, again.status_code) == (201, 200)
        assert again.headers["Idempotency-Replayed"] == "true"
        assert again.json() == first.json()
        told = problem(sandbox.post("/v1/sandbox/clock", {"advance_seconds": 6}, key="five"), 422, "identity-reused")
        assert told["facts"] == {"fields": ["advance_seconds"]}
        problem(sandbox.post("/v1/sandbox/clock", {"advance_seconds": 5}, key=None), 400, "idempotency-key-missing")

    @pytest.mark.parametrize("seconds", [0, -1, 366 * 86_400 + 1, "60", 1.5])
    def test_it_never_goes_back_and_never_jumps_far(self, sandbox: City, seconds: object) -> None:
        problem(sandbox.post("/v1/sandbox/clock", {"advance_seconds": seconds}), 400, "wrong-type")

    def test_a_restart_and_another_process_leave_it_where_it_is(self, made: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(made, tmp_path / "data"))
        with opened_sandbox(folder) as city:
            held = sell(city, "ok", hold_seconds=86_400).json()["redemption_id"]
            moved = advanced(city, 86_400, key="day")
            with opened(folder) as beside:
                assert beside.clock() == datetime.fromisoformat(moved["time"])
        with opened_sandbox(folder) as city:
            assert city.installation.clock() == datetime.fromisoformat(moved["time"])
            assert status(city, held) == "expired"
            assert city.post("/v1/sandbox/clock", {"advance_seconds": 86_400}, key="day").status_code == 200

    def test_there_is_an_end_to_it_and_points_last_as_long(self, made: Path, tmp_path: Path) -> None:
        with opened_sandbox(Path(shutil.copytree(made, tmp_path / "data"))) as city:
            for _ in range(MOST_DAYS // 365):
                advanced(city, 365 * 86_400)
                assert sell(city, "ok", CONFIRM_ABOVE).status_code == 201
            told = problem(city.post("/v1/sandbox/clock", {"advance_seconds": 1}), 422, "clock-too-far")
            assert told["facts"] == {"moved_seconds": MOST_DAYS * 86_400, "advance_seconds": 1}
            city.settled()
            assert verify(city.installation.journal).ok

    def test_terminals_sign_by_the_real_time(self, sandbox: City) -> None:
        """A terminal does not move its clock because the sandbox does."""
        till = Terminal(sandbox, MERCHANT, "t1").activated()
        advanced(sandbox, 3_600)
        origin = str(sandbox.http.base_url).rstrip("/")
        assert till.call("POST", "/v1/redemptions", sale("ok"), key="signed", origin=origin).status_code == 201
        ahead = int(sandbox.installation.clock().timestamp())
        refused = till.call("POST", "/v1/redemptions", sale("ok"), origin=origin, created=ahead)
        problem(refused, 401, "signature-expired")


class TestWhatIsThere:
    def test_every_answer_says_that_nothing_here_is_real(self, sandbox: City) -> None:
        asked = [
            sandbox.get("/version", by=""),
            sandbox.get("/nothing", by=""),
            sell(sandbox, "ok"),
            sell(sandbox, "used"),
            *(sandbox.post("/v1/actions", ride(sandbox), by="source") for _ in range(2)),
        ]
        assert [answer.headers.get_list("carbon-mode") for answer in asked] == [["test"]] * len(asked)
        assert asked[0].json()["livemode"] is False
        assert [answer.status_code for answer in asked[-2:]] == [201, 201]

    def test_it_is_what_a_live_server_is_and_a_clock(self, sandbox: City, city: City) -> None:
        told = [place.get("/docs/openapi.json", by="").json()["paths"] for place in (sandbox, city)]
        clock = told[0].pop("/v1/sandbox/clock")
        assert told[0] == told[1]
        assert {method: said["operationId"] for method, said in clock.items()} == {
            "get": "getSandboxClock",
            "post": "advanceSandboxClock",
        }
        roles = {method: sorted(r["key"][0] for r in said["security"] if "key" in r) for method, said in clock.items()}
        assert roles["post"] == ["operator"]
        assert roles["get"] == sorted(ROLES)

    def test_its_log_holds_before_the_auditor(self, sandbox: City) -> None:
        sandbox.settled()
        report = verify(sandbox.installation.journal)
        assert report.ok, report.first_wrong

    def test_the_used_code_counts_in_nobodys_batch(self, made: Path, tmp_path: Path) -> None:
        with opened(Path(shutil.copytree(made, tmp_path / "data"))) as installation:
            assert installation.finisher.settled(MERCHANT, 30)
            shop = installation.journal.state(f"merchant/{MERCHANT}", [("tills", t) for t in ("t1", "t2", EARLIER)])
            assert {name: till.sales.count for name, till in shop.tills.items()} == {EARLIER: 1}

    def test_it_is_made_once(self, made: Path, tmp_path: Path) -> None:
        with opened(Path(shutil.copytree(made, tmp_path / "data"))) as installation:
            heads = installation.journal.heads()
            assert installation.sandbox is not None
            installation.sandbox.found()
            assert installation.journal.heads() == heads

    def test_what_was_broken_off_is_made_to_its_end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with opened(tmp_path) as installation:
            assert installation.sandbox is not None
            for broken in ("_top_up", "_use_up"):
                monkeypatch.setattr(installation.sandbox, broken, None)
                with pytest.raises(TypeError):
                    installation.sandbox.found()
                monkeypatch.undo()
            installation.sandbox.found()
            assert verify(installation.journal).ok

    def test_the_command_line_tells_a_key_of_each_role_and_what_to_call(self, tmp_path: Path) -> None:
        environment = {"CARBON_DATA_DIR": str(tmp_path / "data")}
        told = CliRunner(env=environment).invoke(cli, ["sandbox", "keys", "--json"])
        assert told.exit_code == 0, told.output
        found = msgspec.json.decode(told.stdout)
        assert {name.partition(" ")[0] for name in found["keys"]} == {
            "operator",
            "app",
            "source",
            "buyer",
            "auditor",
            "terminal",
        }
        assert all(key.startswith("cp_test_") for key in (*found["keys"].values(), *found["refused_keys"].values()))
        assert found["codes"] == {fixed.code: fixed.means for fixed in FIXED}
        shown = CliRunner(env=environment).invoke(cli, ["sandbox", "keys"])
        assert f"code {CODE['ok']}" in shown.output
        assert "…" not in shown.output


def ride(city: City) -> dict[str, Any]:
    return {
        "source": "test-bus",
        "record_id": city.name("ride"),
        "resident": "card-ok",
        "behaviour": "bus",
        "quantity": "1",
        "unit": "trip",
        "occurred_at": "2025-06-15T11:00:00+08:00",
    }


class TestApart:
    """What is live knows nothing of sandboxes, and the other way."""

    def test_a_live_server_has_no_clock_to_move_and_no_code_that_means_the_same(self, city: City) -> None:
        for method in ("GET", "POST"):
            problem(city.call(method, "/v1/sandbox/clock", {"advance_seconds": 1}), 404, "not-found")
        for fixed in FIXED:
            body = {"code": fixed.code, "merchant": "shop", "terminal": "t1", "points": 1}
            problem(city.post("/v1/redemptions", body, by="terminal"), 404, "code-unknown")
        assert "sandbox" not in city.get("/docs/openapi.json", by="").text
        assert city.installation.sandbox is None
        assert city.get("/version", by="").json()["livemode"] is True

    def test_a_live_server_says_no_mode(self, served_city: City) -> None:
        assert "carbon-mode" not in served_city.get("/version", by="").headers

    def test_keys_of_the_other_mode_are_told_from_wrong_ones(self, city: City, sandbox: City) -> None:
        for here, there in ((city, sandbox), (sandbox, city)):
            told = {"Authorization": f"Bearer {there.keys['operator']}"}
            answer = problem(here.get("/v1/fund", by="", headers=told), 401, "key-of-other-mode")
            assert "cp_test_" in answer["title"]
        for place in (city, sandbox):
            for path in ("/v1/actions", "/v1/redemptions"):
                other = "cp_live_x" if place is sandbox else "cp_test_x"
                refused = place.post(path, {}, by="", headers={"Authorization": f"Bearer {other}"})
                problem(refused, 401, "key-of-other-mode")

    @pytest.mark.parametrize("database", ["sqlite", "postgresql"])
    @pytest.mark.parametrize(("first", "then"), [("1", "0"), ("0", "1")])
    def test_neither_opens_the_others_data_and_nothing_is_written_there(
        self, tmp_path: Path, request: pytest.FixtureRequest, database: str, first: str, then: str
    ) -> None:
        url = request.getfixturevalue("postgres_url") if database == "postgresql" else ""
        create_installation(settings(tmp_path, mode=first, url=url))
        with opened(tmp_path, mode=first, url=url) as installation:
            heads = installation.journal.heads()
        words = "CARBON_SANDBOX=1" if first == "1" else "folder or a database of its own"
        for way in (lambda known: open_installation(known).close(), create_installation):
            with pytest.raises(OtherMode, match=words):
                way(settings(tmp_path, mode=then, url=url))
        with opened(tmp_path, mode=first, url=url) as installation:
            assert installation.journal.heads() == heads
            assert (installation.directory.moves is None) == (first == "0")

    def test_data_from_before_there_were_sandboxes_is_live(self, tmp_path: Path) -> None:
        with opened(tmp_path, mode="0"):
            pass
        with sqlite3.connect(tmp_path / "journal" / "p000.sqlite") as connection:
            connection.execute("DELETE FROM about WHERE name = 'mode'")
        connection.close()
        with pytest.raises(OtherMode):
            open_installation(settings(tmp_path, mode="1"))
        with opened(tmp_path, mode="0"):
            pass

    def test_a_sandbox_has_a_folder_of_its_own_where_nothing_is_said(self) -> None:
        assert load({"CARBON_SANDBOX": "1"}).folder != load({}).folder
        assert load({"CARBON_SANDBOX": "1", "CARBON_DATA_DIR": "/x"}).data_dir == "/x"


def test_it_is_served_by_the_flag_alone_also_on_postgresql(tmp_path: Path, postgres_url: str) -> None:
    """With its follower, which is a process of its own, in the same sandbox."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CARBON_")}
    environment |= {"CARBON_DATA_DIR": str(tmp_path), "CARBON_DATABASE_URL": postgres_url, "CARBON_PARTITIONS": "1"}
    command = [sys.executable, "-m", "carbon_points", "serve", "--sandbox", "--port", "0", "--json"]
    process = subprocess.Popen(command, env=environment, cwd=PROJECT, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        url = msgspec.json.decode(process.stdout.readline())["url"]
        wait_for(lambda: _answers(url))
        with opened(tmp_path, url=postgres_url) as beside:
            assert beside.sandbox is not None
            key = beside.sandbox.keys().keys["operator"]
        headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": "k"}
        sold = httpx.post(f"{url}/v1/redemptions", json=sale("ok"), headers=headers)
        assert (sold.status_code, sold.headers["carbon-mode"]) == (201, "test")
        at = sold.headers["carbon-position"]
        assert httpx.get(f"{url}/v1/merchants?min_position={at}", headers=headers).status_code == 200
    finally:
        process.terminate()
        process.wait(40)
        assert process.stdout is not None
        process.stdout.close()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False
