"""The journal: all partitions together. Opened once a process; thread-safe.

`submit` is for a request that waits for its one answer: what is waiting is committed together. `commit` is for a
program that has many at once. Nothing else appends, and nothing updates or deletes an entry.
"""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from eventsourcing.persistence import DatabaseError, ProgrammingError
from eventsourcing.postgres import PostgresDatastore
from eventsourcing.sqlite import SQLiteDatastore
from msgspec import Struct
from psycopg import Error as DriverError
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import InsufficientPrivilege

from carbon_points.domain.event import Command
from carbon_points.domain.methodology import Methodologies
from carbon_points.domain.source import Sources
from carbon_points.journal.entry import Entry, claim_key
from carbon_points.journal.partition import STATES_KEPT, Outcome, Partition, Unavailable, Write
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
from carbon_points.journal.waiting import Answer, Item, Waiting, answer
from carbon_points.journal.writer import Writer

FORMAT = "1"
Mode = Literal["live", "test"]
_OTHER_MODE = {
    "test": "this is the data of a sandbox: it is opened with CARBON_SANDBOX=1, and never as a live installation",
    "live": "this is the data of a live installation: a sandbox has a folder or a database of its own",
}
CREATE_TRIES = 6
JUMP_SECONDS, SLEW = 20.0, 0.01
WAITING_MOST = 4_000  # commands of one partition that wait for their turn
WAITING_SECONDS = 10.0  # for at most so long
ELSEWHERE_SECONDS, LOOK_SECONDS = 5.0, 0.002
RULES_FRESH_SECONDS = 1.0
_ELSEWHERE = "the same id is being decided for another resident: send it again"
RECONNECT_SECONDS = 5.0  # then a pool gives up, and the next caller begins anew
LOCK_MS, STATEMENT_MS = 5_000, 60_000  # of a statement on PostgreSQL; then it is refused, and may be sent again


class NotCreated(ValueError):
    """There is no journal, or not all of one, and whoever asks may not create it."""


class NotDistributable(ValueError):
    """The database cannot place partitions on several machines."""


class OtherMode(ValueError):
    """Live data is asked for as a sandbox's, or the other way."""


class Created(Struct, frozen=True):
    """What was made of a journal, and placed on the machines of a cluster. What was so already is left out."""

    partitions: int
    made: tuple[str, ...] = ()
    distributed: tuple[str, ...] = ()


class Rules(Struct, frozen=True):
    """What decides actions from outside an account, as of at most a second ago."""

    methodologies: Methodologies
    sources: Sources


