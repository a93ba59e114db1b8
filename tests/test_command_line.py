"""The command line: every command tells a program one JSON object, and may be repeated."""

import gzip
import io
import json
import multiprocessing
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import psutil
import psycopg
import pytest
from click.testing import CliRunner, Result

from carbon_points import ingest as of_ingest
from carbon_points import settings
from carbon_points.__main__ import FILE_NICE, cli, main
from carbon_points.api.installation import Installation, open_installation
from carbon_points.domain.merchant import EnrolTerminal, RegisterMerchant
from carbon_points.domain.terminal import AddTerminalKey
from carbon_points.judges import Judges
from carbon_points.methodologies import shipped
from tests.api.city import wait_for
from tests.conftest import PROJECT
from tests.given import table

Run = Callable[..., Result]
KINDS = ("accepted", "duplicate", "conflict", "pending", "refused", "malformed")


class Installed:
    """An installation that commands are run in."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CARBON_")}
        self.environment = clean | {"CARBON_DATA_DIR": str(folder), "CARBON_PARTITIONS": "2"} | environment

    def run(self, *arguments: str | Path) -> Result:
        return CliRunner(env=_only(self.environment)).invoke(cli, [str(argument) for argument in arguments])

    def told(self, *arguments: str | Path, code: int = 0) -> Any:
        """The object on the last line of a command's output."""
        result = self.run(*arguments, "--json")
        assert result.exit_code == code, (arguments, result.output, result.exception)
        *_, last = result.stdout.splitlines()
        found = json.loads(last)
        assert isinstance(found, dict)
        return found

    @contextmanager
    def opened(self) -> Iterator[Installation]:
        """The installation itself, for what no command does."""
        installation = open_installation(settings.load(self.environment))
        yield installation
        installation.close()

    def apart(
        self, *arguments: str | Path, program: Sequence[str] = ("-m", "carbon_points"), **more: Any
    ) -> "subprocess.Popen[str]":
        """The same in a process of its own."""
        command = [sys.executable, *program, *map(str, arguments)]
        return subprocess.Popen(
            command,
            cwd=PROJECT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **more,
        )

    def ended(self, *arguments: str | Path) -> tuple[int, str, str]:
        """Exit code, output and errors of the whole program, to its last handler."""
        output, errors = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(errors):
            for name, value in _only(self.environment).items():
                patch.setenv(name, value) if value is not None else patch.delenv(name, raising=False)
            patch.setattr(sys, "argv", ["carbon-points", *map(str, arguments)])
            with pytest.raises(SystemExit) as ended:
                main()
        return int(ended.value.code or 0), output.getvalue(), errors.getvalue()


def _only(environment: Mapping[str, str]) -> dict[str, str | None]:
    """What makes the environment of this process that one, as far as it concerns us."""
    ours = {name: None for name in os.environ if name.startswith("CARBON_")}
    return {**ours, **{name: value for name, value in environment.items() if name.startswith("CARBON_")}}


@pytest.fixture
def here(tmp_path: Path) -> Installed:
    return Installed(tmp_path / "data")


@pytest.fixture
def szt(here: Installed) -> Installed:
    """With a source that opens accounts."""
    here.told("sources", "add", "szt", "--behaviours", "bus,metro_in,metro_out,shared_bike", "--opens-accounts")
    return here


def report(number: int, **said: Any) -> dict[str, Any]:
    fields = {"source": "szt", "record_id": f"r-{number}", "resident": f"card-{number % 500}", "behaviour": "bus"}
    fields |= {"quantity": "1", "unit": "trip", "occurred_at": f"2025-0{1 + number % 6}-15T11:00:00+08:00"}
    return fields | said


def written(path: Path, *reports: Any) -> Path:
    lines = (one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in reports)
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def counts(told: Mapping[str, Any]) -> dict[str, Any]:
    """What the verdicts come to, which does not depend on how long it took."""
    assert sum(told[kind] for kind in KINDS) == told["read"]
    assert sum(told["refused_by_code"].values()) == told["refused"]
    return {name: told[name] for name in ("read", *KINDS, "refused_by_code", "reduction_mg", "points")}


def reported(told: Mapping[str, Any]) -> list[tuple[int, str, str]]:
    """Line, verdict and code of what the report file says, which has a reason for each."""
    lines = [json.loads(line) for line in Path(told["report"]).read_text("utf-8").splitlines()]
    assert all(line["detail"] for line in lines)
    return [(line["line"], line["verdict"], line.get("code", "")) for line in lines]


# -- every command ---------------------------------------------------------------------------------------------------


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.mark.parametrize(
    ("path", "command"), list(commands()), ids=lambda v: " ".join(v) if isinstance(v, tuple) else ""
)
def test_every_command_says_what_it_does_and_can_speak_json(path: tuple[str, ...], command: click.Command) -> None:
    assert command.help
    assert any("--json" in option.opts for option in command.params), f"{' '.join(path)} has no --json"
    result = CliRunner().invoke(cli, [*path, "--help"])
    assert result.exit_code == 0


