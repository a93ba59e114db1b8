"""What a terminal must not forget, in one SQLite file that survives a power cut.

Every intent is here before it is sent and every answer before it is shown: a commit returns when the disk has it. One
process at a time works with a journal; another waits for it, then is told.
"""

import sqlite3
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType

import msgspec
from msgspec import Struct

from carbon_points_terminal.call import Call, Close, Line, Offline, Sum, Totals
from carbon_points_terminal.files import to_disk
from carbon_points_terminal.offline import Prepared

APPLICATION = 0x43505431  # "CPT1" in the file's head: it is a journal of this kind
VERSION = 2
PATIENCE = 5.0  # seconds to wait for another process
STAN_MOST = 999_999

_TABLES = """
CREATE TABLE identity (merchant TEXT NOT NULL, terminal TEXT NOT NULL, stan INTEGER NOT NULL, batch INTEGER NOT NULL);
CREATE TABLE calls (
    reference TEXT PRIMARY KEY, made TEXT NOT NULL, done INTEGER NOT NULL, told BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX calls_open ON calls (reference) WHERE done = 0;
CREATE TABLE moves (
    batch INTEGER NOT NULL, sale TEXT NOT NULL, redemption_id TEXT NOT NULL,
    kind TEXT NOT NULL, points INTEGER NOT NULL, fen INTEGER NOT NULL
);
CREATE INDEX moves_of_batch ON moves (batch);
CREATE INDEX moves_of_sale ON moves (sale);
CREATE TABLE log (
    id INTEGER PRIMARY KEY, at TEXT NOT NULL, reference TEXT NOT NULL, what TEXT NOT NULL, told TEXT NOT NULL
);
"""

# Since version 2: what is taken offline. An allowance is taken once, whatever became of it.
_OFFLINE = """
CREATE TABLE prepared (told BLOB NOT NULL);
CREATE TABLE allowances (id TEXT PRIMARY KEY, reference TEXT NOT NULL) WITHOUT ROWID;
"""


class JournalError(Exception):
    """The journal cannot be used. `code` is stable."""

    code = "journal-unusable"


class JournalMissing(JournalError):
    """There is no journal here. A till that had one must not begin a new one by itself: it would forget sales."""

    code = "journal-missing"


class JournalDamaged(JournalError):
    """The file is cut off, overwritten, or not a database."""

    code = "journal-damaged"


class JournalForeign(JournalError):
    """A database of something else, of a later release, or of another terminal."""

    code = "journal-foreign"


class JournalInUse(JournalError):
    """Another process works at this terminal."""

    code = "journal-in-use"


class Noted(Struct, frozen=True):
    """A line of the log: what happened to which call."""

    at: datetime
    reference: str
    what: str
    told: str


