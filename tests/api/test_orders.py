"""Redemptions over two partitions: whatever is cut short, repeated, reversed or left, it ends once and in one way."""

from datetime import timedelta
from typing import Any

import pytest
from msgspec import structs

from carbon_points.api.installation import redemption_id_of
from carbon_points.api.orders import GRACE, SETTLE
from carbon_points.directory import Caller
from carbon_points.domain.account import CapturePoints, HoldPoints
from carbon_points.domain.order import OrderMoved, PlaceOrder, ReverseOrder
from carbon_points.journal import codec
from carbon_points.journal.partition import Write
from tests.api.city import POINTS, Answer, City, hold, problem, same_again
from tests.conftest import Clock

TILL = Caller("key_x", "terminal", "shop/t1")
AT = {"merchant": "shop", "terminal": "t1"}
SECOND = timedelta(seconds=1)


@pytest.fixture
def resident(own_city: City) -> str:
    return own_city.resident(points=POINTS)


def balance(city: City, resident: str) -> tuple[int, int]:
    told = city.balance(resident)
    return told["points_available"], told["points_held"]


def undo(city: City, key: str, points: int, **said: Any) -> Answer:
    body = {"reference": key, "points": points, "reason": "timeout"} | said
    return city.post("/v1/redemptions/reversal", body, by="terminal", key=None)


def moves(city: City, redemption: str) -> list[tuple[str, int, int]]:
    """What the order of a redemption has counted."""
    city.settled()
    assert city.installation.finisher.settled("shop", 30)
    number = city.installation.journal.partition_of("merchant/shop").number
    events = [codec.decode(e.type, e.state) for e in city.installation.journal.entries(number)]
    return [
        (e.kind, e.points, e.amount_fen) for e in events if isinstance(e, OrderMoved) and e.redemption_id == redemption
    ]


def found(city: City, key: str) -> Any:
    return city.done(city.get("/v1/redemptions", by="terminal", reference=key))


class TestFinding:
    def test_a_call_that_never_came_is_none_and_its_answer_is_definite_once_it_is_reversed(
        self, own_city: City, resident: str
    ) -> None:
        assert found(own_city, "k")["status"] == "none"
        assert undo(own_city, "k", 30).json()["action"] == "none"
        assert found(own_city, "k")["status"] == "reversed"
        late = own_city.post("/v1/redemptions", hold(resident, 30), by="terminal", key="k")
        assert problem(late, 409, "redemption-reversed")["facts"]["current_state"] == "reversed"
        assert balance(own_city, resident) == (100, 0)

    def test_a_terminal_finds_its_own_calls_only(self, own_city: City, resident: str) -> None:
        own_city.held(resident, 30, key="k")
        assert found(own_city, "k")["status"] == "held"
        other = own_city.get("/v1/redemptions", by="next terminal", reference="k").json()
        assert (other["status"], other["terminal"]) == ("none", "t2")

    @pytest.mark.parametrize("key", ["订单-1", "caf\u00e9", " k", "k ", "a\tb"])
    def test_a_reference_that_header_and_body_might_not_carry_alike_is_refused_by_both(
        self, own_city: City, resident: str, key: str
    ) -> None:
        """Or its reversal would be of another call, which never came, while the sale stands."""
        if key == key.strip():
            headers: Any = {b"Idempotency-Key": key.encode()}
            sale = own_city.post("/v1/redemptions", hold(resident, 30), by="app", key=None, headers=headers)
            problem(sale, 400, "idempotency-key-missing")
        problem(undo(own_city, key, 30), 400, "idempotency-key-missing")
        problem(own_city.get("/v1/redemptions", by="terminal", reference=key), 400, "idempotency-key-missing")


