"""A whole log put into an empty model, as a rebuild does it: what following makes, whatever is held for how long."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from eventsourcing.persistence import StoredEvent
from psutil import process_iter
from sqlalchemy import inspect

from carbon_points.journal.journal import Journal, open_journal
from carbon_points.projections import filling, staging
from carbon_points.projections.actions import ACTIONS
from carbon_points.projections.filling import fill
from carbon_points.projections.loop import follow, rebuild
from carbon_points.projections.read_model import ReadModel
from carbon_points.projections.rows import metadata
from tests.api.city import wait_for
from tests.audit.scenario import live
from tests.projections.events import ride


@pytest.fixture(scope="session")
def followed(journal: Journal) -> bytes:
    made = ReadModel("sqlite://")
    follow(journal, made)
    dumped = made.dump()
    made.close()
    return dumped


def _where(index: Any) -> dict[str, str]:
    return {name: str(option) for name, option in index.get("dialect_options", {}).items()}


def keys_and_indexes(model: ReadModel) -> dict[str, Any]:
    looked, schema = inspect(model.engine), model.schema if model.on_postgres else None
    return {
        name: (
            looked.get_pk_constraint(name, schema),
            sorted((str(i["name"]), i["column_names"], _where(i)) for i in looked.get_indexes(name, schema)),
        )
        for name in metadata.tables
    }


def tables(model: ReadModel) -> set[str]:
    return set(inspect(model.engine).get_table_names(model.schema if model.on_postgres else None))


@pytest.mark.parametrize(
    "sizes",
    [(1_000, 20_000, 200_000), (1, 1, 1), (3, 5, 10), (7, 1_000, 1), (2, 1, 1_000)],  # entries, rows, keys
    ids=["all held", "nothing held", "a little", "no keys", "no rows"],
)
def test_it_makes_what_following_makes(
    journal: Journal, model: ReadModel, followed: bytes, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...]
) -> None:
    stood = keys_and_indexes(model)
    for name, size in zip(("CHUNK", "ROWS_HELD", "KEYS_HELD"), sizes, strict=True):
        monkeypatch.setattr(filling, name, size)
    for name, size in zip(("CHUNK", "STRETCH", "KEYS_HELD"), sizes, strict=True):
        monkeypatch.setattr(staging, name, size)
    fill(model, journal)
    assert model.dump() == followed
    assert model.positions() == journal.heads()
    assert keys_and_indexes(model) == stood
    assert tables(model) == metadata.tables.keys()  # nothing of what was staged is left
    assert follow(journal, model) == 0


ODD = ["\\N", "null", "\\.", "]\n[", "a,b", 'a "b"', "a\\b", "a\nb\r\tc", "\\t", " "]
ODD += ["\x01\x1f\x7f\x85\u2028", "公交,1", "𠮷🚌"]


@pytest.mark.parametrize("filled", [False, True], ids=["followed", "filled"])
def test_a_text_is_stored_as_it_is(read_url: str, model: ReadModel, filled: bool) -> None:
    """JSON, CSV and the database's own lines each have characters that mean something to them."""
    with closing(open_journal("sqlite://", partitions=1)) as journal:
        before = journal.heads()[0]
        journal.partitions[0].recorder.append([_stored(n, record) for n, record in enumerate(ODD, 1)], (), ())
        if filled:
            rebuild(journal, read_url)
        else:
            follow(journal, model)
    with closing(ReadModel(read_url)) as again, again.snapshot() as at:
        rows = at.rows(ACTIONS.select().where(ACTIONS.c.position > before).order_by(ACTIONS.c.position))
    assert [row.record_id for row in rows] == ODD


def _stored(version: int, record: str) -> StoredEvent:
    entry = ride(0, version, record_id=record)
    return StoredEvent(entry.stream, version, entry.type, entry.state)


@pytest.mark.parametrize("error", [OSError, IndexError])  # the other is not the end of anything
def test_what_breaks_off_leaves_nothing(
    journal: Journal,
    model: ReadModel,
    read_url: str,
    followed: bytes,
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
) -> None:
    follow(journal, model)
    writing, function = (staging, "copy") if model.on_postgres else (filling, "write")
    monkeypatch.setattr(filling, "ROWS_HELD", 10)
    monkeypatch.setattr(staging, "STRETCH", 10)
    calls, wrote = iter(range(100)), getattr(writing, function)

    def failing(*arguments: Any) -> None:
        if next(calls) == 3:
            raise error("no space left")
        wrote(*arguments)

    monkeypatch.setattr(writing, function, failing)
    with pytest.raises(error, match="no space left"):
        rebuild(journal, read_url)
    assert model.dump() == followed
    if model.on_postgres:
        assert "read_next" not in inspect(model.engine).get_schema_names()


