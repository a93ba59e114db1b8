"""Signatures: vectors of the RFC and of ours are judged as they say; nothing is taken that a library would refuse."""

import base64
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from time import time
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_der_private_key
from http_message_signatures import HTTPMessageSigner, HTTPMessageVerifier, InvalidSignature
from http_message_signatures.algorithms import ED25519
from http_message_signatures.resolvers import MappingKeyResolver
from hypothesis import given, settings
from hypothesis import strategies as st

from carbon_points.api.problems import ApiError
from carbon_points.api.signatures import (
    SKEW_SECONDS,
    TAG,
    Nonces,
    check_signature,
    check_time,
    content_digest,
    holds,
    read,
    signature_base,
)
from carbon_points.domain.refusal import Refusal
from carbon_points_terminal.signing import Signer

VECTORS = Path(__file__).parent.parent / "vectors"
RFC = msgspec.json.decode((VECTORS / "rfc9421.json").read_bytes())
OURS = msgspec.json.decode((VECTORS / "terminal-signatures.json").read_bytes())
PUBLIC_KEY = base64.b64decode(OURS["public_key"])
PRIVATE_KEY = Ed25519PrivateKey.from_private_bytes(base64.b64decode(OURS["private_key"]))
ROTATED = Ed25519PrivateKey.from_private_bytes(base64.b64decode(OURS["rotation"]["private_key"]))
PAGE = (Path(__file__).parent.parent.parent / "docs" / "api.md").read_text("utf-8")
Headers = Sequence[tuple[str, str]]


class Fields(list[tuple[str, str]]):
    """Fields of a message, of which there may be several of one name: as much of a dictionary as the library asks."""

    def items(self) -> "Fields":
        return self


class Message:
    """A request, as the library takes it."""

    def __init__(self, method: str, url: str, headers: Headers) -> None:
        self.method, self.url, self.headers = method, url, Fields(headers)


def answer(method: str, target: str, headers: Headers, body: bytes, now: int, public_key: bytes = PUBLIC_KEY) -> str:
    """What becomes of a request: `accepted`, or the code of the problem."""
    try:
        signed = read(method, [(name.lower().encode(), value.encode("latin-1")) for name, value in headers])
        check_time(signed, now)
        check_signature(signed, method, target, body, public_key)
    except ApiError as error:
        return error.code
    return "accepted"


# -- the RFC ---------------------------------------------------------------------------------------------------------


def value_of(component: str, message: dict[str, Any]) -> str:
    """Read slowly from the RFC: section 2.1 for fields, 2.2 for what is derived."""
    url = urlsplit(message["url"])
    name = component.split('"')[1]
    match name:
        case "@method":
            return message["method"]
        case "@authority":
            return url.netloc
        case "@path":
            return url.path
        case "@query":
            return f"?{url.query}"
        case "@query-param":
            wanted = component.split('"')[3]
            [value] = [pair.partition("=")[2] for pair in url.query.split("&") if pair.split("=")[0] == wanted]
            return value
        case _:
            return ", ".join(value for field, value in message["headers"] if field.lower() == name)


BY_SECTION = pytest.mark.parametrize("vector", RFC["vectors"], ids=lambda v: v["section"])


@BY_SECTION
def test_the_signature_base_is_the_rfc_s(vector: dict[str, Any]) -> None:
    message, params = RFC["messages"][vector["message"]], vector["signature_input"].partition("=")[2]
    names = [name for name in params[1 : params.index(")")].split(" ") if name]
    base = signature_base([(name, value_of(name, message)) for name in names], params)
    assert base.decode() == "\n".join(vector["signature_base"])


@pytest.mark.parametrize(
    "vector", [v for v in RFC["vectors"] if v["ed25519_signature"]], ids=lambda vector: vector["section"]
)
def test_an_ed25519_signature_of_the_rfc_holds_and_no_other_does(vector: dict[str, Any]) -> None:
    keys = RFC["keys"]["test-key-ed25519"]
    public_key, base = base64.b64decode(keys["public_key"]), "\n".join(vector["signature_base"]).encode()
    signature = base64.b64decode(vector["ed25519_signature"])
    assert holds(public_key, signature, base)
    assert not holds(public_key, signature, base + b" ")
    assert not holds(PUBLIC_KEY, signature, base)
    private_key = load_der_private_key(base64.b64decode(keys["private_key"]), None)
    assert isinstance(private_key, Ed25519PrivateKey)
    assert private_key.sign(base) == signature, "it is deterministic"


