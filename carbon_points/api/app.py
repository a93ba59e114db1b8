"""The composition root: one installation, its handlers, its description."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from litestar import Litestar, Request
from litestar.datastructures import State
from litestar.di import Provide
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, ScalarRenderPlugin, YamlRenderPlugin
from litestar.openapi.spec import Components, License, Reference, SecurityScheme, Server, Tag
from litestar.static_files import create_static_files_router  # pyright: ignore[reportUnknownVariableType]  # partly typed

from carbon_points import __version__
from carbon_points.api import (
    actions,
    allowances,
    batches,
    city,
    fund,
    health,
    lots,
    merchants,
    offers,
    payers,
    rankings,
    redemptions,
    residents,
    sandbox,
    settlements,
    sources,
    terminals,
    webhooks,
)
from carbon_points.api.access import KnownParameters, security_of, stamped
from carbon_points.api.installation import BODY_MOST, Installation
from carbon_points.api.problems import NOT_DECODED, ApiError, answer, of_validation
from carbon_points.api.settling import Nightly
from carbon_points.api.signatures import Signatures
from carbon_points.api.terminal_page import terminal_page, terminal_scripts, terminal_worker

_STATIC = Path(__file__).parent / "static"
_DESCRIPTION = """\
The loop of personal carbon inclusion (碳普惠): **actions** become **reductions** and **points**, points are
**redeemed** at merchants, reductions are **pooled**, issued as **lots**, sold and **retired**, and the money pays
the merchants.

* Every call that changes something may be sent again: an action is known by its `source` and `record_id`, other
  calls by their `Idempotency-Key`. The same again answers 200 with `Idempotency-Replayed: true`; other content
  under the same identity is refused with `identity-reused`, naming the fields. Identities are kept for ever.
* Answers to writes are decided and durable. They carry `Carbon-Position`; a list that is given it as
  `min_position` waits until it has seen that write.
* Errors are RFC 9457 problems with a stable `code`; `retryable` says whether and how to send again.
* Quantities are decimals in quotes, reductions milligrams of CO2e, money fen, times RFC 3339 with an offset.
"""


class StrictRequest(Request[Any, Any, Any]):
    """Bodies are read by the handler's own type, strictly: no number for a text, no text for a number."""

    async def json(self) -> Any:
        field = self.route_handler.parsed_data_field
        if field is None:
            return await super().json()
        if self.headers.get("Content-Encoding", "identity") != "identity":
            raise ApiError("media-type-unsupported", "only a batch of actions may be packed")
        try:
            return msgspec.json.decode(await self.body(), type=field.annotation)
        except NOT_DECODED as error:
            raise of_validation(error) from None


def create_app(installation: Installation) -> Litestar:
    """The API over an installation; starting it starts the read models' follower, stopping it closes both."""

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncGenerator[None]:
        installation.start()
        nightly = Nightly(installation)
        nightly.start()
        try:
            yield
        finally:
            nightly.stop()
            installation.close()

    # Terminals do not move their clocks because a sandbox does.
    real = installation.sandbox.clock.real if installation.sandbox else None
    signatures = Signatures(installation.directory, installation.clock, installation.settings.public_url, real=real)
    features = (
        actions,
        residents,
        redemptions,
        sources,
        merchants,
        terminals,
        offers,
        settlements,
        batches,
        lots,
        fund,
        city,
        rankings,
        health,
        payers,
        webhooks,
        allowances,
        *((sandbox,) if installation.sandbox else ()),
    )
    handlers = [handler for feature in features for handler in feature.handlers]
    for handler in handlers:
        handler.security = security_of(handler)
    app = Litestar(
        route_handlers=[
            *handlers,
            terminal_page,
            terminal_scripts,
            terminal_worker,
            create_static_files_router("/static", [_STATIC], include_in_schema=False),
        ],
        dependencies={"installation": Provide(lambda: installation, sync_to_thread=False)},
        before_request=KnownParameters(),
        exception_handlers={Exception: answer},
        lifespan=[lifespan],
        state=State({"installation": installation, "signatures": signatures, "guesses": terminals.Guesses()}),
        request_class=StrictRequest,
        request_max_body_size=BODY_MOST,
        openapi_config=_description(),
        debug=False,
    )
    # Around the routing: an address that is not there is answered, too.
    app.asgi_handler = stamped(app.asgi_handler)
    return app


_SECURITY: dict[str, SecurityScheme | Reference] = {
    "key": SecurityScheme(type="http", scheme="bearer"),
    "signature": SecurityScheme(
        type="apiKey",
        name="Signature",
        security_scheme_in="header",
        description="A terminal's signature by RFC 9421, with Signature-Input and Content-Digest, instead of a key.",
    ),
}

# The page asks nobody but this server: no fonts, no telemetry, no foreign proxy that a key would pass through.
_REFERENCE = {
    "withDefaultFonts": False,
    "telemetry": False,
    "proxyUrl": "",
    "agent": {"disabled": True},
    "mcp": {"disabled": True},
    "hideClientButton": True,
    "showDeveloperTools": "never",
}


def _description() -> OpenAPIConfig:
    return OpenAPIConfig(
        title="carbon_points",
        version=__version__,
        description=_DESCRIPTION,
        license=License(name="Apache-2.0", identifier="Apache-2.0"),
        servers=[Server(url="/")],
        path="/docs",
        components=Components(security_schemes=_SECURITY),
        tags=[Tag(name=n) for n in _TAGS],
        webhooks=webhooks.sent,
        render_plugins=[
            ScalarRenderPlugin(
                path=["/", "/reference"],
                js_url="/static/scalar/standalone.js",
                css_url="/static/docs.css",
                options=_REFERENCE,
                favicon='<link rel="icon" href="data:,">',
            ),
            JsonRenderPlugin(path="/openapi.json"),
            YamlRenderPlugin(path="/openapi.yaml"),
        ],
    )


_TAGS = (
    "actions",
    "residents",
    "redemptions",
    "sources",
    "methodologies",
    "merchants",
    "offers",
    "terminals",
    "batches",
    "lots",
    "fund",
    "city",
    "rankings",
    "webhooks",
    "health",
)
