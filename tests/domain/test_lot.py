"""Pools and lots: what was gathered bounds what is verified, that what is issued; a unit has one holder, then none."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carbon_points.domain.event import Command
from carbon_points.domain.lot import (
    AmountInvalid,
    GatheringFacts,
    GatheringNotOpen,
    IssueLot,
    LessThanOneKilogram,
    LotIssued,
    LotUnknown,
    NothingGathered,
    OpenPool,
    PeriodInvalid,
    Pool,
    PoolUnknown,
    RetireUnits,
    SealGathering,
    SellUnits,
    UnitsNotForSale,
    UnitsNotHeld,
    UnitsRetired,
    UnitsSold,
    VerifiedExceedsGathered,
    VerifyPool,
    decide,
    evolve,
    serial,
    units,
)
from carbon_points.domain.quantity import MG_PER_KG
from tests.given import NOON


def opening(**said: Any) -> OpenPool:
    fields = {
        "pool_id": "pool_1",
        "methodology": "shared_bike",
        "version": "2025-1",
        "from_month": "2025-01",
        "until_month": "2025-06",
        "region": "330500",
        "scheme": "HZTPH",
    }
    return OpenPool(**(fields | said))


def gathered(mg: int, **said: Any) -> GatheringFacts:
    return GatheringFacts(**({"through": {"0": 7}, "residents": 2} | said), gathered_mg=mg)


def sealing(gathering: int = 1) -> SealGathering:
    return SealGathering(pool_id="pool_1", gathering=gathering)


def verifying(mg: int, verification_id: str = "v1") -> VerifyPool:
    return VerifyPool(
        pool_id="pool_1", verification_id=verification_id, verifier="CQC", report="2025-17", verified_mg=mg
    )


def issuing(lot_id: str = "lot_1") -> IssueLot:
    return IssueLot(pool_id="pool_1", lot_id=lot_id)


def selling(kg: int, buyer: str = "steelworks", **said: Any) -> SellUnits:
    fields = {"pool_id": "pool_1", "lot_id": "lot_1", "sale_id": "s1", "price_fen": 100}
    return SellUnits(kg=kg, buyer=buyer, **(fields | said))


def retiring(kg: int, holder: str = "steelworks", **said: Any) -> RetireUnits:
    fields = {
        "pool_id": "pool_1",
        "lot_id": "lot_1",
        "retirement_id": "r1",
        "purpose": "voluntary",
        "beneficiary": "the marathon of 2025",
        "reason": "its buses",
    }
    return RetireUnits(kg=kg, holder=holder, **(fields | said))


def do(pool: Pool, command: Command, facts: object = None) -> Any:
    [event] = decide(pool, command, now=NOON, facts=facts)
    evolve(pool, event)
    return event


def issued(kg: int, rest_mg: int = 0) -> Pool:
    """A pool with one lot of that many kilograms, and that many milligrams besides."""
    pool = Pool("pool_1")
    do(pool, opening())
    do(pool, sealing(), gathered(kg * MG_PER_KG + rest_mg))
    do(pool, verifying(kg * MG_PER_KG + rest_mg))
    do(pool, issuing())
    return pool


# -- gathering -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "last"),
    [
        ("2025-07", "2025-06"),
        ("2025-00", "2025-06"),
        ("2025-01", "2025-13"),
        ("2025-1", "2025-06"),
        ("", "2025-06"),
        ("2025-01", "2025-06-30"),
        ("２０２５-01", "2025-06"),
        ("2025-01\n", "2025-06"),
        ("1999-01", "2025-06"),
    ],
)
def test_a_period_that_is_no_run_of_months_is_refused(first: str, last: str) -> None:
    with pytest.raises(PeriodInvalid):
        decide(Pool("pool_1"), opening(from_month=first, until_month=last), now=NOON)


def test_a_period_may_be_one_month() -> None:
    assert decide(Pool("pool_1"), opening(until_month="2025-01"), now=NOON)


@pytest.mark.parametrize("command", [sealing(), verifying(0), issuing(), selling(1), retiring(1)])
def test_what_is_said_of_a_pool_that_is_not_open_is_refused(command: Command) -> None:
    with pytest.raises(PoolUnknown):
        decide(Pool("pool_1"), command, now=NOON, facts=gathered(0))


def test_the_refusals_of_sealing_come_in_order() -> None:
    pool = issued(1)
    with pytest.raises(GatheringNotOpen) as refused:
        decide(pool, sealing(1), now=NOON, facts=gathered(0))
    assert refused.value.facts == {"open": 2, "wanted": 1}
    with pytest.raises(NothingGathered):  # nothing since the last one
        decide(pool, sealing(2), now=NOON, facts=gathered(MG_PER_KG))
    assert decide(pool, sealing(2), now=NOON, facts=gathered(MG_PER_KG + 1))


def test_a_first_gathering_of_nothing_is_refused() -> None:
    pool = Pool("pool_1")
    do(pool, opening())
    with pytest.raises(NothingGathered):
        decide(pool, sealing(), now=NOON, facts=gathered(0))


def test_a_second_gathering_adds_to_what_may_be_verified() -> None:
    pool = issued(1)
    do(pool, sealing(2), gathered(3 * MG_PER_KG, residents=3))
    assert (pool.gathering, pool.gathered_mg) == (3, 3 * MG_PER_KG)
    do(pool, verifying(2 * MG_PER_KG, "v2"))
    second = do(pool, issuing("lot_2"))
    assert (second.number, second.kg) == (2, 2)


# -- verifying and issuing -------------------------------------------------------------------------------------------


def test_the_refusals_of_verifying_come_in_order() -> None:
    pool = issued(2, rest_mg=5)
    for amount in (0, -1):
        with pytest.raises(AmountInvalid):
            decide(pool, verifying(amount), now=NOON)
    with pytest.raises(VerifiedExceedsGathered) as refused:
        decide(pool, verifying(1, "v2"), now=NOON)
    assert refused.value.facts == {"unverified_mg": 0, "wanted_mg": 1}


def test_less_than_was_gathered_may_be_verified_and_the_rest_later() -> None:
    pool = Pool("pool_1")
    do(pool, opening())
    do(pool, sealing(), gathered(5 * MG_PER_KG))
    do(pool, verifying(2 * MG_PER_KG))
    assert do(pool, issuing()).kg == 2
    do(pool, verifying(3 * MG_PER_KG, "v2"))
    assert do(pool, issuing("lot_2")).kg == 3


def test_whole_kilograms_are_issued_and_the_remainder_stays_for_the_next_lot() -> None:
    pool = issued(2, rest_mg=MG_PER_KG - 1)
    assert pool.issued_mg == 2 * MG_PER_KG
    with pytest.raises(LessThanOneKilogram) as refused:
        decide(pool, issuing("lot_2"), now=NOON)
    assert refused.value.facts == {"verified_not_issued_mg": MG_PER_KG - 1}
    do(pool, sealing(2), gathered(3 * MG_PER_KG))
    do(pool, verifying(1, "v2"))
    event = do(pool, issuing("lot_2"))
    assert (event.kg, event.remainder_mg, event.number) == (1, 0, 2)


# -- selling and retiring --------------------------------------------------------------------------------------------


def test_units_are_sold_lowest_numbers_first_in_one_block() -> None:
    pool = issued(10)
    first, second = do(pool, selling(4)), do(pool, selling(6, "bank", sale_id="s2"))
    assert (first.blocks, second.blocks) == (((1, 4),), ((5, 10),))


def test_the_refusals_of_selling_come_in_order() -> None:
    pool = issued(3)
    with pytest.raises(LotUnknown):
        decide(pool, selling(0, lot_id="lot_9"), now=NOON)
    for wrong in (selling(0), selling(-1), selling(1, price_fen=-1), selling(1, "")):
        with pytest.raises(AmountInvalid):
            decide(pool, wrong, now=NOON)
    with pytest.raises(UnitsNotForSale) as refused:
        decide(pool, selling(4), now=NOON)
    assert refused.value.facts == {"lot": "lot_1", "for_sale_kg": 3, "wanted_kg": 4}


def test_units_may_be_given_for_nothing() -> None:
    assert do(issued(1), selling(1, price_fen=0)).kg == 1


def test_the_refusals_of_retiring_come_in_order() -> None:
    pool = issued(3)
    do(pool, selling(2))
    with pytest.raises(LotUnknown):
        decide(pool, retiring(0, lot_id="lot_9"), now=NOON)
    for wrong in (retiring(0), retiring(-1), retiring(1, "")):
        with pytest.raises(AmountInvalid):
            decide(pool, wrong, now=NOON)
    with pytest.raises(UnitsNotHeld):
        decide(pool, retiring(1, "bank"), now=NOON)
    with pytest.raises(UnitsNotHeld) as refused:
        decide(pool, retiring(3), now=NOON)
    assert refused.value.facts == {"lot": "lot_1", "holder": "steelworks", "held_kg": 2, "wanted_kg": 3}


def test_what_the_registry_holds_for_sale_cannot_be_retired_in_nobodys_name() -> None:
    with pytest.raises(AmountInvalid):
        decide(issued(1), retiring(1, ""), now=NOON)


def test_a_holder_whose_units_lie_apart_retires_them_lowest_first() -> None:
    pool = issued(10)
    do(pool, selling(3))
    do(pool, selling(2, "bank", sale_id="s2"))
    do(pool, selling(3, sale_id="s3"))
    assert pool.lots["lot_1"].held["steelworks"] == ((1, 3), (6, 8))
    assert do(pool, retiring(1, retirement_id="r0")).blocks == ((1, 1),)
    event = do(pool, retiring(3))
    assert event.blocks == ((2, 3), (6, 6))
    assert len(event.serials) == 2
    assert pool.lots["lot_1"].held["steelworks"] == ((7, 8),)
    assert pool.lots["lot_1"].retired == ((1, 3), (6, 6))


def test_neighbouring_blocks_of_one_holder_become_one() -> None:
    pool = issued(10)
    do(pool, selling(3))
    do(pool, selling(3, sale_id="s2"))
    assert pool.lots["lot_1"].held["steelworks"] == ((1, 6),)


def test_certificates_of_a_lot_are_numbered_and_none_is_given_twice() -> None:
    pool = issued(3)
    do(pool, selling(3))
    named = [do(pool, retiring(1, retirement_id=f"r{n}")).certificate for n in range(3)]
    assert len(set(named)) == 3
    assert [name[-8:] for name in named] == ["-R000001", "-R000002", "-R000003"]


@given(st.integers(1, 30), st.lists(st.tuples(st.booleans(), st.sampled_from("abc"), st.integers(1, 12)), max_size=25))
def test_every_unit_has_one_holder_at_any_time_and_never_two(kg: int, moves: list[tuple[bool, str, int]]) -> None:
    pool = issued(kg)
    lot = pool.lots["lot_1"]
    where = dict.fromkeys(range(1, kg + 1), "")  # the model: unit by unit
    for number, (sale, who, wanted) in enumerate(moves):
        command = (
            selling(wanted, who, sale_id=str(number)) if sale else retiring(wanted, who, retirement_id=str(number))
        )
        mine = sorted(unit for unit, holder in where.items() if holder == ("" if sale else who))
        try:
            event = do(pool, command)
        except (UnitsNotForSale, UnitsNotHeld):
            assert len(mine) < wanted
            continue
        assert isinstance(event, UnitsSold | UnitsRetired)
        assert spelled(event.blocks) == mine[:wanted]
        where |= dict.fromkeys(mine[:wanted], who if sale else "retired")
        found = {unit: holder for holder, blocks in lot.held.items() for unit in spelled(blocks)}
        found |= dict.fromkeys(spelled(lot.retired), "retired")
        assert found == where
        assert sum(units(blocks) for blocks in (*lot.held.values(), lot.retired)) == kg


def spelled(blocks: tuple[tuple[int, int], ...]) -> list[int]:
    return [unit for first, last in blocks for unit in range(first, last + 1)]


# -- serials ---------------------------------------------------------------------------------------------------------


def test_a_serial_says_country_region_scheme_kind_lot_months_and_units() -> None:
    pool = issued(12)
    assert serial(pool, 1, (1, 12)) == "CN-330500-HZTPH-SHAREDBIKE.20251-1.L001-202501-202506-00000001-00000012"
    assert do(pool, selling(5)).serials == (serial(pool, 1, (1, 5)),)


def test_a_certificate_bears_its_lot_s_name() -> None:
    pool = issued(2)
    do(pool, selling(1))
    assert do(pool, retiring(1)).certificate == "CN-330500-HZTPH-SHAREDBIKE.20251-1.L001-202501-202506-R000001"


def test_a_lot_is_issued_with_the_serial_of_all_its_units() -> None:
    pool = Pool("pool_1")
    do(pool, opening())
    do(pool, sealing(), gathered(7 * MG_PER_KG))
    do(pool, verifying(7 * MG_PER_KG))
    event = do(pool, issuing())
    assert isinstance(event, LotIssued)
    assert event.serial == serial(pool, 1, (1, 7))


# -- identities ------------------------------------------------------------------------------------------------------


def test_identities_are_claimed_within_their_pool_or_lot() -> None:
    assert opening().claim() == ("pool", "pool_1")
    assert sealing(2).claim() == ("seal", "pool_1", "2")
    assert verifying(1).claim() == ("verification", "pool_1", "v1")
    assert issuing().claim() == ("lot", "pool_1", "lot_1")
    assert selling(1).claim() == ("sale", "lot_1", "s1")
    assert retiring(1).claim() == ("retirement", "lot_1", "r1")


def test_the_same_id_with_other_content_tells_its_fields() -> None:
    pool = issued(5)
    sold = do(pool, selling(2))
    assert selling(2).differs(sold) == []
    assert selling(3, "bank").differs(sold) == ["buyer", "kg"]
    retired = do(pool, retiring(2))
    assert retiring(2).differs(retired) == []
    assert retiring(2, purpose="event").differs(retired) == ["purpose"]
