"""Where entries lie: recorders of the `eventsourcing` library with a gapless counter, claims, states and leaf hashes.

The library orders a table with a lock and a sequence. Here a counter row does it: its lock serialises the writers of
one partition, and positions have no gaps through rollback, crash and failover (docs/decisions.md, 2026-11-22). What
an append guards (claims) and caches (states) is written in the same transaction.
"""

import sqlite3
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, LiteralString, Protocol
from weakref import WeakSet

from eventsourcing.persistence import IntegrityError, InterfaceError, OperationalError, StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from eventsourcing.sqlite import SQLiteApplicationRecorder, SQLiteCursor, SQLiteDatastore
from eventsourcing.utils import retry
from psycopg import Connection
from psycopg import OperationalError as ConnectionLost
from psycopg.errors import UniqueViolation, error_from_result
from psycopg.pq import DiagnosticField, ExecStatus
from psycopg.pq.abc import PGresult
from psycopg.rows import DictRow, tuple_row
from psycopg.sql import SQL, Composed, Identifier

from carbon_points.journal import arrays
from carbon_points.journal.entry import Claim, Entry, StateRow, leaf_hash

# Claims of an append that were used meanwhile, or a stream version that another process wrote.
Contended = IntegrityError
# The database did not answer, or not in time. What was asked may or may not have happened: the claims tell.
Unreachable = OperationalError


class Claimed(Contended):
    """One of the append's identities was used before, by whomever: nothing else need be wrong."""


class Recorder(Protocol):
    """One partition's storage. Appending is all or nothing, and durable when it returns."""

    partition: int

    def create_table(self) -> None: ...
    def append(self, events: Sequence[StoredEvent], claims: Sequence[Claim], states: Sequence[StateRow]) -> int: ...
    def alone(self) -> AbstractContextManager[None]: ...
    def read(self, after: int, limit: int) -> list[Entry]: ...
    def read_events(self, after: int, limit: int) -> list[tuple[int, str, bytes]]: ...
    def read_at(self, places: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Entry]: ...
    def look(self, keys: Sequence[bytes], wanted: Sequence[tuple[str, str]]) -> tuple[list[Claim], list[StateRow]]: ...
    def claimed(self, keys: Sequence[bytes]) -> dict[bytes, Claim]: ...
    def states(self, wanted: Sequence[tuple[str, str]]) -> list[StateRow]: ...
    def all_claims(self, after: bytes, limit: int) -> list[Claim]: ...
    def all_states(self, after: tuple[str, str], limit: int) -> list[StateRow]: ...
    def head(self) -> int: ...
    def about(self, facts: dict[str, str] | None = None) -> dict[str, str]: ...
    def close(self) -> None: ...


