"""Rankings over HTTP: places without names, the same with and without Redis; and the counters of the city."""

import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import redis
from sqlalchemy import delete

from carbon_points.api import rankings
from carbon_points.projections import cache
from carbon_points.projections.rankings import RANKED, positions
from tests.api.city import City, city_in, position, problem, wait_for
from tests.api.conftest import Founded
from tests.conftest import Clock
from tests.given import NOON


@pytest.fixture
def cached_city(founded: Founded, tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[City]:
    monkeypatch.setattr(cache, "PATIENCE_SECONDS", 10.0)  # a busy machine's Redis is slow, and is to be asked
    folder = Path(shutil.copytree(founded[0], tmp_path / "cached"))
    with city_in({"CARBON_DATA_DIR": str(folder), "CARBON_REDIS_URL": redis_url}, NOON, founded[1]) as running:
        yield running


def peopled(city: City, residents: int = 12, county: str = "330503") -> tuple[list[str], str]:
    """Residents of a county, the first of whom reduced least; and the position of the last write."""
    made: list[str] = []
    for kilometres in range(1, residents + 1):
        card = city.name("card")
        made.append(city.resident(card=card, county=county))
        answer = city.post(
            "/v1/actions",
            city.report(resident=card, behaviour="green", quantity=str(kilometres), unit="km"),
            by="source",
        )
    city.settled()  # they lie in several partitions, and a position is of one
    read = city.installation.read_model
    wait_for(lambda: all(read.read(positions).get(p, 0) >= n for p, n in read.positions().items()))
    return made, position(answer)


def ranking(city: City, last: str, **asked: str) -> Any:
    return city.done(city.get("/v1/rankings", by="app", min_position=last, **asked))


def place(city: City, resident: str, last: str, **asked: str) -> Any:
    return city.done(city.get(f"/v1/residents/{resident}/ranking", by="app", min_position=last, **asked))


def plain(answer: Any) -> Any:
    """Without what is another one in each city: aliases and positions."""
    shown = [{name: value for name, value in row.items() if name != "alias"} for row in answer["data"]]
    return {**answer, "data": shown, "positions": None}


def test_a_ranking_shows_places_and_figures_and_nobody(own_city: City) -> None:
    residents, last = peopled(own_city)
    found = ranking(own_city, last, limit="3")
    assert (found["period"], found["from_day"], found["until_day"]) == ("2025-W24", "2025-06-09", "2025-06-15")
    assert found["residents"] == 12
    assert [(row["place"], row["reduction_mg"]) for row in found["data"]] == [
        (1, 12_000_000),
        (2, 11_000_000),
        (3, 10_000_000),
    ]
    partition, _, reached = last.partition(":")
    assert found["positions"][partition] >= int(reached)
    text = own_city.get("/v1/rankings", by="app").text
    assert not any(resident in text for resident in residents)
    assert set(found["data"][0]) == {"place", "alias", "reduction_mg"}


def test_an_alias_is_the_same_when_asked_again_and_another_in_another_ranking(own_city: City) -> None:
    _, last = peopled(own_city)
    aliases = [
        {row["alias"] for row in ranking(own_city, last, **asked)["data"]}
        for asked in ({}, {}, {"period": "this-month"}, {"county": "330503"})
    ]
    assert len(aliases[0]) == 12
    assert aliases[0] == aliases[1]
    assert not aliases[0] & aliases[2]
    assert not aliases[0] & aliases[3]


def test_a_resident_is_told_the_place_and_who_stands_around(own_city: City) -> None:
    residents, last = peopled(own_city)
    found = place(own_city, residents[5], last, beside="1")
    assert (found["place"], found["reduction_mg"], found["residents"]) == (7, 6_000_000, 12)
    assert [(row["place"], row.get("you", False)) for row in found["data"]] == [(6, False), (7, True), (8, False)]
    assert place(own_city, residents[5], last, within="county")["county"] == "330503"
    assert place(own_city, residents[5], last, period="last-week")["place"] is None
    assert place(own_city, residents[5], last, period="last-month")["data"] == []


def test_it_says_why_there_is_no_place(own_city: City) -> None:
    problem(own_city.get(f"/v1/residents/res_{'a' * 20}/ranking", by="app"), 404, "account-unknown")
    homeless = own_city.resident()
    problem(own_city.get(f"/v1/residents/{homeless}/ranking", by="app", within="county"), 404, "county-unknown")
    for wrong in ({"period": "this-year"}, {"county": "Huzhou"}, {"limit": "0"}, {"min_position": "0:999999"}):
        problem(own_city.get("/v1/rankings", by="app", **wrong), 400, "parameter-invalid")


def test_who_is_frozen_or_erased_keeps_the_place_and_is_not_shown(own_city: City) -> None:
    residents, _ = peopled(own_city, 13)
    best, second, third = residents[:-4:-1]
    own_city.done(own_city.call("DELETE", f"/v1/residents/{second}/bindings", by="app"))
    frozen = own_city.post(f"/v1/residents/{best}/freeze", {"frozen": True, "reason": "异常"})
    assert [row["place"] for row in ranking(own_city, position(frozen), limit="4")["data"]] == [3, 4]
    around = place(own_city, third, position(frozen), beside="2")
    assert [row["place"] for row in around["data"]] == [3, 4, 5]
    assert place(own_city, best, position(frozen), beside="0")["place"] == 1  # to themselves
    thawed = own_city.post(f"/v1/residents/{best}/freeze", {"frozen": False, "reason": "无异常"})
    assert ranking(own_city, position(thawed), limit="1")["data"][0]["place"] == 1


def test_where_few_are_ranked_nobody_is_shown_but_to_themselves(own_city: City) -> None:
    residents, last = peopled(own_city, rankings.FEWEST - 1)
    assert ranking(own_city, last)["data"] == []
    assert [row["place"] for row in place(own_city, residents[0], last)["data"]] == [9]
    assert own_city.done(own_city.get("/v1/rankings/counties", by="source"))["data"] == []


def test_counties_stand_against_each_other(own_city: City) -> None:
    peopled(own_city, 10, "330503")
    _, last = peopled(own_city, 11, "330523")
    found = own_city.done(own_city.get("/v1/rankings/counties", by="buyer", min_position=last))
    assert found["data"] == [
        {"place": 1, "county": "330523", "residents": 11, "reduction_mg": 66_000_000},
        {"place": 2, "county": "330503", "residents": 10, "reduction_mg": 55_000_000},
    ]


def test_a_reversal_takes_the_place_back(own_city: City) -> None:
    peopled(own_city, 11)
    wrong = own_city.recorded(behaviour="green", quantity="100", unit="km")["action_id"]
    last = position(own_city.post(f"/v1/actions/{wrong}/reversal", {"reason": "x"}, by="source"))
    found = ranking(own_city, last)
    assert (found["residents"], found["data"][0]["reduction_mg"]) == (11, 11_000_000)


def test_redis_and_sql_give_one_answer_and_go_on_when_it_is_flushed(
    own_city: City, cached_city: City, redis_url: str
) -> None:
    told: list[Any] = []
    for city in (own_city, cached_city):
        residents, last = peopled(city)
        told.append(
            [plain(ranking(city, last)), plain(ranking(city, last, county="330503"))]
            + [plain(place(city, resident, last)) for resident in residents]
        )
    assert told[0] == told[1]
    store, stand = cached_city.installation.cache, cached_city.installation.read_model.positions()
    assert store.ranking(("2025-W24", None), stand, limit=1), "it was Redis that answered"
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    assert plain(ranking(cached_city, last)) == told[0][0]


def test_a_ranking_that_is_being_made_is_none_yet(own_city: City) -> None:
    _, last = peopled(own_city)
    assert ranking(own_city, last)["residents"] == 12
    ranker = own_city.installation.follower._ranker
    assert ranker is not None
    ranker.stop()
    with own_city.installation.read_model.engine.begin() as connection:  # as a rebuild leaves it
        connection.execute(delete(RANKED))
    answer = own_city.get("/v1/rankings", by="app")
    problem(answer, 503, "position-not-reached")
    assert answer.headers["Retry-After"]


def test_who_waits_for_a_position_in_vain_is_told(own_city: City, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rankings, "READ_WAIT_SECONDS", 0.2)
    ranker = own_city.installation.follower._ranker
    assert ranker is not None
    ranker.stop()
    last = position(own_city.post("/v1/actions", own_city.report(), by="source"))
    begun = monotonic()
    problem(own_city.get("/v1/rankings", by="app", min_position=last), 503, "position-not-reached")
    assert monotonic() - begun < 5


def test_counters_tell_today_and_all_days(own_city: City, time: Clock) -> None:
    peopled(own_city, 2)
    time.move(timedelta(days=1))
    wrong = own_city.recorded(behaviour="green", quantity="5", unit="km", occurred_at="2025-06-16T11:00:00+08:00")
    own_city.recorded(behaviour="green", quantity="7", unit="km", occurred_at="2025-06-16T11:00:00+08:00")
    last = own_city.post(f"/v1/actions/{wrong['action_id']}/reversal", {"reason": "x"}, by="source")
    own_city.settled()  # the position is of one partition, and the other cards lie in others
    found = own_city.done(own_city.get("/v1/city/now", by="terminal", min_position=position(last)))
    assert found["day"] == "2025-06-16"
    assert found["today"] == {"actions": 1, "reduction_mg": 7_000_000, "points": 700, "residents": 2}
    assert found["total"] == {"actions": 3, "reduction_mg": 10_000_000, "points": 1_000, "residents": 4}
    assert found["positions"] == own_city.installation.read_model.read(lambda at: at.vector)


def test_counters_from_the_cache_are_those_of_the_rows(own_city: City, cached_city: City) -> None:
    told: list[Any] = []
    for city in (own_city, cached_city):
        peopled(city, 2)
        answers = [city.settled().done(city.get("/v1/city/now", by="app")) for _ in range(2)]
        assert answers[0] == answers[1]
        told.append({**answers[0], "positions": None})
    assert told[0] == told[1]
