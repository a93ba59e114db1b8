"""Actions over HTTP: a report counts once, its receipt says how, and what was reported in error can be taken back."""

from typing import Any

import pytest

from tests.api.city import POINTS, City, position, problem, same_again

BUS_MG, BUS_POINTS = 80_000, 10  # of a ride, by the table that is shipped


class TestReporting:
    def test_a_receipt_tells_the_figures_and_the_balance_at_once(self, city: City) -> None:
        answer = city.post("/v1/actions", city.report(county="330503"), by="source")
        assert answer.status_code == 201
        told = answer.json()
        assert told["verdict"] == "accepted"
        assert told["action_id"].startswith("act_")
        assert (told["methodology"], told["version"], told["counted"]) == ("bus", "2024-1", "1")
        assert (told["reduction_mg"], told["points"], told["expires_on"]) == (BUS_MG, BUS_POINTS, "2027-06-30")
        assert told["balance"]["points_available"] == BUS_POINTS
        assert told["balance"]["reduction_mg"] == BUS_MG
        assert (told["balance"]["expiring"], told["balance"]["expiring_on"]) == (BUS_POINTS, "2027-06-30")
        assert told["position"] == position(answer)

    def test_the_same_report_again_changes_nothing_and_says_so(self, city: City) -> None:
        body = city.report()
        first, again = (city.post("/v1/actions", body, by="source") for _ in range(2))
        assert again.status_code == 200
        assert again.headers["Idempotency-Replayed"] == "true"
        assert position(again) == position(first)
        assert again.json() == first.json() | {"verdict": "duplicate"}

    def test_it_needs_no_idempotency_key_and_heeds_none(self, city: City) -> None:
        body = city.report()
        assert city.post("/v1/actions", body, by="source", key=None).status_code == 201
        assert city.post("/v1/actions", body, by="source", key="another").status_code == 200

    def test_the_same_instant_and_number_written_otherwise_is_the_same_content(self, city: City) -> None:
        body = city.report()
        city.post("/v1/actions", body, by="source")
        other = body | {"quantity": "1.0", "occurred_at": "2025-06-15T03:00:00Z"}
        assert city.post("/v1/actions", other, by="source").json()["verdict"] == "duplicate"

    @pytest.mark.parametrize(
        ("field", "value"),
        [("occurred_at", "2025-06-15T11:00:01+08:00"), ("behaviour", "green"), ("unit", "km"), ("quantity", "2")],
    )
    def test_other_content_under_a_used_record_is_refused_and_the_fields_are_named(
        self, city: City, field: str, value: str
    ) -> None:
        body = city.report()
        first = city.post("/v1/actions", body, by="source")
        told = problem(city.post("/v1/actions", body | {field: value}, by="source"), 422, "identity-reused")
        assert told["facts"] == {"fields": [field]}
        assert told["retryable"] == "never"
        assert city.balance(self.resident(city, first))["points_available"] == BUS_POINTS

    @staticmethod
    def resident(city: City, answer: Any) -> str:
        return city.get(f"/v1/actions/{answer.json()['action_id']}").json()["resident"]

    def test_a_county_may_be_left_out_of_a_repeated_report_but_not_contradict(self, city: City) -> None:
        body = city.report(county="330503")
        city.post("/v1/actions", body, by="source")
        assert city.post("/v1/actions", body | {"county": None}, by="source").status_code == 200
        told = problem(city.post("/v1/actions", body | {"county": "330502"}, by="source"), 422, "identity-reused")
        assert told["facts"] == {"fields": ["county"]}

    def test_two_sources_may_use_the_same_record_id(self, city: City) -> None:
        body = city.report()
        assert city.post("/v1/actions", body, by="source").status_code == 201
        assert city.post("/v1/actions", body | {"source": "hz"}, by="other source").status_code == 201

    def test_an_operator_may_report_for_a_source_and_an_app_for_the_one_of_its_name(self, city: City) -> None:
        assert city.post("/v1/actions", city.report(), by="operator").status_code == 201
        problem(city.post("/v1/actions", city.report(), by="app"), 403, "not-yours")
        own = {"source": "city-app", "name": "步数", "behaviours": ["walk"], "opens_accounts": True}
        city.done(city.post("/v1/sources", own))
        walked = city.report(source="city-app", behaviour="walk", quantity="5000", unit="step")
        assert city.post("/v1/actions", walked, by="app").status_code == 201

    def test_what_exceeds_a_cap_is_kept_and_counts_nothing(self, city: City) -> None:
        card = city.name("card")
        rides = [city.recorded(resident=card) for _ in range(7)]
        assert [r["points"] for r in rides] == [10, 10, 10, 10, 0, 0, 0]
        assert [r["reduction_mg"] for r in rides] == [BUS_MG] * 6 + [0]
        assert "limits" not in rides[0]
        assert (rides[4]["limits"], rides[6]["limits"]) == (["day.points"], ["day.count"])
        assert rides[6]["balance"]["reduction_mg"] == 6 * BUS_MG

    def test_a_late_report_counts_by_the_table_of_its_day(self, city: City) -> None:
        ride = {"behaviour": "shared_bike", "quantity": "1", "unit": "km"}
        new = city.recorded(**ride, occurred_at="2025-01-01T00:00:00+08:00")
        old = city.recorded(**ride, occurred_at="2024-12-31T23:59:59+08:00")
        assert (old["version"], old["reduction_mg"]) == ("2023-1", 40_000)
        assert (new["version"], new["reduction_mg"]) == ("2025-1", 93_300)

    def test_points_that_pay_a_debt_are_told_as_paid(self, city: City) -> None:
        card = city.name("card")
        resident = city.resident(card=card)
        spent = city.earn(card, POINTS)
        city.captured(resident, POINTS)
        city.done(city.post(f"/v1/actions/{spent['action_id']}/reversal", {"reason": "misread"}, by="source"))
        assert city.balance(resident)["points_debt"] == POINTS
        assert city.recorded(resident=card)["balance"]["points_debt"] == POINTS - BUS_POINTS

    def test_a_source_that_opens_no_accounts_reports_only_of_those_who_have_one(self, city: City) -> None:
        source = city.name("strict")
        city.done(city.post("/v1/sources", {"source": source, "name": "严格", "behaviours": ["bus"]}))
        body = city.report(source=source)
        problem(city.post("/v1/actions", body), 404, "account-unknown")
        city.done(city.post("/v1/residents", {"subjects": [{"source": source, "subject": body["resident"]}]}, by="app"))
        told = problem(city.post("/v1/actions", body), 409, "consent-missing")
        assert told["retryable"] == "same-key"
        consents = [{"purpose": "record", "version": "1", "from": "2025-01-01T00:00:00+08:00"}]
        again = {"subjects": [{"source": source, "subject": body["resident"]}], "consents": consents}
        city.done(city.post("/v1/residents", again, by="app"))
        assert city.post("/v1/actions", body).status_code == 201


