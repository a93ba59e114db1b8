"""What feeds the read models: it follows what is written, lives through failures, and rebuilds from nothing."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError

from carbon_points.domain.fund import ReceiveMoney
from carbon_points.domain.source import RegisterSource
from carbon_points.journal.journal import Journal, open_journal
from carbon_points.journal.partition import Write
from carbon_points.projections import loop
from carbon_points.projections.fund import FUND, RECEIPTS
from carbon_points.projections.loop import Ahead, Follower, follow, rebuild
from carbon_points.projections.read_model import ReadModel
from carbon_points.projections.residents import residents
from carbon_points.projections.rows import total
from tests.audit.scenario import live


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Journal]:
    """A journal on disk that a test may write."""
    lived = live(f"sqlite:///{tmp_path / 'journal'}")
    yield lived
    lived.close()


def write(journal: Journal, name: str) -> None:
    [outcome] = journal.commit([Write(RegisterSource(source=name, name=name, behaviours=("bus",)))])
    assert outcome.events


def until(promised: Callable[[], bool], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not promised():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def followers() -> list[psutil.Process]:
    """Processes of this one that follow a log."""
    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # it has just ended
            found += [child] if "follow" in child.cmdline() else []
    return found


LISTENER = """
import sys
with open(sys.argv[1], "ab", buffering=0) as told:
    while hint := sys.stdin.buffer.read(1):
        told.write(hint)
