"""The recorders keep what the `eventsourcing` library asks of a recorder, and what ours add to it."""

import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from eventsourcing.persistence import Notification, StoredEvent
from eventsourcing.postgres import PostgresDatastore
from eventsourcing.sqlite import SQLiteDatastore
from psycopg.conninfo import conninfo_to_dict

from carbon_points.journal.entry import Claim, Entry, StateRow, leaf_hash
from carbon_points.journal.journal import open_journal
from carbon_points.journal.recorder import SERVER_NAME, Contended, PostgresRecorder, Recorder, SQLiteRecorder

with pytest.MonkeyPatch.context() as patch:
    # The module of the library's cases wants its cipher, which wants a package that no recorder needs.
    patch.setitem(sys.modules, "eventsourcing.cipher", SimpleNamespace(AESCipher=None))
    cases = import_module("eventsourcing.tests.persistence")


def in_sqlite(path: Path) -> SQLiteRecorder:
    recorder = SQLiteRecorder(SQLiteDatastore(f"file:{path}", originator_id_type="text", lock_timeout=20), partition=2)
    recorder.create_table()
    return recorder


def in_memory() -> SQLiteRecorder:
    name = f"file:{uuid4()}?mode=memory&cache=shared"
    recorder = SQLiteRecorder(SQLiteDatastore(name, originator_id_type="text", lock_timeout=20), partition=2)
    recorder.create_table()
    return recorder


def in_postgres(url: str) -> PostgresRecorder:
    known = conninfo_to_dict(url)
    datastore = PostgresDatastore(
        dbname=str(known["dbname"]),
        host=str(known.get("host") or ""),
        port=str(known.get("port") or ""),
        user=str(known.get("user") or ""),
        password="",
        schema="p002",
        originator_id_type="text",
        pool_size=1,
        max_overflow=15,
    )
    recorder = PostgresRecorder(datastore, partition=2)
    recorder.create_table()
    return recorder


# -- the library's own cases -----------------------------------------------------------------------------------------


class InTheirTerms:
    """A recorder of ours, asked as the library's cases ask.

    They compare positions with a list, where ours are a range. They read by the library's SQL for its own tables,
    where ours is `read`: so that it is `read` which their cases test.
    """

    def __init__(self, recorder: SQLiteRecorder | PostgresRecorder) -> None:
        self.recorder = recorder
        self.select_events = recorder.select_events
        self.max_notification_id = recorder.max_notification_id

    def insert_events(self, stored_events: list[StoredEvent]) -> list[int]:
        return list(self.recorder.insert_events(stored_events) or ())

    def select_notifications(
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
    ) -> list[Notification]:
        after = 0 if start is None else start - inclusive_of_start
        until = self.recorder.head() if stop is None else stop
        found = [
            Notification(e.stream, e.version, e.type, e.state, e.position)
            for e in self.recorder.read(after, until)
            if e.position <= until and (not topics or e.type in topics)
        ]
        return found[:limit]


class Promises(cases.ApplicationRecorderTestCase, cases.NonInterleavingNotificationIDsBaseCase):
    """The library's cases, with streams named by text.

    Left out is its optional case of subscriptions: they listen to NOTIFY, which our append does not send, since
    readers tail a partition by position. Its table lock is replaced by the counter row, and has no case.
    """

    __test__ = False
    place: Any

    def new_originator_id(self) -> str:
        return f"res_{uuid4()}"

    def create_recorder(self) -> Any:
        recorder = self.place()
        self.addCleanup(recorder.close)
        self.addCleanup(until_readers_end)
        return InTheirTerms(recorder)


def until_readers_end() -> None:
    """A case tells its readers to stop and goes; SQLite does not survive who reads what is being closed."""
    for thread in threading.enumerate():
        if "read_continuously" in thread.name:
            thread.join()


class TestInSQLite(Promises):
    __test__ = True

    @pytest.fixture(autouse=True)
    def placed(self, tmp_path: Path) -> None:
        self.place = lambda: in_sqlite(tmp_path / "p002.sqlite")


class TestInMemory(Promises):
    __test__ = True

    @pytest.fixture(autouse=True)
    def placed(self) -> None:
        self.place = in_memory


class TestInPostgreSQL(Promises):
    __test__ = True

    @pytest.fixture(autouse=True)
    def placed(self, postgres_url: str) -> None:
        self.place = lambda: in_postgres(postgres_url)


