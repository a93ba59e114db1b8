"""Sources as the log knows them: who might report what, when."""

from datetime import datetime, timedelta

from msgspec import Struct

from carbon_points.audit.finding import Wrong, must
from carbon_points.audit.replay.days import History
from carbon_points.domain.event import Event
from carbon_points.domain.source import SourceChanged, SourceRegistered


class Terms(Struct, frozen=True):
    behaviours: tuple[str, ...]
    opens_accounts: bool
    lateness_days: int | None
    suspended: bool = False


class Sources:
    def __init__(self) -> None:
        self._terms: dict[str, History[Terms]] = {}

    def take(self, event: Event) -> None:
        match event:
            case SourceRegistered():
                must(event.source not in self._terms, "the source is registered already")
                terms = Terms(event.behaviours, event.opens_accounts, event.lateness_days)
                self._terms[event.source] = History()
            case SourceChanged():
                terms = Terms(event.behaviours, event.opens_accounts, event.lateness_days, event.suspended)
                must(event.source in self._terms, "the source is not registered")
                must(self._terms[event.source].latest != terms, "nothing of the source is changed")
            case _:
                raise Wrong("not an event of the sources")
        self._terms[event.source].add(event.recorded_at, terms)

    def check_report(self, source: str, behaviour: str, occurred_at: datetime, at: datetime) -> None:
        """The source might report this at that time, and so late after the act."""
        for terms in self._around(source, at):
            days = terms.lateness_days
            in_time = days is None or occurred_at >= at - timedelta(days=days)
            if behaviour in terms.behaviours and not terms.suspended and in_time:
                return
        raise Wrong(f"source {source} might not report {behaviour} of {occurred_at} then")

    def check_opening(self, source: str, at: datetime) -> None:
        opens = any(terms.opens_accounts and not terms.suspended for terms in self._around(source, at))
        must(opens, f"source {source} might not open accounts then")

    def _around(self, source: str, at: datetime) -> list[Terms]:
        if source not in self._terms:
            raise Wrong(f"source {source} is not registered")
        return self._terms[source].around(at)