"""


@pytest.fixture
def follower(written: Journal, model: ReadModel) -> Iterator[Follower]:
    following = Follower(written, model)
    yield following
    following.stop()


class TestAnotherProcess:
    """Where a server on PostgreSQL has its read models follow."""

    @pytest.fixture
    def elsewhere(self, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Follower]:
        monkeypatch.setenv("CARBON_DATABASE_URL", postgres_url)
        monkeypatch.setenv("CARBON_DATA_DIR", str(tmp_path))
        journal, model = live(postgres_url), ReadModel(postgres_url)
        following = Follower(journal, model, (sys.executable, "-m", "carbon_points", "follow"))
        following.start()
        yield following
        following.stop()
        model.close()
        journal.close()

    def test_it_follows_what_this_one_writes_and_is_started_again_where_it_is_killed(
        self, elsewhere: Follower, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert elsewhere.catch_up(60)
        write(elsewhere._journal, "later")
        assert elsewhere.catch_up(30)
        [process] = followers()
        process.kill()
        write(elsewhere._journal, "after the kill")
        assert elsewhere.catch_up(60)
        [again] = followers()
        assert again.pid != process.pid
        elsewhere.stop()
        assert not again.is_running()

    def test_it_is_tried_again_where_it_cannot_be_started(
        self, written: Journal, model: ReadModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loop, "RESTART_SECONDS", 0.01)
        following = Follower(written, model, ("/nowhere/to/be/found",))
        following.start()
        thread = following._thread
        assert thread is not None
        thread.join(timeout=0.3)
        assert thread.is_alive()
        following.stop()

    def test_who_waits_is_passed_on_at_once_though_nothing_was_written_since_the_last_hint(
        self, written: Journal, model: ReadModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("POLL_SECONDS", "GATHER_SECONDS", "GATHER_MOST_SECONDS"):
            monkeypatch.setattr(loop, name, 60.0)
        told = tmp_path / "told"
        told.touch()
        following = Follower(written, model, (sys.executable, "-c", LISTENER, str(told)))
        written.appended.clear()
        following.start()
        try:
            write(written, "later")
            assert until(lambda: told.read_bytes() == b".")
            assert not model.wait_for(0, written.heads()[0], 0)
            assert until(lambda: told.read_bytes() == b".!")
        finally:
            following.stop()

    def test_it_ends_where_the_server_was_killed(self, postgres_url: str, tmp_path: Path) -> None:
        environment = {**os.environ, "CARBON_DATABASE_URL": postgres_url, "CARBON_DATA_DIR": str(tmp_path)}
        command = [sys.executable, "-m", "carbon_points", "serve", "--port", "0", "--json"]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            server.stdout.readline()
            assert until(lambda: bool(psutil.Process(server.pid).children()))
            [child] = psutil.Process(server.pid).children()
            server.kill()
        assert until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


class TestFollower:
    def test_it_follows_what_is_written(self, written: Journal, model: ReadModel, follower: Follower) -> None:
        assert sum(follower.lag().values()) == sum(written.heads().values())
        follower.start()
        assert follower.catch_up(30)
        write(written, "later")
        assert follower.catch_up(30)
        assert model.positions() == written.heads()
        assert set(follower.lag().values()) == {0}

    def test_a_commit_is_followed_long_before_it_would_be_asked_for(
        self, written: Journal, model: ReadModel, follower: Follower, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loop, "POLL_SECONDS", 60.0)
        follower.start()
        assert until(lambda: model.positions() == written.heads())
        write(written, "later")
        assert until(lambda: model.positions() == written.heads())

    def test_another_process_is_followed_without_a_hint(
        self, written: Journal, model: ReadModel, follower: Follower, tmp_path: Path
    ) -> None:
        follower.start()
        assert follower.catch_up(30)
        elsewhere = open_journal(f"sqlite:///{tmp_path / 'journal'}")
        write(elsewhere, "later")
        elsewhere.close()
        assert until(lambda: model.positions() == written.heads())

    def test_without_a_thread_catching_up_does_the_work(
        self, written: Journal, model: ReadModel, follower: Follower
    ) -> None:
        assert follower.catch_up(0)
        assert model.positions() == written.heads()

    def test_it_lives_through_a_database_that_fails(
        self,
        written: Journal,
        model: ReadModel,
        follower: Follower,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(loop, "POLL_SECONDS", 0.01)
        apply, failures = model.apply, iter(range(3))

        def failing(*arguments: Any) -> int:
            if next(failures, None) is not None:
                raise OperationalError("INSERT", {}, Exception("the server went away"))
            return apply(*arguments)

        monkeypatch.setattr(model, "apply", failing)
        follower.start()
        assert follower.catch_up(30)
        assert model.positions() == written.heads()
        assert caplog.text.count("do not follow the log") == 3

    def test_rows_of_another_log_are_not_followed_until_they_are_rebuilt(
        self, written: Journal, journal: Journal, model: ReadModel, read_url: str
    ) -> None:
        write(written, "later")
        follow(written, model)
        with pytest.raises(Ahead, match="want a rebuild"):
            follow(journal, model)
        rebuild(journal, read_url)
        assert follow(journal, model) == 0
        assert model.positions() == journal.heads()

    def test_stopping_ends_the_thread_and_it_can_start_again(
        self, written: Journal, model: ReadModel, follower: Follower
    ) -> None:
        before = {thread for thread in threading.enumerate() if thread.name == "follower"}
        follower.start()
        follower.stop()
        assert {thread for thread in threading.enumerate() if thread.name == "follower"} <= before
        write(written, "later")
        follower.start()
        assert follower.catch_up(30)


class TestRebuild:
    """From nothing, beside the live one, and then in its place."""

    def test_a_rebuild_makes_the_same_bytes(self, journal: Journal, model: ReadModel, read_url: str) -> None:
        follow(journal, model)
        before = model.dump()
        report = rebuild(journal, read_url)
        assert report.entries == sum(journal.heads().values())
        assert model.dump() == before

    def test_rows_that_went_wrong_are_put_right_under_those_who_read_them(
        self, journal: Journal, model: ReadModel, read_url: str
    ) -> None:
        follow(journal, model)
        before = model.dump()
        with model.engine.begin() as connection:
            connection.exec_driver_sql(f"DELETE FROM {'read.' if 'postgres' in read_url else ''}residents")
        assert model.dump() != before
        for _ in range(8):  # on PostgreSQL a statement is prepared after a few times
            assert model.read(residents) == []
        rebuild(journal, read_url)
        assert model.read(residents)
        assert model.dump() == before

    def test_positions_never_go_back_while_others_write_and_read(
        self, written: Journal, model: ReadModel, follower: Follower, read_url: str
    ) -> None:
        follow(written, model)
        follower.start()
        done, failures = threading.Event(), list[Exception]()
        moved = select(func.count()).where(RECEIPTS.c.origin == "sponsor")
        flows = select(total(FUND.c.movements)).where(FUND.c.flow == "sponsor")

        def look() -> None:
            last = 0
            try:
                while not done.is_set():
                    with model.snapshot() as at:
                        now = sum(at.positions.values())
                        assert now >= last, "positions went back"
                        last = now
                        assert at.one(moved) == at.one(flows), "two tables of two moments"
            except Exception as error:  # noqa: BLE001  # told to the test's own thread
                failures.append(error)

        def keep_writing() -> None:
            for number in range(100):
                money = ReceiveMoney(receipt_id=f"more-{number}", origin="sponsor", payer="somebody", amount_fen=1)
                written.commit([Write(money)])

        threads = [threading.Thread(target=look), threading.Thread(target=look), threading.Thread(target=keep_writing)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            rebuild(written, read_url)
        threads[-1].join()
        done.set()
        for thread in threads:
            thread.join()
        assert not failures
        assert follower.catch_up(30)
        assert model.positions() == written.heads()

    def test_a_long_read_holds_up_the_rebuild_and_nobody_else(
        self, journal: Journal, model: ReadModel, read_url: str
    ) -> None:
        follow(journal, model)
        before = model.dump()
        rebuilding = threading.Thread(target=rebuild, args=(journal, read_url))
        with model.snapshot() as at:
            everyone = residents(at)
            rebuilding.start()
            time.sleep(1)
            begun = time.monotonic()
            for _ in range(5):
                assert model.read(residents) == everyone
            assert time.monotonic() - begun < 10
            assert residents(at) == everyone
        rebuilding.join(60)
        assert not rebuilding.is_alive()
        assert model.dump() == before

    def test_a_rebuild_that_fails_leaves_the_live_rows(
        self, journal: Journal, model: ReadModel, read_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        follow(journal, model)
        before = model.dump()
        calls = iter(range(3))

        def failing(journal: Journal, made: ReadModel) -> int:
            if next(calls) == 1:  # when the live rows are locked
                raise OSError("no space left")
            return follow(journal, made)

        monkeypatch.setattr(loop, "follow", failing)
        with pytest.raises(OSError, match="no space left"):
            rebuild(journal, read_url)
        assert model.dump() == before
        monkeypatch.undo()
        rebuild(journal, read_url)
        assert model.dump() == before

    def test_rows_of_another_shape_are_read_until_the_new_ones_take_their_place(
        self, journal: Journal, model: ReadModel, read_url: str
    ) -> None:
        follow(journal, model)
        before = model.dump()
        with model.engine.begin() as connection:
            connection.exec_driver_sql(f"UPDATE {'read.' if 'postgres' in read_url else ''}shape SET digest = 'former'")
        live = ReadModel(read_url, keep=True)
        assert live.positions() == journal.heads()
        live.close()
        rebuild(journal, read_url)
        assert model.dump() == before

    def test_nothing_is_left_beside_the_live_rows(self, journal: Journal, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path / 'read.sqlite'}"
        rebuild(journal, url)
        assert [path.name for path in tmp_path.iterdir()] == ["read.sqlite"]
