"""Payers: whose a payment code is. A part of the directory: a table beside the bindings, and how it is asked.

A resident has one secret, known to one phone; a new one takes its place. It is sealed (AES-GCM, for its own row) under
a key that derives from the subject key. What the log is told of a code is the secret's `series` and the step, never
its digits: the handle, which every till sees, leads nobody to a resident in the log.

Guesses: three steps of a million passwords are good at any moment. After ten wrong codes of a handle none of it is
looked at until ten minutes after the first, the right one neither; and none at a terminal after thirty wrong ones
there, whosever they are. They are counted in memory, so that guesses sent at once are no more than guesses sent one by
one, and in a row, for the other processes and the next start.
"""

import hmac
import logging
import secrets
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from msgspec import Struct
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Engine,
    Insert,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    bindparam,
    case,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.sql.dml import ReturningInsert

from carbon_points import codes
from carbon_points.codes import Code, CodeExpired, CodeUnknown
from carbon_points.domain.refusal import Refusal

CACHED = 100_000
FRESH_SECONDS = 5.0  # how long another process may take a replaced secret's codes; the one that replaced it knows
WRONG_MOST, WRONG_SECONDS = 10, 600  # wrong codes of one handle, from the first of them on
TILL_WRONG_MOST = 30  # at one terminal, in the same time: an honest queue shows a few
HANDLE_TRIES = 20  # until a random one is nobody's
_NONCE_BYTES, _ASKED_AT_ONCE = 12, 500

