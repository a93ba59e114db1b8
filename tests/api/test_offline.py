"""Offline over HTTP: allowances granted, payments forwarded, and every refusal of both."""

import base64
import csv
import io
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from carbon_points.audit.verify import verify
from carbon_points.directory.allowances import Allowances
from carbon_points.domain.quantity import CHINA
from tests.api.city import Answer, City, problem, same_again
from tests.conftest import Clock
from tests.given import HOUR, MINUTE

TERMS = {"most_points": 200, "most_count": 50, "most_sum": 2000, "most_age_hours": 24}


@pytest.fixture
def shop(own_city: City) -> City:
    terms(own_city)
    return own_city


def terms(city: City, offline: dict[str, int] | None = TERMS, merchant: str = "shop") -> None:
    city.done(city.call("PUT", f"/v1/merchants/{merchant}/terms", {"confirm_above": None, "offline": offline}))


def ask(city: City, resident: str, points: int = 100, **more: Any) -> Answer:
    body = {"merchant": more.pop("merchant", "shop"), "points": points}
    return city.post(f"/v1/residents/{resident}/allowances", body, by="app", **more)


def granted(city: City, resident: str, points: int = 100, **more: Any) -> str:
    return city.done(ask(city, resident, points, **more))["allowance"]


def record(city: City, allowance: str, points: int = 100, **said: Any) -> dict[str, Any]:
    taken = city.installation.clock().isoformat()
    fields = {"merchant": "shop", "terminal": "t1", "points": points, "allowance": allowance, "capture": True}
    return fields | {"captured_offline_at": taken} | said


def forward(city: City, body: dict[str, Any], **more: Any) -> Answer:
    return city.post("/v1/redemptions", body, **({"by": "terminal"} | more))


def left(city: City, resident: str) -> int:
    return city.balance(resident)["points_available"]


def test_what_was_taken_offline_says_so_in_the_settlements_files(shop: City, time: Clock) -> None:
    resident = shop.resident(points=300)
    allowance = granted(shop, resident, 100)
    offline_at = time.at + MINUTE
    time.move(3 * HOUR)
    body = record(shop, allowance, 60) | {"captured_offline_at": offline_at.astimezone(CHINA).isoformat()}
    offline = shop.done(forward(shop, body))["redemption_id"]
    shop.done(shop.post(f"/v1/redemptions/{offline}/refunds", {"points": 5}, by="app"))
    shop.captured(resident, 10)
    made = shop.done(shop.settled().post("/v1/merchants/shop/settlements"))
    path = f"/v1/merchants/shop/settlements/{made['settlement_id']}/file"
    told = {"sale": offline_at.astimezone(CHINA).isoformat(timespec="microseconds"), "refund": None}
    rows = shop.get(path, format="json").json()["rows"]
    assert {row["kind"]: row["captured_offline_at"] for row in rows if row["redemption_id"] == offline} == told
    assert [row["captured_offline_at"] for row in rows if row["redemption_id"] != offline] == [None]
    table = list(csv.DictReader(io.StringIO(shop.get(path, format="csv").text.split("#合计")[0].split("\r\n类型")[1])))
    column = [row["离线受理时间 captured_offline_at"] for row in table]
    assert column == [row["captured_offline_at"] or "" for row in rows]
    assert (report := verify(shop.installation.journal)).ok, report.first_wrong


