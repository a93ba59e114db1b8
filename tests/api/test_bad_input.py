"""Whatever is sent is answered: with its own code, as a problem, and never as a mistake of ours."""

import math
from typing import Any

import msgspec
import pytest

from tests.api.city import City, problem

LONG = "x" * 129


def raw(body: dict[str, Any], **told: bytes) -> bytes:
    """A body as JSON, with some values written as they stand."""
    parts = [
        msgspec.json.encode(name) + b":" + told.get(name, msgspec.json.encode(value)) for name, value in body.items()
    ]
    return b"{" + b",".join(parts) + b"}"


class TestReports:
    @pytest.mark.parametrize(
        ("field", "value", "status", "code"),
        [
            ("quantity", 1, 400, "quantity-not-text"),
            ("quantity", 1.5, 400, "quantity-not-text"),
            ("quantity", math.nan, 400, "quantity-not-text"),  # JSON has no NaN: it is written as null
            ("quantity", None, 400, "quantity-not-text"),
            ("quantity", ["1"], 400, "quantity-not-text"),
            ("quantity", "NaN", 422, "quantity-invalid"),
            ("quantity", "Infinity", 422, "quantity-invalid"),
            ("quantity", "1e3", 422, "quantity-invalid"),
            ("quantity", "", 422, "quantity-invalid"),
            ("quantity", " 1", 422, "quantity-invalid"),
            ("quantity", "1\n", 422, "quantity-invalid"),
            ("quantity", "01", 422, "quantity-invalid"),
            ("quantity", "1,5", 422, "quantity-invalid"),
            ("quantity", "１", 422, "quantity-invalid"),
            ("quantity", "1" * 401, 400, "wrong-type"),
            ("quantity", "-1", 422, "quantity-negative"),
            ("quantity", "-0", 422, "quantity-negative"),
            ("quantity", "1234567890", 422, "quantity-too-long"),
            ("quantity", "1" * 400, 422, "quantity-too-long"),
            ("quantity", "0.12345678", 422, "quantity-too-long"),
            ("quantity", "0", 422, "quantity-below-least"),
            ("quantity", "0.999999", 422, "quantity-below-least"),
            ("quantity", "2", 422, "quantity-above-most"),
            ("quantity", "999999999", 422, "quantity-above-most"),
            ("unit", "km", 422, "unit-mismatch"),
            ("unit", 1, 400, "wrong-type"),
            ("occurred_at", "2025-06-15T11:00:00", 422, "time-without-offset"),
            ("occurred_at", "2025-06-15", 422, "time-invalid"),
            ("occurred_at", "yesterday", 422, "time-invalid"),
            ("occurred_at", "2025-02-30T11:00:00Z", 422, "time-invalid"),
            ("occurred_at", "2025-06-15T25:00:00Z", 422, "time-invalid"),
            ("occurred_at", "1999-12-31T23:59:59Z", 422, "time-invalid"),
            ("occurred_at", "2200-01-01T00:00:00Z", 422, "time-invalid"),
            ("occurred_at", "0001-01-01T00:00:00+14:00", 422, "time-invalid"),
            ("occurred_at", "9999-12-31T23:59:59-14:00", 422, "time-invalid"),
            ("occurred_at", 1750000000, 400, "wrong-type"),
            ("occurred_at", "2025-06-15T12:05:01+08:00", 422, "occurred-in-future"),
            ("occurred_at", "2199-12-31T00:00:00Z", 422, "occurred-in-future"),
            ("occurred_at", "2001-01-01T00:00:00Z", 422, "no-methodology-in-force"),
            ("behaviour", "flying", 403, "behaviour-not-allowed"),
            ("behaviour", "nobody_counts_this", 422, "behaviour-unknown"),
            ("behaviour", "", 400, "wrong-type"),
            ("source", "nobody", 404, "source-unknown"),
            ("source", "", 400, "wrong-type"),
            ("source", "a b", 400, "wrong-type"),
            ("source", "x" * 65, 400, "wrong-type"),
            ("source", "szt\n", 400, "wrong-type"),
            ("record_id", LONG, 400, "wrong-type"),
            ("record_id", "a\x00b", 400, "wrong-type"),
            ("record_id", "a\n", 400, "wrong-type"),
            ("record_id", "\x7f", 400, "wrong-type"),
            ("resident", LONG, 400, "wrong-type"),
            ("resident", "a\x1bb", 400, "wrong-type"),
            ("resident", {"card": "1"}, 400, "wrong-type"),
            ("county", "33050", 400, "wrong-type"),
            ("county", "３３０５０３", 400, "wrong-type"),
            ("county", 330503, 400, "wrong-type"),
            ("points", 1_000_000, 400, "unknown-field"),
            ("reduction_mg", 1, 400, "unknown-field"),
        ],
    )
    def test_each_wrong_value_has_a_code_of_its_own(
        self, city: City, field: str, value: object, status: int, code: str
    ) -> None:
        told = problem(city.post("/v1/actions", city.report(**{field: value})), status, code)
        if status == 400:
            assert told["errors"][0]["pointer"] == ("/" if code == "unknown-field" else f"/{field}")

    @pytest.mark.parametrize(
        "field", ["source", "record_id", "resident", "behaviour", "quantity", "unit", "occurred_at"]
    )
    def test_a_field_that_is_left_out_is_named(self, city: City, field: str) -> None:
        body = city.report()
        del body[field]
        assert field in problem(city.post("/v1/actions", body), 400, "missing-field")["detail"]

    def test_a_source_that_is_suspended_reports_nothing_until_it_may_again(self, city: City) -> None:
        source = city.name("late")
        body = {"source": source, "name": "x", "behaviours": ["bus"], "opens_accounts": True}
        city.done(city.post("/v1/sources", body))
        change = {"behaviours": ["bus"], "opens_accounts": True, "lateness_days": None, "suspended": False}
        city.done(city.call("PATCH", f"/v1/sources/{source}", change | {"suspended": True}))
        report = city.report(source=source)
        problem(city.post("/v1/actions", report), 403, "source-suspended")
        city.done(city.call("PATCH", f"/v1/sources/{source}", change))
        assert city.post("/v1/actions", report).status_code == 201

    def test_a_report_later_than_its_source_may_be_is_refused(self, city: City) -> None:
        source = city.name("late")
        body = {"source": source, "name": "x", "behaviours": ["bus"], "opens_accounts": True, "lateness_days": 3}
        city.done(city.post("/v1/sources", body))
        report = city.report(source=source, occurred_at="2025-06-12T11:59:59+08:00")
        problem(city.post("/v1/actions", report), 422, "reported-too-late")
        assert city.post("/v1/actions", report | {"occurred_at": "2025-06-12T12:00:00+08:00"}).status_code == 201

    def test_a_frozen_account_earns_nothing(self, city: City) -> None:
        card = city.name("card")
        resident = city.resident(card=card)
        city.done(city.post(f"/v1/residents/{resident}/freeze", {"frozen": True, "reason": "查核"}))
        told = problem(city.post("/v1/actions", city.report(resident=card)), 409, "account-frozen")
        assert told["retryable"] == "query-first"

    def test_the_longest_words_and_every_script_are_taken(self, city: City) -> None:
        for word in ("字" * 128, "🚲", "e\u0301", "\u200f", "' OR 1=1 --", "${jndi:x}", '"\\/', "a\u00a0b", " "):
            body = city.report(record_id=word + city.name("-")[-8:] if len(word) < 100 else word, resident=word)
            assert city.post("/v1/actions", body).status_code in {201, 200}, word