class TestReversing:
    @pytest.mark.parametrize(
        ("capture", "action", "counted"),
        [(False, "released", [("release", 30, 0)]), (True, "refunded", [("sale", 30, 60), ("reversal", 30, 60)])],
    )
    def test_it_lets_go_or_gives_back_and_says_which(
        self, own_city: City, resident: str, capture: bool, action: str, counted: list[tuple[str, int, int]]
    ) -> None:
        redemption = own_city.held(resident, 30, key="k", capture=capture)
        answers = [undo(own_city, "k", 30), undo(own_city, "k", 30, repeat=True, reason="invalid-response")]
        same_again(*answers)
        points = 30 if capture else 0
        assert answers[0].json() == {
            "redemption_id": redemption,
            "status": "reversed",
            "action": action,
            "points": points,
            "amount_fen": 2 * points,
        }
        assert balance(own_city, resident) == (100, 0)
        assert found(own_city, "k")["status"] == "reversed"
        assert moves(own_city, redemption) == counted

    def test_what_was_given_back_in_part_is_given_back_whole(self, own_city: City, resident: str) -> None:
        redemption = own_city.held(resident, 30, key="k", capture=True)
        own_city.done(own_city.post(f"/v1/redemptions/{redemption}/refunds", {"points": 10}, by="terminal"))
        assert undo(own_city, "k", 30).json()["points"] == 20
        assert balance(own_city, resident) == (100, 0)
        refund = own_city.post(f"/v1/redemptions/{redemption}/refunds", {"points": 1}, by="terminal")
        assert problem(refund, 409, "redemption-not-captured")["facts"]["current_state"] == "reversed"
        assert moves(own_city, redemption) == [("sale", 30, 60), ("refund", 10, 20), ("reversal", 20, 40)]

    def test_another_number_of_points_is_refused_and_nothing_is_undone(self, own_city: City, resident: str) -> None:
        own_city.held(resident, 30, key="k")
        assert problem(undo(own_city, "k", 31), 409, "reversal-mismatch")["facts"]["points"] == 30
        assert balance(own_city, resident) == (70, 30)

    def test_what_had_ended_stays_as_it_ended(self, own_city: City, resident: str) -> None:
        redemption = own_city.held(resident, 30, key="k")
        own_city.done(own_city.post(f"/v1/redemptions/{redemption}/void", by="terminal"))
        assert undo(own_city, "k", 30).json()["action"] == "none"
        assert moves(own_city, redemption) == [("void", 30, 0)]

    def test_a_terminal_undoes_its_own_only(self, own_city: City, resident: str) -> None:
        own_city.held(resident, 30, key="k")
        problem(undo(own_city, "k", 30, terminal="t2"), 403, "not-yours")
        body = {"reference": "k", "points": 30, "reason": "timeout"}
        other = own_city.post("/v1/redemptions/reversal", body, by="next terminal", key=None)
        assert other.json()["action"] == "none"
        assert balance(own_city, resident) == (70, 30)

    @pytest.mark.parametrize(("merchant", "terminal"), [("mall", "t1"), ("shop", "t2")])
    def test_an_app_that_names_another_than_it_asked_at_is_told_so(
        self, own_city: City, resident: str, merchant: str, terminal: str
    ) -> None:
        own_city.done(own_city.post("/v1/redemptions", hold(resident, 30, capture=True), by="app", key="k"))
        body = {"reference": "k", "points": 30, "reason": "timeout", "merchant": merchant, "terminal": terminal}
        other = own_city.post("/v1/redemptions/reversal", body, by="app", key=None)
        assert problem(other, 409, "reversal-mismatch")["facts"]["terminal"] == "t1"
        assert balance(own_city, resident) == (70, 0)
        right = own_city.post("/v1/redemptions/reversal", body | AT, by="app", key=None)
        assert (right.status_code, right.json()["action"]) == (201, "refunded")
        assert balance(own_city, resident) == (100, 0)


