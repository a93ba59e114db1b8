"""Signatures that a verifier of others accepts, and keys that nobody else can read."""

import base64
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from typing import Any

import httpx
import pytest
from cryptography.exceptions import InvalidSignature as Wrong
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from http_message_signatures import HTTPMessageVerifier, InvalidSignature
from http_message_signatures.algorithms import ED25519

from carbon_points_terminal import NoAnswer, OverHttp, Request, Response, Signer
from carbon_points_terminal.files import KeyUnusable, read_secret, write_secret
from carbon_points_terminal.ids import new_nonce, new_reference, ulid, wall_clock
from carbon_points_terminal.signing import new_key, proof, public_text, read_key, write_key

KEY = new_key()
BODY = b'{"points":100}'
POSTED = ('"@method"', '"@target-uri"', '"content-digest"', '"idempotency-key"')


class Known:
    """The one key that the verifier knows."""

    def resolve_public_key(self, key_id: str) -> Ed25519PublicKey | None:
        return KEY.public_key() if key_id == "trm_1" else None

    def resolve_private_key(self, key_id: str) -> None:
        raise AssertionError("a verifier has none")


def signer(clock: Any = wall_clock) -> Signer:
    return Signer(KEY, "trm_1", clock, new_nonce)


def sent(request: Request, by: Signer, base: str = "https://points.example") -> httpx.Request:
    """The request as it left through the real transport."""
    caught: list[httpx.Request] = []

    def catch(out: httpx.Request) -> httpx.Response:
        caught.append(out)
        return httpx.Response(200, json={})

    with OverHttp(base, by, client=httpx.Client(transport=httpx.MockTransport(catch))) as transport:
        transport.send(request)
    return caught[0]


def verified(message: httpx.Request, components: tuple[str, ...], body: bytes | None) -> Any:
    verifier = HTTPMessageVerifier(signature_algorithm=ED25519, key_resolver=Known())
    (result,) = verifier.verify(
        message,
        max_age=timedelta(seconds=300),
        expect_tag="carbon-points-terminal",
        expect_label="sig1",
        require_components=components,
        body=body,
    )
    return result


@pytest.mark.parametrize(
    "base", ["https://points.example", "http://127.0.0.1:8000", "https://points.example:8443/city"]
)
def test_a_post_is_signed_over_method_target_digest_and_key(base: str) -> None:
    request = Request("POST", "/v1/redemptions", new_reference(), BODY)
    message = sent(request, signer(), base)
    assert str(message.url) == base + "/v1/redemptions"
    result = verified(message, POSTED, BODY)
    covered, _, parameters = message.headers["signature-input"].partition(";")
    assert covered == 'sig1=("@method" "@target-uri" "content-digest" "idempotency-key")'
    assert [one.partition("=")[0] for one in parameters.split(";")] == [
        "created", "keyid", "alg", "expires", "nonce", "tag"
    ]  # fmt: skip
    assert result.parameters["keyid"] == "trm_1"
    assert result.parameters["expires"] - result.parameters["created"] == 60
    assert len(result.nonce) >= 16


def test_an_empty_post_has_the_digest_of_nothing_and_a_get_covers_its_query() -> None:
    message = sent(Request("POST", "/v1/redemptions/rdm_a/void", new_reference()), signer())
    verified(message, POSTED, b"")
    message = sent(Request("GET", "/v1/redemptions?reference=01HZ&x=%E4%BB%98"), signer())
    result = verified(message, ('"@method"', '"@target-uri"'), None)
    assert result.covered_components['"@target-uri"'].endswith("?reference=01HZ&x=%E4%BB%98")
    assert "content-digest" not in message.headers


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("idempotency-key", "another"),
        ("content-digest", "sha-256=:AAAA:"),
        ("method", "PUT"),
        ("url", "https://x.example"),
    ],
)
def test_whatever_is_covered_cannot_be_changed(header: str, value: str) -> None:
    message = sent(Request("POST", "/v1/redemptions", new_reference(), BODY), signer())
    if header == "method":
        message.method = value
    elif header == "url":
        message.url = httpx.URL(value)
    else:
        message.headers[header] = value
    with pytest.raises(InvalidSignature):
        verified(message, POSTED, None)


def test_the_same_request_again_has_another_nonce_and_signature() -> None:
    request = Request("POST", "/v1/redemptions", "key", BODY)
    first, second = sent(request, signer()), sent(request, signer())
    assert first.headers["signature-input"] != second.headers["signature-input"]
    assert first.headers["signature"] != second.headers["signature"]