class TestRides:
    """A metro ride is two taps."""

    def tap(self, city: City, card: str, way: str, minute: int) -> Any:
        at = f"2025-06-15T09:{minute:02d}:00+08:00"
        body = city.report(resident=card, behaviour=f"metro_{way}", unit="tap", occurred_at=at)
        return city.post("/v1/actions", body, by="source")

    def test_an_entry_waits_and_its_exit_makes_the_ride(self, city: City) -> None:
        card = city.name("card")
        entry = self.tap(city, card, "in", 10)
        assert (entry.status_code, entry.json()["verdict"]) == (202, "pending")
        assert entry.json()["balance"]["reduction_mg"] == 0
        ride = self.tap(city, card, "out", 40)
        assert ride.status_code == 201
        assert ride.json()["paired_with"] == entry.json()["record_id"]
        assert ride.json()["balance"]["reduction_mg"] == ride.json()["reduction_mg"] == 46_000

    def test_an_exit_without_entry_is_refused_and_yet_makes_the_ride_when_the_entry_comes(self, city: City) -> None:
        card = city.name("card")
        told = problem(self.tap(city, card, "out", 40), 409, "exit-without-entry")
        known = city.get(f"/v1/actions/{told['facts']['action_id']}").json()
        assert (known["status"], known["refused"]) == ("refused", "exit-without-entry")
        late = self.tap(city, card, "in", 10)
        assert (late.status_code, late.json()["reduction_mg"]) == (201, 46_000)

    def test_a_repeated_entry_is_the_same_tap(self, city: City) -> None:
        body = city.report(behaviour="metro_in", unit="tap")
        first, again = (city.post("/v1/actions", body, by="source") for _ in range(2))
        assert (first.status_code, again.status_code) == (202, 200)
        assert again.json() == first.json() | {"verdict": "duplicate"}

    def test_a_waiting_tap_says_so(self, city: City) -> None:
        entry = self.tap(city, city.name("card"), "in", 10).json()
        assert city.get(f"/v1/actions/{entry['action_id']}").json()["status"] == "pending"
        listed = city.settled().get("/v1/actions", status="pending", limit=100).json()["data"]
        assert entry["action_id"] in {a["action_id"] for a in listed}


