"""Allowances: what a resident's phone fetches while it is online, and shows to a terminal that is not. A part of the
directory: a table beside the payment secrets, and the key that signs.

An allowance is a text that this installation signs (Ed25519): so many points, at one merchant's terminals, for a day,
once. A terminal checks it with the public key that it fetched before. Nothing in it is of the resident: its id, another
one each time, leads to them here alone, and to nobody once they are forgotten. The private key is made once and sealed
(AES-GCM) under a key that derives from the subject key; where it cannot be unsealed, another one takes its place.
"""

import base64
import hashlib
import logging
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import msgspec
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from msgspec import Struct
from sqlalchemy import BigInteger, Column, Connection, Engine, Integer, LargeBinary, MetaData, String, Table, select
from sqlalchemy.dialects import postgresql, sqlite

from carbon_points.domain.refusal import Conflict, Refusal

PREFIX = "cpa1"  # of the form, and its version
LIFE = timedelta(hours=24)
KEPT = timedelta(days=3)  # after its end, as long as what it paid may still be sent
TOKEN_MOST = 1000  # characters
_NONCE_BYTES = 12

log = logging.getLogger(__name__)
metadata = MetaData()
_keys = Table(
    "allowance_keys",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),  # the last one signs
    Column("key_id", String(32), nullable=False, unique=True),
    Column("public_key", LargeBinary(32), nullable=False),
    Column("sealed", LargeBinary(64), nullable=False),
    Column("created_at", String(32), nullable=False),
)
# Times in seconds since 1970.
_allowances = Table(
    "allowances",
    metadata,
    Column("allowance_id", String(32), primary_key=True),
    Column("resident", String(32), nullable=False, index=True),
    Column("merchant", String(64), nullable=False),
    Column("points", Integer, nullable=False),
    Column("issued_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
)


class Allowance(Struct, frozen=True):
    """What a terminal reads. Its id stands for the resident."""

    id: str
    merchant: str
    points: int
    issued_at: int
    expires_at: int


class Granted(Struct, frozen=True):
    allowance: Allowance
    token: str
    again: bool


class AllowanceKey(Struct, frozen=True):
    key_id: str
    public_key: bytes


class AllowanceInvalid(Refusal):
    code = "allowance-invalid"
    title = "That is no allowance that this installation signed"


class AllowanceUnknown(Refusal):
    code = "allowance-unknown"
    title = "Nobody is known for this allowance: its resident was forgotten, or it ended long ago"


class AllowanceElsewhere(Refusal):
    code = "allowance-elsewhere"
    title = "The allowance is for another merchant"


class AllowanceExpired(Refusal):
    code = "allowance-expired"
    title = "The payment was taken before the allowance began, or after it ended"


class AllowanceExceeded(Refusal):
    code = "allowance-exceeded"
    title = "More points than the allowance is for"


class Allowances:
    """Thread-safe. The directory makes the tables, and closes the engine."""

    def __init__(self, engine: Engine, subject_key: bytes) -> None:
        self._engine = engine
        self._key = AESGCM(HKDF(SHA256(), 32, salt=None, info=b"carbon-points allowance keys").derive(subject_key))
        self._signer: tuple[str, Ed25519PrivateKey] | None = None
        self._public: dict[str, Ed25519PublicKey] = {}

    # -- granting ----------------------------------------------------------------------------------------------------

    def find(self, allowance_id: str) -> tuple[str, Allowance] | None:
        """Whose an allowance is, and what it says."""
        with self._engine.connect() as connection:
            row = connection.execute(_ROWS.where(_allowances.c.allowance_id == allowance_id)).first()
        return (row[0], Allowance(*row[1:])) if row else None

    def grant(self, allowance_id: str, resident: str, merchant: str, points: int, now: datetime) -> Granted:
        """A new allowance, or the one of that id again. Raises Conflict where that says something else."""
        issued, ended = int(now.timestamp()), int((now - KEPT).timestamp())
        row = {"allowance_id": allowance_id, "resident": resident, "merchant": merchant, "points": points}
        row |= {"issued_at": issued, "expires_at": issued + int(LIFE.total_seconds())}
        with self._engine.begin() as connection:
            theirs = _allowances.c.resident == resident
            connection.execute(_allowances.delete().where(theirs & (_allowances.c.expires_at < ended)))
            made = _put(connection, _allowances, row)
        found = self.find(allowance_id)
        assert found is not None, "what was granted a moment ago is there"
        return self.told(found, resident, merchant, points, again=not made)

    def told(self, found: tuple[str, Allowance], resident: str, merchant: str, points: int, *, again: bool) -> Granted:
        """The same text for the same allowance. Raises Conflict where another one was asked for."""
        whose, allowance = found
        said = {"resident": (whose, resident), "merchant": (allowance.merchant, merchant)}
        said |= {"points": (allowance.points, points)}
        if differing := [name for name, (there, here) in said.items() if there != here]:
            raise Conflict(fields=differing)
        return Granted(allowance, self._signed(allowance), again)

    def outstanding(self, resident: str, now: datetime) -> list[Allowance]:
        """Those of a resident that have not ended, used or not."""
        open_ = (_allowances.c.resident == resident) & (_allowances.c.expires_at > int(now.timestamp()))
        with self._engine.connect() as connection:
            return [Allowance(*row[1:]) for row in connection.execute(_ROWS.where(open_))]

    def erase(self, connection: Connection, resident: str) -> None:
        """Within a transaction of the directory."""
        connection.execute(_allowances.delete().where(_allowances.c.resident == resident))

    # -- reading -----------------------------------------------------------------------------------------------------

    def read(self, token: str) -> Allowance:
        """What an allowance says. Raises AllowanceInvalid."""
        signed, _, signature = token.rpartition(".")
        parts = signed.split(".")
        if len(token) > TOKEN_MOST or len(parts) != 3 or parts[0] != PREFIX or not token.isascii():  # noqa: PLR2004
            raise AllowanceInvalid
        key = self._public_key(parts[1])
        if key is None:
            raise AllowanceInvalid
        try:
            key.verify(_bytes(signature), signed.encode())
            return msgspec.json.decode(_bytes(parts[2]), type=Allowance)
        except (InvalidSignature, ValueError, msgspec.DecodeError):
            raise AllowanceInvalid from None

    def public_keys(self) -> list[AllowanceKey]:
        """Every key by which an allowance may have been signed, the newest first."""
        self._signing()
        return self._listed()

    def _listed(self) -> list[AllowanceKey]:
        columns = select(_keys.c.key_id, _keys.c.public_key).order_by(_keys.c.number.desc())
        with self._engine.connect() as connection:
            return [AllowanceKey(key_id, bytes(public)) for key_id, public in connection.execute(columns)]

    def _public_key(self, key_id: str) -> Ed25519PublicKey | None:
        if key_id not in self._public:
            found = {k.key_id: Ed25519PublicKey.from_public_bytes(k.public_key) for k in self._listed()}
            self._public = found
        return self._public.get(key_id)

    # -- signing -----------------------------------------------------------------------------------------------------

    def _signed(self, allowance: Allowance) -> str:
        key_id, key = self._signing()
        signed = f"{PREFIX}.{key_id}.{_text(msgspec.json.encode(allowance))}"
        return f"{signed}.{_text(key.sign(signed.encode()))}"

    def _signing(self) -> tuple[str, Ed25519PrivateKey]:
        """The key that signs; made where there is none, or none that can be unsealed."""
        last = select(_keys.c.number, _keys.c.key_id, _keys.c.sealed).order_by(_keys.c.number.desc()).limit(1)
        while self._signer is None:
            with self._engine.connect() as connection:
                row = connection.execute(last).first()
            if row and (key := self._unsealed(row.key_id, bytes(row.sealed))):
                self._signer = row.key_id, key
            else:
                self._make(row.number + 1 if row else 1)
        return self._signer

    def _make(self, number: int) -> None:
        """A key of that number, unless another process was first."""
        key = Ed25519PrivateKey.generate()
        public = key.public_key().public_bytes_raw()
        key_id = f"alk_{hashlib.sha256(public).hexdigest()[:16]}"
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = nonce + self._key.encrypt(nonce, key.private_bytes_raw(), key_id.encode())
        row = {"number": number, "key_id": key_id, "public_key": public, "sealed": sealed}
        with self._engine.begin() as connection:
            _put(connection, _keys, row | {"created_at": datetime.now(UTC).isoformat(timespec="seconds")})

    def _unsealed(self, key_id: str, sealed: bytes) -> Ed25519PrivateKey | None:
        try:
            secret = self._key.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], key_id.encode())
        except InvalidTag:
            log.exception("the allowance key %s is sealed under another subject key, or was altered", key_id)
            return None
        return Ed25519PrivateKey.from_private_bytes(secret)


_ROWS = select(
    _allowances.c.resident,
    _allowances.c.allowance_id,
    _allowances.c.merchant,
    _allowances.c.points,
    _allowances.c.issued_at,
    _allowances.c.expires_at,
)


def _put(connection: Connection, table: Table, row: Mapping[str, object]) -> bool:
    """Whether the row is new: one that is there stays as it is."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    putting = insert(table).values(row).on_conflict_do_nothing().returning(*table.primary_key.columns)
    return connection.execute(putting).first() is not None


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
