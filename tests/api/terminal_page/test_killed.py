"""The server dies in the middle of a sale, and comes back: the page ends with one outcome, and the points with it."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Route

from tests.api.city import City, opened, wait_for
from tests.api.conftest import Founded
from tests.api.terminal_page.conftest import standing_at
from tests.api.terminal_page.till import code_of

# The page and all that it loaded are in the phone's cache, and the worker that answers from it is there.
KEPT = """async () => {
  const kept = await (await caches.open("terminal-page")).keys();
  return navigator.serviceWorker.controller && kept.length > 15;
}"""


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


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


@pytest.mark.long
def test_a_server_that_is_killed_after_it_took_the_points_took_them_once(
    founded: Founded, tmp_path: Path, browser: Browser
) -> None:
    environment = {"CARBON_DATA_DIR": str(shutil.copytree(founded[0], tmp_path / "data")), "CARBON_PARTITIONS": "4"}
    port = free_port()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        with serving(environment, port) as first:
            installation = opened(environment, lambda: datetime.now(UTC))  # to be looked at from outside
            city = City(http, installation, founded[1])
            card = city.name("card")
            resident = city.resident(card=card)
            city.earn(card, 500, occurred_at=datetime.now(UTC).isoformat())
            with standing_at(browser, city, kept="allow") as cashier:
                cashier.activate()
                cashier.page.wait_for_function(KEPT)

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
        installation.close()
