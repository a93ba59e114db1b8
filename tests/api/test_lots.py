"""Pools and lots over HTTP: what consenting residents reduced is gathered, verified, issued, sold and used once."""

from typing import Any

import pytest

from tests.api.city import City, position, problem, same_again

MAY = {"methodology": "green", "version": "1", "from_month": "2025-05", "until_month": "2025-05"}
IN_MAY = "2025-05-20T11:00:00+08:00"


def traders(city: City, *kilograms: int, trade: bool = True) -> list[str]:
    """Residents with so many kilograms each, of May."""
    made: list[str] = []
    for kg in kilograms:
        card = city.name("card")
        made.append(city.resident(card=card, trade=trade))
        city.earn(card, kg * 100, occurred_at=IN_MAY)
    return made


def pool_of(city: City, body: dict[str, Any] = MAY) -> str:
    return city.done(city.post("/v1/pools", body))["pool_id"]


def gathered(city: City, pool: str) -> Any:
    """What all calls of one gathering took, and the pool once it is sealed."""
    told = city.done(city.post(f"/v1/pools/{pool}/gather"))
    return told, city.done(city.post(f"/v1/pools/{pool}/seal?gathering={told['gathering']}"))


def verified(city: City, pool: str, mg: int) -> Any:
    found = {"verifier": "核证机构", "report": "R-1", "verified_mg": mg}
    return city.done(city.post(f"/v1/pools/{pool}/verifications", found))


def issued(city: City, *kilograms: int) -> Any:
    """A lot of so many kilograms."""
    traders(city, *kilograms)
    pool = pool_of(city)
    _, sealed = gathered(city, pool)
    verified(city, pool, sealed["gathered_mg"])
    return city.done(city.post(f"/v1/pools/{pool}/lots"))


def sale(kg: int, price_fen: int = 100, buyer: str = "marathon") -> dict[str, Any]:
    return {"buyer": buyer, "kg": kg, "price_fen": price_fen}


def use(kg: int, holder: str = "marathon") -> dict[str, Any]:
    return {"holder": holder, "kg": kg, "purpose": "event", "beneficiary": "湖州马拉松", "reason": "赛事碳中和"}


