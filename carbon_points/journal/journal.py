"""The journal: all partitions together. Opened once a process; thread-safe.

`submit` is for a request that waits for its one answer: what is waiting is committed together. `commit` is for a
program that has many at once. Nothing else appends, and nothing updates or deletes an entry.
"""

import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from eventsourcing.persistence import DatabaseError, ProgrammingError
from eventsourcing.postgres import PostgresDatastore
from eventsourcing.sqlite import SQLiteDatastore
from msgspec import Struct
from psycopg import Error as DriverError
from psycopg.conninfo import conninfo_to_dict

from carbon_points.domain.methodology import Methodologies
from carbon_points.domain.source import Sources
from carbon_points.journal.entry import Entry, claim_key
from carbon_points.journal.partition import Outcome, Partition, Unavailable, Write
from carbon_points.journal.recorder import PostgresRecorder, Recorder, SQLiteRecorder, Unreachable
from carbon_points.journal.streams import (
    KINDS,
    METHODOLOGIES,
    SOURCES,
    State,
    decode_state,
    kind_of,
    partition_of,
    stream_of,
)

FORMAT = "1"
BATCH = 500
CREATE_TRIES = 6
JUMP_SECONDS, SLEW = 20.0, 0.01
WAITING_MOST = 4_000  # commands of one partition that wait for their turn
RULES_FRESH_SECONDS = 1.0
RECONNECT_SECONDS = 5.0  # then a pool gives up, and the next caller begins anew
LOCK_MS, STATEMENT_MS = 5_000, 60_000  # of a statement on PostgreSQL; then it is refused, and may be sent again


class Overloaded(Unavailable):
    """More is waiting than will be answered soon: the caller should come back later."""


class Rules(Struct, frozen=True):
    """What decides actions from outside an account, as of at most a second ago."""

    methodologies: Methodologies
    sources: Sources


