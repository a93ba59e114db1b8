"""How an empty read model on PostgreSQL is filled by several processes, one a core, each with stretches of the log.

Rows that are written once are copied in as they come. Sums each process keeps to itself, and stages: in a table beside
their own, without key or index, from which one statement adds them up at the end. What was told last is told by the
number of its stretch. What asks for a look at earlier rows, whoever wrote them, is staged too. Nobody else uses the
model meanwhile: a crash leaves what the next rebuild drops.
"""

import multiprocessing
import platform
import signal
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Column, Connection, MetaData, Table, insert, inspect, select, text
from sqlalchemy.schema import CreateIndex, DropIndex

from carbon_points.domain.account import ActionReversed
from carbon_points.journal import codec
from carbon_points.journal.journal import Journal, open_journal
from carbon_points.projections import actions, city, lots, merchants, redemptions, residents
from carbon_points.projections.read_model import POSITIONS, Gap, ReadModel, fold, in_order
from carbon_points.projections.rows import TEXT, Made, copy, metadata, stored_name

LARGE = (  # whose keys and indexes are made when all rows are there
    actions.ACTIONS,
    residents.RESIDENTS,
    lots.UNPOOLED,
    lots.POOLED,
    redemptions.REDEMPTIONS,
    merchants.MOVEMENTS,
)
STRETCH = 10_000  # entries that a process takes at once: its rows are in memory until they are written
CHUNK = 1_000  # entries that are read and folded at once: more do not fit where the processor has them at hand
KEYS_HELD = 200_000  # of sums, in each process
PATIENCE_SECONDS = 20.0  # for a process that writes its last rows, though nobody waits for it

# -- tables ----------------------------------------------------------------------------------------------------------

BESIDE = MetaData()
PARTS = {  # of rows that are added up
    table: Table(
        f"parts_of_{table.name}",
        BESIDE,
        *(Column(column.name, column.type) for column in table.c),
        Column("stretch", BigInteger),
        prefixes=["UNLOGGED"],
    )
    for table in metadata.tables.values()
    if any("merge" in column.info for column in table.c)
}
WAITING = Table(  # for a look at earlier rows: what became of a report, or an event that moves units
    "waiting",
    BESIDE,
    Column("stretch", BigInteger),
    Column("n", BigInteger),
    Column("partition", BigInteger),
    Column("source", TEXT),
    Column("record_id", TEXT),
    Column("status", TEXT),
    Column("type", TEXT),
    Column("state", TEXT),
    prefixes=["UNLOGGED"],
)


# To compress the pages of a new index for the write-ahead log takes a third of making it. Not every role may say so.
_UNCOMPRESSED = text(
    "SELECT set_config('wal_compression', 'off', true) WHERE has_parameter_privilege('wal_compression', 'SET')"
)


class Stretch(NamedTuple):
    """Entries of a partition after one position up to another. Numbers are in the order of the log."""

    number: int
    partition: int
    after: int
    until: int


class Model:
    """A read model that is being filled, and only while it is the one that was begun with."""

    def __init__(self, model: ReadModel, begun: int) -> None:
        self._model = model
        self.schema = model.schema
        self.begun = begun
        self._staged: set[Table] = set()

    def stage(self, tables: Sequence[Table]) -> None:
        """See that parts of these tables have a place. Most tables of a log have none: each would be nine files."""
        if missing := [PARTS[table] for table in tables if table not in self._staged]:
            with self.writing() as connection:
                name = stored_name(connection, WAITING)  # others may be about to make the same
                connection.execute(text(f"LOCK TABLE {name} IN SHARE UPDATE EXCLUSIVE MODE"))
                BESIDE.create_all(connection, missing)
            self._staged.update(tables)

    def staged(self) -> set[Table]:
        """Tables of which there are parts, whoever staged them."""
        with self.writing() as connection:
            there = set(inspect(connection).get_table_names(self.schema))
        return {table for table, parts in PARTS.items() if parts.name in there}

    @contextmanager
    def writing(self) -> Generator[Connection]:
        """A transaction. Raises Replaced: whoever lost its rebuild must not write into the rows of the next."""
        with self._model.writing() as connection:
            name = stored_name(connection, WAITING)  # which is there as long as the model is being filled
            connection.execute(text(f"LOCK TABLE {name} IN ROW EXCLUSIVE MODE"))
            if identity(connection) != self.begun:
                raise Replaced("another rebuild began meanwhile")
            yield connection


class Replaced(OSError):
    """The tables were dropped and made again by another rebuild."""


class Ended(OSError):
    """A process that was filling the model with others has failed."""


