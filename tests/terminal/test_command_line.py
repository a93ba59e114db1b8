"""The command-line terminal: what a cashier reads, what a program reads, and how it exits."""

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

import carbon_points_terminal.__main__ as command_line
from carbon_points_terminal import NoAnswer, Request, Response
from carbon_points_terminal.__main__ import cli, main
from carbon_points_terminal.enrolment import EnrolmentFailed, Folder, NotEnrolled, Settings
from carbon_points_terminal.files import KeyUnusable
from carbon_points_terminal.journal import JournalForeign
from carbon_points_terminal.signing import public_text, read_key
from tests.terminal.platform import Network, Platform, Time, problem, shown

CODE = "801234567890123456"
URL = "https://points.example"
Told = Callable[..., Any]


class Wire:
    """What the program sends through, instead of a network; it waits for nobody."""

    def __init__(self) -> None:
        self.time, self.platform = Time(), Platform()
        self.network = Network(self.platform, self.time, iter(()))
        self.callers: list[object] = []

    @contextmanager
    def over_http(self, url: str, caller: object) -> Iterator[Any]:
        self.callers.append(caller)
        yield self.network


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    wire = Wire()
    monkeypatch.setattr(command_line, "OverHttp", wire.over_http)
    monkeypatch.setattr(command_line, "SteadyClock", lambda: wire.time)
    monkeypatch.setattr(command_line, "wall_clock", wire.time)
    monkeypatch.setattr(command_line, "sleep", wire.time.pass_)
    return wire


@pytest.fixture
def run(wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Told:
    """A terminal with a bearer key, and its commands: the object on the last line, with the exit code beside it."""

    def run(*arguments: str, code: int = 0, typed: str = "") -> Any:
        words = ["--folder", str(tmp_path / "till"), *arguments, "--json"]
        monkeypatch.setattr("sys.argv", ["carbon-points-terminal", *words])
        result = CliRunner().invoke(_program, words, input=typed)
        assert result.exit_code == code, (arguments, result.output, result.exception)
        return json.loads(result.stdout.splitlines()[-1]) if result.stdout else None

    run("activate", "--url", URL, "--merchant", "shop", "--terminal", "t1", typed="cp_live_1\n")
    return run


@click.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []})
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def _program(words: tuple[str, ...]) -> None:
    """`main` as it is run, errors and all: it reads `sys.argv`."""
    main()


def test_a_day_at_the_till(run: Told, wire: Wire) -> None:
    paid = run("pay", "100", "--code", CODE)
    assert (paid["result"], paid["points"], paid["amount_fen"], paid["stan"]) == ("approved", 100, 200, "000001")
    held = run("authorise", "50", typed=f"{CODE}\n")["reference"]
    assert run("capture", held, "20")["points"] == 20
    assert run("refund", held, "5")["result"] == "approved"
    assert run("void", run("authorise", "50", "--code", CODE)["reference"])["status"] == "voided"
    assert run("reverse", paid["reference"])["result"] == "reversed"
    assert run("query", paid["reference"])["status"] == "reversed"
    shown = run("batch", "show")
    assert shown["totals"]["sales"] == {"count": 2, "points": 120, "fen": 240}
    assert shown["totals"]["reversals"]["points"] == 100
    assert run("unresolved") == {"data": []}
    closed = run("batch", "close")
    assert (closed["answer"], closed["batch"], closed["next_batch"]) == ("agreed", 1, 2)
    assert set(wire.callers) == {"cp_live_1"}


def test_a_refusal_exits_with_one_and_its_code(run: Told) -> None:
    told = run("pay", "5000", "--code", CODE, code=1)
    assert (told["result"], told["code"]) == ("declined", "insufficient-points")
    assert run("capture", "01HZZZZZZZZZZZZZZZZZZZZZZZ", "1", code=1)["error"] == "sale-unknown"


def test_what_is_not_known_yet_exits_with_four_and_the_next_command_goes_on(run: Told, wire: Wire) -> None:
    wire.network.faults = iter(["answer-lost", "lost", "lost"])
    told = run("pay", "100", "--code", CODE, code=4)
    assert (told["state"], told["exception"]) == ("REVERSING", False)
    assert [one["reference"] for one in run("unresolved")["data"]] == [told["reference"]]
    wire.time.pass_(60)
    run("run", "--once")
    assert run("unresolved") == {"data": []}
    assert wire.platform.points == 1000