# -- what ours add ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def recorder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Recorder]:
    made: Any
    match request.param:
        case "memory":
            made = in_memory()
        case "sqlite":
            made = in_sqlite(tmp_path / "p002.sqlite")
        case _:
            made = in_postgres(request.getfixturevalue("postgres_url"))
    yield made
    made.close()


def event(stream: str, version: int, state: bytes = b"{}") -> StoredEvent:
    return StoredEvent(stream, version, "fact/1", state)


def claim(number: int, stream: str = "res_1", version: int = 1) -> Claim:
    return Claim(number.to_bytes(16, "big"), stream, version)


def test_an_append_tells_the_last_position_and_counts_without_gaps(recorder: Recorder) -> None:
    assert recorder.head() == 0
    assert recorder.append([event("a", 1), event("a", 2)], [], []) == 2
    assert recorder.append([event("b", 1)], [], []) == 3
    assert [e.position for e in recorder.read(0, 10)] == [1, 2, 3]
    assert recorder.head() == 3


def test_an_entry_is_stored_with_the_hash_of_its_own_bytes(recorder: Recorder) -> None:
    state = bytes(range(256))
    recorder.append([event("res_å", 1, state)], [], [])
    [entry] = recorder.read(0, 1)
    leaf = leaf_hash(2, "res_å", 1, "fact/1", state)
    assert entry == Entry(2, 1, "res_å", 1, "fact/1", state, leaf)


@pytest.mark.parametrize("fault", ["a version that is taken", "a claim that is taken", "a claim twice"])
def test_an_append_that_loses_a_race_leaves_nothing_and_no_gap(recorder: Recorder, fault: str) -> None:
    recorder.append([event("a", 1)], [claim(1)], [StateRow("a", "", 1, b"1")])
    version, claims = {
        "a version that is taken": (1, [claim(2)]),
        "a claim that is taken": (2, [claim(1)]),
        "a claim twice": (2, [claim(2), claim(2)]),
    }[fault]
    with pytest.raises(Contended):
        recorder.append([event("b", 1), event("a", version)], claims, [StateRow("a", "", 2, b"2")])
    assert recorder.head() == 1
    assert [e.stream for e in recorder.read(0, 10)] == ["a"]
    assert recorder.claimed([claim(2).key]) == {}
    assert recorder.states([("a", "")]) == [StateRow("a", "", 1, b"1")]
    assert recorder.append([event("a", 2)], [claim(2)], []) == 2


def test_claims_and_states_are_found_by_their_keys_and_only_they(recorder: Recorder) -> None:
    claims = [claim(n, f"res_{n}", n) for n in range(1, 1_001)]
    states = [StateRow(f"res_{n}", part, n, part.encode()) for n in range(1, 1_001) for part in ("", "usage/2025-06")]
    recorder.append([event("a", 1)], claims, states)
    assert recorder.claimed([c.key for c in claims]) == {c.key: c for c in claims}
    assert recorder.claimed([claim(7).key, claim(5_000).key]) == {claim(7).key: claims[6]}
    assert recorder.claimed([]) == {}
    found = recorder.states([(s.stream, s.part) for s in states])
    assert sorted(found, key=str) == sorted(states, key=str)
    assert recorder.states([("res_7", "")]) == [StateRow("res_7", "", 7, b"")]
    assert recorder.states([("res_7", "other")]) == []


def test_a_state_is_replaced_by_its_next_version(recorder: Recorder) -> None:
    for version in (1, 2, 3):
        row = StateRow("a", "", version, str(version).encode(), kept=version > 1)
        recorder.append([event("a", version)], [], [row])
    assert recorder.states([("a", "")]) == [StateRow("a", "", 3, b"3")]


def test_a_state_that_came_meanwhile_is_not_written_over_by_who_thinks_it_new(recorder: Recorder) -> None:
    recorder.append([event("a", 1)], [], [StateRow("a", "", 1, b"1")])
    with pytest.raises(Contended):
        recorder.append([event("b", 1)], [], [StateRow("a", "", 1, b"other")])
    assert recorder.head() == 1
    assert recorder.states([("a", "")]) == [StateRow("a", "", 1, b"1")]


def test_a_state_that_was_read_before_is_written_over_with_its_parts_and_new_ones_beside_it(recorder: Recorder) -> None:
    recorder.append([event("a", 1)], [], [StateRow("a", "", 1, b"1"), StateRow("a", "p/1", 1, b"1")])
    kept = [StateRow("a", "", 2, b"2", kept=True), StateRow("a", "p/1", 2, b"2", kept=True)]
    recorder.append([event("a", 2)], [], [*kept, StateRow("a", "p/2", 2, b"2")])
    rows = {(r.part, r.version, r.state) for r in recorder.states([("a", ""), ("a", "p/1"), ("a", "p/2")])}
    assert rows == {("", 2, b"2"), ("p/1", 2, b"2"), ("p/2", 2, b"2")}


