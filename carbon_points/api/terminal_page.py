"""The web terminal: a page that turns any phone into a merchant's terminal. Its scripts lie in static/terminal.

It speaks to this API as any terminal does and has no other door. The page is public; who may redeem is decided by
the key that its browser makes when it is activated.
"""

from pathlib import Path

from litestar import Response, get
from litestar.datastructures import CacheControlHeader
from litestar.static_files import create_static_files_router  # pyright: ignore[reportUnknownVariableType]  # partly typed

_FOLDER = Path(__file__).parent / "static" / "terminal"
_HEADERS = {
    # Nothing from elsewhere, nothing inline, nothing evaluated but the scanner's WebAssembly, no HTML made of text.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; worker-src 'self'; manifest-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types page"
    ),
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


@get("/terminal", include_in_schema=False, sync_to_thread=False)
def terminal_page() -> Response[bytes]:
    return Response((_FOLDER / "index.html").read_bytes(), media_type="text/html; charset=utf-8", headers=_HEADERS)


@get("/terminal/worker.js", include_in_schema=False, sync_to_thread=False)
def terminal_worker() -> Response[bytes]:
    """Beside the page, and not with its scripts: a worker serves what lies below it."""
    headers = {**_HEADERS, "Service-Worker-Allowed": "/terminal"}
    return Response((_FOLDER / "worker.js").read_bytes(), media_type="text/javascript", headers=headers)


# Asked for anew each time: scripts of two releases must never meet in one page.
terminal_scripts = create_static_files_router(
    "/static/terminal", [_FOLDER], include_in_schema=False, cache_control=CacheControlHeader(no_cache=True)
)
