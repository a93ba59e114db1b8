"""The reference terminal with a key of its own, against the real server and its published vectors."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from carbon_points_terminal import NoAnswer, OverHttp, Request, Response, Signer, Terminal
from carbon_points_terminal.enrolment import EnrolmentFailed, Folder
from carbon_points_terminal.ids import new_nonce, new_reference, wall_clock
from carbon_points_terminal.signing import proof, public_text
from tests.api.city import City
from tests.api.test_reference_terminal import Till
from tests.conftest import PROJECT

VECTORS = PROJECT / "tests" / "vectors" / "terminal-signatures.json"


@pytest.fixture
def folder(own_city: City, tmp_path: Path) -> Folder:
    """A terminal of the city's shop, activated with the code that the operator was shown."""
    folder = Folder(tmp_path / "till")
    folder.activate(str(own_city.http.base_url), code_of(own_city), over(own_city, None))
    return folder


def code_of(city: City) -> str:
    return city.done(city.post("/v1/merchants/shop/terminals/t1/activation"))["activation_code"]


def over(city: City, caller: Any) -> OverHttp:
    return OverHttp(str(city.http.base_url), caller, client=city.http)


def signed(city: City, folder: Folder) -> OverHttp:
    """By the city's own time, as its clock stands."""
    settings = folder.settings()
    key = folder.caller(settings)
    assert isinstance(key, Ed25519PrivateKey)
    return over(city, Signer(key, settings.key_id, city.installation.clock, new_nonce))


def test_a_day_of_a_terminal_that_signs(own_city: City, folder: Folder) -> None:
    resident = own_city.resident(points=1000)
    till = Till(own_city)
    with folder.journal(folder.settings()) as journal:
        till.terminal = Terminal(journal, signed(own_city, folder), till.time, new_reference, till.time.pass_)
        held = till.terminal.authorise(100, till.code(resident))
        assert till.terminal.capture(held.reference, 60).outcome.result == "approved"  # type: ignore[union-attr]
        assert till.terminal.refund(held.reference, 10).outcome.result == "approved"  # type: ignore[union-attr]
        assert till.terminal.void(till.terminal.authorise(5, till.code(resident)).reference).state == "DONE"
        assert till.terminal.cancel(held.reference).outcome.result == "reversed"  # type: ignore[union-attr]
    assert till.left(resident) == 1000


def test_its_references_are_those_of_its_bearer_key(own_city: City, folder: Folder) -> None:
    """The terminal is the same, however it says who it is: a till that changes over finds its calls."""
    resident, till = own_city.resident(points=1000), Till(own_city)
    paid = till.terminal.pay(100, till.code(resident))
    answer = signed(own_city, folder).send(Request("GET", f"/v1/redemptions?reference={paid.reference}"))
    assert isinstance(answer, Response)
    assert msgspec.json.decode(answer.body)["status"] == "captured"


def test_an_activation_whose_answer_was_lost_is_told_again(own_city: City, tmp_path: Path) -> None:
    folder, code = Folder(tmp_path / "till"), code_of(own_city)

    class Losing:
        def send(self, request: Request) -> NoAnswer:
            over(own_city, None).send(request)
            return NoAnswer("lost")

    with pytest.raises(EnrolmentFailed):
        folder.activate(str(own_city.http.base_url), code, Losing())
    folder.activate(str(own_city.http.base_url), code, over(own_city, None))
    assert status(signed(own_city, folder)) == 200
    with pytest.raises(EnrolmentFailed) as failed:
        Folder(tmp_path / "thief").activate(str(own_city.http.base_url), code, over(own_city, None))
    assert failed.value.code == "activation-code-used"


def test_a_new_key_takes_the_old_ones_place(own_city: City, folder: Folder) -> None:
    before = folder.settings()
    folder.rotate(signed(own_city, folder))
    assert folder.settings().key_id != before.key_id
    assert status(signed(own_city, folder)) == 200


def test_a_suspended_terminal_is_declined_and_serves_again_when_it_may(own_city: City, folder: Folder) -> None:
    resident, till = own_city.resident(points=1000), Till(own_city)
    path = "/v1/merchants/shop/terminals/t1/suspension"
    own_city.done(own_city.post(path, {"suspended": True, "reason": "stolen"}))
    till.network.over = signed(own_city, folder)
    told = till.terminal.pay(100, till.code(resident))
    assert told.outcome
    assert (told.outcome.result, told.outcome.code) == ("declined", "terminal-suspended")
    own_city.done(own_city.post(path, {"suspended": False, "reason": "found"}))
    told = till.terminal.pay(100, till.code(resident))
    assert told.outcome
    assert told.outcome.result == "approved"


def test_a_clock_that_is_hours_off_is_put_right(served_apart: City, tmp_path: Path) -> None:
    """By a server on a socket, whose answers carry a date; it goes by the real time here, as that does."""
    folder, clock = Folder(tmp_path / "till"), served_apart.installation.clock
    wrong = timedelta(hours=5)
    with OverHttp(str(served_apart.http.base_url), None) as transport:
        folder.activate(str(served_apart.http.base_url), code_of(served_apart), transport)
    settings = folder.settings()
    key = folder.caller(settings)
    assert isinstance(key, Ed25519PrivateKey)
    clock.at = wall_clock()  # type: ignore[attr-defined]
    signer = Signer(key, settings.key_id, lambda: wall_clock() - wrong, new_nonce)
    with OverHttp(settings.url, signer) as transport:
        assert status(transport) == 200
    assert abs(signer.ahead - wrong.total_seconds()) < 5


def status(transport: OverHttp) -> int:
    answer = transport.send(Request("GET", f"/v1/redemptions?reference={new_reference()}"))
    assert isinstance(answer, Response)
    return answer.status


# -- what is published for whoever writes a terminal -------------------------------------------------------------------


def test_signatures_are_those_of_the_vectors() -> None:
    vectors = msgspec.json.decode(VECTORS.read_bytes())
    key, done = Ed25519PrivateKey.from_private_bytes(msgspec.convert(vectors["private_key"], bytes)), 0
    assert public_text(key) == vectors["public_key"]
    for case in vectors["cases"]:
        headers = {name.lower(): value for name, value in case["headers"]}
        signature = headers.get("signature-input", "")
        if case["answer"] != "accepted" or "sig1=" not in signature or '"' in headers.get("idempotency-key", ""):
            continue
        said = dict(part.split("=", 1) for part in signature.split(";")[1:])
        if int(said["expires"]) != int(said["created"]) + 60:
            continue
        at, nonce = datetime.fromtimestamp(int(said["created"]), UTC), said["nonce"].strip('"')
        signer = Signer(key, vectors["key_id"], lambda at=at: at, lambda nonce=nonce: nonce)
        url = vectors["origin"] + case["target"]
        ours = signer.headers(case["method"], url, headers.get("idempotency-key", ""), case["body"].encode())
        assert {name.lower(): value for name, value in ours.items()}.items() <= headers.items(), case["name"]
        done += 1
    assert done >= 4


def test_proofs_are_those_of_the_vectors() -> None:
    vectors = msgspec.json.decode(VECTORS.read_bytes())

    def key(text: str) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(msgspec.convert(text, bytes))

    activation, rotation = vectors["activation"], vectors["rotation"]
    told = proof(key(vectors["private_key"]), "carbon-points-activation", activation["activation_code"])
    assert told == activation["proof"]
    assert proof(key(rotation["private_key"]), "carbon-points-rotation", rotation["key_id"]) == rotation["proof"]
