"""The server dies in the middle of a sale, and comes back: the page ends with one outcome, and the points with it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Route

from tests.api.city import City, opened, wait_for
from tests.api.conftest import Founded
from tests.api.terminal_page.conftest import standing_at
from tests.api.terminal_page.till import code_of
from tests.faults.servers import free_port

# The page and all that it loaded are in the phone's cache, and the worker that answers from it is there.
KEPT = """async () => {
  const kept = await (await caches.open("terminal-page")).keys();
  return navigator.serviceWorker.controller && kept.length > 15;
}"""


@contextmanager
def serving(environment: dict[str, str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process of its own, by the real time, always at the same address."""
    command = [sys.executable, "-m", "carbon_points", "serve", "--port", str(port), "--json"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CARBON_")}
    with subprocess.Popen(command, env=clean | environment, stdout=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: _answers(port))
            yield process
        finally:
            process.kill()


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def environment(founded: Founded, tmp_path: Path) -> dict[str, str]:
    return {"CARBON_DATA_DIR": str(shutil.copytree(founded[0], tmp_path / "data")), "CARBON_PARTITIONS": "4"}


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def city(founded: Founded, environment: dict[str, str], port: int) -> Iterator[City]:
    """Of today, behind whatever serves at that port."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        installation = opened(environment, lambda: datetime.now(UTC))  # to be looked at from outside
        yield City(http, installation, founded[1])
        installation.close()


def resident_of(city: City) -> str:
    """With 500 points that have not expired."""
    card = city.name("card")
    resident = city.resident(card=card)
    city.earn(card, 500, occurred_at=datetime.now(UTC).isoformat())
    return resident


@pytest.mark.long
def test_a_server_that_is_killed_after_it_took_the_points_took_them_once(
    environment: dict[str, str], port: int, city: City, browser: Browser
) -> None:
    with serving(environment, port) as first, standing_at(browser, city, kept="allow") as cashier:
        cashier.activate()
        cashier.page.wait_for_function(KEPT)
        resident = resident_of(city)

        def killed(route: Route) -> None:
            route.fetch()
            first.kill()
            first.wait()
            route.abort("connectionreset")

        cashier.line.cut("pay", killed)
        cashier.takes(120, code_of(city, resident))
        cashier.sees("text=正在查询结果")
        cashier.passes(6)
        cashier.sees("text=网络不通")
        cashier.page.reload()  # the phone has kept the page, and the page its sale
        cashier.sees("text=正在查询结果")
        with serving(environment, port):
            assert "成功" in cashier.outcome(within=20)
            assert city.balance(resident)["points_available"] == 380
            assert len(cashier.line.named("pay")) == 1


@pytest.mark.long
def test_a_phone_whose_clock_is_set_wrong_later_asks_the_server_for_the_time(
    environment: dict[str, str], port: int, city: City, browser: Browser
) -> None:
    with serving(environment, port), standing_at(browser, city) as cashier:
        cashier.activate()
        cashier.page.clock.set_system_time(datetime.now(UTC) + timedelta(hours=2))
        assert "成功" in cashier.takes(120, code_of(city, resident_of(city))).outcome()
        assert len(set(cashier.line.named("pay"))) == 1