class Journal:
    def __init__(self, recorders: Sequence[Recorder], *, clock: Callable[[], datetime] | None = None) -> None:
        kept = STATES_KEPT // len(recorders)
        clock = clock or SteadyClock()
        self.partitions = [Partition(r, clock, kept) for r in recorders]
        for partition in self.partitions:
            partition.others = [p.recorder for p in self.partitions if p is not partition]
        self._waiting = [Waiting(WAITING_MOST, WAITING_SECONDS) for _ in self.partitions]
        self._deciding = _Deciding(len(self.partitions))
        # By event loop, what was asked in its present turn.
        self._asked: dict[asyncio.AbstractEventLoop, list[tuple[Write, asyncio.Future[Outcome]]]] = {}
        self._threads: list[threading.Thread] = []
        self._rules: Rules | None = None
        self._rules_versions = (-1, -1)
        self._rules_until = 0.0
        self._rules_away = ("", 0.0)  # why they could not be read, and until when nobody asks again
        self._rules_lock = threading.Lock()
        self._rules_asked = False
        self._starting = threading.Lock()
        self._pool = ThreadPoolExecutor(len(self.partitions), thread_name_prefix="commit")
        self.appended = threading.Event()  # set after every commit of this process: a hint to readers

    # -- writing -----------------------------------------------------------------------------------------------------

    def partition_of(self, stream: str) -> Partition:
        return self.partitions[partition_of(stream, len(self.partitions))]

    def commit(self, writes: Sequence[Write]) -> list[Outcome]:
        """Decide and append many commands; those of one stream in their order. Raises Unavailable.

        An identity that is one in all partitions, and is being decided in another one at this moment, waits for that.
        """
        if writes and len(self.partitions) == 1:
            alone = self.partitions[0].commit(writes)
            self.appended.set()
            return alone
        numbers = [self.partition_of(stream_of(write.command)).number for write in writes]
        outcomes: dict[int, Outcome] = {}
        left, until = list(range(len(writes))), since_boot() + ELSEWHERE_SECONDS
        while left:
            keys, later = dict[int, bytes | None](), list[int]()
            for index in left:
                try:
                    keys[index] = self._deciding.begin(writes[index].command, numbers[index])
                except DecidedElsewhere:
                    later.append(index)
            try:
                self._commit(writes, {index: numbers[index] for index in keys}, outcomes)
            finally:
                for key in keys.values():
                    self._deciding.end(key)
            if later and not keys:
                if since_boot() > until:
                    raise DecidedElsewhere(_ELSEWHERE)
                time.sleep(LOOK_SECONDS)
            left = later
        self.appended.set()
        return [outcomes[index] for index in range(len(writes))]

    def _commit(self, writes: Sequence[Write], numbers: Mapping[int, int], outcomes: dict[int, Outcome]) -> None:
        by_partition: dict[int, list[int]] = {}
        for index, number in numbers.items():
            by_partition.setdefault(number, []).append(index)
        waiting = {
            number: self._pool.submit(self.partitions[number].commit, [writes[i] for i in indexes])
            for number, indexes in by_partition.items()
        }
        wait(waiting.values())
        for number, done in waiting.items():
            outcomes.update(zip(by_partition[number], done.result(), strict=True))

    def submit(self, write: Write) -> "Future[Outcome]":
        """Put a command among those that wait, to be committed with them. Raises Overloaded, Unavailable (closed)."""
        given: Future[Outcome] = Future()
        self._submit(write, given)
        return given

    def ask(self, write: Write) -> "asyncio.Future[Outcome]":
        """The same in an event loop. What a turn of the loop asks goes to the writer together, and wakes it once."""
        loop = asyncio.get_running_loop()
        given: asyncio.Future[Outcome] = loop.create_future()
        asked = self._asked.get(loop)
        if asked is None:
            asked = self._asked[loop] = []
            loop.call_soon(self._pass_on, loop)
        asked.append((write, given))
        return given

    def _pass_on(self, loop: asyncio.AbstractEventLoop) -> None:
        for write, given in self._asked.pop(loop):
            try:
                self._submit(write, given)
            except Exception as error:  # noqa: BLE001  # who asked gets it, and the others their turn
                answer([(given, error)])

    def _submit(self, write: Write, given: Answer) -> None:
        if len(self._threads) < len(self.partitions):
            self._start()
        number = self.partition_of(stream_of(write.command)).number
        key = self._deciding.begin(write.command, number)
        try:
            self._waiting[number].put(write, given, key)
        except Unavailable:
            self._deciding.end(key)
            raise

    def _start(self) -> None:
        with self._starting:
            for number in range(len(self._threads), len(self.partitions)):  # should one fail, the next caller goes on
                writer = Writer(self.partitions[number], self._waiting[number], self._ended)
                thread = threading.Thread(target=writer.run, name=f"journal-{number}", daemon=True)
                thread.start()
                self._threads.append(thread)

    def _ended(self, items: Sequence[Item]) -> None:
        """They are decided, or given up."""
        for item in items:
            self._deciding.end(item.key)
        self.appended.set()

    def served(self) -> bool:
        """Whether a server works on the same database, on whom others wait. Raises Unreachable."""
        recorder = self.partitions[0].recorder
        return isinstance(recorder, PostgresRecorder) and recorder.served()

    # -- reading -----------------------------------------------------------------------------------------------------

    def state(self, stream: str, parts: Sequence[tuple[str, str]] = ()) -> State:
        """A stream's state as committed. Raises Unreachable."""
        return self.partition_of(stream).state(stream, parts)[0]

    def find(self, claim: tuple[str, ...]) -> Entry | None:
        """The entry that used an identity, in whichever partition it lies."""
        return self.find_key(claim_key(claim))

    def find_beside(self, stream: str, claim: tuple[str, ...]) -> Entry | None:
        """The same, where it can lie in a stream's partition only."""
        return _claimed_in(self.partition_of(stream), claim_key(claim))

    def find_key(self, key: bytes) -> Entry | None:
        return next(self.find_all(key), None)

    def find_all(self, key: bytes) -> Iterator[Entry]:
        """Every entry that used an identity: one, unless processes that raced put it into several partitions."""
        for partition in self.partitions:
            if entry := _claimed_in(partition, key):
                yield entry

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

    def events(self, partition: int, after: int, until: int, chunk: int) -> Iterator[list[tuple[int, str, bytes]]]:
        """The same in chunks, with nothing but what happened: position, type and state."""
        while after < until and (
            read := self.partitions[partition].recorder.read_events(after, min(chunk, until - after))
        ):
            yield read
            after = read[-1][0]

    def newest(self, stream: str, limit: int, before: int | None = None) -> list[Entry]:
        """A stream's last entries, the newest first; or the last of those before a version."""
        partition = self.partition_of(stream)
        _, last = partition.state(stream)
        end = last + 1 if before is None else min(before, last + 1)
        found = partition.recorder.read_at([(stream, version) for version in range(max(end - limit, 1), end)])
        return sorted(found.values(), key=lambda entry: -entry.version)

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

    def rules(self, *, within: float = 0.0) -> Rules:
        """Methodologies and sources, read again when they changed, at most a second late. Raises Unreachable.

        `within`: read them also where they would have to be read within so many seconds. One caller waits for a
        database that is away, and its failure is that of all who came meanwhile: if each tried for itself, the last
        would wait for as many times as there are callers.
        """
        with self._rules_lock:
            now = since_boot()
            why, until = self._rules_away
            if now < until:
                raise Unreachable(why)
            if self._rules is None or now + within >= self._rules_until:
                try:
                    self._read_rules()
                except Unreachable as error:
                    self._rules_away = (str(error), since_boot() + RULES_FRESH_SECONDS)
                    raise
                self._rules_until = now + RULES_FRESH_SECONDS
            assert self._rules is not None
            return self._rules

    def rules_at_hand(self) -> Rules | None:
        """The same without waiting: those of the last second, or None. They are read again before they grow older."""
        left = self._rules_until - since_boot()
        if left < RULES_FRESH_SECONDS / 2 and not self._rules_asked:
            self._rules_asked = True
            with suppress(RuntimeError):  # the journal is being closed
                self._pool.submit(self._refresh_rules)
        return self._rules if left > 0 else None

    def _refresh_rules(self) -> None:
        try:
            self.rules(within=RULES_FRESH_SECONDS / 2)
        finally:
            self._rules_asked = False

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
        for waiting in self._waiting:
            waiting.close()
        for thread in self._threads:
            thread.join()
        self._threads = []
        self._pool.shutdown()
        for partition in self.partitions:
            partition.recorder.close()