class TestTheChain:
    def test_from_residents_to_a_certificate_that_anyone_can_look_up(self, own_city: City) -> None:
        city = own_city
        traders(city, 3, 4)
        keeper, *_ = traders(city, 5, trade=False)
        pool = pool_of(city)
        told, sealed = gathered(city, pool)
        assert (told["residents"], told["reduction_mg"], told["without_consent"]) == (2, 7_000_000, 1)
        assert (told["more"], told["next_resident"]) == (False, None)
        assert (sealed["gathering"], sealed["gathered_mg"]) == (2, 7_000_000)
        assert city.get(f"/v1/residents/{keeper}").json()["unpooled_mg"] == 5_000_000

        assert verified(city, pool, 6_500_000)["verified_mg"] == 6_500_000
        lot = city.done(city.post(f"/v1/pools/{pool}/lots"))
        assert (lot["kg"], lot["remainder_mg"]) == (6, 500_000)
        assert lot["serial"].startswith("CN-330500-HZTDR-GREEN.1-")
        assert lot["serial"].endswith(".L001-202505-202505-00000001-00000006")
        assert city.get(f"/v1/pools/{pool}").json()["lots"] == [lot["lot_id"]]

        sold = city.done(city.post(f"/v1/lots/{lot['lot_id']}/sales", sale(4, 2_000)))
        assert [s[-17:] for s in sold["serials"]] == ["00000001-00000004"]
        money = {"origin": "sale", "payer": "marathon", "amount_fen": 2_000}
        money |= {"sale_id": sold["sale_id"], "lot_id": lot["lot_id"]}
        assert city.done(city.post("/v1/fund/receipts", money))["balance_fen"] == 2_000

        retired = city.post(f"/v1/lots/{lot['lot_id']}/retirements", use(3), by="buyer")
        assert retired.status_code == 201
        assert [s[-17:] for s in retired.json()["serials"]] == ["00000001-00000003"]
        path = f"/v1/certificates/{retired.json()['certificate']}"
        certificate = city.done(city.get(path, by="", min_position=position(retired)))
        assert (certificate["holder"], certificate["kg"], certificate["purpose"]) == ("marathon", 3, "event")
        assert certificate["beneficiary"] == "湖州马拉松"
        assert (certificate["methodology"], certificate["from_month"]) == ("green", "2025-05")
        assert "res_" not in str(certificate)

        [listed] = city.settled().get("/v1/lots", by="buyer").json()["data"]
        assert (listed["kg"], listed["sold_kg"], listed["retired_kg"], listed["for_sale_kg"]) == (6, 4, 3, 2)
        [bought] = city.get("/v1/sales", by="auditor").json()["data"]
        assert (bought["buyer"], bought["kg"], bought["received_fen"]) == ("marathon", 4, 2_000)
        [shown] = city.get("/v1/pools").json()["data"]
        assert (shown["sealed"], shown["sealed_mg"], shown["issued_mg"]) == (1, 7_000_000, 6_000_000)

    def test_what_came_after_a_seal_is_another_gatherings(self, own_city: City) -> None:
        city = own_city
        traders(city, 2)
        pool = pool_of(city)
        gathered(city, pool)
        traders(city, 3)
        told, sealed = gathered(city, pool)
        assert (told["gathering"], told["reduction_mg"]) == (2, 3_000_000)
        assert sealed["gathered_mg"] == 5_000_000

    def test_gathering_goes_on_where_a_call_left_off_and_takes_nothing_twice(self, own_city: City) -> None:
        city = own_city
        traders(city, *[1] * 5)
        pool, moved, after, calls = pool_of(city), 0, "", 0
        while after is not None:
            told = city.done(city.post(f"/v1/pools/{pool}/gather", limit="2", after=after))
            moved, after, calls = moved + told["residents"], told["next_resident"], calls + 1
        assert (moved, calls) == (5, 3)
        again = city.done(city.post(f"/v1/pools/{pool}/gather"))
        assert (again["residents"], again["reduction_mg"]) == (0, 0)

    def test_other_months_and_methodologies_stay_with_the_resident(self, own_city: City) -> None:
        city = own_city
        [resident] = traders(city, 2)
        for other in ({"from_month": "2025-06", "until_month": "2025-06"}, {"methodology": "bus", "version": "2024-1"}):
            told = city.done(city.post(f"/v1/pools/{pool_of(city, MAY | other)}/gather"))
            assert told["residents"] == 0
        assert city.get(f"/v1/residents/{resident}").json()["unpooled_mg"] == 2_000_000


