"""Reversals: what was earned is taken back, and what is not there any more stands as a debt that is paid first."""

from datetime import timedelta
from decimal import Decimal

import pytest

from carbon_points.domain.account import (
    ActionReversed,
    GiveConsent,
    HoldDeclined,
    InsufficientPoints,
    balance,
)
from carbon_points.domain.refusal import Refusal
from tests.domain.account.test_points import A_POINT_A_KM, JULY_15, JULY_20, earn, with_grants
from tests.given import (
    Life,
    capturing,
    china,
    consent,
    holding,
    pooling,
    refunding,
    reversal,
    ride,
    voiding,
)


def indebted(points: int = 30, *, spend: int = 30) -> Life:
    """Points earned, spent, and then taken back: so many are owed."""
    life = Life(A_POINT_A_KM)
    earn(life, points, "first")
    life.do(holding("d1", spend))
    life.do(capturing("d1", spend))
    life.do(reversal("first"))
    return life


# -- points ----------------------------------------------------------------------------------------------------------


def test_a_reversal_takes_the_points_from_their_own_grant_first() -> None:
    life = with_grants()
    [undone] = life.do(reversal("second"))
    assert isinstance(undone, ActionReversed)
    assert (undone.taken, undone.debt_points) == (((JULY_20, 20),), 0)
    assert life.account.grants == {JULY_15: 30}


def test_what_its_own_grant_lacks_is_taken_from_the_others_earliest_first() -> None:
    life = with_grants()
    life.do(holding("d1", 25))
    [undone] = life.do(reversal("first"))
    assert (undone.taken, undone.debt_points) == (((JULY_15, 5), (JULY_20, 20)), 5)
    assert (life.available, life.held, life.account.debt_points) == (0, 25, 5)


def test_points_already_spent_leave_a_debt_and_never_a_balance_below_zero() -> None:
    life = indebted()
    assert (life.available, life.account.debt_points) == (0, 30)
    [declined] = life.do(holding("d2", 1))
    assert isinstance(declined, HoldDeclined)
    assert declined.reason == InsufficientPoints.code


def test_later_points_pay_the_debt_first() -> None:
    life = indebted()
    [small] = life.do(ride("a", quantity=Decimal(20)))
    [large] = life.do(ride("b", quantity=Decimal(20)))
    assert (small.points, small.debt_points, large.points, large.debt_points) == (20, 20, 20, 10)
    assert (life.available, life.account.debt_points) == (10, 0)


def test_reversing_what_paid_a_debt_brings_the_debt_back() -> None:
    life = indebted()
    life.do(ride("a", quantity=Decimal(40)))
    assert (life.available, life.account.debt_points) == (10, 0)
    [undone] = life.do(reversal("a"))
    assert (undone.points, undone.debt_points) == (40, 30)
    assert (life.available, life.account.debt_points) == (0, 30)


def test_points_released_by_a_void_pay_the_debt_first() -> None:
    life = with_grants()
    life.do(holding("d1", 50))
    life.do(reversal("first"))
    assert (life.available, life.account.debt_points) == (0, 30)
    [released] = life.do(voiding("d1"))
    assert (released.released, released.debt_points) == (((JULY_20, 20),), 30)
    assert (life.available, life.account.debt_points) == (20, 0)


def test_points_released_by_a_part_capture_pay_the_debt_first() -> None:
    life = with_grants()
    life.do(holding("d1", 50))
    life.do(reversal("second"))
    [captured] = life.do(capturing("d1", 20))
    assert (captured.taken, captured.released, captured.debt_points) == (((JULY_15, 20),), ((JULY_20, 10),), 20)
    assert (life.available, life.account.debt_points) == (10, 0)


def test_points_released_by_time_pay_the_debt_first() -> None:
    life = with_grants()
    life.do(holding("d1", 50))
    life.do(reversal("second"))
    life.wait(timedelta(seconds=300))
    [released] = life.lapse()
    assert (released.released, released.debt_points) == (((JULY_15, 10), (JULY_20, 20)), 20)
    assert (life.available, life.account.debt_points) == (30, 0)


def test_refunded_points_pay_the_debt_first() -> None:
    life = indebted()
    [back] = life.do(refunding("f1", 20))
    assert (back.restored, back.debt_points, back.amount_fen) == ((), 20, 20)
    [rest] = life.do(refunding("f2", 10))
    assert (rest.restored, rest.debt_points) == ((), 10)
    assert (life.available, life.account.debt_points) == (0, 0)


def test_points_that_expired_unspent_are_gone_on_both_sides_and_leave_no_debt() -> None:
    life = Life(A_POINT_A_KM)
    earn(life, 30, "first")
    life.until(china("2025-07-16 00:00"))
    [undone] = life.do(reversal("first"))
    assert (undone.points, undone.taken, undone.debt_points) == (30, (), 0)
    assert (life.available, life.account.debt_points, life.account.total_mg) == (0, 0, 0)


