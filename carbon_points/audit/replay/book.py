"""Everything in the log that is not a resident's, replayed and checked: it decides and sums what residents do."""

from collections.abc import Iterable, Mapping
from typing import Any

from carbon_points.audit.finding import Wrong, found, same
from carbon_points.audit.replay.fund import Fund
from carbon_points.audit.replay.lot import Pool, Pools
from carbon_points.audit.replay.merchant import Mark, Merchant, Merchants
from carbon_points.audit.replay.methodology import Tables
from carbon_points.audit.replay.source import Sources
from carbon_points.audit.replay.terminal import OF_TERMINALS
from carbon_points.audit.scratch import Scratch
from carbon_points.domain.event import Event
from carbon_points.domain.lot import PoolOpened, UnitsSold
from carbon_points.domain.merchant import MerchantRegistered
from carbon_points.journal.entry import Entry
from carbon_points.journal.streams import FUND, METHODOLOGIES, SOURCES, kind_of, new_state


class Book:
    """`states`: what each of these streams comes to in the journal's own cache of states."""

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        self.tables, self.sources = Tables(), Sources()
        self.merchants, self.pools = Merchants(), Pools()
        self._fund = Fund()
        self._sales: list[UnitsSold] = []
        self.states: dict[str, Any] = {}

    def replay(self, entries: Iterable[tuple[Entry, Event]]) -> None:
        """Take them all; those of one stream in its order. Raises Found."""
        known = sorted(entries, key=lambda pair: (pair[0].partition, pair[0].position))
        for check in (self._take, self._check_fund):
            for entry, event in known:
                try:
                    check(entry, event)
                except Exception as error:  # whatever the bytes lead to is a finding
                    raise found(entry, error) from error

    def ends(self, partition: int) -> set[int]:
        """The positions at which settlements end: there the verifier marks the partition's root and time."""
        return {s.through[partition] for merchant in self.merchants.values() for s in merchant.settlements}

    def check_sums(self) -> None:
        """What settlements and seals say is what the log came to. Raises Found."""
        for merchant in self.merchants.values():
            for settlement in merchant.settlements:
                try:
                    settlement.check()
                except Wrong as error:
                    raise found(settlement.entry, error) from error
        for pool in self.pools.values():
            for index, sealed in enumerate(pool.sealed):
                try:
                    pool.check_sealed(index)
                except Wrong as error:
                    raise found(sealed.entry, error) from error

    def check_files(self, marks: Mapping[tuple[int, int], Mark], scratch: Scratch) -> None:
        """And so are settlements' files, which pin the whole log before them: hence last, and the earliest first."""
        closed = [(s, merchant.name) for merchant in self.merchants.values() for s in merchant.settlements]
        for settlement, name in sorted(closed, key=lambda pair: pair[0].event.recorded_at):
            try:
                settlement.check_files(name, marks, scratch)
            except Wrong as error:
                raise found(settlement.entry, error) from error

    def _take(self, entry: Entry, event: Event) -> None:
        match entry.stream.partition("/"):
            case (str() as name, "", _) if name == METHODOLOGIES:
                self.tables.take(event)
            case (str() as name, "", _) if name == SOURCES:
                self.sources.take(event)
            case (str() as name, "", _) if name == FUND:
                self._fund.take(event)
            case ("merchant", _, name):
                same("merchant", getattr(event, "merchant", None), name)
                if isinstance(event, MerchantRegistered):
                    self.merchants.setdefault(name, Merchant(self._partitions))
                self.merchants[name].take(entry, event)
            case (_, _, name):
                same("pool_id", getattr(event, "pool_id", None), name)
                if isinstance(event, PoolOpened):
                    self.pools.setdefault(name, Pool(self._partitions))
                self.pools[name].take(entry, event)
        if isinstance(event, UnitsSold):
            self._sales.append(event)
        state = self.states.setdefault(entry.stream, new_state(entry.stream))
        if not isinstance(event, OF_TERMINALS):  # they change parts of it, which are not kept here
            kind_of(entry.stream).evolve(state, event)

    def _check_fund(self, entry: Entry, event: Event) -> None:
        if entry.stream == FUND:
            self._fund.check_origin(event, self._sales, self.merchants)