log = logging.getLogger(__name__)
metadata = MetaData()
# `wrong` codes came since `wrong_since`, in seconds since 1970.
PAYERS = Table(
    "payers",
    metadata,
    Column("resident", String(32), primary_key=True),
    Column("handle", String(codes.HANDLE_DIGITS), nullable=False, unique=True),
    Column("series", String(16), nullable=False),
    Column("sealed", LargeBinary(64), nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("replaced_at", String(32)),
    Column("wrong", Integer, nullable=False, default=0),
    Column("wrong_since", BigInteger, nullable=False, default=0),
)
# The same of terminals at which one was shown.
TILLS = Table(
    "wrong_codes",
    metadata,
    Column("till", String(129), primary_key=True),
    Column("wrong", Integer, nullable=False),
    Column("wrong_since", BigInteger, nullable=False),
)
Shown = tuple[str, str | None]  # a code, and at which terminal, where what is wrong there is counted


class Throttled(Refusal):
    """Facts: `seconds` until it is worth trying again; the `terminal`, where it is that one that has to wait."""

    code = "rate-limited"
    title = "Too many tries with payment codes: wait"


class Payer(Struct, frozen=True):
    """Whose a payment code is, and the text that is claimed for it in the log: a code is used once."""

    resident: str
    step: str


class PaymentSecret(Struct, frozen=True):
    """What a phone needs to make codes: told once."""

    handle: str
    secret: bytes


class _Tries(Struct):
    """Wrong codes since the first of them, of at most so many."""

    most: int
    wrong: int = 0
    since: int = 0

    def throttled(self, now: datetime) -> int:
        """For how many seconds no code is looked at."""
        return self._left(now) if self.wrong >= self.most else 0

    def one_more(self, now: datetime) -> None:
        """Count a wrong code in memory, as it is counted in the row."""
        self.wrong, since = (self.wrong + 1, self.since) if self._left(now) else (1, int(now.timestamp()))
        self.since = since

    def learn(self, wrong: int, since: int) -> None:
        """Take in what was counted elsewhere."""
        if wrong > self.wrong:
            self.wrong, self.since = wrong, since

    def _left(self, now: datetime) -> int:
        """Seconds that are left of the ten minutes. A clock that was far ahead, and is put right, ends them."""
        since_then = int(now.timestamp()) - self.since
        return WRONG_SECONDS - since_then if abs(since_then) < WRONG_SECONDS else 0


class _Secret(Struct):
    """A row, unsealed, for as long as it is fresh."""

    resident: str
    handle: str
    series: str
    secret: bytes
    tries: _Tries
    until: float

    def payer(self, code: Code, now: datetime) -> Payer:
        """Raises CodeExpired, CodeUnknown."""
        return self.in_step(codes.step_of(code, self.secret, codes.step_at(now)))

    def in_step(self, step: int) -> Payer:
        return Payer(self.resident, f"{self.series}:{step}")


class Payers:
    """Thread-safe. The directory makes the table, and closes the engine."""

    def __init__(self, engine: Engine, subject_key: bytes) -> None:
        self._engine = engine
        self._key = AESGCM(HKDF(SHA256(), 32, salt=None, info=b"carbon-points payment secrets").derive(subject_key))
        self._known: OrderedDict[str, _Secret] = OrderedDict()
        self._once: OrderedDict[Code, None] = OrderedDict()  # good once, however long ago
        self._tills: OrderedDict[str, _Tries] = OrderedDict()  # that have shown a wrong code
        self._unsure: dict[str | None, set[Shown]] = {}  # by handle and by terminal, what is to be judged
        self._lock = threading.Lock()

    # -- secrets -----------------------------------------------------------------------------------------------------

    def issue(self, resident: str) -> PaymentSecret:
        """A new secret, in the place of the one before. What is returned is kept nowhere."""
        return self._make(resident, replacing=True)

    def code(self, resident: str, step: int) -> tuple[str, Payer]:
        """A resident's code of a step. Where there is no secret, one is made that no phone has."""
        for replacing in (False, True, True):  # the second time, what is there cannot be unsealed
            if kept := self._of_resident(resident):
                return codes.made(kept.handle, kept.secret, step), kept.in_step(step)
            self._make(resident, replacing=replacing)
        raise AssertionError("a secret that was made a moment ago is not there")

    def erase(self, connection: Connection, resident: str) -> None:
        """Within a transaction of the directory, which says `forget` when it is done."""
        connection.execute(PAYERS.delete().where(PAYERS.c.resident == resident))

    def forget(self) -> None:
        """Ask the database about everybody again."""
        with self._lock:
            self._known.clear()

    def _make(self, resident: str, *, replacing: bool) -> PaymentSecret:
        secret = secrets.token_bytes(codes.SECRET_BYTES)
        row = {"resident": resident, "created_at": datetime.now(UTC).isoformat(timespec="seconds")}
        for _ in range(HANDLE_TRIES):
            handle = f"{secrets.randbelow(10**codes.HANDLE_DIGITS):0{codes.HANDLE_DIGITS}}"
            names = {"handle": handle, "series": secrets.token_hex(8)}
            sealed = self._sealed(resident, handle, secret)
            try:
                with self._engine.begin() as connection:
                    connection.execute(_put(connection, replacing), row | names | {"sealed": sealed})
            except IntegrityError:  # the handle is somebody's
                continue
            self.forget()
            return PaymentSecret(handle, secret)
        raise AssertionError("so many handles in a row are somebody's")

    def _sealed(self, resident: str, handle: str, secret: bytes) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._key.encrypt(nonce, secret, f"{resident}\0{handle}".encode())

    def _unsealed(
        self, resident: str, handle: str, series: str, sealed: bytes, wrong: int, since: int
    ) -> _Secret | None:
        nonce, secret = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            secret = self._key.decrypt(nonce, secret, f"{resident}\0{handle}".encode())
        except InvalidTag:
            log.exception("the payment secret of %s is sealed under another subject key, or was altered", resident)
            return None
        tries = _Tries(WRONG_MOST, wrong, since)
        return _Secret(resident, handle, series, secret, tries, time.monotonic() + FRESH_SECONDS)

    # -- codes -------------------------------------------------------------------------------------------------------

    def payer(self, code: str, now: datetime, till: str | None = None) -> Payer:
        """Whose a code is. Refusals, in order: CodeMalformed, Throttled, CodeExpired, CodeUnknown."""
        found = self.payers([(code, till)], now)[code, till]
        if isinstance(found, Refusal):
            raise found
        return found

    def known(self, code: str, now: datetime, till: str | None = None) -> Payer | None:
        """Whose a right code is, if its handle was looked up a moment ago: without asking the database.

        Raises CodeMalformed. Whatever else it is, is for `payers` to find; until it has, what else comes of that handle
        or terminal is, too: a right code never overtakes wrong ones that were sent before it.
        """
        told = codes.read(code)
        kept, tries = self._known.get(told.handle), self._tills.get(till or "")
        waiting = told.handle in self._unsure or (till in self._unsure if till else False)
        if kept and kept.until > time.monotonic() and not (waiting or kept.tries.throttled(now)):
            try:
                if not (tries and tries.throttled(now)):
                    return kept.payer(told, now)
            except Refusal:
                pass
        with self._lock:
            for name in _names(told, till):
                self._unsure.setdefault(name, set()).add((code, till))
        return None

    def payers(self, asked: Collection[Shown], now: datetime) -> Mapping[Shown, Payer | Refusal]:
        """The same for many at once. Nothing is written but how many were wrong, of a handle and at a terminal."""
        found: dict[Shown, Payer | Refusal] = {}
        read: dict[Shown, Code] = {}
        for shown in asked:
            try:
                read[shown] = codes.read(shown[0])
            except Refusal as refusal:
                found[shown] = refusal
        try:
            known = self._look_up({told.handle for told in read.values()})
            handles, tills = Counter[str](), Counter[str]()
            for (code, till), told in read.items():
                try:
                    found[code, till] = self._judged(told, till, known.get(told.handle), now)
                except Refusal as refusal:
                    found[code, till] = refusal
                    if isinstance(refusal, CodeUnknown):
                        handles[told.handle] += told.handle in known
                        tills[till or ""] += till is not None
        finally:
            self._judged_are(read)
        self._count(+handles, +tills, now)
        return found

    def was(self, code: str, payer: Payer, guessed_at: str | None = None) -> bool:
        """Whether a code is the one that was taken as this payer's, however long ago: its call may be sent again late.

        From then on it is no guess; where it was just taken for one at a terminal, that is taken back. Where the secret
        was replaced since, nobody can tell, and the answer is yes.
        """
        series, _, step = payer.step.rpartition(":")
        kept = self._of_resident(payer.resident)
        if kept is None or kept.series != series:
            return True
        if not hmac.compare_digest(codes.made(kept.handle, kept.secret, int(step)).encode(), code.encode()):
            return False
        with self._lock:
            self._once[codes.read(code)] = None
            while len(self._once) > CACHED:
                self._once.popitem(last=False)
            if tries := self._tills.get(guessed_at or ""):
                tries.wrong = max(tries.wrong - 1, 0)
        if guessed_at:
            with self._engine.begin() as connection:
                connection.execute(_TAKEN_BACK, {"of": guessed_at})
        return True

    def _judged(self, told: Code, till: str | None, kept: _Secret | None, now: datetime) -> Payer:
        with self._lock:  # a guess is counted before the next one is looked at
            of_till = self._tills.get(till or "")
            if of_till and (seconds := of_till.throttled(now)):
                raise Throttled(seconds=seconds, terminal=till)
            if kept and (seconds := kept.tries.throttled(now)):
                raise Throttled(seconds=seconds)
            try:
                if kept is None:
                    raise CodeUnknown
                return kept.payer(told, now)
            except CodeUnknown:
                if told in self._once:
                    raise CodeExpired from None
                if kept:
                    kept.tries.one_more(now)
                if till:
                    self._of_till(till).one_more(now)
                raise

    def _of_till(self, till: str) -> _Tries:
        tries = self._tills.setdefault(till, _Tries(TILL_WRONG_MOST))
        self._tills.move_to_end(till)
        while len(self._tills) > CACHED:
            self._tills.popitem(last=False)
        return tries

    def _judged_are(self, read: Mapping[Shown, Code]) -> None:
        with self._lock:
            for shown, told in read.items():
                for name in _names(told, shown[1]):
                    waiting = self._unsure.get(name, set[Shown]())
                    waiting.discard(shown)
                    if not waiting:
                        self._unsure.pop(name, None)

    def _look_up(self, handles: set[str]) -> dict[str, _Secret]:
        now = time.monotonic()
        with self._lock:
            found = {h: kept for h in handles if (kept := self._known.get(h)) and kept.until > now}
        if missing := sorted(handles - set(found)):
            with self._engine.connect() as connection:
                for start in range(0, len(missing), _ASKED_AT_ONCE):
                    rows = connection.execute(_OF_HANDLES, {"handles": missing[start : start + _ASKED_AT_ONCE]})
                    found |= {kept.handle: kept for row in rows if (kept := self._unsealed(*row))}
            with self._lock:
                for handle in (h for h in missing if h in found):
                    kept = self._known.get(handle)
                    if kept and kept.until > now:  # another thread's, of this moment: guesses are counted in one place
                        found[handle] = kept
                    else:
                        self._known[handle] = found[handle]
                while len(self._known) > CACHED:
                    self._known.popitem(last=False)
        return found

    def _of_resident(self, resident: str) -> _Secret | None:
        with self._engine.connect() as connection:
            row = connection.execute(_ROWS.where(PAYERS.c.resident == resident)).first()
        return self._unsealed(*row) if row else None

    def _count(self, handles: Mapping[str, int], tills: Mapping[str, int], now: datetime) -> None:
        """Write wrong codes down, and take in what was counted elsewhere."""
        if not handles and not tills:
            return
        at = int(now.timestamp())
        with self._engine.begin() as connection:
            for handle, more in sorted(handles.items()):  # in one order, as other processes do
                row = connection.execute(_WRONG, {"of": handle, "more": more, "at": at}).first()
                with self._lock:
                    if row and (kept := self._known.get(handle)):
                        kept.tries.learn(*row)
            for till, more in sorted(tills.items()):
                row = connection.execute(_wrong_at(connection), {"till": till, "wrong": more, "wrong_since": at}).one()
                with self._lock:
                    self._of_till(till).learn(*row)


def _names(told: Code, till: str | None) -> tuple[str, ...]:
    """Of what a code may turn out to be a wrong one."""
    return (told.handle, till) if till else (told.handle,)


_ROWS = select(
    PAYERS.c.resident, PAYERS.c.handle, PAYERS.c.series, PAYERS.c.sealed, PAYERS.c.wrong, PAYERS.c.wrong_since
)
_OF_HANDLES = _ROWS.where(PAYERS.c.handle.in_(bindparam("handles", expanding=True)))
_at, _more = bindparam("at", type_=BigInteger), bindparam("more", type_=Integer)


def _recent(since: ColumnElement[int], at: ColumnElement[int]) -> ColumnElement[bool]:
    return since.between(at - (WRONG_SECONDS - 1), at + (WRONG_SECONDS - 1))


_WRONG = (
    PAYERS.update()
    .where(PAYERS.c.handle == bindparam("of"))
    .values(
        wrong=case((_recent(PAYERS.c.wrong_since, _at), PAYERS.c.wrong + _more), else_=_more),
        wrong_since=case((_recent(PAYERS.c.wrong_since, _at), PAYERS.c.wrong_since), else_=_at),
    )
    .returning(PAYERS.c.wrong, PAYERS.c.wrong_since)
)
_TAKEN_BACK = TILLS.update().where(TILLS.c.till == bindparam("of"), TILLS.c.wrong > 0).values(wrong=TILLS.c.wrong - 1)


def _wrong_at(connection: Connection) -> ReturningInsert[Any, Any]:
    """The same of a terminal, whose first wrong code may be this one."""
    insert = _insert(connection, TILLS)
    new, recent = insert.excluded, _recent(TILLS.c.wrong_since, insert.excluded.wrong_since)
    counted = {
        "wrong": case((recent, TILLS.c.wrong + new.wrong), else_=new.wrong),
        "wrong_since": case((recent, TILLS.c.wrong_since), else_=new.wrong_since),
    }
    return insert.on_conflict_do_update(index_elements=["till"], set_=counted).returning(
        TILLS.c.wrong, TILLS.c.wrong_since
    )


def _insert(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    return (postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert)(table)


def _put(connection: Connection, replacing: bool) -> Insert:
    """A resident's row, in the place of the one that is there or only where there is none."""
    insert = _insert(connection, PAYERS)
    if not replacing:
        return insert.on_conflict_do_nothing(index_elements=["resident"])
    new = {name: insert.excluded[name] for name in ("handle", "series", "sealed", "wrong", "wrong_since")}
    new["replaced_at"] = insert.excluded.created_at
    return insert.on_conflict_do_update(index_elements=["resident"], set_=new)