class Journal:
    def __init__(self, recorders: Sequence[Recorder], *, clock: Callable[[], datetime] | None = None) -> None:
        self.partitions = [Partition(r, clock or SteadyClock()) for r in recorders]
        for partition in self.partitions:
            partition.others = [p.recorder for p in self.partitions if p is not partition]
        self._queues: list[queue.Queue[tuple[Write, Future[Outcome]] | None]] = []
        self._threads: list[threading.Thread] = []
        self._rules: Rules | None = None
        self._rules_versions = (-1, -1)
        self._rules_until = 0.0
        self._rules_away = ("", 0.0)  # why they could not be read, and until when nobody asks again
        self._rules_lock = threading.Lock()
        self._starting = threading.Lock()
        self._submitting = threading.Lock()
        self._closed = False
        self._pool = ThreadPoolExecutor(len(self.partitions), thread_name_prefix="commit")
        self.appended = threading.Event()  # set after every commit of this process: a hint to readers

    # -- writing -----------------------------------------------------------------------------------------------------

    def partition_of(self, stream: str) -> Partition:
        return self.partitions[partition_of(stream, len(self.partitions))]

    def commit(self, writes: Sequence[Write]) -> list[Outcome]:
        """Decide and append many commands; those of one stream in their order. Raises Unavailable."""
        by_partition: dict[int, list[int]] = {}
        for index, write in enumerate(writes):
            by_partition.setdefault(self.partition_of(stream_of(write.command)).number, []).append(index)
        outcomes: dict[int, Outcome] = {}
        waiting = {
            number: self._pool.submit(self.partitions[number].commit, [writes[i] for i in indexes])
            for number, indexes in by_partition.items()
        }
        for number, done in waiting.items():
            outcomes.update(zip(by_partition[number], done.result(), strict=True))
        self.appended.set()
        return [outcomes[index] for index in range(len(writes))]

    def submit(self, write: Write) -> "Future[Outcome]":
        """Put a command among those that wait, to be committed with them. Raises Overloaded, Unavailable (closed)."""
        if not self._threads:
            self._start()
        answer: Future[Outcome] = Future()
        number = self.partition_of(stream_of(write.command)).number
        with self._submitting:  # nothing may come after the last of a queue
            if self._closed:
                raise Unavailable("the journal is closed")
            try:
                self._queues[number].put_nowait((write, answer))
            except queue.Full:
                raise Overloaded(f"{WAITING_MOST} commands are waiting") from None
        return answer

    def _start(self) -> None:
        with self._starting:
            if self._threads:
                return
            self._queues = [queue.Queue(WAITING_MOST) for _ in self.partitions]
            threads = [
                threading.Thread(target=self._write, args=(p, q), name=f"journal-{p.number}", daemon=True)
                for p, q in zip(self.partitions, self._queues, strict=True)
            ]
            for thread in threads:
                thread.start()
            self._threads = threads

    def _write(self, partition: Partition, waiting: "queue.Queue[tuple[Write, Future[Outcome]] | None]") -> None:
        """Commit what is waiting, as it comes: alone when idle, together under load."""
        while (first := waiting.get()) is not None:
            batch, last = [first], False
            while len(batch) < BATCH and not waiting.empty():
                if (item := waiting.get_nowait()) is None:
                    last = True
                    break
                batch.append(item)
            try:
                outcomes = partition.commit([write for write, _ in batch])
            except Exception as error:  # noqa: BLE001  # every waiting caller gets it; the thread lives on
                for _, answer in batch:
                    answer.set_exception(error)
            else:
                for (_, answer), outcome in zip(batch, outcomes, strict=True):
                    answer.set_result(outcome)
                self.appended.set()
            if last:
                return

    # -- reading -----------------------------------------------------------------------------------------------------

    def state(self, stream: str, parts: Sequence[tuple[str, str]] = ()) -> State:
        """A stream's state as committed. Raises Unreachable."""
        return self.partition_of(stream).state(stream, parts)[0]

    def find(self, claim: tuple[str, ...]) -> Entry | None:
        """The entry that used an identity, in whichever partition it lies."""
        return self.find_key(claim_key(claim))

    def find_key(self, key: bytes) -> Entry | None:
        for partition in self.partitions:
            if found := partition.recorder.claimed([key]).get(key):
                return partition.recorder.read_at([(found.stream, found.version)])[(found.stream, found.version)]
        return None

    def entries(self, partition: int, after: int = 0, until: int | None = None, chunk: int = 2_000) -> Iterator[Entry]:
        """A partition's entries in order, from after a position up to another or the present head."""
        recorder = self.partitions[partition].recorder
        end = recorder.head() if until is None else until
        while after < end:
            read = recorder.read(after, min(chunk, end - after))
            if not read:
                return
            yield from read
            after = read[-1].position

    def heads(self) -> dict[int, int]:
        """The last position of each partition."""
        return {p.number: p.recorder.head() for p in self.partitions}

    def lapsed(self, at: datetime) -> Iterator[str]:
        """Residents for whom time has decided something that no event says yet: an expired hold or grant."""
        kind = KINDS["resident"]
        for partition in self.partitions:
            after = ("", "")
            while rows := partition.recorder.all_states(after, 2_000):
                after = (rows[-1].stream, rows[-1].part)
                for row in rows:
                    main = not row.part and kind_of(row.stream) is kind
                    if main and kind.due(decode_state(kind.state_type, row.state), at):
                        yield row.stream

    def rules(self) -> Rules:
        """Methodologies and sources, read again when they changed, at most a second late. Raises Unreachable.

        One caller waits for a database that is away, and its failure is that of all who came meanwhile: if each tried
        for itself, the last would wait for as many times as there are callers.
        """
        with self._rules_lock:
            now = since_boot()
            why, until = self._rules_away
            if now < until:
                raise Unreachable(why)
            if self._rules is None or now >= self._rules_until:
                try:
                    self._read_rules()
                except Unreachable as error:
                    self._rules_away = (str(error), since_boot() + RULES_FRESH_SECONDS)
                    raise
                self._rules_until = now + RULES_FRESH_SECONDS
            assert self._rules is not None
            return self._rules

    def _read_rules(self) -> None:
        tables, of_tables = self.partition_of(METHODOLOGIES).state(METHODOLOGIES)
        sources, of_sources = self.partition_of(SOURCES).state(SOURCES)
        if (of_tables, of_sources) != self._rules_versions:
            self._rules, self._rules_versions = Rules(tables, sources), (of_tables, of_sources)

    def rules_changed(self) -> None:
        """This process has just changed them: read them again at once."""
        self._rules_until = 0.0

    def close(self) -> None:
        """Commit what is waiting, then stop."""
        with self._submitting:
            self._closed = True
        for waiting in self._queues:
            waiting.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []
        self._pool.shutdown()
        for partition in self.partitions:
            partition.recorder.close()


