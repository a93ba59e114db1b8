"""Residents over HTTP: an account is opened once, holds what the log says at once, and belongs to nobody by name."""

from datetime import timedelta
from typing import Any

import pytest

from tests.api.city import POINTS, SINCE, Answer, City, position, problem, same_again
from tests.conftest import Clock

NOBODY = "res_" + "a" * 20


def consent(purpose: str = "record", **said: Any) -> dict[str, Any]:
    return {"purpose": purpose, "version": "2025-1", "from": SINCE} | said


class TestOpening:
    def test_an_account_has_a_random_pseudonym_and_what_was_agreed_to(self, city: City) -> None:
        body = {"county": "330503", "consents": [consent(), consent("trade", until="2030-01-01T00:00:00Z")]}
        first, second = (city.post("/v1/residents", body, by="app") for _ in range(2))
        assert first.status_code == second.status_code == 201
        told = first.json()
        assert told["resident"] != second.json()["resident"]
        assert (told["county"], told["frozen"], told["grants"], told["unpooled_mg"]) == ("330503", False, [], 0)
        assert [(c["purpose"], c["version"], c["from"]) for c in told["consents"]] == [
            ("record", "2025-1", "2014-12-31T16:00:00Z"),
            ("trade", "2025-1", "2014-12-31T16:00:00Z"),
        ]

    def test_the_same_call_again_opens_nothing(self, city: City) -> None:
        body = {"subjects": [{"source": "szt", "subject": city.name("card")}], "consents": [consent()]}
        same_again(*(city.post("/v1/residents", body, by="app", key=str(body)) for _ in range(2)))

    def test_the_same_call_again_takes_the_times_that_the_first_left_out(self, own_city: City, time: Clock) -> None:
        body = {"consents": [consent(**{"from": None}), consent("trade", **{"from": None})]}
        first = own_city.post("/v1/residents", body, by="app", key="k")
        time.move(timedelta(days=40))
        again = own_city.post("/v1/residents", body, by="app", key="k")
        same_again(first, again)
        assert [c["from"] for c in again.json()["consents"]] == ["2025-06-15T04:00:00Z", "2025-05-31T16:00:00Z"]

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("county", "330502"),
            ("county", None),
            ("subjects", []),
            ("subjects", [{"source": "szt", "subject": "another"}]),
            ("consents", []),
            ("consents", [consent(), consent("trade")]),
            ("consents", [consent(version="2025-2")]),
        ],
    )
    def test_another_account_under_a_used_key_is_refused_and_the_field_is_named(
        self, city: City, field: str, value: object
    ) -> None:
        key, subjects = city.name("key"), [{"source": "szt", "subject": city.name("card")}]
        body = {"county": "330503", "subjects": subjects, "consents": [consent()]}
        first = city.post("/v1/residents", body, by="app", key=key)
        told = problem(city.post("/v1/residents", body | {field: value}, by="app", key=key), 422, "identity-reused")
        assert told["facts"] == {"fields": [field]}
        same_again(first, city.post("/v1/residents", body, by="app", key=key))

    def test_two_callers_may_use_the_same_key(self, city: City) -> None:
        mine, theirs = (city.post("/v1/residents", {}, by=caller, key="the same") for caller in ("app", "operator"))
        assert mine.json()["resident"] != theirs.json()["resident"]

    def test_whom_a_report_made_a_resident_is_found_again_by_the_card(self, city: City) -> None:
        card = city.name("card")
        action = city.recorded(resident=card)["action_id"]
        resident = city.get(f"/v1/actions/{action}").json()["resident"]
        body = {"subjects": [{"source": "szt", "subject": card}, {"source": "hz", "subject": card}]}
        answer = city.post("/v1/residents", body | {"consents": [consent()]}, by="app")
        assert answer.json()["resident"] == resident
        assert [c.get("asserted_by") for c in answer.json()["consents"]] == ["szt", None]
        assert answer.json()["balance"]["points_available"] == 10
        elsewhere = city.post("/v1/actions", city.report(source="hz", resident=card), by="other source").json()
        assert elsewhere["balance"]["points_available"] == 20

    def test_cards_of_two_residents_make_no_third(self, city: City) -> None:
        cards = [city.name("card"), city.name("card")]
        for card in cards:
            city.resident(card=card)
        body = {"subjects": [{"source": "szt", "subject": card} for card in cards]}
        told = problem(city.post("/v1/residents", body, by="app"), 409, "subject-bound")
        assert not any(card in str(told) for card in cards)

    def test_nothing_in_an_answer_says_who_somebody_is(self, city: City) -> None:
        card = city.name("13800000000")
        resident = city.resident(card=card, points=POINTS)
        city.settled()
        for path in ("", "/statement"):
            assert card not in city.get(f"/v1/residents/{resident}{path}").text

    @pytest.mark.parametrize(
        ("said", "status", "code"),
        [
            ({"until": SINCE}, 422, "consent-span-invalid"),
            ({"until": "2014-01-01T00:00:00Z"}, 422, "consent-span-invalid"),
            ({"from": "2025-01-01T00:00:00"}, 422, "time-without-offset"),
            ({"until": "2250-01-01T00:00:00Z"}, 422, "time-invalid"),
            ({"from": "now"}, 422, "time-invalid"),
            ({"purpose": "spy"}, 400, "wrong-type"),
            ({"version": ""}, 400, "wrong-type"),
            ({"behaviours": ["a b"]}, 400, "wrong-type"),
            ({"id": "con_1"}, 400, "unknown-field"),
        ],
    )
    def test_a_consent_that_cannot_be_is_refused_and_opens_no_account(
        self, city: City, said: dict[str, Any], status: int, code: str
    ) -> None:
        card = city.name("card")
        body = {"subjects": [{"source": "szt", "subject": card}], "consents": [consent(**said)]}
        problem(city.post("/v1/residents", body, by="app"), status, code)
        resident = city.resident()
        problem(city.post(f"/v1/residents/{resident}/consents", consent(**said), by="app"), status, code)


