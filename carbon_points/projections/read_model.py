"""The read model: one database of rows that follow from the log, and the position in each partition they follow it to.

Rows and position are written in one transaction, so an entry counts once, whoever applies it and however often. All
of it is disposable: `loop.rebuild` makes the same rows from nothing, beside these, and puts them in their place.
"""

import hashlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec
from sqlalchemy import (
    URL,
    BigInteger,
    Connection,
    Engine,
    MetaData,
    QueuePool,
    Table,
    create_engine,
    event,
    func,
    insert,
    inspect,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import OperationalError
from sqlalchemy.schema import CreateIndex, CreateSchema, CreateTable, DropSchema

from carbon_points.journal import codec
from carbon_points.journal.entry import Entry
from carbon_points.projections import (
    actions,
    batches,
    city,
    fund,
    lots,
    merchants,
    offers,
    rankings,
    redemptions,
    residents,
    trial_balance,
)
from carbon_points.projections.rows import Batch, Made, Rows, Snapshot, key, metadata, once, write

_log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")

FOLD = 5  # raised when the same entries come to mean other rows
BUSY_SECONDS = 20  # how long a writer waits for another
POOL_SIZE = 10
LOCK_TRIES = 60  # of half a second each, and as long a pause
LOCK_MILLISECONDS = 500
STEP_PAGES = 16  # fewer than even an empty model has
LOOK_SECONDS = 0.02  # how often a waiting reader looks what other processes applied

FEATURES: tuple[Callable[[Batch, Made], None], ...] = (
    actions.fold,
    residents.fold,
    redemptions.fold,
    lots.fold,
    merchants.fold,
    offers.fold,
    batches.fold,
    fund.fold,
    rankings.fold,
    city.fold,
    city.fold_days,
    trial_balance.fold,
)
# What all partitions write comes last, so that its rows are locked for the shortest time, and in the same order by all.
SHARED = [fund.FUND, city.CITY, city.DAYS, trial_balance.ACCOUNTS]

POSITIONS = Table("positions", metadata, key("partition", BigInteger), once("position", BigInteger))
SHAPE = Table("shape", metadata, key("digest"))


class Gap(Exception):
    """Entries that do not follow the stored position: some in between are missing."""


class ReadModel:
    """Thread-safe, and safe beside other processes. `url` is SQLAlchemy's; `sqlite://` lives in memory.

    On PostgreSQL every table is in `schema`. Tables that are missing, or of another shape than this program's, are
    made anew and empty: whoever follows the log fills them again. With `keep`, those of another shape stay as they are,
    since they are about to be replaced.
    """

    def __init__(self, url: str, *, schema: str = "read", keep: bool = False) -> None:
        self.url = _read_url(url)
        self.schema = schema
        self.engine = _engine(self.url, schema)
        self._writing = self.engine.execution_options(writes=True)
        self._reading = self.engine
        if self.on_postgres:
            self._reading = self.engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self._seen: dict[int, int] = {}
        self.wanted = threading.Event()  # somebody waits for the rows to follow
        self._applied = threading.Condition()
        self.made = self._create(keep)

    @property
    def on_postgres(self) -> bool:
        return self.engine.dialect.name == "postgresql"

    def _create(self, keep: bool) -> bool:
        """Whether the tables were made anew."""
        with self._reading.connect() as connection:  # a role without rights to create is enough where all is there
            if self._stands(connection, keep):
                return False
        with self._writing.begin() as connection:
            schema = self.schema if self.on_postgres else None
            if schema:
                connection.execute(_ONE_CREATES)
                connection.execute(CreateSchema(schema, if_not_exists=True))
            if self._stands(connection, keep):  # meanwhile, by another process
                return False
            former = MetaData(schema=schema)
            former.reflect(connection)
            former.drop_all(connection)
            metadata.create_all(connection, checkfirst=False)
            connection.execute(insert(SHAPE), {"digest": shape()})
        return True

    def _stands(self, connection: Connection, keep: bool) -> bool:
        there = inspect(connection).has_table(SHAPE.name, schema=self.schema if self.on_postgres else None)
        return there and (keep or connection.scalars(select(SHAPE.c.digest)).all() == [shape()])

    # -- following the log -------------------------------------------------------------------------------------------

    def positions(self) -> dict[int, int]:
        """The last entry that each partition's rows follow from. A partition of which nothing was read is left out."""
        with self.snapshot() as at:
            return at.positions

    def apply(self, partition: int, entries: Sequence[Entry]) -> int:
        """Take entries of a partition into every feature's rows, and return the position then stored.

        Those applied before are skipped. Raises Gap, Unreadable, or SQLAlchemy's DBAPIError; then nothing changed.
        """
        with self.writing() as connection:
            stored = self._locked(connection, partition)
            made = Made()
            if fresh := fold(partition, [(e.position, e.type, e.state) for e in entries], stored, made):
                actions.become(made)
                actions.become_stored(connection, made)
                lots.move_units(connection, made)
                for rows in in_order(made):
                    write(connection, rows)
                stored += fresh
                connection.execute(update(POSITIONS).where(POSITIONS.c.partition == partition).values(position=stored))
        with self._applied:
            self._seen[partition] = max(stored, self._seen.get(partition, 0))
            self._applied.notify_all()
        return stored

    @contextmanager
    def writing(self) -> Generator[Connection]:
        """A transaction. A crash of PostgreSQL may take the last ones, rows and position: the log has them all."""
        with self._writing.begin() as connection:
            if self.on_postgres:
                connection.execute(_NOT_DURABLE)
            yield connection

    def _locked(self, connection: Connection, partition: int) -> int:
        """The stored position, which no one else moves before this transaction ends."""
        query = select(POSITIONS.c.position).where(POSITIONS.c.partition == partition).with_for_update()
        stored = connection.scalar(query)
        if stored is None:
            added = (postgresql if self.on_postgres else sqlite).insert(POSITIONS).on_conflict_do_nothing()
            connection.execute(added, {"partition": partition, "position": 0})
            stored = connection.scalar(query)
            assert stored is not None
        return stored

    def wait_for(self, partition: int, position: int, timeout: float) -> bool:
        """Whether the rows follow the log to that position, at the latest after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self._seen.get(partition, 0) < position:
            self.wanted.set()
            stored = self.positions()
            with self._applied:
                for number, at in stored.items():
                    self._seen[number] = max(at, self._seen.get(number, 0))
                left = deadline - time.monotonic()
                if self._seen.get(partition, 0) < position:
                    if left <= 0:
                        return False
                    self._applied.wait(min(left, LOOK_SECONDS))
        return True

    # -- reading -----------------------------------------------------------------------------------------------------

    @contextmanager
    def snapshot(self) -> Generator[Snapshot]:
        """All rows at one moment, for the read functions of the features."""
        with self._reading.connect() as connection:
            # Before the snapshot begins, which it does with the first query. A rebuild lets go of what it locks when
            # its own rows are the live ones: a snapshot taken while waiting would show them unfinished.
            self._lock_positions(connection, "ACCESS SHARE")
            stored = connection.execute(select(POSITIONS.c.partition, POSITIONS.c.position)).all()
            yield Snapshot(connection, dict[int, int](map(tuple, stored)))

    def read(self, function: Callable[Concatenate[Snapshot, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """One read function in a snapshot of its own: `read(lots.certificate, number)`."""
        with self.snapshot() as at:
            return function(at, *args, **kwargs)

    def dump(self) -> bytes:
        """Every row of every table, in the order of their keys: equal bytes say equal rows, on any database."""
        lines: list[bytes] = []
        with self.snapshot() as at:
            for table in sorted(metadata.tables.values(), key=lambda t: t.name):
                lines.append(table.name.encode())
                rows = at.rows(select(table).order_by(*table.primary_key))
                lines += (msgspec.json.encode(tuple(row)) for row in rows)
        return b"\n".join(lines) + b"\n"

    def close(self) -> None:
        self.engine.dispose()

    # -- being replaced ----------------------------------------------------------------------------------------------

    @contextmanager
    def beside(self) -> Generator["ReadModel"]:
        """An empty model beside this one, to be filled and to replace it. What is left of it at the end goes."""
        following = f"{self.schema}_next"
        if self.on_postgres:
            self._drop(following)
            made = ReadModel(self.url.render_as_string(hide_password=False), schema=following)
        else:
            path = _file(self.url)
            if path is None:
                raise ValueError("a read model in memory has no place beside it")
            path = path.with_name(f"{path.stem}.next{path.suffix}")
            _unlink(path)
            made = ReadModel(self.url.set(database=str(path)).render_as_string())
        try:
            yield made
        finally:
            made.close()
            if self.on_postgres:
                self._drop(following)
            else:
                _unlink(_file(made.url) or Path())

    def replace_with(self, made: "ReadModel", catch_up: Callable[[], object]) -> None:
        """Put another model's rows in the place of these, all at once.

        `catch_up` is called while nobody can write here: it brings `made` at least as far as these are, so that
        positions never go back. It may be called again.
        """
        if self.on_postgres:
            self._rename(made, catch_up)
        else:
            self._copy(made, catch_up)

    def _rename(self, made: "ReadModel", catch_up: Callable[[], object]) -> None:
        former = f"{self.schema}_old"
        self._drop(former)
        quote = self.engine.dialect.identifier_preparer.quote

        def rename(connection: Connection) -> None:
            self._lock_positions(connection, "ACCESS EXCLUSIVE")
            catch_up()
            connection.execute(text(f"ALTER SCHEMA {quote(self.schema)} RENAME TO {quote(former)}"))
            connection.execute(text(f"ALTER SCHEMA {quote(made.schema)} RENAME TO {quote(self.schema)}"))

        self._patiently(rename)
        try:
            self._drop(former)
        except OperationalError:
            _log.warning("schema %s is still being read; the next rebuild drops it", former)

    def _drop(self, schema: str) -> None:
        self._patiently(lambda connection: connection.execute(DropSchema(schema, cascade=True, if_exists=True)))

    def _patiently(self, change: Callable[[Connection], object]) -> None:
        """Make a change that waits for readers: each time for less than it takes the server to look for a deadlock.

        Between two tries those who queued up behind it go on. Raises OperationalError when it was in vain.
        """
        for attempt in range(LOCK_TRIES):
            try:
                with self._writing.begin() as connection:
                    connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_MILLISECONDS} ms'"))
                    change(connection)
            except OperationalError:
                if attempt == LOCK_TRIES - 1:
                    raise
                time.sleep(LOCK_MILLISECONDS / 1_000)
            else:
                return

    def _lock_positions(self, connection: Connection, mode: str) -> None:
        """On PostgreSQL, the table that whoever reads or writes here touches first."""
        if self.on_postgres:
            schema = self.engine.dialect.identifier_preparer.quote(self.schema)
            connection.execute(text(f"LOCK TABLE {schema}.{POSITIONS.name} IN {mode} MODE"))

    def _copy(self, made: "ReadModel", catch_up: Callable[[], object]) -> None:
        """By SQLite's own backup, as one transaction of the live file.

        Renaming a file over one that is open would leave its write-ahead log beside another file. This way whoever has
        the live one open, in whatever process, goes on with the former rows until the moment of the commit.
        """
        waiting = [catch_up]

        def locked(status: int, _remaining: int, _total: int) -> None:
            # Called after each step; from the first that did something on, the target is locked. The source may
            # change: the backup then begins again.
            if waiting and status == sqlite3.SQLITE_OK:
                waiting.pop()()

        with made.engine.connect() as source, self.engine.connect() as target:
            origin, into = source.connection.driver_connection, target.connection.driver_connection
            assert isinstance(origin, sqlite3.Connection)
            assert isinstance(into, sqlite3.Connection)
            origin.backup(into, pages=STEP_PAGES, progress=locked)
        assert not waiting, "the copy ended before the live file was locked"


def fold(partition: int, entries: Sequence[tuple[int, str, bytes]], stored: int, made: Made) -> int:
    """Fold what comes after the stored position into `made`, and return how many entries. Raises Gap, Unreadable.

    Of the entries it takes position, type and state.
    """
    events = [(position, codec.decode(kind, state)) for position, kind, state in entries if position > stored]
    if [position for position, _ in events] != list(range(stored + 1, stored + 1 + len(events))):
        raise Gap(f"partition {partition}: entry {events[0][0]} or one after it does not follow {stored}")
    if events:
        batch = Batch(partition, events)
        for feature in FEATURES:
            feature(batch, made)
    return len(events)


def in_order(made: Made) -> list[Rows]:
    """What there are rows for, in the order in which everybody writes it."""
    order = [*sorted((table for table in made if table not in SHARED), key=lambda table: table.name), *SHARED]
    return [made[table] for table in order if made[table]]


def shape() -> str:
    """What the tables and the folding are, in one word."""
    told = [str(FOLD)]
    for table in sorted(metadata.tables.values(), key=lambda t: t.name):
        told.append(str(CreateTable(table)))
        told += sorted(str(CreateIndex(index)) for index in table.indexes)
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:32]


_NOT_DURABLE = text("SET LOCAL synchronous_commit = off")
_ONE_CREATES = select(func.pg_advisory_xact_lock(0x63_70_72_6D))

# -- engines ---------------------------------------------------------------------------------------------------------


def _read_url(url: str) -> URL:
    read = make_url(url)
    return read.set(drivername="postgresql+psycopg") if read.drivername in ("postgres", "postgresql") else read


def _file(url: URL) -> Path | None:
    return None if url.database in (None, "", ":memory:") else Path(url.database)


def _engine(url: URL, schema: str) -> Engine:
    shared: dict[str, Any] = {"pool_size": POOL_SIZE, "max_overflow": POOL_SIZE, "hide_parameters": True}
    if url.get_backend_name() == "postgresql":
        engine = create_engine(url, pool_pre_ping=True, **shared)
        return engine.execution_options(schema_translate_map={None: schema})
    if path := _file(url):
        path.parent.mkdir(parents=True, exist_ok=True)
    else:  # memory is the connection's own: everyone takes turns on one
        shared |= {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 0}
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False}, **shared)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where `_begin_sqlite` says, not where the driver guesses
    write_ahead(connection)
    connection.execute("PRAGMA synchronous = NORMAL")  # a power cut may take the last transactions, rows and position
    connection.execute("PRAGMA wal_autocheckpoint = 4000")  # pages: a batch touches many, the next one the same again
    connection.execute("PRAGMA journal_size_limit = 67108864")


def write_ahead(connection: sqlite3.Connection) -> None:
    """Turn the write-ahead log on. Of two who do so with a new file at once SQLite refuses one without waiting."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    """Writers queue up at the start: one that began as a reader could only fail when another wrote meanwhile."""
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _unlink(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
