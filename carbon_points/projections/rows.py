"""How rows of the read models are declared, folded, written and read: one mechanism for every feature.

A column outside the key says how an increment meets the stored row: `added` to it, or the `latest` unless it is null.
A table without such columns takes each row once. What is latest comes from one partition only, and sums do not mind
their order: rows depend neither on where a batch ends nor on how partitions interleave, and a rebuild makes the same.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime
from functools import cache
from operator import add
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from sqlalchemy import (
    TIMESTAMP,
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Dialect,
    Executable,
    Insert,
    MetaData,
    Row,
    Select,
    Table,
    Text,
    bindparam,
    cast,
    column,
    func,
    select,
    tuple_,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import TypeDecorator, TypeEngine

from carbon_points.domain.account import AccountOpened, ActionCredited, ActionReversed, ConsentGiven, TapRecorded
from carbon_points.domain.event import Event
from carbon_points.domain.posting import postings

E = TypeVar("E", bound=Event)
K = TypeVar("K", bound=Struct)
Report = tuple[int, str, str]  # partition, source, record id
metadata = MetaData()

# -- declaring -------------------------------------------------------------------------------------------------------

# Sorted by bytes wherever it lies, as SQLite and Python sort: cursors and dumps have one order.
TEXT = Text().with_variant(Text(collation="C"), "postgresql")


class Moment(TypeDecorator[datetime]):
    """An instant in UTC, to the microsecond. SQLite has no type for it: text of one length, which sorts."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        zoned = TIMESTAMP(timezone=True) if dialect.name == "postgresql" else Text()
        return dialect.type_descriptor(zoned)

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None or dialect.name == "postgresql":
            return value
        return value.astimezone(UTC).isoformat(timespec="microseconds")

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002  # the base names it
        if value is None:
            return None
        return (datetime.fromisoformat(value) if isinstance(value, str) else value).astimezone(UTC)


class Json(TypeDecorator[Any]):
    """Lists and maps of plain values, as text."""

    impl = TEXT
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:  # noqa: ARG002  # the base names it
        return None if value is None else msgspec.json.encode(value).decode()

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:  # noqa: ARG002  # the base names it
        return None if value is None else msgspec.json.decode(value)


def key(name: str, kind: TypeEngine[Any] | type[TypeEngine[Any]] = TEXT) -> Column[Any]:
    return Column(name, kind, primary_key=True, autoincrement=False)


def place() -> tuple[Column[Any], Column[Any]]:
    """The key of rows that are written once: where their entry lies."""
    return key("partition", BigInteger), key("position", BigInteger)


def once(name: str, kind: TypeEngine[Any] | type[TypeEngine[Any]] = TEXT, *, nullable: bool = False) -> Column[Any]:
    """A column of a row that is written once."""
    return Column(name, kind, nullable=nullable)


def added(name: str) -> Column[Any]:
    return Column(name, BigInteger, nullable=False, info={"merge": "added"})


def latest(name: str, kind: TypeEngine[Any] | type[TypeEngine[Any]] = TEXT) -> Column[Any]:
    """Null until an event tells it: an increment from another partition may make the row first."""
    return Column(name, kind, nullable=True, info={"merge": "latest"})


# -- folding ---------------------------------------------------------------------------------------------------------


STILL = frozenset({AccountOpened, ConsentGiven, TapRecorded})  # the most frequent of those that move nothing


class Batch:
    """Events of one partition, in order, at positions without gaps; and what each of them moved."""

    def __init__(self, partition: int, events: Sequence[tuple[int, Event]]) -> None:
        self.partition = partition
        self.events = events
        self._by_type: dict[type[Event], list[tuple[int, Event]]] = {}
        for placed in events:
            self._by_type.setdefault(type(placed[1]), []).append(placed)
        # They are nearly all there is, and are looked at by many: each with its day, which takes a while to tell.
        self.credited = [(position, event, event.day) for position, event in self.of(ActionCredited)]
        self.city: dict[tuple[date, str, str], list[ActionCredited]] = {}  # by day, methodology and county
        for _, event, day in self.credited:
            self.city.setdefault((day, event.methodology, event.county or ""), []).append(event)
        self.moved = [
            (event, moves)
            for kind, placed in self._by_type.items()
            if kind is not ActionCredited and kind not in STILL
            for _, event in placed
            if (moves := postings(event))
        ]

    def of(self, kind: type[E]) -> list[tuple[int, E]]:
        """The events of one type, in order, each with its position."""
        return self._by_type.get(kind, [])  # pyright: ignore[reportReturnType]  # filed under their own type


Key = tuple[Any, ...]


