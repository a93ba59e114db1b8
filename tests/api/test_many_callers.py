"""Many callers at once, over real sockets, in each database: what one could do is done, and no more."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from tests.api.city import Answer, City, city_in, hold, keys_of, opened, served
from tests.api.conftest import Founded
from tests.api.test_lots import issued, sale
from tests.conftest import Clock
from tests.given import NOON

THREADS = 20


@pytest.fixture(params=["sqlite", "postgresql"])
def busy_city(request: pytest.FixtureRequest, founded: Founded, tmp_path: Path) -> Iterator[City]:
    """A city behind a real server, in each database."""
    folder = tmp_path / "data"
    if request.param == "sqlite":
        shutil.copytree(founded[0], folder)
        with served({"CARBON_DATA_DIR": str(folder)}, Clock(NOON), founded[1]) as city:
            yield city
        return
    where = {"CARBON_DATA_DIR": str(folder), "CARBON_DATABASE_URL": request.getfixturevalue("postgres_url")}
    installation = opened(where, Clock(NOON))
    keys = keys_of(installation)
    installation.close()
    with served(where, Clock(NOON), keys) as city:
        yield city.found()


def at_once(call: Callable[[int], Answer]) -> Counter[tuple[int, str]]:
    """What twenty threads were answered that called at the same moment: status, and code of a problem."""
    ready = Barrier(THREADS)

    def one(number: int) -> Answer:
        ready.wait()
        return call(number)

    with ThreadPoolExecutor(THREADS) as threads:
        answers = list(threads.map(one, range(THREADS)))
    return Counter((a.status_code, a.json().get("code", "")) for a in answers)


def test_twenty_threads_redeeming_the_same_100_points_get_what_the_balance_covers(busy_city: City) -> None:
    city = busy_city
    resident = city.resident(points=100)
    found = at_once(lambda _: city.post("/v1/redemptions", hold(resident, 30, capture=True), by="app"))
    assert found == {(201, ""): 3, (409, "insufficient-points"): 17}
    balance = city.balance(resident)
    assert (balance["points_available"], balance["points_held"]) == (10, 0)
    books = city.settled().get("/v1/trial-balance").json()
    assert books["totals"] == {"mg": 0, "points": 0, "fen": 0}


def test_twenty_threads_with_the_same_key_redeem_once(busy_city: City) -> None:
    city = busy_city
    resident = city.resident(points=100)
    body = hold(resident, 30, capture=True)
    found = at_once(lambda _: city.post("/v1/redemptions", body, by="app", key="the same"))
    assert found == {(201, ""): 1, (200, ""): 19}
    assert city.balance(resident)["points_available"] == 70


def test_twenty_threads_reporting_the_same_action_of_a_new_card_count_it_once(busy_city: City) -> None:
    city = busy_city
    body = city.report()
    found = at_once(lambda _: city.post("/v1/actions", body, by="source"))
    assert found == {(201, ""): 1, (200, ""): 19}
    assert city.recorded(resident=body["resident"])["balance"]["points_available"] == 20


def test_twenty_threads_opening_the_same_account_open_one(busy_city: City) -> None:
    city = busy_city
    body = {"subjects": [{"source": "szt", "subject": "card"}], "consents": [{"purpose": "trade", "version": "1"}]}
    residents: set[str] = set()

    def opening(_: int) -> Answer:
        answer = city.post("/v1/residents", body, by="app", key="the same")
        residents.add(answer.json()["resident"])
        return answer

    found = at_once(opening)
    assert set(found) <= {(201, ""), (200, "")}
    assert len(residents) == 1


def test_twenty_threads_ending_the_same_hold_end_it_one_way(busy_city: City) -> None:
    city = busy_city
    held = city.held(city.resident(points=100), 30)

    def ending(number: int) -> Answer:
        if number % 2:
            return city.post(f"/v1/redemptions/{held}/void", by="terminal")
        return city.post(f"/v1/redemptions/{held}/capture", {"points": 30}, by="terminal")

    found = at_once(ending)
    assert found == {(201, ""): 1, (200, ""): 9, (409, "redemption-not-held"): 10}


def test_twenty_threads_buying_the_same_ten_kilograms_get_ten(busy_city: City) -> None:
    city = busy_city
    lot = issued(city, 10)["lot_id"]
    found = at_once(lambda _: city.post(f"/v1/lots/{lot}/sales", sale(3)))
    assert found == {(201, ""): 3, (409, "units-not-for-sale"): 17}
    sold = city.settled().get("/v1/sales").json()["data"]
    blocks = sorted(serial[-17:] for one in sold for serial in one["serials"])
    assert blocks == ["00000001-00000003", "00000004-00000006", "00000007-00000009"]


def test_twenty_threads_paying_the_same_settlement_pay_it_once(busy_city: City) -> None:
    city = busy_city
    city.captured(city.resident(points=100), 30)
    city.done(city.post("/v1/fund/receipts", {"origin": "sponsor", "payer": "x", "amount_fen": 100}))
    settled = city.done(city.post("/v1/merchants/shop/settlements"))["settlement_id"]
    found = at_once(lambda _: city.post(f"/v1/merchants/shop/settlements/{settled}/payment"))
    assert found == {(201, ""): 1, (200, ""): 19}
    assert city.settled().get("/v1/fund").json()["balance_fen"] == 40


def test_twenty_threads_settling_one_merchant_settle_every_capture_once(busy_city: City) -> None:
    city = busy_city
    city.captured(city.resident(points=100), 30)
    found = at_once(lambda _: city.post("/v1/merchants/shop/settlements"))
    assert found[(201, "")] == 1
    assert set(found) <= {(201, ""), (409, "nothing-to-settle"), (409, "settlement-overlaps")}


class TestPostgreSQL:
    """What SQLite forgives."""

    @pytest.fixture
    def elsewhere(self, postgres_url: str, tmp_path: Path) -> Iterator[City]:
        with city_in({"CARBON_DATA_DIR": str(tmp_path), "CARBON_DATABASE_URL": postgres_url}, NOON) as city:
            yield city.found()

    def test_no_text_of_a_caller_is_a_mistake_of_ours(self, elsewhere: City) -> None:
        for place in (
            "/v1/merchants/a%00b",
            "/v1/merchants/%ff%fe",
            "/v1/sources/%00",
            "/v1/methodologies/%00",
            "/v1/certificates/%00",
            "/v1/actions?source=%00",
            "/v1/actions?behaviour=%00",
            "/v1/pools?cursor=%00",
            "/v1/merchants?cursor=%00",
            "/v1/merchants?cursor=%ed%a0%80",
            "/v1/merchants/shop/settlements?cursor=9999:999999999999999",
            "/v1/residents/res_aaaaaaaaaaaaaaaaaaaa/statement?cursor=999999999999999",
        ):
            assert elsewhere.get(place).status_code in {200, 400, 404, 405}, place
        for word in ("\x00", "a\x00", "\ufffe", "字" * 128):
            answer = elsewhere.post("/v1/actions", elsewhere.report(record_id=word, resident=word))
            assert answer.status_code in {201, 400}, answer.text

    def test_a_terminal_of_the_longest_name_redeems(self, elsewhere: City) -> None:
        merchant, terminal = "m" * 64, "t" * 64
        elsewhere.done(elsewhere.post("/v1/merchants", {"merchant": merchant, "name": "x", "fen_per_point": 1}))
        elsewhere.done(elsewhere.post(f"/v1/merchants/{merchant}/terminals", {"terminal": terminal}))
        _, secret = elsewhere.installation.directory.issue_key("terminal", f"{merchant}/{terminal}")
        body = elsewhere.coded(
            hold(elsewhere.resident(points=100), 30, merchant=merchant, terminal=terminal), "terminal", "k"
        )
        headers = {"Authorization": f"Bearer {secret}"}
        answer = elsewhere.post("/v1/redemptions", body, by="", key="k" * 200, headers=headers)
        assert answer.status_code == 201, answer.text

    def test_a_long_owner_is_a_caller_like_any_other(self, elsewhere: City) -> None:
        _, secret = elsewhere.installation.directory.issue_key("app", "局" * 64)
        headers = {"Authorization": f"Bearer {secret}"}
        assert elsewhere.post("/v1/residents", {}, by="", headers=headers).status_code == 201
