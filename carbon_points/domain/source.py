"""Sources: who may report which behaviours.

Invariant: an action in the log was reported by a source that was registered for its behaviour at that moment.
"""

from datetime import datetime
from typing import Annotated, ClassVar

from msgspec import Meta, Struct

from carbon_points.domain.event import Command, County, Event, Id, Text
from carbon_points.domain.refusal import Refusal


class RegisterSource(Command):
    """`opens_accounts`: its reports open the accounts of residents who are new, by the consent it holds itself.

    `lateness_days`: how long after the act a report still counts (None: for ever). `county`: a GB/T 2260 code.
    """

    source: Id
    name: Text
    behaviours: tuple[Id, ...]
    opens_accounts: bool = False
    lateness_days: Annotated[int, Meta(ge=1, le=3650)] | None = None
    county: County | None = None

    def claim(self) -> tuple[str, ...]:
        return ("source", self.source)


class ChangeSource(Command):
    """What the source may do from now on. Saying the present state again changes nothing."""

    source: Id
    behaviours: tuple[Id, ...]
    opens_accounts: bool = False
    lateness_days: Annotated[int, Meta(ge=1, le=3650)] | None = None
    suspended: bool = False


class SourceRegistered(Event):
    type_name: ClassVar[str] = "source-registered/1"
    source: str
    name: str
    behaviours: tuple[str, ...]
    opens_accounts: bool = False
    lateness_days: int | None = None
    county: str | None = None


class SourceChanged(Event):
    type_name: ClassVar[str] = "source-changed/1"
    source: str
    behaviours: tuple[str, ...]
    opens_accounts: bool = False
    lateness_days: int | None = None
    suspended: bool = False


class Source(Struct):
    id: str
    name: str
    behaviours: tuple[str, ...]
    opens_accounts: bool
    lateness_days: int | None
    county: str | None
    suspended: bool = False


class Sources(Struct):
    by_id: dict[str, Source] = {}

    def reporting(self, source_id: str, behaviour: str) -> Source:
        """The source, if it may report this.

        Refusals, in order: SourceUnknown, SourceSuspended, BehaviourNotAllowed.
        """
        source = self.by_id.get(source_id)
        if source is None:
            raise SourceUnknown(source=source_id)
        if source.suspended:
            raise SourceSuspended(source=source_id)
        if behaviour not in source.behaviours:
            raise BehaviourNotAllowed(source=source_id, behaviour=behaviour)
        return source


class SourceUnknown(Refusal):
    code = "source-unknown"
    title = "No source of this id is registered"


class SourceSuspended(Refusal):
    code = "source-suspended"
    title = "The source is suspended"


class BehaviourNotAllowed(Refusal):
    code = "behaviour-not-allowed"
    title = "The source may not report this behaviour"


class NothingToChange(Refusal):
    code = "nothing-to-change"
    title = "That is how it already stands"


def decide(sources: Sources, command: RegisterSource | ChangeSource, *, now: datetime) -> list[Event]:
    """Refusals, in order: SourceUnknown, NothingToChange (change)."""
    if isinstance(command, RegisterSource):
        return [
            SourceRegistered(
                recorded_at=now,
                source=command.source,
                name=command.name,
                behaviours=command.behaviours,
                opens_accounts=command.opens_accounts,
                lateness_days=command.lateness_days,
                county=command.county,
            )
        ]
    known = sources.by_id.get(command.source)
    if known is None:
        raise SourceUnknown(source=command.source)
    wanted = (command.behaviours, command.opens_accounts, command.lateness_days, command.suspended)
    if wanted == (known.behaviours, known.opens_accounts, known.lateness_days, known.suspended):
        raise NothingToChange(source=command.source)
    return [
        SourceChanged(
            recorded_at=now,
            source=command.source,
            behaviours=command.behaviours,
            opens_accounts=command.opens_accounts,
            lateness_days=command.lateness_days,
            suspended=command.suspended,
        )
    ]


def evolve(sources: Sources, event: Event) -> None:
    if isinstance(event, SourceRegistered):
        sources.by_id[event.source] = Source(
            event.source, event.name, event.behaviours, event.opens_accounts, event.lateness_days, event.county
        )
    elif isinstance(event, SourceChanged):
        source = sources.by_id[event.source]
        source.behaviours = event.behaviours
        source.opens_accounts = event.opens_accounts
        source.lateness_days = event.lateness_days
        source.suspended = event.suspended