class TestRepeating:
    """Each step of the chain may be sent again, and refuses other content under the same identity."""

    def test_opening(self, city: City) -> None:
        same_again(*(city.post("/v1/pools", MAY, key="p1") for _ in range(2)))
        told = problem(city.post("/v1/pools", MAY | {"until_month": "2025-06"}, key="p1"), 422, "identity-reused")
        assert told["facts"] == {"fields": ["until_month"]}

    def test_sealing(self, own_city: City) -> None:
        traders(own_city, 1)
        pool = pool_of(own_city)
        own_city.post(f"/v1/pools/{pool}/gather")
        same_again(*(own_city.post(f"/v1/pools/{pool}/seal?gathering=1", key=None) for _ in range(2)))
        problem(own_city.post(f"/v1/pools/{pool}/seal?gathering=2"), 409, "nothing-gathered")
        problem(own_city.post(f"/v1/pools/{pool}/seal?gathering=3"), 409, "gathering-not-open")
        problem(own_city.post(f"/v1/pools/{pool}/seal"), 400, "parameter-invalid")

    def test_verifying(self, own_city: City) -> None:
        traders(own_city, 2)
        pool = pool_of(own_city)
        gathered(own_city, pool)
        path, body = f"/v1/pools/{pool}/verifications", {"verifier": "x", "report": "R-1", "verified_mg": 1_000_000}
        same_again(*(own_city.post(path, body, key="v1") for _ in range(2)))
        assert own_city.get(f"/v1/pools/{pool}").json()["verified_mg"] == 1_000_000
        told = problem(own_city.post(path, body | {"verified_mg": 2}, key="v1"), 422, "identity-reused")
        assert told["facts"] == {"fields": ["verified_mg"]}
        told = problem(own_city.post(path, body | {"verified_mg": 1_000_001}), 409, "verified-exceeds-gathered")
        assert told["facts"] == {"unverified_mg": 1_000_000, "wanted_mg": 1_000_001}

    def test_issuing(self, own_city: City) -> None:
        traders(own_city, 2)
        pool = pool_of(own_city)
        problem(own_city.post(f"/v1/pools/{pool}/lots"), 409, "less-than-one-kilogram")
        _, sealed = gathered(own_city, pool)
        verified(own_city, pool, sealed["gathered_mg"])
        same_again(*(own_city.post(f"/v1/pools/{pool}/lots", key="l1") for _ in range(2)))
        problem(own_city.post(f"/v1/pools/{pool}/lots"), 409, "less-than-one-kilogram")

    def test_selling(self, own_city: City) -> None:
        path = f"/v1/lots/{issued(own_city, 3)['lot_id']}/sales"
        same_again(*(own_city.post(path, sale(2), key="s1") for _ in range(2)))
        for field, value in (("kg", 1), ("price_fen", 99), ("buyer", "airline")):
            told = problem(own_city.post(path, sale(2) | {field: value}, key="s1"), 422, "identity-reused")
            assert told["facts"] == {"fields": [field]}
        told = problem(own_city.post(path, sale(2)), 409, "units-not-for-sale")
        assert (told["facts"]["for_sale_kg"], told["facts"]["wanted_kg"]) == (1, 2)

    def test_retiring(self, own_city: City) -> None:
        path = f"/v1/lots/{issued(own_city, 3)['lot_id']}"
        own_city.done(own_city.post(f"{path}/sales", sale(2)))
        same_again(*(own_city.post(f"{path}/retirements", use(2), by="buyer", key="r1") for _ in range(2)))
        for field, value in (("kg", 1), ("purpose", "voluntary"), ("beneficiary", "y"), ("reason", "y")):
            answer = own_city.post(f"{path}/retirements", use(2) | {field: value}, by="buyer", key="r1")
            assert problem(answer, 422, "identity-reused")["facts"] == {"fields": [field]}
        told = problem(own_city.post(f"{path}/retirements", use(1), by="buyer"), 409, "units-not-held")
        assert (told["facts"]["held_kg"], told["facts"]["wanted_kg"]) == (0, 1)


class TestRefusals:
    @pytest.mark.parametrize(
        ("said", "status", "code"),
        [
            ({"methodology": "flying"}, 404, "methodology-unknown"),
            ({"version": "9"}, 404, "methodology-unknown"),
            ({"from_month": "2025-06"}, 422, "period-invalid"),
            ({"from_month": "2025-13"}, 400, "wrong-type"),
            ({"from_month": "2025-5"}, 400, "wrong-type"),
            ({"from_month": "1999-01"}, 400, "wrong-type"),
        ],
    )
    def test_a_pool_that_cannot_be_is_refused(self, city: City, said: dict[str, str], status: int, code: str) -> None:
        problem(city.post("/v1/pools", MAY | said), status, code)

    def test_a_lot_or_pool_that_is_not_there_is_not_found(self, city: City) -> None:
        nowhere, nothing = "pool_" + "a" * 20, f"lot_{'a' * 20}_{'a' * 20}"
        for path in ("gather", "seal?gathering=1", "lots"):
            problem(city.post(f"/v1/pools/{nowhere}/{path}"), 404, "pool-unknown")
        body = {"verifier": "x", "report": "x", "verified_mg": 1}
        problem(city.post(f"/v1/pools/{nowhere}/verifications", body), 404, "pool-unknown")
        problem(city.post(f"/v1/lots/{nothing}/sales", sale(1)), 404, "pool-unknown")
        mine = f"lot_{pool_of(city).removeprefix('pool_')}_{'a' * 20}"
        problem(city.post(f"/v1/lots/{mine}/sales", sale(1)), 404, "lot-unknown")
        problem(city.post(f"/v1/lots/{mine}/retirements", use(1), by="buyer"), 404, "lot-unknown")

    @pytest.mark.parametrize("kg", [0, -1, 1.5, "1", 10**12 + 1, 10**40])
    def test_an_amount_that_is_none_is_refused(self, city: City, kg: object) -> None:
        nothing = f"lot_{'a' * 20}_{'a' * 20}"
        problem(city.post(f"/v1/lots/{nothing}/sales", sale(1) | {"kg": kg}), 400, "wrong-type")
        problem(city.post(f"/v1/lots/{nothing}/retirements", use(1) | {"kg": kg}), 400, "wrong-type")
