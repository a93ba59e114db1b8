"""Points: granted, spent earliest expiry first, held to the second, given back where they came from."""

from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carbon_points.domain.account import (
    HOLD_MOST,
    POINTS_MOST,
    REGRANT_DAYS,
    AccountIsFrozen,
    CaptureExceedsHold,
    FreezeAccount,
    HoldDeclined,
    HoldExpired,
    HoldReleased,
    HoldTimeInvalid,
    InsufficientPoints,
    PointsExpired,
    PointsInvalid,
    RedemptionNotCaptured,
    RedemptionNotHeld,
    RedemptionUnknown,
    RefundExceedsCaptured,
    balance,
)
from carbon_points.domain.event import Event
from tests.given import DAY, Life, capturing, china, holding, refunding, reversal, ride, table, voiding

SECOND = timedelta(seconds=1)
A_POINT_A_KM = table(per="1 km", points=1, most="100000", months=1, expire_at="day")
JULY_15, JULY_20 = date(2025, 7, 15), date(2025, 7, 20)


def earn(life: Life, points: int, record_id: str | None = None) -> str:
    """Points that live for a month from today."""
    name = record_id or f"earned {len(life.events)}"
    life.do(ride(name, quantity=Decimal(points), occurred_at=life.now))
    return name


def with_grants(*, first: int = 30, second: int = 20) -> Life:
    """Points until 15 July, others until 20 July; it is the 20th of June."""
    life = Life(A_POINT_A_KM)
    earn(life, first, "first")
    life.wait(5 * DAY)
    earn(life, second, "second")
    return life


# -- holding ---------------------------------------------------------------------------------------------------------


def test_points_are_held_earliest_expiry_first() -> None:
    life = with_grants()
    [held] = life.do(holding("d1", 40))
    assert held.taken == ((JULY_15, 30), (JULY_20, 10))
    assert (life.available, life.held) == (10, 40)
    [rest] = life.do(holding("d2", 10))
    assert rest.taken == ((JULY_20, 10),)
    assert (life.available, life.held) == (0, 50)


def declined(events: list[Event]) -> str | None:
    """Why nothing was held, if so."""
    return next((event.reason for event in events if isinstance(event, HoldDeclined)), None)


def test_the_refusals_of_holding_come_in_order() -> None:
    life = with_grants()
    life.do(FreezeAccount(resident="res_1", frozen=True, reason="-"))
    for points in (0, -1, POINTS_MOST + 1):
        with pytest.raises(PointsInvalid):
            life.do(holding(points=points, hold_seconds=0))
    for seconds in (0, -1, int(HOLD_MOST.total_seconds()) + 1):
        with pytest.raises(HoldTimeInvalid):
            life.do(holding(points=51, hold_seconds=seconds))
    assert declined(life.do(holding("d8", 51))) == AccountIsFrozen.code
    life.do(FreezeAccount(resident="res_1", frozen=False, reason="-"))
    assert declined(life.do(holding("d9", 51))) == InsufficientPoints.code
    assert (life.available, life.held) == (50, 0)
    assert life.do(holding(points=50))


@pytest.mark.parametrize("seconds", [1, int(HOLD_MOST.total_seconds())])
def test_a_hold_may_be_as_short_as_a_second_and_as_long_as_a_week(seconds: int) -> None:
    [held] = with_grants().do(holding(hold_seconds=seconds))
    assert held.expires_at - held.recorded_at == timedelta(seconds=seconds)


# -- what time decides -----------------------------------------------------------------------------------------------


def test_a_hold_runs_out_to_the_second() -> None:
    life = with_grants()
    life.do(holding("d1", 40, hold_seconds=300))
    life.wait(299 * SECOND)
    assert (life.available, life.held, life.lapse()) == (10, 40, [])
    life.wait(SECOND)
    assert (life.available, life.held) == (50, 0)  # before anything is written down
    [released] = life.lapse()
    assert isinstance(released, HoldReleased)
    assert (released.cause, released.released) == ("expired", ((JULY_15, 30), (JULY_20, 10)))
    assert (life.available, life.held) == (50, 0)


