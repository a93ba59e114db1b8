"""The slow way to know: every event of a journal with its place, read again for each question. And one made by hand."""

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import TypeVar

from carbon_points.domain.account import ActionCredited
from carbon_points.domain.event import Event
from carbon_points.journal import codec
from carbon_points.journal.entry import Entry
from carbon_points.journal.journal import Journal
from tests.audit.scenario import china

E = TypeVar("E", bound=Event)
NOW = china("2024-03-01T09:00")


def events(journal: Journal) -> Iterator[tuple[int, int, Event]]:
    """Partition, position and event."""
    for partition in journal.heads():
        for entry in journal.entries(partition):
            yield partition, entry.position, codec.decode(entry.type, entry.state)


def of(journal: Journal, kind: type[E]) -> list[E]:
    return [event for _, _, event in events(journal) if isinstance(event, kind)]


def residents(journal: Journal) -> list[str]:
    """Whoever has an account: an order that never came names nobody."""
    return sorted({resident for _, _, event in events(journal) if (resident := getattr(event, "resident", None))})


def ride(partition: int, position: int, at: datetime = NOW, record_id: str = "") -> Entry:
    """A bus ride of some resident of that partition, as the journal would hand it over."""
    event = ActionCredited(
        recorded_at=NOW,
        resident=f"res_{partition}",
        source="szt",
        record_id=record_id or f"{partition}:{position}",
        behaviour="bus",
        quantity=Decimal(1),
        unit="trip",
        occurred_at=at,
        methodology="bus",
        version="2024-1",
        digest="",
        counted=Decimal(1),
        reduction_mg=80_000,
        points=10,
        expires_on=NOW.date(),
        consent_id="c1",
    )
    return Entry(partition, position, event.resident, position, *codec.encode(event), b"")
