"""What the directory knows of terminals: keys by which to check a signature, and activation codes.

Keys and suspensions are facts of the log; here is a copy of them that a request finds at once, made anew from the log
after every change. It is never ahead of the log where it lets somebody in, and may be where it keeps somebody out.
Codes are in no log. Of a code only a hash is kept; it dies of ten wrong tries.
"""

import base64
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from msgspec import Struct
from sqlalchemy import Boolean, Column, Engine, Integer, LargeBinary, MetaData, String, Table, select
from sqlalchemy.dialects import postgresql, sqlite

from carbon_points.domain.refusal import Refusal
from carbon_points.domain.terminal import Identity

CACHED = 100_000
FRESH_SECONDS = 5.0  # how long a key that was ended or suspended may still be taken by another process
CODE_LIFE = timedelta(hours=24)
WRONG_MOST = 10  # tries of a code
_LOCATOR_DIGITS, _DIGITS, _GROUP = 8, 32, 4

metadata = MetaData()
standing = Table(
    "terminals",
    metadata,
    Column("owner", String(129), primary_key=True),
    Column("suspended", Boolean, nullable=False),
    Column("changes", Integer, nullable=False),  # of the log: what is older never takes the place of what is newer
)
_keys = Table(
    "terminal_keys",
    metadata,
    Column("key_id", String(32), primary_key=True),
    Column("public_key", LargeBinary(32), nullable=False),
    Column("owner", String(129), nullable=False, index=True),
    Column("added_at", String(32), nullable=False),
    Column("ends_at", String(32)),
)
_codes = Table(
    "activation_codes",
    metadata,
    Column("owner", String(129), primary_key=True),
    Column("locator", String(8), nullable=False, unique=True),
    Column("hash", LargeBinary(32), nullable=False),
    Column("expires_at", String(32), nullable=False),
    Column("wrong", Integer, nullable=False),
    Column("public_key", String(44)),  # that it was used with
)


class TerminalKey(Struct, frozen=True):
    """`owner` is `merchant/terminal`."""

    key_id: str
    public_key: bytes
    owner: str
    added_at: datetime
    ends_at: datetime | None
    suspended: bool


class ActivationCodeUnknown(Refusal):
    code = "activation-code-unknown"
    title = "No such activation code"


class ActivationCodeExpired(Refusal):
    code = "activation-code-expired"
    title = "The activation code has run out: ask for another"


class ActivationCodeUsed(Refusal):
    code = "activation-code-used"
    title = "The activation code was used with another key"


class TooManyAttempts(Refusal):
    """Facts: `seconds` until it is worth trying again."""

    code = "too-many-attempts"
    title = "Too many wrong activation codes: wait"


