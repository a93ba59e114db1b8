"""Terminals that sign: activated once, by their own key, taken from until they are suspended, and never as another."""

import asyncio
import base64
import socket
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from litestar.testing import TestClient
from sqlalchemy.exc import OperationalError

from carbon_points.api.app import create_app
from carbon_points.api.signatures import Signatures, content_digest, signature_base
from carbon_points.audit.verify import verify
from carbon_points.directory import terminals as of_terminals
from carbon_points.domain.terminal import TerminalIsSuspended
from tests.api.city import Answer, City, city_in, hold, problem, same_again
from tests.conftest import Clock
from tests.given import HOUR, NOON

_NUMBERS = count()
NOW = int(NOON.timestamp())


class Terminal:
    """A device with a key of its own, and whatever name a server gave that."""

    def __init__(self, city: City, merchant: str, name: str) -> None:
        self.city, self.merchant, self.name = city, merchant, name
        self.key = Ed25519PrivateKey.generate()
        self.key_id = ""

    @property
    def path(self) -> str:
        return f"/v1/merchants/{self.merchant}/terminals/{self.name}"

    @property
    def public_key(self) -> str:
        return base64.b64encode(self.key.public_key().public_bytes_raw()).decode()

    def code(self) -> str:
        return self.city.done(self.city.post(f"{self.path}/activation"))["activation_code"]

    def proof(self, what: str, said: str, public_key: str = "") -> str:
        return base64.b64encode(self.key.sign(f"{what}\n{said}\n{public_key or self.public_key}".encode())).decode()

    def activate(self, code: str, **said: str) -> Answer:
        body = {"activation_code": code, "public_key": self.public_key}
        body |= {"proof": self.proof("carbon-points-activation", code)} | said
        return self.city.post("/v1/terminals/activation", body, by="", key=None)

    def activated(self) -> "Terminal":
        self.key_id = self.city.done(self.activate(self.code()))["key_id"]
        return self

    def next(self) -> "Terminal":
        """The same device, with another key."""
        return Terminal(self.city, self.merchant, self.name)

    def rotate(self, to: "Terminal", **said: Any) -> Answer:
        proof = to.proof("carbon-points-rotation", self.key_id)
        return self.call("POST", "/v1/terminals/keys", {"public_key": to.public_key, "proof": proof}, **said)

    def signed(self, method: str, target: str, body: bytes, key: str, **said: Any) -> dict[str, str]:
        """The fields of a call. What is `said` takes the place of what is right, before it is signed."""
        fields: dict[str, Any] = {"created": NOW, "nonce": f"nonce-of-{next(_NUMBERS):08}", "key_id": self.key_id}
        fields |= {"origin": "http://testserver.local", "expires": said.get("created", NOW) + 60} | said
        digest = content_digest(body)
        components = [('"@method"', method), ('"@target-uri"', fields["origin"] + target)]
        headers: dict[str, str] = {}
        if method != "GET":
            components += [('"content-digest"', digest), ('"idempotency-key"', key)]
            headers |= {"Content-Digest": digest, "Idempotency-Key": key}
        params = (
            f"({' '.join(name for name, _ in components)});created={fields['created']};expires={fields['expires']}"
            f';nonce="{fields["nonce"]}";keyid="{fields["key_id"]}";alg="ed25519";tag="carbon-points-terminal"'
        )
        signature = base64.b64encode(self.key.sign(signature_base(components, params))).decode()
        return headers | {"Signature-Input": f"sig1={params}", "Signature": f"sig1=:{signature}:"}

    def call(self, method: str, target: str, body: object = None, *, key: str = "", **said: Any) -> Answer:
        """`sent` takes the place of fields after they were signed, `raw` of the body, `http` of the server asked."""
        raw = b"" if body is None else msgspec.json.encode(body)
        sent, other, http = said.pop("sent", {}), said.pop("raw", raw), said.pop("http", self.city.http)
        headers = self.signed(method, target, raw, key or f"key-{next(_NUMBERS)}", **said)
        return http.request(method, target, content=other, headers=headers | sent)