def test_a_till_whose_clock_is_wrong_is_put_right_by_the_platform_once() -> None:
    """Refused for the time, it signs anew by the platform's clock; refused again, it tells so."""
    wrong = signer(lambda: datetime(2020, 1, 1, tzinfo=UTC))
    asked: list[int] = []

    def platform(request: httpx.Request) -> httpx.Response:
        created = int(request.headers["signature-input"].split("created=")[1].split(";")[0])
        asked.append(created)
        late = abs(created - wall_clock().timestamp()) > 300
        date = wall_clock().strftime("%a, %d %b %Y %H:%M:%S GMT")
        return httpx.Response(401 if late else 200, headers={"Date": date}, json={})

    with OverHttp("https://x", wrong, client=httpx.Client(transport=httpx.MockTransport(platform))) as transport:
        assert transport.send(Request("GET", "/v1/offers")).status == 200  # type: ignore[union-attr]
        assert transport.send(Request("GET", "/v1/offers")).status == 200  # type: ignore[union-attr]
    assert len(asked) == 3, "once wrong, then right at once"


def test_a_bearer_key_is_sent_instead_of_a_signature() -> None:
    with OverHttp("https://x", "cp_live_1", client=httpx.Client(transport=httpx.MockTransport(_mirrored))) as transport:
        answer = transport.send(Request("POST", "/v1/redemptions", "key", BODY))
    assert b"Bearer cp_live_1" in answer.body  # type: ignore[union-attr]
    assert b"signature" not in answer.body  # type: ignore[union-attr]


def _mirrored(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json=dict(request.headers))


def test_what_is_no_answer_is_told_as_none() -> None:
    def broken(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no route to the platform")

    with OverHttp("https://x", None, client=httpx.Client(transport=httpx.MockTransport(broken))) as transport:
        answer = transport.send(Request("GET", "/v1/offers"))
    assert answer.reason == "ConnectError: no route to the platform"  # type: ignore[union-attr]


@contextmanager
def server(*pieces: bytes, every: float) -> Iterator[str]:
    """A server that takes one request and answers in pieces, with a pause before each."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection, suppress(OSError):
                connection.recv(65536)
                for piece in pieces:
                    sleep(every)
                    connection.sendall(piece)
                while connection.recv(65536):
                    pass

        thread = Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize(
    ("pieces", "every"),
    [
        ((), 0),
        ((b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n", *[b"{"] * 99), 0.35),
        ((b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n", *[b"{"] * 99), 0.1),
    ],
)
def test_an_answer_that_does_not_end_in_time_is_none(pieces: tuple[bytes, ...], every: float) -> None:
    with server(*pieces, every=every) as url, OverHttp(url, None, seconds=0.4) as transport:
        begun = monotonic()
        answer = transport.send(Request("POST", "/v1/redemptions", "key", BODY))
        took = monotonic() - begun
        transport.close()
    assert isinstance(answer, NoAnswer), "the whole of it, not each of its parts: they all come, each in time"
    assert 0.3 < took < 30, "a busy machine has its time, but it was not waited for"


def test_an_answer_that_comes_in_time_is_read(tmp_path: Path) -> None:
    head = b"HTTP/1.1 503 Busy\r\nRetry-After: 2\r\ncontent-length: 2\r\n\r\n"
    with server(head, b"{}", every=0.02) as url, OverHttp(url, None, seconds=5) as transport:
        answer = transport.send(Request("GET", "/v1/offers"))
        transport.close()
    assert answer == Response(503, b"{}", {"retry-after": "2", "content-length": "2"})


# -- keys ------------------------------------------------------------------------------------------------------------


def test_a_proof_is_the_keys_signature_on_what_it_asks_for() -> None:
    signed = b"carbon-points-activation\nA1-B2\n" + public_text(KEY).encode()
    given = base64.b64decode(proof(KEY, "carbon-points-activation", "A1-B2"))
    KEY.public_key().verify(given, signed)
    with pytest.raises(Wrong):
        KEY.public_key().verify(given, signed + b"\n")
    assert len(base64.b64decode(public_text(KEY))) == 32


def test_a_key_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "trm_1.key"
    write_key(path, KEY)
    assert path.stat().st_mode & 0o777 == 0o600
    assert public_text(read_key(path)) == public_text(KEY)
    path.chmod(0o640)
    with pytest.raises(KeyUnusable, match="others may read"):
        read_key(path)


@pytest.mark.parametrize("content", [b"", b"short", b"!" * 44, base64.b64encode(b"x" * 31)])
def test_what_is_no_key_is_told(tmp_path: Path, content: bytes) -> None:
    write_secret(tmp_path / "a.key", content)
    with pytest.raises(KeyUnusable):
        read_key(tmp_path / "a.key")
    with pytest.raises(KeyUnusable):
        read_secret(tmp_path / "missing")


def test_a_reference_is_a_ulid_that_sorts_by_time() -> None:
    # the example of the ULID specification: 1469918176385 ms
    at = datetime.fromtimestamp(1469918176.385, UTC)
    assert ulid(at, bytes(10))[:10] == "01ARYZ6S41"
    assert ulid(at, b"\xff" * 10) == "01ARYZ6S41" + "Z" * 16
    assert ulid(at + timedelta(milliseconds=1), bytes(10)) > ulid(at, b"\xff" * 10)
    assert len({new_reference() for _ in range(1000)}) == 1000