class TestExplaining:
    def test_an_action_shows_its_inputs_factor_source_rounding_caps_and_points(self, city: City) -> None:
        receipt = city.recorded(behaviour="shared_bike", quantity="3.333", unit="km")
        told = city.get(f"/v1/actions/{receipt['action_id']}", by="source").json()
        assert (told["status"], told["quantity"], told["unit"]) == ("credited", "3.333", "km")
        assert told["occurred_at"] == "2025-06-15T03:00:00Z"
        assert told["recorded_at"] == "2025-06-15T04:00:00Z"
        steps = {step["what"]: (step["value"], step["because"]) for step in told["calculation"]}
        assert list(steps) == ["methodology", "counted", "factor", "reduction", "points", "expires"]
        assert steps["methodology"][0] == "shared_bike 2025-1"
        assert steps["counted"] == ("3.333 km", "reported 3.333 km; no cap reached")
        assert steps["factor"][0] == "93.3 gCO2e/km"
        assert "Wuhan" in steps["factor"][1]
        assert steps["reduction"][0] == "310969 mg CO2e"  # 310968.9
        assert "93.3 x 1000, rounded half-even to 1 mg" in steps["reduction"][1]
        assert steps["points"][0] == "2"
        assert steps["expires"][0] == "2027-06-30"
        assert len(told["digest"]) == 32

    def test_a_capped_action_names_the_cap(self, city: City) -> None:
        card = city.name("card")
        *_, last = (city.recorded(resident=card) for _ in range(7))
        told = city.get(f"/v1/actions/{last['action_id']}").json()
        assert told["limits"] == ["day.count"]
        assert (told["quantity"], told["counted"]) == ("1", "0")
        assert "day.count" in told["calculation"][1]["because"]

    def test_a_ride_names_its_other_tap(self, city: City) -> None:
        card = city.name("card")
        taps = [
            city.recorded(resident=card, behaviour=f"metro_{way}", unit="tap", occurred_at=f"2025-06-15T0{hour}:00Z")
            for way, hour in (("in", "2:00"), ("out", "3:00"))
        ]
        told = city.get(f"/v1/actions/{taps[1]['action_id']}").json()
        assert told["paired_with"] == taps[0]["record_id"]
        assert told["calculation"][1]["because"].startswith(f"a ride with {taps[0]['record_id']}")

    @pytest.mark.parametrize("action", ["act_" + "a" * 26, "act_" + "7" * 26])
    def test_an_action_that_is_not_there_is_not_found(self, city: City, action: str) -> None:
        problem(city.get(f"/v1/actions/{action}"), 404, "action-unknown")
        problem(city.post(f"/v1/actions/{action}/reversal", {"reason": "x"}), 404, "action-unknown")