def test_points_that_were_spent_before_their_grant_expired_are_owed_and_a_refund_pays_them() -> None:
    """Else a reversal after the expiry and then a refund would give the reversed action's points back to life."""
    life = Life(A_POINT_A_KM)
    earn(life, 30, "first")
    life.do(holding("d1", 20))
    life.do(capturing("d1", 20))
    life.until(china("2025-07-16 00:00"))
    [undone] = life.do(reversal("first"))
    assert (undone.lapsed, undone.taken, undone.debt_points) == (((JULY_15, 10),), (), 20)
    [back] = life.do(refunding("f1", 20))
    assert (back.restored, back.debt_points) == ((), 20)
    assert (life.available, life.account.debt_points) == (0, 0)


def test_on_their_last_day_points_are_still_owed() -> None:
    life = Life(A_POINT_A_KM)
    earn(life, 30, "first")
    life.until(china("2025-07-15 23:59:59"))
    assert life.do(reversal("first"))[0].taken == ((JULY_15, 30),)


# -- reductions ------------------------------------------------------------------------------------------------------


def pooled() -> Life:
    """Three kilometres of June in a pool, two of May not."""
    life = Life(at=china("2025-07-10 12:00"))
    life.do(GiveConsent(resident="res_1", consent=consent("t1", "trade")))
    life.do(ride("june", quantity=Decimal(3), occurred_at=china("2025-06-10 12:00")))
    life.do(pooling(from_month="2025-06", until_month="2025-06"))
    life.do(ride("may", quantity=Decimal(2), occurred_at=china("2025-05-10 12:00")))
    return life


def test_a_reduction_that_was_not_pooled_is_taken_back_from_its_month() -> None:
    life = pooled()
    [undone] = life.do(reversal("may"))
    assert (undone.reduction_mg, undone.debt_mg) == (4_000, 0)
    assert (life.account.unpooled, life.account.debt_mg, life.account.total_mg) == ({}, 0, 6_000)


def test_a_reduction_that_was_pooled_leaves_a_debt_that_later_ones_pay_first() -> None:
    life = pooled()
    [undone] = life.do(reversal("june"))
    assert (undone.reduction_mg, undone.debt_mg) == (6_000, 6_000)
    assert (life.account.debt_mg, life.account.total_mg) == (6_000, 4_000)
    assert life.account.unpooled == {"bus 1 2025-05": 4_000}  # other months are not touched
    [small] = life.do(ride("a", quantity=Decimal(2), occurred_at=china("2025-06-11 12:00")))
    [large] = life.do(ride("b", quantity=Decimal(2), occurred_at=china("2025-06-12 12:00")))
    assert (small.debt_mg, large.debt_mg) == (4_000, 2_000)
    assert life.account.unpooled == {"bus 1 2025-05": 4_000, "bus 1 2025-06": 2_000}
    assert (life.account.debt_mg, life.account.total_mg) == (0, 12_000)
    assert balance(life.account, life.now).reduction_mg == 12_000


def test_reversing_a_reduction_that_paid_a_debt_brings_the_debt_back() -> None:
    life = pooled()
    life.do(reversal("june"))
    life.do(ride("a", quantity=Decimal(2), occurred_at=china("2025-06-11 12:00")))
    [undone] = life.do(reversal("a"))
    assert (undone.debt_mg, life.account.debt_mg, life.account.total_mg) == (4_000, 6_000, 4_000)


# -- whose it is -----------------------------------------------------------------------------------------------------


def test_an_action_of_another_resident_is_not_taken_from_this_one() -> None:
    other = Life(A_POINT_A_KM)
    other.do(ride("theirs", quantity=Decimal(5)))
    life = Life(A_POINT_A_KM)
    life.do(ride("mine", quantity=Decimal(7)))
    theirs = other.reported[("szt", "theirs")]
    life.reported[("szt", "theirs")] = type(theirs)(
        **({f: getattr(theirs, f) for f in theirs.__struct_fields__} | {"resident": "res_2"})
    )
    with pytest.raises(Refusal):
        life.do(reversal("theirs"))
    assert life.available == 7


# -- what time decides, late or on time ------------------------------------------------------------------------------


def in_debt_with_two_holds() -> Life:
    """Hold `b` (until 15 July) runs out an hour before hold `a` (until 20 July); five points are owed."""
    life = with_grants(first=10, second=10)
    life.do(holding("b", 10, hold_seconds=3_600))
    life.do(holding("a", 10, hold_seconds=7_200))
    earn(life, 5, "third")
    life.do(holding("c", 5))
    life.do(capturing("c", 5))
    life.do(reversal("third"))
    assert life.account.debt_points == 5
    return life


def test_what_was_due_long_ago_is_decided_as_it_would_have_been_then() -> None:
    punctual, late = in_debt_with_two_holds(), in_debt_with_two_holds()
    for _ in range(2):
        punctual.wait(timedelta(seconds=3_600))
        punctual.lapse()
    late.wait(timedelta(seconds=7_200))
    late.lapse()
    assert late.account.grants == punctual.account.grants


def test_what_is_shown_as_available_is_what_is_available_once_written_down() -> None:
    life = with_grants(first=10, second=10)
    life.until(china("2025-07-12 09:00"))
    life.do(holding("d1", 20, hold_seconds=4 * 86_400))
    life.do(ride("third", quantity=Decimal(4)))
    life.do(holding("d2", 4))
    life.do(capturing("d2", 4))
    life.do(reversal("third"))
    life.until(china("2025-07-16 09:00"))  # the hold is over, and so is the first grant
    shown = life.available
    life.lapse()
    assert shown == life.available
