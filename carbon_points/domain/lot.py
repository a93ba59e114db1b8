"""Pools and the lots issued from them: gather, verify, issue with serials, sell, retire.

A pool gathers the consenting residents' reductions of one methodology version and a run of months. Whole kilograms of
what was verified are issued as lots; the remainder stays in the pool. A unit is one kilogram of CO2e with one number.
Invariants: issued <= verified <= gathered, in milligrams; a unit has exactly one holder until it is retired, for good.
"""

import re
from datetime import datetime
from typing import ClassVar, Literal

from msgspec import Struct

from carbon_points.domain.event import Amount, Command, Event, Id, Month, Text
from carbon_points.domain.quantity import MG_PER_KG
from carbon_points.domain.refusal import Refusal

Block = tuple[int, int]  # first and last unit, both included
Purpose = Literal["voluntary", "event", "compliance", "ecological_compensation"]
_MONTH = re.compile(r"2[01][0-9]{2}-(0[1-9]|1[0-2])")

# -- commands --------------------------------------------------------------------------------------------------------


class OpenPool(Command):
    """`region`: a GB/T 2260 code. `scheme`: the programme's short name. Months are `YYYY-MM`, both included."""

    pool_id: str
    methodology: Id
    version: Id
    from_month: Month
    until_month: Month
    region: str
    scheme: str

    def claim(self) -> tuple[str, ...]:
        return ("pool", self.pool_id)


class SealGathering(Command):
    """End the present gathering: what the log says was gathered so far is the pool's, and may be verified."""

    pool_id: str
    gathering: int

    def claim(self) -> tuple[str, ...]:
        return ("seal", self.pool_id, str(self.gathering))


class VerifyPool(Command):
    """A verifier finds `verified_mg` of what was gathered to be real. `report` names its report."""

    pool_id: str
    verification_id: str
    verifier: Text
    report: Text
    verified_mg: Amount

    def claim(self) -> tuple[str, ...]:
        return ("verification", self.pool_id, self.verification_id)


class IssueLot(Command):
    """Issue all whole kilograms that are verified and not issued."""

    pool_id: str
    lot_id: str

    def claim(self) -> tuple[str, ...]:
        return ("lot", self.pool_id, self.lot_id)


class SellUnits(Command):
    """Sell whole kilograms of a lot, lowest free numbers first, for a price in all."""

    pool_id: str
    lot_id: str
    sale_id: str
    buyer: Id
    kg: Amount
    price_fen: Amount

    def claim(self) -> tuple[str, ...]:
        return ("sale", self.lot_id, self.sale_id)


class RetireUnits(Command):
    """The one and final use of units, by their holder, on behalf of a beneficiary."""

    pool_id: str
    lot_id: str
    retirement_id: str
    holder: Id
    kg: Amount
    purpose: Purpose
    beneficiary: Text
    reason: Text

    def claim(self) -> tuple[str, ...]:
        return ("retirement", self.lot_id, self.retirement_id)


# -- events ----------------------------------------------------------------------------------------------------------


class PoolOpened(Event):
    type_name: ClassVar[str] = "pool-opened/1"
    pool_id: str
    methodology: str
    version: str
    from_month: str
    until_month: str
    region: str
    scheme: str


class GatheringSealed(Event):
    """What all gatherings up to this one moved into the pool, at these positions of the partitions."""

    type_name: ClassVar[str] = "gathering-sealed/1"
    pool_id: str
    gathering: int
    through: dict[str, int]
    residents: int
    gathered_mg: int


class PoolVerified(Event):
    type_name: ClassVar[str] = "pool-verified/1"
    pool_id: str
    verification_id: str
    verifier: str
    report: str
    verified_mg: int


class LotIssued(Event):
    """Units 1 to `kg`, in one account. `remainder_mg` is what is verified but not a whole kilogram."""

    type_name: ClassVar[str] = "lot-issued/1"
    pool_id: str
    lot_id: str
    number: int
    serial: str
    kg: int
    remainder_mg: int


class UnitsSold(Event):
    type_name: ClassVar[str] = "units-sold/1"
    pool_id: str
    lot_id: str
    sale_id: str
    buyer: str
    kg: int
    price_fen: int
    blocks: tuple[Block, ...]
    serials: tuple[str, ...]


class UnitsRetired(Event):
    type_name: ClassVar[str] = "units-retired/1"
    pool_id: str
    lot_id: str
    retirement_id: str
    certificate: str
    holder: str
    kg: int
    purpose: Purpose
    beneficiary: str
    reason: str
    blocks: tuple[Block, ...]
    serials: tuple[str, ...]


# -- state -----------------------------------------------------------------------------------------------------------


class Lot(Struct):
    """`held`: the blocks of units by holder; "" is the registry's own, for sale."""

    id: str
    number: int
    kg: int
    held: dict[str, tuple[Block, ...]]
    retired: tuple[Block, ...] = ()
    retirements: int = 0