def test_points_live_to_the_end_of_their_last_day_in_china() -> None:
    life = with_grants()
    life.until(china("2025-07-15 23:59:59"))
    assert (life.available, life.lapse()) == (50, [])
    life.wait(SECOND)
    assert life.available == 20
    [expired] = life.lapse()
    assert isinstance(expired, PointsExpired)
    assert expired.taken == ((JULY_15, 30),)
    assert life.available == 20


def test_points_that_a_hold_gives_back_on_their_last_day_live_until_its_end() -> None:
    life = with_grants()
    life.until(china("2025-07-15 12:00"))
    life.do(holding("d1", 30, hold_seconds=60))
    life.wait(60 * SECOND)
    assert [type(event) for event in life.lapse()] == [HoldReleased]
    assert life.available == 50


def test_what_is_due_is_written_before_the_next_decision() -> None:
    life = with_grants()
    life.do(holding("d1", 40))
    life.until(china("2025-07-16 08:00"))
    life.do(holding("d2", 20))
    kinds = [type(event).__name__ for event in life.events[-3:]]
    assert kinds == ["HoldReleased", "PointsExpired", "PointsHeld"]
    assert declined(life.do(holding("d3", 1))) == InsufficientPoints.code


def test_expired_points_cannot_be_spent() -> None:
    life = with_grants()
    life.until(china("2025-07-16 00:00"))
    assert declined(life.do(holding("d1", points=21))) == InsufficientPoints.code
    assert not declined(life.do(holding("d2", points=20)))


def test_points_on_hold_are_spent_even_if_they_would_have_expired_meanwhile() -> None:
    life = with_grants(second=1)
    life.until(china("2025-07-15 23:59"))
    life.do(holding("d1", 30))
    life.wait(2 * 60 * SECOND)
    assert life.do(capturing("d1", 30))[0].taken == ((JULY_15, 30),)


def test_points_of_a_dead_grant_that_a_hold_gives_back_expire_at_once() -> None:
    life = with_grants()
    life.until(china("2025-07-15 23:59"))
    life.do(holding("d1", 30))
    life.until(china("2025-07-16 00:01"))
    life.do(voiding("d1"))
    assert life.available == 20
    [expired] = life.lapse()
    assert expired.taken == ((JULY_15, 30),)


def test_nothing_is_due_where_nothing_has_run_out() -> None:
    life = with_grants()
    life.do(holding("d1", 1))
    assert life.lapse() == []


def test_a_balance_tells_what_expires_next() -> None:
    life = with_grants()
    life.do(holding("d1", 35))
    found = balance(life.account, life.now)
    assert (found.points_available, found.points_held, found.points_debt) == (15, 35, 0)
    assert (found.expiring, found.expiring_on) == (15, JULY_20)
    assert (found.reduction_mg, found.reduction_debt_mg) == (100_000, 0)
    life.until(china("2025-07-21 00:00"))
    after = balance(life.account, life.now)
    assert (after.points_available, after.points_held, after.expiring, after.expiring_on) == (0, 0, 0, None)


# -- capturing and voiding -------------------------------------------------------------------------------------------


def test_a_whole_hold_is_captured_for_its_whole_amount() -> None:
    life = with_grants()
    life.do(holding("d1", 40, amount_fen=199))
    [captured] = life.do(capturing("d1", 40))
    assert (captured.taken, captured.released, captured.amount_fen) == (((JULY_15, 30), (JULY_20, 10)), (), 199)
    assert (captured.merchant, captured.terminal) == ("bakery", "till-1")
    assert (life.available, life.held) == (10, 0)


def test_part_of_a_hold_is_captured_earliest_expiry_first_and_the_rest_goes_back() -> None:
    life = with_grants()
    life.do(holding("d1", 40, amount_fen=100))
    [captured] = life.do(capturing("d1", 33))
    assert captured.taken == ((JULY_15, 30), (JULY_20, 3))
    assert captured.released == ((JULY_20, 7),)
    assert captured.amount_fen == 82  # 82.5, down
    assert (life.available, life.held) == (17, 0)


