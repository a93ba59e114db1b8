"""What the page signs, a verifier of RFC 9421 that is nothing of ours accepts."""

import base64
import hashlib
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from http_message_signatures import HTTPMessageVerifier, InvalidSignature, MappingKeyResolver, algorithms
from playwright.sync_api import Page

TAG = "carbon-points-terminal"
REDEMPTIONS = "https://points.example/v1/redemptions"
SIGN = """async (request) => {
  const {signatureHeaders, base64} = await import("/static/terminal/signature.js");
  const keys = await crypto.subtle.generateKey({name: "Ed25519"}, false, ["sign", "verify"]);
  const sign = (bytes) => crypto.subtle.sign({name: "Ed25519"}, keys.privateKey, bytes);
  const created = Math.floor(Date.now() / 1000);
  const headers = await signatureHeaders(request, {keyId: "trm_1", sign, created, nonce: "0123456789abcdef"});
  return {headers, key: base64(await crypto.subtle.exportKey("raw", keys.publicKey))};
}"""


def signed(page: Page, method: str, url: str, key: str | None = None, body: str | None = None) -> tuple[Any, Any]:
    """The request as it goes out, and what verifies it."""
    made = page.evaluate(SIGN, {"method": method, "url": url, "key": key, "body": body})
    headers = made["headers"] | ({"Idempotency-Key": key} if key else {})
    public = Ed25519PublicKey.from_public_bytes(base64.b64decode(made["key"]))
    keys = MappingKeyResolver(public_keys={"trm_1": public}, private_keys={})
    verifier = HTTPMessageVerifier(signature_algorithm=algorithms.ED25519, key_resolver=keys)
    return httpx.Request(method, url, headers=headers, content=body or b""), verifier


def verified(request: httpx.Request, verifier: Any) -> set[str]:
    """The components that the signature covers."""
    (result,) = verifier.verify(request, expect_tag=TAG, body=request.content)
    return {name.strip('"') for name in result.covered_components} - {"@signature-params"}


@pytest.mark.parametrize("body", ['{"code":"800000000000000000","points":100}', '{"名":"龙井"}', None])
def test_a_post_is_signed_whole(modules: Page, body: str | None) -> None:
    request, verifier = signed(modules, "POST", REDEMPTIONS, "019d-key", body)
    covered = verified(request, verifier)
    assert covered == {"@method", "@target-uri", "content-digest", "idempotency-key"}
    digest = base64.b64encode(hashlib.sha256((body or "").encode()).digest()).decode()
    assert request.headers["content-digest"] == f"sha-256=:{digest}:"


def test_a_get_is_signed_with_its_query(modules: Page) -> None:
    request, verifier = signed(modules, "GET", f"{REDEMPTIONS}?reference=019d")
    assert verified(request, verifier) == {"@method", "@target-uri"}


@pytest.mark.parametrize(
    "altered",
    [
        {"method": "PUT"},
        {"url": f"{REDEMPTIONS}?points=9"},
        {"headers": {"Idempotency-Key": "another"}},
        {"content": b'{"points":9}'},
    ],
)
def test_whatever_is_altered_is_found(modules: Page, altered: dict[str, Any]) -> None:
    sent, verifier = signed(modules, "POST", REDEMPTIONS, "019d-key", '{"points":1}')
    said = {"method": sent.method, "url": str(sent.url), "content": sent.content} | altered
    headers = {name: value for name, value in sent.headers.items() if name != "content-length"}
    headers |= {name.lower(): value for name, value in altered.get("headers", {}).items()}
    request = httpx.Request(**(said | {"headers": headers}))
    with pytest.raises(InvalidSignature):
        verified(request, verifier)
