"""How an empty read model is filled with a whole log, for a rebuild: the same rows as by following, many times faster.

What following needs at every step is left out or put off. On PostgreSQL several processes do it (`staging.py`). On
SQLite, which has one writer, rows that are written once go in while the next ones are read and folded; the tables of
most rows get their indexes at the end. Sums stay in memory, and are added to the stored ones where they are too many.
Nobody else uses the model meanwhile: a crash leaves what the next rebuild drops.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from sqlalchemy import Table, insert
from sqlalchemy.schema import CreateIndex, DropIndex

from carbon_points.journal.journal import Journal
from carbon_points.projections import actions, lots, staging
from carbon_points.projections.read_model import POSITIONS, ReadModel, fold, in_order
from carbon_points.projections.rows import Made, Rows, write
from carbon_points.projections.staging import LARGE

CHUNK = 1_000  # entries that are read and folded at once: more do not fit where the processor has them at hand
ROWS_HELD = 20_000  # in memory, and as many being written
KEYS_HELD = 200_000  # of sums, and of what became of rows that were written before


def fill(model: ReadModel, journal: Journal, helpers: Sequence[Any] = ()) -> None:
    """Put the log as far as it goes now into an empty model. Raises what reading and writing raise."""
    if model.on_postgres:
        staging.fill(model, journal, helpers)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="filling") as writer:
        filling = _Filling(model, writer)
        for partition, until in journal.heads().items():
            position = 0
            for entries in _ahead(journal, partition, until):
                position += filling.take(partition, entries, position)
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
        self._bare = set(LARGE)  # without key and indexes

    def take(self, partition: int, entries: Sequence[tuple[int, str, bytes]], position: int) -> int:
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
        self._write(left)
        for table in LARGE:
            self._index(table)
        self._look_back()
        self._write(in_order(self._made))
        with self._model.writing() as connection:
            for partition, position in self._positions.items():
                connection.execute(insert(POSITIONS), {"partition": partition, "position": position})

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
            for index in table.indexes:
                connection.execute(CreateIndex(index))


def _ahead(journal: Journal, partition: int, until: int) -> Iterator[Sequence[tuple[int, str, bytes]]]:
    """What happened in a partition in chunks, each read while the one before is being folded."""
    chunks = journal.events(partition, 0, until, CHUNK)
    with ThreadPoolExecutor(1, thread_name_prefix="reading") as reader:
        coming = reader.submit(next, chunks, None)
        while chunk := coming.result():
            coming = reader.submit(next, chunks, None)
            yield chunk