def test_every_command_tells_one_object_on_its_last_line(szt: Installed, tmp_path: Path) -> None:
    file = written(tmp_path / "a.ndjson", report(1), report(1), "nonsense")
    table_file = tmp_path / "tidy.toml"
    table_file.write_text(table("tidy"), "utf-8")
    key = szt.told("keys", "add", "app", "x")["key_id"]
    for told in (
        szt.told("sources", "add", "hz", "--behaviours", "bus"),
        szt.told("sources", "list"),
        szt.told("ingest", file, "--source", "szt"),
        szt.told("keys", "list"),
        szt.told("keys", "revoke", key),
        szt.told("methodologies", "list"),
        szt.told("methodologies", "show", "bus"),
        szt.told("methodologies", "check"),
        szt.told("methodologies", "publish", table_file),
        szt.told("rebuild"),
        szt.told("lapse"),
        szt.told("settle"),
        szt.told("pay"),
        szt.told("verify"),
        szt.told("export", tmp_path / "export"),
        szt.told("config", "check"),
    ):
        assert told


def test_without_json_the_same_commands_speak_to_people(szt: Installed) -> None:
    for words, expected in (
        (("sources", "list"), "szt"),
        (("methodologies", "list"), "公交出行"),
        (("methodologies", "show", "bus"), "Luzhou"),
        (("keys", "list"), "keys"),
        (("config", "check"), "CARBON_DATA_DIR"),
    ):
        result = szt.run(*words)
        assert result.exit_code == 0
        assert expected in result.stdout


@pytest.mark.parametrize(
    ("environment", "arguments", "code", "error"),
    [
        ({"CARBON_DATABASE_URL": "postgresql://x:hunter2@127.0.0.1:1/x"}, ("sources", "list"), 3, "unavailable"),
        ({"CARBON_DATABASE_URL": "mysql://x"}, ("sources", "list"), 1, "refused"),
        ({"CARBON_PORT": "many"}, ("config", "check"), 1, "refused"),
        ({"CARBON_DATA_DIR": "/proc/nothing/here"}, ("sources", "list"), 3, "unavailable"),
        ({}, ("keys", "add", "terminal", "shop"), 1, "refused"),
        ({}, ("sources", "add", "a b", "--behaviours", "bus"), 1, "refused"),
        ({}, ("sources", "add", "szt", "--behaviours", "[/red]"), 1, "refused"),
    ],
    ids=["no database", "wrong database", "wrong number", "no folder", "wrong owner", "wrong id", "markup"],
)
def test_what_cannot_be_done_is_told_without_a_traceback(
    tmp_path: Path, environment: dict[str, str], arguments: tuple[str, ...], code: int, error: str
) -> None:
    ended, output, errors = Installed(tmp_path / "data", **environment).ended(*arguments, "--json")
    assert ended == code
    assert json.loads(output.splitlines()[-1])["error"] == error
    assert error in errors
    assert "Traceback" not in errors
    assert "hunter2" not in output + errors


def test_a_wrong_call_ends_with_2(here: Installed, tmp_path: Path) -> None:
    for words in (
        ("nothing",),
        ("ingest", tmp_path / "not-there", "--source", "szt"),
        ("ingest", written(tmp_path / "a.ndjson"), "--source", "szt", "--as", "bus"),
        ("keys", "add", "king", "x"),
        ("sources", "add", "szt"),
    ):
        assert here.run(*words).exit_code == 2


# -- sources, keys, settings -----------------------------------------------------------------------------------------


class TestSources:
    def test_saying_the_same_again_changes_nothing(self, here: Installed) -> None:
        words = ("sources", "add", "szt", "--behaviours", "bus, metro_in,", "--opens-accounts", "--county", "330503")
        told = [here.told(*words) for _ in range(2)]
        assert told[0] == told[1]
        assert (told[0]["behaviours"], told[0]["opens_accounts"]) == (["bus", "metro_in"], True)
        entries = here.told("verify")["entries"]
        here.told(*words)
        assert here.told("verify")["entries"] == entries

    def test_saying_otherwise_changes_it(self, here: Installed) -> None:
        here.told("sources", "add", "szt", "--behaviours", "bus", "--opens-accounts")
        told = here.told("sources", "add", "szt", "--behaviours", "bus,walk", "--lateness-days", "30")
        assert (told["behaviours"], told["opens_accounts"], told["lateness_days"]) == (["bus", "walk"], False, 30)
        assert here.told("sources", "list")["sources"] == [told]

    def test_a_behaviour_that_nothing_counts_yet_is_pointed_out(self, here: Installed) -> None:
        result = here.run("sources", "add", "szt", "--behaviours", "bus,flying", "--json")
        assert "no methodology counts flying yet" in result.stderr
        assert result.exit_code == 0


