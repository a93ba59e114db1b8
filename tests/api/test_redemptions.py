"""Redemptions over HTTP: points are set aside, spent whole or in part, let go or given back, and never twice."""

from datetime import timedelta

import msgspec
import pytest

from tests.api.city import POINTS, Answer, City, hold, problem, same_again
from tests.conftest import Clock

PRICE = 2  # fen a point at the shop


def points(city: City, resident: str) -> tuple[int, int]:
    """Available and held."""
    balance = city.balance(resident)
    return balance["points_available"], balance["points_held"]


@pytest.fixture
def resident(city: City) -> str:
    return city.resident(points=POINTS)


class TestHolding:
    def test_points_are_set_aside_and_the_answer_tells_what_is_left(self, city: City, resident: str) -> None:
        answer = city.post("/v1/redemptions", hold(resident, 30), by="terminal")
        assert answer.status_code == 201
        told = answer.json()
        assert told["redemption_id"].startswith("rdm_")
        assert (told["status"], told["points"], told["amount_fen"]) == ("held", 30, 30 * PRICE)
        assert told["expires_at"] == "2025-06-15T04:05:00Z"
        assert (told["captured_points"], told["refunded_points"]) == (0, 0)
        assert points(city, resident) == (70, 30)
        assert city.get(f"/v1/redemptions/{told['redemption_id']}", by="terminal").json() == told

    def test_whose_points_they_are_and_what_is_left_is_told_to_apps_only(self, city: City, resident: str) -> None:
        told = [city.post("/v1/redemptions", hold(resident, 30), by=by).json() for by in ("terminal", "app")]
        assert not {"resident", "balance"} & told[0].keys()
        assert (told[1]["resident"], told[1]["balance"]["points_held"]) == (resident, 60)

    def test_the_same_call_again_holds_nothing_more(self, city: City, resident: str) -> None:
        same_again(*(city.post("/v1/redemptions", hold(resident, 30), by="terminal", key="k1") for _ in range(2)))
        assert city.balance(resident)["points_held"] == 30

    @pytest.mark.parametrize(("field", "value"), [("points", 31), ("hold_seconds", 60)])
    def test_another_hold_under_a_used_key_is_refused_and_the_field_is_named(
        self, city: City, resident: str, field: str, value: int
    ) -> None:
        key = city.name("key")
        city.post("/v1/redemptions", hold(resident, 30), by="terminal", key=key)
        answer = city.post("/v1/redemptions", hold(resident, 30) | {field: value}, by="terminal", key=key)
        assert problem(answer, 422, "identity-reused")["facts"] == {"fields": [field]}
        assert city.balance(resident)["points_held"] == 30

    def test_a_used_key_is_refused_for_another_terminal_and_another_merchant(self, city: City, resident: str) -> None:
        key = city.name("key")
        city.post("/v1/redemptions", hold(resident, 30), by="app", key=key)
        for place, fields in (({"terminal": "t2"}, ["terminal"]), ({"merchant": "mall"}, ["merchant"])):
            answer = city.post("/v1/redemptions", hold(resident, 30, **place), by="app", key=key)
            assert problem(answer, 422, "identity-reused")["facts"] == {"fields": fields}

    def test_an_apps_key_is_used_at_one_merchant_though_its_call_was_refused_there(
        self, city: City, resident: str
    ) -> None:
        key = city.name("key")
        closed = city.post("/v1/redemptions", hold(resident, 30, terminal="t9"), by="app", key=key)
        problem(closed, 404, "terminal-unknown")
        mall = city.post("/v1/redemptions", hold(resident, 30, merchant="mall"), by="app", key=key)
        assert problem(mall, 422, "identity-reused")["facts"] == {"fields": ["merchant"]}
        undone = {"reference": key, "points": 30, "reason": "timeout", "merchant": "mall", "terminal": "t1"}
        answer = city.post("/v1/redemptions/reversal", undone, by="app")
        assert problem(answer, 409, "reversal-mismatch")["facts"] == {"merchant": "shop"}
        assert city.post("/v1/redemptions", hold(resident, 30), by="app", key=key).status_code == 201

    def test_a_merchant_that_is_none_uses_up_no_key(self, city: City, resident: str) -> None:
        key = city.name("key")
        nowhere = city.post("/v1/redemptions", hold(resident, 30, merchant="nowhere"), by="app", key=key)
        problem(nowhere, 404, "merchant-unknown")
        assert city.post("/v1/redemptions", hold(resident, 30), by="app", key=key).status_code == 201

    def test_a_used_key_is_refused_for_another_resident_in_whatever_partition(self, city: City, resident: str) -> None:
        key = city.name("key")
        city.post("/v1/redemptions", hold(resident, 30), by="terminal", key=key)
        others = [city.resident(points=POINTS) for _ in range(8)]
        for other in others:
            answer = city.post("/v1/redemptions", hold(other, 30), by="terminal", key=key)
            assert problem(answer, 422, "identity-reused")["facts"] == {"fields": ["code", "resident"]}
            assert city.balance(other)["points_held"] == 0
        partitions = {city.installation.journal.partition_of(r).number for r in others}
        assert len(partitions) > 1

    def test_a_used_key_stays_used_though_its_resident_is_erased(self, city: City, resident: str) -> None:
        key = city.name("key")
        body = hold(resident, 30)
        first = city.post("/v1/redemptions", body, by="terminal", key=key)
        city.done(city.call("DELETE", f"/v1/residents/{resident}/bindings", by="app"))
        same_again(first, city.post("/v1/redemptions", body, by="terminal", key=key))
        other = hold(city.resident(points=POINTS), 30)
        answer = city.post("/v1/redemptions", other, by="terminal", key=key)
        assert problem(answer, 422, "identity-reused")["facts"] == {"fields": ["code", "resident"]}

    def test_two_terminals_may_use_the_same_key(self, city: City, resident: str) -> None:
        key = city.name("key")
        first = city.post("/v1/redemptions", hold(resident, 10), by="terminal", key=key)
        second = city.post("/v1/redemptions", hold(resident, 10, terminal="t2"), by="next terminal", key=key)
        assert (first.status_code, second.status_code) == (201, 201)

    def test_more_than_is_available_is_refused_with_both_numbers(self, city: City, resident: str) -> None:
        city.held(resident, 60)
        told = problem(city.post("/v1/redemptions", hold(resident, 41), by="terminal"), 409, "insufficient-points")
        assert told["facts"] == {"current_state": "declined", "wanted": 41}
        assert told["retryable"] == "new-key"

    def test_a_decline_is_final_for_its_key(self, city: City) -> None:
        card = city.name("card")
        resident, key = city.resident(card=card), city.name("key")
        call = ("/v1/redemptions", hold(resident, 100))
        problem(city.post(*call, by="terminal", key=key), 409, "insufficient-points")
        city.earn(card, 100)
        problem(city.post(*call, by="terminal", key=key), 409, "insufficient-points")
        assert city.post(*call, by="terminal").status_code == 201

    def test_whoever_asks_what_became_of_a_decline_is_told_why(self, city: City, resident: str) -> None:
        code, frozen = city.name("key"), city.resident(points=POINTS)
        city.done(city.post(f"/v1/residents/{frozen}/freeze", {"frozen": True, "reason": "test"}))
        body = city.coded(hold(resident, 10), "terminal", code)
        city.done(city.post("/v1/redemptions", body, by="terminal", key=code))
        for declined, because in (
            (body, "code-used"),
            (hold(resident, POINTS + 1), "insufficient-points"),
            (hold(frozen, 1), "account-frozen"),
        ):
            key = city.name("key")
            problem(city.post("/v1/redemptions", declined, by="terminal", key=key), 409, because)
            shown = city.done(city.get("/v1/redemptions", by="terminal", reference=key))
            assert (shown["status"], shown["declined_because"]) == ("declined", because)
            by_id = city.done(city.get(f"/v1/redemptions/{shown['redemption_id']}", by="auditor"))
            assert by_id["declined_because"] == because

    def test_what_was_not_declined_has_no_reason(self, city: City, resident: str) -> None:
        key = city.name("key")
        city.done(city.post("/v1/redemptions", hold(resident, 10), by="terminal", key=key))
        assert "declined_because" not in city.done(city.get("/v1/redemptions", by="terminal", reference=key))

    @pytest.mark.parametrize(
        ("said", "status", "code"),
        [
            ({"points": 0}, 400, "wrong-type"),
            ({"points": -1}, 400, "wrong-type"),
            ({"points": 1.0}, 400, "wrong-type"),
            ({"points": "1"}, 400, "wrong-type"),
            ({"points": True}, 400, "wrong-type"),
            ({"points": 10**9 + 1}, 400, "wrong-type"),
            ({"points": 10**30}, 400, "wrong-type"),
            ({"hold_seconds": 0}, 400, "wrong-type"),
            ({"hold_seconds": 604_801}, 400, "wrong-type"),
            ({"capture": 1}, 400, "wrong-type"),
            ({"resident": "res_1"}, 400, "wrong-type"),
            ({"resident": "res_" + "a" * 20}, 404, "account-unknown"),
            ({"merchant": "nobody"}, 404, "merchant-unknown"),
            ({"terminal": "t9"}, 404, "terminal-unknown"),
            ({"merchant": "a/b"}, 400, "wrong-type"),
            ({"amount_fen": 1}, 400, "unknown-field"),
        ],
    )
    def test_a_hold_that_cannot_be_is_refused(
        self, city: City, resident: str, said: dict[str, object], status: int, code: str
    ) -> None:
        problem(city.post("/v1/redemptions", hold(resident, 1) | said, by="app"), status, code)

    @pytest.mark.parametrize("first", [False, True])
    def test_its_key_means_a_hold_or_a_capture_and_never_both(self, city: City, resident: str, first: bool) -> None:
        key, path = f"either {first}", "/v1/redemptions"
        assert city.post(path, hold(resident, 10, capture=first), by="terminal", key=key).status_code == 201
        other = city.post(path, hold(resident, 10, capture=not first), by="terminal", key=key)
        assert problem(other, 422, "identity-reused")["facts"] == {"fields": ["capture"]}
        again = city.post(path, hold(resident, 10, capture=first), by="terminal", key=key)
        assert again.status_code == 200

    def test_it_may_be_captured_in_the_same_call(self, city: City, resident: str) -> None:
        answers = [
            city.post("/v1/redemptions", hold(resident, 40, capture=True), by="terminal", key="at once")
            for _ in range(2)
        ]
        same_again(*answers)
        told = answers[0].json()
        assert (told["status"], told["captured_points"], told["captured_fen"]) == ("captured", 40, 40 * PRICE)
        assert points(city, resident) == (60, 0)