class TestReversal:
    def test_what_an_action_earned_is_taken_back_and_the_balance_says_so(self, city: City) -> None:
        receipt = city.recorded()
        answer = city.post(f"/v1/actions/{receipt['action_id']}/reversal", {"reason": "读数错误"}, by="source")
        assert answer.status_code == 201
        told = answer.json()
        assert (told["reduction_mg"], told["points"]) == (BUS_MG, BUS_POINTS)
        assert (told["reduction_debt_mg"], told["points_debt"]) == (0, 0)
        assert told["balance"]["points_available"] == told["balance"]["reduction_mg"] == 0
        known = city.get(f"/v1/actions/{receipt['action_id']}").json()
        assert (known["status"], known["reversed_because"]) == ("reversed", "读数错误")

    def test_points_that_were_spent_are_left_as_a_debt(self, city: City) -> None:
        card = city.name("card")
        resident = city.resident(card=card)
        earned = city.earn(card, POINTS)
        city.captured(resident, 60)
        told = city.done(city.post(f"/v1/actions/{earned['action_id']}/reversal", {"reason": "x"}, by="source"))
        assert (told["points"], told["points_debt"]) == (POINTS, 60)
        assert city.balance(resident)["points_debt"] == 60
        assert city.balance(resident)["points_available"] == 0

    def test_a_record_that_raced_into_two_partitions_is_taken_back_from_both(self, city: City) -> None:
        """As two processes may do that are sent it at the same moment: neither sees what the other has not written."""
        partitions, reports = city.installation.journal.partitions, [city.report()]
        answers = [city.post("/v1/actions", reports[0], by="source")]
        first = TestReporting.resident(city, answers[0])
        where = city.installation.journal.partition_of(first)
        others = [p.others for p in partitions]
        for partition in partitions:
            partition.others = ()
        while len(answers) == 1:  # until a subject's resident lies in another partition
            other = reports[0] | {"resident": city.report()["resident"]}
            resident = city.installation.directory.resident(other["source"], other["resident"])
            if city.installation.journal.partition_of(resident) is not where:
                answers.append(city.post("/v1/actions", other, by="source"))
        for partition, kept in zip(partitions, others, strict=True):
            partition.others = kept
        assert answers[1].status_code == 201
        path = f"/v1/actions/{answers[0].json()['action_id']}/reversal"
        assert city.post(path, {"reason": "twice"}, by="source").status_code == 201
        for one in (first, resident):
            assert city.balance(one)["points_available"] == 0
        assert city.post(path, {"reason": "twice"}, by="source").status_code == 200

    def test_the_same_reversal_again_changes_nothing(self, city: City) -> None:
        path = f"/v1/actions/{city.recorded()['action_id']}/reversal"
        same_again(*(city.post(path, {"reason": "x"}, by="source") for _ in range(2)))

    def test_another_reason_for_a_reversal_that_was_made_is_refused(self, city: City) -> None:
        path = f"/v1/actions/{city.recorded()['action_id']}/reversal"
        city.post(path, {"reason": "x"}, by="source")
        told = problem(city.post(path, {"reason": "y"}, by="source"), 422, "identity-reused")
        assert told["facts"] == {"fields": ["reason"]}

    def test_a_reversed_report_sent_again_stays_reversed(self, city: City) -> None:
        body = city.report()
        receipt = city.post("/v1/actions", body, by="source").json()
        city.post(f"/v1/actions/{receipt['action_id']}/reversal", {"reason": "x"}, by="source")
        again = city.post("/v1/actions", body, by="source")
        assert again.json()["verdict"] == "duplicate"
        assert again.json()["balance"]["reduction_mg"] == 0

    def test_half_a_ride_earned_nothing_that_could_be_taken_back(self, city: City) -> None:
        tap = city.recorded(behaviour="metro_in", unit="tap")
        answer = city.post(f"/v1/actions/{tap['action_id']}/reversal", {"reason": "x"}, by="source")
        problem(answer, 409, "action-not-reversible")