class TestConsents:
    def given(self, city: City, resident: str, body: dict[str, Any], key: str) -> Answer:
        return city.post(f"/v1/residents/{resident}/consents", body, by="app", key=key)

    def test_a_consent_is_given_withdrawn_and_shown(self, city: City) -> None:
        resident = city.resident()
        given = self.given(city, resident, consent("trade", behaviours=["bus"], source="szt"), "k")
        assert given.status_code == 201
        shown = city.get(f"/v1/residents/{resident}").json()["consents"]
        assert given.json() in shown
        path = f"/v1/residents/{resident}/consents/{given.json()['id']}"
        answers = [city.call("DELETE", path, by="app") for _ in range(2)]
        same_again(*answers)
        assert given.json() not in answers[0].json()["consents"]

    def test_the_same_consent_again_is_the_same_though_it_is_withdrawn_since(self, city: City) -> None:
        resident = city.resident()
        body = {"purpose": "trade", "version": "2025-1"}
        first = self.given(city, resident, body, "k")
        same_again(first, self.given(city, resident, body, "k"))
        city.call("DELETE", f"/v1/residents/{resident}/consents/{first.json()['id']}", by="app")
        same_again(first, self.given(city, resident, body, "k"))
        assert [c["purpose"] for c in city.get(f"/v1/residents/{resident}").json()["consents"]] == ["record"]

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("purpose", "record"),
            ("version", "2"),
            ("from", "2016-01-01T00:00:00Z"),
            ("until", "2030-01-01T00:00:00Z"),
            ("source", "szt"),
            ("behaviours", ["bus"]),
        ],
    )
    def test_another_consent_under_a_used_key_is_refused_and_the_field_is_named(
        self, city: City, field: str, value: object
    ) -> None:
        resident = city.resident()
        self.given(city, resident, consent("trade"), "k")
        told = problem(self.given(city, resident, consent("trade") | {field: value}, "k"), 422, "identity-reused")
        assert told["facts"] == {"fields": [field]}

    def test_a_key_used_for_one_resident_may_be_used_for_another(self, city: City) -> None:
        assert {self.given(city, city.resident(), consent("trade"), "k").status_code for _ in range(2)} == {201}

    def test_nobody_consents_for_an_account_that_is_not_there(self, city: City) -> None:
        problem(self.given(city, NOBODY, consent(), "k"), 404, "account-unknown")
        problem(city.call("DELETE", f"/v1/residents/{NOBODY}/consents/c"), 404, "account-unknown")
        problem(city.call("DELETE", f"/v1/residents/{city.resident()}/consents/c"), 404, "consent-unknown")

    def test_what_happens_after_a_withdrawal_is_not_recorded(self, city: City) -> None:
        card = city.name("card")
        resident = city.resident(card=card)
        [given] = city.get(f"/v1/residents/{resident}").json()["consents"]
        city.done(city.call("DELETE", f"/v1/residents/{resident}/consents/{given['id']}", by="app"))
        problem(city.post("/v1/actions", city.report(resident=card), by="source"), 409, "consent-missing")


