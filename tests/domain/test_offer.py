"""Offers: who may have how many of what, in which order it is refused, and that what comes back is what was taken."""

from copy import deepcopy
from datetime import date, datetime
from typing import Any

import pytest

from carbon_points.domain.event import Command
from carbon_points.domain.offer import (
    BUDGET_MOST,
    CAMPAIGNS_MOST,
    COUNT_MOST,
    ITEM_FEN_MOST,
    ITEM_POINTS_MOST,
    ITEMS_MOST,
    BudgetBelowSpent,
    CampaignSpent,
    CampaignsTooMany,
    CampaignUnknown,
    Catalogue,
    ChangeCampaign,
    ChangeOffer,
    ItemsInvalid,
    Offer,
    OfferChanged,
    OfferDayLimitReached,
    OfferInvalid,
    OfferLimitReached,
    OfferNotOpen,
    OfferSoldOut,
    OfferSpanInvalid,
    OfferUnknown,
    OpenCampaign,
    PublishOffer,
    RestockExceedsStock,
    Taken,
    decide,
    evolve,
    give_back,
    reserve,
    sell,
    take,
    use_of,
)
from carbon_points.domain.quantity import CHINA, civil_day
from carbon_points.domain.refusal import Refusal, TimeWithoutOffset
from carbon_points.domain.source import NothingToChange
from tests.given import DAY, HOUR, NOON, china

TODAY = date(2025, 6, 15)


def publishing(**said: Any) -> PublishOffer:
    """Tea for 20 points, worth 50 fen, ten of it."""
    fields: dict[str, Any] = {"merchant": "bakery", "offer": "tea", "title": "茶一杯", "points": 20, "amount_fen": 50}
    fields["stock"] = 10
    return PublishOffer(**(fields | said))


def changing(change_id: str = "h1", **said: Any) -> ChangeOffer:
    fields: dict[str, Any] = {"merchant": "bakery", "offer": "tea"}
    return ChangeOffer(**(fields | said), change_id=change_id)


def opening(**said: Any) -> OpenCampaign:
    fields: dict[str, Any] = {"merchant": "bakery", "campaign": "spring", "title": "春茶节"}
    return OpenCampaign(**(fields | said))


def altering(change_id: str = "h1", **said: Any) -> ChangeCampaign:
    fields: dict[str, Any] = {"merchant": "bakery", "campaign": "spring"}
    return ChangeCampaign(**(fields | said), change_id=change_id)


def after(*commands: Command) -> Catalogue:
    catalogue = Catalogue()
    for command in commands:
        do(catalogue, command)
    return catalogue


def do(catalogue: Catalogue, command: Command) -> None:
    for event in decide(catalogue, command, now=NOON):
        evolve(catalogue, event)


def ordering(
    catalogue: Catalogue, items: int = 1, *, resident: str = "res_1", at: datetime = NOON, offer: str = "tea"
) -> Taken:
    taken = reserve(catalogue, offer=offer, resident=resident, items=items, now=at)
    take(catalogue, taken)
    return taken


# -- the catalogue ---------------------------------------------------------------------------------------------------


def test_an_offer_stands_as_it_was_published() -> None:
    offer = after(publishing(per_resident=2, per_day=5, opens_at=NOON, closes_at=NOON + DAY)).offers["tea"]
    assert offer == Offer("tea", "茶一杯", 20, 50, 10, per_resident=2, per_day=5, opens_at=NOON, closes_at=NOON + DAY)


@pytest.mark.parametrize(
    ("field", "least", "most"),
    [
        ("points", 1, ITEM_POINTS_MOST),
        ("amount_fen", 0, ITEM_FEN_MOST),
        ("stock", 0, COUNT_MOST),
        ("per_resident", 1, COUNT_MOST),
        ("per_resident_day", 1, COUNT_MOST),
        ("per_day", 1, COUNT_MOST),
    ],
)
def test_a_number_out_of_bounds_is_refused_and_its_bounds_are_taken(field: str, least: int, most: int) -> None:
    for value in (least, most):
        assert getattr(after(publishing(**{field: value})).offers["tea"], field) == value
    for value in (least - 1, most + 1):
        with pytest.raises(OfferInvalid) as refused:
            after(publishing(**{field: value}))
        assert refused.value.facts == {"field": field, "value": value, "least": least, "most": most}


