"""What feeds the rankings: a thread beside the follower that takes a second's actions into the standings at once.

It reads rows, not the log, and writes by one statement a partition: neither a batch of the follower nor a rebuild waits
for it, and nothing of it happens in the process that takes in actions. Its rows and positions commit together. Redis is
told within that transaction, while nobody else can be about it: what it was told and was then not committed shows by
its positions, and is made anew. It holds what a flush may take at any moment.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Executable,
    Select,
    Table,
    bindparam,
    delete,
    func,
    insert,
    select,
    text,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from carbon_points.domain.quantity import civil_day
from carbon_points.projections.actions import ACTIONS
from carbon_points.projections.cache import Board, CityCache, Figures
from carbon_points.projections.rankings import (
    BANDS,
    RANKED,
    SPANS,
    STANDINGS,
    TAKEN_BACK,
    Span,
    band,
    making,
    positions,
    span,
)
from carbon_points.projections.read_model import POSITIONS, ReadModel
from carbon_points.projections.residents import RESIDENTS
from carbon_points.projections.rows import Rows, total, write

EVERY_SECONDS = 1.0
BACK_OFF_SECONDS = 5.0
ENTRIES = 5_000  # of each partition, in one transaction
ENTRIES_BUSY = 1_000  # a second, while others come: more than a city sends, and a flood is not slowed down by it
STREAMED = 5_000
WEEK_DAYS, MONTH_DAYS = 16, 64  # from a ranking's last change until nobody asks for it any more, and some

_NOT_DURABLE = text("SET LOCAL synchronous_commit = off")
_log = logging.getLogger(__name__)


class Ranker:
    """`store` is this thread's own, patient: nobody waits for it."""

    def __init__(self, read_model: ReadModel, store: CityCache, clock: Callable[[], datetime]) -> None:
        self._read_model, self._store, self._clock = read_model, store, clock
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="ranker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Return when the transaction at hand is done."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._store.close()

    def _run(self) -> None:
        wait, known = 0.0, dict[int, int]()
        while not self._stopping.wait(wait):
            begun = time.monotonic()
            try:
                with self._read_model.snapshot() as at:
                    busy = at.positions != known and not making(at)
                    known = at.positions
                today = civil_day(self._clock())
                more = fill(self._read_model, self._store, today, most=ENTRIES_BUSY if busy else ENTRIES)
                # half of the time is everybody else's, and nearly all of it while actions come
                wait = time.monotonic() - begun if more and not busy else EVERY_SECONDS
            except Exception:  # noqa: BLE001  # whatever it is, the rows are still there: to stop would mend nothing
                wait = BACK_OFF_SECONDS
                _log.exception("the standings do not follow; trying again in %.0f s", wait)


class Change(NamedTuple):
    period: str
    county: str
    resident: str
    reduction_mg: int
    gained_mg: int


def fill(read_model: ReadModel, store: CityCache, today: date, *, most: int = ENTRIES) -> bool:
    """Take the next rows into the standings and tell `store`. Returns whether more are there.

    Raises SQLAlchemy's DBAPIError; then nothing changed.
    """
    spans = _spans(today)
    with read_model.snapshot() as at:  # a look, which takes no lock: most of the time there is nothing to do
        if at.positions == positions(at) and _kept(at.connection) == spans and store.stands_at(at.positions):
            return False
    with read_model.engine.execution_options(writes=True).begin() as connection:
        if connection.dialect.name == "postgresql":  # as in `ReadModel.apply`
            connection.execute(_NOT_DURABLE)
        heads = _positions(connection, select(POSITIONS.c.partition, POSITIONS.c.position))
        before = _locked(connection, heads)
        _keep(connection, spans)
        after = {p: min(max(heads.get(p, 0), begin), begin + most) for p, begin in before.items()}
        changes = [c for p, end in after.items() if end > before[p] for c in _take(connection, p, before[p], end)]
        _count(connection, changes)
        _move(connection, after)
        _tell(connection, store, before, after, changes)
    return any(after[p] < head for p, head in heads.items())


def _spans(today: date) -> dict[str, Span]:
    """The periods that are kept: this week and month, those before, and those of tomorrow, by the days' names."""
    days = (today, today + timedelta(days=1))
    kept = [span(period, day) for period in ("this-week", "this-month") for day in days]
    kept += [span("last-week", today), span("last-month", today)]
    return {each.period: each for each in kept}


def _kept(connection: Connection) -> dict[str, Span]:
    rows = connection.execute(select(SPANS.c.period, SPANS.c.from_day, SPANS.c.until_day))
    return {row.period: Span(*row) for row in rows}


def _keep(connection: Connection, spans: dict[str, Span]) -> None:
    """Begin with the periods that are new, before any action of theirs is taken, and forget those that are over."""
    known = _kept(connection)
    if begun := [each for name, each in spans.items() if name not in known]:
        rows = [{"period": each.period, "from_day": each.from_day, "until_day": each.until_day} for each in begun]
        connection.execute(insert(SPANS), rows)
    if over := known.keys() - spans.keys():
        for table in (SPANS, STANDINGS, BANDS):
            connection.execute(delete(table).where(table.c.period.in_(over)))


