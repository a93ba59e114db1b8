"""Offers over HTTP: put up, changed, ordered at a terminal, and given back with what the order comes to."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from carbon_points.api.orders import GRACE
from carbon_points.domain.account import HoldDeclined
from carbon_points.domain.order import PlaceOrder
from carbon_points.journal import codec
from tests.api.city import City, problem, same_again
from tests.conftest import Clock

TEA: dict[str, Any] = {"offer": "tea", "title": "茶一杯", "points": 20, "amount_fen": 50, "stock": 3}


def shop(city: City, **said: Any) -> str:
    """A merchant that nobody had, with the terminal t1 and tea for 20 points."""
    merchant = city.name("shop")
    city.done(city.post("/v1/merchants", {"merchant": merchant, "name": "茶馆", "fen_per_point": 2}))
    city.done(city.post(f"/v1/merchants/{merchant}/terminals", {"terminal": "t1"}))
    city.done(city.post(f"/v1/merchants/{merchant}/offers", TEA | said))
    return merchant


def order(city: City, merchant: str, resident: str, items: int = 1, *, key: str = "", **said: Any) -> Any:
    body = {"resident": resident, "merchant": merchant, "terminal": "t1", "offer": "tea", "items": items} | said
    return city.post("/v1/redemptions", body, by="app", key=key or "new")


def of(city: City, merchant: str) -> tuple[int, int, int]:
    """How many are left, reserved and sold, once every order has taken in what became of it."""
    assert city.installation.finisher.settled(merchant, 5)
    told = city.done(city.get(f"/v1/merchants/{merchant}/offers/tea"))
    return told["stock"], told["reserved"], told["sold"]


class TestTheCatalogue:
    def test_an_offer_is_put_up_once_and_shown(self, city: City) -> None:
        merchant = shop(city)
        first = city.post(f"/v1/merchants/{merchant}/offers", TEA | {"offer": "cake"})
        same_again(first, city.post(f"/v1/merchants/{merchant}/offers", TEA | {"offer": "cake"}))
        told = city.done(city.get(f"/v1/merchants/{merchant}/offers/cake", by="terminal"))
        assert told == first.json()
        assert (told["stock"], told["reserved"], told["sold"], told["open"], told["public"]) == (3, 0, 0, True, False)
        other = city.post(f"/v1/merchants/{merchant}/offers", TEA | {"offer": "cake", "points": 21})
        assert problem(other, 422, "identity-reused")["facts"] == {"fields": ["points"]}

    def test_what_is_not_there_is_told(self, city: City) -> None:
        merchant = shop(city)
        problem(city.get(f"/v1/merchants/{merchant}/offers/nothing"), 404, "offer-unknown")
        problem(city.get("/v1/merchants/nobody/offers/tea"), 404, "merchant-unknown")
        problem(city.post("/v1/merchants/nobody/offers", TEA), 404, "merchant-unknown")
        problem(city.call("PATCH", f"/v1/merchants/{merchant}/offers/nothing", {"points": 1}), 404, "offer-unknown")
        problem(
            city.post(f"/v1/merchants/{merchant}/offers", TEA | {"offer": "cake", "campaign": "x"}),
            404,
            "campaign-unknown",
        )

    def test_a_change_happens_once_and_leaves_alone_what_it_does_not_name(self, city: City) -> None:
        merchant = shop(city, per_resident=2)
        address, body = f"/v1/merchants/{merchant}/offers/tea", {"restock": 4, "per_resident": None}
        same_again(city.call("PATCH", address, body, key="h1"), city.call("PATCH", address, body, key="h1"))
        told = city.done(city.get(address))
        assert (told["stock"], told["points"], told["per_resident"]) == (7, 20, None)
        problem(city.call("PATCH", address, {"restock": 5}, key="h1"), 422, "identity-reused")
        problem(city.call("PATCH", address, {"points": 20}), 409, "nothing-to-change")
        problem(city.call("PATCH", address, {"restock": -8}), 409, "restock-exceeds-stock")

    def test_a_list_tells_what_can_be_had_and_where(self, city: City) -> None:
        merchant = shop(city)
        body = {"offer": "ride", "title": "公交券", "points": 5, "amount_fen": 0}
        body_of_the_city = city.name("city")
        city.done(
            city.post(
                "/v1/merchants", {"merchant": body_of_the_city, "name": "公交", "fen_per_point": 1, "public": True}
            )
        )
        city.done(city.post(f"/v1/merchants/{body_of_the_city}/offers", body))
        last = city.call("PATCH", f"/v1/merchants/{merchant}/offers/tea", {"withdrawn": True})
        reached = {"min_position": last.headers["Carbon-Position"]}
        city.settled()

        def listed(**asked: Any) -> list[str]:
            page = city.done(city.get("/v1/offers", by="app", **reached, **asked))
            return [f"{o['merchant']} {o['offer']}" for o in page["data"]]

        assert listed(merchant=merchant) == [f"{merchant} tea"]
        assert listed(merchant=merchant, open=True) == []
        assert listed(merchant=body_of_the_city, open=True, public=True) == [f"{body_of_the_city} ride"]
        assert listed(merchant=merchant, public=True) == []
        [told] = city.done(city.get("/v1/offers", merchant=body_of_the_city))["data"]
        assert (told["stock"], told["public"], told["merchant_name"], told["closes_at"]) == (None, True, "公交", None)

    def test_a_campaign_is_opened_changed_and_closed(self, city: City) -> None:
        merchant = shop(city)
        address, body = f"/v1/merchants/{merchant}/campaigns", {"campaign": "spring", "title": "春", "budget_fen": 100}
        same_again(city.post(address, body), city.post(address, body))
        assert city.done(city.get(address))["data"][0]["spent_fen"] == 0
        assert city.done(city.call("PATCH", f"{address}/spring", {"budget_fen": 200}))["budget_fen"] == 200
        closing = [city.call("PATCH", f"{address}/spring", {"closed": True}, key="h9") for _ in range(2)]
        same_again(*closing)
        assert (closing[0].json()["closed"], closing[0].json()["spent_fen"]) == (True, None)
        assert city.done(city.get(address))["data"] == []
        assert city.done(city.post(address, body))["closed"]
        problem(city.call("PATCH", f"{address}/spring", {"title": "夏"}), 404, "campaign-unknown")


class TestOrdering:
    def test_an_order_costs_what_the_offer_says_and_reserves_it(self, city: City) -> None:
        merchant, resident = shop(city), city.resident(points=100)
        told = city.done(order(city, merchant, resident, 2))
        assert (told["status"], told["points"], told["amount_fen"]) == ("held", 40, 100)
        assert (told["offer"], told["items"], told["balance"]["points_available"]) == ("tea", 2, 60)
        assert of(city, merchant) == (1, 2, 0)
        assert city.done(city.get(f"/v1/redemptions/{told['redemption_id']}"))["items"] == 2

    @pytest.mark.parametrize(("points", "left"), [(40, (1, 0, 2)), (20, (2, 0, 1))])
    def test_what_is_captured_is_sold_and_the_rest_goes_back(
        self, city: City, points: int, left: tuple[int, int, int]
    ) -> None:
        merchant, resident = shop(city), city.resident(points=100)
        held = city.done(order(city, merchant, resident, 2))["redemption_id"]
        told = city.done(city.post(f"/v1/redemptions/{held}/capture", {"points": points}))
        assert told["captured_fen"] == points // 20 * 50
        assert of(city, merchant) == left

    def test_only_whole_items_are_captured_and_refunded(self, city: City) -> None:
        merchant, resident = shop(city), city.resident(points=100)
        held = city.done(order(city, merchant, resident, 3))["redemption_id"]
        refused = problem(city.post(f"/v1/redemptions/{held}/capture", {"points": 30}), 422, "not-whole-items")
        assert refused["facts"] == {"item_points": 20, "wanted": 30}
        city.done(city.post(f"/v1/redemptions/{held}/capture", {"points": 60}))
        problem(city.post(f"/v1/redemptions/{held}/refunds", {"points": 50}), 422, "not-whole-items")
        assert city.done(city.post(f"/v1/redemptions/{held}/refunds", {"points": 40}))["amount_fen"] == 100
        assert of(city, merchant) == (2, 0, 1)

    @pytest.mark.parametrize("end", ["void", "expiry", "reversal", "reversal of a sale"])
    def test_whatever_comes_to_nothing_is_back_on_the_shelf(self, own_city: City, time: Clock, end: str) -> None:
        merchant, resident = shop(own_city), own_city.resident(points=100)
        told = own_city.done(order(own_city, merchant, resident, 3, key="k1", capture=end == "reversal of a sale"))
        if end == "void":
            own_city.done(own_city.post(f"/v1/redemptions/{told['redemption_id']}/void"))
        elif end == "expiry":
            time.move(timedelta(seconds=300))
            own_city.settled().installation.finisher.finish()
        else:
            body = {"reference": "k1", "offer": "tea", "items": 3, "merchant": merchant, "terminal": "t1"}
            undone = own_city.done(own_city.post("/v1/redemptions/reversal", body | {"reason": "timeout"}, by="app"))
            assert undone["action"] == ("refunded" if end == "reversal of a sale" else "released")
        assert of(own_city, merchant) == (3, 0, 0)
        assert own_city.balance(resident)["points_available"] == 100

    def test_a_hold_that_ran_out_keeps_its_items_until_its_resident_s_entries_say_so(
        self, own_city: City, time: Clock
    ) -> None:
        """It may have been captured in its last moment: whoever had the item as soon as time is up had it twice."""
        merchant, resident = shop(own_city, stock=1), own_city.resident(points=100)
        held = own_city.done(order(own_city, merchant, own_city.resident(points=100)))
        finisher = own_city.installation.finisher
        finisher.stop()  # it looks when it is told to
        time.at = datetime.fromisoformat(held["expires_at"])
        key = own_city.name("key")
        problem(order(own_city, merchant, resident, key=key), 409, "offer-sold-out")
        assert own_city.done(own_city.get(f"/v1/merchants/{merchant}/offers/tea"))["reserved"] == 1
        while own_city.settled() and finisher.finish():
            pass
        problem(order(own_city, merchant, resident, key=key), 409, "offer-sold-out")
        own_city.done(order(own_city, merchant, resident))

    def test_a_reversal_that_means_other_items_undoes_nothing(self, city: City) -> None:
        merchant, resident = shop(city), city.resident(points=100)
        key = city.name("key")
        city.done(order(city, merchant, resident, 2, key=key))
        body = {
            "reference": key,
            "offer": "tea",
            "items": 1,
            "merchant": merchant,
            "terminal": "t1",
            "reason": "timeout",
        }
        problem(city.post("/v1/redemptions/reversal", body, by="app"), 409, "reversal-mismatch")
        assert of(city, merchant) == (1, 2, 0)

    def test_what_nobody_has_points_for_stays_on_the_shelf(self, city: City) -> None:
        merchant, resident = shop(city, points=200), city.resident(points=100)
        problem(order(city, merchant, resident), 409, "insufficient-points")
        assert of(city, merchant) == (3, 0, 0)

    def test_a_decline_is_final_whatever_is_put_on_the_shelf_later(self, city: City) -> None:
        merchant, resident = shop(city, stock=0), city.resident(points=100)
        key = city.name("key")
        first = problem(order(city, merchant, resident, key=key), 409, "offer-sold-out")
        assert (first["retryable"], first["facts"]["current_state"]) == ("new-key", "declined")
        city.done(city.call("PATCH", f"/v1/merchants/{merchant}/offers/tea", {"restock": 1}))
        again = problem(order(city, merchant, resident, key=key), 409, "offer-sold-out")
        assert again["facts"] == first["facts"]
        found = city.done(city.get("/v1/redemptions", reference=key, by="app"))
        assert (found["status"], found["declined_because"]) == ("declined", "offer-sold-out")
        city.done(order(city, merchant, resident))
        assert of(city, merchant) == (0, 1, 0)

    @pytest.mark.parametrize("said", [{"points": 40}, {"offer": "tea", "items": 2}])
    def test_what_was_declined_or_never_came_is_undone_by_its_points_or_its_items(
        self, city: City, said: dict[str, Any]
    ) -> None:
        """Whoever got no answer does not know that there was nothing to undo."""
        merchant, resident = shop(city, stock=1), city.resident(points=100)
        declined, key = city.name("key"), city.name("key")
        problem(order(city, merchant, resident, 2, key=declined), 409, "offer-sold-out")
        for reference in (declined, key):
            body = {"reference": reference, "merchant": merchant, "terminal": "t1", "reason": "timeout", **said}
            undone = [city.post("/v1/redemptions/reversal", body, by="app") for _ in range(2)]
            same_again(*undone)
            assert undone[0].json()["action"] == "none"
        problem(order(city, merchant, resident, 2, key=key), 409, "redemption-reversed")

    def test_the_same_again_has_the_same_answer_at_the_earlier_price_and_other_content_is_refused(
        self, city: City
    ) -> None:
        merchant, resident = shop(city), city.resident(points=100)
        key = city.name("key")
        first = order(city, merchant, resident, 2, key=key)
        city.done(city.call("PATCH", f"/v1/merchants/{merchant}/offers/tea", {"points": 30, "withdrawn": True}))
        again = order(city, merchant, resident, 2, key=key)
        same_again(first, again)
        assert of(city, merchant) == (1, 2, 0)
        other = problem(order(city, merchant, resident, 1, key=key), 422, "identity-reused")
        assert other["facts"] == {"fields": ["items"]}
        body = {"resident": resident, "merchant": merchant, "terminal": "t1", "points": 40}
        other = problem(city.post("/v1/redemptions", body, by="app", key=key), 422, "identity-reused")
        assert other["facts"] == {"fields": ["items", "offer"]}

    def test_a_call_asks_for_points_or_for_an_offer(self, city: City) -> None:
        merchant, resident = shop(city), city.resident(points=100)
        body = {"resident": resident, "merchant": merchant, "terminal": "t1"}
        problem(city.post("/v1/redemptions", body, by="app"), 400, "missing-field")
        problem(order(city, merchant, resident, points=20), 400, "missing-field")
        problem(city.post("/v1/redemptions", body | {"points": 2, "items": 1}, by="app"), 400, "unknown-field")
        problem(city.post("/v1/redemptions", body | {"offer": "gold"}, by="app"), 404, "offer-unknown")

    def test_limits_and_budgets_hold_over_orders_and_open_again_with_what_comes_back(self, city: City) -> None:
        merchant = shop(city)
        city.done(
            city.post(f"/v1/merchants/{merchant}/campaigns", {"campaign": "spring", "title": "春", "budget_fen": 100})
        )
        cake = TEA | {"offer": "cake", "stock": None, "per_resident": 2, "campaign": "spring"}
        city.done(city.post(f"/v1/merchants/{merchant}/offers", cake))
        one, two = city.resident(points=100), city.resident(points=100)
        held = city.done(order(city, merchant, one, 2, offer="cake"))["redemption_id"]
        problem(order(city, merchant, one, offer="cake"), 409, "offer-limit-reached")
        problem(order(city, merchant, two, offer="cake"), 409, "campaign-spent")
        city.done(city.post(f"/v1/redemptions/{held}/void"))
        of(city, merchant)
        city.done(order(city, merchant, one, offer="cake"))
        city.done(order(city, merchant, two, offer="cake"))
        [told] = city.done(city.get(f"/v1/merchants/{merchant}/campaigns"))["data"]
        assert (told["spent_points"], told["spent_fen"]) == (40, 100)

    def test_the_rows_of_the_list_are_those_of_the_log(self, city: City) -> None:
        merchant, resident = shop(city, stock=20), city.resident(points=1000)
        for items, end in ((5, ""), (4, "void"), (3, "capture")):
            held = city.done(order(city, merchant, resident, items))["redemption_id"]
            if end:
                body = {"points": 40} if end == "capture" else None
                city.done(city.post(f"/v1/redemptions/{held}/{end}", body))
        city.done(city.post(f"/v1/redemptions/{held}/refunds", {"points": 20}))
        stock, reserved, sold = of(city, merchant)
        assert (stock, reserved, sold) == (14, 5, 1)
        [row] = city.done(city.settled().get("/v1/offers", merchant=merchant))["data"]
        assert (row["stock"], row["sold"]) == (stock, sold)


class TestWhatWasLeftHalfway:
    """A process that dies after the order and before the hold leaves this: the finisher finds it."""

    def asking(self, city: City, merchant: str, items: int) -> PlaceOrder:
        return PlaceOrder(
            merchant=merchant,
            terminal="t1",
            redemption_id="rdm_" + "a" * 20,
            resident=city.resident(points=100),
            hold_seconds=300,
            offer="tea",
            items=items,
        )

    def given_up(self, city: City, time: Clock) -> Any:
        """What became of it, as its terminal is told."""
        finisher = city.finisher()
        time.move(GRACE)
        assert finisher.finish() == 1
        return city.done(city.get(f"/v1/redemptions/rdm_{'a' * 20}"))

    def test_an_order_whose_hold_never_came_gives_its_items_back(self, own_city: City, time: Clock) -> None:
        merchant = shop(own_city)
        own_city.installation.write_now(self.asking(own_city, merchant, 3))
        assert own_city.done(own_city.get(f"/v1/merchants/{merchant}/offers/tea"))["stock"] == 0
        assert self.given_up(own_city, time)["status"] == "declined"
        assert of(own_city, merchant) == (3, 0, 0)

    def test_an_order_that_its_offer_declined_is_declined_to_its_resident_too(
        self, own_city: City, time: Clock
    ) -> None:
        merchant = shop(own_city)
        asking = self.asking(own_city, merchant, 4)
        own_city.installation.write_now(asking)
        assert self.given_up(own_city, time)["status"] == "declined"
        [declined] = [
            event
            for entry in own_city.installation.journal.newest(asking.resident, 9)
            if isinstance(event := codec.decode(entry.type, entry.state), HoldDeclined)
        ]
        assert declined.reason == "offer-sold-out"
        assert of(own_city, merchant) == (3, 0, 0)
