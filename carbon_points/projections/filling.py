"""How an empty read model is filled with a whole log, for a rebuild: the same rows as by following, many times faster.

What following needs at every step is left out or put off. Rows that are written once are copied in as they come, while
the next ones are read and folded; the tables of most rows get their keys and indexes at the end. Sums stay in memory,
and are added to the stored ones where they are too many. Nobody else uses the model meanwhile: a crash leaves what the
next rebuild drops.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from sqlalchemy import Table, insert, text
from sqlalchemy.schema import CreateIndex, DropIndex

from carbon_points.journal.entry import Entry
from carbon_points.journal.journal import Journal
from carbon_points.projections import actions, lots, merchants, redemptions, residents
from carbon_points.projections.read_model import POSITIONS, ReadModel, fold, in_order
from carbon_points.projections.rows import Made, Rows, copy, stored_name, write

LARGE = (  # whose keys and indexes are made when all rows are there, or when they are needed
    actions.ACTIONS,
    lots.UNPOOLED,
    residents.RESIDENTS,
    lots.POOLED,
    redemptions.REDEMPTIONS,
    merchants.MOVEMENTS,
)
CHUNK = 1_000  # entries that are read and folded at once: more do not fit where the processor has them at hand
ROWS_HELD = 20_000  # in memory, and as many being written
KEYS_HELD = 200_000  # of sums, and of what became of rows that were written before


def fill(model: ReadModel, journal: Journal) -> None:
    """Put the log as far as it goes now into an empty model. Raises what reading and writing raise."""
    with ThreadPoolExecutor(1, thread_name_prefix="filling") as writer:
        filling = _Filling(model, writer)
        for partition in journal.partitions:
            position = 0
            for entries in _ahead(journal, partition.number):
                position += filling.take(partition.number, entries, position)
        filling.finish()


class _Filling:
    def __init__(self, model: ReadModel, writer: ThreadPoolExecutor) -> None:
        self._model = model
        self._writer = writer
        self._made = Made()
        self._writing: Future[None] | None = None
        self._begun: set[Table] = set()  # tables that have rows
        self._positions: dict[int, int] = {}
        with model.writing() as connection:
            for table in LARGE:
                for index in table.indexes:
                    connection.execute(DropIndex(index))
                if model.on_postgres:
                    name = stored_name(connection, table)
                    connection.execute(text(f"ALTER TABLE {name} DROP CONSTRAINT {table.name}_pkey"))
        self._bare = set(LARGE)  # without key and indexes

    def take(self, partition: int, entries: Sequence[Entry], position: int) -> int:
        """Fold what comes after a position, and return how many entries."""
        made = self._made
        taken = fold(partition, entries, position, made)
        self._positions[partition] = position + taken
        if sum(len(rows) for rows in made.values() if rows.once) >= ROWS_HELD:
            actions.become(made)
            self._hand_over([rows for rows in made.values() if rows.once])
        if sum(len(rows) for rows in made.values() if not rows.once) >= KEYS_HELD:
            self._hand_over(list(made.values()))
        if len(made.become) + len(made.units) >= KEYS_HELD:
            self._look_back()
        return taken

    def finish(self) -> None:
        actions.become(self._made)
        self._hand_over([rows for rows in self._made.values() if rows.once])
        self._written()
        left = in_order(self._made)
        self._made.clear()
        with ThreadPoolExecutor(2 if self._model.on_postgres else 1) as both:  # SQLite has one writer at a time
            done = [
                both.submit(self._complete, table, [rows for rows in left if rows.table is table]) for table in LARGE
            ]
            self._write([rows for rows in left if rows.table not in LARGE])
            for each in done:
                each.result()
        self._look_back()
        self._write(in_order(self._made))
        with self._model.writing() as connection:
            for partition, position in self._positions.items():
                connection.execute(insert(POSITIONS), {"partition": partition, "position": position})

    def _complete(self, table: Table, rows: Sequence[Rows]) -> None:
        self._write(rows)
        self._index(table)

    def _hand_over(self, many: Sequence[Rows]) -> None:
        """Have rows written, when those before are, and hold them no longer."""
        self._written()
        for rows in many:
            del self._made[rows.table]
        self._writing = self._writer.submit(self._write, many)

    def _written(self) -> None:
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _write(self, many: Sequence[Rows]) -> None:
        for rows in filter(len, many):
            if not rows.once and rows.table in self._begun:
                self._index(rows.table)
            with self._model.writing() as connection:
                new = self._model.on_postgres and rows.table not in self._begun
                if not (new and copy(connection, rows)):
                    write(connection, rows)
            self._begun.add(rows.table)

    def _look_back(self) -> None:
        """See to what waits for a look at earlier rows, and for their indexes."""
        made = self._made
        if once := [rows for rows in made.values() if rows.once]:
            self._hand_over(once)
        self._written()
        if made.become:
            self._index(actions.ACTIONS)
        with self._model.writing() as connection:
            actions.become_stored(connection, made)
            lots.move_units(connection, made)

    def _index(self, table: Table) -> None:
        if table not in self._bare:
            return
        self._bare.remove(table)
        with self._model.writing() as connection:
            if self._model.on_postgres:
                columns = ", ".join(column.name for column in table.primary_key)
                name = stored_name(connection, table)
                connection.execute(text(f"ALTER TABLE {name} ADD PRIMARY KEY ({columns})"))
            for index in table.indexes:
                connection.execute(CreateIndex(index))


def _ahead(journal: Journal, partition: int) -> Iterator[Sequence[Entry]]:
    """A partition's entries in chunks, each read while the one before is being folded."""
    entries = journal.entries(partition, chunk=CHUNK)
    with ThreadPoolExecutor(1, thread_name_prefix="reading") as reader:
        coming = reader.submit(list, islice(entries, CHUNK))
        while chunk := coming.result():
            coming = reader.submit(list, islice(entries, CHUNK))
            yield chunk
