"""Pools and their units: what was gathered is what residents gave, and every unit has one number and one holder."""

import re
from bisect import bisect_left
from typing import Any

from msgspec import Struct

from carbon_points.audit.finding import Wrong, must, same
from carbon_points.audit.replay.days import GRACE
from carbon_points.audit.replay.merchant import Vector, not_before, vector
from carbon_points.domain.account import ReductionsPooled
from carbon_points.domain.event import Event
from carbon_points.domain.lot import (
    GatheringSealed,
    LotIssued,
    PoolOpened,
    PoolVerified,
    UnitsRetired,
    UnitsSold,
)
from carbon_points.journal.entry import Entry

MG_PER_KG = 1_000_000
_MONTH = re.compile(r"2[01][0-9]{2}-(0[1-9]|1[0-2])", re.ASCII)
_FOR_SALE = ""
Block = tuple[int, int]  # first and last unit, both included


class Sealed(Struct):
    """A gathering that ended, and what the log gave to the pool since the one before."""

    entry: Entry
    event: GatheringSealed
    through: Vector
    residents: int = 0
    gathered_mg: int = 0


class Lot(Struct):
    number: int
    kg: int
    held: dict[str, list[Block]]
    retirements: int = 0


class Pool:
    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        self._opened: PoolOpened | None = None
        self._verified_mg = self._issued_mg = 0
        self._lots: dict[str, Lot] = {}
        self._ends: dict[int, list[int]] = {}
        self.sealed: list[Sealed] = []

    def take(self, entry: Entry, event: Event) -> None:
        must(self._opened is not None or isinstance(event, PoolOpened), "the pool is not open")
        match event:
            case PoolOpened():
                self._open(event)
            case GatheringSealed():
                self._seal(entry, event)
            case PoolVerified():
                must(event.verified_mg > 0, "nothing is verified")
                self._verified_mg += event.verified_mg
                must(self._verified_mg <= self._gathered_mg, "more is verified than was gathered")
            case LotIssued():
                self._issue(event)
            case UnitsSold():
                self._sell(event)
            case UnitsRetired():
                self._retire(event)
            case _:
                raise Wrong("not an event of a pool")

    @property
    def _gathered_mg(self) -> int:
        """As the last seal says; that it says what the log says is checked when the whole log is read."""
        return self.sealed[-1].event.gathered_mg if self.sealed else 0

    def _open(self, event: PoolOpened) -> None:
        must(self._opened is None, "the pool is open already")
        months = (event.from_month, event.until_month)
        must(all(_MONTH.fullmatch(m) for m in months) and months[0] <= months[1], f"the period is {months}")
        self._opened = event

    def _seal(self, entry: Entry, event: GatheringSealed) -> None:
        same("gathering", event.gathering, len(self.sealed) + 1)
        through = vector(event.through, self._partitions)
        must(not self.sealed or not_before(through, self.sealed[-1].through), "the gathering ends before the last one")
        must(event.gathered_mg > self._gathered_mg, "nothing was gathered")
        self.sealed.append(Sealed(entry, event, through))

    def _issue(self, event: LotIssued) -> None:
        must(event.lot_id not in self._lots, "the lot is issued already")
        kg, remainder_mg = divmod(self._verified_mg - self._issued_mg, MG_PER_KG)
        must(kg >= 1, "less than a kilogram is verified and not issued")
        same("kg", event.kg, kg)
        same("remainder_mg", event.remainder_mg, remainder_mg)
        same("number", event.number, len(self._lots) + 1)
        self._issued_mg += kg * MG_PER_KG
        self._lots[event.lot_id] = Lot(event.number, kg, {_FOR_SALE: [(1, kg)]})
        same("serial", event.serial, self._serials(event.number, [(1, kg)])[0])

    def _sell(self, event: UnitsSold) -> None:
        must(event.price_fen >= 0 and bool(event.buyer), "a sale has a buyer and a price")
        lot = self._moved(event, _FOR_SALE)
        lot.held[event.buyer] = _joined([*lot.held.get(event.buyer, ()), *event.blocks])

    def _retire(self, event: UnitsRetired) -> None:
        must(bool(event.holder), "units are retired by their holder")
        lot = self._moved(event, event.holder)
        lot.retirements += 1
        same("certificate", event.certificate, f"{self._name(lot.number)}-R{lot.retirements:06d}")

    def _moved(self, event: UnitsSold | UnitsRetired, holder: str) -> Lot:
        """Take the event's units from their holder: the lowest numbers, each of them there."""
        if (lot := self._lots.get(event.lot_id)) is None:
            raise Wrong(f"the pool has no lot {event.lot_id}")
        must(event.kg > 0, "no unit is moved")
        taken, lot.held[holder] = _lowest(lot.held.get(holder, []), event.kg)
        same("blocks", list(event.blocks), taken)
        same("serials", list(event.serials), self._serials(lot.number, taken))
        return lot

    def _name(self, number: int) -> str:
        o = self._opened
        assert o is not None
        kind = re.sub("[-_]", "", f"{o.methodology}.{o.version}".upper())
        pool = o.pool_id.removeprefix("pool_").upper()
        months = "-".join(month.replace("-", "") for month in (o.from_month, o.until_month))
        return f"CN-{o.region}-{o.scheme}-{kind}-{pool}.L{number:03d}-{months}"

    def _serials(self, number: int, blocks: list[Block]) -> list[str]:
        return [f"{self._name(number)}-{first:08d}-{last:08d}" for first, last in blocks]

    # -- what residents' entries say of the pool ---------------------------------------------------------------------

    def check_pooling(self, event: ReductionsPooled) -> None:
        """The pool was open then, for these reductions, and the gathering had begun."""
        o = self._opened
        assert o is not None
        must(o.recorded_at <= event.recorded_at + GRACE, "the pool was not open then")
        for field in ("methodology", "version", "from_month", "until_month"):
            same(field, getattr(event, field), getattr(o, field))
        must(1 <= event.gathering <= len(self.sealed) + 1, f"gathering {event.gathering} has not begun")

    def gather(self, entry: Entry, reduction_mg: int, *, first: bool) -> None:
        """Put what a resident gave into the gathering that covers its position, if one does yet."""
        ends = self._ends.get(entry.partition)
        if ends is None or len(ends) != len(self.sealed):
            ends = self._ends[entry.partition] = [s.through[entry.partition] for s in self.sealed]
        index = bisect_left(ends, entry.position)
        if index < len(ends):
            self.sealed[index].residents += first
            self.sealed[index].gathered_mg += reduction_mg

    def check_sealed(self, index: int) -> None:
        """A seal says what all gatherings up to it came to. Raises Wrong."""
        until = self.sealed[: index + 1]
        same("residents", until[-1].event.residents, sum(s.residents for s in until))
        same("gathered_mg", until[-1].event.gathered_mg, sum(s.gathered_mg for s in until))


class Pools(dict[str, Pool]):
    """By id. Asking for one that is not open is a finding."""

    def __missing__(self, pool: str) -> Any:
        raise Wrong(f"pool {pool} is not open")


def _lowest(blocks: list[Block], kg: int) -> tuple[list[Block], list[Block]]:
    """The `kg` lowest units, and the others."""
    taken: list[Block] = []
    left: list[Block] = []
    for first, last in blocks:
        cut = min(first + kg - 1, last)
        if cut >= first:
            taken.append((first, cut))
        if cut < last:
            left.append((cut + 1, last))
        kg -= cut - first + 1
    must(kg == 0, "more units are moved than are held")
    return taken, left


def _joined(blocks: list[Block]) -> list[Block]:
    """The same units in the fewest blocks. No unit may be there twice."""
    joined: list[Block] = []
    for first, last in sorted(blocks):
        must(not joined or joined[-1][1] < first, f"unit {first} is held twice")
        if joined and joined[-1][1] + 1 == first:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return joined
