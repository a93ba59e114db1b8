"""Sources and methodologies: who may report, and by which tables reports are counted."""

from typing import Annotated

from litestar import Response, get, patch, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import PathParameter
from msgspec import Meta, Struct

from carbon_points.api.access import takes
from carbon_points.api.installation import PLAIN, Installation, example, receipt, threaded
from carbon_points.api.problems import ApiError, documented
from carbon_points.domain.event import Id
from carbon_points.domain.methodology import Published, PublishMethodology, Table, parse
from carbon_points.domain.source import ChangeSource, RegisterSource, Source

_TABLE = """\
id = "tidy_desk"
version = "2026-1"
title = { en = "Tidy desk", zh = "桌面整洁" }
adopted = { from = 2026-01-01 }
formula = "quantity_times_factor"
quantity = { unit = "day", least = "1", most = "1" }
factors.reduction = { value = "1.5", unit = "gCO2e/day", source = "Who says so, where, and when" }
rounding = { to = "1 mg", how = "half-even" }
points.rule = { per = "action", points = 1 }
points.expire = { months = 24, at = "month-end" }
"""


class SourceChange(Struct, frozen=True, forbid_unknown_fields=True):
    """How the source stands from now on, whole."""

    behaviours: tuple[Id, ...]
    opens_accounts: bool
    lateness_days: Annotated[int, Meta(ge=1, le=3650)] | None
    suspended: bool


class NewMethodology(Struct, frozen=True, forbid_unknown_fields=True):
    """`table`: the whole TOML text, as it shall stand in the log for ever."""

    table: Annotated[str, Meta(min_length=1, max_length=16_384)]


class MethodologyShown(Struct, frozen=True):
    """A published version. `digest` commits to the text that the log holds."""

    digest: str
    published_at: str
    table: Table


@post(
    "/v1/sources",
    operation_id="registerSource",
    tags=["sources"],
    summary="Register a source",
    guards=[takes()],
    status_code=201,
    responses={
        200: ResponseSpec(Source, description="The earlier answer again", generate_examples=False),
        **documented("identity-reused", body=True),
    },
)
@threaded
def register_source(
    data: Annotated[
        RegisterSource, example(source="huzhou-bus", name="湖州公交", behaviours=["bus"], opens_accounts=True)
    ],
    installation: NamedDependency[Installation],
) -> Response[Source]:
    outcome = installation.write_now(data)
    installation.journal.rules_changed()
    return receipt(installation.journal.rules().sources.by_id[data.source], outcome)


@patch(
    "/v1/sources/{source:str}",
    operation_id="changeSource",
    tags=["sources"],
    summary="Change what a source may do",
    guards=[takes()],
    status_code=200,
    responses=documented("source-unknown", "nothing-to-change", body=True),
)
@threaded
def change_source(
    source: Annotated[str, PathParameter(max_length=64, pattern=PLAIN)],
    data: Annotated[
        SourceChange, example(behaviours=["bus", "bus_km"], opens_accounts=True, lateness_days=30, suspended=False)
    ],
    installation: NamedDependency[Installation],
) -> Response[Source]:
    command = ChangeSource(
        source=source,
        behaviours=data.behaviours,
        opens_accounts=data.opens_accounts,
        lateness_days=data.lateness_days,
        suspended=data.suspended,
    )
    outcome = installation.write_now(command)
    installation.journal.rules_changed()
    return receipt(installation.journal.rules().sources.by_id[source], outcome, created=200)


@get(
    "/v1/sources",
    operation_id="listSources",
    tags=["sources"],
    summary="All sources",
    guards=[takes("auditor", "app")],
    responses=documented(),
)
@threaded
def list_sources(installation: NamedDependency[Installation]) -> list[Source]:
    return [source for _, source in sorted(installation.journal.rules().sources.by_id.items())]


@post(
    "/v1/methodologies",
    operation_id="publishMethodology",
    tags=["methodologies"],
    summary="Publish a version of a methodology",
    description="For good: a correction is a later version. The same text again changes nothing.",
    guards=[takes()],
    status_code=201,
    responses={
        200: ResponseSpec(MethodologyShown, description="It was published before", generate_examples=False),
        **documented(
            "methodology-invalid",
            "methodology-altered",
            "version-not-later",
            "quantity-invalid",
            "quantity-negative",
            "quantity-too-long",
            body=True,
        ),
    },
)
@threaded
def publish_methodology(
    data: Annotated[NewMethodology, example(table=_TABLE)], installation: NamedDependency[Installation]
) -> Response[MethodologyShown]:
    table = parse(data.table)
    command = PublishMethodology(methodology=table.id, version=table.version, table=data.table)
    outcome = installation.write_now(command)
    installation.journal.rules_changed()
    published = installation.journal.rules().methodologies.exact(table.id, table.version)
    assert published is not None, "what was just published is there"
    return receipt(_shown(published), outcome)


@get(
    "/v1/methodologies",
    operation_id="listMethodologies",
    tags=["methodologies"],
    summary="All published tables",
    description="Public. Every factor with its issuer and source.",
    responses=documented(public=True),
)
@threaded
def list_methodologies(installation: NamedDependency[Installation]) -> list[MethodologyShown]:
    tables = installation.journal.rules().methodologies.tables
    return [_shown(published) for _, versions in sorted(tables.items()) for published in versions]


@get(
    "/v1/methodologies/{methodology:str}",
    operation_id="getMethodology",
    tags=["methodologies"],
    summary="All versions of one methodology",
    description="Public.",
    responses=documented("methodology-unknown", public=True),
)
@threaded
def get_methodology(
    methodology: Annotated[str, PathParameter(max_length=64, pattern=PLAIN)],
    installation: NamedDependency[Installation],
) -> list[MethodologyShown]:
    versions = installation.journal.rules().methodologies.tables.get(methodology)
    if not versions:
        raise ApiError("methodology-unknown", methodology)
    return [_shown(published) for published in versions]


def _shown(published: Published) -> MethodologyShown:
    return MethodologyShown(published.digest, published.recorded_at.isoformat(), published.table)


handlers = [
    register_source,
    change_source,
    list_sources,
    publish_methodology,
    list_methodologies,
    get_methodology,
]
