"""A small city on a real journal: one bus company, one bakery, and residents who ride and spend."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from carbon_points.domain import account, methodology
from carbon_points.domain.account import ActionFacts, ReversalFacts
from carbon_points.domain.event import Command, Event
from carbon_points.domain.merchant import RegisterMerchant
from carbon_points.domain.posting import postings
from carbon_points.domain.source import RegisterSource
from carbon_points.journal import codec
from carbon_points.journal.entry import Entry
from carbon_points.journal.journal import Journal, open_journal
from carbon_points.journal.partition import Outcome, Write
from carbon_points.journal.streams import kind_of, new_state
from tests import given

SOURCE = RegisterSource(source="szt", name="深圳通", behaviours=("bus", "metro_in", "metro_out"), opens_accounts=True)
BAKERY = RegisterMerchant(merchant="bakery", name="面包坊", fen_per_point=5)


class City:
    """Commands get the facts that their decisions need, as the program's own front gives them."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def found(self, *texts: str) -> "City":
        """Publish tables, register the source and the bakery."""
        for text in texts or (given.table(), given.metro()):
            table = methodology.parse(text)
            self.do(methodology.PublishMethodology(methodology=table.id, version=table.version, table=text))
        self.do(SOURCE)
        self.do(BAKERY)
        self.journal.rules_changed()
        return self

    def write(self, command: Command, view: Callable[[Any, datetime], object] | None = None) -> Write:
        facts: object = None
        if isinstance(command, account.RecordAction):
            rules = self.journal.rules()
            facts = ActionFacts(rules.methodologies, rules.sources.reporting(command.source, command.behaviour))
        elif isinstance(command, account.ReverseAction):
            entry = self.journal.find(("action", command.source, command.record_id))
            facts = ReversalFacts(codec.decode(entry.type, entry.state) if entry else None)
        return Write(command, facts, view)

    def do(self, command: Command, view: Callable[[Any, datetime], object] | None = None) -> Outcome:
        [outcome] = self.all(command, view=view)
        return outcome

    def all(self, *commands: Command, view: Callable[[Any, datetime], object] | None = None) -> list[Outcome]:
        return self.journal.commit([self.write(command, view) for command in commands])

    def ask(self, command: Command) -> Outcome:
        """As a request does: among what waits, for the one answer."""
        return self.journal.submit(self.write(command)).result(timeout=60)

    def resident(self, resident: str = "res_1") -> account.Account:
        return self.journal.state(resident)


@contextmanager
def opened(url: str, *, partitions: int = 2, clock: Callable[[], datetime] | None = None) -> Iterator[City]:
    journal = open_journal(url, partitions=partitions, clock=clock)
    try:
        yield City(journal)
    finally:
        journal.close()


def entries(journal: Journal) -> list[Entry]:
    return [entry for partition in journal.heads() for entry in journal.entries(partition)]


def events(journal: Journal) -> list[Event]:
    return [codec.decode(entry.type, entry.state) for entry in entries(journal)]


def balances(happened: Sequence[Event]) -> Counter[tuple[str, str]]:
    """What stands on every account, by asset and name."""
    standing: Counter[tuple[str, str]] = Counter()
    for event in happened:
        for asset, name, amount in postings(event):
            standing[(asset, name)] += amount
    return standing


def folded(journal: Journal) -> dict[str, Any]:
    """Every stream's state, from nothing but its entries."""
    states: dict[str, Any] = {}
    for entry in entries(journal):
        state = states.setdefault(entry.stream, new_state(entry.stream))
        kind_of(entry.stream).evolve(state, codec.decode(entry.type, entry.state))
    return states