@pytest.mark.parametrize("field", ["budget_points", "budget_fen"])
def test_a_budget_is_from_nothing_to_ten_trillion_yuan(field: str) -> None:
    assert after(opening(**{field: 0})).campaigns
    assert after(opening(**{field: BUDGET_MOST})).campaigns
    for value in (-1, BUDGET_MOST + 1):
        with pytest.raises(OfferInvalid):
            after(opening(**{field: value}))


def test_what_cannot_be_published_is_refused_in_order() -> None:
    wrong: dict[str, Any] = {"points": 0, "opens_at": datetime(2025, 1, 1), "closes_at": NOON, "campaign": "spring"}  # noqa: DTZ001  # the fault
    for refusal, better in (
        (OfferInvalid, {"points": 20}),
        (TimeWithoutOffset, {"opens_at": NOON}),
        (OfferSpanInvalid, {"closes_at": NOON + HOUR}),
        (CampaignUnknown, {"campaign": None}),
    ):
        with pytest.raises(refusal):
            after(publishing(**wrong))
        wrong |= better
    assert after(publishing(**wrong)).offers["tea"].open(NOON)


def test_times_are_kept_in_utc_whatever_offset_they_are_said_with() -> None:
    [event] = decide(Catalogue(), publishing(opens_at=NOON.astimezone(CHINA)), now=NOON)
    assert publishing(opens_at=NOON).differs(event) == []
    assert str(after(publishing(opens_at=NOON.astimezone(CHINA))).offers["tea"].opens_at) == "2025-06-15 04:00:00+00:00"


def test_a_change_says_all_terms_anew_and_leaves_alone_what_it_does_not_name() -> None:
    catalogue = after(publishing(per_resident=2, closes_at=NOON + DAY))
    [event] = decide(catalogue, changing(points=25, per_resident=None, restock=5), now=NOON)
    assert event == OfferChanged(
        recorded_at=NOON,
        merchant="bakery",
        offer="tea",
        change_id="h1",
        title="茶一杯",
        points=25,
        amount_fen=50,
        restock=5,
        closes_at=NOON + DAY,
    )
    evolve(catalogue, event)
    assert catalogue.offers["tea"] == Offer("tea", "茶一杯", 25, 50, 15, closes_at=NOON + DAY)


def test_what_cannot_be_changed_is_refused_in_order() -> None:
    catalogue = after(publishing())
    ordering(catalogue, 3)
    wrong: dict[str, Any] = {"points": 0, "offer": "cake", "closes_at": NOON, "opens_at": NOON, "restock": -8}
    for refusal, better in (
        (OfferInvalid, {"points": 20}),
        (OfferUnknown, {"offer": "tea"}),
        (OfferSpanInvalid, {"opens_at": None}),
        (RestockExceedsStock, {"restock": COUNT_MOST - 9}),
        (OfferInvalid, {"restock": 0}),
    ):
        with pytest.raises(refusal):
            do(catalogue, changing(**wrong))
        wrong |= better
    do(catalogue, changing(**wrong))
    with pytest.raises(NothingToChange):
        do(catalogue, changing(**wrong))


def test_what_has_no_count_cannot_be_restocked() -> None:
    with pytest.raises(RestockExceedsStock):
        after(publishing(stock=None), changing(restock=1))


def test_all_that_is_left_can_be_taken_off_the_shelf() -> None:
    catalogue = after(publishing(), changing(restock=-10))
    with pytest.raises(OfferSoldOut):
        ordering(catalogue)


def test_a_budget_cannot_be_put_below_what_is_spent() -> None:
    catalogue = after(opening(budget_fen=1000), publishing(campaign="spring"))
    ordering(catalogue, 3)
    with pytest.raises(BudgetBelowSpent) as refused:
        do(catalogue, altering(budget_fen=149))
    assert refused.value.facts == {"asset": "fen", "budget": 149, "spent": 150}
    do(catalogue, altering(budget_fen=150, title="夏"))
    assert catalogue.campaigns["spring"].title == "夏"
    with pytest.raises(NothingToChange):
        do(catalogue, altering(budget_fen=150))
    with pytest.raises(CampaignSpent):
        ordering(catalogue)