class TestCapturing:
    def test_all_of_it(self, city: City, resident: str) -> None:
        held = city.held(resident, 30)
        answer = city.post(f"/v1/redemptions/{held}/capture", {"points": 30}, by="terminal")
        assert answer.status_code == 201
        assert answer.json()["status"] == "captured"
        assert points(city, resident) == (70, 0)

    def test_a_part_of_it_lets_the_rest_go_and_owes_the_parts_share(self, city: City, resident: str) -> None:
        held = city.held(resident, 30)
        answer = city.post(f"/v1/redemptions/{held}/capture", {"points": 11}, by="terminal")
        assert (answer.json()["captured_points"], answer.json()["captured_fen"]) == (11, 22)
        assert points(city, resident) == (89, 0)

    def test_the_same_capture_again_changes_nothing(self, city: City, resident: str) -> None:
        path = f"/v1/redemptions/{city.held(resident, 30)}/capture"
        same_again(*(city.post(path, {"points": 30}, by="terminal", key=None) for _ in range(2)))

    def test_another_capture_of_the_same_is_refused(self, city: City, resident: str) -> None:
        path = f"/v1/redemptions/{city.held(resident, 30)}/capture"
        city.post(path, {"points": 30}, by="terminal")
        answer = city.post(path, {"points": 29}, by="terminal")
        assert problem(answer, 422, "identity-reused")["facts"] == {"fields": ["points"]}

    def test_more_than_is_held_is_refused(self, city: City, resident: str) -> None:
        answer = city.post(f"/v1/redemptions/{city.held(resident, 30)}/capture", {"points": 31}, by="terminal")
        assert problem(answer, 409, "capture-exceeds-hold")["facts"] == {"held": 30, "wanted": 31}


