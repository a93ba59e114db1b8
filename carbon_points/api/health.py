"""Is it up, is it ready, what is it: for load balancers and the operator at night. Public, and quick."""

from litestar import Response, get
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from msgspec import Struct

from carbon_points import __version__
from carbon_points.api.installation import Installation, threaded
from carbon_points.journal.journal import FORMAT


class Health(Struct, frozen=True):
    status: str


class Readiness(Struct, frozen=True):
    """`lag`: entries that the read models have still to take, by partition."""

    status: str
    lag: dict[str, int]
    problems: list[str]


class Version(Struct, frozen=True):
    """`livemode`: false of a sandbox, in which nothing is real."""

    version: str
    log_format: str
    partitions: int
    livemode: bool


@get(
    "/healthz",
    operation_id="getHealth",
    tags=["health"],
    summary="The process answers",
    sync_to_thread=False,
)
def healthz() -> Health:
    return Health("ok")


@get(
    "/readyz",
    operation_id="getReadiness",
    tags=["health"],
    summary="The clock is believed, the databases answer, and how far the read models are",
    responses={503: ResponseSpec(Readiness, description="`problems` says which do not", generate_examples=False)},
)
@threaded
def readyz(installation: NamedDependency[Installation]) -> Response[Readiness]:
    wrong: list[str] = []
    lag: dict[str, int] = {}
    for name, check in (
        ("clock", installation.clock),
        ("journal", installation.journal.heads),
        ("directory", installation.directory.ready),
        ("read models", lambda: lag.update({str(p): n for p, n in installation.follower.lag().items()})),
    ):
        try:
            check()
        except Exception as error:  # noqa: BLE001  # whatever it is, we are not ready, and say which part
            wrong.append(f"{name}: {type(error).__name__}")
    return Response(Readiness("unready" if wrong else "ready", lag, wrong), status_code=503 if wrong else 200)


@get(
    "/version",
    operation_id="getVersion",
    tags=["health"],
    summary="What runs here",
    sync_to_thread=False,
)
def version(installation: NamedDependency[Installation]) -> Version:
    return Version(__version__, FORMAT, len(installation.journal.partitions), not installation.settings.sandbox)


handlers = [healthz, readyz, version]