class Rows:
    """What some events make of one table: rows as they are put, or added up by key just as the database does it.

    The columns of a table that is added up are its key, what is latest, and what is added, in this order.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self.once = not any("merge" in c.info for c in table.c)
        self.written: list[tuple[Any, ...]] = []  # in the order of the columns
        self._key = [c.name for c in table.primary_key]
        self._latest = [c.name for c in table.c if c.info.get("merge") == "latest"]
        self._added = [c.name for c in table.c if c.info.get("merge") == "added"]
        self._empty = {c.name: 0 if _counts(c) else None for c in table.c}
        self._nothing_told = (None,) * len(self._latest)
        self._nothing_added = (0,) * len(self._added)
        self._sums: dict[Key, tuple[int, ...]] = {}
        self._told: dict[Key, tuple[Any, ...]] = {}

    def put(self, **row: Any) -> None:
        """A row, or an increment of one: what is left out is 0, or null, or stays as it was."""
        if self.once:
            self.written.append(tuple([row.get(name, empty) for name, empty in self._empty.items()]))
            return
        own = tuple([row[name] for name in self._key])
        self.add([(own, tuple([row.get(name, 0) for name in self._added]))])
        if self._latest:
            self.tell(own, tuple(map(row.get, self._latest)))

    def tell(self, own: Key, told: tuple[Any, ...]) -> None:
        """All that is latest of a key, in the order of the columns: null tells nothing."""
        self._sums.setdefault(own, self._nothing_added)
        if before := self._told.get(own):
            told = tuple([old if new is None else new for old, new in zip(before, told, strict=True)])
        self._told[own] = told

    def add(self, increments: Iterable[tuple[Key, tuple[int, ...]]]) -> None:
        """Keys, each with all that is added to it, in the order of the columns."""
        sums = self._sums
        known_of = sums.get
        for own, figures in increments:
            known = known_of(own)
            sums[own] = figures if known is None else tuple(map(add, known, figures))

    def __len__(self) -> int:
        return len(self.written) or len(self._sums)

    def tuples(self, *, ordered: bool = True) -> list[tuple[Any, ...]]:
        """Whole rows. What may meet other writers' rows comes in the order of the keys, and so do their locks."""
        if self.once:
            return self.written
        told, nothing, sums = self._told, self._nothing_told, self._sums
        return [own + told.get(own, nothing) + sums[own] for own in (sorted(sums) if ordered else sums)]

    def taken(self, *more: Any, only_told: bool = False) -> list[tuple[Any, ...]]:
        """Whole rows with something more, all or those of which something was told. They are held no longer."""
        sums, latest, nothing = self._sums, self._told, self._nothing_told
        self._told = {}
        if only_told:
            return [own + told + sums.pop(own) + more for own, told in latest.items()]
        self._sums = {}
        return [own + latest.get(own, nothing) + figures + more for own, figures in sums.items()]

    def records(self) -> list[dict[str, Any]]:
        """The same by name. What is null may be left out, and is where all that is latest would be."""
        if self.once:
            names = list(self._empty)
            return [dict(zip(names, row, strict=True)) for row in self.written]
        names, told = [*self._key, *self._added], self._told
        return [
            dict(zip(names, own + self._sums[own], strict=True))
            | (dict(zip(self._latest, told[own], strict=True)) if own in told else {})
            for own in sorted(self._sums)
        ]


class Made(dict[Table, Rows]):
    """What some batches make of all tables, until it is written; and what of it waits for a look at earlier rows."""

    def __init__(self) -> None:
        self.become: dict[Report, str] = {}  # what became of reports
        self.taken_back: dict[Report, ActionReversed] = {}
        self.units: list[Event] = []  # that move units of lots

    def __missing__(self, table: Table) -> Rows:
        made = self[table] = Rows(table)
        return made


# -- writing ---------------------------------------------------------------------------------------------------------


def write(connection: Connection, rows: Rows) -> None:
    """Add rows to what is stored.

    Not by SQLAlchemy's own way to many rows: it makes a dictionary of parameters for each, and that takes as long as
    all the rest together.
    """
    if not rows:
        return
    if connection.dialect.name != "postgresql":
        statement, processors = _insert_tuples(rows.table, connection.dialect)
        connection.exec_driver_sql(statement, _processed(rows.tuples(), processors))
    elif rows.once:
        copy(connection, rows.table, rows.tuples())
    else:
        told = msgspec.json.encode(rows.records()).decode()
        connection.execute(_insert_records(rows.table), {"rows": told})


def copy(connection: Connection, table: Table, rows: list[tuple[Any, ...]]) -> None:
    """Put whole rows whose keys are not there yet into a table of PostgreSQL the shortest way.

    Rows as lines of JSON are CSV but for their brackets, as long as no text has what JSON escapes. Those that have are
    written by the driver, row by row.
    """
    if not rows:
        return
    into = f"COPY {stored_name(connection, table)} FROM STDIN"
    driver: Any = connection.connection.driver_connection
    lists = [i for i, column in enumerate(table.c) if isinstance(column.type, Json)]
    lines = b"\\" if lists else _lines.encode_lines(rows)[1:-2].replace(b"]\n[", b"\n")
    with driver.cursor() as cursor:
        if b"\\" not in lines:
            with cursor.copy(f"{into} (FORMAT csv, NULL 'null', ENCODING 'UTF8')") as copying:
                copying.write(lines)
            return
        with cursor.copy(into) as copying:
            for row in rows:
                told = list(row)
                for i in lists:
                    told[i] = None if row[i] is None else _lines.encode(row[i]).decode()
                copying.write_row(told)


