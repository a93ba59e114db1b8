"""What the verifier must remember of every action: on disk, so that memory grows with accounts only.

A private temporary database of SQLite, gone when it is closed. It holds the identities that commands used, what a
reversal must know of the action that it takes back, the parts of accounts that grow with their years, and what each
settlement's files must name.
"""

import sqlite3
from collections.abc import Iterator
from datetime import datetime

from carbon_points.journal.entry import Claim

_CACHE_KB = 32_000
_TABLES = """
CREATE TABLE identities (partition INTEGER, key BLOB, stream TEXT, version INTEGER, position INTEGER, kept BLOB,
    PRIMARY KEY (partition, key)) WITHOUT ROWID;
CREATE TABLE asked (redemption TEXT, resident TEXT, ordered TEXT, terms TEXT, held TEXT, held_terms TEXT,
    offered INTEGER, PRIMARY KEY (redemption, resident)) WITHOUT ROWID;
CREATE TABLE spent (redemption TEXT, resident TEXT, kind TEXT, times INTEGER, points INTEGER, fen INTEGER,
    said_times INTEGER, said_points INTEGER, said_fen INTEGER, PRIMARY KEY (redemption, resident, kind)) WITHOUT ROWID;
CREATE TABLE moves (stream TEXT, redemption TEXT, kind TEXT, position INTEGER, batch INTEGER, count INTEGER,
    PRIMARY KEY (stream, redemption, kind, position)) WITHOUT ROWID;
CREATE TABLE offline (stream TEXT, redemption TEXT, position INTEGER, captured_at TEXT,
    PRIMARY KEY (stream, redemption)) WITHOUT ROWID;
CREATE TABLE lines (merchant TEXT, settlement TEXT, recorded_at TEXT, partition INTEGER, position INTEGER, line BLOB,
    PRIMARY KEY (merchant, settlement, recorded_at, partition, position)) WITHOUT ROWID;
CREATE TABLE parts (stream TEXT, part TEXT, version INTEGER, value BLOB, PRIMARY KEY (stream, part)) WITHOUT ROWID;
"""


_ASKED = """
INSERT INTO asked VALUES (?,?,?,?,?,?,?) ON CONFLICT DO UPDATE SET ordered = coalesce(ordered, excluded.ordered),
    terms = coalesce(terms, excluded.terms), held = coalesce(held, excluded.held),
    held_terms = coalesce(held_terms, excluded.held_terms), offered = offered + excluded.offered
"""
_SPENT = """
INSERT INTO spent VALUES (?,?,?,?,?,?,?,?,?) ON CONFLICT DO UPDATE SET times = times + excluded.times,
    points = points + excluded.points, fen = fen + excluded.fen, said_times = said_times + excluded.said_times,
    said_points = said_points + excluded.said_points, said_fen = said_fen + excluded.said_fen
"""