def _claimed_in(partition: Partition, key: bytes) -> Entry | None:
    found = partition.recorder.claimed([key]).get(key)
    return partition.recorder.read_at([at := (found.stream, found.version)])[at] if found else None


class DecidedElsewhere(Unavailable):
    """The same identity is being decided for another resident at this moment."""


class _Deciding:
    """Identities that are one in all partitions and are being decided now, with the partition where.

    Partitions decide at the same time: without it, one record sent for two residents could count for both.
    """

    def __init__(self, partitions: int) -> None:
        self._alone = partitions == 1
        self._keys: dict[bytes, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def begin(self, command: Command, partition: int) -> bytes | None:
        """Raises DecidedElsewhere. What is returned must come back to `end`."""
        if not command.claimed_everywhere or self._alone:
            return None
        key = claim_key(command.claim() or ())
        with self._lock:
            where, times = self._keys.get(key, (partition, 0))
            if where != partition:
                raise DecidedElsewhere(_ELSEWHERE)
            self._keys[key] = (partition, times + 1)
        return key

    def end(self, key: bytes | None) -> None:
        if key is None:
            return
        with self._lock:
            where, times = self._keys.get(key, (0, 1))
            if times > 1:
                self._keys[key] = (where, times - 1)
            else:
                self._keys.pop(key, None)


# -- opening ---------------------------------------------------------------------------------------------------------


def open_journal(
    url: str, *, partitions: int = 4, clock: Callable[[], datetime] | None = None, mode: Mode | None = None
) -> Journal:
    """The journal at a URL: `sqlite:///folder`, `sqlite://` (memory) or `postgresql://...`.

    One that does not exist is created with that many partitions; one that does keeps its own number. So it is with the
    mode (a new one without is live): raises OtherMode where the journal has another than is said.
    """
    return Journal([recorder for recorder, _ in _partitions(url, partitions, mode)], clock=clock)


def create_journal(url: str, *, partitions: int, distributed: bool = False, mode: Mode | None = None) -> Created:
    """Make what is not there yet of a journal, and with `distributed` let Citus place each partition on a machine.

    Raises NotDistributable, and then nothing was made; and OtherMode.
    """
    if distributed:
        _distributable(url)
    made: list[str] = []
    placed: list[str] = []
    count = 0
    for recorder, new in _partitions(url, partitions, mode):
        count += 1
        try:
            if new:
                made.append(partition_name(recorder.partition))
            if distributed and isinstance(recorder, PostgresRecorder) and recorder.distribute():
                placed.append(partition_name(recorder.partition))
        finally:
            recorder.close()
    return Created(count, tuple(made), tuple(placed))


def _distributable(url: str) -> None:
    if urlsplit(url).scheme == "sqlite":
        raise NotDistributable("partitions on several machines want PostgreSQL with Citus: SQLite's are files of one")
    recorder = _recorder(url, 0)
    try:
        if isinstance(recorder, PostgresRecorder) and not recorder.distributable():
            raise NotDistributable("the database has no Citus: CREATE EXTENSION citus comes first, on every machine")
    finally:
        recorder.close()


def _partitions(
    url: str, partitions: int, mode: Mode | None
) -> "Iterator[tuple[SQLiteRecorder | PostgresRecorder, bool]]":
    """Each partition's recorder, and whether its tables were made just now. Raises NotCreated, OtherMode."""
    first = _recorder(url, 0)
    made = _create(first)
    wanted = {"format": FORMAT, "partitions": str(partitions)}
    about = first.about()
    if not about.keys() >= wanted.keys():
        about = first.about({**wanted, "mode": mode or "live"})
    found = about.get("mode", "live")  # those that were made before there were sandboxes do not say
    if mode not in (None, found):
        first.close()
        raise OtherMode(_OTHER_MODE[found])
    if about["format"] != FORMAT:
        raise ValueError(f"the journal has format {about['format']}; this program writes format {FORMAT}")
    yield first, made
    for number in range(1, int(about["partitions"])):
        recorder = _recorder(url, number)
        yield recorder, _create(recorder)


def partition_name(partition: int) -> str:
    """What its schema or file is called."""
    return f"p{partition:03d}"


def _recorder(url: str, partition: int) -> "SQLiteRecorder | PostgresRecorder":
    parts = urlsplit(url)
    name = partition_name(partition)
    if parts.scheme == "sqlite":
        folder = Path(parts.path.removeprefix("/")) if parts.path else None
        place = (
            f"file:{folder / name}.sqlite" if folder else f"file:{name}-{time.monotonic_ns()}?mode=memory&cache=shared"
        )
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        return SQLiteRecorder(SQLiteDatastore(place, originator_id_type="text", lock_timeout=20), partition=partition)
    if parts.scheme in ("postgresql", "postgres"):
        return PostgresRecorder(_postgres(url, name), partition=partition)
    raise ValueError(f"a database URL begins with sqlite:// or postgresql://, not {parts.scheme}://")


def _create(recorder: "SQLiteRecorder | PostgresRecorder") -> bool:
    """Make the tables where there are none, and say so: a role without rights to create is enough where there are.

    Two processes that do so at once meet in the catalogue, or at the file: then the other's tables serve both.
    """
    for attempt in range(CREATE_TRIES):
        with suppress(ProgrammingError, Unreachable):
            recorder.head()
            return False
        try:
            recorder.create_table()
        except (DatabaseError, DriverError, sqlite3.Error) as error:
            if isinstance(error.__cause__, InsufficientPrivilege):
                raise NotCreated(
                    f"partition {partition_name(recorder.partition)} is not there for this role, which may not create "
                    "it: `carbon-points init` as the owner does, and `--print-grants` tells the role's rights"
                ) from error
            if attempt == CREATE_TRIES - 1:
                raise
            time.sleep(0.05 * (attempt + 1))
        else:
            return True
    raise AssertionError("the last try returns or raises")


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
    datastore.pool.kwargs = {**known, **kwargs, "autocommit": True}  # one statement is one round trip
    # Its pauses between two tries double: after minutes without a database it would not notice for as long again.
    datastore.pool.reconnect_timeout = RECONNECT_SECONDS
    return datastore


class SteadyClock:
    """The system's time, as long as it goes as time does. Raises Unavailable.

    A clock that jumps (a wrong time server, a hand) would write entries of a future that expires points for good. It
    is noticed against the clock that counts from boot; until it is right again, nothing is written. A machine that was
    suspended has not jumped. What the time was at the start is believed, unless the log knows better.
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
