"""Close of day: both sides count a terminal's batch, and it is closed once, with all that moved in it and once."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from litestar.testing import TestClient

from carbon_points.api import settling
from carbon_points.api.app import create_app
from carbon_points.api.settling import Nightly
from carbon_points.audit.verify import verify
from carbon_points.domain.order import PlaceOrder
from carbon_points.journal.partition import Write
from tests.api.city import Answer, City, city_in, opened, problem
from tests.api.test_orders import undo
from tests.api.test_settlements import file, set_to
from tests.conftest import Clock
from tests.given import DAY, HOUR, NOON, china

T1, T2 = "/v1/merchants/shop/terminals/t1/batches", "/v1/merchants/shop/terminals/t2/batches"


def counted(*sales: int, refunds: tuple[int, ...] = (), reversals: tuple[int, ...] = ()) -> dict[str, Any]:
    """A terminal's own count, at 2 fen a point."""
    told = {"sales": sales, "refunds": refunds, "reversals": reversals}
    return {name: {"count": len(some), "points": sum(some), "fen": 2 * sum(some)} for name, some in told.items()}


def close(city: City, number: int, count: dict[str, Any], *, at: str = T1, **more: Any) -> Answer:
    return city.post(f"{at}/{number}/close", count, by=more.pop("by", "terminal"), **more)


def told(city: City, number: int, *, at: str = T1) -> Any:
    city.settled()
    return city.done(city.get(f"{at}/{number}", by="auditor"))


def verified(city: City) -> None:
    report = verify(city.installation.journal)
    assert report.ok, report.first_wrong


@pytest.fixture
def resident(own_city: City) -> str:
    return own_city.resident(points=1_000)