@BY_SECTION
def test_what_is_signed_in_another_form_than_ours_is_refused(vector: dict[str, Any]) -> None:
    label = vector["signature_input"].partition("=")[0]
    message = RFC["messages"][vector["message"]]
    signature = f"{label}=:{vector['ed25519_signature'] or 'A' * 86 + '=='}:"
    headers = [*message["headers"], ("Signature-Input", vector["signature_input"]), ("Signature", signature)]
    public_key = base64.b64decode(RFC["keys"]["test-key-ed25519"]["public_key"])
    found = answer(message["method"], message["url"], headers, message["body"].encode(), 1618884473, public_key)
    assert found == "signature-invalid"


@pytest.mark.parametrize("known", RFC["content_digests"], ids=lambda known: repr(known["body"]))
def test_a_digest_is_the_rfc_s(known: dict[str, str]) -> None:
    assert content_digest(known["body"].encode()) == known["sha-256"]


# -- ours ------------------------------------------------------------------------------------------------------------

CASES = OURS["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_request_is_judged_as_its_vector_says(case: dict[str, Any]) -> None:
    target = OURS["origin"] + case["target"]
    found = answer(case["method"], target, case["headers"], case["body"].encode(), case["now"])
    assert found == case["answer"]


@pytest.mark.parametrize("case", [c for c in CASES if c["answer"] == "accepted"], ids=lambda case: case["name"])
def test_a_vector_s_base_is_what_its_signature_is_over(case: dict[str, Any]) -> None:
    base = "\n".join(case["signature_base"]).encode()
    signature = dict(case["headers"])["Signature"].removeprefix("sig1=:").removesuffix(":")
    assert PRIVATE_KEY.sign(base) == base64.b64decode(signature)


def test_a_vector_s_proofs_are_over_what_it_says() -> None:
    known = OURS["activation"], OURS["rotation"]
    for said, key, first in zip(known, (PRIVATE_KEY, ROTATED), ("activation_code", "key_id"), strict=True):
        assert said["signed"].split("\n")[1:] == [said[first], said["public_key"]]
        assert key.sign(said["signed"].encode()) == base64.b64decode(said["proof"])


def test_the_guide_s_worked_example_is_the_vector() -> None:
    example = CASES[0]
    for told in (
        *(f"{name}: {value}" for name, value in example["headers"]),
        "\n".join(example["signature_base"]),
        example["body"],
        OURS["private_key"],
        OURS["public_key"],
        OURS["activation"]["signed"],
        OURS["activation"]["proof"],
        OURS["rotation"]["signed"],
    ):
        assert told in PAGE, told


def test_what_the_terminal_of_this_repository_signs_is_taken() -> None:
    now, nonces = datetime.fromtimestamp(CASES[0]["now"], UTC), count()
    signer = Signer(PRIVATE_KEY, OURS["key_id"], lambda: now, lambda: f"nonce-{next(nonces):016}")
    for method, path, body in (
        ("POST", "/v1/redemptions", b"{}"),
        ("POST", "/v1/x/void", b""),
        ("GET", "/v1/x?a=b", b""),
    ):
        target = OURS["origin"] + path
        headers = list(signer.headers(method, target, "01JDJQ8Z5T3N8W2R6Y4B7C9D1F", body).items())
        assert answer(method, target, headers, body, CASES[0]["now"]) == "accepted"


# -- beside the library ----------------------------------------------------------------------------------------------

KEY_ID = OURS["key_id"]
ORIGIN = "https://points.example.cn"
KEYS = MappingKeyResolver(
    public_keys={KEY_ID: Ed25519PublicKey.from_public_bytes(PUBLIC_KEY)}, private_keys={KEY_ID: PRIVATE_KEY}
)


class Library(HTTPMessageVerifier):
    """Its own rules of time, as far as they can be told apart from ours, left to us."""

    max_clock_skew = timedelta(seconds=SKEW_SECONDS)


def taken_by_the_library(method: str, target: str, headers: Headers, body: bytes) -> bool:
    covered = ["@method", "@target-uri", *(["content-digest", "idempotency-key"] if method == "POST" else [])]
    try:
        verifier = Library(signature_algorithm=ED25519, key_resolver=KEYS)
        message = Message(method, target, headers)
        return bool(verifier.verify(message, expect_tag=TAG, require_components=covered, body=body))
    except InvalidSignature:
        return False


def signed(method: str, path: str, body: bytes, key: str, nonce: str, label: str) -> list[tuple[str, str]]:
    """The fields of a request that the library signed now."""
    headers = {"Host": "points.example.cn"}
    covered = ["@method", "@target-uri"]
    if method == "POST":
        headers |= {"Content-Digest": content_digest(body), "Idempotency-Key": key}
        covered += ["content-digest", "idempotency-key"]
    message = Message(method, ORIGIN + path, ())
    message.headers = headers  # pyright: ignore[reportAttributeAccessIssue]  # it writes into a dictionary
    now = datetime.fromtimestamp(int(time()), UTC)
    HTTPMessageSigner(signature_algorithm=ED25519, key_resolver=KEYS).sign(
        message,
        key_id=KEY_ID,
        created=now,
        expires=now + timedelta(seconds=60),
        nonce=nonce,
        tag=TAG,
        label=label,
        covered_component_ids=covered,
        use_existing_digest=method == "POST",
    )
    return list(headers.items())


printable = st.characters(min_codepoint=0x21, max_codepoint=0x7E)
requests = st.fixed_dictionaries(
    {
        "method": st.sampled_from(["GET", "POST"]),
        "path": st.from_regex(r"/v1(/([a-z0-9._~-]|%[0-9a-f]{2}){0,9}){0,3}(\?[a-z0-9=&+._-]{1,20})?", fullmatch=True),
        "body": st.binary(max_size=50),
        "key": st.text(printable, min_size=1, max_size=40),
        "nonce": st.text(
            st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters='"\\'), min_size=16, max_size=64
        ),
        "label": st.from_regex(r"[a-z][a-z0-9_-]{0,31}", fullmatch=True),
    }
)


