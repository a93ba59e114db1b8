"""The directory: what must not be in the log. Who a subject is, who may call, and whose a payment code is.

A binding says which resident a source's name for a person (a subject: a card number, a phone) means. Subjects are kept
as keyed hashes only; erasing a resident destroys the bindings, and the log then holds figures about nobody. API keys
are kept as SHA-256 of 32 random bytes; secrets of payment codes are sealed (payers.py), and so is
the key that signs allowances (allowances.py). Unlike the read models, nothing here can be rebuilt: back it up.
"""

import base64
import hashlib
import hmac
import os
import re
import secrets
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from msgspec import Struct
from sqlalchemy import (
    Column,
    Connection,
    LargeBinary,
    MetaData,
    String,
    Table,
    bindparam,
    create_engine,
    event,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.schema import CreateSchema

from carbon_points.directory import allowances, payers, terminals
from carbon_points.directory.allowances import Allowances
from carbon_points.directory.payers import Payers
from carbon_points.domain.refusal import Refusal
from carbon_points.journal.journal import Mode
from carbon_points.projections.read_model import write_ahead
from carbon_points.sandbox import clock as sandbox_clock

Role = Literal["source", "app", "terminal", "operator", "buyer", "auditor"]
ROLES: tuple[Role, ...] = get_args(Role)
KEY_PREFIX = {"live": "cp_live_", "test": "cp_test_"}  # of a key's secret, by the installation's mode
KEY_FILE = "subject.key"
CACHED = 100_000
FRESH_SECONDS = 5.0  # how long a revoked key may still be taken by another process
BINDING_FRESH_SECONDS = 60.0  # how long an erased binding may; the process that erased it knows at once
INSUFFICIENT_PRIVILEGE = "42501"  # what PostgreSQL says

_OWNER = re.compile(r"[^\x00-\x1f\x7f/]{1,64}")
_TERMINAL = re.compile(f"{_OWNER.pattern}/{_OWNER.pattern}")
_metadata = MetaData()
_bindings = Table(
    "bindings",
    _metadata,
    Column("source", String(64), primary_key=True),
    Column("subject", LargeBinary(16), primary_key=True),
    Column("resident", String(32), nullable=False, index=True),
)
_keys = Table(
    "keys",
    _metadata,
    Column("key_id", String(32), primary_key=True),
    Column("hash", LargeBinary(32), nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    Column("owner", String(129), nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("revoked_at", String(32)),
)
_app_orders = Table(
    "app_orders",
    _metadata,
    Column("redemption_id", String(32), primary_key=True),
    Column("merchant", String(64), nullable=False),
)
_PARTS = (_metadata, payers.metadata, terminals.metadata, allowances.metadata)


class Caller(Struct, frozen=True):
    """Who a key belongs to. `owner` is the source's, merchant's or buyer's id; a terminal's is `merchant/terminal`."""

    key_id: str
    role: Role
    owner: str
    suspended: bool = False  # a terminal

    @property
    def scope(self) -> str:
        """What an Idempotency-Key is unique within: a rotated key keeps it."""
        return f"{self.role}:{self.owner}"


class Key(Struct, frozen=True):
    key_id: str
    role: Role
    owner: str
    created_at: str
    revoked_at: str | None = None


class OwnerInvalid(ValueError):
    """A name that nobody can have."""


class SubjectBound(Refusal):
    code = "subject-bound"
    title = "The subject is bound to another resident"


class DirectoryIncomplete(ValueError):
    """A table is missing, and whoever asks may not create it."""


class Directory:
    """Thread-safe. `subject_key` is 32 bytes that never stand beside the data in a backup."""

    def __init__(self, url: str, subject_key: bytes, *, mode: Mode = "live") -> None:
        self._subject_key, self._mode = subject_key, mode
        self._other_prefix = KEY_PREFIX["live" if mode == "test" else "test"]
        # What is asked for tells a handle, and what is stored more: errors do not repeat it.
        self._engine = create_engine(url, pool_pre_ping=url.startswith("postgresql"), hide_parameters=True)
        if self._engine.dialect.name == "postgresql":
            self._engine = self._engine.execution_options(schema_translate_map={None: "directory"})
        else:
            event.listen(self._engine, "connect", _prepare_sqlite)
        self.made = self._create()
        self._residents: OrderedDict[tuple[str, bytes], tuple[str, float]] = OrderedDict()
        self._callers: dict[bytes, tuple[Caller | None, float]] = {}
        self._lock = threading.Lock()
        self.payers = Payers(self._engine, subject_key)
        self.allowances = Allowances(self._engine, subject_key)
        self.terminals = terminals.Terminals(self._engine, self._callers.clear)
        self.moves = sandbox_clock.Moves(self._engine) if mode == "test" else None

    def _create(self) -> bool:
        """Whether something was missing: a role without rights to create is enough where nothing is."""
        with self._engine.connect() as connection:
            schema = "directory" if connection.dialect.name == "postgresql" else None
            tables = [table for made in self._parts() for table in made.sorted_tables]
            if all(inspect(connection).has_table(table.name, schema=schema) for table in tables):
                return False
        try:
            with self._engine.begin() as connection:
                if schema:
                    connection.execute(_ONE_CREATES)
                    if not inspect(connection).has_schema(schema):
                        connection.execute(CreateSchema(schema))
                for made in self._parts():
                    made.create_all(connection)
        except ProgrammingError as error:
            if getattr(error.orig, "sqlstate", "") != INSUFFICIENT_PRIVILEGE:
                raise
            self._engine.dispose()
            raise DirectoryIncomplete(
                "the directory is not all there for this role, which may not create it: `carbon-points init` as the "
                "owner does, and `--print-grants` tells the role's rights"
            ) from error
        return True

    def _parts(self) -> tuple[MetaData, ...]:
        """What there are tables for. A live installation has none for what only a sandbox does."""
        return (*_PARTS, sandbox_clock.metadata) if self._mode == "test" else _PARTS

    # -- bindings ----------------------------------------------------------------------------------------------------

    def resident(self, source: str, subject: str) -> str:
        """The resident whom a source's subject means; a new pseudonym where there is none."""
        return self.residents(source, [subject])[subject]

    def known(self, source: str, subject: str) -> str | None:
        """The resident whom a subject means, if that was looked up a moment ago: without asking the database."""
        kept = self._residents.get((source, self._hash(source, subject)))
        return kept[0] if kept and kept[1] > time.monotonic() else None

    def residents(self, source: str, subjects: Sequence[str], *, create: bool = True) -> dict[str, str]:
        """The same for many at once, in one transaction. Without `create`, unknown subjects are left out."""
        hashes = {subject: self._hash(source, subject) for subject in subjects}
        known = self._cached(source, hashes.values())
        if missing := list({h for h in hashes.values() if h not in known}):
            with self._engine.begin() as connection:
                found = _found(connection, source, missing)
                if create and (new := sorted(h for h in missing if h not in found)):
                    found |= _bound(connection, source, {h: new_resident() for h in new})
            self._remember(source, found)
            known |= found
        return {subject: known[h] for subject, h in hashes.items() if h in known}

    def bind(self, source: str, subjects: Sequence[str], resident: str) -> None:
        """Bind subjects to a resident who is known already, all or none. Raises SubjectBound."""
        hashes = [self._hash(source, subject) for subject in subjects]
        with self._engine.begin() as connection:
            _insert_new(connection, _bindings, [{"source": source, "subject": h, "resident": resident} for h in hashes])
            if set(_found(connection, source, hashes).values()) != {resident}:
                raise SubjectBound(source=source)

    def erase(self, resident: str) -> int:
        """Destroy every binding of a resident that a name or a call could lead by; how many there were.

        And the payment secret and allowances: a phone leads to nobody any more.
        """
        with self._engine.begin() as connection:
            gone = connection.execute(_bindings.delete().where(_bindings.c.resident == resident)).rowcount
            self.payers.erase(connection, resident)
            self.allowances.erase(connection, resident)
        with self._lock:
            self._residents.clear()
        self.payers.forget()
        return gone

    def known_still(self, residents: Sequence[str]) -> set[str]:
        """Those of them whom a name or a call still leads to: not who was erased."""
        theirs = _bindings.c.resident.in_(residents)
        with self._engine.connect() as connection:
            return set(connection.scalars(select(_bindings.c.resident).where(theirs).distinct()))

    def app_order_at(self, redemption_id: str, merchant: str) -> str:
        """At which merchant an app's key is used, for ever: at this one, unless it was used before.

        An app may name any merchant, and their orders lie in partitions that know nothing of each other.
        """
        of_it = select(_app_orders.c.merchant).where(_app_orders.c.redemption_id == redemption_id)
        with self._engine.begin() as connection:
            known = connection.scalar(of_it)
            if known is None:
                _insert_new(connection, _app_orders, [{"redemption_id": redemption_id, "merchant": merchant}])
                known = connection.scalar(of_it)
        assert known is not None
        return known

    def alias(self, resident: str, within: str) -> str:
        """What to call a resident before others: it tells nothing, and is another one within something else."""
        told = hmac.digest(self._subject_key, f"alias\0{within}\0{resident}".encode(), hashlib.sha256)
        return base64.b32encode(told).decode().lower()[:10]

    def _hash(self, source: str, subject: str) -> bytes:
        told = f"{len(source)}:{source}{subject}".encode()
        return hmac.digest(self._subject_key, told, hashlib.sha256)[:16]

    def _cached(self, source: str, hashes: Iterable[bytes]) -> dict[bytes, str]:
        now, found = time.monotonic(), dict[bytes, str]()
        with self._lock:
            for hashed in hashes:
                kept = self._residents.get((source, hashed))
                if kept and kept[1] > now:
                    found[hashed] = kept[0]
        return found

    def _remember(self, source: str, found: dict[bytes, str]) -> None:
        until = time.monotonic() + BINDING_FRESH_SECONDS
        with self._lock:
            for hashed, resident in found.items():
                self._residents[(source, hashed)] = (resident, until)
            while len(self._residents) > CACHED:
                self._residents.popitem(last=False)

    # -- keys --------------------------------------------------------------------------------------------------------

    def issue_key(self, role: Role, owner: str) -> tuple[Key, str]:
        """A new key and its secret, which is told once and not kept. Raises OwnerInvalid."""
        if not (_TERMINAL if role == "terminal" else _OWNER).fullmatch(owner):
            raise OwnerInvalid("a key belongs to a name of up to 64 characters, a terminal's to merchant/terminal")
        key = Key("key_" + _random(10), role, owner, datetime.now(UTC).isoformat(timespec="seconds"))
        secret = f"{KEY_PREFIX[self._mode]}{secrets.token_urlsafe(32)}"
        with self._engine.begin() as connection:
            connection.execute(
                _keys.insert().values(
                    key_id=key.key_id, hash=_digest(secret), role=role, owner=owner, created_at=key.created_at
                )
            )
        return key, secret

    def revoke_key(self, key_id: str) -> bool:
        """Whether there was such a key in force."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._engine.begin() as connection:
            in_force = (_keys.c.key_id == key_id) & _keys.c.revoked_at.is_(None)
            revoked = connection.execute(_keys.update().where(in_force).values(revoked_at=now)).rowcount
        self._callers.clear()
        return bool(revoked)

    def keys(self) -> list[Key]:
        columns = (_keys.c.key_id, _keys.c.role, _keys.c.owner, _keys.c.created_at, _keys.c.revoked_at)
        with self._engine.connect() as connection:
            return [Key(*row) for row in connection.execute(select(*columns).order_by(_keys.c.created_at))]

    def of_other_mode(self, secret: str) -> bool:
        """Whether a key was made by a sandbox and shown to a live installation, or the other way."""
        return secret.startswith(self._other_prefix)

    def known_caller(self, secret: str) -> tuple[bool, Caller | None]:
        """Whether the answer of `caller` is known from a moment ago, and that answer: without asking the database."""
        kept = self._callers.get(_digest(secret))
        return (True, kept[0]) if kept and kept[1] > time.monotonic() else (False, None)

    def caller(self, secret: str) -> Caller | None:
        """Who a secret belongs to, or None for a wrong or revoked one."""
        known, caller = self.known_caller(secret)
        if known:
            return caller
        hashed = _digest(secret)
        in_force = (_keys.c.hash == hashed) & _keys.c.revoked_at.is_(None)
        with self._engine.connect() as connection:
            row = connection.execute(_WHO.where(in_force)).first()
        caller = Caller(*row[:3], suspended=bool(row[3])) if row else None
        if len(self._callers) > CACHED:
            self._callers.clear()
        self._callers[hashed] = (caller, time.monotonic() + FRESH_SECONDS)
        return caller

    def ready(self) -> None:
        """Raises what the database raises."""
        with self._engine.connect() as connection:
            connection.execute(select(1))

    def close(self) -> None:
        self._engine.dispose()


def new_resident() -> str:
    """A random pseudonym: 100 bits, nothing of the person in it."""
    return "res_" + _random(20)


def subject_key(hexadecimal: str, folder: Path) -> bytes:
    """The key that hashes subjects: as told, or from a file of the data folder that is made once."""
    if hexadecimal:
        return bytes.fromhex(hexadecimal)
    file = folder / KEY_FILE
    folder.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return bytes.fromhex(file.read_text().strip())
    with os.fdopen(descriptor, "w") as made:
        made.write(secrets.token_hex(32))
        made.flush()
        os.fsync(made.fileno())
    return bytes.fromhex(file.read_text().strip())


def _random(length: int) -> str:
    return base64.b32encode(secrets.token_bytes(length)).decode().lower()[:length]


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


# A terminal that is suspended is known by its name, whatever it calls with.
_WHO = select(_keys.c.key_id, _keys.c.role, _keys.c.owner, terminals.standing.c.suspended).outerjoin_from(
    _keys, terminals.standing, (_keys.c.owner == terminals.standing.c.owner) & (_keys.c.role == "terminal")
)
_ONE_CREATES = select(func.pg_advisory_xact_lock(0x63_70_64_69))
# On PostgreSQL arrays carry thousands of rows for the price of one, which SQLAlchemy's own ways do not.
_FIND = text("SELECT subject, resident FROM directory.bindings WHERE source = :source AND subject = ANY(:subjects)")
_BIND = text(
    "INSERT INTO directory.bindings (source, subject, resident) "
    "SELECT :source, u.* FROM unnest(CAST(:subjects AS bytea[]), CAST(:residents AS text[])) AS u "
    "ON CONFLICT DO NOTHING RETURNING subject, resident"
)
_OF_SUBJECTS = select(_bindings.c.subject, _bindings.c.resident).where(
    _bindings.c.source == bindparam("source"), _bindings.c.subject.in_(bindparam("subjects", expanding=True))
)


def _found(connection: Connection, source: str, hashes: Sequence[bytes]) -> dict[bytes, str]:
    found: dict[bytes, str] = {}
    if connection.dialect.name == "postgresql":
        rows = connection.execute(_FIND, {"source": source, "subjects": list(hashes)}).all()
        return dict(map(tuple, rows))
    for start in range(0, len(hashes), 500):
        some = hashes[start : start + 500]
        rows = connection.execute(_OF_SUBJECTS, {"source": source, "subjects": some}).all()
        found.update((bytes(subject), resident) for subject, resident in rows)
    return found


def _bound(connection: Connection, source: str, made: dict[bytes, str]) -> dict[bytes, str]:
    """Whom new subjects mean now: whoever was made for them, unless another process was first."""
    if connection.dialect.name == "postgresql":
        told = {"source": source, "subjects": list(made), "residents": list(made.values())}
        bound: dict[bytes, str] = dict(map(tuple, connection.execute(_BIND, told).all()))
    else:
        _insert_new(connection, _bindings, [{"source": source, "subject": h, "resident": r} for h, r in made.items()])
        bound = {}
    others = [h for h in made if h not in bound]
    return bound | _found(connection, source, others) if others else bound


def _insert_new(connection: Connection, table: Table, rows: Sequence[dict[str, object]]) -> None:
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    connection.execute(insert(table).on_conflict_do_nothing(), rows)


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    write_ahead(connection)
    for pragma in ("synchronous=FULL", "busy_timeout=20000"):
        connection.execute(f"PRAGMA {pragma}")