def test_entries_are_found_by_stream_and_version(recorder: Recorder) -> None:
    recorder.append([event(name, version) for name in "ab" for version in range(1, 4)], [], [])
    found = recorder.read_at([("a", 2), ("b", 3), ("b", 9), ("c", 1)])
    assert {place: entry.position for place, entry in found.items()} == {("a", 2): 2, ("b", 3): 6}


def test_the_order_of_names_is_that_of_their_bytes_on_every_database(recorder: Recorder) -> None:
    names = ["res_Z", "res_a", "res_B", "res_å", "res_-", "res_1", "res_é", "res_中"]
    recorder.append([event("a", 1)], [], [StateRow(name, "", 1, b"") for name in names])
    assert [row.stream for row in recorder.all_states(("", ""), 100)] == sorted(names)


def test_what_is_told_about_a_journal_first_stands(recorder: Recorder) -> None:
    assert recorder.about() == {}
    assert recorder.about({"format": "1", "partitions": "4"}) == {"format": "1", "partitions": "4"}
    assert recorder.about({"format": "2", "origin": "x"}) == {"format": "1", "partitions": "4", "origin": "x"}


def test_a_reader_that_follows_never_passes_over_an_entry(recorder: Recorder) -> None:
    """Writers race, and a reader tails the partition: what it has read has no hole, ever."""
    done = threading.Event()

    def write(who: int) -> None:
        for n in range(40):
            recorder.append([event(f"w{who}", 2 * n + i) for i in (1, 2)], [claim(who * 1_000 + n)], [])

    def follow() -> list[int]:
        seen: list[int] = []
        while not done.is_set() or len(seen) < 320:
            seen += [e.position for e in recorder.read(seen[-1] if seen else 0, 7)]
        return seen

    with ThreadPoolExecutor(5) as threads:
        following = threads.submit(follow)
        try:
            for written in [threads.submit(write, who) for who in range(4)]:
                written.result()
        finally:
            done.set()
        assert following.result() == list(range(1, 321))


def test_making_the_tables_again_changes_nothing(recorder: Recorder) -> None:
    recorder.append([event("a", 1)], [claim(1)], [])
    recorder.create_table()
    assert recorder.head() == 1
    assert recorder.append([event("a", 2)], [], []) == 2


@pytest.fixture(params=["sqlite", "postgresql"])
def two(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Recorder, Recorder]]:
    """One place, as two processes have it."""
    if request.param == "sqlite":
        made: Any = (in_sqlite(tmp_path / "p002.sqlite"), in_sqlite(tmp_path / "p002.sqlite"))
    else:
        url = request.getfixturevalue("postgres_url")
        made = (in_postgres(url), in_postgres(url))
    yield made
    for recorder in made:
        recorder.close()


def test_who_is_alone_is_written_past_by_nobody(two: tuple[Recorder, Recorder]) -> None:
    """What is read while alone is what the append meets, whoever else is in a hurry."""
    mine, theirs = two
    with ThreadPoolExecutor(1) as threads:
        with mine.alone():
            waiting = threads.submit(theirs.append, [event("a", 1)], [], [])
            assert not wait([waiting], timeout=0.3).done
            assert mine.head() == 0
            assert mine.append([event("a", 1)], [claim(1)], []) == 1
        with pytest.raises(Contended):  # it had to wait, and then finds its version taken
            waiting.result()
    assert theirs.append([event("a", 2)], [], []) == 2


def test_what_was_appended_alone_is_gone_where_it_failed(two: tuple[Recorder, Recorder]) -> None:
    mine, theirs = two

    def fail() -> None:
        with mine.alone():
            mine.append([event("a", 1)], [claim(1)], [])
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail()
    assert theirs.append([event("a", 1)], [claim(1)], []) == 1
    assert mine.append([event("a", 2)], [], []) == 2


def test_who_takes_in_a_file_sees_whether_a_server_works_on_the_database(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking = open_journal(postgres_url, partitions=1)
    assert not looking.served()
    monkeypatch.setenv("PGAPPNAME", SERVER_NAME)
    serving = open_journal(postgres_url)
    serving.heads()
    assert looking.served()
    serving.close()
    monkeypatch.delenv("PGAPPNAME")
    looking.close()
