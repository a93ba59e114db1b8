"""The cache of city answers: right when it answers, silent and quick when it cannot."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from carbon_points.projections import cache
from carbon_points.projections.cache import CityCache

AT = {0: 12, 1: 7}
SLOWEST_SECONDS = 2.0  # a tenth is promised; the rest is for a busy machine


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take its time where an answer is to come."""
    monkeypatch.setattr(cache, "PATIENCE_SECONDS", 10.0)


@pytest.fixture
def kept(redis_url: str, patient: None) -> Iterator[CityCache]:
    made = CityCache(redis_url)
    yield made
    made.close()


@pytest.fixture
def deaf() -> Iterator[str]:
    """A server that takes calls and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"redis://127.0.0.1:{server.getsockname()[1]}"


def test_an_answer_is_found_again_at_the_same_positions(kept: CityCache) -> None:
    assert kept.get("/v1/city/days", "county=330523", AT) is None
    kept.put("/v1/city/days", "county=330523", AT, b"[1]")
    assert kept.get("/v1/city/days", "county=330523", {1: 7, 0: 12}) == b"[1]"


def test_no_other_request_and_no_other_moment_finds_it(kept: CityCache) -> None:
    kept.put("/v1/city/days", "county=330523", AT, b"[1]")
    assert kept.get("/v1/city/counties", "county=330523", AT) is None
    assert kept.get("/v1/city/days", "county=330502", AT) is None
    assert kept.get("/v1/city/days", "county=330523", AT | {0: 13}) is None


def test_nor_does_another_log_that_shares_the_server(kept: CityCache, redis_url: str) -> None:
    kept.put("/v1/city/days", "", AT, b"[1]")
    other = CityCache(redis_url, scope="another log")
    assert other.get("/v1/city/days", "", AT) is None
    other.close()


def test_it_goes_after_a_moment(kept: CityCache, redis_url: str) -> None:
    kept.put("/v1/city/days", "", AT, b"[1]")
    with redis.Redis.from_url(redis_url) as client:
        [key] = client.keys()
        assert 0 < client.ttl(key) <= cache.KEPT_SECONDS


def test_without_a_server_nothing_is_found_and_nothing_is_kept() -> None:
    none = CityCache(None)
    none.put("/v1/city/days", "", AT, b"[1]")
    assert none.get("/v1/city/days", "", AT) is None
    none.close()


def test_a_server_that_is_not_there_is_asked_once_and_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    absent = CityCache(f"unix://{tmp_path / 'nobody'}")
    for _ in range(1_000):
        absent.put("/v1/city/days", "", AT, b"[1]")
        assert absent.get("/v1/city/days", "", AT) is None
    assert len(caplog.records) == 1
    absent.close()


def test_a_server_that_does_not_answer_costs_a_moment_once(deaf: str) -> None:
    slow = CityCache(deaf)
    begun = time.monotonic()
    for _ in range(100):
        assert slow.get("/v1/city/days", "", AT) is None
    assert time.monotonic() - begun < SLOWEST_SECONDS
    slow.close()


def test_a_server_that_comes_back_is_used_again(
    redis_url: str, patient: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cache, "OFF_SECONDS", 0.05)
    away = tmp_path / "redis.socket"
    made = CityCache(f"unix://{away}")
    made.put("/v1/city/days", "", AT, b"[1]")
    away.symlink_to(redis_url.removeprefix("unix://"))
    time.sleep(0.1)
    made.put("/v1/city/days", "", AT, b"[2]")
    assert made.get("/v1/city/days", "", AT) == b"[2]"
    made.close()


def test_many_may_ask_at_once(kept: CityCache) -> None:
    kept.put("/v1/city/days", "", AT, b"[1]")
    found = list[bytes | None]()

    def ask() -> None:
        found.extend(kept.get("/v1/city/days", "", AT) for _ in range(50))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"[1]"] * 400


def test_a_url_that_is_none_is_a_mistake_of_the_settings() -> None:
    with pytest.raises(ValueError, match="URL"):
        CityCache("localhost:6379")