class SQLiteRecorder(SQLiteApplicationRecorder):
    """A partition in one SQLite file. Durable: WAL with `synchronous=FULL`, SQLite's own default."""

    def __init__(self, datastore: SQLiteDatastore, events_table_name: str = "entries", *, partition: int = 0) -> None:
        self.partition = partition
        self._held: SQLiteCursor | None = None
        super().__init__(datastore, events_table_name)

    def construct_create_table_statements(self) -> list[str]:
        return [
            (
                f"CREATE TABLE IF NOT EXISTS {self.events_table_name} (notification_id INTEGER PRIMARY KEY, "
                "originator_id TEXT NOT NULL, originator_version INTEGER NOT NULL, topic TEXT NOT NULL, "
                "state BLOB NOT NULL, leaf BLOB NOT NULL, UNIQUE (originator_id, originator_version))"
            ),
            "CREATE TABLE IF NOT EXISTS counter (one INTEGER PRIMARY KEY CHECK (one = 1), n INTEGER NOT NULL)",
            "INSERT OR IGNORE INTO counter VALUES (1, 0)",
            (
                "CREATE TABLE IF NOT EXISTS claims (key BLOB PRIMARY KEY, stream TEXT NOT NULL, "
                "version INTEGER NOT NULL) WITHOUT ROWID"
            ),
            (
                "CREATE TABLE IF NOT EXISTS states (stream TEXT, part TEXT, version INTEGER NOT NULL, "
                "state BLOB NOT NULL, PRIMARY KEY (stream, part)) WITHOUT ROWID"
            ),
            "CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
        ]

    @contextmanager
    def _writing(self) -> Generator[SQLiteCursor]:
        if self._held is not None:
            yield self._held
            return
        # The library begins deferred; two writers would then fail in the middle instead of waiting at the start.
        with self.datastore.get_connection(commit=True) as connection:
            cursor = connection.cursor()
            try:
                cursor.execute("BEGIN IMMEDIATE")
                yield cursor
                connection.commit()
            except BaseException as error:
                connection.rollback()
                raise _translated(error) from error

    @contextmanager
    def alone(self) -> Generator[None]:
        """Keep every other writer of this partition away: what is read meanwhile is what the append will meet."""
        if self.datastore.pool.is_sqlite_memory_mode:  # nobody else can write to it
            yield
            return
        with self._writing() as cursor:
            self._held = cursor
            try:
                yield
            finally:
                self._held = None

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        last = self.append(stored_events, kwargs.get("claims", ()), kwargs.get("states", ()))
        return range(last - len(stored_events) + 1, last + 1)

    def append(self, events: Sequence[StoredEvent], claims: Sequence[Claim], states: Sequence[StateRow]) -> int:
        """The position of the last event. Raises Contended, Claimed or Unreachable, and then nothing was written."""
        with self._writing() as cursor:
            cursor.execute("UPDATE counter SET n = n + ? RETURNING n", (len(events),))
            last: int = cursor.fetchone()[0]
            first = last - len(events) + 1
            cursor.executemany(
                f"INSERT INTO {self.events_table_name} VALUES (?,?,?,?,?,?)",
                [
                    (first + i, str(e.originator_id), e.originator_version, e.topic, e.state, self._leaf(e))
                    for i, e in enumerate(events)
                ],
            )
            cursor.executemany("INSERT INTO claims VALUES (?,?,?)", [(c.key, c.stream, c.version) for c in claims])
            cursor.executemany(
                "INSERT INTO states (version, state, stream, part) VALUES (?,?,?,?)",
                [(s.version, s.state, s.stream, s.part) for s in states if not s.kept],
            )
            cursor.executemany(
                "UPDATE states SET version = ?, state = ? WHERE stream = ? AND part = ?",
                [(s.version, s.state, s.stream, s.part) for s in states if s.kept],
            )
        return last

    def _leaf(self, event: StoredEvent) -> bytes:
        return leaf_hash(self.partition, str(event.originator_id), event.originator_version, event.topic, event.state)

    def _rows(self, sql: str, params: Sequence[Any] = ()) -> list[Any]:
        try:
            with self.datastore.get_connection(commit=False) as connection:
                cursor = connection.cursor()
                cursor.execute(sql, tuple(params))
                return cursor.fetchall()
        except sqlite3.Error as error:
            raise _translated(error) from error

    def _entries(self, where: str, params: Sequence[Any]) -> list[Entry]:
        rows = self._rows(
            "SELECT notification_id, originator_id, originator_version, topic, state, leaf "
            f"FROM {self.events_table_name} {where}",
            params,
        )
        return [Entry(self.partition, *tuple(row)) for row in rows]

    def read(self, after: int, limit: int) -> list[Entry]:
        return self._entries("WHERE notification_id > ? ORDER BY notification_id LIMIT ?", (after, limit))

    def read_events(self, after: int, limit: int) -> list[tuple[int, str, bytes]]:
        """The same with nothing but what happened: position, type and state."""
        query = (
            f"SELECT notification_id, topic, state FROM {self.events_table_name} "
            "WHERE notification_id > ? ORDER BY notification_id LIMIT ?"
        )
        return [tuple(row) for row in self._rows(query, (after, limit))]

    def read_at(self, places: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Entry]:
        found: dict[tuple[str, int], Entry] = {}
        for some in _chunks(places):
            marks = ",".join(["(?,?)"] * len(some))
            flat = [word for place in some for word in place]
            for entry in self._entries(f"WHERE (originator_id, originator_version) IN (VALUES {marks})", flat):
                found[(entry.stream, entry.version)] = entry
        return found

    def look(self, keys: Sequence[bytes], wanted: Sequence[tuple[str, str]]) -> tuple[list[Claim], list[StateRow]]:
        """What a batch needs to know: which of its identities were used, and the states it decides by."""
        return list(self.claimed(keys).values()), self.states(wanted)

    def claimed(self, keys: Sequence[bytes]) -> dict[bytes, Claim]:
        found: dict[bytes, Claim] = {}
        for some in _chunks(keys):
            marks = ",".join("?" * len(some))
            for row in self._rows(f"SELECT key, stream, version FROM claims WHERE key IN ({marks})", some):
                found[row[0]] = Claim(*tuple(row))
        return found

    def states(self, wanted: Sequence[tuple[str, str]]) -> list[StateRow]:
        rows: list[Any] = []
        for some in _chunks(wanted):
            marks = ",".join(["(?,?)"] * len(some))
            flat = [word for pair in some for word in pair]
            rows += self._rows(
                f"SELECT stream, part, version, state FROM states WHERE (stream, part) IN (VALUES {marks})", flat
            )
        return [StateRow(*tuple(row)) for row in rows]

    def all_claims(self, after: bytes, limit: int) -> list[Claim]:
        rows = self._rows("SELECT key, stream, version FROM claims WHERE key > ? ORDER BY key LIMIT ?", (after, limit))
        return [Claim(*tuple(row)) for row in rows]

    def all_states(self, after: tuple[str, str], limit: int) -> list[StateRow]:
        rows = self._rows(
            "SELECT stream, part, version, state FROM states WHERE (stream, part) > (?,?) "
            "ORDER BY stream, part LIMIT ?",
            (*after, limit),
        )
        return [StateRow(*tuple(row)) for row in rows]

    def head(self) -> int:
        return self._rows("SELECT n FROM counter")[0][0]

    def about(self, facts: dict[str, str] | None = None) -> dict[str, str]:
        if facts:
            with self._writing() as cursor:
                cursor.executemany("INSERT OR IGNORE INTO about VALUES (?,?)", list(facts.items()))
        return {row[0]: row[1] for row in self._rows("SELECT name, value FROM about")}

    def close(self) -> None:
        self.datastore.close()