def test_run_goes_on_until_it_is_stopped(run: Told, wire: Wire) -> None:
    wire.network.faults = iter(["answer-lost", *["lost"] * 4])
    run("pay", "100", "--code", CODE, code=4)
    run("run", "--rounds", "40")
    assert wire.platform.points == 1000


def test_a_batch_that_does_not_agree_shows_the_lines_and_theirs_can_be_taken(run: Told, wire: Wire) -> None:
    run("pay", "100", "--code", CODE)
    wire.platform._move(wire.platform._new("elsewhere", 30, "captured"), "sale", 30)
    told = run("batch", "close", code=1)
    assert told["answer"] == "not-agreed"
    (one,) = told["differences"]
    assert (one["here"], one["there"]["redemption_id"], one["there"]["points"]) == (None, "rdm_elsewhere", 30)
    assert run("batch", "close", "--take-theirs")["answer"] == "agreed"


def test_a_cashier_reads_whether_there_is_a_sale(run: Told, wire: Wire, tmp_path: Path) -> None:
    def read(*words: str) -> str:
        return CliRunner().invoke(cli, ["--folder", str(tmp_path / "till"), *words]).stdout

    assert "APPROVED 成功 · 100 points (积分), 2.00 yuan" in read("pay", "100", "--code", CODE)
    assert "DECLINED 未成功 · insufficient-points" in read("pay", "9999", "--code", CODE)
    wire.network.faults = iter(["answer-lost", "lost", "lost"])
    assert "NO SALE 正在撤销，请勿交付商品" in read("pay", "100", "--code", CODE)
    assert "NO SALE" in read("unresolved")
    assert "2.00" in read("batch", "show")
    wire.time.pass_(60)
    read("run", "--once")
    assert "AGREED 账平" in read("batch", "close")


# -- becoming a terminal -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wrong", "error"), [("journal.sqlite", "journal-missing"), ("bearer.key", "key-unusable")])
def test_a_till_that_lost_a_file_says_which(run: Told, tmp_path: Path, wrong: str, error: str) -> None:
    (tmp_path / "till" / wrong).unlink()
    assert run("pay", "100", "--code", CODE, code=3)["error"] == error


def test_a_folder_is_one_terminal_and_stays_it(run: Told, tmp_path: Path) -> None:
    told = run("activate", "--url", URL, "--merchant", "shop", "--terminal", "t2", typed="cp_live_2\n", code=3)
    assert told["error"] == "not-enrolled"
    assert (tmp_path / "till").stat().st_mode & 0o077 == 0
    assert (tmp_path / "till" / "bearer.key").stat().st_mode & 0o077 == 0


def test_a_terminal_is_not_made_of_what_it_cannot_be_made_of(wire: Wire, tmp_path: Path) -> None:
    folder = ["--folder", str(tmp_path / "till")]
    for words in (["--url", "points.example"], ["--url", URL, "--merchant", "shop"]):
        assert CliRunner().invoke(cli, [*folder, "activate", *words], input="1\n").exit_code == 2
    assert CliRunner().invoke(cli, [*folder, "activate", "--url", URL], input="").exit_code == 2
    with pytest.raises(KeyUnusable):
        Folder(tmp_path / "till").use_bearer(Settings(URL, "shop", "t1"), "密钥")
    assert not (tmp_path / "till").exists()


class Office:
    """The platform's side of an activation: it holds proofs against the keys, and answers once for each."""

    def __init__(self, *losses: bool) -> None:
        self.losses, self.keys, self.heard = iter(losses), list[str](), list[dict[str, str]]()

    def send(self, request: Request) -> Response | NoAnswer:
        body = json.loads(request.body)
        self.heard.append(body)
        first = "carbon-points-rotation" if request.path.endswith("keys") else "carbon-points-activation"
        second = f"trm_{len(self.keys)}" if request.path.endswith("keys") else body["activation_code"]
        if second == "expired":
            return problem(409, "activation-code-expired")
        if body["public_key"] not in self.keys:
            key = Ed25519PublicKey.from_public_bytes(base64.b64decode(body["public_key"]))
            key.verify(base64.b64decode(body["proof"]), f"{first}\n{second}\n{body['public_key']}".encode())
            self.keys.append(body["public_key"])
        if next(self.losses, False):
            return NoAnswer("lost")
        at = f"trm_{self.keys.index(body['public_key']) + 1}"
        return shown(201, {"key_id": at, "merchant": "shop", "terminal": "t1", "server_time": "2026-06-15T04:00:00Z"})


