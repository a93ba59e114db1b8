import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Playwright, sync_playwright

from tests.api.city import City

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--use-fake-ui-for-media-stream"]


@pytest.fixture(scope="package")
def playwright() -> Iterator[Playwright]:
    """Drives the system's own Chromium: nothing is downloaded."""
    if not Path(CHROMIUM).exists():
        pytest.skip("there is no Chromium here (Debian: apt-get install chromium fonts-noto-cjk)")
    with sync_playwright() as driver:
        yield driver


@pytest.fixture(scope="package")
def browser(playwright: Playwright) -> Iterator[Browser]:
    """One for all tests; each has a window without a camera and without a past."""
    with playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS]) as running:
        yield running


@pytest.fixture(scope="package")
def modules(browser: Browser, served_city: City) -> Iterator[Page]:
    """A page of the same server, where the terminal's modules can be imported one by one."""
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{served_city.http.base_url}/healthz")
        yield page