_lines = msgspec.json.Encoder()


def stored_name(connection: Connection, table: Table) -> str:
    """What a table is called on PostgreSQL, with the schema that this connection finds it in."""
    schema = connection.get_execution_options()["schema_translate_map"][None]
    return f"{connection.dialect.identifier_preparer.quote(schema)}.{table.name}"


@cache
def _insert_records(table: Table) -> Executable:
    """All rows are one parameter, as JSON."""
    told = func.json_to_recordset(cast(bindparam("rows", type_=Text), postgresql.JSON)).table_valued(
        *(column(c.name, c.type) for c in table.c)
    )
    records = told.render_derived(with_types=True)
    return _merging(postgresql.insert(table).from_select([c.name for c in table.c], select(*records.c)))


def _counts(of: Column[Any]) -> bool:
    return not of.nullable and not of.primary_key and isinstance(of.type, BigInteger)


Processor = Callable[[Any], Any]


@cache
def _insert_tuples(table: Table, dialect: Dialect) -> tuple[str, dict[int, Processor]]:
    """The statement in the driver's own words, and what turns values of some columns into what the driver takes."""
    statement = str(_merging(sqlite.insert(table)).compile(dialect=dialect))
    processors = {i: c.type.dialect_impl(dialect).bind_processor(dialect) for i, c in enumerate(table.c)}
    return statement, {i: process for i, process in processors.items() if process is not None}


def _processed(rows: list[tuple[Any, ...]], processors: dict[int, Processor]) -> list[tuple[Any, ...]]:
    if not processors:
        return rows
    columns: list[Sequence[Any]] = list(zip(*rows, strict=True))
    for i, process in processors.items():
        columns[i] = [process(value) for value in columns[i]]
    return list(zip(*columns, strict=True))


def _merging(insert: Any) -> Insert:
    """The insert, and what becomes of rows that are there already. Both dialects spell it alike."""
    table, new = insert.table, insert.excluded
    merged: dict[str, ColumnElement[Any]] = {}
    for stored in table.c:
        match stored.info.get("merge"):
            case "added":
                merged[stored.name] = stored + new[stored.name]
            case "latest":
                merged[stored.name] = func.coalesce(new[stored.name], stored)
            case _:
                pass
    return insert.on_conflict_do_update(index_elements=list(table.primary_key), set_=merged) if merged else insert


# -- reading ---------------------------------------------------------------------------------------------------------


_PLACE = re.compile(r"[0-9]{1,4}:[0-9]{1,15}", re.ASCII)


class CursorInvalid(ValueError):
    """A cursor that no page of ours ended with."""


class Snapshot:
    """The read models at one moment: every read of it sees the same rows, made of the entries up to `positions`."""

    def __init__(self, connection: Connection, positions: dict[int, int]) -> None:
        self.connection = connection
        self.positions = positions

    @property
    def vector(self) -> dict[str, int]:
        """The positions as they stand in JSON and in events."""
        return {str(partition): position for partition, position in sorted(self.positions.items())}

    def rows(self, query: Select[*tuple[Any, ...]]) -> Sequence[Row[*tuple[Any, ...]]]:
        return self.connection.execute(query).all()

    def one(self, query: Select[*tuple[Any, ...]]) -> Row[*tuple[Any, ...]]:
        return self.connection.execute(query).one()

    def structs(self, kind: Callable[..., K], query: Select[*tuple[Any, ...]]) -> list[K]:
        """Each row as a struct whose fields are the query's columns, in their order."""
        return [kind(*row) for row in self.rows(query)]

    def placed(self, kind: Callable[..., K], query: Select[*tuple[Any, ...]]) -> list[K]:
        """The same where the query begins with the partition, and the struct with `position`, both in one word."""
        return [kind(f"{partition}:{position}", *rest) for partition, position, *rest in self.rows(query)]


def fields(table: Table, kind: type[Struct], **computed: ColumnElement[Any]) -> list[ColumnElement[Any]]:
    """The columns that make a struct, in the order of its fields: of the same name, unless they are computed."""
    return [computed[name] if name in computed else table.c[name] for name in kind.__struct_fields__]


def after_place(table: Table, cursor: str) -> ColumnElement[bool]:
    """Rows after the one whose place is `cursor`, "partition:position". Raises CursorInvalid."""
    if not _PLACE.fullmatch(cursor):
        raise CursorInvalid(cursor)
    partition, _, position = cursor.partition(":")
    return tuple_(table.c.partition, table.c.position) > tuple_(int(partition), int(position))


def paged(query: Select[*tuple[Any, ...]], table: Table, after: str | None, limit: int) -> Select[*tuple[Any, ...]]:
    """The next rows of a table in the order of their places."""
    if after is not None:
        query = query.where(after_place(table, after))
    return query.order_by(table.c.partition, table.c.position).limit(limit)


def total(of: ColumnElement[Any]) -> ColumnElement[Any]:
    """A sum as an integer: 0 of no rows, and not a decimal."""
    return cast(func.coalesce(func.sum(of), 0), BigInteger)
