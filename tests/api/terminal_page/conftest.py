import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Page, Playwright, sync_playwright

from tests.api.city import City
from tests.api.terminal_page.till import PHONE, Cashier

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


@contextmanager
def standing_at(
    browser: Browser, city: City, merchant: str = "shop", *, kept: Literal["allow", "block"] = "block"
) -> Iterator[Cashier]:
    """At a phone that shows the page of a new terminal of a merchant. Whatever it does, it asks nobody else.

    `kept`: whether the phone keeps the page for when there is no network.
    """
    terminal = city.name("phone")
    city.done(city.post(f"/v1/merchants/{merchant}/terminals", {"terminal": terminal}))
    said: Any = {"viewport": PHONE, "locale": "zh-CN", "has_touch": True, "is_mobile": True, "service_workers": kept}
    with browser.new_context(**said) as context:
        cashier = Cashier(context, city, f"{merchant}/{terminal}")
        yield cashier
        assert cashier.asked == {city.http.base_url.netloc.decode()}
        assert not cashier.wrong


@pytest.fixture
def phone(browser: Browser, served_city: City) -> Iterator[Cashier]:
    """One of this test alone, not activated yet."""
    with standing_at(browser, served_city) as cashier:
        yield cashier


@pytest.fixture(scope="package")
def shop_phone(browser: Browser, served_city: City) -> Iterator[Cashier]:
    with standing_at(browser, served_city) as cashier:
        yield cashier.activate()


@pytest.fixture
def cashier(shop_phone: Cashier) -> Cashier:
    """At an activated phone that others have used before, with a line that holds again and nothing left open."""
    shop_phone.begins()
    return shop_phone
