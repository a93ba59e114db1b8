"""A process may be killed at any moment: what it acknowledged is there, once, and what it did not may be sent again."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from carbon_points.domain.account import ActionCredited
from tests.api.city import wait_for
from tests.conftest import PROJECT
from tests.given import ride
from tests.journal.city import City, balances, entries, events, folded, opened
from tests.journal.writer import BATCH

KILLS = 5
TO_BE_KILLED = "to be killed"  # a writer's connections
OF_THE_KILLED = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s"


def killed(url: str, first: int, after: int, pause: float) -> list[tuple[str, int, int]]:
    """What a writer acknowledged until it was killed: a while after it had said so many lines."""
    command = [sys.executable, "-m", "tests.journal.writer", url, str(first)]
    named = os.environ | {"PGAPPNAME": TO_BE_KILLED}
    with subprocess.Popen(command, cwd=PROJECT, env=named, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [line for _, line in zip(range(after), process.stdout, strict=False)]
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        said += process.stdout.readlines()
    assert process.returncode == -signal.SIGKILL
    if url.startswith("postgresql"):  # the database goes on with what it was told last, and may be slow to
        with psycopg.connect(url, autocommit=True) as database:
            wait_for(lambda: database.execute(OF_THE_KILLED, [TO_BE_KILLED]).fetchone() == (0,))
    whole = [line.split() for line in said if line.endswith("\n")]
    return [(name, int(partition), int(position)) for name, partition, position in whole]


@pytest.fixture
def city(shared_journal_url: str) -> Iterator[City]:
    with opened(shared_journal_url) as city:
        yield city.found()


def test_what_was_acknowledged_before_a_kill_is_there_exactly_once(city: City, shared_journal_url: str) -> None:
    acknowledged: list[tuple[str, int, int]] = []
    for kill in range(KILLS):
        acknowledged += killed(shared_journal_url, kill * 1_000_000, after=20 + 30 * kill, pause=0.003 * kill)
    assert len(acknowledged) >= KILLS * 20

    places = {name: (partition, position) for name, partition, position in acknowledged}
    found: Counter[str] = Counter()
    for entry, event in zip(entries(city.journal), events(city.journal), strict=True):
        if isinstance(event, ActionCredited):
            found[event.record_id] += 1
            assert places.get(event.record_id, (entry.partition, entry.position)) == (entry.partition, entry.position)
    assert set(places) <= set(found)
    assert set(found.values()) == {1}
    assert len(found) <= len(places) + KILLS * BATCH  # at most a batch was committed and not told

    again = city.all(*(ride(name, resident=f"res_{int(name) % 5}") for name in places))
    assert all(outcome.replayed for outcome in again)
    assert [(o.partition, o.position) for o in again] == list(places.values())


def test_after_a_kill_positions_states_and_balances_are_whole(city: City, shared_journal_url: str) -> None:
    for kill in range(2):
        killed(shared_journal_url, kill * 1_000_000, after=50, pause=0.001 * kill)
    for number, head in city.journal.heads().items():
        assert [e.position for e in city.journal.entries(number)] == list(range(1, head + 1))
    standing = balances(events(city.journal))
    for stream, state in folded(city.journal).items():
        if stream.startswith("res_"):
            kept = city.journal.state(stream, [("usage", month) for month in state.usage])
            assert kept == state
            assert standing[("points", f"resident/{stream}")] == sum(state.grants.values())


def test_no_half_written_file_of_a_killed_writer_stops_the_next(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'journal'}"
    with opened(url) as city:
        city.found()
    killed(url, 0, after=1, pause=0)
    assert list((tmp_path / "journal").glob("*-wal"))  # it was killed with its log open
    with opened(url) as city:
        assert city.do(ride("after", resident="res_9")).position > 0