class TestKeys:
    def test_a_key_is_made_listed_without_its_secret_and_revoked(self, here: Installed) -> None:
        made = here.told("keys", "add", "terminal", "shop/t1")
        assert made["secret"].startswith("cp_live_")
        listed = here.run("keys", "list", "--json").stdout
        assert made["secret"] not in listed
        [shown] = json.loads(listed)["keys"]
        assert (shown["key_id"], shown["role"], shown["owner"]) == (made["key_id"], "terminal", "shop/t1")
        assert here.told("keys", "revoke", made["key_id"])["revoked"] is True
        assert here.told("keys", "revoke", made["key_id"], code=1)["revoked"] is False
        assert here.told("keys", "list")["keys"][0]["revoked_at"]


class TestTerminals:
    def test_a_terminal_gets_a_code_and_is_suspended_and_taken_from_again(self, here: Installed) -> None:
        with here.opened() as installation:
            for command in (
                RegisterMerchant(merchant="shop", name="茶馆", fen_per_point=2),
                EnrolTerminal(merchant="shop", terminal="t1"),
                AddTerminalKey(merchant="shop", terminal="t1", key_id="trm_1", public_key=f"{'A' * 42}E="),
            ):
                installation.write_now(command)
        assert re.fullmatch(
            r"([0-9]{4}-){7}[0-9]{4}", here.told("terminals", "activate", "shop", "t1")["activation_code"]
        )
        for _ in range(2):
            assert here.told("terminals", "suspend", "shop", "t1", "--reason", "stolen")["suspended"] is True
        told = here.told("terminals", "keys", "shop", "t1")
        assert (told["suspended"], [key["key_id"] for key in told["keys"]]) == (True, ["trm_1"])
        assert "trm_1" in here.run("terminals", "keys", "shop", "t1").stdout
        # As if it were restored from a backup that knew of no terminal:
        with closing(sqlite3.connect(here.folder / "directory.sqlite")) as database, database:
            database.execute("DELETE FROM terminals")
            database.execute("DELETE FROM terminal_keys")
        assert here.told("terminals", "refresh")["terminals"] == 1
        with here.opened() as installation:
            [key] = installation.directory.terminals.keys("shop/t1")
            assert (key.key_id, key.suspended) == ("trm_1", True)
        assert here.told("terminals", "resume", "shop", "t1", "--reason", "found")["suspended"] is False
        assert here.told("terminals", "keys", "shop", "t1")["suspended"] is False
        assert here.told("verify")["ok"]

    @pytest.mark.parametrize("words", [("activate",), ("suspend", "--reason", "x"), ("keys",)], ids=lambda w: w[0])
    def test_what_is_not_enrolled_is_refused(self, here: Installed, words: tuple[str, ...]) -> None:
        ended, output, _ = here.ended("terminals", words[0], "shop", "t1", *words[1:], "--json")
        assert (ended, json.loads(output.splitlines()[-1])["error"]) == (1, "merchant-unknown")


class TestConfig:
    def test_settings_are_shown_and_secrets_hidden(self, tmp_path: Path) -> None:
        here = Installed(
            tmp_path,
            CARBON_DATABASE_URL="postgresql://carbon:hunter2@db/carbon",
            CARBON_REDIS_URL="redis://:hunter2@cache",
            CARBON_SUBJECT_KEY="ab" * 32,
        )
        told = here.told("config", "check")
        assert told["database_url"] == "postgresql://carbon:***@db/carbon"
        for result in (here.run("config", "check"), here.run("config", "check", "--json")):
            assert "hunter2" not in result.output
            assert "abab" not in result.output


class TestMethodologies:
    def test_what_is_shipped_is_in_the_log_from_the_first_command_on(self, here: Installed) -> None:
        listed = {(t["id"], t["version"]) for t in here.told("methodologies", "list")["methodologies"]}
        assert listed == {(s.table.id, s.table.version) for s in shipped()}
        assert len({name for name, _ in listed}) >= 12
        versions = here.told("methodologies", "show", "shared_bike")["versions"]
        assert [v["table"]["factors"]["reduction"]["value"] for v in versions] == ["40", "93.3"]
        assert here.told("methodologies", "show", "flying", code=1) == {"versions": []}

    def test_worked_examples_are_checked(self, here: Installed, tmp_path: Path) -> None:
        told = here.told("methodologies", "check")
        assert (told["tables"], told["wrong"]) == (len(shipped()), [])
        assert told["examples"] >= 3 * told["tables"]
        [bus] = [s for s in shipped() if s.table.id == "bus"]
        (tmp_path / "bus.toml").write_text(bus.text.replace('value = "80"', 'value = "81"'), "utf-8")
        (tmp_path / "bus.examples.toml").write_text(bus.examples, "utf-8")
        assert here.told("methodologies", "check", tmp_path / "bus.toml", code=1)["wrong"]

    def test_a_table_is_published_once_for_good(self, here: Installed, tmp_path: Path) -> None:
        file = tmp_path / "tidy.toml"
        file.write_text(table("tidy"), "utf-8")
        told = [here.told("methodologies", "publish", file)["published"] for _ in range(2)]
        assert told == [True, False]
        file.write_text(table("tidy", points=11), "utf-8")
        code, output, errors = here.ended("methodologies", "publish", file, "--json")
        assert (code, json.loads(output)["error"]) == (1, "methodology-altered")
        assert "refused" in errors


