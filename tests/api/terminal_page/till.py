"""A cashier at the page, and the line between the page and the server, which can be cut."""

import re
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, Literal
from urllib.parse import urlsplit

from playwright.sync_api import BrowserContext, Locator, Page, Request, Route, ViewportSize

from tests.api.city import City

PHONE: ViewportSize = {"width": 390, "height": 844}
STEP_MS, PATIENCE_MS = 20, 5_000
Cut = Literal["before", "after", "hang", "late"] | Callable[[Route], None]
CALLS = {  # how a call of the page is named here
    "pay": re.compile(r"POST /v1/redemptions"),
    "ask": re.compile(r"GET /v1/redemptions\?reference=.*"),
    "capture": re.compile(r"POST /v1/redemptions/rdm_[^/]*/capture"),
    "reverse": re.compile(r"POST /v1/redemptions/reversal"),
    "refund": re.compile(r"POST /v1/redemptions/rdm_[^/]*/refunds"),
    "close": re.compile(r"POST /v1/merchants/.*/batches/\d+/close"),
    "activate": re.compile(r"POST /v1/terminals/activation"),
}


def checked(digits: str) -> str:
    """Seventeen digits with their check digit."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    return digits + str(-total % 10)


class Line:
    """Every call of a page goes through here, and is remembered as (name, Idempotency-Key).

    Cut `before`, the server never hears of it; `after`, it does, and its answer is lost. `hang` is `after` without
    even an error; `late` answers when it is told to.
    """

    def __init__(self, context: BrowserContext) -> None:
        self.calls: list[tuple[str, str | None]] = []
        self.cuts: dict[str, deque[Cut]] = {}
        self.always: dict[str, Cut] = {}
        self.kept: list[Callable[[], None]] = []
        self.arrived: list[str] = []  # by name: calls that the server has answered, whoever heard of it
        self.under_way = 0
        context.route("**/v1/**", self._pass)
        context.on("request", lambda _: self._count(+1))
        context.on("requestfinished", lambda _: self._count(-1))
        context.on("requestfailed", lambda _: self._count(-1))

    def cut(self, name: str, *how: Cut) -> None:
        """The next calls of that name, one after the other."""
        self.cuts.setdefault(name, deque()).extend(how)

    def mended(self) -> None:
        self.calls.clear()
        self.cuts.clear()
        self.always.clear()
        self.kept.clear()
        self.arrived.clear()
        self.under_way = 0

    def named(self, name: str) -> list[str | None]:
        return [key for called, key in self.calls if called == name]

    def _count(self, more: int) -> None:
        self.under_way += more

    def _pass(self, route: Route) -> None:
        name = _name(route.request)
        self.calls.append((name, route.request.headers.get("idempotency-key")))
        waiting = self.cuts.get(name)
        match waiting.popleft() if waiting else self.always.get(name):
            case None:
                route.continue_()
            case "before":
                route.abort("connectionfailed")
            case "after":
                route.fetch()
                route.abort("connectionreset")
            case "hang":
                route.fetch()
                self.arrived.append(name)
                self._count(-1)
            case "late":
                answer = route.fetch()
                self._count(-1)
                self.kept.append(lambda: route.fulfill(response=answer))
            case happens:
                happens(route)


def _name(request: Request) -> str:
    parts = urlsplit(request.url)
    line = f"{request.method} {parts.path}" + (f"?{parts.query}" if parts.query else "")
    return next((name for name, form in CALLS.items() if form.fullmatch(line)), line)


class Cashier:
    """Who stands at the page. Its time passes when told to, and only while no call is under way."""

    def __init__(self, context: BrowserContext, city: City, owner: str) -> None:
        self.city, self.address = city, f"{city.http.base_url}/terminal"
        merchant, _, terminal = owner.partition("/")
        self.path = f"/v1/merchants/{merchant}/terminals/{terminal}"
        self.line = Line(context)
        self.context = context
        self.wrong: list[str] = []
        self.asked: set[str] = set()
        context.on("request", lambda request: self.asked.add(urlsplit(request.url).netloc))
        self.page = self.opened()

    def opened(self) -> Page:
        page = self.context.new_page()
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("console", lambda said: "Security Policy" in said.text and self.wrong.append(said.text))
        page.clock.install()
        page.goto(self.address)
        return page

    # -- what is seen ------------------------------------------------------------------------------------------------

    def sees(self, selector: str) -> Locator:
        found = self.page.locator(selector)
        found.first.wait_for(timeout=20_000)
        return found

    def screen(self, name: str) -> Locator:
        return self.sees(f"#screen[data-screen={name}]")

    def told(self) -> str:
        """What the screen says, without what stands around it."""
        return self.page.locator("#screen").inner_text()

    def outcome(self, *, within: int = 0) -> str:
        """What a sale came to, in so many seconds of the page's time."""
        over = self.page.locator(".result.paid, .result.failed")
        for _ in range(within):
            if over.count():
                break
            self.passes(1)
        over.first.wait_for(timeout=20_000)
        return self.told()

    def passes(self, seconds: int) -> None:
        """That much of the page's time, a second at a time, and what it does in it."""
        for _ in range(seconds):
            self.page.clock.fast_forward(1_000)
            self.page.wait_for_timeout(STEP_MS)
            for _ in range(PATIENCE_MS // STEP_MS):
                if self.line.under_way <= 0:
                    break
                self.page.wait_for_timeout(STEP_MS)

    def arrives(self, name: str) -> None:
        """A call that hangs has come to the server, and was answered."""
        deadline = monotonic() + 30
        while name not in self.line.arrived:
            assert monotonic() < deadline, f"no call to {name} came"
            self.page.wait_for_timeout(STEP_MS)

    # -- what is done --------------------------------------------------------------------------------------------------

    def activate(self) -> "Cashier":
        self.page.fill("#activation", self.activation_code())
        self.press("激活")
        self.screen("take")
        return self

    def activation_code(self) -> str:
        return self.city.done(self.city.post(f"{self.path}/activation"))["activation_code"]

    def begins(self) -> None:
        """Anew, with a line that is whole, and whatever was left open finished."""
        self.line.mended()
        self.page.set_viewport_size(PHONE)
        self.page.goto(self.address)
        self.page.locator("#screen[data-screen=take], #screen[data-screen=attempt]").first.wait_for(timeout=20_000)
        if self.page.locator("#screen[data-screen=attempt]").count():
            self.outcome(within=90)
            self.page.goto(self.address)
            self.screen("take")

    def press(self, words: str) -> None:
        self.page.get_by_role("button", name=words).first.click()

    def types(self, points: int) -> None:
        for digit in str(points):
            self.page.get_by_role("button", name=digit, exact=True).click()

    def takes(self, points: int, code: str) -> "Cashier":
        """Asks for points, and types the code that the resident shows."""
        self.types(points)
        self.press("扫付款码")
        self.screen("scan")
        self.page.fill("#typed", code)
        self.page.press("#typed", "Enter")
        return self

    def goes(self, tab: str) -> None:
        self.page.locator("#tabs").get_by_role("button", name=tab).click()

    def journal(self) -> str:
        """All that the page has written down."""
        return self.page.evaluate(EVERYTHING)


EVERYTHING = """() => new Promise((resolve) => {
  const request = indexedDB.open("carbon-points-terminal");
  request.onsuccess = () => {
    const entries = request.result.transaction("entries").objectStore("entries").getAll();
    entries.onsuccess = () => { request.result.close(); resolve(JSON.stringify(entries.result)); };
  };
})"""


def code_of(city: City, resident: str) -> str:
    """What the resident's phone shows now."""
    made: Any = city.done(city.post(f"/v1/residents/{resident}/payment-codes", by="app"))
    return made["code"]
