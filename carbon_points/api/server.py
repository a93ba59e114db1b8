"""How the API is served: uvicorn, with the short way for reports."""

import uvicorn
from litestar import Litestar

from carbon_points.api.express import Express

KEEP_ALIVE_SECONDS = 75  # longer than a load balancer's minute: who is quiet for it closes first, and loses no call


def configured(app: Litestar, *, host: str, port: int, log: str) -> uvicorn.Config:
    sandbox: bool = app.state.installation.settings.sandbox
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level=log,
        loop="uvloop",
        http=Express,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=30,
        server_header=False,
        headers=[("Carbon-Mode", "test")] if sandbox else [],  # of every answer, whoever gives it
        proxy_headers=False,  # nobody's address decides anything here
    )