def identity(connection: Connection) -> int:
    """Of the tables that are there now."""
    name = stored_name(connection, WAITING)
    return connection.execute(text("SELECT CAST(CAST(:name AS regclass) AS bigint)"), {"name": name}).scalar_one()


# -- one process's share ---------------------------------------------------------------------------------------------


class Share:
    def __init__(self, model: Model, journal: Journal) -> None:
        self._model = model
        self._journal = journal
        self._made = Made()

    def take(self, stretch: Stretch) -> None:
        """Fold a stretch, and write what is not kept. Raises what reading and writing raise."""
        number, partition, position, until = stretch
        for entries in self._journal.events(partition, position, until, CHUNK):
            position += fold(partition, entries, position, self._made)
        if position != until:
            raise Gap(f"partition {partition}: entries end at {position}, and stood at {until}")
        actions.become(self._made)
        self._stage()
        with self._model.writing() as connection:
            for table, rows in list(self._made.items()):
                if rows.once:
                    copy(connection, table, rows.tuples())
                    del self._made[table]
                else:
                    copy(connection, PARTS[table], rows.taken(number, only_told=True))
            copy(connection, WAITING, self._waiting(number))
        if sum(map(len, self._made.values())) >= KEYS_HELD:
            self.finish()

    def finish(self) -> None:
        """Write the sums."""
        self._stage()
        with self._model.writing() as connection:
            for table, rows in self._made.items():
                copy(connection, PARTS[table], rows.taken(0))
        self._made.clear()

    def _stage(self) -> None:
        self._model.stage([table for table, rows in self._made.items() if rows and not rows.once])

    def _waiting(self, stretch: int) -> list[tuple[Any, ...]]:
        made, rows = self._made, list[tuple[Any, ...]]()
        for report, status in made.become.items():
            taken_back = made.taken_back.get(report)
            told = (None, None) if taken_back is None else _told(taken_back)
            rows.append((stretch, len(rows), *report, status, *told))
        for event in made.units:
            rows.append((stretch, len(rows), None, None, None, None, *_told(event)))
        made.become.clear()
        made.taken_back.clear()
        made.units.clear()
        return rows


def _told(event: codec.Event) -> tuple[str, str]:
    kind, state = codec.encode(event)
    return kind, state.decode()


# -- all of it -------------------------------------------------------------------------------------------------------


def fill(made: ReadModel, journal: Journal, helpers: Sequence[Any] = ()) -> None:
    """Put the log as far as it goes now into an empty model, here and in the processes that help."""
    with made.writing() as connection:
        WAITING.create(connection)
        model = Model(made, identity(connection))
        for table in LARGE:
            for index in table.indexes:
                connection.execute(DropIndex(index))
            connection.execute(text(f"ALTER TABLE {stored_name(connection, table)} DROP CONSTRAINT {table.name}_pkey"))
    heads = journal.heads()
    _fold(model, journal, helpers, heads)
    _settle(model)
    staged = model.staged()
    with ThreadPoolExecutor(2) as both:
        tables = (*LARGE, *(staged - set(LARGE)))
        for done in [both.submit(_complete, model, table, table in staged) for table in tables]:
            done.result()
    with model.writing() as connection:
        BESIDE.drop_all(connection)
        for partition, position in heads.items():
            connection.execute(insert(POSITIONS), {"partition": partition, "position": position})


def _fold(model: Model, journal: Journal, helpers: Sequence[Any], heads: dict[int, int]) -> None:
    places = [
        (partition, after, min(after + STRETCH, head))
        for partition, head in heads.items()
        for after in range(0, head, STRETCH)
    ]
    left = deque(Stretch(number, *place) for number, place in enumerate(places, 1))
    mine = Share(model, journal)
    with ThreadPoolExecutor(max(len(helpers), 1)) as telling:
        theirs = [telling.submit(_have_taken, line, model, left) for line in helpers]
        try:
            while stretch := _next(left):
                mine.take(stretch)
            mine.finish()
        except BaseException:
            left.clear()
            raise
        for done in theirs:
            done.result()


def _next(left: deque[Stretch]) -> Stretch | None:
    try:
        return left.popleft()
    except IndexError:
        return None


