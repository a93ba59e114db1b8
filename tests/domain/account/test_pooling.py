"""Pooling: whole months, by one consent to trade that covers all of each, and nothing twice."""

from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest

from carbon_points.domain.account import ConsentMissing, GiveConsent, NothingToPool, ReductionsPooled, WithdrawConsent
from tests.given import Life, china, consent, metro, pooling, ride, table

MARCH, APRIL, MAY = "2025-03", "2025-04", "2025-05"


def trading(name: str = "t1", **said: Any) -> GiveConsent:
    return GiveConsent(resident="res_1", consent=consent(name, "trade", **said))


def begins(month: str) -> datetime:
    return china(f"{month}-01 00:00")


def with_rides(*months: str, consents: tuple[GiveConsent, ...] = (trading(),)) -> Life:
    """A kilometre in each of the months: 2 g."""
    life = Life(at=china("2025-06-20 12:00"))
    for given in consents:
        life.do(given)
    for month in months:
        life.do(ride(month, occurred_at=china(f"{month}-15 12:00")))
    return life


def test_what_was_not_pooled_of_each_month_is_pooled_and_nothing_is_left() -> None:
    life = with_rides(MARCH, APRIL)
    [pooled] = life.do(pooling())
    assert isinstance(pooled, ReductionsPooled)
    assert (pooled.taken, pooled.reduction_mg, pooled.consent_id) == (((MARCH, 2_000), (APRIL, 2_000)), 4_000, "t1")
    assert life.account.unpooled == {}
    assert life.account.total_mg == 4_000  # still what the resident saved
    with pytest.raises(NothingToPool):
        life.do(pooling(gathering=2))


def test_points_stay_where_they_are() -> None:
    life = with_rides(MARCH)
    life.do(pooling())
    assert life.available == 10


def test_what_comes_late_is_pooled_by_the_next_gathering() -> None:
    life = with_rides(MARCH)
    life.do(pooling())
    life.do(ride("late", quantity=Decimal(3), occurred_at=china("2025-03-20 12:00")))
    [second] = life.do(pooling(gathering=2))
    assert second.taken == ((MARCH, 6_000),)


@pytest.mark.parametrize(
    ("first", "last", "taken"),
    [
        (MARCH, MAY, [MARCH, APRIL, MAY]),
        (APRIL, APRIL, [APRIL]),
        (MARCH, APRIL, [MARCH, APRIL]),
        ("2024-01", MARCH, [MARCH]),
        (MAY, "2026-12", [MAY]),
    ],
)
def test_months_from_the_first_to_the_last_are_taken_both_included(first: str, last: str, taken: list[str]) -> None:
    life = with_rides(MARCH, APRIL, MAY)
    [pooled] = life.do(pooling(from_month=first, until_month=last))
    assert [month for month, _ in pooled.taken] == taken


def test_a_month_begins_and_ends_at_midnight_in_china() -> None:
    life = with_rides()
    life.do(ride("last of march", occurred_at=china("2025-03-31 23:59:59")))
    life.do(ride("first of april", quantity=Decimal(2), occurred_at=china("2025-04-01 00:00")))
    assert life.do(pooling(until_month=MARCH))[0].taken == ((MARCH, 2_000),)
    assert life.do(pooling("pool_2"))[0].taken == ((APRIL, 4_000),)


def test_a_pool_takes_one_methodology_and_one_version_of_it() -> None:
    life = Life(table(), table(version="2", begins="2025-05-01"), table("walk"), metro(), at=china("2025-06-20 12:00"))
    life.do(trading())
    life.do(ride("a", occurred_at=china("2025-04-30 12:00")))
    life.do(ride("b", occurred_at=china("2025-05-01 12:00")))
    life.do(ride("c", behaviour="walk", occurred_at=china("2025-04-30 12:00")))
    assert life.do(pooling())[0].taken == ((APRIL, 2_000),)
    assert life.do(pooling("pool_2", version="2"))[0].taken == ((MAY, 2_000),)
    assert life.do(pooling("pool_3", methodology="walk"))[0].taken == ((APRIL, 2_000),)


# -- consent ---------------------------------------------------------------------------------------------------------


def test_the_refusals_of_pooling_come_in_order() -> None:
    life = with_rides(consents=())
    with pytest.raises(NothingToPool):
        life.do(pooling())
    life.do(ride(occurred_at=china("2025-03-15 12:00")))
    with pytest.raises(ConsentMissing) as refused:
        life.do(pooling())
    assert refused.value.facts == {"purpose": "trade", "behaviour": "bus"}


@pytest.mark.parametrize(
    ("said", "covered"),
    [
        ({"from_": begins(APRIL), "until": begins(MAY)}, True),
        ({"from_": china("2025-04-01 00:00:01")}, False),
        ({"until": china("2025-04-30 23:59:59")}, False),
        ({"behaviours": ("bus",)}, True),
        ({"behaviours": ("walk",)}, False),
        ({"source": "szt"}, True),  # whose report it was is not asked: the source narrows recording
    ],
)
def test_a_month_is_pooled_only_under_a_consent_that_covers_all_of_it(said: dict[str, Any], covered: bool) -> None:
    life = with_rides(APRIL, consents=(trading(**said),))
    if covered:
        assert life.do(pooling())[0].taken == ((APRIL, 2_000),)
    else:
        with pytest.raises(ConsentMissing):
            life.do(pooling())


def test_months_that_no_consent_covers_stay_with_the_resident() -> None:
    life = with_rides(MARCH, APRIL, MAY, consents=(trading(from_=begins(APRIL), until=begins(MAY)),))
    [pooled] = life.do(pooling())
    assert pooled.taken == ((APRIL, 2_000),)
    assert life.account.unpooled == {"bus 1 2025-03": 2_000, "bus 1 2025-05": 2_000}


def test_each_pooling_stands_under_one_consent_and_the_next_takes_the_rest() -> None:
    life = with_rides(
        MARCH, APRIL, MAY, consents=(trading("t1", until=begins(APRIL)), trading("t2", from_=begins(APRIL)))
    )
    [first] = life.do(pooling())
    [second] = life.do(pooling(gathering=2))
    assert (first.consent_id, first.taken) == ("t1", ((MARCH, 2_000),))
    assert (second.consent_id, second.taken) == ("t2", ((APRIL, 2_000), (MAY, 2_000)))


def test_a_withdrawn_consent_stops_later_poolings_and_undoes_none() -> None:
    life = with_rides(MARCH)
    life.do(pooling())
    life.do(ride("april", occurred_at=china("2025-04-15 12:00")))
    life.do(WithdrawConsent(resident="res_1", consent_id="t1"))
    with pytest.raises(ConsentMissing):
        life.do(pooling(gathering=2))
    assert (life.account.debt_mg, life.account.total_mg) == (0, 4_000)


def test_the_consent_to_record_is_no_consent_to_trade() -> None:
    with pytest.raises(ConsentMissing):
        with_rides(MARCH, consents=()).do(pooling())


# -- identity --------------------------------------------------------------------------------------------------------


def test_a_pooling_is_claimed_by_pool_gathering_and_resident() -> None:
    assert pooling(gathering=3).claim() == ("pooling", "pool_1", "3", "res_1")
    [pooled] = with_rides(MARCH).do(pooling())
    assert pooling().differs(pooled) == []
    assert pooling(version="2", from_month="2025-02").differs(pooled) == ["version", "from_month"]