class TestAllowances:
    def test_a_terminal_checks_it_with_the_public_key_alone(self, shop: City, time: Clock) -> None:
        resident = shop.resident(points=300)
        answer = ask(shop, resident, 100)
        assert (answer.status_code, answer.headers["Cache-Control"]) == (201, "no-store")
        told = answer.json()
        keys = shop.done(shop.get("/v1/allowance-keys", by="terminal"))["data"]
        signed, _, signature = told["allowance"].rpartition(".")
        form, key_id, payload = signed.split(".")
        public = {key["key_id"]: base64.b64decode(key["public_key"]) for key in keys}[key_id]
        Ed25519PublicKey.from_public_bytes(public).verify(_bytes(signature), signed.encode())
        said = msgspec.json.decode(_bytes(payload))
        assert form == "cpa1"
        assert (said["id"], said["merchant"], said["points"]) == (told["allowance_id"], "shop", 100)
        assert said["expires_at"] - said["issued_at"] == 24 * 3600
        assert said["issued_at"] == int(time.at.timestamp())

    def test_nothing_in_it_is_of_the_resident(self, shop: City) -> None:
        resident = shop.resident(points=300)
        one, other = ask(shop, resident, 100).json(), ask(shop, resident, 100).json()
        said = [msgspec.json.decode(_bytes(told["allowance"].split(".")[2])) for told in (one, other)]
        assert resident not in str(said)
        assert set(said[0]) == {"id", "merchant", "points", "issued_at", "expires_at"}
        assert said[0]["id"] != said[1]["id"]

    def test_the_same_call_is_answered_with_the_same_text_and_another_is_refused(self, shop: City, time: Clock) -> None:
        resident = shop.resident(points=100)
        first = ask(shop, resident, 100, key="k")
        time.move(HOUR)
        again = ask(shop, resident, 100, key="k")
        assert (again.status_code, again.json()) == (200, first.json())
        assert again.headers["Idempotency-Replayed"] == "true"
        assert problem(ask(shop, resident, 99, key="k"), 422, "identity-reused")["facts"]["fields"] == ["points"]

    def test_refusals_in_their_order(self, shop: City) -> None:
        resident, nobody = shop.resident(points=100), f"res_{'a' * 20}"
        problem(ask(shop, nobody, 201, merchant="nowhere"), 404, "account-unknown")
        shop.done(shop.post(f"/v1/residents/{resident}/freeze", {"frozen": True, "reason": "x"}))
        problem(ask(shop, resident, 201, merchant="nowhere"), 404, "merchant-unknown")
        problem(ask(shop, resident, 201, merchant="mall"), 409, "offline-not-allowed")
        problem(ask(shop, resident, 201), 409, "offline-exceeds-terms")
        problem(ask(shop, resident, 101), 409, "account-frozen")
        shop.done(shop.post(f"/v1/residents/{resident}/freeze", {"frozen": False, "reason": "x"}))
        assert problem(ask(shop, resident, 101), 409, "insufficient-points")["facts"]["available"] == 100
        granted(shop, resident, 100)

    def test_all_that_may_still_be_spent_is_no_more_than_there_is(self, shop: City, time: Clock) -> None:
        resident = shop.resident(points=300)
        spent = granted(shop, resident, 200)
        assert problem(ask(shop, resident, 101), 409, "insufficient-points")["facts"]["available"] == 100
        shop.done(forward(shop, record(shop, spent, 150)))
        granted(shop, resident, 150)  # of what was spent nothing is promised any more
        problem(ask(shop, resident, 1), 409, "insufficient-points")
        time.move(25 * HOUR)
        granted(shop, resident, 150)

    def test_it_leads_to_nobody_once_they_are_forgotten(self, shop: City) -> None:
        resident = shop.resident(points=100)
        allowance = granted(shop, resident)
        shop.done(shop.call("DELETE", f"/v1/residents/{resident}/bindings", by="app"))
        problem(forward(shop, record(shop, allowance)), 404, "allowance-unknown")

    def test_a_key_that_cannot_be_unsealed_is_followed_by_another_and_still_checks(self, shop: City) -> None:
        resident = shop.resident(points=200)
        before = granted(shop, resident)
        directory = shop.installation.directory
        other = Allowances(directory._engine, b"x" * 32)  # pyright: ignore[reportPrivateUsage]  # another subject key
        keys = [key.key_id for key in other.public_keys()]
        assert len(keys) == 2
        assert keys[1] == before.split(".")[1]
        assert other.read(before).points == 100
        assert Allowances(directory._engine, b"x" * 32).public_keys() == other.public_keys()  # pyright: ignore[reportPrivateUsage]


