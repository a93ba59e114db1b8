"""Payment codes over HTTP: a secret is told once, a code is shown in four forms, and neither is left anywhere."""

import asyncio
import base64
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest

from carbon_points import codes
from carbon_points.codes import CodeExpired, CodeMalformed, CodeUnknown
from carbon_points.directory.payers import Payer, Throttled
from tests.api import pictures
from tests.api.city import Answer, City, problem, same_again
from tests.conftest import PROJECT, Clock


def told_secret(city: City, resident: str) -> Any:
    return city.done(city.post(f"/v1/residents/{resident}/payment-secret", by="app"))


def told_code(city: City, resident: str) -> str:
    return city.done(city.post(f"/v1/residents/{resident}/payment-codes", by="app"))["code"]


def code_of(told: Any, at: datetime) -> str:
    """What a phone makes of the secret that it was told."""
    return codes.made(told["handle"], base64.b32decode(told["secret"]), codes.step_at(at))


def whose(city: City, code: str) -> str:
    return city.installation.directory.payers.payer(code, city.installation.clock()).resident


class TestSecrets:
    def test_a_phone_that_was_told_it_makes_codes_from_then_on(self, own_city: City, time: Clock) -> None:
        resident = own_city.resident()
        told = told_secret(own_city, resident)
        assert set(told) == {"handle", "secret", "step_seconds"}
        assert re.fullmatch("[0-9]{9} [A-Z2-7]{32} 60", "{handle} {secret} {step_seconds}".format(**told))
        for _ in range(3):
            assert whose(own_city, code_of(told, time.move(timedelta(days=1)))) == resident

    def test_it_is_told_once_and_asked_for_again_replaced(self, own_city: City) -> None:
        resident, now = own_city.resident(), own_city.installation.clock()
        first, second = (
            own_city.post(f"/v1/residents/{resident}/payment-secret", by="app", key="same") for _ in range(2)
        )
        assert "Idempotency-Replayed" not in second.headers
        assert first.headers["Cache-Control"] == "no-store"
        assert not {*first.json().values()} & {*second.json().values()} - {60}
        assert whose(own_city, code_of(second.json(), now)) == resident
        with pytest.raises(CodeUnknown):
            whose(own_city, code_of(first.json(), now))

    def test_who_has_no_account_has_none(self, city: City) -> None:
        for call in ("payment-secret", "payment-codes"):
            problem(city.post(f"/v1/residents/res_{'a' * 20}/{call}", by="app"), 404, "account-unknown")

    def test_who_is_forgotten_pays_no_more(self, own_city: City) -> None:
        resident = own_city.resident()
        code = code_of(told_secret(own_city, resident), own_city.installation.clock())
        own_city.done(own_city.call("DELETE", f"/v1/residents/{resident}/bindings", by="app"))
        with pytest.raises(CodeUnknown):
            whose(own_city, code)


