"""A database that is away, full, locked or far: callers get a clear answer in time, and it heals by itself."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from time import sleep
from typing import Any

import httpx
import psycopg
import pytest

from tests.conftest import fresh_database
from tests.faults.conftest import Place
from tests.faults.load import Load, Source, Told, must_hold, must_repeat, report
from tests.faults.network import Network
from tests.faults.servers import PostgreSQL, Server, journal_at, running, wait_for

RECOVERS_WITHIN = 15.0
SLOWEST = 50.0  # seconds: three tries of three reads that wait five for a connection, and a little
AWAY = 67  # seconds: one whose pauses double has then just asked in vain, and would not again for a minute
QUICK, SOON = (f"?options=-c%20lock_timeout%3D{ms}" for ms in (100, 2_000))  # ms, for the program's own seconds


def must_be_whole(place: Place, server: Server, told: Told) -> None:
    with journal_at(place.url) as journal:
        must_hold(told, journal)
        must_repeat(server, place.secret, told, journal)
    server.verified()


@contextmanager
def reporting(server: Server, place: Place) -> Iterator[Source]:
    source = Source(server.url, place.secret, Told())
    try:
        yield source
    finally:
        source.close()


def accepted(source: Source, record_id: str) -> bool:
    answer = source.one(report(record_id))
    return answer is not None and answer.status_code in {200, 201}


def lives(server: Server) -> None:
    """Whatever the databases do, the process answers, and soon."""
    assert httpx.get(f"{server.url}/healthz", timeout=4).status_code == 200


# -- away ------------------------------------------------------------------------------------------------------------


def test_a_database_that_restarts_is_waited_for_and_nothing_is_lost(place: Place, postgres: PostgreSQL) -> None:
    server = place.server()
    with running(server):
        load = Load([server], place.secret, sources=4)
        with load.running():
            for _ in range(2):
                wait_for(load.progress(50), RECOVERS_WITHIN, "reports are taken")
                postgres.stop()
                postgres.start()
            wait_for(load.progress(50), RECOVERS_WITHIN, "reports are taken again")
        must_be_whole(place, server, load.told)


@pytest.mark.long
def test_while_the_database_is_away_for_a_minute_many_callers_are_told_in_time_and_then_it_heals_as_soon(
    place: Place, postgres: PostgreSQL
) -> None:
    server = place.server()
    with running(server):
        load = Load([server], place.secret, sources=24)
        with load.running():
            wait_for(load.progress(50), RECOVERS_WITHIN, "reports are taken")
            postgres.stop()
            sleep(AWAY)
            lives(server)
            postgres.start()
            wait_for(load.progress(50), RECOVERS_WITHIN, "reports are taken again")
        assert load.told.slowest < SLOWEST
        assert load.told.refused["unavailable"] >= 24
        must_be_whole(place, server, load.told)


# -- full ------------------------------------------------------------------------------------------------------------


@contextmanager
def no_connection_left(postgres: PostgreSQL, of: str) -> Iterator[None]:
    """Strangers hold every connection that the server has, and those of one database are ended."""
    with ExitStack() as held:
        first = held.enter_context(psycopg.connect(postgres.url, autocommit=True))

        def none_is_left() -> bool:
            with suppress(psycopg.OperationalError):
                while True:
                    held.enter_context(psycopg.connect(postgres.url))
            ended = first.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = %s", (of,)
            ).fetchone()
            return ended == (0,)

        wait_for(none_is_left, 120, "strangers hold every connection")
        yield


def test_a_database_with_no_connection_left_is_said_to_be_unavailable_and_then_used_again(
    place: Place, postgres: PostgreSQL
) -> None:
    server = place.server()
    with running(server), reporting(server, place) as source:
        assert accepted(source, "before")
        with no_connection_left(postgres, place.url.rpartition("/")[2]):
            assert not accepted(source, "meanwhile")
            assert not source.batch([report("meanwhile-too")])
            lives(server)
        assert source.told.refused["unavailable"] == 2
        assert source.told.slowest < SLOWEST
        wait_for(lambda: accepted(source, "meanwhile"), RECOVERS_WITHIN, "reports are taken again")
        must_be_whole(place, server, source.told)


def _mounted(folder: Path, megabytes: int) -> None:
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"there is no mount here: {error}")
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")


@pytest.fixture
def small_disk() -> Iterator[Any]:
    """Makes a disk of so many megabytes."""
    with ExitStack() as made:

        def disk(megabytes: int) -> Path:
            folder = Path(tempfile.mkdtemp(prefix="small-"))
            made.callback(shutil.rmtree, folder, ignore_errors=True)
            _mounted(folder, megabytes)
            made.callback(subprocess.run, ["umount", "-l", str(folder)], check=True)
            return folder

        yield disk


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """A stranger's file takes what is left."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(65_536))
        except OSError:
            pass
    yield
    ballast.unlink()


def full_disk(place: Place, server: Server, disk: Path) -> Told:
    """What callers are told while the disk is full, and before and after."""
    load = Load([server], place.secret, sources=4)
    with load.running():
        wait_for(load.progress(50), RECOVERS_WITHIN, "reports are taken")
        with filled(disk):
            wait_for(lambda: load.told.refused["unavailable"] >= 8, 60, "callers are told")
            lives(server)
        wait_for(load.progress(50), RECOVERS_WITHIN, "reports are taken again")
    assert load.told.slowest < SLOWEST
    return load.told