@given(request=requests)
def test_what_the_library_signs_in_our_form_is_taken_by_both(request: dict[str, Any]) -> None:
    if request["method"] == "GET":
        request["body"] = b""
    headers, target = signed(**request), ORIGIN + request["path"]
    assert answer(request["method"], target, headers, request["body"], int(time())) == "accepted"
    assert taken_by_the_library(request["method"], target, headers, request["body"])


EXAMPLE = {"method": "POST", "path": "/v1/redemptions", "body": b"{}", "key": "k", "nonce": "n" * 16, "label": "sig1"}


@given(data=st.data())
@settings(max_examples=12 * settings().max_examples)
def test_whatever_is_taken_the_library_takes_too(data: st.DataObject) -> None:
    """A good request, of which some letters are others, missing, or said twice."""
    headers, body = signed(**EXAMPLE), EXAMPLE["body"]
    target = ORIGIN + EXAMPLE["path"]
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.integers(0, len(headers) - 1))
        name, value = headers[at]
        match data.draw(st.sampled_from(["letter", "swap", "twice", "again", "gone", "spaces", "case", "body"])):
            case "letter":
                where = data.draw(st.integers(0, len(value)))
                put = data.draw(st.text(st.sampled_from(' ";,=:()@\t\\0a1A-+/?~\x7fé'), max_size=2))
                headers[at] = (name, value[:where] + put + value[where + data.draw(st.integers(0, 2)) :])
            case "swap":
                parts = value.split(";")
                headers[at] = (name, ";".join([parts[0], *data.draw(st.permutations(parts[1:]))]))
            case "twice":
                headers.append((name, value))
            case "again":
                headers[at] = (name, f"{value}, {value}")
            case "gone":
                del headers[at]
            case "body":
                body += b" "
            case "spaces":
                headers[at] = (name, f" {value}\t")
            case _:
                headers[at] = (name.upper(), value)
        if not headers:
            return
    if answer("POST", target, headers, body, int(time())) == "accepted":
        assert taken_by_the_library("POST", target, headers, body)


# -- nonces ----------------------------------------------------------------------------------------------------------

NOW = 1_764_072_000


def refused(nonces: Nonces, nonce: str, expires: int, now: int, key_id: str = "trm_a") -> str:
    try:
        nonces.use(key_id, nonce, expires, now)
    except (ApiError, Refusal) as error:
        return error.code
    return ""


def test_a_nonce_is_taken_once_while_its_signature_is_in_force_whenever_it_says_it_expires() -> None:
    nonces = Nonces()
    assert refused(nonces, "n", NOW + 60, NOW) == ""
    for expires in (NOW + 60, NOW + 1, NOW + 300, NOW + 360):
        assert refused(nonces, "n", expires, NOW) == "signature-invalid"
    assert refused(nonces, "n", NOW + 60, NOW, key_id="trm_b") == "", "another key's nonces are its own"


def test_nonces_are_forgotten_when_no_signature_with_them_would_be_taken_and_not_before() -> None:
    nonces = Nonces()
    for n in range(100):
        assert refused(nonces, f"n{n}", NOW + n, NOW) == ""
    for n in range(61, 100):
        assert refused(nonces, f"n{n}", NOW + n, NOW + 60) == "signature-invalid"
    assert refused(nonces, "m", NOW + 500, NOW + 400) == ""
    assert sum(map(len, nonces._used.values())) == 1
    assert refused(nonces, "n99", NOW + 99, NOW) == "signature-expired", "a clock that goes back lets nothing in again"


def test_nonces_have_a_bound_and_beyond_it_nothing_is_taken() -> None:
    nonces = Nonces(most=10)
    assert [refused(nonces, str(n), NOW + 60, NOW) for n in range(12)] == [""] * 10 + ["overloaded"] * 2
    assert refused(nonces, "later", NOW + 200, NOW + 150) == ""