@pytest.fixture
def till(city: City) -> Terminal:
    """A terminal that nobody had, of a merchant that has two, with its key."""
    merchant = city.name("shop")
    city.done(city.post("/v1/merchants", {"merchant": merchant, "name": "茶馆", "fen_per_point": 2}))
    for name in ("t1", "t2"):
        city.done(city.post(f"/v1/merchants/{merchant}/terminals", {"terminal": name}))
    return Terminal(city, merchant, "t1").activated()


def holding(till: Terminal, resident: str, points: int = 10) -> dict[str, Any]:
    return till.city.coded(hold(resident, points, merchant=till.merchant, terminal=till.name), till.path, "")


def keys_of(till: Terminal) -> dict[str, str]:
    told = till.city.done(till.city.get(f"{till.path}/keys"))
    return {key["key_id"]: key["status"] for key in told["keys"]}


class TestActivating:
    def test_a_terminal_that_was_activated_redeems_by_its_signature(self, till: Terminal) -> None:
        resident = till.city.resident(points=100)
        held = till.call("POST", "/v1/redemptions", holding(till, resident), key="a")
        assert held.status_code == 201, held.text
        path = f"/v1/redemptions/{held.json()['redemption_id']}"
        assert till.call("POST", f"{path}/void").json()["status"] == "voided"
        assert till.call("GET", path).json()["status"] == "voided"
        same_again(held, till.call("POST", "/v1/redemptions", holding(till, resident), key="a"))

    def test_a_signed_call_and_one_with_a_key_have_one_scope(self, till: Terminal) -> None:
        """A merchant that changes from keys to signatures keeps what its references mean."""
        _, secret = till.city.installation.directory.issue_key("terminal", f"{till.merchant}/t1")
        body = holding(till, till.city.resident(points=100))
        bearer = {"Authorization": f"Bearer {secret}"}
        first = till.city.post("/v1/redemptions", body, by="", key="one", headers=bearer)
        same_again(first, till.call("POST", "/v1/redemptions", body, key="one"))

    def test_the_answer_tells_who_it_is_and_the_time(self, till: Terminal) -> None:
        device = Terminal(till.city, till.merchant, "t2")
        told = till.city.done(device.activate(device.code()))
        assert told["key_id"].startswith("trm_")
        assert (told["merchant"], told["terminal"]) == (till.merchant, "t2")
        assert told["server_time"] == "2025-06-15T04:00:00Z"

    def test_a_lost_answer_is_given_again_and_no_other_key_comes_by_that_code(self, till: Terminal) -> None:
        device = till.next()
        code = device.code()
        first = device.activate(code)
        again = device.activate(code)
        assert (first.status_code, again.status_code) == (201, 200)
        assert again.headers["Idempotency-Replayed"] == "true"
        assert first.json() == again.json()
        problem(till.next().activate(code), 409, "activation-code-used")

    def test_a_new_code_takes_the_place_of_the_old(self, till: Terminal) -> None:
        device = till.next()
        old, new = device.code(), device.code()
        problem(device.activate(old), 404, "activation-code-unknown")
        assert device.activate(new.replace("-", "")).status_code == 201

    def test_a_code_runs_out_after_a_day_but_not_for_who_used_it(self, own_city: City, time: Clock) -> None:
        used, late = (Terminal(own_city, "shop", name) for name in ("t1", "t2"))
        codes = used.code(), late.code()
        first = used.activate(codes[0])
        time.move(timedelta(hours=24))
        assert used.activate(codes[0]).json()["key_id"] == first.json()["key_id"]
        problem(late.activate(codes[1]), 409, "activation-code-expired")

    def test_a_code_dies_of_ten_wrong_tries(self, till: Terminal) -> None:
        device = till.next()
        code = device.code()
        wrong = code[:-1] + str((int(code[-1]) + 1) % 10)
        for _ in range(of_terminals.WRONG_MOST):
            problem(device.activate(wrong), 404, "activation-code-unknown")
        problem(device.activate(code), 404, "activation-code-unknown")

    def test_who_guesses_is_told_to_wait_and_who_knows_is_not(self, own_city: City) -> None:
        device = Terminal(own_city, "shop", "t1")
        code = device.code()
        found = [device.activate(f"{n:032}") for n in range(62)]
        assert [answer.status_code for answer in found] == [404] * 60 + [429] * 2
        told = problem(found[-1], 429, "too-many-attempts")
        assert (told["retryable"], found[-1].headers["Retry-After"]) == ("same-key", "60")
        assert device.activate(code).status_code == 201

    def test_a_code_is_stored_as_its_hash(self, own_city: City, tmp_path: Path) -> None:
        code = Terminal(own_city, "shop", "t1").code()
        for file in (tmp_path / "data").rglob("*"):
            content = file.read_bytes() if file.is_file() else b""
            assert code.encode() not in content
            assert code.replace("-", "").encode() not in content

    def test_only_who_has_the_private_key_activates_and_for_this_code_only(self, till: Terminal) -> None:
        device, other = till.next(), till.next()
        code, earlier = device.code(), device.proof("carbon-points-activation", "0000-" * 7 + "0000")
        problem(device.activate(code, proof=earlier), 422, "proof-invalid")
        problem(device.activate(code, public_key=other.public_key), 422, "proof-invalid")
        problem(device.activate(code, proof=device.proof("carbon-points-rotation", code)), 422, "proof-invalid")
        assert device.activate(code).status_code == 201

    @pytest.mark.parametrize("y", [0, 1, 2**255 - 20, 2**255 - 19, 2**255 - 18, 2**255, 2**255 + 1])
    def test_a_key_under_which_anybody_signs_is_refused(self, till: Terminal, y: int) -> None:
        weak = base64.b64encode(y.to_bytes(32, "little")).decode()
        problem(till.activate(till.code(), public_key=weak), 422, "public-key-invalid")

    def test_a_key_of_one_terminal_is_none_of_another(self, till: Terminal) -> None:
        other = Terminal(till.city, till.merchant, "t2")
        other.key = till.key
        told = problem(other.activate(other.code()), 422, "identity-reused")
        assert "terminal" in told["facts"]["fields"]

    def test_an_activation_ends_the_keys_of_the_device_before(self, till: Terminal) -> None:
        device = till.next().activated()
        assert device.call("GET", f"/v1/merchants/{till.merchant}").status_code == 200
        told = problem(till.call("GET", f"/v1/merchants/{till.merchant}"), 401, "signature-invalid")
        assert told["detail"] == "the key has ended"
        assert keys_of(till) == {till.key_id: "ended", device.key_id: "in-force"}
        problem(till.activate(till.code()), 409, "key-ended")

    @pytest.mark.parametrize(("path", "code"), [("nobody/terminals/t1", "merchant"), ("shop/terminals/t9", "terminal")])
    def test_there_are_codes_for_terminals_that_are_enrolled_only(self, city: City, path: str, code: str) -> None:
        problem(city.post(f"/v1/merchants/{path}/activation"), 404, f"{code}-unknown")
        body = {"suspended": True, "reason": "x"}
        problem(city.post(f"/v1/merchants/{path}/suspension", body), 404, f"{code}-unknown")
        problem(city.get(f"/v1/merchants/{path}/keys"), 404, f"{code}-unknown")