def test_a_closed_campaign_is_gone_and_what_comes_back_to_it_later_comes_back_to_the_stock() -> None:
    catalogue = after(opening(budget_points=100), publishing(campaign="spring"))
    taken = ordering(catalogue, 2)
    do(catalogue, altering(closed=True))
    with pytest.raises(OfferNotOpen):
        ordering(catalogue)
    for command in (altering("h2", title="夏"), publishing(offer="cake", campaign="spring")):
        with pytest.raises(CampaignUnknown):
            do(catalogue, command)
    give_back(catalogue, taken, 2)
    assert (catalogue.offers["tea"].stock, catalogue.campaigns) == (10, {})


def test_a_merchant_has_so_many_campaigns_at_a_time_and_no_more() -> None:
    catalogue = after(*(opening(campaign=f"c{n}") for n in range(CAMPAIGNS_MOST)))
    with pytest.raises(CampaignsTooMany):
        do(catalogue, opening())
    do(catalogue, altering(campaign="c7", closed=True))
    do(catalogue, opening())


def test_identities_are_claimed_within_their_merchant() -> None:
    assert publishing().claim() == ("offer", "bakery", "tea")
    assert changing().claim() == ("offer-change", "bakery", "tea", "h1")
    assert opening().claim() == ("campaign", "bakery", "spring")
    assert altering().claim() == ("campaign-change", "bakery", "spring", "h1")


def test_the_same_again_differs_in_nothing_and_other_content_in_what_it_names() -> None:
    catalogue = after(opening())
    for command, other, fields in (
        (publishing(), publishing(points=21, stock=None), ["points", "stock"]),
        (opening(), opening(budget_fen=5), ["budget_fen"]),
        (altering(budget_fen=5), altering(budget_fen=6, closed=True), ["budget_fen", "closed"]),
    ):
        [event] = decide(catalogue, command, now=NOON)
        assert (command.differs(event), other.differs(event)) == ([], fields)
    [changed] = decide(after(publishing()), changing(points=25), now=NOON)
    assert changing(points=25).differs(changed) == []
    assert changing(points=26, restock=1).differs(changed) == ["points", "restock"]


# -- orders ----------------------------------------------------------------------------------------------------------


def refused(catalogue: Catalogue, items: int, at: datetime = NOON, offer: str = "tea") -> Refusal:
    with pytest.raises(Refusal) as found:
        ordering(catalogue, items, at=at, offer=offer)
    return found.value


def test_an_order_that_cannot_be_is_refused_in_order_and_takes_nothing() -> None:
    catalogue = after(
        opening(budget_points=0),
        publishing(campaign="spring", per_resident=3, per_resident_day=2, per_day=1, opens_at=NOON, stock=3),
    )
    before = deepcopy(catalogue)
    too_many = ITEMS_MOST + 1
    assert isinstance(refused(catalogue, 0, NOON - HOUR, "cake"), ItemsInvalid)
    assert isinstance(refused(catalogue, too_many, NOON - HOUR, "cake"), ItemsInvalid)
    assert isinstance(refused(catalogue, ITEMS_MOST, NOON - HOUR, "cake"), OfferUnknown)
    assert isinstance(refused(catalogue, ITEMS_MOST, NOON - HOUR), OfferNotOpen)
    assert isinstance(refused(catalogue, ITEMS_MOST), OfferSoldOut)
    assert catalogue == before
    do(catalogue, changing(restock=7))
    found = refused(catalogue, 4)
    assert isinstance(found, OfferLimitReached)
    assert found.facts == {"offer": "tea", "limit": "per_resident", "used": 0, "most": 3, "wanted": 4}
    assert refused(catalogue, 3).facts["limit"] == "per_resident_day"
    assert isinstance(refused(catalogue, 2), OfferDayLimitReached)
    found = refused(catalogue, 1)
    assert isinstance(found, CampaignSpent)
    assert found.facts == {"campaign": "spring", "asset": "points", "left": 0, "wanted": 20}
    do(catalogue, altering(budget_points=20, budget_fen=49))
    assert refused(catalogue, 1).facts == {"campaign": "spring", "asset": "fen", "left": 49, "wanted": 50}
    do(catalogue, altering("h2", budget_fen=50))
    assert ordering(catalogue) == Taken("tea", "res_1", TODAY, 20, 50, "spring", reserved=1)