class TestVoiding:
    def test_what_was_held_is_available_again(self, city: City, resident: str) -> None:
        path = f"/v1/redemptions/{city.held(resident, 30)}/void"
        answers = [city.post(path, by="terminal", key=None) for _ in range(2)]
        same_again(*answers)
        assert answers[0].json()["status"] == "voided"
        assert points(city, resident) == (100, 0)

    def test_what_was_captured_or_voided_is_not_on_hold(self, city: City, resident: str) -> None:
        captured, voided = city.captured(resident, 10), city.held(resident, 10)
        city.done(city.post(f"/v1/redemptions/{voided}/void", by="terminal"))
        answer = city.post(f"/v1/redemptions/{captured}/void", by="terminal")
        assert problem(answer, 409, "redemption-not-held")["facts"]["current_state"] == "captured"
        answer = city.post(f"/v1/redemptions/{voided}/capture", {"points": 10}, by="terminal")
        assert problem(answer, 409, "redemption-not-held")["facts"]["current_state"] == "voided"


class TestRunningOut:
    def test_a_hold_that_ran_out_is_available_again_and_cannot_be_captured(self, own_city: City, time: Clock) -> None:
        resident = own_city.resident(points=POINTS)
        held = own_city.held(resident, 30, hold_seconds=60)
        time.move(timedelta(seconds=59))
        assert own_city.get(f"/v1/redemptions/{held}").json()["status"] == "held"
        time.move(timedelta(seconds=1))
        shown = own_city.get(f"/v1/redemptions/{held}")
        assert shown.json()["status"] == "expired"
        assert points(own_city, resident) == (100, 0)
        for path, body in (("capture", {"points": 30}), ("void", None)):
            problem(own_city.post(f"/v1/redemptions/{held}/{path}", body, by="terminal"), 409, "hold-expired")
        assert own_city.post("/v1/redemptions", hold(resident, 100), by="terminal").status_code == 201

    def test_a_hold_sent_again_after_it_ran_out_has_the_same_answer_and_is_not_held_again(
        self, own_city: City, time: Clock
    ) -> None:
        resident = own_city.resident(points=POINTS)
        body = hold(resident, 30, hold_seconds=60)
        first = own_city.post("/v1/redemptions", body, by="terminal", key="k")
        time.move(timedelta(minutes=5))
        again = own_city.post("/v1/redemptions", body, by="terminal", key="k")
        same_again(first, again)
        found = own_city.get("/v1/redemptions", by="terminal", reference="k").json()
        assert (found["redemption_id"], found["status"]) == (first.json()["redemption_id"], "expired")
        assert points(own_city, resident) == (100, 0)

    def test_a_hold_outlives_the_day_its_points_expire_and_is_captured_then(self, own_city: City, time: Clock) -> None:
        resident = own_city.resident(points=POINTS)
        time.at = time.at.replace(year=2026, month=6, day=30, hour=15)
        held = own_city.held(resident, 30, hold_seconds=86_400)
        time.move(timedelta(hours=2))
        answer = own_city.post(f"/v1/redemptions/{held}/capture", {"points": 30}, by="terminal")
        assert answer.status_code == 201
        assert points(own_city, resident) == (0, 0)