class PostgresRecorder(PostgresApplicationRecorder):
    """A partition in one schema of PostgreSQL. Durable as the server's `synchronous_commit` says (default: on)."""

    def __init__(self, datastore: PostgresDatastore, *, events_table_name: str = "entries", partition: int = 0) -> None:
        self.partition = partition
        self._held: Connection[DictRow] | None = None
        self._prepared = WeakSet[Connection[DictRow]]()
        super().__init__(datastore, events_table_name=events_table_name)
        self._schema = Identifier(datastore.schema)
        self._table = Identifier(events_table_name)
        self.sql_create_statements = [self._sql(text) for text in _POSTGRES_TABLES]
        self._append = {  # by the number of its parameters
            13: self._sql(_APPEND + _APPENDED).as_bytes(),
            17: self._sql(_APPEND + _NEW_STATES + _APPENDED).as_bytes(),
        }
        self._look = self._sql(_LOOK).as_bytes()

    def _sql(self, text: LiteralString) -> Composed:
        return SQL(text).format(schema=self._schema, entries=self._table)

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        # Without the library's retry: a commit whose answer was lost may have happened.
        if not stored_events:
            return []
        last = self.append(stored_events, kwargs.get("claims", ()), kwargs.get("states", ()))
        return range(last - len(stored_events) + 1, last + 1)

    def append(self, events: Sequence[StoredEvent], claims: Sequence[Claim], states: Sequence[StateRow]) -> int:
        """The position of the last event. Raises Contended, Claimed or Unreachable; after the last the claims tell.

        One statement is one transaction and one round trip. All of it reads the counter's new value, so the counter's
        lock comes before any other.
        """
        kept = [s for s in states if s.kept]
        new = [s for s in states if not s.kept] if len(kept) < len(states) else []
        params = (
            arrays.bigint(len(events)),
            arrays.of_text([str(e.originator_id) for e in events]),
            arrays.of_bigint([e.originator_version for e in events]),
            arrays.of_text([e.topic for e in events]),
            arrays.of_bytea([e.state for e in events]),
            arrays.of_bytea([self._leaf(e) for e in events]),
            arrays.of_bytea([c.key for c in claims]),
            arrays.of_text([c.stream for c in claims]),
            arrays.of_bigint([c.version for c in claims]),
            *_columns(kept),
            *(_columns(new) if new else ()),
        )
        if self._held is not None:
            return self._last(self._held, params)
        with self.datastore.get_connection() as connection:
            return self._last(connection, params)

    def _last(self, connection: Connection[DictRow], params: Sequence[bytes]) -> int:
        """Straight to the server: of what a cursor does, this statement needs nothing."""
        if connection not in self._prepared:
            for count, query in self._append.items():
                _good(connection.pgconn.prepare(b"append-%d" % count, query), ExecStatus.COMMAND_OK)
            self._prepared.add(connection)
        count = len(params)
        told = connection.pgconn.exec_prepared(b"append-%d" % count, params, (_BINARY,) * count, _BINARY)
        last = _good(told, ExecStatus.TUPLES_OK).get_value(0, 0)
        assert last is not None, "the counter has its one row"
        return int.from_bytes(last)

    @contextmanager
    def alone(self) -> Generator[None]:
        """Keep every other writer of this partition away: what is read meanwhile is what the append will meet."""
        with self.datastore.transaction(commit=True) as cursor:
            cursor.execute(self._sql("SELECT n FROM {schema}.counter FOR UPDATE"))
            self._held = cursor.connection
            try:
                yield
            finally:
                self._held = None

    def _leaf(self, event: StoredEvent) -> bytes:
        return leaf_hash(self.partition, str(event.originator_id), event.originator_version, event.topic, event.state)

    def _rows(self, text: LiteralString, params: Sequence[Any] = ()) -> list[Any]:
        return self._asked(self._sql(text), params)

    @retry(OperationalError, max_attempts=3, wait=0.1)  # a connection that was dropped is made again
    def _asked(self, query: bytes | Composed, params: Sequence[Any]) -> list[Any]:
        """Raises Unreachable."""
        try:
            with self.datastore.get_connection() as connection, connection.cursor(row_factory=tuple_row) as c:
                c.execute(query, params, prepare=True, binary=True)
                return c.fetchall()
        except InterfaceError as error:  # it was dropped, and is known to be
            raise Unreachable(str(error)) from error

    def _entries(self, where: LiteralString, params: Sequence[Any]) -> list[Entry]:
        rows = self._rows(
            "SELECT notification_id, originator_id, originator_version, topic, state, leaf FROM {schema}.{entries} "
            + where,
            params,
        )
        return [Entry(self.partition, n, stream, v, topic, bytes(s), bytes(h)) for n, stream, v, topic, s, h in rows]

    def read(self, after: int, limit: int) -> list[Entry]:
        return self._entries("WHERE notification_id > %s ORDER BY notification_id LIMIT %s", (after, limit))

    def read_events(self, after: int, limit: int) -> list[tuple[int, str, bytes]]:
        """The same with nothing but what happened: position, type and state."""
        return self._rows(
            "SELECT notification_id, topic, state FROM {schema}.{entries} "
            "WHERE notification_id > %s ORDER BY notification_id LIMIT %s",
            (after, limit),
        )

    def read_at(self, places: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Entry]:
        entries = self._entries(
            "WHERE (originator_id, originator_version) IN (SELECT * FROM unnest(%s::text[], %s::bigint[]))",
            ([stream for stream, _ in places], [version for _, version in places]),
        )
        return {(e.stream, e.version): e for e in entries}

    def look(self, keys: Sequence[bytes], wanted: Sequence[tuple[str, str]]) -> tuple[list[Claim], list[StateRow]]:
        """What a batch needs to know, in one round trip: which of its identities were used, and its states."""
        claims, states = list[Claim](), list[StateRow]()
        told = (list(keys), [stream for stream, _ in wanted], [part for _, part in wanted])
        for key, stream, part, version, state in self._asked(self._look, told):
            if key is not None:
                claims.append(Claim(bytes(key), stream, version))
            else:
                states.append(StateRow(stream, part, version, bytes(state)))
        return claims, states

    def claimed(self, keys: Sequence[bytes]) -> dict[bytes, Claim]:
        rows = self._rows(
            "SELECT key, stream, version FROM {schema}.claims WHERE key = ANY(%s::bytea[])", (list(keys),)
        )
        return {bytes(key): Claim(bytes(key), stream, version) for key, stream, version in rows}

    def states(self, wanted: Sequence[tuple[str, str]]) -> list[StateRow]:
        rows = self._rows(
            "SELECT stream, part, version, state FROM {schema}.states "
            "WHERE (stream, part) IN (SELECT * FROM unnest(%s::text[], %s::text[]))",
            ([stream for stream, _ in wanted], [part for _, part in wanted]),
        )
        return [StateRow(stream, part, version, bytes(state)) for stream, part, version, state in rows]

    def all_claims(self, after: bytes, limit: int) -> list[Claim]:
        rows = self._rows(
            "SELECT key, stream, version FROM {schema}.claims WHERE key > %s ORDER BY key LIMIT %s", (after, limit)
        )
        return [Claim(bytes(key), stream, version) for key, stream, version in rows]

    def all_states(self, after: tuple[str, str], limit: int) -> list[StateRow]:
        rows = self._rows(
            "SELECT stream, part, version, state FROM {schema}.states WHERE (stream, part) > (%s,%s) "
            "ORDER BY stream, part LIMIT %s",
            (*after, limit),
        )
        return [StateRow(stream, part, version, bytes(state)) for stream, part, version, state in rows]

    def head(self) -> int:
        return self._rows("SELECT n FROM {schema}.counter")[0][0]

    def about(self, facts: dict[str, str] | None = None) -> dict[str, str]:
        if facts:
            with self.datastore.transaction(commit=True) as cursor:
                cursor.executemany(
                    self._sql("INSERT INTO {schema}.about VALUES (%s, %s) ON CONFLICT DO NOTHING"), list(facts.items())
                )
        return dict(self._rows("SELECT name, value FROM {schema}.about"))

    def served(self) -> bool:
        """Whether a server is connected, by the name that it gives its connections."""
        return bool(
            self._rows(
                "SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s LIMIT 1",
                (SERVER_NAME,),
            )
        )

    def distributable(self) -> bool:
        """Whether Citus is in the database."""
        return bool(self._rows("SELECT FROM pg_extension WHERE extname = 'citus'"))

    def distribute(self) -> bool:
        """Let Citus place the whole schema on one of its machines. False where it has done so before."""
        with self.datastore.transaction(commit=True) as cursor:
            name = (self.datastore.schema,)
            cursor.execute("SELECT FROM pg_catalog.pg_dist_schema WHERE schemaid = %s::text::regnamespace", name)
            if cursor.rowcount:
                return False
            cursor.execute("SET LOCAL statement_timeout = 0")  # it moves what is there
            cursor.execute("SELECT pg_catalog.citus_schema_distribute(%s::text::regnamespace)", name)
        return True

    def close(self) -> None:
        self.datastore.close()