class TestAgreeing:
    """Here the merchant's residents are asked for whatever they pay by code."""

    @pytest.fixture
    def asked(self, own_city: City, resident: str) -> str:
        own_city.done(own_city.call("PUT", "/v1/merchants/shop/terms", {"confirm_above": 0}))
        return resident

    def place(self, city: City, resident: str, key: str, *, capture: bool = False) -> str:
        """As a payment code does it."""
        redemption = redemption_id_of(TILL, key)
        order = PlaceOrder(
            merchant="shop",
            terminal="t1",
            redemption_id=redemption,
            resident=resident,
            points=30,
            hold_seconds=300,
            capture=capture,
            code=f"pay_1:{key}",
        )
        client: Any = city.http
        with client.portal() as portal:
            held = portal.call(city.installation.orders.hold, order)
        assert held.placed.confirm_seconds == 60
        return redemption

    @pytest.mark.parametrize("capture", [False, True])
    def test_it_waits_for_the_resident_and_goes_on(self, own_city: City, asked: str, capture: bool) -> None:
        redemption = self.place(own_city, asked, "k", capture=capture)
        assert found(own_city, "k")["status"] == "confirming"
        waiting = own_city.done(own_city.get(f"/v1/residents/{asked}/confirmations", by="app"))["data"]
        assert [(w["redemption_id"], w["points"], w["merchant"]) for w in waiting] == [(redemption, 30, "shop")]
        early = own_city.post(f"/v1/redemptions/{redemption}/capture", {"points": 30}, by="terminal")
        assert problem(early, 409, "redemption-not-held")["facts"]["current_state"] == "confirming"
        path = f"/v1/redemptions/{redemption}/confirmation"
        answers = [own_city.post(path, {"accept": True}, by="app", key=None) for _ in range(2)]
        same_again(*answers)
        assert found(own_city, "k")["status"] == ("captured" if capture else "held")
        problem(own_city.post(path, {"accept": False}, by="app"), 422, "identity-reused")
        assert own_city.get(f"/v1/residents/{asked}/confirmations", by="app").json()["data"] == []

    def test_who_does_not_agree_keeps_the_points(self, own_city: City, asked: str) -> None:
        redemption = self.place(own_city, asked, "k")
        path = f"/v1/redemptions/{redemption}/confirmation"
        answers = [own_city.post(path, {"accept": False}, by="app", key=None) for _ in range(2)]
        same_again(*answers)
        for told in (answers[0].json(), found(own_city, "k")):
            assert (told["status"], told["declined_because"]) == ("declined", "not-agreed")
        assert balance(own_city, asked) == (100, 0)
        assert moves(own_city, redemption) == [("decline", 30, 0)]

    def test_who_does_not_answer_in_a_minute_has_declined(self, own_city: City, asked: str, time: Clock) -> None:
        redemption = self.place(own_city, asked, "k")
        time.move(60 * SECOND)
        because = "not-agreed-in-time"
        assert (found(own_city, "k")["status"], found(own_city, "k")["declined_because"]) == ("declined", because)
        late = own_city.post(f"/v1/redemptions/{redemption}/confirmation", {"accept": True}, by="app")
        assert problem(late, 409, "redemption-not-held")["facts"]["current_state"] == "declined"
        assert balance(own_city, asked) == (100, 0)
        time.move(SETTLE)
        own_city.settled().installation.finisher.finish()
        assert moves(own_city, redemption) == [("decline", 30, 0)]
        assert found(own_city, "k")["declined_because"] == because, "also once it is written down"


