"""What a terminal took while it was offline: let in by the merchant's terms of now, and placed like any payment."""

from datetime import datetime
from typing import Any

import pytest

from carbon_points.domain import merchant
from carbon_points.domain.event import Command, Event
from carbon_points.domain.merchant import ChangeTerms, EnrolTerminal, Merchant, RegisterMerchant, TermsUnchanged
from carbon_points.domain.offline import (
    CLOCK_SKEW,
    Offline,
    OfflineExceedsTerms,
    OfflineInFuture,
    OfflineNotAllowed,
    OfflineTooLate,
)
from carbon_points.domain.order import OrderPlaced, PlaceOrder, RedemptionReversed, ReverseOrder
from carbon_points.domain.refusal import Refusal
from tests.given import HOUR, MINUTE, NOON

TERMS = Offline(most_points=200, most_count=50, most_sum=2000, most_age_hours=24)
SECOND = MINUTE / 60


def shop(offline: Offline | None = TERMS, confirm_above: int | None = None) -> Merchant:
    known = Merchant("shop")
    commands: list[Command] = [
        RegisterMerchant(merchant="shop", name="小店", fen_per_point=2),
        EnrolTerminal(merchant="shop", terminal="t1"),
    ]
    if offline or confirm_above is not None:
        commands.append(ChangeTerms(merchant="shop", confirm_above=confirm_above, offline=offline))
    for command in commands:
        carried(known, command)
    return known


def carried(known: Merchant, command: Command, now: datetime = NOON) -> list[Event]:
    events = merchant.decide(known, command, now=now)
    for event in events:
        merchant.evolve(known, event)
    return events


def taken(at: datetime | None = NOON, points: int = 200, **said: Any) -> PlaceOrder:
    fields = {"merchant": "shop", "terminal": "t1", "redemption_id": "d1", "resident": "res_1", "hold_seconds": 300}
    fields |= {"capture": True, "code": "alw:a1"}
    return PlaceOrder(points=points, captured_offline_at=at, **(fields | said))


def test_it_is_off_until_the_terms_say_otherwise_and_off_again_when_they_do_not() -> None:
    known = shop(None)
    with pytest.raises(OfflineNotAllowed):
        carried(known, taken())
    carried(known, ChangeTerms(merchant="shop", confirm_above=None, offline=TERMS))
    with pytest.raises(TermsUnchanged):
        carried(known, ChangeTerms(merchant="shop", confirm_above=None, offline=TERMS))
    carried(known, taken())
    carried(known, ChangeTerms(merchant="shop", confirm_above=None))
    with pytest.raises(OfflineNotAllowed):
        carried(known, taken(redemption_id="d2"))


@pytest.mark.parametrize(
    ("at", "points"),
    [(NOON, 1), (NOON, 200), (NOON - 24 * HOUR, 200), (NOON + CLOCK_SKEW, 200)],
    ids=["one point", "as many as may be", "as long ago as may be", "by a clock as far ahead as may be"],
)
def test_what_the_terms_allow_is_placed_and_says_when_it_was_taken(at: datetime, points: int) -> None:
    [placed] = carried(shop(), taken(at, points))
    assert isinstance(placed, OrderPlaced)
    assert (placed.captured_offline_at, placed.amount_fen, placed.code) == (at, 2 * points, "alw:a1")


def test_the_resident_agreed_when_they_asked_for_the_allowance() -> None:
    known = shop(confirm_above=10)
    [placed] = carried(known, taken())
    assert isinstance(placed, OrderPlaced)
    assert placed.confirm_seconds == 0
    [placed] = carried(known, taken(None, redemption_id="d2", code="s:1"))
    assert isinstance(placed, OrderPlaced)
    assert placed.confirm_seconds == 60


# In their order: each call has the fault of its line and all of those below.
REFUSED = [
    (RedemptionReversed, TERMS, NOON, 1, True),
    (OfflineNotAllowed, None, NOON + HOUR, 201, False),
    (OfflineInFuture, TERMS, NOON + CLOCK_SKEW + SECOND, 201, False),
    (OfflineTooLate, TERMS, NOON - 24 * HOUR - SECOND, 201, False),
    (OfflineExceedsTerms, TERMS, NOON, 201, False),
]


@pytest.mark.parametrize(
    ("kind", "terms", "at", "points", "reversed_"), REFUSED, ids=lambda one: getattr(one, "code", "")
)
def test_refusals_in_their_order(
    kind: type[Refusal], terms: Offline | None, at: datetime, points: int, reversed_: bool
) -> None:
    known = shop(terms)
    if reversed_:
        undo = {"merchant": "shop", "terminal": "t1", "redemption_id": "d1", "points": 1}
        carried(known, ReverseOrder(**undo, reason="timeout"))
    with pytest.raises(kind):
        merchant.decide(known, taken(at, points), now=NOON)
