"""What the page looks like to whoever stands before it: readable, whole on a small phone, in Chinese and in English."""

import re
from typing import Any

import msgspec
import pytest
from playwright.sync_api import Page, ViewportSize

from tests.api.city import City
from tests.api.terminal_page.till import Cashier, code_of

SMALL: ViewportSize = {"width": 360, "height": 640}
CONTRAST = """() => {
  const channel = (value) => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r / 255) + 0.7152 * channel(g / 255) + 0.0722 * channel(b / 255);
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const ground = (element) => {
    const over = [];
    for (let at = element; at; at = at.parentElement) over.push(parts(getComputedStyle(at).backgroundColor));
    let under = [255, 255, 255];
    for (const [r, g, b, a = 1] of over.reverse()) under = [r, g, b].map((c, i) => c * a + under[i] * (1 - a));
    return under;
  };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode, element = text.parentElement;
    if (!text.data.trim() || !element.checkVisibility() || element.closest("noscript")) continue;
    const [a, b] = [light(parts(getComputedStyle(element).color)), light(ground(element))].sort((x, y) => y - x);
    found.push([text.data.trim(), (a + 0.05) / (b + 0.05)]);
  }
  return found;
}"""
CUT_OFF = """() => [...document.querySelectorAll("#screen *, #bar *, #tabs *")].filter((element) => {
  const {left, right} = element.getBoundingClientRect();
  return element.checkVisibility() && (left < -1 || right > innerWidth + 1);
}).map((element) => element.outerHTML.slice(0, 80))"""


def whole(cashier: Cashier) -> None:
    """Every word can be read (WCAG AA), nothing is cut off, and the main button is in sight."""
    page = cashier.page
    told = page.evaluate(CONTRAST)
    assert len(told) >= 2
    assert not [(text, round(ratio, 2)) for text, ratio in told if ratio < 4.5]
    assert not page.evaluate(CUT_OFF)
    main = page.locator("#screen .main")
    if main.count():
        box: Any = main.first.bounding_box()
        assert box["y"] + box["height"] <= SMALL["height"]
        assert box["height"] >= 60


def test_every_screen_is_whole_on_a_small_phone(cashier: Cashier, served_city: City) -> None:
    cashier.page.set_viewport_size(SMALL)
    resident = served_city.resident(points=500)
    whole(cashier)
    cashier.types(1234567)
    whole(cashier)
    cashier.press("扫付款码")
    cashier.screen("scan")
    cashier.page.fill("#typed", "1")
    cashier.press("确定")
    whole(cashier)
    cashier.page.fill("#typed", code_of(served_city, resident))
    cashier.press("确定")
    assert "积分不足" in cashier.outcome()
    whole(cashier)
    cashier.press("重新收")
    cashier.press("清空")
    cashier.takes(120, code_of(served_city, resident)).outcome()
    whole(cashier)
    cashier.press("下一笔")
    for tab in ("商品", "账单"):
        cashier.goes(tab)
        whole(cashier)
    cashier.page.locator(".rows button").first.click()
    cashier.screen("entry")
    whole(cashier)
    cashier.press("退部分积分")
    whole(cashier)
    cashier.line.always |= {"refund": "before"}
    cashier.types(20)
    cashier.press("退积分")
    cashier.sees(".result.pending")
    whole(cashier)
    cashier.line.always.clear()
    cashier.outcome(within=10)


def test_it_is_chinese_until_it_is_told_otherwise(cashier: Cashier) -> None:
    html = cashier.page.locator("html")
    assert html.get_attribute("lang") == "zh-CN"
    cashier.press("EN")
    assert html.get_attribute("lang") == "en"
    cashier.sees("text=Scan code")
    cashier.page.reload()
    cashier.sees("text=Scan code")
    assert not re.search(r"[一-鿿]", cashier.told())
    cashier.press("中文")


def test_every_sentence_is_there_in_both_languages(modules: Page) -> None:
    told = modules.evaluate(
        """async () => {
          const words = await import("/static/terminal/words.js");
          const names = Object.keys(words.WORDS), codes = Object.keys(words.PROBLEMS);
          const both = names.map((name) => words.WORDS[name]).concat(codes.flatMap((code) => words.PROBLEMS[code]));
          return {codes, lacking: both.filter((pair) => pair.length !== 2 || !pair[0] || !pair[1])};
        }"""
    )
    assert not told["lacking"]


# What a terminal's calls may be refused with, and only a mistake of the page's own would bring about.
OURS = {
    "idempotency-key-missing",
    "missing-field",
    "not-json",
    "parameter-invalid",
    "too-large",
    "unknown-field",
    "public-key-invalid",
    "proof-invalid",
}
CALLED = (
    "createRedemption",
    "captureRedemption",
    "refundRedemption",
    "reverseRedemption",
    "activateTerminal",
    "rotateTerminalKey",
    "closeBatch",
)


def test_every_problem_that_a_cashier_may_meet_has_a_sentence(modules: Page, served_city: City) -> None:
    known = set(modules.evaluate("""async () => Object.keys((await import("/static/terminal/words.js")).PROBLEMS)"""))
    described = msgspec.json.decode(served_city.get("/docs/openapi.json", by="").content)
    told: set[str] = set()
    for item in described["paths"].values():
        for operation in item.values():
            if operation["operationId"] in CALLED:
                for status, answer in operation["responses"].items():
                    told |= set(answer["description"].split(", ")) if "400" <= status < "500" else set()
    assert len(told) > 15
    told -= {code for code in told if code.startswith(("allowance-", "offline-"))}  # the page takes no allowances
    assert told - OURS - known == set()


@pytest.mark.parametrize("lacking", ["secure-context", "ed25519"])
def test_a_browser_that_cannot_be_a_terminal_is_told_why(phone: Cashier, lacking: str) -> None:
    without = {
        "secure-context": 'Object.defineProperty(window, "isSecureContext", {value: false})',
        "ed25519": 'crypto.subtle.generateKey = () => Promise.reject(new DOMException("", "NotSupportedError"))',
    }
    phone.page.add_init_script(without[lacking])
    phone.page.reload()
    phone.sees("text=此浏览器不能作为终端")
    assert ("https://" in phone.told()) == (lacking == "secure-context")
    assert ("Chrome 137" in phone.told()) == (lacking == "ed25519")