class TestForwarding:
    def test_it_is_a_payment_like_any_other(self, shop: City, time: Clock) -> None:
        resident = shop.resident(points=300)
        body = record(shop, granted(shop, resident, 100), 60)
        time.move(3 * HOUR)
        first = forward(shop, body, key="k")
        assert first.json() == {
            "redemption_id": first.json()["redemption_id"],
            "status": "captured",
            "merchant": "shop",
            "terminal": "t1",
            "points": 60,
            "amount_fen": 120,
            "expires_at": None,
            "captured_points": 60,
            "captured_fen": 120,
            "refunded_points": 0,
            "refunded_fen": 0,
        }
        assert left(shop, resident) == 240
        same_again(first, forward(shop, body, key="k"))
        found = shop.done(shop.get("/v1/redemptions", by="terminal", reference="k"))
        assert found["status"] == "captured"

    def test_an_allowance_pays_once_at_whatever_terminal(self, shop: City) -> None:
        resident = shop.resident(points=300)
        allowance = granted(shop, resident, 100)
        shop.done(forward(shop, record(shop, allowance, 40)))
        again = record(shop, allowance, 40, terminal="t2")
        for _ in range(2):  # a decline is final
            problem(forward(shop, again, by="next terminal", key="k"), 409, "code-used")
        assert left(shop, resident) == 260

    def test_points_that_are_gone_by_then_are_the_merchants_loss(self, shop: City) -> None:
        resident = shop.resident(points=100)
        body = record(shop, granted(shop, resident, 100))
        shop.captured(resident, 50)
        for _ in range(2):
            problem(forward(shop, body, key="k"), 409, "insufficient-points")
        assert left(shop, resident) == 50

    def test_sent_again_it_is_answered_as_before_whatever_has_changed(self, shop: City, time: Clock) -> None:
        resident = shop.resident(points=100)
        body = record(shop, granted(shop, resident, 100))
        first = forward(shop, body, key="k")
        time.move(timedelta(days=30))
        terms(shop, None)
        shop.done(shop.call("DELETE", f"/v1/residents/{resident}/bindings", by="app"))
        same_again(first, forward(shop, body, key="k"))
        for name, value in (
            ("points", 99),
            ("captured_offline_at", "2025-06-15T12:00:01+08:00"),
            ("allowance", "cpa1.x.y.z"),
        ):
            told = problem(forward(shop, body | {name: value}, key="k"), 422, "identity-reused")
            assert told["facts"]["fields"] == [name]

    def test_refusals_in_their_order(self, shop: City, time: Clock) -> None:
        resident = shop.resident(points=300)
        began = time.at
        allowance = granted(shop, resident, 100)
        gone = granted(shop, shop.resident(points=100), 100)
        elsewhere = record(shop, allowance, 201, merchant="mall", captured_offline_at="2020-01-01T00:00:00Z")
        problem(forward(shop, elsewhere), 403, "not-yours")
        problem(
            forward(shop, elsewhere | {"allowance": allowance[:-4] + "AAAA"}, by="operator"), 400, "allowance-invalid"
        )
        problem(forward(shop, elsewhere, by="operator"), 409, "allowance-elsewhere")
        here = elsewhere | {"merchant": "shop"}
        assert problem(forward(shop, here), 409, "allowance-exceeded")["facts"]["allowance"] == 100
        problem(forward(shop, here | {"points": 100}), 409, "allowance-expired")
        shop.installation.directory.erase(whose(shop, gone))
        problem(forward(shop, record(shop, gone)), 404, "allowance-unknown")
        terms(shop, None)
        late = record(shop, allowance, 100, captured_offline_at=began.isoformat())
        time.move(10 * HOUR)
        problem(forward(shop, late), 409, "offline-not-allowed")
        terms(shop, TERMS | {"most_points": 99, "most_age_hours": 9})
        ahead = late | {"captured_offline_at": (time.at + 6 * MINUTE).isoformat()}
        assert problem(forward(shop, ahead), 409, "offline-in-future")["retryable"] == "same-key"
        problem(forward(shop, late), 409, "offline-too-late")
        now = record(shop, allowance, 100)
        problem(forward(shop, now), 409, "offline-exceeds-terms")
        terms(shop)
        shop.done(forward(shop, now))
        assert left(shop, resident) == 200

    @pytest.mark.parametrize(
        "change",
        [
            lambda body: body | {"capture": False},
            lambda body: body | {"code": "800123456780654322"},
            lambda body: {name: value for name, value in body.items() if name != "captured_offline_at"},
            lambda body: {name: value for name, value in body.items() if name != "points"} | {"offer": "tea"},
            lambda body: {name: value for name, value in body.items() if name != "allowance"} | {"code": "8001234567"},
        ],
        ids=["not captured", "and a code", "at no time", "an offer", "a code, offline"],
    )
    def test_half_of_it_is_refused(self, shop: City, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        body = change(record(shop, granted(shop, shop.resident(points=100))))
        problem(forward(shop, body), 400, "missing-field")

    def test_what_somebody_else_signed_is_none(self, shop: City) -> None:
        allowance = granted(shop, shop.resident(points=100))
        signed = allowance.rpartition(".")[0]
        forged = f"{signed}.{_text(Ed25519PrivateKey.generate().sign(signed.encode()))}"
        more = signed.replace(signed.split(".")[2], _text(_bytes(signed.split(".")[2]).replace(b"100", b"200")))
        changed = f"{more}.{allowance.rpartition('.')[2]}"
        for wrong in (forged, changed, signed, allowance + "!", "cpa1.é.y.z", "...", f"cpa2{allowance[4:]}"):
            problem(forward(shop, record(shop, wrong)), 400, "allowance-invalid")

    def test_it_counts_in_the_batch_and_the_log_says_when_it_was_taken(self, shop: City, time: Clock) -> None:
        resident = shop.resident(points=100)
        body = record(shop, granted(shop, resident, 100), terminal="t2")
        taken = time.at
        time.move(HOUR)
        redemption = shop.done(forward(shop, body, by="next terminal"))["redemption_id"]
        placed: Any = shop.installation.orders.placed(redemption)
        assert (placed.captured_offline_at, placed.recorded_at) == (taken, time.at)
        counted = {"count": 1, "points": 100, "fen": 200}
        totals = {"sales": counted} | dict.fromkeys(("refunds", "reversals"), dict.fromkeys(counted, 0))
        shop.settled()
        closed = shop.done(shop.post("/v1/merchants/shop/terminals/t2/batches/1/close", totals, by="next terminal"))
        assert closed["answer"] == "agreed"


def whose(city: City, allowance: str) -> str:
    allowances = city.installation.directory.allowances
    found = allowances.find(allowances.read(allowance).id)
    assert found
    return found[0]


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
