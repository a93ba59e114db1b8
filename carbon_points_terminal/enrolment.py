"""Who a terminal is: the folder with its settings, its key and its journal, and how it comes by them.

The key is on the disk before its public half is sent, so that a till that lost the answer can ask again as the same
one. `terminal.json` names the key in force, and replacing that one file is what makes a new key the terminal's.
"""

import hashlib
from datetime import datetime
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Struct

from carbon_points_terminal import signing
from carbon_points_terminal.files import KeyUnusable, read_secret, write_secret
from carbon_points_terminal.journal import Journal
from carbon_points_terminal.signing import read_key, write_key
from carbon_points_terminal.wire import Refused, Request, Silence, Transport, read

SETTINGS, JOURNAL, BEARER = "terminal.json", "journal.sqlite", "bearer.key"
ACTIVATION, ROTATION = "carbon-points-activation", "carbon-points-rotation"  # first line of what is proven


class Settings(Struct, frozen=True):
    """`key_id` is empty where the terminal has a bearer key instead of its own."""

    url: str
    merchant: str
    terminal: str
    key_id: str = ""


class Enrolled(Struct, frozen=True):
    """The answer to an activation and to a new key."""

    key_id: str
    merchant: str = ""
    terminal: str = ""
    server_time: datetime | None = None


class NotEnrolled(Exception):
    """The folder has no terminal in it, or one already. `code` is stable."""

    code = "not-enrolled"


class EnrolmentFailed(Exception):
    """The platform refused, or did not answer; then the same again goes on where it stopped."""

    code = "enrolment-failed"

    def __init__(self, said: Refused | Silence) -> None:
        refused = isinstance(said, Refused)
        super().__init__(
            f"{said.problem.code}: {said.problem.detail or said.problem.title}" if refused else said.reason
        )
        self.code = said.problem.code if refused else "unanswered"


class Folder:
    """A terminal's folder. Only its owner may look into it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def settings(self) -> Settings:
        try:
            return msgspec.json.decode((self.path / SETTINGS).read_bytes(), type=Settings)
        except FileNotFoundError:
            raise NotEnrolled(f"no terminal in {self.path}: activate it first") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise NotEnrolled(f"{self.path / SETTINGS} cannot be read: {error}") from error

    def caller(self, settings: Settings) -> Ed25519PrivateKey | str:
        """The key that this terminal signs with, or its bearer key."""
        if settings.key_id:
            return read_key(self._key(settings.key_id))
        return read_secret(self.path / BEARER).decode().strip()

    def journal(self, settings: Settings) -> Journal:
        return Journal.open(self.path / JOURNAL, settings.merchant, settings.terminal)

    # -- coming to be ------------------------------------------------------------------------------------------------

    def activate(self, url: str, code: str, transport: Transport, *, again: bool = False) -> Settings:
        """Become the terminal that a one-time code is for. After no answer, the same again. Raises EnrolmentFailed.

        `again`: the terminal of this folder anew, with its journal, where its key was lost or has ended.
        """
        self._must_be_free(again)
        key = self._pending(code)
        public = signing.public_text(key)
        body = {"activation_code": code, "public_key": public, "proof": signing.proof(key, ACTIVATION, code)}
        told = _told(transport, "/v1/terminals/activation", body, f"{code}\n{public}")
        settings = Settings(url, told.merchant, told.terminal, told.key_id)
        self._become(settings, key)
        return settings

    def use_bearer(self, settings: Settings, bearer: str, *, again: bool = False) -> None:
        """Be a terminal with a key that somebody else made, and handed over."""
        self._must_be_free(again)
        if not bearer.isascii() or not bearer.isprintable():
            raise KeyUnusable("a bearer key is printable ASCII")
        self._make()
        self._has_journal(settings)
        write_secret(self.path / BEARER, bearer.encode() + b"\n")
        write_secret(self.path / SETTINGS, msgspec.json.encode(settings) + b"\n")

    def rotate(self, transport: Transport) -> Settings:
        """Change to a new key, by the word of the old one. After no answer, the same again. Raises EnrolmentFailed."""
        before = self.settings()
        if not before.key_id:
            raise KeyUnusable("this terminal has a bearer key: the operator gives it a new one")
        key = self._pending(before.key_id)
        public = signing.public_text(key)
        body = {"public_key": public, "proof": signing.proof(key, ROTATION, before.key_id)}
        told = _told(transport, "/v1/terminals/keys", body, public)
        settings = msgspec.structs.replace(before, key_id=told.key_id)
        self._become(settings, key)
        return settings

    def _must_be_free(self, again: bool) -> None:
        if not again and (self.path / SETTINGS).exists():
            raise NotEnrolled(f"there is a terminal in {self.path} already: another folder, or the same one again?")

    def _make(self) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _pending(self, what: str) -> Ed25519PrivateKey:
        """The key that is to be: made once for an activation code, or in the place of a key, however often asked."""
        self._make()
        path = self.path / f"pending-{hashlib.sha256(what.encode()).hexdigest()[:12]}.key"
        if not path.exists():
            write_key(path, signing.new_key())
        return read_key(path)

    def _become(self, settings: Settings, key: Ed25519PrivateKey) -> None:
        self._has_journal(settings)
        write_key(self._key(settings.key_id), key)
        write_secret(self.path / SETTINGS, msgspec.json.encode(settings) + b"\n")
        for old in self.path.glob("*.key"):  # whatever is not in force is of no use any more
            if old != self._key(settings.key_id):
                old.unlink()

    def _has_journal(self, settings: Settings) -> None:
        """Before the settings: a terminal that has settings has a journal, or lost it. Raises JournalError."""
        path = self.path / JOURNAL
        if not (self.path / SETTINGS).exists() and not path.exists():
            Journal.create(path, settings.merchant, settings.terminal).close()
        self.journal(settings).close()

    def _key(self, key_id: str) -> Path:
        if not key_id.replace("_", "").isalnum():
            raise KeyUnusable(f"{key_id!r} is no name of a key")
        return self.path / f"{key_id}.key"


def _told(transport: Transport, path: str, body: dict[str, str], asked: str) -> Enrolled:
    key = hashlib.sha256(asked.encode()).hexdigest()[:26]  # the same question has the same key
    said = read(transport.send(Request("POST", path, key, msgspec.json.encode(body))), Enrolled)
    if not isinstance(said, Enrolled):
        raise EnrolmentFailed(said)
    return said