class Pool(Struct):
    id: str
    methodology: str = ""
    version: str = ""
    from_month: str = ""
    until_month: str = ""
    region: str = ""
    scheme: str = ""
    gathering: int = 1
    gathered_mg: int = 0
    verified_mg: int = 0
    issued_mg: int = 0
    lots: dict[str, Lot] = {}


class GatheringFacts(Struct, frozen=True):
    """What the log says of a pool's gatherings at these positions."""

    through: dict[str, int]
    residents: int
    gathered_mg: int


# -- refusals --------------------------------------------------------------------------------------------------------


class PoolUnknown(Refusal):
    code = "pool-unknown"
    title = "No such pool"


class PeriodInvalid(Refusal):
    code = "period-invalid"
    title = "A period is two months YYYY-MM, the first not after the last"


class GatheringNotOpen(Refusal):
    code = "gathering-not-open"
    title = "Another gathering of this pool is open"


class NothingGathered(Refusal):
    code = "nothing-gathered"
    title = "The pool gathered nothing that was not sealed before"


class VerifiedExceedsGathered(Refusal):
    code = "verified-exceeds-gathered"
    title = "More would be verified than was gathered"


class AmountInvalid(Refusal):
    code = "amount-invalid"
    title = "An amount is a whole number above zero"


class LessThanOneKilogram(Refusal):
    code = "less-than-one-kilogram"
    title = "Less than a kilogram is verified and not issued"


class LotUnknown(Refusal):
    code = "lot-unknown"
    title = "The pool has no such lot"


class UnitsNotForSale(Refusal):
    code = "units-not-for-sale"
    title = "The lot has fewer units for sale"


class UnitsNotHeld(Refusal):
    code = "units-not-held"
    title = "The holder has fewer units of this lot that are not retired"


# -- decisions -------------------------------------------------------------------------------------------------------


def decide(pool: Pool, command: Command, *, now: datetime, facts: object = None) -> list[Event]:
    match command:
        case OpenPool():
            return open_pool(pool, command, now=now)
        case _ if not pool.methodology:
            raise PoolUnknown(pool=pool.id)
        case SealGathering():
            assert isinstance(facts, GatheringFacts)
            return seal(pool, command, now=now, facts=facts)
        case VerifyPool():
            return verify(pool, command, now=now)
        case IssueLot():
            return issue(pool, command, now=now)
        case SellUnits():
            return sell(pool, command, now=now)
        case RetireUnits():
            return retire(pool, command, now=now)
        case _:
            raise AssertionError(f"no decision for {type(command).__name__}")


def open_pool(pool: Pool, command: OpenPool, *, now: datetime) -> list[Event]:
    """Refusals: PeriodInvalid."""
    months = (command.from_month, command.until_month)
    if not all(_MONTH.fullmatch(m) for m in months) or command.from_month > command.until_month:
        raise PeriodInvalid(from_month=command.from_month, until_month=command.until_month)
    return [
        PoolOpened(
            recorded_at=now,
            pool_id=pool.id,
            methodology=command.methodology,
            version=command.version,
            from_month=command.from_month,
            until_month=command.until_month,
            region=command.region,
            scheme=command.scheme,
        )
    ]


def seal(pool: Pool, command: SealGathering, *, now: datetime, facts: GatheringFacts) -> list[Event]:
    """Refusals, in order: GatheringNotOpen, NothingGathered."""
    if command.gathering != pool.gathering:
        raise GatheringNotOpen(open=pool.gathering, wanted=command.gathering)
    if facts.gathered_mg <= pool.gathered_mg:
        raise NothingGathered(pool=pool.id)
    return [
        GatheringSealed(
            recorded_at=now,
            pool_id=pool.id,
            gathering=command.gathering,
            through=facts.through,
            residents=facts.residents,
            gathered_mg=facts.gathered_mg,
        )
    ]


def verify(pool: Pool, command: VerifyPool, *, now: datetime) -> list[Event]:
    """Refusals, in order: AmountInvalid, VerifiedExceedsGathered."""
    if command.verified_mg <= 0:
        raise AmountInvalid(verified_mg=command.verified_mg)
    if (left := pool.gathered_mg - pool.verified_mg) < command.verified_mg:
        raise VerifiedExceedsGathered(unverified_mg=left, wanted_mg=command.verified_mg)
    return [
        PoolVerified(
            recorded_at=now,
            pool_id=pool.id,
            verification_id=command.verification_id,
            verifier=command.verifier,
            report=command.report,
            verified_mg=command.verified_mg,
        )
    ]


def issue(pool: Pool, command: IssueLot, *, now: datetime) -> list[Event]:
    """Refusals: LessThanOneKilogram."""
    kg, remainder_mg = divmod(pool.verified_mg - pool.issued_mg, MG_PER_KG)
    if kg < 1:
        raise LessThanOneKilogram(verified_not_issued_mg=remainder_mg)
    number = len(pool.lots) + 1
    return [
        LotIssued(
            recorded_at=now,
            pool_id=pool.id,
            lot_id=command.lot_id,
            number=number,
            serial=serial(pool, number, (1, kg)),
            kg=kg,
            remainder_mg=remainder_mg,
        )
    ]


