"""Rankings: who reduced most in a week or a month, in the city or among those who live in one county.

Standings follow the rows of actions a moment later (`ranker.py`), for the periods that are asked for: this one and the
one before. They have positions of their own. Whoever reduced the same has the same place; among them, and so on a
page, ids decide, the greatest first. Where everybody stands is kept in bands of figures too, so that a place is a sum
of bands and a count within one, and costs the same among a million.
"""

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any, Literal

from msgspec import Struct
from sqlalchemy import BigInteger, ColumnElement, Date, Index, Table, func, select, tuple_

from carbon_points.domain.account import ActionReversed
from carbon_points.projections.cache import CityCache
from carbon_points.projections.residents import RESIDENTS
from carbon_points.projections.rows import Batch, Made, Snapshot, added, key, metadata, once, place, total

Period = Literal["this-week", "last-week", "this-month", "last-month"]
Within = Literal["city", "county"]
BAND_BITS = 5  # a band is at most a sixteenth wide

TAKEN_BACK = Table(
    "taken_back", metadata, *place(), once("resident"), once("day", Date), once("reduction_mg", BigInteger)
)
SPANS = Table("standing_spans", metadata, key("period"), once("from_day", Date), once("until_day", Date))
STANDINGS = Table(
    "standings",
    metadata,
    key("period"),
    key("resident"),
    once("county"),  # where they live: "" where nobody said it
    once("reduction_mg", BigInteger),
    once("gained_mg", BigInteger),  # of it, by the last change
    Index("standings_of_the_city", "period", "reduction_mg", "resident"),
    Index("standings_of_a_county", "period", "county", "reduction_mg", "resident"),
    sqlite_with_rowid=False,
)
BANDS = Table(
    "standing_bands",
    metadata,
    key("period"),
    key("county"),
    key("band_mg", BigInteger),  # its least figure
    added("residents"),
    added("reduction_mg"),
    sqlite_with_rowid=False,
)
RANKED = Table(
    "ranked",
    metadata,
    key("partition", BigInteger),
    once("position", BigInteger),
    once("goal", BigInteger),  # how far the rows were when it was begun: before that, much is missing
)


def fold(batch: Batch, made: Made) -> None:
    """A reversal changes the row of its action where it stands: what it takes back is told by a place of its own."""
    rows = made[TAKEN_BACK]
    for position, event in batch.of(ActionReversed):
        rows.put(
            partition=batch.partition,
            position=position,
            resident=event.resident,
            day=event.day,
            reduction_mg=event.reduction_mg,
        )


class Span(Struct, frozen=True):
    """A week, from Monday, or a month: `period` is 2026-W48 or 2026-11. Both days are in it."""

    period: str
    from_day: date
    until_day: date


def span(period: Period, today: date) -> Span:
    """The period as seen from a day."""
    which, _, kind = period.partition("-")
    made = _week if kind == "week" else _month
    this = made(today)
    return this if which == "this" else made(this.from_day - timedelta(days=1))


def _week(day: date) -> Span:
    begin = day - timedelta(days=day.weekday())
    year, week, _ = begin.isocalendar()
    return Span(f"{year}-W{week:02}", begin, begin + timedelta(days=6))


def _month(day: date) -> Span:
    begin = day.replace(day=1)
    following = (begin + timedelta(days=31)).replace(day=1)
    return Span(f"{begin:%Y-%m}", begin, following - timedelta(days=1))


def band(figure_mg: int) -> tuple[int, int]:
    """The band of a figure above zero: its least figure, and that of the next one."""
    width = max(figure_mg.bit_length() - BAND_BITS, 0)
    least = figure_mg >> width << width
    return least, least + (1 << width)


# -- reading ---------------------------------------------------------------------------------------------------------


class Board(Struct, frozen=True):
    """Whose figures are compared: of a period, in the city or, where it is said, in one county."""

    period: str
    county: str | None = None

    def of(self, table: Table) -> ColumnElement[bool]:
        here = table.c.period == self.period
        return here if self.county is None else here & (table.c.county == self.county)


class Ranked(Struct, frozen=True):
    place: int
    resident: str
    reduction_mg: int


class Ranking(Struct, frozen=True):
    """Some of the `residents` who have a place, best first."""

    residents: int
    rows: list[Ranked]


class CountyRanked(Struct, frozen=True):
    place: int
    county: str
    residents: int
    reduction_mg: int


def positions(at: Snapshot) -> dict[int, int]:
    """What the standings follow from: the read model's own positions, a moment before."""
    return dict[int, int](map(tuple, at.rows(select(RANKED.c.partition, RANKED.c.position))))


