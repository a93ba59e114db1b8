"""How rows of the read models are declared, folded, written and read: one mechanism for every feature.

A column outside the key says how an increment meets the stored row: `added` to it, or the `latest` unless it is null.
A table without such columns takes each row once. What is latest comes from one partition only, and sums do not mind
their order: rows depend neither on where a batch ends nor on how partitions interleave, and a rebuild makes the same.
"""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cache
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

from carbon_points.domain.event import Event
from carbon_points.domain.posting import Posting, postings

E = TypeVar("E", bound=Event)
K = TypeVar("K", bound=Struct)
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


class Batch:
    """Events of one partition, in order, at positions without gaps; and what each of them moved."""

    def __init__(self, partition: int, events: Sequence[tuple[int, Event]]) -> None:
        self.partition = partition
        self.events = events
        self.moved: dict[int, list[Posting]] = {}
        self._by_type: dict[type[Event], list[tuple[int, Event]]] = {}
        for position, event in events:
            self._by_type.setdefault(type(event), []).append((position, event))
            if moves := postings(event):
                self.moved[position] = moves

    def of(self, kind: type[E]) -> list[tuple[int, E]]:
        """The events of one type, in order, each with its position."""
        return self._by_type.get(kind, [])  # pyright: ignore[reportReturnType]  # filed under their own type


class Rows:
    """What a batch makes of one table, added up by key just as the database adds it to what it has."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._key = [c.name for c in table.primary_key]
        self._added = {c.name for c in table.c if c.info.get("merge") == "added"}
        self._once = not any("merge" in c.info for c in table.c)
        self._written: list[dict[str, Any]] = []
        self._merged: dict[tuple[Any, ...], dict[str, Any]] = {}

    def put(self, **row: Any) -> None:
        """A row, or an increment of one: what is left out is 0, or null, or stays as it was."""
        if self._once:
            self._written.append(row)
            return
        own = tuple([row[name] for name in self._key])
        known = self._merged.get(own)
        if known is None:
            self._merged[own] = row
            return
        for name, value in row.items():
            if name in self._added:
                known[name] = known.get(name, 0) + value
            elif value is not None:
                known[name] = value

    def __bool__(self) -> bool:
        return bool(self._written or self._merged)

    def sorted(self) -> list[dict[str, Any]]:
        """What may meet other writers' rows comes in the order of the keys, and so do their locks."""
        return self._written or [row for _, row in sorted(self._merged.items())]


# -- writing ---------------------------------------------------------------------------------------------------------


def write(connection: Connection, *made: Rows) -> None:
    """Add what a batch made to what is stored, one statement a table.

    Not by SQLAlchemy's own way to many rows: it makes a dictionary of parameters for each, and that takes as long as
    all the rest together. What a row leaves out is null, or 0.
    """
    for rows in made:
        if rows and connection.dialect.name == "postgresql":
            records = msgspec.json.encode(rows.sorted()).decode()
            connection.execute(_insert_records(rows.table), {"rows": records})
        elif rows:
            statement, readers = _insert_tuples(rows.table, connection.dialect)
            told = rows.sorted()
            columns = [read(told) for read in readers]
            connection.exec_driver_sql(statement, list(zip(*columns, strict=True)))


@cache
def _insert_records(table: Table) -> Executable:
    """All rows are one parameter, as JSON."""
    told = func.json_to_recordset(cast(bindparam("rows", type_=Text), postgresql.JSON)).table_valued(
        *(column(c.name, c.type) for c in table.c)
    )
    records = told.render_derived(with_types=True)
    values = [func.coalesce(records.c[c.name], 0) if _counts(c) else records.c[c.name] for c in table.c]
    return _merging(postgresql.insert(table).from_select([c.name for c in table.c], select(*values)))


def _counts(of: Column[Any]) -> bool:
    return not of.nullable and not of.primary_key and isinstance(of.type, BigInteger)


@cache
def _insert_tuples(table: Table, dialect: Dialect) -> tuple[str, list[Callable[[list[dict[str, Any]]], list[Any]]]]:
    """The statement in the driver's own words, and what reads each of its columns from the rows."""
    statement = str(_merging(sqlite.insert(table)).compile(dialect=dialect))
    return statement, [_column_reader(c, dialect) for c in table.c]


def _column_reader(of: Column[Any], dialect: Dialect) -> Callable[[list[dict[str, Any]]], list[Any]]:
    name, empty = of.name, 0 if _counts(of) else None
    process = of.type.dialect_impl(dialect).bind_processor(dialect)
    if process is None:
        return lambda rows: [row.get(name, empty) for row in rows]
    return lambda rows: [process(row.get(name, empty)) for row in rows]


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