def test_an_activation_whose_answer_is_lost_goes_on_with_the_same_key(tmp_path: Path) -> None:
    folder, office = Folder(tmp_path / "till"), Office(True)
    with pytest.raises(EnrolmentFailed) as failed:
        folder.activate(URL, "4711-0815", office)
    assert failed.value.code == "unanswered"
    settings = folder.activate(URL, "4711-0815", office)
    assert office.heard[0] == office.heard[1], "the same key and proof"
    assert settings == folder.settings()
    assert settings.key_id == "trm_1"
    key = folder.caller(settings)
    assert not isinstance(key, str)
    assert public_text(key) == office.keys[0]
    assert {path.name for path in folder.path.iterdir()} == {"terminal.json", "journal.sqlite", "trm_1.key"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.path.iterdir())


def test_a_refused_activation_is_told_by_its_code(tmp_path: Path) -> None:
    with pytest.raises(EnrolmentFailed) as failed:
        Folder(tmp_path / "till").activate(URL, "expired", Office())
    assert failed.value.code == "activation-code-expired"
    assert not (tmp_path / "till" / "terminal.json").exists()


def test_a_key_is_changed_by_one_file_and_the_old_one_signs_until_then(tmp_path: Path) -> None:
    folder, office = Folder(tmp_path / "till"), Office(False, True)
    before = folder.activate(URL, "4711-0815", office)
    with pytest.raises(EnrolmentFailed):
        folder.rotate(office)
    assert folder.settings() == before
    after = folder.rotate(office)
    assert after.key_id == "trm_2"
    assert public_text(read_key(folder.path / "trm_2.key")) == office.keys[1]
    assert not (folder.path / "trm_1.key").exists(), "the old key is of no use any more"


def test_a_terminal_whose_key_was_lost_is_activated_again_and_keeps_its_journal(tmp_path: Path) -> None:
    folder, office = Folder(tmp_path / "till"), Office()
    settings = folder.activate(URL, "4711-0815", office)
    with folder.journal(settings) as journal:
        assert journal.stan() == 1
    (folder.path / "trm_1.key").unlink()
    with pytest.raises(NotEnrolled):
        folder.activate(URL, "1234-5678", office)
    settings = folder.activate(URL, "1234-5678", office, again=True)
    assert settings.key_id == "trm_2"
    with folder.journal(settings) as journal:
        assert journal.stan() == 2
    with pytest.raises(JournalForeign):
        folder.use_bearer(Settings(URL, "shop", "t9"), "cp_live_9", again=True)
    assert folder.settings() == settings


def test_no_private_key_leaves_the_terminal(tmp_path: Path) -> None:
    folder, office = Folder(tmp_path / "till"), Office()
    folder.activate(URL, "4711-0815", office)
    folder.rotate(office)
    for path in folder.path.glob("*.key"):
        secret = path.read_text().strip()
        assert all(secret not in json.dumps(body) for body in office.heard)


def test_the_real_transport_gives_up_when_nobody_is_there(tmp_path: Path) -> None:
    with command_line.OverHttp("http://127.0.0.1:9", None, client=httpx.Client()) as transport:
        assert isinstance(transport.send(Request("GET", "/v1/offers")), NoAnswer)


def test_without_a_network_it_takes_allowances_and_sends_them_when_there_is_one(wire: Wire, run: Told) -> None:
    wire.platform.limits = {"most_points": 200, "most_count": 5, "most_sum": 500, "most_age_hours": 24}
    allowance = wire.platform.allowance("a", 100, wire.time.at)
    assert run("offline", "pay", "60", typed=f"{allowance}\n", code=1)["error"] == "offline-not-prepared"
    run("run", "--once")  # fetches what is needed
    assert run("offline", "pay", "60", typed=f"{allowance}\n")["state"] == "STORED"
    wire.network.faults = iter(["lost"])
    assert run("offline", "forward", code=4)["stored"] == {"count": 1, "points": 60}
    told = run("offline", "forward")
    assert (told["approved"], told["data"][0]["kind"]) == ({"count": 1, "points": 60}, "offline")
    assert run("offline", "list")["data"] == told["data"]
    assert run("refund", told["data"][0]["reference"], "10")["result"] == "approved"
    assert run("reverse", told["data"][0]["reference"], code=1)["error"] == "use-refund"
