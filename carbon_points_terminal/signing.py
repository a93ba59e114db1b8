"""A terminal's key, and its signature on every request: RFC 9421 with Ed25519, in the one profile that is spoken here.

The key is made on the terminal and never leaves it: what is sent is its public half, and a proof that the terminal has
the other.
"""

import base64
import hashlib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from carbon_points_terminal.files import KeyUnusable, read_secret, write_secret

LABEL, TAG = "sig1", "carbon-points-terminal"
LIVES = 60  # seconds from `created` to `expires`


class Signer:
    """Signs requests as one key. `nonce` gives text that never comes twice.

    `ahead`: by how many seconds the platform's clock goes before this till's, as far as it was told.
    """

    def __init__(
        self, key: Ed25519PrivateKey, key_id: str, clock: Callable[[], datetime], nonce: Callable[[], str]
    ) -> None:
        self._key, self._key_id, self._clock, self._nonce = key, key_id, clock, nonce
        self.ahead = 0.0

    def told_time(self, there: datetime) -> bool:
        """What the platform's clock shows. True where this till's was so wrong that signatures were refused for it."""
        ahead = there.timestamp() - self._clock().timestamp()
        wrong = abs(ahead - self.ahead) > LIVES / 2
        if wrong:
            self.ahead = ahead
        return wrong

    def headers(self, method: str, url: str, key: str = "", body: bytes = b"") -> dict[str, str]:
        """What stands in the head of a signed request. `url` is what is sent: scheme, host, path and query."""
        covered = [("@method", method), ("@target-uri", url)]
        headers: dict[str, str] = {}
        if method == "POST":
            headers = {"Content-Digest": f"sha-256=:{_base64(hashlib.sha256(body).digest())}:", "Idempotency-Key": key}
            covered += [("content-digest", headers["Content-Digest"]), ("idempotency-key", key)]
        created = int(self._clock().timestamp() + self.ahead)
        names = " ".join(f'"{name}"' for name, _ in covered)
        parameters = (
            f'({names});created={created};keyid="{self._key_id}";alg="ed25519"'
            f';expires={created + LIVES};nonce="{self._nonce()}";tag="{TAG}"'
        )
        lines = [f'"{name}": {value}' for name, value in covered]
        base = "\n".join([*lines, f'"@signature-params": {parameters}'])
        signature = _base64(self._key.sign(base.encode()))
        return headers | {"Signature-Input": f"{LABEL}={parameters}", "Signature": f"{LABEL}=:{signature}:"}


def new_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


def public_text(key: Ed25519PrivateKey) -> str:
    """The public half as it is sent: base64 of its 32 bytes."""
    return _base64(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))


def proof(key: Ed25519PrivateKey, *lines: str) -> str:
    """That the terminal has the key: its signature on what it asks for."""
    return _base64(key.sign("\n".join([*lines, public_text(key)]).encode()))


def write_key(path: Path, key: Ed25519PrivateKey) -> None:
    write_secret(path, base64.b64encode(key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())) + b"\n")


def read_key(path: Path) -> Ed25519PrivateKey:
    """The key of a file that `write_key` wrote. Raises KeyUnusable."""
    try:
        return Ed25519PrivateKey.from_private_bytes(base64.b64decode(read_secret(path).strip(), validate=True))
    except ValueError as error:
        raise KeyUnusable(f"{path} is no key of a terminal: {error}") from error


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