class TestRotating:
    def test_the_old_key_lives_for_a_day_beside_the_new_one(self, own_city: City, time: Clock) -> None:
        old = Terminal(own_city, "shop", "t1").activated()
        new = old.next()
        answer = old.rotate(new)
        new.key_id = own_city.done(answer)["key_id"]
        place, later = "/v1/merchants/shop", NOW + 86400 - 1
        assert keys_of(old) == {old.key_id: "ending", new.key_id: "in-force"}
        time.move(timedelta(hours=24, seconds=-1))
        assert old.call("GET", place, created=later).status_code == 200
        time.move(timedelta(seconds=1))
        problem(old.call("GET", place, created=later), 401, "signature-invalid")
        assert new.call("GET", place, created=later).status_code == 200
        assert keys_of(old) == {old.key_id: "ended", new.key_id: "in-force"}

    def test_a_lost_answer_is_given_again(self, till: Terminal) -> None:
        new = till.next()
        first, again = till.rotate(new), till.rotate(new)
        assert (first.status_code, again.status_code) == (201, 200)
        assert first.json() == again.json()

    def test_a_key_that_was_changed_makes_no_other(self, till: Terminal) -> None:
        till.city.done(till.rotate(till.next()))
        problem(till.rotate(till.next()), 409, "key-ended")

    def test_a_key_is_changed_by_a_signature_only(self, till: Terminal) -> None:
        _, secret = till.city.installation.directory.issue_key("terminal", f"{till.merchant}/t1")
        new = till.next()
        body = {"public_key": new.public_key, "proof": new.proof("carbon-points-rotation", till.key_id)}
        for by, headers in (("", {"Authorization": f"Bearer {secret}"}), ("operator", {})):
            answer = till.city.post("/v1/terminals/keys", body, by=by, headers=headers)
            problem(answer, 403, "signature-required")

    def test_a_proof_is_for_one_key_that_is_changed(self, till: Terminal) -> None:
        other = Terminal(till.city, till.merchant, "t2").activated()
        new = till.next()
        theirs = {"public_key": new.public_key, "proof": new.proof("carbon-points-rotation", other.key_id)}
        problem(till.call("POST", "/v1/terminals/keys", theirs), 422, "proof-invalid")