@pytest.fixture(scope="module")
def lived_in(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A journal on disk with the whole life in it."""
    url = f"sqlite:///{tmp_path_factory.mktemp('lived') / 'journal'}"
    live(url).close()
    return url


@pytest.fixture
def live_rows(lived_in: str, postgres_url: str) -> Iterator[ReadModel]:
    with closing(open_journal(lived_in)) as journal, closing(ReadModel(postgres_url)) as model:
        follow(journal, model)
        yield model


class TestSeveralProcesses:
    """Where the rows of a large log are made."""

    def rebuilt(self, journal: str, rows: ReadModel, says: str) -> str:
        """What a program says that rebuilds with two others; `says` what else is done where a stretch is taken. None
        goes on before each of them has one."""
        url = rows.url.render_as_string(hide_password=False)
        command = [sys.executable, "-c", _PROGRAM.format(says=says), journal, url]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout

    def test_they_make_what_following_makes(self, lived_in: str, live_rows: ReadModel) -> None:
        before = live_rows.dump()
        told = self.rebuilt(lived_in, live_rows, "pass")
        entries, took = told.split(maxsplit=1)
        assert int(entries) == sum(live_rows.positions().values())
        assert len(set(took.split())) == 3
        assert live_rows.dump() == before

    def test_one_that_is_killed_ends_it_and_the_rows_stay(self, lived_in: str, live_rows: ReadModel) -> None:
        before = live_rows.dump()
        told = self.rebuilt(lived_in, live_rows, "os.getpid() == first or os.kill(os.getpid(), 9)")
        assert told.startswith("Ended")
        assert live_rows.dump() == before
        assert "read_next" not in inspect(live_rows.engine).get_schema_names()

    def test_what_fails_in_one_is_told(self, lived_in: str, live_rows: ReadModel) -> None:
        told = self.rebuilt(lived_in, live_rows, "os.getpid() == first or int('nonsense')")
        assert told.startswith("Ended ValueError: invalid literal")

    def test_none_outlives_whoever_started_them(self, lived_in: str, live_rows: ReadModel) -> None:
        with pytest.raises(subprocess.CalledProcessError) as killed:
            self.rebuilt(lived_in, live_rows, "os.getpid() == first and os.kill(first, 9)")
        assert killed.value.returncode == -9
        wait_for(lambda: not any(lived_in in " ".join(p.info["cmdline"] or ()) for p in process_iter(["cmdline"])))

    def test_whoever_lost_its_rebuild_writes_nothing_into_the_next(self, live_rows: ReadModel) -> None:
        with live_rows.beside() as first:
            with first.writing() as connection:
                staging.BESIDE.create_all(connection)
                late = staging.Model(first, staging.identity(connection))
            with late.writing():
                pass
            with live_rows.beside() as second:
                with second.writing() as connection:
                    staging.BESIDE.create_all(connection)
                with pytest.raises(staging.Replaced), late.writing():
                    pass


_PROGRAM = """
import multiprocessing, os, sys
from carbon_points.journal.journal import open_journal
from carbon_points.projections import staging
from carbon_points.projections.loop import rebuild

first, take = os.getpid(), staging.Share.take
together, come = multiprocessing.get_context("fork").Barrier(3), []
_, journal_url, read_url = sys.argv
staging.STRETCH, staging.KEYS_HELD = 3, 5

def taking(share, stretch):
    if not come:
        come.append(together.wait(60))
    {says}
    take(share, stretch)
    os.write(log, b"%d " % os.getpid())

staging.Share.take = taking
took, log = os.pipe()
with staging.helpers(2, journal_url, read_url) as helping:
    journal = open_journal(journal_url)
    try:
        print(rebuild(journal, read_url, helping).entries, os.read(took, 65536).decode())
    except staging.Ended as error:
        print("Ended", error)
    journal.close()
"""