class TestRefunding:
    def refunded(self, city: City, redemption: str, amount: int, key: str = "new") -> Answer:
        return city.post(f"/v1/redemptions/{redemption}/refunds", {"points": amount}, by="terminal", key=key)

    def test_points_go_back_in_parts_until_all_are_back(self, city: City, resident: str) -> None:
        captured = city.captured(resident, 30)
        part = self.refunded(city, captured, 10)
        assert part.status_code == 201
        assert (part.json()["points"], part.json()["amount_fen"]) == (10, 20)
        told = city.get(f"/v1/redemptions/{captured}").json()
        assert (told["status"], told["refunded_points"], told["refunded_fen"]) == ("partially_refunded", 10, 20)
        assert points(city, resident) == (80, 0)
        rest = self.refunded(city, captured, 20)
        assert (rest.json()["points"], rest.json()["amount_fen"]) == (20, 40)
        told = city.get(f"/v1/redemptions/{captured}").json()
        assert (told["status"], told["refunded_points"], told["refunded_fen"]) == ("refunded", 30, 60)
        assert points(city, resident) == (100, 0)
        problem(self.refunded(city, captured, 1), 409, "refund-exceeds-captured")

    def test_the_same_refund_again_gives_nothing_back(self, city: City, resident: str) -> None:
        captured = city.captured(resident, 30)
        same_again(*(self.refunded(city, captured, 10, "k") for _ in range(2)))
        answer = self.refunded(city, captured, 11, "k")
        assert problem(answer, 422, "identity-reused")["facts"] == {"fields": ["points"]}

    def test_more_than_was_captured_is_refused(self, city: City, resident: str) -> None:
        answer = self.refunded(city, city.captured(resident, 30), 31)
        assert problem(answer, 409, "refund-exceeds-captured")["facts"] == {
            "current_state": "captured",
            "left": 30,
            "wanted": 31,
        }

    def test_what_is_only_held_cannot_be_given_back(self, city: City, resident: str) -> None:
        problem(self.refunded(city, city.held(resident, 30), 30), 409, "redemption-not-captured")

    def test_points_whose_grant_has_expired_live_for_thirty_more_days(self, own_city: City, time: Clock) -> None:
        resident = own_city.resident(points=POINTS)
        captured = own_city.captured(resident, 30)
        time.at = time.at.replace(year=2026, month=8)
        assert self.refunded(own_city, captured, 30).status_code == 201
        assert points(own_city, resident) == (30, 0)
        assert own_city.get(f"/v1/residents/{resident}").json()["grants"] == [
            {"expires_on": "2026-09-14", "points": 30}
        ]


