"""Recording: what counts, on which day, within which caps, and every refusal in its order."""

from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carbon_points.domain.account import (
    CLOCK_SKEW,
    AccountIsFrozen,
    AccountUnknown,
    ActionCredited,
    ConsentMissing,
    FreezeAccount,
    FrozenAlready,
    OccurredInFuture,
    ReportedTooLate,
    WithdrawConsent,
)
from carbon_points.domain.methodology import (
    BehaviourUnknown,
    NoMethodologyInForce,
    QuantityAboveMost,
    QuantityBelowLeast,
    UnitMismatch,
    digest_of,
)
from tests.given import DAY, HOUR, NOON, Life, china, reversal, ride, source, table

SECOND = timedelta(seconds=1)


def test_an_action_is_credited_with_everything_a_stranger_needs_to_recompute_it() -> None:
    life = Life(table(caps='day = { quantity = "3" }'))
    [credited] = life.do(ride(quantity=Decimal("3.5"), county="330502"))
    assert credited == ActionCredited(
        recorded_at=NOON,
        resident="res_1",
        source="szt",
        record_id="1",
        behaviour="bus",
        quantity=Decimal("3.5"),
        unit="km",
        occurred_at=NOON,
        methodology="bus",
        version="1",
        digest=digest_of(table(caps='day = { quantity = "3" }')),
        counted=Decimal(3),
        reduction_mg=6_000,
        points=10,
        expires_on=date(2026, 6, 30),
        consent_id="c1",
        county="330502",
        limits=("day.quantity",),
    )
    assert (life.available, life.account.total_mg) == (10, 6_000)


def test_points_expire_from_the_day_they_are_credited_however_late_the_report() -> None:
    life = Life()
    [credited] = life.do(ride(occurred_at=china("2022-02-03 10:00")))
    assert credited.expires_on == date(2026, 6, 30)


@pytest.mark.parametrize("said", [None, "330502"])
def test_the_county_of_an_action_is_the_report_s_or_the_resident_s_or_the_source_s(said: str | None) -> None:
    life = Life(sources=[source(county="440300")])
    [credited] = life.do(ride(county=said))
    assert credited.county == (said or "440300")


# -- refusals --------------------------------------------------------------------------------------------------------


def test_the_refusals_of_recording_come_in_order() -> None:
    """One report with every fault at once, mended fault by fault."""
    strict = source(opens_accounts=False, lateness_days=5)
    life = Life(table(), sources=[strict], opened=False)
    wrong: dict[str, Any] = {
        "behaviour": "flying",
        "occurred_at": china("2019-12-31 23:59"),
        "unit": "mile",
        "quantity": Decimal(0),
    }

    def refused(kind: type[Exception], **mended: Any) -> None:
        wrong.update(mended)
        with pytest.raises(kind):
            life.do(ride(**wrong))

    refused(BehaviourUnknown)
    refused(NoMethodologyInForce, behaviour="bus")
    refused(UnitMismatch, occurred_at=NOON + DAY)
    refused(QuantityBelowLeast, unit="km")
    refused(QuantityAboveMost, quantity=Decimal(1000))
    refused(OccurredInFuture, quantity=Decimal(1))
    refused(ReportedTooLate, occurred_at=NOON - 6 * DAY)
    refused(AccountUnknown, occurred_at=NOON)
    life.account = Life(sources=[strict]).account
    life.do(FreezeAccount(resident="res_1", frozen=True, reason="a test card"))
    life.do(WithdrawConsent(resident="res_1", consent_id="c1"))
    refused(AccountIsFrozen)
    life.do(FreezeAccount(resident="res_1", frozen=False, reason="no test card"))
    refused(ConsentMissing)


def test_a_source_s_clock_may_run_a_little_ahead_of_ours() -> None:
    assert Life().do(ride(occurred_at=NOON + CLOCK_SKEW))
    with pytest.raises(OccurredInFuture):
        Life().do(ride(occurred_at=NOON + CLOCK_SKEW + SECOND))


def test_a_source_s_lateness_is_counted_to_the_second() -> None:
    life = Life(sources=[source(lateness_days=5)])
    assert life.do(ride(occurred_at=NOON - 5 * DAY))
    with pytest.raises(ReportedTooLate):
        life.do(ride("2", occurred_at=NOON - 5 * DAY - SECOND))


def test_a_refusal_changes_nothing() -> None:
    life = Life()
    before = (len(life.events), life.available)
    with pytest.raises(QuantityBelowLeast):
        life.do(ride(quantity=Decimal("0.5")))
    assert (len(life.events), life.available) == before


def test_freezing_to_how_it_already_stands_is_refused() -> None:
    life = Life()
    with pytest.raises(FrozenAlready):
        life.do(FreezeAccount(resident="res_1", frozen=False, reason="-"))
    life.do(FreezeAccount(resident="res_1", frozen=True, reason="-"))
    with pytest.raises(FrozenAlready):
        life.do(FreezeAccount(resident="res_1", frozen=True, reason="-"))


# -- the day it counts on --------------------------------------------------------------------------------------------


def test_an_action_counts_by_the_version_in_force_when_it_happened_not_when_it_came() -> None:
    life = Life(table(version="1"), table(version="2", begins="2025-06-01", grams="3"))
    [old] = life.do(ride("1", occurred_at=china("2025-05-31 23:59:59")))
    [new] = life.do(ride("2", occurred_at=china("2025-06-01 00:00")))
    assert (old.version, old.reduction_mg, new.version, new.reduction_mg) == ("1", 2_000, "2", 3_000)