# -- opening ---------------------------------------------------------------------------------------------------------


def open_journal(url: str, *, partitions: int = 4, clock: Callable[[], datetime] | None = None) -> Journal:
    """The journal at a URL: `sqlite:///folder`, `sqlite://` (memory) or `postgresql://...`.

    One that does not exist is created with that many partitions; one that does keeps its own number.
    """
    first = _opened(url, 0)
    about = first.about({"format": FORMAT, "partitions": str(partitions)})
    if about["format"] != FORMAT:
        raise ValueError(f"the journal has format {about['format']}; this program writes format {FORMAT}")
    others = [_opened(url, number) for number in range(1, int(about["partitions"]))]
    return Journal([first, *others], clock=clock)


def _opened(url: str, partition: int) -> Recorder:
    parts = urlsplit(url)
    name = f"p{partition:03d}"
    if parts.scheme == "sqlite":
        folder = Path(parts.path.removeprefix("/")) if parts.path else None
        place = (
            f"file:{folder / name}.sqlite" if folder else f"file:{name}-{time.monotonic_ns()}?mode=memory&cache=shared"
        )
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        recorder: SQLiteRecorder | PostgresRecorder = SQLiteRecorder(
            SQLiteDatastore(place, originator_id_type="text", lock_timeout=20), partition=partition
        )
    elif parts.scheme in ("postgresql", "postgres"):
        recorder = PostgresRecorder(_postgres(url, name), partition=partition)
    else:
        raise ValueError(f"a database URL begins with sqlite:// or postgresql://, not {parts.scheme}://")
    _create(recorder)
    return recorder


def _create(recorder: "SQLiteRecorder | PostgresRecorder") -> None:
    """Make the tables where there are none: a role without rights to create is enough where there are.

    Two processes that do so at once meet in the catalogue, or at the file: then the other's tables serve both.
    """
    for attempt in range(CREATE_TRIES):
        with suppress(ProgrammingError, Unreachable):
            recorder.head()
            return
        try:
            recorder.create_table()
        except (DatabaseError, DriverError, sqlite3.Error):
            if attempt == CREATE_TRIES - 1:
                raise
            time.sleep(0.05 * (attempt + 1))


def _postgres(url: str, schema: str) -> PostgresDatastore:

    known = conninfo_to_dict(url)
    datastore = PostgresDatastore(
        dbname=str(known.get("dbname") or "postgres"),
        host=str(known.get("host") or ""),
        port=str(known.get("port") or ""),
        user=str(known.get("user") or ""),
        password=str(known.get("password") or ""),
        schema=schema,
        pool_size=1,
        max_overflow=5,
        originator_id_type="text",
    )
    # What the library does not pass on (sslmode, application_name), and an end to waiting for a stranger's lock.
    known["options"] = f"-c lock_timeout={LOCK_MS} -c statement_timeout={STATEMENT_MS} {known.get('options') or ''}"
    kwargs: Any = datastore.pool.kwargs
    datastore.pool.kwargs = {**known, **kwargs}
    # Its pauses between two tries double: after minutes without a database it would not notice for as long again.
    datastore.pool.reconnect_timeout = RECONNECT_SECONDS
    return datastore


class SteadyClock:
    """The system's time, as long as it goes as time does.

    A clock that jumps (a wrong time server, a hand) would write entries of a future that expires points for good. It
    is noticed against the clock that counts from boot; until it is right again, nothing is written.
    """

    def __init__(self) -> None:
        self._apart = time.time() - since_boot()

    def __call__(self) -> datetime:
        wall = time.time()
        drift = wall - since_boot() - self._apart
        if abs(drift) > JUMP_SECONDS:
            raise Unavailable(f"the system's clock jumped by {drift:.0f} s; if it is right now, restart")
        self._apart += drift * SLEW  # time servers move it by and by
        return datetime.fromtimestamp(wall, UTC)


def since_boot() -> float:
    """Seconds since boot, those of a suspended machine included where the system counts them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