class TestSuspending:
    def suspend(self, till: Terminal, *, suspended: bool = True) -> Answer:
        return till.city.post(f"{till.path}/suspension", {"suspended": suspended, "reason": "stolen"})

    def test_nothing_is_taken_of_a_suspended_terminal_by_whatever_key_until_it_is_again(self, till: Terminal) -> None:
        _, secret = till.city.installation.directory.issue_key("terminal", f"{till.merchant}/t1")
        bearer = {"Authorization": f"Bearer {secret}"}
        place = f"/v1/merchants/{till.merchant}"
        assert till.city.get(place, by="", headers=bearer).status_code == till.call("GET", place).status_code == 200
        assert self.suspend(till).json() == {"merchant": till.merchant, "terminal": "t1", "suspended": True}
        problem(till.call("GET", place), 403, "terminal-suspended")
        problem(till.rotate(till.next()), 403, "terminal-suspended")
        problem(till.city.get(place, by="", headers=bearer), 403, "terminal-suspended")
        assert self.suspend(till).status_code == 200
        assert self.suspend(till, suspended=False).status_code == 200
        assert till.city.get(place, by="", headers=bearer).status_code == till.call("GET", place).status_code == 200

    def test_only_who_has_the_key_is_told_that_it_is_suspended(self, till: Terminal) -> None:
        self.suspend(till)
        thief = till.next()
        thief.key_id = till.key_id
        problem(thief.call("GET", f"/v1/merchants/{till.merchant}"), 401, "signature-invalid")

    def test_another_terminal_and_another_role_of_that_name_are_not_concerned(self, till: Terminal) -> None:
        other = Terminal(till.city, till.merchant, "t2").activated()
        self.suspend(till)
        assert other.call("GET", f"/v1/merchants/{till.merchant}").status_code == 200

    def test_a_device_is_replaced_while_its_terminal_is_suspended(self, till: Terminal) -> None:
        self.suspend(till)
        device = till.next().activated()
        problem(device.call("GET", f"/v1/merchants/{till.merchant}"), 403, "terminal-suspended")
        self.suspend(till, suspended=False)
        assert device.call("GET", f"/v1/merchants/{till.merchant}").status_code == 200
        problem(till.call("GET", f"/v1/merchants/{till.merchant}"), 401, "signature-invalid")

    def test_who_is_suspended_while_a_body_is_on_its_way_is_refused(self, till: Terminal) -> None:
        raw = msgspec.json.encode(holding(till, till.city.resident(points=100)))
        headers = till.signed("POST", "/v1/redemptions", raw, "k")
        scope: Any = {
            "method": "POST",
            "scheme": "http",
            "raw_path": b"/v1/redemptions",
            "query_string": b"",
            "headers": [],
        }
        scope["headers"] = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        scope["headers"].append((b"host", b"testserver.local"))

        async def body() -> bytes:
            await asyncio.to_thread(self.suspend, till)
            return raw

        installation = till.city.installation
        signatures = Signatures(installation.directory, installation.clock, "")
        with pytest.raises(TerminalIsSuspended):
            asyncio.run(signatures.caller(SimpleNamespace(scope=scope, body=body)))  # as much of it as is asked