def test_a_late_arrival_counts_within_the_caps_of_its_own_day() -> None:
    life = Life(table(caps="day = { count = 2 }"))
    today = [life.do(ride(f"today {n}"))[0].points for n in range(3)]
    late = [life.do(ride(f"late {n}", occurred_at=NOON - DAY))[0].points for n in range(3)]
    assert (today, late) == ([10, 10, 0], [10, 10, 0])


def test_a_day_s_cap_ends_at_midnight_in_china() -> None:
    life = Life(table(caps="day = { count = 1 }"), at=china("2025-06-16 08:00"))
    before, at, after = (
        life.do(ride(text, occurred_at=china(text)))[0].points
        for text in ("2025-06-14 23:59:59", "2025-06-15 00:00:00", "2025-06-15 23:59:59")
    )
    assert (before, at, after) == (10, 10, 0)


def test_a_month_s_and_a_year_s_cap_hold_across_out_of_order_arrivals() -> None:
    life = Life(table(caps="month = { points = 25 }\nyear = { points = 40 }"), at=china("2025-12-31 12:00"))
    days = ["2025-03-05", "2025-12-24", "2025-03-01", "2025-03-31", "2025-01-01", "2024-12-31", "2025-12-31"]
    earned = [life.do(ride(day, occurred_at=china(f"{day} 10:00")))[0] for day in days]
    assert [e.points for e in earned] == [10, 10, 10, 5, 5, 10, 0]
    assert [e.limits for e in earned][3:5] == [("month.points",), ("year.points",)]


def test_a_cap_is_of_one_behaviour_and_says_nothing_of_another() -> None:
    life = Life(table(caps="day = { count = 1 }"), table("walk"))
    life.do(ride())
    assert life.do(ride("2"))[0].points == 0
    assert life.do(ride("3", behaviour="walk"))[0].points == 10


def test_two_versions_of_a_behaviour_share_the_caps_of_their_month() -> None:
    caps = "month = { count = 2 }"
    life = Life(table(caps=caps), table(version="2", begins="2025-06-10", caps=caps))
    days = ["2025-06-09", "2025-06-10", "2025-06-11"]
    assert [life.do(ride(day, occurred_at=china(f"{day} 10:00")))[0].points for day in days] == [10, 10, 0]


def test_a_capped_action_is_kept_with_what_did_not_count() -> None:
    life = Life(table(caps="day = { count = 1 }"))
    life.do(ride())
    [kept] = life.do(ride("2"))
    assert (kept.quantity, kept.counted, kept.reduction_mg, kept.points) == (1, 0, 0, 0)
    assert kept.limits == ("day.count",)


def test_a_reversed_action_leaves_its_place_under_the_cap() -> None:
    life = Life(table(caps='day = { count = 1, quantity = "5", points = 10 }'))
    life.do(ride("1"))
    life.do(reversal("1"))
    [again] = life.do(ride("2"))
    assert (again.points, again.limits) == (10, ())


def test_an_action_that_did_not_count_takes_no_place_under_the_cap() -> None:
    life = Life(table(caps="day = { count = 1 }"))
    life.do(ride("1"))
    life.do(ride("2"))  # too many: kept, and counts nothing
    life.do(reversal("1"))
    [third] = life.do(ride("3"))
    assert third.points == 10


@given(
    st.lists(
        st.tuples(st.sampled_from(["2025-05-31", "2025-06-01", "2025-06-02"]), st.integers(1, 9), st.booleans()),
        max_size=20,
    )
)
def test_a_day_and_a_month_never_hold_more_than_their_caps(reports: list[tuple[str, int, bool]]) -> None:
    caps = 'day = { count = 4, quantity = "12", points = 25 }\nmonth = { quantity = "20", points = 45 }'
    life = Life(table(caps=caps))
    live: dict[str, ActionCredited] = {}
    for number, (day, km, reverse) in enumerate(reports):
        if reverse and live:
            life.do(reversal(live.pop(min(live)).record_id))
            continue
        [credited] = life.do(ride(str(number), quantity=Decimal(km), occurred_at=china(f"{day} 10:00")))
        live[credited.record_id] = credited
        for period, count, quantity, points in ((10, 4, 12, 25), (7, 99, 20, 45)):
            same = [a for a in live.values() if str(a.day)[:period] == day[:period]]
            assert sum(a.counted > 0 for a in same) <= count
            assert sum(a.counted for a in same) <= quantity
            assert sum(a.points for a in same) <= points
    assert life.account.total_mg == sum(a.reduction_mg for a in live.values())


# -- identity --------------------------------------------------------------------------------------------------------


def test_a_report_is_claimed_by_its_source_and_record_id() -> None:
    assert ride("7").claim() == ("action", "szt", "7")
    assert reversal("7").claim() == ("reversal", "szt", "7")


@pytest.mark.parametrize(
    ("said", "fields"),
    [
        ({}, []),
        ({"quantity": Decimal("1.000")}, []),
        ({"occurred_at": NOON.astimezone(china("2025-01-01 00:00").tzinfo)}, []),
        ({"county": None}, []),
        ({"county": "330502"}, []),
        ({"county": "330503"}, ["county"]),
        ({"quantity": Decimal("1.001")}, ["quantity"]),
        ({"resident": "res_2"}, ["resident"]),
        ({"behaviour": "walk", "unit": "step"}, ["behaviour", "unit"]),
        ({"occurred_at": NOON + HOUR}, ["occurred_at"]),
    ],
)
def test_a_repeated_report_differs_only_in_what_it_says_otherwise(said: dict[str, Any], fields: list[str]) -> None:
    [credited] = Life().do(ride(county="330502"))
    assert ride(**said).differs(credited) == fields