class TestWhatWasLeft:
    """A process dies between two steps: nobody comes back, or somebody does."""

    def order(self, city: City, resident: str, key: str) -> PlaceOrder:
        """As the call of that key places it."""
        code = city.coded({"resident": resident}, "terminal", key)["code"]
        payer = city.installation.directory.payers.payer(code, city.installation.clock())
        asked: dict[str, Any] = {"points": 30, "hold_seconds": 300, "code": payer.step}
        redemption = redemption_id_of(TILL, key)
        return PlaceOrder(merchant="shop", terminal="t1", redemption_id=redemption, resident=resident, **asked)

    def commit(self, city: City, *commands: Any) -> None:
        for outcome in city.installation.journal.commit([Write(command) for command in commands]):
            assert outcome.refusal is None, outcome.refusal

    def test_an_order_whose_hold_never_came_is_given_up_for_good(
        self, own_city: City, resident: str, time: Clock
    ) -> None:
        order = self.order(own_city, resident, "k")
        self.commit(own_city, order)
        finisher = own_city.finisher()
        time.move(GRACE - SECOND)
        assert finisher.finish() == 0
        time.move(SECOND)
        assert finisher.finish() == 1
        late = own_city.post("/v1/redemptions", hold(resident, 30), by="terminal", key="k")
        assert problem(late, 409, "hold-abandoned")["retryable"] == "new-key"
        assert found(own_city, "k")["declined_because"] == "hold-abandoned"
        assert balance(own_city, resident) == (100, 0)
        assert moves(own_city, order.redemption_id) == [("decline", 30, 0)]
        assert finisher.finish() == 0

    def test_whoever_comes_back_in_time_goes_on_where_it_stopped(self, own_city: City, resident: str) -> None:
        self.commit(own_city, self.order(own_city, resident, "k"))
        answer = own_city.post("/v1/redemptions", hold(resident, 30), by="terminal", key="k")
        assert (answer.status_code, answer.json()["status"]) == (201, "held")
        assert balance(own_city, resident) == (70, 30)

    @pytest.mark.parametrize("sold_out", [False, True])
    def test_what_was_to_be_declined_and_was_reversed_first_is_answered_so_for_good(
        self, own_city: City, resident: str, sold_out: bool
    ) -> None:
        """Its code is used by another call, or its offer has nothing left: either is found out too late."""
        body = hold(resident, 30)
        order = self.order(own_city, resident, "k")
        if sold_out:
            offer = {"offer": "tea", "title": "茶一杯", "points": 30, "amount_fen": 60, "stock": 0}
            own_city.done(own_city.post("/v1/merchants/shop/offers", offer))
            body = {"resident": resident, **AT, "offer": "tea"}
            order = structs.replace(order, points=0, offer="tea", items=1)
        self.commit(own_city, order)
        if not sold_out:
            other = own_city.coded(body, "terminal", "k") | {"points": 10}
            own_city.done(own_city.post("/v1/redemptions", other, by="terminal", key="other"))
        own_city.done(undo(own_city, "k", 30))
        for _ in range(2):
            late = own_city.post("/v1/redemptions", body, by="terminal", key="k")
            assert problem(late, 409, "redemption-not-held")["facts"]["current_state"] == "reversed"

    def test_what_was_captured_reaches_its_order_though_nobody_passed_it_on(
        self, own_city: City, resident: str, time: Clock
    ) -> None:
        order = self.order(own_city, resident, "k")
        held = HoldPoints(
            resident=resident,
            redemption_id=order.redemption_id,
            merchant="shop",
            terminal="t1",
            points=30,
            amount_fen=60,
            hold_seconds=300,
            code_step=order.code,
        )
        captured = CapturePoints(resident=resident, redemption_id=order.redemption_id, points=20)
        self.commit(own_city, order, held, captured)
        finisher = own_city.finisher()
        assert finisher.finish() == 0, "whoever captured it may be passing it on"
        time.move(SETTLE)
        assert finisher.finish() == 1
        assert moves(own_city, order.redemption_id) == [("sale", 20, 40)]
        assert finisher.finish() == 0

    def test_a_hold_that_ran_out_is_released_though_its_resident_does_nothing(
        self, own_city: City, resident: str, time: Clock
    ) -> None:
        redemption = own_city.held(resident, 30, hold_seconds=60)
        time.move(60 * SECOND)
        own_city.settled().installation.finisher.finish()
        time.move(SETTLE)
        own_city.settled().installation.finisher.finish()
        assert moves(own_city, redemption) == [("expiry", 30, 0)]

    @pytest.mark.parametrize("capture", [False, True])
    def test_a_reversal_that_was_begun_is_ended(
        self, own_city: City, resident: str, time: Clock, capture: bool
    ) -> None:
        redemption = own_city.held(resident, 30, key="k", capture=capture)
        asked = {"merchant": "shop", "terminal": "t1", "redemption_id": redemption, "points": 30}
        self.commit(own_city, ReverseOrder(**asked, reason="timeout"))
        finisher = own_city.finisher()
        time.move(GRACE)
        assert finisher.finish()
        assert balance(own_city, resident) == (100, 0)
        assert found(own_city, "k")["status"] == "reversed"
        ends = ["sale", "reversal"] if capture else ["release"]
        assert [kind for kind, *_ in moves(own_city, redemption)] == ends


def test_nobody_places_an_order_at_a_suspended_terminal_and_what_it_holds_can_still_be_captured(
    own_city: City, resident: str
) -> None:
    held = own_city.held(resident, 30, key="k")
    suspension = {"suspended": True, "reason": "stolen"}
    own_city.done(own_city.post("/v1/merchants/shop/terminals/t1/suspension", suspension))
    problem(own_city.post("/v1/redemptions", hold(resident, 10), by="app"), 403, "terminal-suspended")
    own_city.done(own_city.post(f"/v1/redemptions/{held}/capture", {"points": 30}, by="app"))
    assert balance(own_city, resident) == (70, 0)
