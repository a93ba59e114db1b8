"""A merchant's shelf in any order of days: the catalogue beside a list of orders, reckoned anew from the front.

The model keeps no counter: what is left, used and spent is counted from the orders themselves after each step.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from carbon_points.domain.event import Command
from carbon_points.domain.offer import (
    Catalogue,
    ChangeCampaign,
    ChangeOffer,
    OpenCampaign,
    PublishOffer,
    Taken,
    Use,
    decide,
    evolve,
    give_back,
    reserve,
    sell,
    take,
    use_of,
)
from carbon_points.domain.quantity import civil_day
from carbon_points.domain.refusal import Refusal
from tests.given import DAY, HOUR, MINUTE, NOON

OFFERS, RESIDENTS = ["tea", "cake"], ["res_1", "res_2"]
offers, residents = st.sampled_from(OFFERS), st.sampled_from(RESIDENTS)
few, limits = st.integers(1, 3), st.none() | st.integers(1, 8)
pick = st.integers(0, 10**6)


@dataclass
class Order:
    offer: str
    resident: str
    day: date
    points: int
    fen: int
    items: int  # that it has, reserved or sold
    captured: bool
    taken: Taken


class Shelf(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = NOON + 11 * HOUR + 30 * MINUTE  # half an hour before midnight in China
        self.changes = 0
        self.catalogue = Catalogue()
        self.orders: list[Order] = []
        self.put_up: dict[str, int] = {}
        self.terms: dict[str, dict[str, Any]] = {}
        self.budget: dict[str, int | None] = {}

    def do(self, command: Command) -> None:
        for event in decide(self.catalogue, command, now=self.now):
            evolve(self.catalogue, event)

    def count(self, which: Callable[[Order], bool]) -> int:
        return sum(order.items for order in self.orders if which(order))

    def having(self, *, captured: bool) -> list[Order]:
        return [order for order in self.orders if order.items and order.captured == captured]

    def spent(self) -> tuple[int, int]:
        return sum(o.items * o.points for o in self.orders), sum(o.items * o.fen for o in self.orders)

    @initialize(
        stock=st.integers(3, 30),
        points=st.none() | st.integers(40, 300),
        fen=st.none() | st.integers(50, 300),
        bounds=st.fixed_dictionaries({"per_resident": limits, "per_resident_day": limits, "per_day": limits}),
    )
    def open(self, stock: int, points: int | None, fen: int | None, bounds: dict[str, Any]) -> None:
        self.budget = {"points": points, "fen": fen}
        self.do(OpenCampaign(merchant="bakery", campaign="spring", title="春", budget_points=points, budget_fen=fen))
        for offer, price in (("tea", 5), ("cake", 11)):
            said: dict[str, Any] = {"points": price, "amount_fen": 7} | bounds
            self.put_up[offer], self.terms[offer] = stock, said | {"withdrawn": False}
            self.do(PublishOffer(merchant="bakery", offer=offer, title=offer, stock=stock, campaign="spring", **said))

    @rule(by=st.sampled_from([HOUR, -HOUR, DAY]))
    def clock(self, by: timedelta) -> None:
        self.now += by

    @rule(
        offer=offers,
        said=st.fixed_dictionaries(
            {},
            optional={
                "points": st.integers(1, 20),
                "amount_fen": st.integers(0, 20),
                "per_resident": limits,
                "per_resident_day": limits,
                "per_day": limits,
                "withdrawn": st.sampled_from([False, False, False, True]),
                "restock": st.integers(-5, 8),
            },
        ),
    )
    def change(self, offer: str, said: dict[str, Any]) -> None:
        self.changes += 1
        restock = said.get("restock", 0)
        new = self.terms[offer] | {field: value for field, value in said.items() if field != "restock"}
        left = self.put_up[offer] - self.count(lambda o: o.offer == offer)
        expected = "restock-exceeds-stock" if left + restock < 0 else None
        if not expected and not restock and new == self.terms[offer]:
            expected = "nothing-to-change"
        command = ChangeOffer(merchant="bakery", offer=offer, change_id=str(self.changes), **said)
        if expected:
            with pytest.raises(Refusal) as refused:
                self.do(command)
            assert refused.value.code == expected
            return
        self.do(command)
        self.terms[offer] = new
        self.put_up[offer] += restock

    @rule(asset=st.sampled_from(["points", "fen"]), budget=st.none() | st.integers(0, 400))
    def change_budget(self, asset: str, budget: int | None) -> None:
        if budget == self.budget[asset]:
            return
        self.changes += 1
        said: dict[str, Any] = {f"budget_{asset}": budget}
        command = ChangeCampaign(merchant="bakery", campaign="spring", change_id=str(self.changes), **said)
        spent = self.spent()[asset == "fen"]
        if budget is not None and budget < spent:
            with pytest.raises(Refusal) as refused:
                self.do(command)
            assert refused.value.code == "budget-below-spent"
            return
        self.do(command)
        self.budget[asset] = budget

    def day(self, offer: str) -> date:
        days = [order.day for order in self.orders if order.offer == offer]
        return max([civil_day(self.now), *days])

    def expected(self, offer: str, resident: str, items: int) -> str | None:
        """The code with which the order is refused, by counting orders."""
        terms, day = self.terms[offer], self.day(offer)
        points, fen = self.spent()

        def over(limit: str, which: Callable[[Order], bool]) -> bool:
            most = terms[limit]
            return most is not None and self.count(lambda o: o.offer == offer and which(o)) + items > most

        if terms["withdrawn"]:
            return "offer-not-open"
        if self.count(lambda o: o.offer == offer) + items > self.put_up[offer]:
            return "offer-sold-out"
        if over("per_resident", lambda o: o.resident == resident):
            return "offer-limit-reached"
        if over("per_resident_day", lambda o: o.resident == resident and o.day == day):
            return "offer-limit-reached"
        if over("per_day", lambda o: o.day == day):
            return "offer-day-limit-reached"
        if self.budget["points"] is not None and points + items * terms["points"] > self.budget["points"]:
            return "campaign-spent"
        if self.budget["fen"] is not None and fen + items * terms["amount_fen"] > self.budget["fen"]:
            return "campaign-spent"
        return None

    @rule(orders=st.lists(st.tuples(offers, residents, few), min_size=1, max_size=6))
    def place(self, orders: list[tuple[str, str, int]]) -> None:
        for order in orders:
            self.place_one(*order)

    def place_one(self, offer: str, resident: str, items: int) -> None:
        expected = self.expected(offer, resident, items)
        if expected:
            before = deepcopy(self.catalogue)
            with pytest.raises(Refusal) as refused:
                reserve(self.catalogue, offer=offer, resident=resident, items=items, now=self.now)
            assert (refused.value.code, self.catalogue) == (expected, before)
            return
        terms, day = self.terms[offer], self.day(offer)
        taken = reserve(self.catalogue, offer=offer, resident=resident, items=items, now=self.now)
        take(self.catalogue, taken)
        assert (taken.day, taken.points, taken.amount_fen) == (day, terms["points"], terms["amount_fen"])
        self.orders.append(
            Order(offer, resident, day, taken.points, taken.amount_fen, items, captured=False, taken=taken)
        )

    @rule(offer=offers, resident=residents, items=few)
    def take_and_give_back(self, offer: str, resident: str, items: int) -> None:
        """It is as if nothing had been, but for the day that has begun."""
        if self.expected(offer, resident, items):
            return
        before = deepcopy(self.catalogue)
        taken = reserve(self.catalogue, offer=offer, resident=resident, items=items, now=self.now)
        take(self.catalogue, taken)
        give_back(self.catalogue, taken, items)
        use = before.uses.setdefault(use_of(offer, resident), Use())
        for counter in (before.offers[offer], use):
            if counter.day != taken.day:
                counter.day, counter.day_items = taken.day, 0
        assert self.catalogue == before
        self.orders.append(Order(offer, resident, taken.day, taken.points, taken.amount_fen, 0, True, taken))

    @precondition(lambda self: self.having(captured=False))
    @rule(number=pick, part=few)
    def capture(self, number: int, part: int) -> None:
        held = self.having(captured=False)
        order = held[number % len(held)]
        items = min(part, order.items)
        sell(self.catalogue, order.taken, items)
        order.items, order.captured = items, True

    @precondition(lambda self: self.having(captured=False))
    @rule(number=pick)
    def void(self, number: int) -> None:
        held = self.having(captured=False)
        order = held[number % len(held)]
        give_back(self.catalogue, order.taken, order.items)
        order.items = 0

    @precondition(lambda self: self.having(captured=True))
    @rule(number=pick, part=few)
    def refund(self, number: int, part: int) -> None:
        bought = self.having(captured=True)
        order = bought[number % len(bought)]
        items = min(part, order.items)
        give_back(self.catalogue, order.taken, items)
        order.items -= items

    @invariant()
    def the_counters_are_what_the_orders_come_to(self) -> None:
        for name, offer in self.catalogue.offers.items():
            assert offer.reserved == self.count(lambda o: o.offer == name and not o.captured)  # noqa: B023  # at once
            assert offer.sold == self.count(lambda o: o.offer == name and o.captured)  # noqa: B023  # at once
            assert offer.day_items == self.count(lambda o: o.offer == name and o.day == offer.day)  # noqa: B023  # at once
            assert offer.stock is not None
            assert offer.stock >= 0
            assert offer.stock + offer.reserved + offer.sold == self.put_up[name]
            for resident in RESIDENTS:
                if use := self.catalogue.uses.get(use_of(name, resident)):
                    theirs = [o for o in self.orders if (o.offer, o.resident) == (name, resident)]
                    assert use.items == sum(o.items for o in theirs)
                    assert use.day_items == sum(o.items for o in theirs if o.day == use.day)
        for campaign in self.catalogue.campaigns.values():
            assert (campaign.spent_points, campaign.spent_fen) == self.spent()
            assert campaign.budget_points is None or campaign.spent_points <= campaign.budget_points
            assert campaign.budget_fen is None or campaign.spent_fen <= campaign.budget_fen


TestShelf = Shelf.TestCase
TestShelf.settings = settings(stateful_step_count=40)