class TestClosing:
    def test_what_both_count_alike_is_closed_and_the_same_close_again_says_so_again(
        self, own_city: City, resident: str
    ) -> None:
        city = own_city
        first = city.captured(resident, 30)
        city.held(resident, 5)
        city.captured(resident, 50)
        city.done(city.post(f"/v1/redemptions/{first}/refunds", {"points": 10}, by="terminal"))
        count = counted(30, 50, refunds=(10,))
        answers = [close(city, 1, count) for _ in range(2)]
        agreed = {"answer": "agreed", "batch": 1, "next_batch": 2, "totals": count, "lines": [], "unresolved": []}
        assert [a.json() for a in answers] == [agreed] * 2
        assert ["Idempotency-Replayed" in a.headers for a in answers] == [False, True]
        shown = told(city, 1)
        assert (shown["status"], shown["closed_by"], shown["totals"]) == ("closed", "terminal", count)
        assert [(n["kind"], n["points"]) for n in shown["lines"]] == [("sale", 30), ("sale", 50), ("refund", 10)]
        city.captured(resident, 7)
        assert city.installation.finisher.settled("shop", 10)
        assert told(city, 2)["totals"] == counted(7)
        verified(city)

    def test_what_is_counted_otherwise_is_answered_with_our_lines_and_stays_open(
        self, own_city: City, resident: str
    ) -> None:
        city = own_city
        redemptions = [city.captured(resident, 30), city.captured(resident, 50)]
        answer = close(city, 1, counted(30)).json()
        assert (answer["answer"], answer["next_batch"], answer["totals"]) == ("not-agreed", None, counted(30, 50))
        assert [n["redemption_id"] for n in answer["lines"]] == redemptions
        assert told(city, 1)["status"] == "open"
        assert close(city, 1, counted(30, 50)).json()["answer"] == "agreed"

    def test_a_reversed_sale_is_counted_on_both_sides(self, own_city: City, resident: str) -> None:
        own_city.held(resident, 30, key="k", capture=True)
        undo(own_city, "k", 30)
        assert close(own_city, 1, counted(30, reversals=(30,))).json()["answer"] == "agreed"

    def test_a_sale_of_a_closed_batch_is_refunded_not_reversed(self, own_city: City, resident: str) -> None:
        own_city.held(resident, 30, key="k", capture=True)
        assert close(own_city, 1, counted(30)).json()["answer"] == "agreed"
        problem(undo(own_city, "k", 30), 409, "use-refund")

    def test_an_empty_batch_is_agreed_upon_too(self, own_city: City) -> None:
        assert close(own_city, 1, counted()).json()["next_batch"] == 2
        assert close(own_city, 2, counted()).json()["next_batch"] == 3
        assert [b["batch"] for b in own_city.settled().get(T1).json()["data"]] == [2, 1]

    def test_what_is_on_its_way_cannot_be_confirmed_until_it_has_come_or_never_will(
        self, own_city: City, resident: str, time: Clock
    ) -> None:
        city = own_city
        city.captured(resident, 30)
        left = PlaceOrder(
            merchant="shop", terminal="t1", redemption_id="rdm_left", resident=resident, points=5, hold_seconds=300
        )
        city.installation.journal.commit([Write(left)])
        answer = close(city, 1, counted(30)).json()
        assert (answer["answer"], answer["unresolved"], answer["next_batch"]) == ("cannot-confirm", ["rdm_left"], None)
        assert told(city, 1)["status"] == "open"
        assert close(city, 1, counted(), at=T2, by="next terminal").json()["answer"] == "agreed", (
            "it is not of that till"
        )
        time.move(timedelta(minutes=1))
        city.settled().installation.finisher.finish()
        assert close(city, 1, counted(30)).json()["answer"] == "agreed"

    def test_what_we_cannot_count_in_time_is_not_confirmed(
        self, own_city: City, resident: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        own_city.captured(resident, 30)
        monkeypatch.setattr(type(own_city.installation.finisher), "settled", lambda *_: False)
        assert close(own_city, 1, counted(30)).json()["answer"] == "cannot-confirm"

    @pytest.mark.parametrize("number", [2, 7])
    def test_another_batch_than_the_open_one_is_refused(self, own_city: City, number: int) -> None:
        assert problem(close(own_city, number, counted()), 409, "batch-not-open")["facts"]["open_batch"] == 1
        problem(own_city.get(f"{T1}/{number}"), 404, "batch-unknown")

    def test_a_terminal_closes_its_own(self, own_city: City) -> None:
        problem(close(own_city, 1, counted(), by="next terminal"), 403, "not-yours")
        problem(own_city.get(f"{T1}/1", by="next terminal"), 403, "not-yours")
        problem(own_city.get(T1, by="next terminal"), 403, "not-yours")
        problem(close(own_city, 1, counted(), key=None), 400, "idempotency-key-missing")
        problem(close(own_city, 1, counted() | {"sales": {"count": -1}}), 400, "wrong-type")
        lost = "/v1/merchants/shop/terminals/t9/batches"
        problem(close(own_city, 1, counted(), at=lost, by="operator"), 404, "terminal-unknown")
        problem(own_city.get(f"{lost}/1"), 404, "terminal-unknown")
        problem(own_city.get(T1, cursor="x"), 400, "cursor-invalid")


class TestAtOnce:
    def test_two_servers_close_a_batch_once_and_answer_alike(self, own_city: City, resident: str, time: Clock) -> None:
        city = own_city
        city.captured(resident, 30)
        other = opened({"CARBON_DATA_DIR": city.installation.settings.data_dir}, time)
        with TestClient(create_app(other)) as http, ThreadPoolExecutor(8) as pool:
            cities = [city, City(http, other, city.keys)]
            answers = list(pool.map(lambda n: close(cities[n % 2], 1, counted(30), key=f"k{n}"), range(8)))
        assert [a.json()["answer"] for a in answers] == ["agreed"] * 8
        assert sum("Idempotency-Replayed" not in a.headers for a in answers) == 1
        assert told(city, 1)["totals"] == counted(30)
        verified(city)

    def test_a_sale_that_races_with_the_close_is_in_one_batch(self, own_city: City, resident: str) -> None:
        city = own_city
        held = {city.held(resident, 1 + n, key=f"h{n}"): 1 + n for n in range(16)}

        def capture(redemption: str) -> None:
            body = {"points": held[redemption]}
            city.done(city.post(f"/v1/redemptions/{redemption}/capture", body, by="terminal", key=None))

        with ThreadPoolExecutor(8) as pool:
            captures = [pool.submit(capture, redemption) for redemption in held]
            batch = 1
            while batch < 4:
                ours = close(city, batch, counted(10**6)).json()
                if ours["answer"] == "not-agreed" and ours["lines"]:
                    batch += close(city, batch, ours["totals"]).json()["answer"] == "agreed"
                if all(c.done() for c in captures):
                    break
            for one in captures:
                one.result()
        assert city.installation.finisher.settled("shop", 10)
        batches = [told(city, n) for n in range(1, batch + 1)]
        where = Counter(line["redemption_id"] for b in batches for line in b["lines"])
        assert where == Counter(held.keys()), "each once"
        for one in batches:
            lines = [n["points"] for n in one["lines"]]
            assert one["totals"] == counted(*lines)
        verified(city)


class TestByItself:
    def test_what_was_left_open_over_four_in_the_morning_is_closed_once_it_is_quiet(
        self, own_city: City, resident: str, time: Clock
    ) -> None:
        city = own_city
        nightly = Nightly(set_to(city, batches_at="04:00"))
        city.captured(resident, 30)
        time.at = china("2025-06-16 03:59")
        nightly.look()
        assert told(city, 1)["status"] == "open", "not before four"
        city.captured(resident, 20)
        assert city.installation.finisher.settled("shop", 10)
        time.at = china("2025-06-16 04:10")
        nightly.look()
        assert told(city, 1)["status"] == "open", "not while it is used"
        time.at = china("2025-06-16 04:14")
        nightly.look()
        shown = told(city, 1)
        assert (shown["status"], shown["closed_by"], shown["totals"]) == ("closed", "auto", counted(30, 20))
        nightly.look()
        time.move(DAY)
        nightly.look()
        assert told(city, 2)["status"] == "open", "an empty one is not"
        answer = close(city, 1, counted(30, 20)).json()
        assert (answer["answer"], answer["next_batch"]) == ("agreed", 2)
        late = close(city, 1, counted(30)).json()
        assert (late["answer"], late["next_batch"], late["totals"]) == ("not-agreed", 2, counted(30, 20))
        verified(city)


class TestBesideSettlements:
    def test_a_settlement_names_the_batch_of_each_row(self, own_city: City, resident: str, time: Clock) -> None:
        city = own_city
        first = city.captured(resident, 30)
        assert close(city, 1, counted(30)).json()["answer"] == "agreed"
        time.move(HOUR)
        for points in (4, 5):
            city.done(city.post(f"/v1/redemptions/{first}/refunds", {"points": points}, by="terminal"))
        city.held(resident, 50, key="k", capture=True)
        assert city.installation.finisher.settled("shop", 10)
        undo(city, "k", 50)
        assert close(city, 2, counted(50, refunds=(4, 5), reversals=(50,))).json()["answer"] == "agreed"
        time.move(DAY)
        [closed] = settling.settle(city.installation, date(2025, 6, 15)).closed
        rows = json.loads(file(city, "shop", closed.settlement_id, "json").content)["rows"]
        assert sorted((r["kind"], r["points"], r["batch"]) for r in rows) == [
            ("refund", 4, 2),
            ("refund", 5, 2),
            ("reversal", 50, 2),
            ("sale", 30, 1),
            ("sale", 50, 2),
        ]
        verified(city)


def test_on_postgresql_a_day_is_closed_settled_filed_and_verified_alike(postgres_url: str, tmp_path: Path) -> None:
    with city_in({"CARBON_DATABASE_URL": postgres_url, "CARBON_DATA_DIR": str(tmp_path)}, NOON) as city:
        city.found()
        resident = city.resident(points=1_000)
        first = city.captured(resident, 30)
        city.done(city.post(f"/v1/redemptions/{first}/refunds", {"points": 4}, by="terminal"))
        assert close(city, 1, counted(30)).json()["answer"] == "not-agreed"
        assert close(city, 1, counted(30, refunds=(4,))).json()["answer"] == "agreed"
        city.captured(resident, 7)
        assert city.installation.finisher.settled("shop", 10)
        clock = city.installation.clock
        assert isinstance(clock, Clock)
        clock.at = china("2025-06-16 05:00")
        nightly = Nightly(set_to(city, batches_at="04:00", settle_at="02:30", pay_daily=True))
        nightly.look()
        assert told(city, 2)["closed_by"] == "auto"
        [settled] = city.settled().get("/v1/merchants/shop/settlements").json()["data"]
        content = file(city, "shop", settled["settlement_id"], "json").content
        assert [(r["kind"], r["points"], r["batch"]) for r in json.loads(content)["rows"]] == [
            ("sale", 30, 1),
            ("refund", 4, 1),
            ("sale", 7, 2),
        ]
        assert city.get("/v1/fund").json()["queued"] == 1, "nobody gave anything yet"
        verified(city)
