"""The city's totals, by day, behaviour and county: figures about everybody and nobody."""

from collections.abc import Callable
from datetime import date
from typing import Annotated, Any, TypeVar

import msgspec
from litestar import MediaType, Response, get
from litestar.di import NamedDependency
from litestar.params import FromQuery

from carbon_points.api.access import takes
from carbon_points.api.installation import MIN_POSITION, Installation, threaded
from carbon_points.api.problems import documented
from carbon_points.directory import Role
from carbon_points.domain.quantity import civil_day
from carbon_points.projections import city as read_city
from carbon_points.projections.rows import Snapshot

A = TypeVar("A")
_ROLES: tuple[Role, ...] = ("app", "auditor", "source", "buyer", "terminal")


@get(
    "/v1/city/now",
    operation_id="getCityNow",
    tags=["city"],
    summary="Counters of today and of all days",
    description="Reversed actions are taken back, on the day that they counted on. `residents`: accounts opened.",
    guards=[takes(*_ROLES)],
    responses=documented("position-not-reached"),
)
@threaded
def now(
    installation: NamedDependency[Installation], min_position: Annotated[str | None, MIN_POSITION] = None
) -> Response[read_city.Counters]:
    return _answered(installation, "now", min_position, read_city.counters, civil_day(installation.clock()))


@get(
    "/v1/city/days",
    operation_id="getCityDays",
    tags=["city"],
    summary="Totals by day",
    guards=[takes(*_ROLES)],
    responses=documented("position-not-reached"),
)
@threaded
def by_day(
    installation: NamedDependency[Installation],
    from_day: FromQuery[date | None] = None,
    until_day: FromQuery[date | None] = None,
    min_position: Annotated[str | None, MIN_POSITION] = None,
) -> Response[list[read_city.DayTotal]]:
    return _answered(installation, "days", min_position, read_city.by_day, read_city.Within(from_day, until_day))


@get(
    "/v1/city/behaviours",
    operation_id="getCityBehaviours",
    tags=["city"],
    summary="Totals by behaviour",
    guards=[takes(*_ROLES)],
    responses=documented("position-not-reached"),
)
@threaded
def by_behaviour(
    installation: NamedDependency[Installation],
    from_day: FromQuery[date | None] = None,
    until_day: FromQuery[date | None] = None,
    min_position: Annotated[str | None, MIN_POSITION] = None,
) -> Response[list[read_city.BehaviourTotal]]:
    return _answered(
        installation, "behaviours", min_position, read_city.by_behaviour, read_city.Within(from_day, until_day)
    )


@get(
    "/v1/city/counties",
    operation_id="getCityCounties",
    tags=["city"],
    summary="Totals by county",
    guards=[takes(*_ROLES)],
    responses=documented("position-not-reached"),
)
@threaded
def by_county(
    installation: NamedDependency[Installation],
    from_day: FromQuery[date | None] = None,
    until_day: FromQuery[date | None] = None,
    min_position: Annotated[str | None, MIN_POSITION] = None,
) -> Response[list[read_city.CountyTotal]]:
    return _answered(installation, "counties", min_position, read_city.by_county, read_city.Within(from_day, until_day))


def _answered(
    installation: Installation, path: str, min_position: str | None, read: Callable[[Snapshot, A], object], asked: A
) -> Response[Any]:
    """The totals, from the cache where it has them for these positions of the log: both say the same."""
    installation.reach(min_position)
    query, positions = repr(asked), installation.read_model.positions()
    body = installation.cache.get(path, query, positions)
    if body is None:
        body = msgspec.json.encode(installation.read_model.read(read, asked))
        if installation.read_model.positions() == positions:  # nothing came between: it is what they say
            installation.cache.put(path, query, positions, body)
    return Response(body, media_type=MediaType.JSON)


handlers = [now, by_day, by_behaviour, by_county]