# Text columns sort by bytes (COLLATE "C"): the same order on every machine, and as in Python.
_POSTGRES_TABLES: tuple[LiteralString, ...] = (
    "CREATE SCHEMA IF NOT EXISTS {schema}",
    (
        "CREATE TABLE IF NOT EXISTS {schema}.{entries} (notification_id bigint PRIMARY KEY, "
        'originator_id text COLLATE "C" NOT NULL, originator_version bigint NOT NULL, topic text NOT NULL, '
        "state bytea NOT NULL, leaf bytea NOT NULL, UNIQUE (originator_id, originator_version))"
    ),
    "CREATE TABLE IF NOT EXISTS {schema}.counter (one int PRIMARY KEY CHECK (one = 1), n bigint NOT NULL)",
    "INSERT INTO {schema}.counter VALUES (1, 0) ON CONFLICT DO NOTHING",
    "CREATE TABLE IF NOT EXISTS {schema}.claims (key bytea PRIMARY KEY, stream text NOT NULL, version bigint NOT NULL)",
    (
        'CREATE TABLE IF NOT EXISTS {schema}.states (stream text COLLATE "C", part text COLLATE "C", '
        "version bigint NOT NULL, state bytea NOT NULL, PRIMARY KEY (stream, part)) "
        "WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05)"
    ),
    "CREATE TABLE IF NOT EXISTS {schema}.about (name text PRIMARY KEY, value text NOT NULL)",
)
# Arrays become rows in the select list, which keeps no copy of them. The update joins a function, since whatever else
# it joined, the planner might read all states for it.
_APPEND: LiteralString = (
    "WITH c AS (UPDATE {schema}.counter SET n = n + $1::bigint RETURNING n), "
    "e AS (INSERT INTO {schema}.{entries} "
    "(notification_id, originator_id, originator_version, topic, state, leaf) "
    "SELECT generate_series(n - $1 + 1, n), unnest($2::text[]), unnest($3::bigint[]), unnest($4::text[]), "
    "unnest($5::bytea[]), unnest($6::bytea[]) FROM c), "
    "k AS (INSERT INTO {schema}.claims SELECT unnest($7::bytea[]), unnest($8::text[]), unnest($9::bigint[]) FROM c), "
    "o AS (UPDATE {schema}.states AS s SET version = u.version, state = u.state "
    "FROM unnest($10::text[], $11::text[], $12::bigint[], $13::bytea[]) AS u (stream, part, version, state) "
    "WHERE s.stream = u.stream AND s.part = u.part AND (SELECT n FROM c) IS NOT NULL)"
)
_NEW_STATES: LiteralString = (  # which most batches do not have
    # A row that is there after all came meanwhile, and with it an entry that this one thinks to write.
    ", s AS (INSERT INTO {schema}.states "
    "SELECT unnest($14::text[]), unnest($15::text[]), unnest($16::bigint[]), unnest($17::bytea[]) FROM c)"
)
_APPENDED: LiteralString = " SELECT n AS last FROM c"
_BINARY = 1  # the form of parameters and results
_LOOK: LiteralString = (
    "SELECT key, stream, NULL AS part, version, NULL AS state FROM {schema}.claims WHERE key = ANY(%b::bytea[]) "
    "UNION ALL SELECT NULL, stream, part, version, state FROM {schema}.states "
    "WHERE (stream, part) IN (SELECT * FROM unnest(%b::text[], %b::text[]))"
)
_CLAIMS_KEY = "claims.key"  # in what SQLite says when an identity was used before
SERVER_NAME = "carbon-points serve"  # of a server's connections, for others to see
_CHUNK = 400


def _columns(rows: Sequence[StateRow]) -> tuple[bytes, bytes, bytes, bytes]:
    return (
        arrays.of_text([r.stream for r in rows]),
        arrays.of_text([r.part for r in rows]),
        arrays.of_bigint([r.version for r in rows]),
        arrays.of_bytea([r.state for r in rows]),
    )


def _good(result: PGresult, status: ExecStatus) -> PGresult:
    """The result, if that is its status. Raises the driver's own error, and Claimed."""
    if result.status == status:
        return result
    if not result.error_field(DiagnosticField.SQLSTATE):  # nobody answered
        raise ConnectionLost(result.get_error_message())
    error = error_from_result(result)
    # Citus adds a number to a table's name, or does not tell it: then it is Contended.
    if isinstance(error, UniqueViolation) and (error.diag.table_name or "").startswith("claims"):
        raise Claimed(str(error))
    raise error


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]


def _translated(error: BaseException) -> BaseException:
    """The library's own error for one of sqlite3's; any other as it is."""
    match error:
        case sqlite3.IntegrityError():
            return (Claimed if _CLAIMS_KEY in str(error) else Contended)(error)
        case sqlite3.OperationalError() | sqlite3.DatabaseError():
            return Unreachable(error)
        case _:
            return error