def test_a_void_gives_everything_back() -> None:
    life = with_grants()
    life.do(holding("d1", 40))
    [released] = life.do(voiding("d1"))
    assert (released.cause, released.released) == ("voided", ((JULY_15, 30), (JULY_20, 10)))
    assert (life.available, life.held) == (50, 0)


@pytest.mark.parametrize("ending", [capturing("d1", 10), voiding("d1")])
def test_the_refusals_of_ending_a_hold_come_in_order(ending: Any) -> None:
    life = with_grants()
    with pytest.raises(RedemptionUnknown):
        life.do(ending)
    life.do(holding("d1", 9, hold_seconds=10))
    life.wait(10 * SECOND)
    with pytest.raises(HoldExpired) as refused:
        life.do(ending)
    assert refused.value.facts["expired_at"] == life.now.isoformat()


def test_a_capture_checks_its_points_first_and_the_hold_s_last() -> None:
    life = with_grants()
    for points in (0, -1, POINTS_MOST + 1):
        with pytest.raises(PointsInvalid):
            life.do(capturing("never held", points))
    life.do(holding("d1", 9))
    with pytest.raises(CaptureExceedsHold) as refused:
        life.do(capturing("d1", 10))
    assert refused.value.facts == {"held": 9, "wanted": 10}
    life.do(capturing("d1", 9))
    with pytest.raises(RedemptionNotHeld):
        life.do(capturing("d1", 10))


@pytest.mark.parametrize("first", [capturing("d1", 10), capturing("d1", 4), voiding("d1")])
@pytest.mark.parametrize("second", [capturing("d1", 5), voiding("d1")])
def test_a_hold_ends_once(first: Any, second: Any) -> None:
    life = with_grants()
    life.do(holding("d1", 10))
    life.do(first)
    with pytest.raises(RedemptionNotHeld):
        life.do(second)


def test_a_frozen_account_may_finish_what_it_began_but_begin_nothing() -> None:
    life = with_grants()
    life.do(holding("d1", 10))
    life.do(holding("d2", 10))
    life.do(FreezeAccount(resident="res_1", frozen=True, reason="-"))
    life.do(capturing("d1", 10))
    life.do(voiding("d2"))
    life.do(refunding(points=10))
    assert declined(life.do(holding("d3", 1))) == AccountIsFrozen.code


# -- refunding -------------------------------------------------------------------------------------------------------


def spent(points: int = 40, amount_fen: int = 100) -> Life:
    life = with_grants()
    life.do(holding("d1", points, amount_fen=amount_fen))
    life.do(capturing("d1", points))
    return life


def test_a_refund_goes_back_to_the_grants_it_came_from_those_that_live_longest_first() -> None:
    life = spent()
    [part] = life.do(refunding("f1", 15))
    assert part.restored == ((JULY_15, 5), (JULY_20, 10))
    assert life.account.redemptions["d1"].status == "partially_refunded"
    [rest] = life.do(refunding("f2", 25))
    assert rest.restored == ((JULY_15, 25),)
    assert life.account.redemptions["d1"].status == "refunded"
    assert life.account.grants == {JULY_15: 30, JULY_20: 20}


def test_a_refund_to_a_dead_grant_is_granted_again_for_a_month() -> None:
    life = spent()
    life.until(china("2025-07-16 09:00"))
    [restored] = life.do(refunding("f1", 40))
    assert restored.restored == ((JULY_20, 10), (date(2025, 7, 16) + timedelta(days=REGRANT_DAYS), 30))
    assert life.available == 50


def test_a_refund_to_grants_that_are_all_dead_is_one_new_grant() -> None:
    life = spent()
    life.until(china("2026-01-01 00:00"))
    [restored] = life.do(refunding("f1", 40))
    assert restored.restored == ((date(2026, 1, 31), 40),)


def test_on_its_last_day_a_grant_takes_its_points_back() -> None:
    life = spent()
    life.until(china("2025-07-15 23:59:59"))
    assert life.do(refunding("f1", 40))[0].restored == ((JULY_15, 30), (JULY_20, 10))