def making(at: Snapshot) -> bool:
    """Whether the standings were begun anew, and tell less than half the truth yet."""
    begun = at.rows(select(RANKED.c.position < RANKED.c.goal))
    return any(short for (short,) in begun) if begun else any(at.positions.values())


def best(at: Snapshot, store: CityCache, stand: dict[int, int], board: Board, limit: int) -> Ranking:
    """The first `limit` of a ranking."""
    found = store.ranking((board.period, board.county), stand, limit=limit)
    if found is not None:
        return _told(found)
    rows = at.rows(_figures(board, limit))
    return Ranking(_residents(at, board), _placed(at, board, [tuple(row) for row in rows], from_top=True))


def around(at: Snapshot, store: CityCache, stand: dict[int, int], board: Board, resident: str, beside: int) -> Ranking:
    """One resident's row, with as many as `beside` on each side of it; none where they have no place."""
    found = store.ranking((board.period, board.county), stand, limit=beside, resident=resident)
    if found is not None:
        return _told(found)
    own = select(STANDINGS.c.resident, STANDINGS.c.reduction_mg).where(
        board.of(STANDINGS), STANDINGS.c.resident == resident
    )
    rows = [tuple(row) for row in at.rows(own)]
    if rows:
        mine, order = (rows[0][1], resident), tuple_(STANDINGS.c.reduction_mg, STANDINGS.c.resident)
        above = select(STANDINGS.c.resident, STANDINGS.c.reduction_mg).where(board.of(STANDINGS), order > mine)
        above = above.order_by(STANDINGS.c.reduction_mg, STANDINGS.c.resident).limit(beside)
        below = _figures(board, beside).where(order < mine)
        rows = [*map(tuple, reversed(at.rows(above))), *rows, *map(tuple, at.rows(below))]
    return Ranking(_residents(at, board), _placed(at, board, rows))


def counties(at: Snapshot, period: str, *, fewest: int) -> list[CountyRanked]:
    """Counties by what those who live there reduced, best first, where they are no fewer than that."""
    figures = total(BANDS.c.residents), total(BANDS.c.reduction_mg)
    query = select(BANDS.c.county, *figures).where(BANDS.c.period == period, BANDS.c.county != "")
    query = query.group_by(BANDS.c.county).having(figures[0] >= fewest)
    rows = at.rows(query.order_by(figures[1].desc(), BANDS.c.county))
    return [
        CountyRanked(1 + sum(other > mg for *_, other in rows), county, residents, mg) for county, residents, mg in rows
    ]


def frozen(at: Snapshot, residents: Sequence[str]) -> set[str]:
    query = select(RESIDENTS.c.resident).where(RESIDENTS.c.resident.in_(residents), RESIDENTS.c.frozen)
    return {resident for (resident,) in at.rows(query)}


def _told(found: tuple[int, list[tuple[int, str, int]]]) -> Ranking:
    return Ranking(found[0], [Ranked(*row) for row in found[1]])


def _figures(board: Board, limit: int) -> Any:
    query = select(STANDINGS.c.resident, STANDINGS.c.reduction_mg).where(board.of(STANDINGS))
    return query.order_by(STANDINGS.c.reduction_mg.desc(), STANDINGS.c.resident.desc()).limit(limit)


def _residents(at: Snapshot, board: Board) -> int:
    return at.one(select(total(BANDS.c.residents)).where(board.of(BANDS)))[0]


def _placed(at: Snapshot, board: Board, rows: Sequence[tuple[Any, ...]], *, from_top: bool = False) -> list[Ranked]:
    """Rows in their order, with their places. Of those who share the first figure, some may be above these rows."""
    told: list[Ranked] = []
    above = same = 0
    figure_mg, whole = None, from_top  # whether all who have that figure were seen
    for resident, mg in rows:
        if mg != figure_mg:
            above = above + same if whole else _above(at, board, mg)
            whole = from_top or figure_mg is not None
            figure_mg, same = mg, 0
        same += 1
        told.append(Ranked(1 + above, resident, mg))
    return told


def _above(at: Snapshot, board: Board, figure_mg: int) -> int:
    """How many reduced more."""
    _, following = band(figure_mg)
    bands = select(total(BANDS.c.residents)).where(board.of(BANDS), BANDS.c.band_mg >= following)
    within = select(func.count()).where(
        board.of(STANDINGS), STANDINGS.c.reduction_mg > figure_mg, STANDINGS.c.reduction_mg < following
    )
    return at.one(select(bands.scalar_subquery() + within.scalar_subquery()))[0]