class TestAttacking:
    """A call is what was signed, by the one who signed it, now, and once."""

    def test_a_call_is_taken_once_and_sent_again_it_is_signed_anew(self, till: Terminal) -> None:
        body = holding(till, till.city.resident(points=100))
        first = till.call("POST", "/v1/redemptions", body, key="k", nonce="the-nonce-of-this-one")
        problem(
            till.call("POST", "/v1/redemptions", body, key="k", nonce="the-nonce-of-this-one"), 401, "signature-invalid"
        )
        same_again(first, till.call("POST", "/v1/redemptions", body, key="k"))

    def test_before_another_server_process_a_replay_does_nothing_more(self, till: Terminal) -> None:
        body = holding(till, till.city.resident(points=100))
        said: Any = {"key": "k", "nonce": "the-nonce-of-this-one"}
        first = till.call("POST", "/v1/redemptions", body, **said)
        with TestClient(_beside(till.city)) as http:
            same_again(first, till.call("POST", "/v1/redemptions", body, http=http, **said))

    @pytest.mark.parametrize(
        "changed",
        [
            {"raw": b'{"points":1}'},
            {"sent": {"Idempotency-Key": "other"}},
            {"sent": {"Host": "elsewhere.example"}},
            {"sent": {"Content-Digest": content_digest(b"")}},
            {"sent": {"Authorization": "Bearer cp_live_x"}},
            {"sent": {"Signature": ""}},
            {"origin": "https://testserver.local"},
            {"origin": "http://elsewhere.example"},
            {"key_id": "trm_" + "a" * 20},
        ],
        ids=lambda changed: str(changed)[:60],
    )
    def test_what_is_not_as_it_was_signed_is_refused(self, till: Terminal, changed: dict[str, Any]) -> None:
        body = holding(till, till.city.resident(points=100))
        problem(till.call("POST", "/v1/redemptions", body, **changed), 401, "signature-invalid")

    @pytest.mark.parametrize("created", [NOW - 60, NOW - 3600, NOW + 301])
    def test_what_was_not_signed_now_is_refused_and_told_the_time(self, till: Terminal, created: int) -> None:
        told = problem(till.call("GET", f"/v1/merchants/{till.merchant}", created=created), 401, "signature-expired")
        assert str(NOW) in told["detail"]

    def test_without_its_signature_a_call_is_nobody_s(self, till: Terminal) -> None:
        headers = till.signed("GET", "/v1/merchants/shop", b"", "")
        del headers["Signature-Input"]
        problem(till.city.get("/v1/merchants/shop", by="", headers=headers), 401, "unauthenticated")

    def test_a_signature_beside_a_key_that_is_in_force_is_refused(self, till: Terminal) -> None:
        bearer = {"Authorization": f"Bearer {till.city.keys['operator']}"}
        problem(till.call("GET", "/v1/merchants/shop", sent=bearer), 401, "signature-invalid")

    def test_a_terminal_signs_as_itself_only(self, till: Terminal) -> None:
        other = Terminal(till.city, till.merchant, "t2").activated()
        resident = till.city.resident(points=100)
        as_other = till.call("POST", "/v1/redemptions", holding(till, resident), key_id=other.key_id)
        problem(as_other, 401, "signature-invalid")
        problem(till.call("POST", "/v1/redemptions", holding(other, resident)), 403, "not-yours")
        problem(till.call("GET", f"{other.path}/keys"), 403, "not-yours")
        assert till.call("GET", f"{till.path}/keys").status_code == 200

    @pytest.mark.parametrize(("method", "path"), [("POST", "/v1/fund/receipts"), ("POST", "/v1/actions/batch")])
    def test_a_signature_opens_a_terminal_s_calls_only(self, till: Terminal, method: str, path: str) -> None:
        problem(till.call(method, path, {}), 403, "role-not-allowed")

    def test_a_query_and_an_escape_are_signed_as_they_are_sent(self, till: Terminal) -> None:
        place = f"/v1/merchants/{till.merchant}/settlements"
        assert till.call("GET", f"{place}?limit=5").status_code == 200
        headers = till.signed("GET", f"{place}?limit=5", b"", "")
        problem(till.city.http.get(f"{place}?limit=6", headers=headers), 401, "signature-invalid")
        escaped = place.replace("settlements", "s%65ttlements")
        assert till.call("GET", escaped).status_code == 200
        problem(till.city.http.get(escaped, headers=till.signed("GET", place, b"", "")), 401, "signature-invalid")

    def test_a_large_body_is_not_read_to_its_end(self, till: Terminal) -> None:
        answer = till.call("POST", "/v1/redemptions", {"x": "x" * 300_000})
        problem(answer, 413, "too-large")

    def test_what_another_installation_would_call_the_same_key_is_not_the_same(
        self, till: Terminal, own_city: City, tmp_path: Path
    ) -> None:
        with city_in({"CARBON_DATA_DIR": str(tmp_path / "other")}, NOON + HOUR) as elsewhere:
            elsewhere.found()
            here, there = Terminal(own_city, "shop", "t1"), Terminal(elsewhere, "shop", "t1")
            there.key = here.key
            assert here.activated().key_id != there.activated().key_id


