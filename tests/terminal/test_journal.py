"""The journal survives what happens to tills, and says clearly when it did not."""

import os
import signal
import sqlite3
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from carbon_points_terminal import Journal, NoAnswer, Sale, Terminal
from carbon_points_terminal.call import request
from carbon_points_terminal.journal import JournalDamaged, JournalForeign, JournalInUse, JournalMissing
from tests.conftest import PROJECT
from tests.terminal.platform import Network, Platform, Till, Time, references

CODE = "801234567890123456"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def on_disk(path: Path, platform: Platform, *faults: str) -> tuple[Terminal, Network, Time]:
    time = Time()
    network = Network(platform, time, iter(faults))
    return Terminal(Journal.open(path), network, time, references(time), time.pass_), network, time


def test_a_journal_that_is_opened_again_goes_on_where_it_stopped(path: Path) -> None:
    platform = Platform()
    Journal.create(path, "shop", "t1").close()
    terminal, _, _ = on_disk(path, platform, "answer-lost", "lost", "lost")
    waiting = terminal.pay(100, CODE)
    assert waiting.state == "REVERSING"
    terminal.journal.close()

    terminal, _, time = on_disk(path, platform)
    assert [call.reference for call in terminal.unresolved()] == [waiting.reference]
    time.pass_(60)
    terminal.catch_up()
    while due := terminal.due():
        time.pass_(max((due - time.at).total_seconds(), 0))
        terminal.step()
    assert platform.points == 1000
    assert terminal.sale(waiting.reference).state == "DONE"
    terminal.journal.close()


def test_every_intent_is_on_disk_before_it_is_sent_and_every_answer_before_it_is_shown(path: Path) -> None:
    """Read by another connection at the moment of sending: with the file's own lock off, as only a test would."""
    till = Till()
    seen: list[tuple[str, bool]] = []
    connection = till.journal._connection

    class Watching:
        def send(self, request: object) -> NoAnswer:
            assert not connection.in_transaction, "what is not committed is not written"
            (told,) = connection.execute("SELECT told FROM calls").fetchone()
            call = msgspec.json.decode(told)
            seen.append((call.get("state", "SENT"), call["in_flight"]))
            return NoAnswer("lost")

    terminal = Terminal(till.journal, Watching(), till.time, till.ids, till.time.pass_)
    call = terminal.pay(100, CODE)
    assert seen[0] == ("SENT", True)
    assert all(in_flight for _, in_flight in seen)
    assert {state for state, _ in seen} == {"SENT", "UNKNOWN", "REVERSING"}
    assert terminal.journal.find(call.reference) == call


def test_a_journal_is_synchronised_with_the_disk_at_every_commit(path: Path) -> None:
    with Journal.create(path, "shop", "t1") as journal:
        (synchronous,) = journal._connection.execute("PRAGMA synchronous").fetchone()
        (mode,) = journal._connection.execute("PRAGMA journal_mode").fetchone()
    assert (synchronous, mode) == (2, "wal")
    assert path.stat().st_mode & 0o077 == 0, "payment codes are in it for some seconds"


def test_a_payment_code_is_not_in_the_file_when_the_call_is_done(path: Path) -> None:
    Journal.create(path, "shop", "t1").close()
    terminal, _, _ = on_disk(path, Platform())
    for points in (*range(1, 30), 5000):
        terminal.pay(points, CODE)
    terminal.journal.close()
    assert CODE.encode() not in path.read_bytes()
    assert not path.with_name(path.name + "-wal").exists()


def test_a_journal_forgets_what_is_over_a_year_old_and_never_what_is_open() -> None:
    till = Till()
    old = till.terminal.pay(100, CODE)
    till.network.faults = iter(["lost"] * 30)
    open_ = till.terminal.refund(old.reference, 10)
    till.time.pass_(390 * 86400)
    recent = till.terminal.begin(Sale(10, CODE))
    till.network.faults = iter(())
    till.terminal.settle(recent.reference)
    till.time.pass_(20 * 86400)
    till.journal.trim(till.time.at - timedelta(days=400))
    assert till.journal.find(old.reference) is None
    assert till.journal.find(recent.reference)
    assert [call.reference for call in till.terminal.unresolved()] == [open_.reference]
    assert till.journal.totals(1).sales.points == 110
    till.finish()
    assert till.platform.points == 1000 - 110 + 10


