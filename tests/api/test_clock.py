"""A server goes by the system's clock as long as that goes as time does: what is written by a wrong one stays."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from litestar.testing import TestClient

from carbon_points.api.app import create_app
from tests.api.city import City, keys_of, opened, problem

MERCHANT: dict[str, Any] = {"name": "茶馆", "fen_per_point": 2}
YEAR = 365 * 86_400


@pytest.fixture(params=["live", "sandbox"])
def running(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[City]:
    """A city as it is served: nobody gave it a clock."""
    sandbox = {"CARBON_SANDBOX": "1"} if request.param == "sandbox" else {}
    installation = opened({"CARBON_DATA_DIR": str(tmp_path / "data"), **sandbox}, None)
    keys = keys_of(installation)
    with TestClient(create_app(installation)) as http:
        yield City(http, installation, keys)


@pytest.mark.parametrize("jump", [YEAR, -YEAR, 60], ids=["a year ahead", "a year back", "a minute ahead"])
def test_nothing_is_written_by_a_clock_that_jumped_until_it_is_right_again(
    running: City, jump: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def register(name: str) -> Any:
        return running.post("/v1/merchants", MERCHANT | {"merchant": name}, key=None)

    running.done(register("before"))
    right = time.time
    with monkeypatch.context() as wrong:
        wrong.setattr(time, "time", lambda: right() + jump)
        assert problem(register("meanwhile"), 503, "unavailable")["retryable"] == "same-key"
        ready = running.get("/readyz", by="")
        assert (ready.status_code, ready.json()["problems"]) == (503, ["clock: Unavailable"])
        assert not running.installation.journal.state("merchant/meanwhile").name
    running.done(register("meanwhile"))
    assert running.get("/readyz", by="").status_code == 200


def test_a_sandbox_s_clock_may_be_moved_all_the_same(running: City) -> None:
    if running.installation.sandbox is None:
        problem(running.post("/v1/sandbox/clock", {"advance_seconds": YEAR}), 404, "not-found")
        return
    running.done(running.post("/v1/sandbox/clock", {"advance_seconds": YEAR}))
    running.done(running.post("/v1/merchants", MERCHANT | {"merchant": "later"}, key=None))
    shown = running.done(running.get("/v1/sandbox/clock"))
    assert shown["ahead_seconds"] == YEAR
    assert abs((datetime.fromisoformat(shown["real_time"]) - datetime.now(UTC)).total_seconds()) < 20