def _beside(city: City) -> Any:
    """Another server process over the same installation, as far as nonces go. Its end is not the installation's."""
    app = create_app(city.installation)
    app._lifespan_managers = []
    return app


class TestBehindAProxy:
    @pytest.fixture
    def proxied(self, tmp_path: Path) -> Iterator[City]:
        environment = {"CARBON_DATA_DIR": str(tmp_path / "data"), "CARBON_PUBLIC_URL": "https://points.example.cn/api"}
        with city_in(environment, NOON) as city:
            yield city.found()

    def test_the_address_that_terminals_know_is_signed_whatever_host_is_told(self, proxied: City) -> None:
        till = Terminal(proxied, "shop", "t1").activated()
        right = "https://points.example.cn/api"
        assert till.call("GET", "/v1/merchants/shop", origin=right).status_code == 200
        spoofed = {"Host": "points.example.cn"}
        for origin in ("http://testserver.local", "https://points.example.cn", "http://points.example.cn/api"):
            answer = till.call("GET", "/v1/merchants/shop", origin=origin, sent=spoofed)
            problem(answer, 401, "signature-invalid")


class TestOverASocket:
    def test_a_field_said_twice_is_refused_by_the_server_that_is_served(self, served_city: City) -> None:
        till = Terminal(served_city, "shop", "t2").activated()
        place, url = "/v1/merchants/shop", served_city.http.base_url
        origin = f"http://{url.host}:{url.port}"
        first = till.call("GET", place, origin=origin)
        assert first.status_code == 200, first.text
        for extra in ("Host: elsewhere.example", "Signature-Input: sig1=()", "Signature: sig1=:AAAA:"):
            headers = till.signed("GET", place, b"", "", origin=origin)
            lines = [f"GET {place} HTTP/1.1", f"Host: {url.host}:{url.port}", "Connection: close", extra]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            with socket.create_connection((url.host, url.port)) as connection:
                connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
                answered = b""
                with suppress(ConnectionResetError):
                    while piece := connection.recv(65536):
                        answered += piece
            assert answered.startswith((b"HTTP/1.1 401", b"HTTP/1.1 400")), extra