# -- ingest ----------------------------------------------------------------------------------------------------------


def every_kind() -> list[Any]:
    tap = {"unit": "tap", "resident": "card-1"}
    return [
        report(1),
        report(2),
        report(1),
        report(1, occurred_at="2025-01-01T00:00:00+08:00"),
        report(3, behaviour="metro_in", **tap),
        report(4, behaviour="metro_out", **tap, occurred_at="2025-01-01T00:00:00+08:00"),
        report(5, behaviour="metro_out", **tap, occurred_at="2025-04-15T11:30:00+08:00"),
        "",
        "nonsense",
        '{"source": "szt"',
        report(6, quantity=1),
        report(7, source="hz"),
        report(8, behaviour="walk"),
        report(9, behaviour="shared_bike", quantity="0.0000", unit="km"),
        report(10, occurred_at="2199-01-01T00:00:00Z"),
        report(11, resident="公交卡 11"),
        {**report(12), "note": "?"},
    ]


class TestIngest:
    def test_every_kind_of_verdict_is_counted_and_what_was_not_accepted_is_reported_with_its_reason(
        self, szt: Installed, tmp_path: Path
    ) -> None:
        told = szt.told("ingest", written(tmp_path / "a.ndjson", *every_kind()), "--source", "szt")
        assert counts(told) == {
            "read": 16,
            "accepted": 4,
            "duplicate": 1,
            "conflict": 1,
            "pending": 1,
            "refused": 4,
            "malformed": 5,
            "refused_by_code": {
                "exit-without-entry": 1,
                "behaviour-not-allowed": 1,
                "quantity-below-least": 1,
                "occurred-in-future": 1,
            },
            "reduction_mg": 3 * 80_000 + 46_000,
            "points": 40,
        }
        assert told["resumed_at"] == 0
        assert told["actions_per_second"] > 0
        assert told["report"] == str(tmp_path / "a.ndjson.report.ndjson")
        assert reported(told) == [
            (3, "duplicate", ""),
            (4, "conflict", "identity-reused"),
            (5, "pending", ""),
            (6, "refused", "exit-without-entry"),
            (9, "malformed", "not-json"),
            (10, "malformed", "not-json"),
            (11, "malformed", "quantity-not-text"),
            (12, "malformed", "not-yours"),
            (13, "refused", "behaviour-not-allowed"),
            (14, "refused", "quantity-below-least"),
            (15, "refused", "occurred-in-future"),
            (17, "malformed", "unknown-field"),
        ]

    def test_repeated_it_accepts_nothing(self, szt: Installed, tmp_path: Path) -> None:
        file = written(tmp_path / "a.ndjson", *(report(n) for n in range(100)))
        first, again = (szt.told("ingest", file, "--source", "szt") for _ in range(2))
        assert (first["accepted"], first["duplicate"]) == (100, 0)
        assert (again["accepted"], again["duplicate"], again["reduction_mg"]) == (0, 100, 0)
        assert szt.told("verify")["actions"] == 100

    def test_a_behaviour_is_read_by_another_name(self, szt: Installed, tmp_path: Path) -> None:
        file = written(
            tmp_path / "a.ndjson", report(1, behaviour="tram"), report(2), "nonsense", report(3, behaviour=7)
        )
        told = szt.told(
            "ingest", file, "--source", "szt", "--as", "tram=bus", "--as", "x=y", "--report", tmp_path / "r"
        )
        assert (told["accepted"], told["malformed"]) == (2, 2)
        assert told["report"] == str(tmp_path / "r")
        assert [line for line, _, _ in reported(told)] == [3, 4]

    def test_a_packed_file_is_opened(self, szt: Installed, tmp_path: Path) -> None:
        file = tmp_path / "a.ndjson.gz"
        file.write_bytes(gzip.compress(written(tmp_path / "a", *(report(n) for n in range(10))).read_bytes()))
        assert szt.told("ingest", file, "--source", "szt")["accepted"] == 10

    def test_of_a_packed_file_that_was_cut_off_the_whole_lines_count(self, szt: Installed, tmp_path: Path) -> None:
        packed = gzip.compress(written(tmp_path / "a", *(report(n) for n in range(3_000))).read_bytes())
        file = tmp_path / "a.ndjson.gz"
        file.write_bytes(packed[: len(packed) // 2])
        code, output, errors = szt.ended("ingest", file, "--source", "szt", "--json")
        assert (code, json.loads(output.splitlines()[-1])["error"]) == (1, "refused")
        assert "Traceback" not in errors
        taken = szt.told("verify")["actions"]
        assert 100 < taken < 3_000
        file.write_bytes(packed)
        told = szt.told("ingest", file, "--source", "szt")
        assert (told["accepted"], told["duplicate"]) == (3_000 - taken, taken)

    def test_a_file_of_strange_bytes_is_judged_line_by_line(self, szt: Installed, tmp_path: Path) -> None:
        file = tmp_path / "a.ndjson"
        good = [json.dumps(report(n)).encode() for n in (1, 2, 3)]
        strange = (b"\xff\xfe", b"x" * 200_000, b"[" * 60_000, b'{"behaviour": ["bus"]}', b"\x00", b'"\\ud800"')
        file.write_bytes(b"\r\n".join((good[0], *strange[:3], good[1], *strange[3:], good[2])))
        told = szt.told("ingest", file, "--source", "szt", "--as", "bus=bus")
        assert (told["accepted"], told["malformed"]) == (3, 6)

    def test_a_source_that_nobody_added_is_refused_line_by_line(self, here: Installed, tmp_path: Path) -> None:
        told = here.told("ingest", written(tmp_path / "a", report(1), report(2)), "--source", "szt")
        assert told["refused_by_code"] == {"source-unknown": 2}


class TestStoppedIngest:
    """A run that was broken off goes on, and ends with the counts of one that was not."""

    LINES = 6_500  # three batches and a half
    HELD = """
import time
from carbon_points import __main__, ingest
keep, times = ingest._keep, iter(range(100))
ingest._keep = lambda *told: keep(*told) if next(times) < 2 else time.sleep(600)
__main__.main()
"""  # the program, but that it waits where it would count its second batch: it is not done before it is killed

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        """Rides, taps, duplicates near and far, and mistakes."""
        reports: list[Any] = []
        for n in range(self.LINES):
            match n % 10:
                case 3:
                    reports.append(report(n, behaviour="metro_in", unit="tap"))
                case 4:
                    reports.append(report(n - 2))
                case 5:
                    reports.append(report(n, quantity="9"))
                case 6:
                    reports.append("nonsense")
                case 7:
                    reports.append(report(max(n - 2_600, 0) // 10 * 10))
                case _:
                    reports.append(report(n))
        return written(tmp_path / "a.ndjson", *reports)

    @pytest.fixture
    def unbroken(self, tmp_path: Path, file: Path) -> tuple[dict[str, Any], list[tuple[int, str, str]]]:
        """What another installation found in one go."""
        there = Installed(tmp_path / "unbroken")
        there.told("sources", "add", "szt", "--behaviours", "bus,metro_in,metro_out", "--opens-accounts")
        told = there.told("ingest", file, "--source", "szt", "--report", tmp_path / "unbroken.report")
        return counts(told), reported(told)

    @pytest.mark.parametrize("kept", [1, 2, 3, 4])
    def test_broken_off_between_what_it_recorded_and_what_it_counted(
        self,
        szt: Installed,
        file: Path,
        unbroken: tuple[dict[str, Any], list[tuple[int, str, str]]],
        kept: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The worst moment: a batch is durable, and reported, and nothing says so."""
        keep, times = of_ingest._keep, iter(range(100))

        def broken_off(*arguments: Any) -> None:
            if next(times) == kept:
                raise KeyboardInterrupt
            keep(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(of_ingest, "_keep", broken_off)
            assert szt.run("ingest", file, "--source", "szt", "--json").exit_code != 0
        told = szt.told("ingest", file, "--source", "szt")
        assert told["resumed_at"] == (kept - 1) * of_ingest.BATCH
        assert (counts(told), reported(told)) == unbroken
        assert szt.told("verify")["ok"]

    def test_killed_again_and_again(
        self, szt: Installed, file: Path, unbroken: tuple[dict[str, Any], list[tuple[int, str, str]]]
    ) -> None:
        places = szt.folder / "ingest"
        for kill in range(2):
            counted = f'"lines":{(kill + 1) * of_ingest.BATCH}'
            with szt.apart("ingest", file, "--source", "szt", program=("-c", self.HELD)) as process:
                try:  # it goes on at a low priority: on a busy machine, slowly
                    wait_for(lambda: any(counted in told.read_text() for told in places.glob("*.json")), 300)  # noqa: B023
                    time.sleep(0.05 * kill)
                finally:
                    process.send_signal(signal.SIGKILL)
                    process.communicate()
            assert process.returncode == -signal.SIGKILL
        told = szt.told("ingest", file, "--source", "szt")
        assert told["resumed_at"] >= 2 * of_ingest.BATCH
        assert (counts(told), reported(told)) == unbroken
        assert szt.told("verify")["ok"]

    def test_another_installation_begins_at_the_beginning(
        self, szt: Installed, file: Path, tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The same data folder, another database: what the first took in, the other has not."""
        keep, times = of_ingest._keep, iter(range(100))

        def broken_off(*arguments: Any) -> None:
            if next(times) == 2:
                raise KeyboardInterrupt
            keep(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(of_ingest, "_keep", broken_off)
            szt.run("ingest", file, "--source", "szt", "--json")
        assert list((szt.folder / "ingest").glob("*.json"))
        other = Installed(szt.folder, CARBON_DATABASE_URL=postgres_url)
        other.told("sources", "add", "szt", "--behaviours", "bus,metro_in,metro_out", "--opens-accounts")
        told = other.told("ingest", file, "--source", "szt")
        assert told["resumed_at"] == 0
        assert told["accepted"] == other.told("verify")["actions"] > 3_000


class TestIngestBySeveralProcesses:
    """A large file into PostgreSQL is decided by processes of their own: it ends as if one had done it."""

    LINES = 30_000  # nearly four batches

    @pytest.fixture
    def there(self, tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Installed:
        monkeypatch.setattr(of_ingest, "LARGE", 0)
        there = Installed(tmp_path / "there", CARBON_DATABASE_URL=postgres_url)
        there.told("sources", "add", "szt", "--behaviours", "bus,metro_in,metro_out", "--opens-accounts")
        return there

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        """Rides in their order, taps that only pair in it, repeats, conflicts, refusals and mistakes."""
        at = datetime(2025, 3, 1, tzinfo=UTC)
        reports: list[Any] = []
        for n in range(self.LINES):
            said: dict[str, Any] = {"occurred_at": (at + timedelta(minutes=n)).isoformat()}
            match n % 10:
                case 3:
                    reports.append(report(n, behaviour="metro_in", unit="tap", resident=f"c-{n // 10 % 700}", **said))
                case 4:
                    reports.append(report(n, behaviour="metro_out", unit="tap", resident=f"c-{n // 10 % 700}", **said))
                case 5:
                    reports.append(report(n, quantity="9"))
                case 6:
                    reports.append("nonsense")
                case 7:
                    reports.append(report(max(n - 9_000, 0) // 10 * 10))
                case _:
                    reports.append(report(n))
        return written(tmp_path / "a.ndjson", *reports)

    def alone(self, tmp_path: Path, file: Path) -> tuple[dict[str, Any], list[tuple[int, str, str]]]:
        """What one process finds."""
        one = Installed(tmp_path / "alone")
        one.told("sources", "add", "szt", "--behaviours", "bus,metro_in,metro_out", "--opens-accounts")
        told = one.told("ingest", file, "--source", "szt", "--report", tmp_path / "alone.report")
        return counts(told), reported(told)

    def test_verdicts_and_their_order_are_those_of_one(self, there: Installed, file: Path, tmp_path: Path) -> None:
        told = there.told("ingest", file, "--source", "szt")
        assert (counts(told), reported(told)) == self.alone(tmp_path, file)
        assert counts(there.told("ingest", file, "--source", "szt"))["accepted"] == 0
        assert there.told("verify")["ok"]

    def test_one_record_that_is_told_of_two_residents_goes_to_the_first(self, there: Installed, tmp_path: Path) -> None:
        lines = [report(n // 2, resident=f"card-{n}") for n in range(4_000)]
        told = there.told("ingest", written(tmp_path / "a.ndjson", *lines), "--source", "szt")
        assert (told["accepted"], told["conflict"]) == (2_000, 2_000)
        assert [line for line, _, _ in reported(told)] == list(range(2, 4_001, 2))

    @pytest.mark.parametrize("kept", [1, 3])
    def test_broken_off_between_what_was_recorded_and_what_was_counted(
        self, there: Installed, file: Path, tmp_path: Path, kept: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keep, times = of_ingest._keep, iter(range(100))

        def broken_off(*arguments: Any) -> None:
            if next(times) == kept:
                raise KeyboardInterrupt
            keep(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(of_ingest, "_keep", broken_off)
            assert there.run("ingest", file, "--source", "szt", "--json").exit_code != 0
        told = there.told("ingest", file, "--source", "szt")
        assert told["resumed_at"] == {1: 0, 3: of_ingest.BATCH + of_ingest.LARGE_BATCH}[kept]
        assert (counts(told), reported(told)) == self.alone(tmp_path, file)
        assert there.told("verify")["ok"]

    def test_a_killed_process_is_told_and_the_run_goes_on_when_said_again(
        self, there: Installed, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        give, times = Judges.give, iter(range(100))

        def killed(self: Judges, parts: Any) -> None:
            give(self, parts)
            if next(times) == 1:
                multiprocessing.active_children()[0].kill()

        with monkeypatch.context() as patch:
            patch.setattr(Judges, "give", killed)
            code, output, errors = there.ended("ingest", file, "--source", "szt", "--json")
        assert (code, json.loads(output.splitlines()[-1])["error"]) == (3, "unavailable")
        assert "Traceback" not in errors
        assert not multiprocessing.active_children()
        told = there.told("ingest", file, "--source", "szt")
        assert told["resumed_at"] == of_ingest.BATCH
        assert (counts(told), reported(told)) == self.alone(tmp_path, file)
        assert there.told("verify")["ok"]

    def test_they_give_way_to_others_and_who_is_killed_leaves_no_process_behind(
        self, there: Installed, file: Path
    ) -> None:
        with there.apart("ingest", file, "--source", "szt", start_new_session=True) as process:
            deadline, theirs = time.monotonic() + 60, list[psutil.Process]()
            while len(theirs) < 2 and time.monotonic() < deadline:
                time.sleep(0.02)
                theirs = psutil.Process(process.pid).children(recursive=True)
            calm = min(one.nice() for one in [psutil.Process(process.pid), *theirs])
            process.kill()
            process.communicate()
        assert len(theirs) >= 2
        assert calm - psutil.Process().nice() >= FILE_NICE, "a server beside it has the processor first"
        _, alive = psutil.wait_procs(theirs, timeout=60)
        assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


# -- the log ---------------------------------------------------------------------------------------------------------


def flipped(file: Path, position: int) -> None:
    """One byte of a stored entry, changed by hand."""
    with closing(sqlite3.connect(file)) as database, database:
        [(state,)] = database.execute("SELECT state FROM entries WHERE notification_id = ?", (position,)).fetchall()
        changed = bytearray(state)
        at = re.search(rb'"reduction_mg":(\d)', state)
        place = at.start(1) if at else len(changed) // 2
        changed[place] ^= 1
        database.execute("UPDATE entries SET state = ? WHERE notification_id = ?", (bytes(changed), position))


class TestTheLog:
    @pytest.fixture
    def lived(self, szt: Installed, tmp_path: Path) -> Installed:
        szt.told("ingest", written(tmp_path / "a.ndjson", *(report(n) for n in range(300))), "--source", "szt")
        return szt

    def test_a_right_log_is_verified_against_the_read_models(self, lived: Installed) -> None:
        told = lived.told("verify")
        assert told["ok"] is True
        assert told["first_wrong"] is None
        assert told["actions"] == 300
        assert told["trial_balance"] == {"mg": 0, "points": 0, "fen": 0}
        assert told["read_model"] == "equal"

    def test_one_changed_byte_of_a_stored_entry_is_found_and_the_entry_named(self, lived: Installed) -> None:
        flipped(lived.folder / "journal" / "p001.sqlite", 77)
        told = lived.told("verify", code=1)
        assert told["ok"] is False
        assert (told["first_wrong"]["partition"], told["first_wrong"]["position"]) == (1, 77)
        result = lived.run("verify")
        assert result.exit_code == 1
        assert "77" in result.stderr

    def test_read_models_are_rebuilt_to_the_same(self, lived: Installed) -> None:
        entries = lived.told("verify")["entries"]
        told = lived.told("rebuild")
        assert told["entries"] == entries
        assert lived.told("verify")["read_model"] == "equal"

    def test_read_models_that_say_otherwise_are_found_and_mended(self, lived: Installed) -> None:
        with closing(sqlite3.connect(lived.folder / "read.sqlite")) as database, database:
            database.execute(
                "UPDATE residents SET points = points + 1 WHERE resident = (SELECT min(resident) FROM residents)"
            )
        told = lived.told("verify", code=1)
        assert told["read_model"].startswith("differs")
        lived.told("rebuild")
        assert lived.told("verify")["read_model"] == "equal"

    def test_an_export_is_verified_without_the_database(self, lived: Installed, tmp_path: Path) -> None:
        folder = tmp_path / "export"
        told = lived.told("export", folder)
        assert told["partitions"] == 2
        elsewhere = Installed(tmp_path / "nothing")
        verified = elsewhere.told("verify", "--export", folder)
        assert verified["ok"] is True
        assert verified["entries"] == lived.told("verify")["entries"]
        assert not (tmp_path / "nothing").exists()

    def test_a_changed_export_is_found(self, lived: Installed, tmp_path: Path) -> None:
        folder = tmp_path / "export"
        lived.told("export", folder)
        file = folder / "entries-001.ndjson.gz"
        lines = gzip.decompress(file.read_bytes()).splitlines(keepends=True)
        number = next(n for n, line in enumerate(lines, 1) if n > 50 and b'reduction_mg\\":80000' in line)
        lines[number - 1] = lines[number - 1].replace(b'reduction_mg\\":80000', b'reduction_mg\\":80001')
        file.write_bytes(gzip.compress(b"".join(lines)))
        told = lived.told("verify", "--export", folder, code=1)
        assert (told["first_wrong"]["partition"], told["first_wrong"]["position"]) == (1, number)

    def test_what_is_no_export_is_told_so(self, here: Installed, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        code, output, errors = here.ended("verify", "--export", tmp_path / "empty", "--json")
        assert (code, json.loads(output)["error"]) == (1, "refused")
        assert "Traceback" not in errors


def test_serve_tells_where_it_is_and_ends_when_asked(here: Installed) -> None:
    with here.apart("serve", "--port", "0", "--json") as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", told["url"])
        assert told["docs"] == told["url"] + "/docs"
        process.terminate()
        rest, errors = process.communicate(timeout=60)
    assert rest == ""
    assert "Traceback" not in errors


# -- real rows -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def taps(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mapped(shared_data, "shenzhen", tmp_path_factory)


@pytest.fixture(scope="session")
def rides(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mapped(shared_data, "valleybike", tmp_path_factory)


def mapped(shared_data: Path, name: str, folders: pytest.TempPathFactory) -> Path:
    """The records of one data set, by the program beside it."""
    file = folders.mktemp(name) / "a.ndjson"
    with file.open("wb") as output:
        subprocess.run([sys.executable, shared_data / "map_actions.py", name], stdout=output, check=True)
    return file


def shenzhen(here: Installed, taps: Path) -> None:
    here.told("sources", "add", "szt", "--behaviours", "bus,metro_in,metro_out", "--opens-accounts")
    told = here.told("ingest", taps, "--source", "szt")
    assert counts(told)["read"] == 47_000
    assert (told["duplicate"], told["conflict"], told["malformed"]) == (1, 0, 0)
    assert told["accepted"] >= 18_324
    assert set(told["refused_by_code"]) == {"exit-without-entry"}
    records = {(record := json.loads(line))["record_id"]: record["behaviour"] for line in taps.read_text().splitlines()}
    by_kind = Counter(records.values())
    rides = told["accepted"] - by_kind["bus"]
    # A ride is completed by its exit; or by its entry, where that comes late, after the exit was refused.
    assert rides == (by_kind["metro_out"] - told["refused"]) + (by_kind["metro_in"] - told["pending"])
    again = here.told("ingest", taps, "--source", "szt")
    assert (again["read"], again["accepted"]) == (47_000, 0)
    verified = here.told("verify")
    assert verified["ok"] is True
    assert verified["actions"] == told["accepted"]
    assert verified["read_model"] == "equal"


def test_the_taps_of_shenzhen(here: Installed, taps: Path) -> None:
    shenzhen(here, taps)


@pytest.mark.long
def test_the_taps_of_shenzhen_in_postgresql_and_one_byte_of_them_changed(
    tmp_path: Path, taps: Path, postgres_url: str
) -> None:
    here = Installed(tmp_path / "data", CARBON_DATABASE_URL=postgres_url)
    shenzhen(here, taps)
    with psycopg.connect(postgres_url) as connection:
        changed = "set_byte(state, 40, get_byte(state, 40) # 1)"
        connection.execute(f"UPDATE p001.entries SET state = {changed} WHERE notification_id = 4711")
    told = here.told("verify", code=1)
    assert (told["first_wrong"]["partition"], told["first_wrong"]["position"]) == (1, 4_711)


def test_the_rides_of_valleybike_read_as_those_of_electric_bikes(here: Installed, rides: Path) -> None:
    here.told("sources", "add", "valleybike", "--behaviours", "shared_ebike", "--opens-accounts")
    words = ("ingest", rides, "--source", "valleybike", "--as", "shared_bike=shared_ebike")
    told = here.told(*words)
    found = counts(told)
    assert found["read"] == 5_713
    still = {n for n, line in enumerate(rides.read_text().splitlines(), 1) if float(json.loads(line)["quantity"]) == 0}
    refused = {line: code for line, verdict, code in reported(told) if verdict == "refused"}
    assert len(still) > 500
    assert {refused[line] for line in still} == {"quantity-below-least"}
    assert here.told(*words)["accepted"] == 0
    assert here.told("verify")["ok"] is True