class TestListing:
    def test_pages_follow_each_other_until_the_end_and_hold_every_action_once(self, own_city: City) -> None:
        made = {own_city.recorded()["action_id"] for _ in range(23)}
        own_city.settled()
        found: list[str] = []
        cursor: dict[str, str] = {}
        while True:
            page = own_city.get("/v1/actions", limit=5, **cursor).json()
            found += [action["action_id"] for action in page["data"]]
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
        assert len(found) == len(set(found)) == 23
        assert set(found) == made

    def test_a_list_can_be_narrowed(self, own_city: City) -> None:
        bus = own_city.recorded(occurred_at="2025-06-01T11:00:00+08:00")["action_id"]
        walk = own_city.recorded(behaviour="walk", quantity="5000", unit="step")["action_id"]
        own_city.post(f"/v1/actions/{walk}/reversal", {"reason": "x"}, by="source")
        own_city.settled()

        def found(**narrow: str) -> list[str]:
            return [a["action_id"] for a in own_city.get("/v1/actions", **narrow).json()["data"]]

        assert found(behaviour="bus") == found(until_day="2025-06-01") == found(status="credited") == [bus]
        assert found(behaviour="walk") == found(from_day="2025-06-02") == found(status="reversed") == [walk]
        assert sorted(found(source="szt")) == sorted([bus, walk])
        assert found(source="hz") == found(from_day="2025-06-16") == []

    def test_a_source_sees_its_own_only_whatever_it_asks_for(self, city: City) -> None:
        city.recorded()
        body = city.report(source="hz")
        own = city.post("/v1/actions", body, by="other source").json()["action_id"]
        city.settled()
        for asked in ({}, {"source": "szt"}):
            found = city.get("/v1/actions", by="other source", limit=100, **asked).json()["data"]
            assert {a["source"] for a in found} == {"hz"}
            assert own in {a["action_id"] for a in found}

    def test_a_list_that_is_told_the_position_of_a_write_has_seen_it(self, own_city: City) -> None:
        for _ in range(20):
            answer = own_city.post("/v1/actions", own_city.report(), by="source")
            page = own_city.get("/v1/actions", min_position=position(answer), limit=100).json()["data"]
            assert answer.json()["action_id"] in {action["action_id"] for action in page}

    def test_a_position_that_is_not_reached_in_time_is_refused_and_may_be_asked_again(
        self, own_city: City, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("carbon_points.api.installation.READ_WAIT_SECONDS", 0.1)
        own_city.settled().installation.follower.stop()
        written = position(own_city.post("/v1/actions", own_city.report(), by="source"))
        answer = own_city.get("/v1/actions", min_position=written)
        assert problem(answer, 503, "position-not-reached")["retryable"] == "same-key"
        assert answer.headers["Retry-After"] == "1"

    @pytest.mark.parametrize(
        "text", ["4:1", "0:999999", "9999:1", "0", "0:", ":1", "-1:0", "0:1 ", "0:1\n", "x:y", "0:" + "9" * 16]
    )
    def test_a_position_that_no_write_told_is_refused(self, city: City, text: str) -> None:
        problem(city.get("/v1/actions", min_position=text), 400, "parameter-invalid")

    @pytest.mark.parametrize("text", ["0", "0:", "x", "0:1,1", "-1:5", "'", "0:" + "9" * 30])
    def test_a_cursor_that_no_page_ended_with_is_refused(self, city: City, text: str) -> None:
        for path in ("/v1/actions", "/v1/pools", "/v1/lots", "/v1/sales", "/v1/merchants/shop/settlements"):
            problem(city.get(path, cursor=text), 400, "cursor-invalid")

    @pytest.mark.parametrize("limit", ["0", "101", "-1", "1.5", "many", ""])
    def test_a_page_has_from_1_to_100_rows(self, city: City, limit: str) -> None:
        problem(city.get("/v1/actions", limit=limit), 400, "parameter-invalid")