class TestCodes:
    """A resident shows a code, and a terminal reads it."""

    def body(self, city: City, resident: str, points: int = 30) -> dict[str, object]:
        return city.coded(hold(resident, points), "terminal", city.name("key"))

    def test_a_code_is_used_once_whatever_it_is_used_for(self, city: City, resident: str) -> None:
        body = self.body(city, resident)
        assert city.post("/v1/redemptions", body, by="terminal").status_code == 201
        for by, place in (("terminal", {}), ("other terminal", {"merchant": "mall"})):
            told = problem(city.post("/v1/redemptions", body | place, by=by), 409, "code-used")
            assert told["retryable"] == "new-key"
        assert points(city, resident) == (70, 30)

    def test_a_code_is_used_up_by_an_attempt_that_fails(self, city: City, resident: str) -> None:
        body = self.body(city, resident, 101)
        problem(city.post("/v1/redemptions", body, by="terminal"), 409, "insufficient-points")
        problem(city.post("/v1/redemptions", body | {"points": 1}, by="terminal"), 409, "code-used")

    def test_the_same_call_is_answered_the_same_when_its_code_is_good_no_more(
        self, own_city: City, time: Clock
    ) -> None:
        resident = own_city.resident(points=POINTS)
        call = {"by": "terminal", "key": "k"}
        body = own_city.coded(hold(resident, 30), "terminal", "k")
        first = own_city.post("/v1/redemptions", body, **call)
        time.move(timedelta(minutes=5))
        problem(own_city.post("/v1/redemptions", body, by="terminal"), 409, "code-expired")
        same_again(first, own_city.post("/v1/redemptions", body, **call))
        answer = own_city.post("/v1/redemptions", body | {"points": 31}, **call)
        assert problem(answer, 422, "identity-reused")["facts"] == {"fields": ["points"]}
        time.move(timedelta(days=400))
        same_again(first, own_city.post("/v1/redemptions", body, **call))

    def test_a_terminal_cannot_ask_for_a_resident_whose_name_it_has_learnt(self, city: City, resident: str) -> None:
        raw = msgspec.json.encode(hold(resident, 1))
        problem(city.post("/v1/redemptions", by="terminal", raw=raw), 400, "code-missing")

    def test_a_code_is_in_no_answer_and_in_no_entry(self, city: City, resident: str) -> None:
        body = self.body(city, resident, 101)
        answer = city.post("/v1/redemptions", body, by="terminal")
        entries = [e.state for n in city.installation.journal.heads() for e in city.installation.journal.entries(n)]
        assert not any(str(body["code"]).encode() in told for told in [answer.content, *entries])
