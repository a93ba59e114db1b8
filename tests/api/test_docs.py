"""The reference page works where there is no network, and loads what was put there and nothing else."""

import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import msgspec
import pytest

import carbon_points.api.app
from tests.api.city import City

STATIC = Path(carbon_points.api.app.__file__).parent / "static"
TYPES = {".js": "javascript", ".wasm": "application/wasm", "": ""}  # a licence needs none
VENDORED = msgspec.json.decode((STATIC / "VENDOR.json").read_bytes())


class Loaded(HTMLParser):
    """Every address that a page loads or leads to."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        loading = {"src", "href", "data-url", "action", "srcset", "poster"}
        self.addresses += [value or "" for name, value in attrs if name in loading]


@pytest.fixture(params=["/docs", "/docs/reference"])
def page(city: City, request: pytest.FixtureRequest) -> str:
    answer = city.get(request.param, by="")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    return answer.text


def test_the_page_loads_nothing_from_elsewhere(city: City, page: str) -> None:
    found = Loaded()
    found.feed(page)
    assert len(found.addresses) >= 3
    for address in found.addresses:
        assert not urlsplit(address).netloc, f"the page loads {address}: put it into static/, with its hash"
        if address.startswith("data:"):
            continue
        loaded = city.get(urljoin("/docs", address), by="")
        assert loaded.status_code == 200, address
        if address.endswith(".css"):
            assert not re.search(r"url\(|@import|https?:", loaded.text)
    assert not re.search(r"https?://", page)


def test_the_page_of_terminals_is_stricter(city: City) -> None:
    """Nothing inline, nothing evaluated but WebAssembly, never from elsewhere; its scripts are always the newest."""
    answer = city.get("/terminal", by="")
    assert answer.headers["content-type"].startswith("text/html")
    (policy,) = answer.headers.get_list("content-security-policy")
    assert policy.startswith("default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; ")
    assert not re.search(r"unsafe-inline|'unsafe-eval'|\*|https?:|//|data:|blob:", policy)
    found = Loaded()
    found.feed(answer.text)
    assert len(found.addresses) >= 4
    for address in found.addresses:
        loaded = city.get(address, by="")
        assert loaded.status_code == 200, address
        assert loaded.headers["cache-control"] == "no-cache"


def test_a_phone_keeps_all_of_the_page(city: City) -> None:
    worker = city.get("/terminal/worker.js", by="")
    assert worker.headers["service-worker-allowed"] == "/terminal"
    (listed,) = re.findall(r"FILES = \[(.*?)\]", worker.text, re.DOTALL)
    there = {file.name for file in (STATIC / "terminal").iterdir()}
    assert set(re.findall(r'"([^"]+)"', listed)) == there - {"worker.js", "index.html"}


def test_a_browser_is_told_to_ask_nobody_else(city: City) -> None:
    policy = city.get("/docs", by="").headers["content-security-policy"]
    assert policy.startswith("default-src 'self' ")
    assert not re.search(r"\*|https?:|//", policy)
    page = city.get("/docs", by="").text
    assert '"telemetry":false' in page
    assert '"proxyUrl":""' in page


def test_the_description_is_there_in_both_forms_without_a_key(city: City) -> None:
    assert city.get("/docs/openapi.json", by="").json()["openapi"].startswith("3.1")
    assert city.get("/docs/openapi.yaml", by="").text.startswith("components:")


@pytest.mark.parametrize("vendored", VENDORED, ids=lambda v: v["file"])
def test_what_others_made_is_served_byte_for_byte_as_it_was_taken_in(city: City, vendored: dict[str, str]) -> None:
    answer = city.get(f"/static/{vendored['file']}", by="")
    assert answer.status_code == 200
    assert TYPES[Path(vendored["file"]).suffix] in answer.headers["content-type"]
    assert hashlib.sha256(answer.content).hexdigest() == vendored["sha256"]
    assert vendored["version"]
    assert vendored["licence"]


def test_every_served_file_is_ours_or_accounted_for() -> None:
    named = {vendored["file"] for vendored in VENDORED}
    there = {str(file.relative_to(STATIC)) for file in STATIC.rglob("*") if file.is_file()}
    there = {file for file in there if not file.startswith("terminal/")}  # our own page
    assert there == named | {"VENDOR.json", "docs.css"}


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/scalar", "/static/"])
def test_nothing_beside_the_served_files_is_served(city: City, path: str) -> None:
    assert city.get(path, by="").status_code == 404