def test_a_full_disk_of_postgresql_refuses_clearly_and_nothing_acknowledged_is_lost(
    small_disk: Any, tmp_path: Path
) -> None:
    disk = small_disk(150)
    (data := disk / "data").mkdir()
    # Small segments, so that the log of the database itself meets the end, and tables do.
    postgres = PostgreSQL(data, "max_wal_size=32MB", "min_wal_size=32MB", "restart_after_crash=on").start()
    try:
        with fresh_database(postgres.url) as url:
            place = Place(url, tmp_path)
            server = place.server()
            with running(server):
                must_be_whole(place, server, full_disk(place, server, disk))
    finally:
        postgres.stop()


def test_a_full_disk_of_sqlite_refuses_clearly_and_nothing_acknowledged_is_lost(
    small_disk: Any, tmp_path: Path
) -> None:
    disk = small_disk(30)
    place = Place(f"sqlite:///{disk / 'data'}", tmp_path)
    server = place.server()
    with running(server):
        told = full_disk(place, server, disk)
        with journal_at(f"sqlite:///{disk / 'data' / 'journal'}") as journal:
            must_hold(told, journal)
            must_repeat(server, place.secret, told, journal)
    server.verified()


# -- locked ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lock",
    ["SELECT n FROM p000.counter FOR UPDATE", "LOCK TABLE p000.entries, p000.claims IN ACCESS EXCLUSIVE MODE"],
    ids=["counter row", "tables"],
)
def test_a_stranger_who_holds_a_lock_makes_nobody_wait_for_ever(place: Place, lock: str) -> None:
    server = place.server(through=place.url + QUICK)
    with running(server):
        load = Load([server], place.secret, sources=4)
        with load.running():
            wait_for(load.progress(50), RECOVERS_WITHIN, "reports are taken")
            with psycopg.connect(place.url) as stranger:
                stranger.execute(lock)
                wait_for(lambda: load.told.refused["unavailable"] >= 4, 30, "callers are told")
                lives(server)
            wait_for(load.progress(50), RECOVERS_WITHIN, "reports are taken again")
        assert load.told.slowest < 5  # three tries of three reads that wait for the lock, behind one another
        must_be_whole(place, server, load.told)


def test_a_stranger_who_locks_the_directory_makes_no_other_caller_wait(place: Place) -> None:
    server = place.server(through=place.url + SOON)
    with running(server), reporting(server, place) as source, psycopg.connect(place.url) as stranger:
        assert accepted(source, "before")
        stranger.execute("LOCK TABLE directory.keys IN ACCESS EXCLUSIVE MODE")
        behind = "SELECT 1 FROM pg_locks WHERE relation = 'directory.keys'::regclass AND NOT granted"
        with ThreadPoolExecutor(1) as threads:
            unknown = {"Authorization": "Bearer cp_live_nobody_has_this"}
            waiting = threads.submit(httpx.get, f"{server.url}/v1/actions", headers=unknown, timeout=20)
            wait_for(lambda: stranger.execute(behind).fetchone(), 30, "somebody waits for the stranger")
            lives(server)
            assert not waiting.done()
            assert waiting.result().status_code == 503
        stranger.rollback()
        assert accepted(source, "after")


# -- far -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def network(postgres: PostgreSQL) -> Iterator[Network]:
    network = Network(postgres.port)
    yield network
    network.close()


def through(network: Network, postgres: PostgreSQL, place: Place) -> str:
    return place.url.replace(f":{postgres.port}/", f":{network.port}/")


def test_a_network_that_stalls_delays_answers_and_loses_none(
    place: Place, postgres: PostgreSQL, network: Network
) -> None:
    server = place.server(through=through(network, postgres, place))
    with running(server):
        load = Load([server], place.secret, sources=4)
        with load.running():
            wait_for(load.progress(50), RECOVERS_WITHIN, "reports are taken")
            with network.stalled():
                sleep(3)
            wait_for(load.progress(50), RECOVERS_WITHIN, "reports are taken again")
        assert 2 < load.told.slowest < 10
        assert not load.told.refused
        must_be_whole(place, server, load.told)


def test_while_the_network_stalls_the_process_says_that_it_lives(
    place: Place, postgres: PostgreSQL, network: Network
) -> None:
    server = place.server(through=through(network, postgres, place))
    with running(server), network.stalled(), ThreadPoolExecutor(1) as threads:
        unknown = {"Authorization": "Bearer cp_live_nobody_has_this"}
        waiting = threads.submit(httpx.get, f"{server.url}/v1/actions", headers=unknown, timeout=20)
        sleep(0.3)
        try:
            assert not waiting.done()
            lives(server)
        finally:
            network.close()
        assert waiting.result().status_code == 503


@pytest.mark.parametrize("many", [False, True], ids=["one", "a batch"])
def test_a_commit_whose_answer_was_lost_ends_as_exactly_one_action(
    place: Place, postgres: PostgreSQL, network: Network, many: bool
) -> None:
    server = place.server(through=through(network, postgres, place))
    with running(server), reporting(server, place) as source:
        for n in range(8):
            network.lose_answers(1)
            if many:
                lines = source.batch([report(f"{n}-{line}") for line in range(20)])
                assert [line["verdict"] for line in lines].count("duplicate") >= 1  # it was there already
            else:
                assert accepted(source, str(n))
            assert network.lost == n + 1
        assert len(source.told.acknowledged) == len(source.told.sent)
        must_be_whole(place, server, source.told)