class Terminals:
    """Thread-safe. `changed` is told when somebody may be suspended who was not."""

    def __init__(self, engine: Engine, changed: Callable[[], None]) -> None:
        self._engine, self._changed = engine, changed
        self._known: dict[str, tuple[TerminalKey | None, float]] = {}

    # -- keys --------------------------------------------------------------------------------------------------------

    def known_key(self, key_id: str) -> tuple[bool, TerminalKey | None]:
        """Whether the answer of `key` is known from a moment ago, and that answer: without asking the database."""
        kept = self._known.get(key_id)
        return (True, kept[0]) if kept and kept[1] > time.monotonic() else (False, None)

    def key(self, key_id: str) -> TerminalKey | None:
        """A key, whether or not it has ended, and whether its terminal is suspended now."""
        known, key = self.known_key(key_id)
        if known:
            return key
        with self._engine.connect() as connection:
            row = connection.execute(_WITH_STANDING.where(_keys.c.key_id == key_id)).first()
        key = _key(*row) if row else None
        if len(self._known) > CACHED:
            self._known.clear()
        self._known[key_id] = (key, time.monotonic() + FRESH_SECONDS)
        return key

    def keys(self, owner: str) -> list[TerminalKey]:
        """All keys that a terminal ever had, the oldest first."""
        asked = _WITH_STANDING.where(_keys.c.owner == owner).order_by(_keys.c.added_at, _keys.c.key_id)
        with self._engine.connect() as connection:
            return [_key(*row) for row in connection.execute(asked)]

    def refuse(self, owner: str) -> None:
        """Take nothing of a terminal from now on, until `copy` says otherwise."""
        insert = self._insert(standing).values(owner=owner, suspended=True, changes=0)
        with self._engine.begin() as connection:
            connection.execute(insert.on_conflict_do_update(index_elements=["owner"], set_={"suspended": True}))
        self._forget()

    def copy(self, owner: str, identity: Identity, now: datetime) -> None:
        """Make the copy what the log says. A key that the log no longer tells of has ended."""
        insert = self._insert(standing).values(owner=owner, suspended=identity.suspended, changes=identity.changes)
        newer = insert.on_conflict_do_update(
            index_elements=["owner"],
            set_={"suspended": insert.excluded.suspended, "changes": insert.excluded.changes},
            where=standing.c.changes <= insert.excluded.changes,
        ).returning(standing.c.owner)
        with self._engine.begin() as connection:
            if connection.execute(newer).first():
                living = (_keys.c.ends_at.is_(None)) | (_keys.c.ends_at > _text(now))
                gone = (_keys.c.owner == owner) & _keys.c.key_id.not_in(list(identity.keys)) & living
                connection.execute(_keys.update().where(gone).values(ends_at=_text(now)))
                for key_id, key in identity.keys.items():
                    ends_at = _text(key.ends_at) if key.ends_at else None
                    row = self._insert(_keys).values(
                        key_id=key_id,
                        public_key=base64.b64decode(key.public_key),
                        owner=owner,
                        added_at=_text(key.added_at),
                        ends_at=ends_at,
                    )
                    connection.execute(row.on_conflict_do_update(index_elements=["key_id"], set_={"ends_at": ends_at}))
        self._forget()

    def _forget(self) -> None:
        self._known.clear()
        self._changed()

    def _insert(self, table: Table) -> postgresql.Insert | sqlite.Insert:
        on_server = self._engine.dialect.name == "postgresql"
        return postgresql.insert(table) if on_server else sqlite.insert(table)

    # -- activation codes --------------------------------------------------------------------------------------------

    def new_code(self, owner: str, now: datetime) -> tuple[str, datetime]:
        """A code that activates a terminal once, and until when. The one before, if there is one, no longer does.

        Its first eight digits find it, the other 24 are its secret: 80 bits.
        """
        digits = "".join(str(secrets.randbelow(10)) for _ in range(_DIGITS))
        expires_at = now + CODE_LIFE
        told = {
            "locator": digits[:_LOCATOR_DIGITS],
            "hash": _hash(digits),
            "expires_at": _text(expires_at),
            "wrong": 0,
            "public_key": None,
        }
        insert = self._insert(_codes).values(owner=owner, **told)
        with self._engine.begin() as connection:
            # Another terminal's code of the same first digits, one in a hundred million, has had its time.
            connection.execute(_codes.delete().where(_codes.c.locator == told["locator"]))
            connection.execute(insert.on_conflict_do_update(index_elements=["owner"], set_=told))
        return "-".join(digits[n : n + _GROUP] for n in range(0, _DIGITS, _GROUP)), expires_at

    def use_code(self, code: str, public_key: str, now: datetime) -> str:
        """The owner whom a code activates: from the first time on, with that key only.

        Refusals: ActivationCodeUnknown, ActivationCodeUsed, ActivationCodeExpired.
        """
        digits = re.sub("[ -]", "", code)
        mine = _codes.c.locator == digits[:_LOCATOR_DIGITS]
        right = mine & (_codes.c.hash == _hash(digits)) & (_codes.c.wrong < WRONG_MOST)
        free = right & _codes.c.public_key.is_(None) & (_codes.c.expires_at > _text(now))
        with self._engine.begin() as connection:
            connection.execute(_codes.update().where(free).values(public_key=public_key))
            row = connection.execute(select(_codes).where(mine)).mappings().first()
            wrong = row is not None and not hmac.compare_digest(row["hash"], _hash(digits))
            if wrong:
                connection.execute(_codes.update().where(mine).values(wrong=_codes.c.wrong + 1))
        if row is None or wrong or row["wrong"] >= WRONG_MOST:
            raise ActivationCodeUnknown
        if row["public_key"] is None:
            raise ActivationCodeExpired(expired_at=row["expires_at"])
        if row["public_key"] != public_key:
            raise ActivationCodeUsed
        return row["owner"]


_WITH_STANDING = select(
    _keys.c.key_id, _keys.c.public_key, _keys.c.owner, _keys.c.added_at, _keys.c.ends_at, standing.c.suspended
).outerjoin_from(_keys, standing, _keys.c.owner == standing.c.owner)


def _key(
    key_id: str, public_key: bytes, owner: str, added_at: str, ends_at: str | None, suspended: bool | None
) -> TerminalKey:
    end = datetime.fromisoformat(ends_at) if ends_at else None
    return TerminalKey(key_id, bytes(public_key), owner, datetime.fromisoformat(added_at), end, bool(suspended))


def _text(at: datetime) -> str:
    """In one form, so that its order is that of time."""
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def _hash(digits: str) -> bytes:
    return hashlib.sha256(digits.encode()).digest()