class TestBytes:
    """What is no JSON, or hardly."""

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b" ",
            b"{",
            b"nothing",
            b'{"source": "szt",}',
            b'{"quantity": NaN}',
            b'{"source": "\\ud800"}',
            b'{"source": "\\udc00\\ud800"}',
            b'{"source": "\xff\xfe"}',
            b'{"\xc3\x28": 1}',
            b'{"source": "a\x00b"}',
            b"\xef\xbb\xbf{}",
            b"\x1f\x8b\x08\x00",
        ],
    )
    def test_what_is_no_json_is_refused(self, city: City, body: bytes) -> None:
        problem(city.post("/v1/actions", raw=body), 400, "not-json")
        for path in ("/v1/sources", "/v1/residents", "/v1/redemptions", "/v1/pools", "/v1/fund/receipts"):
            told = city.post(path, raw=body)  # which may meet a field that it does not know first
            assert told.json()["code"] in {"not-json", "unknown-field"}, told.text

    @pytest.mark.parametrize("body", [b"null", b"[]", b'"text"', b"1", b"true", b"[" * 100_000])
    def test_json_that_is_no_object_is_refused(self, city: City, body: bytes) -> None:
        problem(city.post("/v1/actions", raw=body), 400, "wrong-type")

    def test_a_lone_half_of_a_character_is_refused_wherever_it_stands(self, city: City) -> None:
        body = city.report()
        for field in body:
            problem(city.post("/v1/actions", raw=raw(body, **{field: b'"a\\ud83d"'})), 400, "not-json")

    def test_numbers_are_never_taken_for_text_nor_text_for_numbers(self, city: City) -> None:
        body = {"merchant": city.name("shop"), "name": "x", "fen_per_point": 2}
        for told in (b'"2"', b"2.0", b"2e0", b"true", b"null", b"0", b"10001", b"-1", b"1" * 400):
            problem(city.post("/v1/merchants", raw=raw(body, fen_per_point=told)), 400, "wrong-type")

    def test_a_body_above_the_limit_is_refused_before_it_is_read(self, city: City) -> None:
        problem(city.post("/v1/actions", raw=b'"' + b"x" * 262_144 + b'"'), 413, "too-large")

    @pytest.mark.parametrize("depth", [100, 10_000, 130_000])
    def test_deep_nesting_is_refused(self, city: City, depth: int) -> None:
        told = city.post("/v1/sources", raw=b'{"source":"a","name":"a","behaviours":' + b"[" * depth)
        assert told.status_code == 400
        assert told.json()["code"] in {"wrong-type", "not-json"}


