"""The camera reads payment codes, QR and Code 128, from real pictures, and nothing that is no payment code."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import segno
from barcode import Code128
from playwright.sync_api import Browser, Page, Playwright

from tests.api.city import City
from tests.api.terminal_page.conftest import CHROMIUM, FLAGS
from tests.api.terminal_page.till import checked

WIDTH, HEIGHT = 640, 480
CODE = checked("80" + "7" * 15)
SCAN = """async (seconds) => {
  const {scan} = await import("/static/terminal/scanner.js");
  const video = document.createElement("video");
  let found;
  const seen = new Promise((resolve) => { found = resolve; setTimeout(resolve, seconds * 1000, null); });
  try { await scan(video, found); } catch (error) { return error.name; }
  return seen;
}"""


def film(lines: list[list[bool]], scale: int, file: Path) -> None:
    """A film of one still picture, black modules on white, as YUV4MPEG2."""
    wide, high = len(lines[0]) * scale, len(lines) * scale
    left, top = (WIDTH - wide) // 2, (HEIGHT - high) // 2
    white = bytes([235]) * WIDTH
    drawn: list[bytes] = [white] * HEIGHT
    for number, line in enumerate(lines):
        inked = b"".join((b"\x10" if dark else b"\xeb") * scale for dark in line)
        row = white[:left] + inked + white[left + wide :]
        drawn[top + number * scale : top + (number + 1) * scale] = [row] * scale
    grey = bytes([128]) * (WIDTH * HEIGHT // 2)
    frame = b"FRAME\n" + b"".join(drawn) + grey
    file.write_bytes(f"YUV4MPEG2 W{WIDTH} H{HEIGHT} F10:1 Ip A1:1 C420\n".encode() + frame * 2)


def qr(text: str, file: Path) -> None:
    film([[bool(dark) for dark in line] for line in segno.make_qr(text).matrix], 8, file)


def bars(text: str, file: Path) -> None:
    film([[dark == "1" for dark in Code128(text).build()[0]]] * 60, 3, file)


@pytest.fixture
def looking(
    request: pytest.FixtureRequest, playwright: Playwright, served_city: City, tmp_path: Path
) -> Iterator[Page]:
    """The terminal's page, on a phone whose camera sees that picture."""
    draw, text = request.param
    draw(text, tmp_path / "seen.y4m")
    camera = ["--use-fake-device-for-media-stream", f"--use-file-for-fake-video-capture={tmp_path / 'seen.y4m'}"]
    with playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *camera]) as phone:
        page = phone.new_page()
        page.goto(f"{served_city.http.base_url}/terminal")
        yield page


@pytest.mark.parametrize(
    "looking",
    [pytest.param((qr, CODE), id="qr"), pytest.param((bars, CODE), id="code128", marks=pytest.mark.long)],
    indirect=True,
)
def test_the_camera_reads_a_payment_code(looking: Page) -> None:
    assert looking.evaluate(SCAN, 10) == CODE


def test_only_a_payment_code_is_one(modules: Page) -> None:
    others = [
        CODE[:-1],
        CODE + "0",
        "10" + CODE[2:],
        checked("13" + "7" * 15),
        CODE[:-1] + str((int(CODE[-1]) + 1) % 10),
    ]
    told = modules.evaluate(
        """async (texts) => {
          const {digitsOf, isPaymentCode} = await import("/static/terminal/code.js");
          return texts.filter((text) => isPaymentCode(digitsOf(text)));
        }""",
        [CODE, f" {CODE[:9]} {CODE[9:]}\n", *others, "https://example.com", ""],
    )
    assert told == [CODE, f" {CODE[:9]} {CODE[9:]}\n"]


def test_where_there_is_no_camera_it_is_said(browser: Browser, served_city: City) -> None:
    with browser.new_context(permissions=[]) as context:
        page = context.new_page()
        page.goto(f"{served_city.http.base_url}/terminal")
        assert page.evaluate(SCAN, 5) == "NotFoundError"