class TestCodes:
    def test_an_app_is_given_the_code_of_now_and_when_it_ends(self, own_city: City, time: Clock) -> None:
        resident = own_city.resident()
        told = own_city.post(f"/v1/residents/{resident}/payment-codes", by="app")
        assert told.headers["Cache-Control"] == "no-store"
        code, ends = told.json()["code"], datetime.fromisoformat(told.json()["expires_at"])
        assert timedelta(seconds=60) < ends - time.at <= timedelta(seconds=120)
        assert told_code(own_city, resident) == code
        time.at = ends - timedelta(seconds=1)
        assert whose(own_city, code) == resident
        time.at = ends
        with pytest.raises(CodeExpired):
            whose(own_city, code)
        assert told_code(own_city, resident) != code

    def test_it_is_the_code_that_the_residents_phone_makes(self, own_city: City) -> None:
        resident = own_city.resident()
        told = told_secret(own_city, resident)
        assert told_code(own_city, resident) == code_of(told, own_city.installation.clock())

    @pytest.mark.parametrize(
        ("form", "media_type", "read"),
        [
            ("svg", "image/svg+xml", pictures.in_qr_svg),
            ("png", "image/png", pictures.in_qr_png),
            ("barcode", "image/svg+xml", pictures.in_barcode_svg),
        ],
    )
    def test_it_is_shown_as_a_picture_that_a_scanner_reads(
        self, own_city: City, form: str, media_type: str, read: Callable[[bytes], str]
    ) -> None:
        resident = own_city.resident()
        told = own_city.done(own_city.post(f"/v1/residents/{resident}/payment-codes", by="app"))
        picture = own_city.http.post(
            f"/v1/residents/{resident}/payment-codes?as={form}",
            headers={"Authorization": f"Bearer {own_city.keys['app']}"},
        )
        assert picture.headers["content-type"].partition(";")[0] == media_type
        assert picture.headers["Cache-Control"] == "no-store"
        assert read(picture.content) == told["code"]
        assert parsedate_to_datetime(picture.headers["Expires"]) == datetime.fromisoformat(told["expires_at"])

    def test_a_form_that_is_none_is_refused(self, city: City) -> None:
        problem(city.post(f"/v1/residents/{city.resident()}/payment-codes?as=gif", by="app"), 400, "parameter-invalid")

    def test_it_and_the_secret_are_left_in_no_file_and_no_log(
        self, own_city: City, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("DEBUG")
        resident = own_city.resident()
        told, code = told_secret(own_city, resident), told_code(own_city, resident)
        assert whose(own_city, code) == resident
        left = (code, told["secret"], base64.b32decode(told["secret"]).hex())
        for file in (file for file in (tmp_path / "data").rglob("*") if file.is_file()):
            content = file.read_bytes()
            assert base64.b32decode(told["secret"]) not in content, file
            assert not [one for one in left if one.encode() in content], file
        assert not [one for one in left if one in caplog.text]


class TestPaying:
    """The codes of one secret, at a till."""

    def paid(self, city: City, code: str, **more: Any) -> Answer:
        body = {"code": code, "merchant": "shop", "terminal": "t1", "points": 10}
        return city.post("/v1/redemptions", body, by="terminal", **more)

    def test_a_code_that_was_used_is_followed_by_the_next_and_then_by_a_while_without(
        self, own_city: City, time: Clock
    ) -> None:
        resident = own_city.resident(points=100)
        used = [told_code(own_city, resident)]
        assert self.paid(own_city, used[0]).status_code == 201
        used.append(told_code(own_city, resident))
        assert self.paid(own_city, used[1]).status_code == 201
        assert len(set(used)) == 2
        time.move(timedelta(seconds=20))
        refused = own_city.post(f"/v1/residents/{resident}/payment-codes", by="app")
        wait = problem(refused, 429, "rate-limited")["facts"]["seconds"]
        assert refused.headers["Retry-After"] == str(wait)
        assert 0 < wait <= 60
        time.move(timedelta(seconds=wait))
        assert self.paid(own_city, told_code(own_city, resident)).status_code == 201

    def test_a_call_that_is_sent_again_late_is_answered_as_at_first_and_is_no_guess(
        self, own_city: City, time: Clock
    ) -> None:
        resident = own_city.resident(points=100)
        code = told_code(own_city, resident)
        first = self.paid(own_city, code, key="k")
        for wait in (timedelta(minutes=5), timedelta(hours=2)):
            time.move(wait)
            for _ in range(15):
                same_again(first, self.paid(own_city, code, key="k"))
        assert self.paid(own_city, told_code(own_city, resident)).status_code == 201
        told_secret(own_city, resident)  # after which nobody can tell any more which code it was
        same_again(first, self.paid(own_city, code, key="k"))

    def test_another_code_is_another_call(self, own_city: City, time: Clock) -> None:
        resident, other = own_city.resident(points=100), own_city.resident(points=100)
        code = told_code(own_city, resident)
        assert self.paid(own_city, code, key="k").status_code == 201
        time.move(timedelta(minutes=20))
        wrong = codes.made(code[2:11], bytes(20), codes.step_at(time.at))
        for said in (told_code(own_city, resident), wrong, "8" * 18, "密"):
            told = problem(self.paid(own_city, said, key="k"), 422, "identity-reused")
            assert told["facts"] == {"fields": ["code"]}
        told = problem(self.paid(own_city, told_code(own_city, other), key="k"), 422, "identity-reused")
        assert set(told["facts"]["fields"]) == {"code", "resident"}

    def test_a_code_that_is_guessed_at_is_not_looked_at_for_a_while(self, own_city: City) -> None:
        resident = own_city.resident(points=100)
        code = told_code(own_city, resident)
        for step in range(10):
            refused = self.paid(own_city, codes.made(code[2:11], bytes(20), step))
            told = problem(refused, 404, "code-unknown")
            assert code[2:11] not in refused.text
            assert told["retryable"] == "never"
        refused = self.paid(own_city, code)
        assert problem(refused, 429, "rate-limited")["facts"] == {"seconds": 600}
        assert refused.headers["Retry-After"] == "600"

    def test_a_terminal_that_guesses_at_many_is_not_listened_to_for_a_while(self, own_city: City, time: Clock) -> None:
        resident = own_city.resident(points=100)
        paid = told_code(own_city, resident)
        first = self.paid(own_city, paid, key="k")
        for handle in range(30):
            problem(self.paid(own_city, codes.made(f"{handle:09}", bytes(20), 1)), 404, "code-unknown")
        code = told_code(own_city, resident)
        refused = self.paid(own_city, code)
        assert problem(refused, 429, "rate-limited")["facts"] == {"seconds": 600, "terminal": "shop/t1"}
        assert refused.headers["Retry-After"] == "600"
        same_again(first, self.paid(own_city, paid, key="k"))
        body = {"code": code, "merchant": "shop", "terminal": "t2", "points": 10}
        assert own_city.post("/v1/redemptions", body, by="next terminal").status_code == 201
        time.move(timedelta(minutes=10))
        assert self.paid(own_city, told_code(own_city, resident)).status_code == 201

    def test_an_app_that_may_spend_without_a_code_has_none_to_guess(self, own_city: City) -> None:
        resident = own_city.resident(points=100)
        for handle in range(31):
            body = {"code": codes.made(f"{handle:09}", bytes(20), 1), "merchant": "shop", "terminal": "t1"}
            problem(own_city.post("/v1/redemptions", body | {"points": 10}, by="app"), 404, "code-unknown")
        assert self.paid(own_city, told_code(own_city, resident)).status_code == 201, "nobody's wrong codes are others'"

    def test_calls_that_are_sent_again_late_leave_a_terminal_its_guesses(self, own_city: City, time: Clock) -> None:
        residents = [own_city.resident(points=100) for _ in range(31)]
        calls = {resident: told_code(own_city, resident) for resident in residents}
        for key, code in calls.items():
            assert self.paid(own_city, code, key=key).status_code == 201
        time.move(timedelta(hours=1))
        for key, code in calls.items():
            assert self.paid(own_city, code, key=key).status_code == 200
        assert self.paid(own_city, told_code(own_city, residents[0])).status_code == 201


class TestManyAtOnce:
    """What a till's call asks of the installation."""

    def test_they_are_looked_up_together_and_then_known(self, own_city: City, monkeypatch: pytest.MonkeyPatch) -> None:
        installation = own_city.installation
        payers = installation.directory.payers
        residents = [own_city.resident() for _ in range(20)]
        asked = [told_code(own_city, resident) for resident in residents]
        questions: list[int] = []
        ask = payers.payers
        monkeypatch.setattr(payers, "payers", lambda many, now: questions.append(len(many)) or ask(many, now))

        async def all_at_once() -> list[Payer]:
            return list(await asyncio.gather(*(installation.payer(code) for code in asked * 3)))

        first = asyncio.run(all_at_once())
        assert [payer.resident for payer in first] == residents * 3
        assert (len(questions) <= 2, sum(questions)) == (True, 20)
        assert asyncio.run(all_at_once()) == first
        assert sum(questions) == 20

    def test_one_that_is_refused_is_not_the_others(self, own_city: City) -> None:
        installation, resident = own_city.installation, own_city.resident()
        code = told_code(own_city, resident)
        old = codes.made(code[2:11], bytes(20), 1)

        async def all_at_once() -> list[Any]:
            told = (installation.payer(one) for one in (code, old, "80", code))
            return list(await asyncio.gather(*told, return_exceptions=True))

        first, unknown, malformed, again = asyncio.run(all_at_once())
        assert first == again
        assert (first.resident, type(unknown), type(malformed)) == (resident, CodeUnknown, CodeMalformed)

    @pytest.mark.parametrize("till", ["shop/t1", None])
    def test_a_right_code_does_not_overtake_the_wrong_ones_before_it(self, own_city: City, till: str | None) -> None:
        """It is known without the database; they are judged a moment later. So guesses at once would be endless."""
        installation, resident = own_city.installation, own_city.resident()
        code = told_code(own_city, resident)
        guesses = [codes.made(code[2:11], bytes(20), step) for step in range(10)]
        if till:  # which meets its own limit before that of any handle
            guesses = [codes.made(f"{handle:09}", bytes(20), 1) for handle in range(30)]

        async def all_at_once() -> list[Any]:
            assert (await installation.payer(code, till)).resident == resident
            told = (installation.payer(one, till) for one in (*guesses, code))
            return list(await asyncio.gather(*told, return_exceptions=True))

        found = asyncio.run(all_at_once())
        assert [type(one) for one in found] == [CodeUnknown] * len(guesses) + [Throttled]


def test_the_phone_of_the_guide_makes_codes_that_are_taken(own_city: City) -> None:
    """The lines of docs/api.md, as they are."""
    guide = (PROJECT / "docs" / "api.md").read_text("utf-8")
    [snippet] = [code for code in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "def payment_code" in code]
    assert len(snippet.strip().splitlines()) <= 12
    phone: dict[str, Any] = {}
    exec(compile(snippet, "docs/api.md", "exec"), phone)
    for minute in range(20):
        resident, now = own_city.resident(), own_city.installation.clock() + timedelta(minutes=minute)
        told = told_secret(own_city, resident)
        code = phone["payment_code"](told["handle"], told["secret"], now.timestamp())
        assert own_city.installation.directory.payers.payer(code, now.astimezone(UTC)).resident == resident