def sell(pool: Pool, command: SellUnits, *, now: datetime) -> list[Event]:
    """Refusals, in order: LotUnknown, AmountInvalid, UnitsNotForSale."""
    lot = _lot(pool, command.lot_id)
    if command.kg <= 0 or command.price_fen < 0 or not command.buyer:
        raise AmountInvalid(kg=command.kg, price_fen=command.price_fen, buyer=command.buyer)
    free = lot.held.get("", ())
    if (left := units(free)) < command.kg:
        raise UnitsNotForSale(lot=lot.id, for_sale_kg=left, wanted_kg=command.kg)
    blocks, _ = _split(free, command.kg)
    return [
        UnitsSold(
            recorded_at=now,
            pool_id=pool.id,
            lot_id=lot.id,
            sale_id=command.sale_id,
            buyer=command.buyer,
            kg=command.kg,
            price_fen=command.price_fen,
            blocks=blocks,
            serials=tuple(serial(pool, lot.number, block) for block in blocks),
        )
    ]


def retire(pool: Pool, command: RetireUnits, *, now: datetime) -> list[Event]:
    """Refusals, in order: LotUnknown, AmountInvalid, UnitsNotHeld."""
    lot = _lot(pool, command.lot_id)
    if command.kg <= 0 or not command.holder:
        raise AmountInvalid(kg=command.kg, holder=command.holder)
    held = lot.held.get(command.holder, ())
    if (left := units(held)) < command.kg:
        raise UnitsNotHeld(lot=lot.id, holder=command.holder, held_kg=left, wanted_kg=command.kg)
    blocks, _ = _split(held, command.kg)
    return [
        UnitsRetired(
            recorded_at=now,
            pool_id=pool.id,
            lot_id=lot.id,
            retirement_id=command.retirement_id,
            certificate=f"{_lot_name(pool, lot.number)}-R{lot.retirements + 1:06d}",
            holder=command.holder,
            kg=command.kg,
            purpose=command.purpose,
            beneficiary=command.beneficiary,
            reason=command.reason,
            blocks=blocks,
            serials=tuple(serial(pool, lot.number, block) for block in blocks),
        )
    ]


def evolve(pool: Pool, event: Event) -> None:
    match event:
        case PoolOpened():
            pool.methodology, pool.version = event.methodology, event.version
            pool.from_month, pool.until_month = event.from_month, event.until_month
            pool.region, pool.scheme = event.region, event.scheme
        case GatheringSealed():
            pool.gathered_mg = event.gathered_mg
            pool.gathering = event.gathering + 1
        case PoolVerified():
            pool.verified_mg += event.verified_mg
        case LotIssued():
            pool.issued_mg += event.kg * MG_PER_KG
            pool.lots[event.lot_id] = Lot(event.lot_id, event.number, event.kg, {"": ((1, event.kg),)})
        case UnitsSold():
            lot = pool.lots[event.lot_id]
            _, lot.held[""] = _split(lot.held[""], event.kg)
            lot.held[event.buyer] = _joined((*lot.held.get(event.buyer, ()), *event.blocks))
        case UnitsRetired():
            lot = pool.lots[event.lot_id]
            _, lot.held[event.holder] = _split(lot.held[event.holder], event.kg)
            lot.retired = _joined((*lot.retired, *event.blocks))
            lot.retirements += 1
        case _:
            raise AssertionError(f"not a pool's event: {event.type_name}")


# -- serials ---------------------------------------------------------------------------------------------------------


def serial(pool: Pool, number: int, block: Block) -> str:
    """Country, region, scheme, methodology and version, lot, vintage months, first and last unit."""
    first, last = block
    return f"{_lot_name(pool, number)}-{first:08d}-{last:08d}"


def units(blocks: tuple[Block, ...]) -> int:
    return sum(last - first + 1 for first, last in blocks)


def _lot_name(pool: Pool, number: int) -> str:
    months = f"{pool.from_month.replace('-', '')}-{pool.until_month.replace('-', '')}"
    kind = f"{pool.methodology}.{pool.version}".upper().replace("-", "").replace("_", "")
    return f"CN-{pool.region}-{pool.scheme}-{kind}-{pool.id.removeprefix('pool_').upper()}.L{number:03d}-{months}"


def _lot(pool: Pool, lot_id: str) -> Lot:
    if (lot := pool.lots.get(lot_id)) is None:
        raise LotUnknown(pool=pool.id, lot=lot_id)
    return lot


def _split(blocks: tuple[Block, ...], kg: int) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
    """The lowest `kg` units, and the others. The caller knows that there are enough."""
    taken: list[Block] = []
    left: list[Block] = []
    for first, last in sorted(blocks):
        take = min(kg, last - first + 1)
        kg -= take
        if take:
            taken.append((first, first + take - 1))
        if first + take <= last:
            left.append((first + take, last))
    assert kg == 0, "more units taken than there are"
    return tuple(taken), tuple(left)


def _joined(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    joined: list[Block] = []
    for first, last in sorted(blocks):
        if joined and joined[-1][1] + 1 == first:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return tuple(joined)