class TestBalances:
    def test_they_are_right_at_once_and_tell_what_expires_next(self, own_city: City, time: Clock) -> None:
        card = own_city.name("card")
        resident = own_city.resident(card=card, points=100)
        time.move(timedelta(days=31))
        own_city.recorded(resident=card, behaviour="bus", occurred_at="2025-07-16T11:00:00+08:00")
        own_city.held(resident, 30)
        told = own_city.get(f"/v1/residents/{resident}").json()
        assert told["balance"] == {
            "points_available": 80,
            "points_held": 30,
            "points_debt": 0,
            "reduction_mg": 1_080_000,
            "reduction_debt_mg": 0,
            "expiring": 70,
            "expiring_on": "2026-06-30",
        }
        assert told["unpooled_mg"] == 1_080_000
        assert told["grants"] == [
            {"expires_on": "2026-06-30", "points": 70},
            {"expires_on": "2027-07-31", "points": 10},
        ]

    def test_points_are_gone_the_day_after_their_last(self, own_city: City, time: Clock) -> None:
        resident = own_city.resident(points=100)
        time.at = time.at.replace(year=2026, month=6, day=30, hour=15, minute=59)
        assert own_city.balance(resident)["points_available"] == 100
        time.move(timedelta(minutes=1))  # midnight in China
        told = own_city.get(f"/v1/residents/{resident}").json()
        assert told["balance"]["points_available"] == 0
        assert told["grants"] == []
        assert told["balance"]["expiring_on"] is None
        assert told["balance"]["reduction_mg"] == 1_000_000

    def test_a_statement_tells_every_movement_newest_first_in_pages(self, city: City) -> None:
        card = city.name("card")
        resident = city.resident(card=card)
        for _ in range(4):
            city.recorded(resident=card)
        last = city.post("/v1/redemptions", {"resident": resident, "merchant": "shop", "terminal": "t1", "points": 7})
        path, lines, cursor = f"/v1/residents/{resident}/statement", [], {}
        while True:
            page = city.get(path, by="app", limit=2, min_position=position(last), **cursor).json()
            lines += page["data"]
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
        assert [line["type"] for line in lines] == [
            "points-held",
            *["action-credited"] * 4,
            "consent-given",
            "account-opened",
        ]
        assert len({line["position"] for line in lines}) == 7
        assert sum(line["points"] for line in lines) == city.balance(resident)["points_available"] == 33
        assert sum(line["held_points"] for line in lines) == 7


class TestFreezing:
    def test_a_frozen_account_spends_nothing_until_it_may_again(self, city: City) -> None:
        resident = city.resident(points=POINTS)
        path = f"/v1/residents/{resident}/freeze"
        frozen = city.post(path, {"frozen": True, "reason": "异常"})
        assert (frozen.status_code, frozen.json()["frozen"]) == (200, True)
        problem(city.post(path, {"frozen": True, "reason": "异常"}), 409, "frozen-already")
        hold = {"resident": resident, "merchant": "shop", "terminal": "t1", "points": 1}
        problem(city.post("/v1/redemptions", hold, by="terminal"), 409, "account-frozen")
        city.done(city.post(path, {"frozen": False, "reason": "查清"}))
        assert city.post("/v1/redemptions", hold, by="terminal").status_code == 201

    def test_what_was_on_hold_before_may_still_be_captured(self, city: City) -> None:
        resident = city.resident(points=POINTS)
        held = city.held(resident, 10)
        city.done(city.post(f"/v1/residents/{resident}/freeze", {"frozen": True, "reason": "x"}))
        assert city.post(f"/v1/redemptions/{held}/capture", {"points": 10}, by="terminal").status_code == 201


class TestErasing:
    def test_an_erased_resident_is_nobody_and_the_card_somebody_new(self, city: City) -> None:
        card = city.name("card")
        resident = city.resident(card=card, points=POINTS)
        answer = city.call("DELETE", f"/v1/residents/{resident}/bindings", by="app")
        assert answer.status_code == 200
        assert answer.json()["bindings_destroyed"] >= 1
        assert city.balance(resident)["points_available"] == POINTS  # a figure about nobody
        assert city.recorded(resident=card)["balance"]["points_available"] == 10
        again = city.call("DELETE", f"/v1/residents/{resident}/bindings", by="app")
        assert again.json() == {"bindings_destroyed": 0}