# -- what is wrong with a file ---------------------------------------------------------------------------------------


def test_a_till_that_lost_its_journal_does_not_begin_a_new_one(path: Path) -> None:
    with pytest.raises(JournalMissing):
        Journal.open(path)
    assert not path.exists()


@pytest.mark.parametrize("left", [0, 100, 4096, 0.5, 0.9])
def test_a_file_that_was_cut_off_is_damaged(path: Path, left: float) -> None:
    Journal.create(path, "shop", "t1").close()
    terminal, _, _ = on_disk(path, Platform())
    for _ in range(20):
        terminal.pay(10, CODE)
    terminal.journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: int(left * len(whole)) if 0 < left < 1 else int(left)])
    with pytest.raises(JournalDamaged):
        Journal.open(path)


def test_a_file_of_something_else_is_foreign_or_damaged(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE music (name TEXT)")
    connection.close()
    with pytest.raises(JournalForeign):
        Journal.open(path)
    path.write_text("a shopping list\n" * 100)
    with pytest.raises(JournalDamaged):
        Journal.open(path)


def test_a_journal_of_another_terminal_or_release_is_foreign(path: Path) -> None:
    Journal.create(path, "shop", "t1").close()
    with pytest.raises(JournalForeign, match="is of shop/t1, not shop/t2"):
        Journal.open(path, "shop", "t2")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(JournalForeign):
        Journal.open(path, "shop", "t1")


def test_a_call_that_cannot_be_read_is_told(path: Path) -> None:
    Journal.create(path, "shop", "t1").close()
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO calls VALUES ('01HZ', '2026', 0, 'half a ca')")
    connection.commit()
    connection.close()
    with Journal.open(path) as journal, pytest.raises(JournalDamaged):
        journal.unresolved()


def test_one_process_at_a_time_works_with_a_journal(path: Path) -> None:
    with Journal.create(path, "shop", "t1"), pytest.raises(JournalInUse):
        Journal.open(path, patience=0.1)
    Journal.open(path, patience=0.1).close()


def test_a_journal_that_is_half_made_is_none(path: Path) -> None:
    path.with_name(path.name + ".new").write_bytes(b"the power went while it was made")
    Journal.create(path, "shop", "t1").close()
    with pytest.raises(FileExistsError):
        Journal.create(path, "shop", "t1")


# -- a process that is killed ------------------------------------------------------------------------------------------

KILLED = """
import sys
from datetime import timedelta
from pathlib import Path
from carbon_points_terminal import Journal, NoAnswer, Sale, Terminal
from carbon_points_terminal.call import request
from carbon_points_terminal.ids import SteadyClock, new_reference

class Out:
    def send(self, request):
        print(request.key, flush=True)
        sys.stdin.read()  # until it is killed
        return NoAnswer("never")

terminal = Terminal(Journal.open(Path(sys.argv[1])), Out(), SteadyClock(), new_reference, None)
if sys.argv[2] == "intent":
    print(terminal.begin(Sale(100, "801234567890123456")).reference, flush=True)
    sys.stdin.read()
terminal.pay(100, "801234567890123456")
"""


@pytest.mark.parametrize("when", ["intent", "sent"])
@pytest.mark.parametrize("arrived", [True, False])
def test_a_process_killed_between_intent_and_answer_knows_what_is_open(path: Path, when: str, arrived: bool) -> None:
    Journal.create(path, "shop", "t1").close()
    command = [sys.executable, "-c", KILLED, str(path), when]
    process = subprocess.Popen(
        command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": "."}
    )
    assert process.stdout is not None
    assert process.stdin is not None
    reference = process.stdout.readline().decode().strip()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    process.stdin.close()

    platform = Platform()
    if arrived and when == "sent":
        with Journal.open(path) as journal:
            call = journal.find(reference)
            assert call
            platform.hear(request(call))
    terminal, _, time = on_disk(path, platform)
    time.at = terminal.journal.recent(1)[0].made
    terminal.resolve()
    call = terminal.sale(reference)
    assert call.outcome
    if when == "intent":
        assert call.outcome.result == "not-sent"
    elif arrived:
        assert call.outcome.result == "approved"
        assert platform.points == 900
    else:
        assert (call.outcome.result, platform.sales[reference]["status"]) == ("reversed", "reversed")
    terminal.journal.close()
