"""Rankings: residents among each other, one resident and who stands around them, and counties.

Nobody is named. A row shows a place, a figure and an alias, which is another one in each ranking and leads to nobody:
not the pseudonym, by which points are held and statements read. Who is frozen or erased keeps the place and is not
shown, and where fewer than ten are ranked nobody is. An app asks for the place of a resident whose pseudonym it knows,
as in all its calls.
"""

import time
from datetime import date
from typing import Annotated

from litestar import get
from litestar.di import NamedDependency
from litestar.params import QueryParameter
from msgspec import Struct

from carbon_points.api.access import takes
from carbon_points.api.installation import LIMIT, MIN_POSITION, READ_WAIT_SECONDS, Installation, threaded
from carbon_points.api.problems import ApiError, documented
from carbon_points.api.residents import RESIDENT
from carbon_points.domain import account
from carbon_points.domain.quantity import civil_day
from carbon_points.projections import rankings
from carbon_points.projections.rankings import Board, CountyRanked, Period, Ranking, Span
from carbon_points.projections.rows import Snapshot

FEWEST = 10
LOOK_SECONDS = 0.1
_PERIOD = QueryParameter(description="Weeks begin on Monday, in China.")
_COUNTY = QueryParameter(pattern=r"^[0-9]{6}$(?!\n)", description="of those who live there: a GB/T 2260 code")
_BESIDE = QueryParameter(ge=0, le=20, description="rows on each side")


class Shown(Struct, frozen=True, omit_defaults=True):
    """Whoever reduced the same has the same place. `alias` is the resident's in this ranking only."""

    place: int
    alias: str
    reduction_mg: int
    you: bool = False


class ShownRanking(Struct, frozen=True):
    """`residents` have a place: all who reduced anything. `positions`: the log that it follows from."""

    period: str
    from_day: date
    until_day: date
    county: str | None
    residents: int
    data: list[Shown]
    positions: dict[str, int]


class ShownPlace(ShownRanking, frozen=True):
    """`place` is null where the resident reduced nothing in the period."""

    place: int | None
    reduction_mg: int


class CountyRanking(Struct, frozen=True):
    """Those who live in a county, wherever they act. Counties with fewer than ten of them are left out."""

    period: str
    from_day: date
    until_day: date
    data: list[CountyRanked]
    positions: dict[str, int]


@get(
    "/v1/rankings",
    operation_id="getRanking",
    tags=["rankings"],
    summary="Who reduced most",
    description="A place, a figure and an alias each: nobody is named. Where fewer than ten are ranked, none is shown.",
    guards=[takes("app", "auditor")],
    responses=documented("position-not-reached"),
)
@threaded
def ranking(
    installation: NamedDependency[Installation],
    period: Annotated[Period, _PERIOD] = "this-week",
    county: Annotated[str | None, _COUNTY] = None,
    limit: Annotated[int, LIMIT] = 50,
    min_position: Annotated[str | None, MIN_POSITION] = None,
) -> ShownRanking:
    asked = _span(installation, period)
    _reach(installation, min_position)
    with installation.read_model.snapshot() as at:
        stand = _stand(at)
        board = Board(asked.period, county)
        found = rankings.best(at, installation.cache, stand, board, limit)
        shown = _shown(installation, at, board, found)
    return ShownRanking(asked.period, asked.from_day, asked.until_day, county, found.residents, shown, _vector(stand))


@get(
    "/v1/residents/{resident:str}/ranking",
    operation_id="getResidentRanking",
    tags=["rankings"],
    summary="A resident's place, and who stands around it",
    guards=[takes("app", "auditor")],
    responses=documented("account-unknown", "county-unknown", "position-not-reached"),
)
@threaded
def place_of(
    resident: Annotated[str, RESIDENT],
    installation: NamedDependency[Installation],
    period: Annotated[Period, _PERIOD] = "this-week",
    within: Annotated[
        rankings.Within, QueryParameter(description="the city, or the county in which the resident lives")
    ] = "city",
    beside: Annotated[int, _BESIDE] = 3,
    min_position: Annotated[str | None, MIN_POSITION] = None,
) -> ShownPlace:
    asked = _span(installation, period)
    known = installation.journal.state(resident)
    if not known.opened:
        raise account.AccountUnknown(resident=resident)
    if within == "county" and known.county is None:
        raise ApiError("county-unknown")
    _reach(installation, min_position)
    with installation.read_model.snapshot() as at:
        stand = _stand(at)
        board = Board(asked.period, known.county if within == "county" else None)
        found = rankings.around(at, installation.cache, stand, board, resident, beside)
        shown = _shown(installation, at, board, found, you=resident)
    own = next((row for row in found.rows if row.resident == resident), None)
    return ShownPlace(
        period=asked.period,
        from_day=asked.from_day,
        until_day=asked.until_day,
        county=board.county,
        residents=found.residents,
        data=shown,
        positions=_vector(stand),
        place=own.place if own else None,
        reduction_mg=own.reduction_mg if own else 0,
    )


@get(
    "/v1/rankings/counties",
    operation_id="getCountyRanking",
    tags=["rankings"],
    summary="Counties against each other",
    guards=[takes("app", "auditor", "source", "buyer", "terminal")],
    responses=documented("position-not-reached"),
)
@threaded
def counties(
    installation: NamedDependency[Installation],
    period: Annotated[Period, _PERIOD] = "this-week",
    min_position: Annotated[str | None, MIN_POSITION] = None,
) -> CountyRanking:
    asked = _span(installation, period)
    _reach(installation, min_position)
    with installation.read_model.snapshot() as at:
        found = rankings.counties(at, asked.period, fewest=FEWEST)
        return CountyRanking(asked.period, asked.from_day, asked.until_day, found, _vector(_stand(at)))


def _span(installation: Installation, period: Period) -> Span:
    return rankings.span(period, civil_day(installation.clock()))


def _reach(installation: Installation, min_position: str | None) -> None:
    """As `Installation.reach`, for the standings. Raises ApiError."""
    if min_position is None:
        return
    installation.reach(min_position)
    partition, _, position = min_position.partition(":")
    deadline = time.monotonic() + READ_WAIT_SECONDS
    while installation.read_model.read(rankings.positions).get(int(partition), 0) < int(position):
        if time.monotonic() > deadline:
            raise ApiError("position-not-reached", min_position)
        time.sleep(LOOK_SECONDS)


def _stand(at: Snapshot) -> dict[int, int]:
    """What the standings follow from. Raises ApiError where they are being made anew."""
    if rankings.making(at):
        raise ApiError("position-not-reached", "the rankings are being made")
    return rankings.positions(at)


def _vector(stand: dict[int, int]) -> dict[str, int]:
    return {str(partition): position for partition, position in sorted(stand.items())}


def _shown(
    installation: Installation, at: Snapshot, board: Board, found: Ranking, *, you: str | None = None
) -> list[Shown]:
    """What others may see of it, and a resident of themselves."""
    residents = [row.resident for row in found.rows]
    hidden = set(residents) - installation.directory.known_still(residents) | rankings.frozen(at, residents)
    if found.residents < FEWEST:
        hidden = set(residents)
    alias, within = installation.directory.alias, f"{board.period} {board.county}"
    return [
        Shown(row.place, alias(row.resident, within), row.reduction_mg, row.resident == you)
        for row in found.rows
        if row.resident == you or row.resident not in hidden
    ]


handlers = [ranking, place_of, counties]