def _settle(model: Model) -> None:
    """See to what waits for a look at earlier rows."""
    made = Made()
    model.stage([city.CITY])
    with model.writing() as connection:
        if connection.execute(select(WAITING.c.n).limit(1)).first() is None:
            return
        acts, waiting = stored_name(connection, actions.ACTIONS), stored_name(connection, WAITING)
        which = "a.partition = w.partition AND a.source = w.source AND a.record_id = w.record_id"
        connection.execute(
            text(f"UPDATE {acts} AS a SET status = w.status FROM {waiting} AS w WHERE {which}")  # noqa: S608  # ours
        )
        found = text(
            f"SELECT w.type, w.state, w.partition, a.county FROM {waiting} AS w "  # noqa: S608  # names of ours
            f"JOIN {acts} AS a ON {which} WHERE w.state IS NOT NULL"
        )
        for kind, state, partition, county in connection.execute(found, execution_options={"yield_per": CHUNK}):
            event = codec.decode(kind, state.encode())
            assert isinstance(event, ActionReversed)
            report = partition, event.source, event.record_id
            made.taken_back[report] = event
            city.take_back(made, report, county)
        copy(connection, PARTS[city.CITY], made[city.CITY].taken(0))
        moves = select(WAITING.c.type, WAITING.c.state).where(WAITING.c.status.is_(None))
        moves = moves.order_by(WAITING.c.stretch, WAITING.c.n)
        for some in connection.execute(moves, execution_options={"yield_per": CHUNK}).partitions():
            made.units += [codec.decode(kind, state.encode()) for kind, state in some]
            lots.move_units(connection, made)
            for rows in in_order(made):
                copy(connection, rows.table, rows.tuples())
            made.clear()


def _complete(model: Model, table: Table, staged: bool) -> None:
    """Add up the parts of a table, if it has some, and make its key and indexes."""
    with model.writing() as connection:
        connection.execute(_UNCOMPRESSED)
        name = stored_name(connection, table)
        if staged:
            connection.execute(text(_added_up(table, name, stored_name(connection, PARTS[table]))))
        if table in LARGE:
            columns = ", ".join(column.name for column in table.primary_key)
            connection.execute(text(f"ALTER TABLE {name} ADD PRIMARY KEY ({columns})"))
            for index in table.indexes:
                connection.execute(CreateIndex(index))


def _added_up(table: Table, name: str, parts: str) -> str:
    by = ", ".join(column.name for column in table.primary_key)
    told = {
        None: "{0}",
        "added": "CAST(sum({0}) AS bigint)",
        "latest": "(array_agg({0} ORDER BY stretch DESC) FILTER (WHERE {0} IS NOT NULL))[1]",
    }
    columns = ", ".join(told[column.info.get("merge")].format(column.name) for column in table.c)
    return f"INSERT INTO {name} SELECT {columns} FROM {parts} GROUP BY {by}"  # noqa: S608  # names of ours


# -- those who help --------------------------------------------------------------------------------------------------


@contextmanager
def helpers(count: int, journal_url: str, read_url: str) -> Generator[list[Any]]:
    """Processes to fill a model with. To be asked for before this one has a thread or a connection: they are forked.

    A process that begins from nothing takes a second to load the program, in which this one folds 200,000 entries.
    """
    if platform.system() != "Linux":  # where forking is safe, as long as there is no thread
        count = 0
    context: Any = multiprocessing.get_context("fork" if count else None)
    lines: list[Any] = []
    processes: list[Any] = []
    try:
        for _ in range(count):
            line, theirs = context.Pipe()
            lines.append(line)
            process = context.Process(target=_help, args=(theirs, list(lines), journal_url, read_url), daemon=True)
            process.start()
            theirs.close()  # so that its end is seen here
            processes.append(process)
        yield lines
    finally:
        for line in lines:
            line.close()
        for process in processes:
            process.join(PATIENCE_SECONDS)
            process.kill()  # it waits for a database that does not answer


def _have_taken(line: Any, model: Model, left: deque[Stretch]) -> None:
    """Have another process take what is left, one stretch after the other. Raises Ended."""
    try:
        line.send((model.schema, model.begun))
        while stretch := _next(left):
            line.send(stretch)
            _heard(line)
        line.send(None)
        _heard(line)
    except (EOFError, BrokenPipeError, ConnectionResetError) as error:
        raise Ended("a process that fills the read models has ended: nothing was changed") from error
    finally:
        left.clear()  # where somebody fails, nobody goes on


def _heard(line: Any) -> None:
    if (failed := line.recv()) is not None:
        raise Ended(failed)


def _help(line: Any, not_ours: Sequence[Any], journal_url: str, read_url: str) -> None:
    """What each of them does, until whoever started it says no more."""
    for other in not_ours:  # or the end of whoever started us would not be seen
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError, BrokenPipeError):
        schema, begun = line.recv()
        try:
            journal, read_model = open_journal(journal_url), ReadModel(read_url, schema=schema, keep=True)
            share = Share(Model(read_model, begun), journal)
            while (stretch := line.recv()) is not None:
                share.take(stretch)
                line.send(None)
            share.finish()
        except EOFError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, who started us must know
            line.send(f"{type(error).__name__}: {error}")
        else:
            line.send(None)
