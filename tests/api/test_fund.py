"""The fund and the books over HTTP: money comes in once, and all accounts together are zero."""

from typing import Any

import pytest

from tests.api.city import City, position, problem, same_again
from tests.api.test_lots import issued, sale, use
from tests.api.test_merchants import captured, settled, shop

SPONSOR = {"origin": "sponsor", "payer": "国网湖州供电公司", "amount_fen": 500}


def sold(city: City) -> dict[str, Any]:
    """The money of a sale that was just made."""
    lot = issued(city, 3)["lot_id"]
    made = city.done(city.post(f"/v1/lots/{lot}/sales", sale(2, 700)))
    money = {"origin": "sale", "payer": "marathon", "amount_fen": 700}
    return money | {"sale_id": made["sale_id"], "lot_id": lot}


class TestReceiving:
    def test_a_gift_comes_in_once_a_key(self, own_city: City) -> None:
        same_again(*(own_city.post("/v1/fund/receipts", SPONSOR, key="k") for _ in range(2)))
        for field, value in (("amount_fen", 501), ("payer", "y")):
            answer = own_city.post("/v1/fund/receipts", SPONSOR | {field: value}, key="k")
            assert problem(answer, 422, "identity-reused")["facts"] == {"fields": [field]}
        own_city.done(own_city.post("/v1/fund/receipts", SPONSOR))
        assert own_city.settled().get("/v1/fund").json()["from_sponsors_fen"] == 1_000

    def test_the_money_of_a_sale_comes_in_once_whatever_the_key(self, own_city: City) -> None:
        money = sold(own_city)
        same_again(*(own_city.post("/v1/fund/receipts", money) for _ in range(2)))
        fund = own_city.settled().get("/v1/fund").json()
        assert (fund["from_sales_fen"], fund["due_fen"], fund["balance_fen"]) == (700, 0, 700)

    @pytest.mark.parametrize(("field", "value"), [("payer", "airline"), ("amount_fen", 699)])
    def test_the_money_of_a_sale_is_what_the_sale_says(self, own_city: City, field: str, value: object) -> None:
        told = problem(own_city.post("/v1/fund/receipts", sold(own_city) | {field: value}), 422, "identity-reused")
        assert told["facts"] == {"fields": [field]}

    def test_the_money_of_a_sale_that_was_not_made_is_refused(self, own_city: City) -> None:
        other = {"sale_id": "sale_" + "a" * 20}
        problem(own_city.post("/v1/fund/receipts", sold(own_city) | other), 400, "parameter-invalid")

    def test_a_gift_names_no_sale_and_cannot_take_its_place(self, own_city: City) -> None:
        money = sold(own_city)
        for named in (("sale_id",), ("lot_id",), ("sale_id", "lot_id")):
            body = SPONSOR | {name: money[name] for name in named}
            problem(own_city.post("/v1/fund/receipts", body), 400, "missing-field")
        for named in ((), ("sale_id",), ("lot_id",)):
            body = {"origin": "sale", "payer": "marathon", "amount_fen": 700} | {name: money[name] for name in named}
            problem(own_city.post("/v1/fund/receipts", body), 400, "missing-field")
        assert own_city.post("/v1/fund/receipts", money).status_code == 201

    @pytest.mark.parametrize("amount", [0, -1, 1.5, "500", 10**15 + 1, None])
    def test_an_amount_that_is_none_is_refused(self, city: City, amount: object) -> None:
        problem(city.post("/v1/fund/receipts", SPONSOR | {"amount_fen": amount}), 400, "wrong-type")


class TestTheBooks:
    def test_all_accounts_sum_to_zero_after_everything_that_can_happen(self, own_city: City) -> None:
        city = own_city
        told = sold(city)
        city.done(city.post("/v1/fund/receipts", told))
        city.done(city.post(f"/v1/lots/{told['lot_id']}/retirements", use(1), by="buyer"))
        merchant, card = shop(city), city.name("card")
        captured(city, merchant, 70)
        given_back = captured(city, merchant, 80)
        city.done(city.post(f"/v1/redemptions/{given_back}/refunds", {"points": 15}, by="app"))
        resident = city.resident(card=card, points=200)
        spent = city.earn(card, 100)
        city.held(resident, 250)
        city.done(city.post(f"/v1/actions/{spent['action_id']}/reversal", {"reason": "x"}, by="source"))
        path = f"/v1/merchants/{merchant}/settlements/{settled(city, merchant)['settlement_id']}/payment"
        last = city.post(path)

        books = city.settled().get("/v1/trial-balance", by="auditor", min_position=position(last)).json()
        assert books["totals"] == {"mg": 0, "points": 0, "fen": 0}
        assert books["below_floor"] == []
        assert books["positions"] == {str(p): head for p, head in city.installation.journal.heads().items()}
        stands = {(a["asset"], a["account"]): a["amount"] for a in books["accounts"]}
        assert stands[("points", "held")] == 250
        assert stands[("points", "debt")] == -50
        assert stands[("mg", "buyer/marathon")] == 1_000_000
        assert stands[("mg", "retired")] == 1_000_000
        assert stands[("fen", "fund")] == 700 - 2 * (150 - 15)
        sums = {asset: sum(n for (of, _), n in stands.items() if of == asset) for asset in ("mg", "points", "fen")}
        assert sums == books["totals"]