def test_the_refusals_of_refunding_come_in_order() -> None:
    life = with_grants()
    for points in (0, -1, POINTS_MOST + 1):
        with pytest.raises(PointsInvalid):
            life.do(refunding(points=points))
    with pytest.raises(RedemptionUnknown):
        life.do(refunding(points=99))
    life.do(holding("d1", 10))
    with pytest.raises(RedemptionNotCaptured) as refused:
        life.do(refunding(points=99))
    assert refused.value.facts["current_state"] == "held"
    life.do(capturing("d1", 8))
    with pytest.raises(RefundExceedsCaptured) as exceeded:
        life.do(refunding(points=9))
    assert exceeded.value.facts == {"left": 8, "wanted": 9, "current_state": "captured"}
    life.do(refunding("f1", 8))
    with pytest.raises(RefundExceedsCaptured):
        life.do(refunding("f2", 1))


@pytest.mark.parametrize("ending", [voiding("d1"), None], ids=["voided", "expired"])
def test_what_was_never_captured_cannot_be_refunded(ending: Any) -> None:
    life = with_grants()
    life.do(holding("d1", 10))
    if ending:
        life.do(ending)
    life.wait(DAY)
    with pytest.raises(RedemptionNotCaptured):
        life.do(refunding(points=1))


@given(st.integers(1, 60), st.integers(0, 10_000), st.integers(1, 60), st.lists(st.integers(1, 20), max_size=12))
def test_refunds_never_give_back_more_money_than_was_captured_and_all_of_them_all_of_it(
    held: int, amount_fen: int, captured: int, refunds: list[int]
) -> None:
    life = with_grants(first=40, second=20)
    life.do(holding("d1", held, amount_fen=amount_fen))
    captured = min(captured, held)
    [capture] = life.do(capturing("d1", captured))
    assert capture.amount_fen == amount_fen * captured // held
    left, money = captured, 0
    for number, points in enumerate(refunds):
        if points > left:
            continue
        [refund] = life.do(refunding(f"f{number}", points))
        left -= points
        money += refund.amount_fen
        assert refund.amount_fen >= 0
        assert money <= capture.amount_fen
    if left:
        [refund] = life.do(refunding("the rest", left))
        money += refund.amount_fen
    assert money == capture.amount_fen
    assert life.account.grants == {JULY_15: 40, JULY_20: 20}
    assert life.account.redemptions["d1"].status == "refunded"


# -- identity --------------------------------------------------------------------------------------------------------


def test_each_step_of_a_redemption_is_claimed_by_its_own_id() -> None:
    assert holding("d1").claim() == ("redemption", "d1")
    assert capturing("d1").claim() == ("capture", "d1")
    assert voiding("d1").claim() == ("void", "d1")
    assert refunding("f1").claim() == ("refund", "d1", "f1")


@pytest.mark.parametrize(
    ("said", "fields"),
    [
        ({}, []),
        ({"amount_fen": 7}, []),  # the price may have changed since
        ({"points": 11}, ["points"]),
        ({"merchant": "kiosk", "terminal": "till-2"}, ["merchant", "terminal"]),
        ({"hold_seconds": 301}, ["hold_seconds"]),
        ({"resident": "res_2"}, ["resident"]),
    ],
)
def test_a_repeated_hold_differs_in_what_it_says_otherwise_but_for_its_amount(
    said: dict[str, Any], fields: list[str]
) -> None:
    [held] = with_grants().do(holding(amount_fen=10))
    assert sorted(holding(**said).differs(held)) == fields


def test_a_repeated_capture_and_refund_differ_in_their_points() -> None:
    life = spent()
    assert capturing("d1", 40).differs(life.events[-1]) == []
    assert capturing("d1", 39).differs(life.events[-1]) == ["points"]
    [refunded] = life.do(refunding("f1", 5))
    assert refunding("f1", 6).differs(refunded) == ["points"]
    assert reversal("first", reason="other").claim() == ("reversal", "szt", "first")