class Journal:
    """Opened by `Journal.open`, made by `Journal.create`, or kept in memory for a simulation by `Journal.in_memory`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.merchant, self.terminal = connection.execute("SELECT merchant, terminal FROM identity").fetchone()

    @classmethod
    def create(cls, path: Path, merchant: str, terminal: str) -> "Journal":
        """A new journal, which appears at its place when it is whole."""
        if path.exists():
            raise FileExistsError(f"{path} is there already")
        making = path.with_name(path.name + ".new")
        making.unlink(missing_ok=True)
        connection = sqlite3.connect(making)
        _make(connection, merchant, terminal)
        connection.close()
        making.chmod(0o600)
        to_disk(making)
        making.rename(path)
        to_disk(path.parent)
        return cls.open(path, merchant, terminal)

    @classmethod
    def open(cls, path: Path, merchant: str = "", terminal: str = "", *, patience: float = PATIENCE) -> "Journal":
        """The journal of this terminal. Raises JournalMissing, JournalDamaged, JournalForeign or JournalInUse."""
        if not path.exists():
            raise JournalMissing(f"there is no journal at {path}: activate the terminal, or bring its file back")
        if path.stat().st_size == 0:
            raise JournalDamaged(f"{path} is empty: bring the file back from where it was copied to")
        connection = sqlite3.connect(path, timeout=patience, isolation_level=None)
        try:
            _check(connection, path)
            journal = cls(connection)
        except BaseException:
            connection.close()
            raise
        if (merchant, terminal) not in {("", ""), (journal.merchant, journal.terminal)}:
            journal.close()
            raise JournalForeign(f"{path} is of {journal.merchant}/{journal.terminal}, not {merchant}/{terminal}")
        return journal

    @classmethod
    def in_memory(cls, merchant: str, terminal: str) -> "Journal":
        connection = sqlite3.connect(":memory:", isolation_level=None)
        _make(connection, merchant, terminal)
        return cls(connection)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # -- writing -----------------------------------------------------------------------------------------------------

    def stan(self) -> int:
        """The next number of six digits; after the last comes the first."""
        with _writing(self._connection):
            (last,) = self._connection.execute("SELECT stan FROM identity").fetchone()
            following = last % STAN_MOST + 1
            self._connection.execute("UPDATE identity SET stan = ?", (following,))
        return following

    def keep(self, call: Call, what: str, at: datetime, *, moved: int = 0) -> None:
        """The call as it is now, its moves from number `moved` on, and a line of the log: all of it, or nothing."""
        row = (call.reference, call.made.isoformat(), call.state == "DONE", msgspec.json.encode(call))
        moves = [
            (move.batch, call.sale, call.redemption_id, move.kind, move.points, move.fen) for move in call.moves[moved:]
        ]
        with _writing(self._connection):
            self._connection.execute("INSERT OR REPLACE INTO calls VALUES (?, ?, ?, ?)", row)
            self._connection.executemany("INSERT INTO moves VALUES (?, ?, ?, ?, ?, ?)", moves)
            if isinstance(call.ask, Offline) and call.attempt == 0:
                row = (call.ask.allowance_id, call.reference)
                self._connection.execute("INSERT OR IGNORE INTO allowances VALUES (?, ?)", row)
            self._log(call.reference, what, call.last, at)
            closed = call.outcome and call.outcome.closed
            if call.state == "DONE" and isinstance(call.ask, Close) and closed and closed.answer == "agreed":
                following = closed.next_batch or call.ask.batch + 1
                self._connection.execute("UPDATE identity SET batch = max(batch, ?)", (following,))

    def refile(self, batch: int, theirs: Iterable[Line], following: int, at: datetime) -> None:
        """Put into a following batch what the platform does not have in this one, which it has closed by itself.

        Of one redemption and kind, what came first is what it has.
        """
        had = {(line.redemption_id, line.kind): line.count for line in theirs}
        sql = "SELECT rowid, redemption_id, kind FROM moves WHERE batch = ? ORDER BY rowid"
        with _writing(self._connection):
            for rowid, redemption_id, kind in self._connection.execute(sql, (batch,)).fetchall():
                name = redemption_id, kind
                had[name] = had.get(name, 0) - 1
                if had[name] < 0:
                    self._connection.execute("UPDATE moves SET batch = ? WHERE rowid = ?", (following, rowid))
            self._log("", "refiled", f"batch {batch} was closed by the platform", at)

    def trim(self, before: datetime) -> None:
        """Forget what was done before a day. Sums of batches stay, and so does whatever is open."""
        with _writing(self._connection):
            self._connection.execute("DELETE FROM log WHERE at < ?", (before.isoformat(),))
            self._connection.execute("DELETE FROM calls WHERE done = 1 AND made < ?", (before.isoformat(),))
            self._connection.execute("DELETE FROM allowances WHERE reference NOT IN (SELECT reference FROM calls)")

    def prepare(self, prepared: Prepared) -> None:
        """Keep what was fetched for a time without a network, in the place of what was kept before."""
        with _writing(self._connection):
            self._connection.execute("DELETE FROM prepared")
            self._connection.execute("INSERT INTO prepared VALUES (?)", (msgspec.json.encode(prepared),))

    def note(self, reference: str, what: str, told: str, at: datetime) -> None:
        """A line of the log alone."""
        with _writing(self._connection):
            self._log(reference, what, told, at)

    def _log(self, reference: str, what: str, told: str, at: datetime) -> None:
        row = (at.isoformat(), reference, what, told)
        self._connection.execute("INSERT INTO log (at, reference, what, told) VALUES (?, ?, ?, ?)", row)

    # -- reading -----------------------------------------------------------------------------------------------------

    @property
    def batch(self) -> int:
        """The batch that is open."""
        return self._connection.execute("SELECT batch FROM identity").fetchone()[0]

    def find(self, reference: str) -> Call | None:
        return next(self._calls("SELECT told FROM calls WHERE reference = ?", reference), None)

    def unresolved(self) -> list[Call]:
        """Every call whose outcome is open, in the order in which they were made."""
        return sorted(
            self._calls("SELECT told FROM calls WHERE done = 0"), key=lambda call: (call.made, call.reference)
        )

    def recent(self, count: int) -> list[Call]:
        return list(self._calls("SELECT told FROM calls ORDER BY made DESC, reference DESC LIMIT ?", count))

    def prepared(self) -> Prepared | None:
        """What was fetched last for a time without a network."""
        row = self._connection.execute("SELECT told FROM prepared").fetchone()
        try:
            return msgspec.json.decode(row[0], type=Prepared) if row else None
        except msgspec.DecodeError as error:
            raise JournalDamaged(f"the terms in the journal cannot be read: {error}") from error

    def allowed(self, allowance_id: str) -> str:
        """The reference of what was taken by this allowance, or nothing."""
        row = self._connection.execute("SELECT reference FROM allowances WHERE id = ?", (allowance_id,)).fetchone()
        return row[0] if row else ""

    def offline(self) -> list[Call]:
        """Everything that was taken offline and is not trimmed yet, oldest first."""
        sql = "SELECT told FROM calls WHERE reference IN (SELECT reference FROM allowances) ORDER BY made, reference"
        return list(self._calls(sql))

    def _calls(self, sql: str, *values: object) -> Iterator[Call]:
        for (found,) in self._connection.execute(sql, values):
            try:
                yield msgspec.json.decode(found, type=Call)
            except msgspec.DecodeError as error:
                raise JournalDamaged(f"a call in the journal cannot be read: {error}") from error

    def counted(self, sale: str) -> bool:
        """Some batch has what was spent of this sale."""
        sql = "SELECT 1 FROM moves WHERE sale = ? AND kind = 'sale'"
        return self._connection.execute(sql, (sale,)).fetchone() is not None

    def batches_of(self, sale: str) -> set[int]:
        """In which batches a sale, and what followed it, has moved something."""
        return {batch for (batch,) in self._connection.execute("SELECT batch FROM moves WHERE sale = ?", (sale,))}

    def totals(self, batch: int) -> Totals:
        sql = "SELECT kind, count(*), sum(points), sum(fen) FROM moves WHERE batch = ? GROUP BY kind"
        sums = {kind: Sum(*numbers) for kind, *numbers in self._connection.execute(sql, (batch,))}
        return Totals(sums.get("sale", Sum()), sums.get("refund", Sum()), sums.get("reversal", Sum()))

    def lines(self, batch: int) -> list[Line]:
        sql = (
            "SELECT redemption_id, kind, sum(points), sum(fen), count(*) FROM moves WHERE batch = ?"
            " GROUP BY redemption_id, kind ORDER BY min(rowid)"
        )
        return [Line(*row) for row in self._connection.execute(sql, (batch,))]

    def log(self, reference: str = "") -> list[Noted]:
        """What happened, oldest first: to one call, or to all."""
        sql = "SELECT at, reference, what, told FROM log WHERE ? IN ('', reference) ORDER BY id"
        rows = self._connection.execute(sql, (reference,))
        return [Noted(datetime.fromisoformat(at), *rest) for at, *rest in rows]


@contextmanager
def _writing(connection: sqlite3.Connection) -> Generator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _make(connection: sqlite3.Connection, merchant: str, terminal: str) -> None:
    connection.executescript(_TABLES + _OFFLINE)
    connection.execute("INSERT INTO identity VALUES (?, ?, 0, 1)", (merchant, terminal))
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.commit()


def _check(connection: sqlite3.Connection, path: Path) -> None:
    """Take the file for this process alone, and look at all of it: it is small, and a till opens it once."""
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA secure_delete = ON")  # a payment code that is no longer needed leaves the file too
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN EXCLUSIVE")  # with the locking mode: held until the connection is closed
        connection.execute("COMMIT")
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION or not 1 <= version <= VERSION:
            raise JournalForeign(f"{path} is not a terminal's journal of version {VERSION} or before")
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise JournalDamaged(f"{path} is damaged: {found}")
        if version == 1:
            connection.executescript(f"BEGIN; {_OFFLINE} PRAGMA user_version = {VERSION}; COMMIT;")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            raise JournalInUse(f"another process works with {path}") from error
        raise JournalDamaged(f"{path} cannot be used: {error}") from error
    except sqlite3.DatabaseError as error:
        raise JournalDamaged(f"{path} is damaged, or no journal at all: {error}") from error
