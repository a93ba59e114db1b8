"""Residents: one row each, with what stands on the account as the log says it.

Points are those of all grants not yet written off: a grant or a hold whose end has passed counts until its lapse is in
the log. The domain's state, asked at an instant, already leaves it out.
"""

from datetime import datetime
from typing import TypeVar

from msgspec import Struct
from sqlalchemy import BigInteger, Boolean, Table, select

from carbon_points.domain.account import AccountFrozen, AccountOpened, ActionReversed
from carbon_points.projections.rows import Batch, Made, Moment, Snapshot, added, fields, key, latest, metadata
from carbon_points.projections.statements import points_moved

K = TypeVar("K", bound=Struct)

RESIDENTS = Table(
    "residents",
    metadata,
    key("resident"),
    latest("partition", BigInteger),
    latest("opened_at", Moment),
    latest("county"),
    latest("frozen", Boolean),
    added("actions"),
    added("reduction_mg"),
    added("debt_mg"),
    added("points"),
    added("held_points"),
    added("debt_points"),
    sqlite_with_rowid=False,
)


class Resident(Struct, frozen=True):
    """`actions` are credited and not reversed. `reduction_mg` is all they ever earned, pooled or not."""

    resident: str
    opened_at: datetime
    county: str | None
    frozen: bool
    actions: int
    reduction_mg: int
    debt_mg: int
    points: int
    held_points: int
    debt_points: int


class Balance(Struct, frozen=True):
    """What a replay of the log must find too."""

    resident: str
    reduction_mg: int
    debt_mg: int
    points: int
    held_points: int
    debt_points: int


def fold(batch: Batch, made: Made) -> None:
    rows = made[RESIDENTS]
    for _, opened in batch.of(AccountOpened):
        rows.tell((opened.resident,), (batch.partition, opened.recorded_at, opened.county, False))
    for _, changed in batch.of(AccountFrozen):
        rows.put(resident=changed.resident, frozen=changed.frozen)
    rows.add(
        ((e.resident,), (1, e.reduction_mg, -e.debt_mg, e.points - e.debt_points, 0, -e.debt_points))
        for _, e, _ in batch.credited
    )
    for _, reversed_ in batch.of(ActionReversed):
        mg, debt_mg = -reversed_.reduction_mg, reversed_.debt_mg
        rows.put(resident=reversed_.resident, actions=-1, reduction_mg=mg, debt_mg=debt_mg)
    for event, moves in batch.moved:
        resident: str | None = getattr(event, "resident", None)
        if resident is not None:
            rows.put(resident=resident, **points_moved(resident, moves))


# -- reading ---------------------------------------------------------------------------------------------------------


def residents(at: Snapshot, *, after: str | None = None, limit: int = 50) -> list[Resident]:
    """Residents in the order of their ids, from after one of them."""
    return _read(at, Resident, after, limit)


def balances(at: Snapshot, *, after: str | None = None, limit: int = 1_000) -> list[Balance]:
    """The figures alone, in the same order."""
    return _read(at, Balance, after, limit)


def resident(at: Snapshot, resident_id: str) -> Resident | None:
    query = select(*fields(RESIDENTS, Resident))
    return next(iter(at.structs(Resident, query.where(RESIDENTS.c.resident == resident_id))), None)


def _read(at: Snapshot, kind: type[K], after: str | None, limit: int) -> list[K]:
    query = select(*fields(RESIDENTS, kind))
    if after is not None:
        query = query.where(RESIDENTS.c.resident > after)
    return at.structs(kind, query.order_by(RESIDENTS.c.resident).limit(limit))
