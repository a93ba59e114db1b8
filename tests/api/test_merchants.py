"""Merchants over HTTP: what they accepted is settled once, and paid once the fund can."""

from typing import Any

import pytest

from tests.api.city import City, problem, same_again


def shop(city: City, *, fen_per_point: int = 2) -> str:
    """A merchant that nobody had, with the terminal t1."""
    merchant = city.name("shop")
    city.done(city.post("/v1/merchants", {"merchant": merchant, "name": "茶馆", "fen_per_point": fen_per_point}))
    city.done(city.post(f"/v1/merchants/{merchant}/terminals", {"terminal": "t1"}))
    return merchant


def captured(city: City, merchant: str, points: int) -> str:
    resident = city.resident(points=max(points, 100) // 100 * 100)
    body = {"resident": resident, "merchant": merchant, "terminal": "t1", "points": points, "capture": True}
    return city.done(city.post("/v1/redemptions", body, by="app"))["redemption_id"]


def settled(city: City, merchant: str) -> Any:
    return city.done(city.post(f"/v1/merchants/{merchant}/settlements"))


class TestRegistering:
    def test_a_merchant_is_registered_and_found(self, city: City) -> None:
        body = {"merchant": city.name("shop"), "name": "安吉竹品小店", "fen_per_point": 3, "county": "330523"}
        answers = [city.post("/v1/merchants", body) for _ in range(2)]
        same_again(*answers)
        shown = {"terminals": [], "confirm_above": None, "public": False, "offline": None}
        assert answers[0].json() == body | shown
        assert city.get(f"/v1/merchants/{body['merchant']}").json()["name"] == body["name"]

    @pytest.mark.parametrize(("field", "value"), [("name", "y"), ("fen_per_point", 4), ("county", "330502")])
    def test_another_merchant_of_the_same_id_is_refused(self, city: City, field: str, value: object) -> None:
        body = {"merchant": city.name("shop"), "name": "x", "fen_per_point": 3, "county": "330523"}
        city.post("/v1/merchants", body)
        told = problem(city.post("/v1/merchants", body | {field: value}), 422, "identity-reused")
        assert told["facts"] == {"fields": [field]}

    def test_a_terminal_is_enrolled_once(self, city: City) -> None:
        path = f"/v1/merchants/{shop(city)}/terminals"
        answers = [city.post(path, {"terminal": "t2"}) for _ in range(2)]
        same_again(*answers)
        assert answers[0].json()["terminals"] == ["t1", "t2"]
        problem(city.post("/v1/merchants/nobody/terminals", {"terminal": "t1"}), 404, "merchant-unknown")

    def test_a_new_price_counts_from_then_on(self, city: City) -> None:
        merchant = shop(city)
        captured(city, merchant, 10)
        changed = city.call("PATCH", f"/v1/merchants/{merchant}", {"fen_per_point": 5})
        assert (changed.status_code, changed.json()["fen_per_point"]) == (200, 5)
        captured(city, merchant, 10)
        assert settled(city, merchant)["amount_fen"] == 10 * 2 + 10 * 5
        problem(city.call("PATCH", f"/v1/merchants/{merchant}", {"fen_per_point": 5}), 409, "price-unchanged")
        problem(city.call("PATCH", "/v1/merchants/nobody", {"fen_per_point": 5}), 404, "merchant-unknown")

    def test_merchants_are_listed_in_pages_with_their_totals(self, city: City) -> None:
        made = {shop(city) for _ in range(3)}
        merchant = min(made)
        captured(city, merchant, 30)
        city.settled()
        found: dict[str, Any] = {}
        cursor: dict[str, str] = {}
        while True:
            page = city.get("/v1/merchants", limit=2, **cursor).json()
            found |= {m["merchant"]: m for m in page["data"]}
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
        assert {*made, "shop", "mall"} <= set(found)
        assert (found[merchant]["captured_points"], found[merchant]["captured_fen"]) == (30, 60)
        assert found["shop"]["terminals"] == ["t1", "t2"]


class TestSettling:
    def test_captures_less_refunds_since_the_last_settlement_are_owed(self, city: City) -> None:
        merchant = shop(city)
        captured(city, merchant, 30)
        given_back = captured(city, merchant, 50)
        city.done(city.post(f"/v1/redemptions/{given_back}/refunds", {"points": 20}, by="app"))
        first = settled(city, merchant)
        assert (first["captures"], first["refunds"], first["points"], first["amount_fen"]) == (2, 1, 60, 120)
        captured(city, merchant, 7)
        second = settled(city, merchant)
        assert (second["captures"], second["points"], second["amount_fen"]) == (1, 7, 14)
        assert second["after"] == first["through"]
        city.settled()
        listed = city.get(f"/v1/merchants/{merchant}/settlements").json()["data"]
        assert [(s["settlement_id"], s["paid"]) for s in listed] == [
            (first["settlement_id"], False),
            (second["settlement_id"], False),
        ]

    def test_the_same_call_again_settles_nothing_more(self, city: City) -> None:
        merchant = shop(city)
        captured(city, merchant, 30)
        first = city.post(f"/v1/merchants/{merchant}/settlements", key="k")
        captured(city, merchant, 30)
        same_again(first, city.post(f"/v1/merchants/{merchant}/settlements", key="k"))

    def test_nothing_is_settled_twice_and_nothing_of_nothing(self, city: City) -> None:
        merchant = shop(city)
        problem(city.post(f"/v1/merchants/{merchant}/settlements"), 409, "nothing-to-settle")
        captured(city, merchant, 30)
        settled(city, merchant)
        problem(city.post(f"/v1/merchants/{merchant}/settlements"), 409, "nothing-to-settle")
        problem(city.post("/v1/merchants/nobody/settlements"), 404, "merchant-unknown")

    def test_what_was_given_back_after_a_settlement_is_taken_off_the_next(self, city: City) -> None:
        merchant = shop(city)
        early = captured(city, merchant, 30)
        settled(city, merchant)
        city.done(city.post(f"/v1/redemptions/{early}/refunds", {"points": 30}, by="app"))
        problem(city.post(f"/v1/merchants/{merchant}/settlements"), 409, "nothing-to-settle")
        captured(city, merchant, 50)
        assert settled(city, merchant)["amount_fen"] == 2 * (50 - 30)


class TestPaying:
    def test_a_settlement_is_paid_once_from_the_fund(self, own_city: City) -> None:
        city = own_city
        city.done(city.post("/v1/fund/receipts", {"origin": "sponsor", "payer": "电网", "amount_fen": 1_000}))
        merchant = shop(city)
        captured(city, merchant, 30)
        closed = settled(city, merchant)
        path = f"/v1/merchants/{merchant}/settlements/{closed['settlement_id']}/payment"
        answers = [city.post(path, key=None) for _ in range(2)]
        same_again(*answers)
        assert answers[0].json() == {
            "settlement_id": closed["settlement_id"],
            "merchant": merchant,
            "amount_fen": 60,
            "fund_balance_fen": 940,
        }
        [listed] = city.settled().get(f"/v1/merchants/{merchant}/settlements").json()["data"]
        assert listed["paid"] is True

    def test_while_the_fund_is_short_the_call_is_refused_and_may_be_sent_again(self, own_city: City) -> None:
        city = own_city
        merchant = shop(city)
        captured(city, merchant, 30)
        path = f"/v1/merchants/{merchant}/settlements/{settled(city, merchant)['settlement_id']}/payment"
        told = problem(city.post(path), 409, "fund-insufficient")
        assert told["facts"] == {"balance_fen": 0, "wanted_fen": 60}
        assert told["retryable"] == "same-key"
        city.done(city.post("/v1/fund/receipts", {"origin": "sponsor", "payer": "x", "amount_fen": 59}))
        problem(city.post(path), 409, "fund-insufficient")
        city.done(city.post("/v1/fund/receipts", {"origin": "sponsor", "payer": "x", "amount_fen": 1}))
        assert city.post(path).json()["fund_balance_fen"] == 0
        fund = city.settled().get("/v1/fund").json()
        assert (fund["in_fen"], fund["out_fen"], fund["balance_fen"], fund["owed_fen"]) == (60, 60, 0, 0)

    def test_a_settlement_that_is_not_there_is_not_paid(self, city: City) -> None:
        merchant = shop(city)
        captured(city, merchant, 30)
        mine = settled(city, merchant)["settlement_id"]
        problem(city.post(f"/v1/merchants/shop/settlements/{mine}/payment"), 404, "settlement-unknown")
        other = "stl_" + "a" * 20
        problem(city.post(f"/v1/merchants/{merchant}/settlements/{other}/payment"), 404, "settlement-unknown")