class TestParameters:
    @pytest.mark.parametrize(
        "path",
        [
            "/v1/residents/nobody",
            "/v1/residents/res_UPPER00000000000000",
            "/v1/residents/res_" + "a" * 19,
            "/v1/residents/res_" + "a" * 5000,
            "/v1/residents/%00",
            "/v1/redemptions/rdm_1",
            "/v1/pools/pool_%ff",
            "/v1/pools/pool_" + "1" * 20,
            "/v1/actions/act_" + "1" * 26,
            "/v1/merchants/a%00b",
            "/v1/merchants/" + "a" * 65,
            "/v1/methodologies/%0d%0a",
            "/v1/certificates/%7f",
            "/v1/actions?source=%00",
            "/v1/actions?behaviour=%1b%5b",
            "/v1/actions?status=counted",
            "/v1/actions?from_day=2025-02-30",
            "/v1/actions?from_day=20250201",
            "/v1/city/days?until_day=tomorrow",
            "/v1/residents/res_aaaaaaaaaaaaaaaaaaaa/statement?cursor=1.5",
        ],
    )
    def test_what_cannot_be_one_is_refused(self, city: City, path: str) -> None:
        problem(city.get(path), 400, "parameter-invalid")

    @pytest.mark.parametrize(
        "path", ["/v1/actions?sauce=szt", "/v1/actions?limit=1&Limit=2", "/healthz?a=", "/v1/fund?%09="]
    )
    def test_a_parameter_that_no_description_names_is_refused(self, city: City, path: str) -> None:
        told = problem(city.get(path), 400, "parameter-invalid")
        assert [error["message"] for error in told["errors"]] == ["is not a parameter of this call"]

    @pytest.mark.parametrize("path", ["/v1/actions?limit=1&limit=2", "/v1/webhooks?merchant=a&limit=9&merchant=a"])
    def test_a_parameter_that_is_said_twice_is_refused(self, city: City, path: str) -> None:
        told = problem(city.get(path), 400, "parameter-invalid")
        assert [error["message"] for error in told["errors"]] == ["is said more than once"]

    @pytest.mark.parametrize(
        ("path", "code"),
        [
            ("/v1/residents/res_" + "a" * 20, "account-unknown"),
            ("/v1/residents/res_" + "a" * 20 + "/statement", "account-unknown"),
            ("/v1/redemptions/rdm_" + "a" * 20, "redemption-unknown"),
            ("/v1/pools/pool_" + "a" * 20, "pool-unknown"),
            ("/v1/merchants/nobody", "merchant-unknown"),
            ("/v1/merchants/%E5%BA%97", "merchant-unknown"),
            ("/v1/methodologies/flying", "methodology-unknown"),
            ("/v1/certificates/none", "certificate-unknown"),
        ],
    )
    def test_what_is_not_there_is_not_found(self, city: City, path: str, code: str) -> None:
        problem(city.get(path), 404, code)

    @pytest.mark.parametrize("key", [None, "", '""', "x" * 201])
    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v1/residents", {}),
            ("/v1/residents/res_aaaaaaaaaaaaaaaaaaaa/consents", {"purpose": "trade", "version": "1"}),
            ("/v1/redemptions", {"resident": "res_" + "a" * 20, "merchant": "shop", "terminal": "t1", "points": 1}),
            ("/v1/redemptions/rdm_aaaaaaaaaaaaaaaaaaaa/refunds", {"points": 1}),
            ("/v1/merchants/shop/settlements", None),
            (
                "/v1/pools",
                {"methodology": "bus", "version": "2024-1", "from_month": "2025-01", "until_month": "2025-01"},
            ),
            ("/v1/pools/pool_aaaaaaaaaaaaaaaaaaaa/verifications", {"verifier": "x", "report": "x", "verified_mg": 1}),
            ("/v1/pools/pool_aaaaaaaaaaaaaaaaaaaa/lots", None),
            (f"/v1/lots/lot_{'a' * 20}_{'a' * 20}/sales", {"buyer": "marathon", "kg": 1, "price_fen": 1}),
            ("/v1/fund/receipts", {"origin": "sponsor", "payer": "x", "amount_fen": 1}),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_a_call_without_an_identity_of_its_own_needs_a_key(
        self, city: City, path: str, body: object, key: str | None
    ) -> None:
        problem(city.post(path, body, key=key), 400, "idempotency-key-missing")


class TestAddresses:
    def test_an_address_that_is_not_there_is_told_as_a_problem(self, city: City) -> None:
        for path in ("/v1", "/v1/nothing", "/v2/actions", "/v1/actions/a/b/c", "/%00", "/../etc/passwd"):
            problem(city.get(path), 404, "not-found")

    def test_a_method_that_is_not_taken_is_told_with_those_that_are(self, city: City) -> None:
        answer = city.call("PUT", "/v1/actions")
        problem(answer, 405, "method-not-allowed")
        assert {m.strip() for m in answer.headers["Allow"].split(",")} == {"GET", "OPTIONS", "POST"}

    def test_a_caller_may_name_its_request_and_finds_the_name_again(self, city: City) -> None:
        answer = city.get("/v1/nothing", headers={"X-Request-Id": "mine-17"})
        assert problem(answer, 404, "not-found")["request_id"] == "mine-17"
        for name in ("x" * 65, "a\tb", "é"):
            answer = city.get("/healthz", headers={"X-Request-Id": name.encode("latin-1")})
            assert answer.headers["x-request-id"].isalnum()