class TestCrashing:
    """Between the log and the directory: nobody can do what the log does not know, and the same call does the rest."""

    def test_an_activation_is_finished_by_the_same_call(self, own_city: City, monkeypatch: pytest.MonkeyPatch) -> None:
        device = Terminal(own_city, "shop", "t1")
        code = device.code()
        with monkeypatch.context() as patch:
            patch.setattr(of_terminals.Terminals, "copy", _away)
            problem(device.activate(code), 503, "unavailable")
        problem(device.next().activate(code), 409, "activation-code-used")
        again = device.activate(code)
        assert again.status_code == 200
        device.key_id = again.json()["key_id"]
        assert device.call("GET", "/v1/merchants/shop").status_code == 200

    def test_before_an_activation_is_in_the_log_nothing_is_taken(
        self, own_city: City, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        device = Terminal(own_city, "shop", "t1")
        code = device.code()
        with monkeypatch.context() as patch:
            patch.setattr(own_city.installation.journal, "commit", _away)
            problem(device.activate(code), 503, "unavailable")
        assert keys_of(device) == {}
        device.key_id = own_city.done(device.activate(code))["key_id"]
        assert keys_of(device) == {device.key_id: "in-force"}

    def test_a_suspension_refuses_before_it_is_in_the_log_and_is_finished_by_the_same_call(
        self, own_city: City, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        till = Terminal(own_city, "shop", "t1").activated()
        path, body = f"{till.path}/suspension", {"suspended": True, "reason": "x"}
        with monkeypatch.context() as patch:
            patch.setattr(own_city.installation.journal, "commit", _away)
            problem(own_city.post(path, body), 503, "unavailable")
        problem(till.call("GET", "/v1/merchants/shop"), 403, "terminal-suspended")
        own_city.done(own_city.post(path, body))
        with monkeypatch.context() as patch:
            patch.setattr(of_terminals.Terminals, "copy", _away)
            problem(own_city.post(path, body | {"suspended": False}), 503, "unavailable")
        problem(till.call("GET", "/v1/merchants/shop"), 403, "terminal-suspended")
        own_city.done(own_city.post(path, body | {"suspended": False}))
        assert till.call("GET", "/v1/merchants/shop").status_code == 200

    def test_a_key_whose_end_the_directory_missed_ends_with_the_next_change(
        self, own_city: City, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old = Terminal(own_city, "shop", "t1").activated()
        device = old.next()
        with monkeypatch.context() as patch:
            patch.setattr(of_terminals.Terminals, "copy", _away)
            problem(device.activate(device.code()), 503, "unavailable")
        third = old.next().activated()
        assert keys_of(old)[old.key_id] == "ended"
        assert third.call("GET", "/v1/merchants/shop").status_code == 200
        problem(old.call("GET", "/v1/merchants/shop"), 401, "signature-invalid")

    def test_all_of_it_is_in_a_log_that_the_verifier_finds_right(self, own_city: City) -> None:
        till = Terminal(own_city, "shop", "t1").activated()
        new = till.next()
        own_city.done(till.rotate(new))
        own_city.done(own_city.post(f"{till.path}/suspension", {"suspended": True, "reason": "x"}))
        report = verify(own_city.installation.journal)
        assert report.ok, report.first_wrong


def _away(*_: object, **__: object) -> None:
    raise OperationalError("the directory is away", {}, Exception())