def test_the_last_item_is_ordered_once() -> None:
    catalogue = after(publishing(stock=1))
    ordering(catalogue)
    assert refused(catalogue, 1).facts == {"offer": "tea", "left": 0, "wanted": 1}


def test_an_offer_can_be_had_from_its_first_instant_until_before_its_last() -> None:
    catalogue = after(publishing(opens_at=NOON, closes_at=NOON + HOUR))
    assert isinstance(refused(catalogue, 1, NOON - HOUR / 3600), OfferNotOpen)
    ordering(catalogue, at=NOON)
    ordering(catalogue, at=NOON + HOUR - HOUR / 3600)
    assert isinstance(refused(catalogue, 1, NOON + HOUR), OfferNotOpen)


def test_an_offer_that_is_withdrawn_cannot_be_had_until_it_is_put_back() -> None:
    catalogue = after(publishing(), changing(withdrawn=True))
    assert isinstance(refused(catalogue, 1), OfferNotOpen)
    do(catalogue, changing(withdrawn=False))
    ordering(catalogue)


def test_a_price_holds_for_orders_from_then_on() -> None:
    catalogue = after(opening(budget_points=1000), publishing(campaign="spring"))
    earlier = ordering(catalogue)
    do(catalogue, changing(points=30, amount_fen=0))
    later = ordering(catalogue)
    assert [(t.points, t.amount_fen) for t in (earlier, later)] == [(20, 50), (30, 0)]
    give_back(catalogue, earlier, 1)
    assert (catalogue.campaigns["spring"].spent_points, catalogue.campaigns["spring"].spent_fen) == (30, 0)


def test_limits_of_a_day_are_those_of_a_day_in_china() -> None:
    catalogue = after(publishing(per_day=2, per_resident_day=1))
    late = china("2025-06-15 23:59")
    ordering(catalogue, at=late)
    assert isinstance(refused(catalogue, 1, late), OfferLimitReached)
    ordering(catalogue, at=late, resident="res_2")
    with pytest.raises(OfferDayLimitReached):
        ordering(catalogue, at=late, resident="res_3")
    ordering(catalogue, at=china("2025-06-16 00:00"))


def test_a_clock_that_is_behind_another_does_not_open_the_day_before_again() -> None:
    catalogue = after(publishing(per_resident_day=1))
    midnight = china("2025-06-16 00:00")
    ordering(catalogue, at=midnight)
    assert isinstance(refused(catalogue, 1, midnight - HOUR / 3600), OfferLimitReached)
    assert ordering(catalogue, at=midnight - HOUR / 3600, resident="res_2").day == civil_day(midnight)


def test_what_comes_back_can_be_had_again_by_the_same_and_on_the_same_day() -> None:
    catalogue = after(
        opening(budget_fen=50), publishing(stock=1, per_resident=1, per_day=1, per_resident_day=1, campaign="spring")
    )
    for _ in range(3):
        give_back(catalogue, ordering(catalogue), 1)
    taken = ordering(catalogue)
    sell(catalogue, taken, 1)
    assert (catalogue.offers["tea"].sold, catalogue.offers["tea"].reserved) == (1, 0)
    give_back(catalogue, taken, 1)
    ordering(catalogue)


def test_what_comes_back_on_a_later_day_leaves_the_later_day_alone() -> None:
    catalogue = after(publishing(per_day=2))
    yesterday = ordering(catalogue, 2, at=NOON)
    ordering(catalogue, at=NOON + DAY)
    give_back(catalogue, yesterday, 2)
    assert (catalogue.offers["tea"].day_items, catalogue.uses[use_of("tea", "res_1")].day_items) == (1, 1)


def test_of_an_order_that_is_captured_in_part_the_rest_goes_back_to_the_shelf() -> None:
    catalogue = after(publishing())
    taken = ordering(catalogue, 5)
    sell(catalogue, taken, 2)
    offer = catalogue.offers["tea"]
    assert (offer.stock, offer.reserved, offer.sold, taken.reserved, taken.sold) == (8, 0, 2, 0, 2)


def test_of_what_has_no_count_there_is_always_another() -> None:
    catalogue = after(publishing(stock=None))
    for _ in range(3):
        ordering(catalogue, ITEMS_MOST)
    assert (catalogue.offers["tea"].stock, catalogue.offers["tea"].reserved) == (None, 3 * ITEMS_MOST)