def _locked(connection: Connection, heads: dict[int, int]) -> dict[int, int]:
    """The standings' positions, which no one else moves before this transaction ends."""
    added = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(RANKED).on_conflict_do_nothing()
    if heads:
        connection.execute(added, [{"partition": p, "position": 0, "goal": head} for p, head in sorted(heads.items())])
    rows = select(RANKED.c.partition, RANKED.c.position).order_by(RANKED.c.partition)
    return _positions(connection, rows.with_for_update())


def _positions(connection: Connection, query: Select[*tuple[Any, ...]]) -> dict[int, int]:
    return {row.partition: row.position for row in connection.execute(query)}


def _take(connection: Connection, partition: int, after: int, until: int) -> list[Change]:
    """Add what the actions and reversals of a stretch of the log are worth to whom, by period."""
    stretch = {"of_partition": partition, "after": after, "until": until}
    changes = [Change(*row) for row in connection.execute(_taking(connection.dialect.name), stretch)]
    gone = [c for c in changes if c.reduction_mg <= 0]
    if gone:
        keys = tuple_(STANDINGS.c.period, STANDINGS.c.resident)
        connection.execute(delete(STANDINGS).where(keys.in_([(c.period, c.resident) for c in gone])))
    return changes


@cache
def _taking(dialect: str) -> Executable:
    def of(table: Table, mg: ColumnElement[Any]) -> Select[*tuple[Any, ...]]:
        stretch = (table.c.position > bindparam("after")) & (table.c.position <= bindparam("until"))
        return select(table.c.resident, table.c.day, mg.label("mg")).where(
            table.c.partition == bindparam("of_partition"), stretch
        )

    moved = union_all(of(ACTIONS, ACTIONS.c.reduction_mg), of(TAKEN_BACK, -TAKEN_BACK.c.reduction_mg)).subquery()
    gained, county = total(moved.c.mg), func.coalesce(RESIDENTS.c.county, "")
    within = moved.c.day.between(SPANS.c.from_day, SPANS.c.until_day)
    told = (
        select(SPANS.c.period, moved.c.resident, county, gained, gained)
        .select_from(moved)
        .join(SPANS, within)
        .join(RESIDENTS, RESIDENTS.c.resident == moved.c.resident)
        .group_by(SPANS.c.period, moved.c.resident, RESIDENTS.c.county)
        .having(gained != 0)
    )
    into = (postgresql if dialect == "postgresql" else sqlite).insert(STANDINGS)
    columns = ["period", "resident", "county", "reduction_mg", "gained_mg"]
    return (
        into.from_select(columns, told)
        .on_conflict_do_update(
            index_elements=[STANDINGS.c.period, STANDINGS.c.resident],
            set_={
                "reduction_mg": STANDINGS.c.reduction_mg + into.excluded.reduction_mg,
                "gained_mg": into.excluded.gained_mg,
            },
        )
        .returning(*(STANDINGS.c[name] for name in Change._fields))
    )


def _count(connection: Connection, changes: list[Change]) -> None:
    """Move residents from band to band: a row tells what it was by what it gained."""
    rows = Rows(BANDS)
    for period, county, _, mg, gained_mg in changes:
        for figure_mg, residents in ((mg - gained_mg, -1), (mg, 1)):
            if figure_mg > 0:
                least, _ = band(figure_mg)
                rows.put(
                    period=period, county=county, band_mg=least, residents=residents, reduction_mg=residents * figure_mg
                )
    write(connection, rows)


def _move(connection: Connection, after: dict[int, int]) -> None:
    moved = update(RANKED).where(RANKED.c.partition == bindparam("of_partition")).values(position=bindparam("at"))
    if after:
        connection.execute(moved, [{"of_partition": p, "at": position} for p, position in after.items()])


def _tell(
    connection: Connection, store: CityCache, before: dict[int, int], after: dict[int, int], changes: list[Change]
) -> None:
    """Tell the store what changed or, where it stands elsewhere, everything."""
    told = _figures((c.period, c.county, c.resident, max(c.reduction_mg, 0)) for c in changes)
    if not store.change(before, after, told) and store.make(after, _everything(connection)):
        _log.info("the sorted sets of the rankings were made anew")


def _everything(connection: Connection) -> Iterator[Figures]:
    """All standings, in pages. Nothing is read before the first is asked for."""
    columns = (STANDINGS.c.period, STANDINGS.c.county, STANDINGS.c.resident, STANDINGS.c.reduction_mg)
    rows = connection.execute(select(*columns), execution_options={"yield_per": STREAMED})
    for page in rows.partitions():
        yield _figures(map(tuple, page))


def _figures(rows: Iterable[tuple[Any, ...]]) -> Figures:
    """By ranking, who is in it with what, and how many days it stays: until the period after it is over."""
    made: dict[Board, tuple[int, list[tuple[str, int]]]] = {}
    for period, county, resident, mg in rows:
        days = WEEK_DAYS if "W" in period else MONTH_DAYS
        for where in (None, county) if county else (None,):
            made.setdefault((period, where), (days, []))[1].append((resident, mg))
    return made