class Scratch:
    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.executescript(f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-{_CACHE_KB};")
        self._db.executescript(_TABLES)
        self._db.execute("BEGIN")

    def close(self) -> None:
        self._db.close()

    # -- identities --------------------------------------------------------------------------------------------------

    def use(self, partition: int, claim: Claim, position: int, kept: bytes | None) -> bool:
        """Remember that an event used an identity. False where another of its partition has used it."""
        row = (partition, claim.key, claim.stream, claim.version, position, kept)
        done = self._db.execute("INSERT INTO identities VALUES (?,?,?,?,?,?) ON CONFLICT DO NOTHING", row)
        return done.rowcount == 1

    def used_by(self, partition: int, key: bytes) -> tuple[str, int, bytes | None] | None:
        """The stream and the position of the event that used an identity, and what was kept of it."""
        sql = "SELECT stream, position, kept FROM identities WHERE partition = ? AND key = ?"
        return self._db.execute(sql, (partition, key)).fetchone()

    def identities(self, partition: int) -> Iterator[tuple[Claim, int]]:
        """Every identity used in a partition, by its key, with the position of the event that used it."""
        sql = "SELECT key, stream, version, position FROM identities WHERE partition = ? ORDER BY key"
        for key, stream, version, position in self._db.execute(sql, (partition,)):
            yield Claim(key, stream, version), position

    def used_in_two_partitions(self) -> int:
        sql = "SELECT count(*) FROM (SELECT key FROM identities GROUP BY key HAVING count(*) > 1)"
        return self._db.execute(sql).fetchone()[0]

    # -- redemptions, as residents and as orders say -----------------------------------------------------------------

    def ordered(self, redemption: str, resident: str, asked: str, terms: str | None) -> None:
        """An order asks for so many points of a resident, on these terms; or (None) was declined by its offer."""
        self._db.execute(_ASKED, (redemption, resident, asked, terms, None, None, 0))

    def held(self, redemption: str, resident: str, asked: str, terms: str | None, *, offered: bool = False) -> None:
        """A resident's entry holds them on these terms (`offered`: those of an offer), or (None) declines them."""
        self._db.execute(_ASKED, (redemption, resident, None, None, asked, terms, int(offered)))

    def spent(self, redemption: str, resident: str, kind: str, points: int, fen: int) -> None:
        """A resident's entry sold, refunded or reversed so much."""
        self._db.execute(_SPENT, (redemption, resident, kind, 1, points, fen, 0, 0, 0))

    def moved(self, redemption: str, resident: str, kind: str, times: int, points: int, fen: int) -> None:
        """An order says that it did; by any other kind, that nothing was sold."""
        told = kind if kind in ("sale", "refund", "reversal") else "nothing"
        figures = (0, 0, 0) if told == "nothing" else (times, points, fen)
        self._db.execute(_SPENT, (redemption, resident, told, 0, 0, 0, *figures))

    def held_otherwise(self) -> str | None:
        """A redemption that was held on other terms than were asked for."""
        row = self._db.execute("SELECT redemption FROM asked WHERE ordered <> held OR terms <> held_terms").fetchone()
        return row[0] if row else None

    def held_of_nothing(self) -> str | None:
        """A redemption that was held for an offer, of which there is no order."""
        row = self._db.execute("SELECT redemption FROM asked WHERE offered AND ordered IS NULL").fetchone()
        return row[0] if row else None

    def overstated(self) -> tuple[str, str] | None:
        """A redemption of which its order says more than its resident's entries do, and of what."""
        more = "said_times > times OR said_points > points OR said_fen > fen"
        return self._db.execute(f"SELECT redemption, kind FROM spent WHERE {more}").fetchone()  # noqa: S608  # our own

    def denied(self) -> str | None:
        """A redemption that was sold, and of which an order says that nothing was."""
        of = "SELECT redemption, resident FROM spent WHERE"
        row = self._db.execute(f"{of} kind = 'nothing' INTERSECT {of} kind = 'sale' AND times > 0").fetchone()
        return row[0] if row else None

    # -- settlements -------------------------------------------------------------------------------------------------

    def keep_move(self, stream: str, redemption: str, kind: str, position: int, batch: int, count: int) -> None:
        """A merchant's order counted so many of a kind in a batch."""
        self._db.execute("INSERT INTO moves VALUES (?,?,?,?,?,?)", (stream, redemption, kind, position, batch, count))

    def moves(self, stream: str, redemption: str, kind: str, until: int) -> Iterator[tuple[int, int]]:
        """Batches and counts of the moves up to a position, in their order."""
        sql = "SELECT batch, count FROM moves WHERE stream = ? AND redemption = ? AND kind = ? AND position <= ?"
        yield from self._db.execute(f"{sql} ORDER BY position", (stream, redemption, kind, until))

    def keep_offline(self, stream: str, redemption: str, position: int, captured_at: datetime) -> None:
        """An order of a merchant was taken without a network."""
        row = (stream, redemption, position, captured_at.isoformat())
        self._db.execute("INSERT INTO offline VALUES (?,?,?,?)", row)

    def offline(self, stream: str, redemption: str, until: int) -> datetime | None:
        """When it was, if an entry up to a position says so."""
        sql = "SELECT captured_at FROM offline WHERE stream = ? AND redemption = ? AND position <= ?"
        row = self._db.execute(sql, (stream, redemption, until)).fetchone()
        return datetime.fromisoformat(row[0]) if row else None

    def keep_line(self, merchant: str, settlement: str, place: tuple[str, int, int], line: bytes) -> None:
        self._db.execute("INSERT INTO lines VALUES (?,?,?,?,?,?)", (merchant, settlement, *place, line))

    def lines(self, merchant: str, settlement: str) -> Iterator[bytes]:
        """What a settlement covers, as it was recorded; then by partition and position."""
        sql = "SELECT line FROM lines WHERE merchant = ? AND settlement = ? ORDER BY recorded_at, partition, position"
        for (line,) in self._db.execute(sql, (merchant, settlement)):
            yield line

    # -- parts -------------------------------------------------------------------------------------------------------

    def part(self, stream: str, part: str) -> bytes | None:
        row = self._db.execute("SELECT value FROM parts WHERE stream = ? AND part = ?", (stream, part)).fetchone()
        return row[0] if row else None

    def changed_at(self, stream: str, part: str) -> int | None:
        """The version of the stream's event that changed a part last."""
        row = self._db.execute("SELECT version FROM parts WHERE stream = ? AND part = ?", (stream, part)).fetchone()
        return row[0] if row else None

    def keep(self, stream: str, part: str, version: int, value: bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO parts VALUES (?,?,?,?)", (stream, part, version, value))

    def parts(self) -> Iterator[tuple[str, str]]:
        yield from self._db.execute("SELECT stream, part FROM parts ORDER BY stream, part")

    def forget_parts(self) -> None:
        """The residents and merchants of the next partition are others."""
        self._db.execute("DELETE FROM parts")
