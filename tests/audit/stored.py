"""A journal's files, opened behind its back: what somebody with the disk could change."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from eventsourcing.sqlite import SQLiteDatastore

from carbon_points.audit.verify import Report, verify
from carbon_points.journal.entry import Entry, leaf_hash
from carbon_points.journal.recorder import SQLiteRecorder
from tests.audit.scenario import PARTITIONS

Place = tuple[int, int]  # partition and position
Edit = Callable[[dict[str, Any]], object]
COLUMNS = ("notification_id", "originator_id", "originator_version", "topic", "state", "leaf")


class Reading:
    """A journal's files as a journal reads them, without what it does to be ready to write."""

    def __init__(self, stored: "Stored") -> None:
        places = [f"file:{stored.file(partition)}" for partition in range(PARTITIONS)]
        self.partitions = [Part(SQLiteRecorder(SQLiteDatastore(p, originator_id_type="text"))) for p in places]
        for number, part in enumerate(self.partitions):
            part.recorder.partition = number

    def __enter__(self) -> "Reading":
        return self

    def __exit__(self, *_: object) -> None:
        for part in self.partitions:
            part.recorder.close()

    def heads(self) -> dict[int, int]:
        return {number: part.recorder.head() for number, part in enumerate(self.partitions)}

    def entries(self, partition: int, after: int = 0, until: int | None = None) -> Iterator[Entry]:
        recorder = self.partitions[partition].recorder
        end = recorder.head() if until is None else until
        while after < end and (read := recorder.read(after, min(100, end - after))):
            yield from read
            after = read[-1].position


class Part(NamedTuple):
    recorder: SQLiteRecorder


class Stored:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def url(self) -> str:
        return f"sqlite:///{self.folder}"

    def file(self, partition: int) -> Path:
        return self.folder / f"p{partition:03d}.sqlite"

    def verify(self) -> Report:
        with Reading(self) as journal:
            return verify(journal)

    def sql(self, partition: int, text: str, *values: Any) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.file(partition))) as db, db:
            return db.execute(text, values).fetchall()

    def head(self, partition: int) -> int:
        return self.sql(partition, "SELECT n FROM counter")[0][0]

    def places(self, type_name: str) -> list[Place]:
        """Where the entries of a type lie, by partition and position."""
        found: list[Place] = []
        for partition in range(PARTITIONS):
            rows = self.sql(partition, "SELECT notification_id FROM entries WHERE topic = ?", type_name)
            found += [(partition, position) for (position,) in sorted(rows)]
        return found

    def state(self, place: Place) -> dict[str, Any]:
        [(state,)] = self.sql(place[0], "SELECT state FROM entries WHERE notification_id = ?", place[1])
        return msgspec.json.decode(state)

    def where(self, type_name: str, **fields: Any) -> Place:
        """The first entry of a type whose event says this."""
        for place in self.places(type_name):
            state = self.state(place)
            if all(state.get(name) == value for name, value in fields.items()):
                return place
        raise LookupError(f"no {type_name} with {fields}")

    def forge(self, place: Place, edit: Edit) -> None:
        """Change an event as somebody would who knows the format: other content, and the leaf hash that fits."""
        state = self.state(place)
        edit(state)
        self.write(place, msgspec.json.encode(state))

    def write(self, place: Place, state: bytes, **columns: Any) -> None:
        partition, position = place
        sql = "SELECT originator_id, originator_version, topic FROM entries WHERE notification_id = ?"
        [(stream, version, topic)] = self.sql(partition, sql, position)
        stream, version = columns.get("stream", stream), columns.get("version", version)
        topic = columns.get("type", topic)
        self.sql(
            partition,
            "UPDATE entries SET originator_id = ?, originator_version = ?, topic = ?, state = ?, leaf = ? "
            "WHERE notification_id = ?",
            stream,
            version,
            topic,
            state,
            leaf_hash(partition, stream, version, topic, state),
            position,
        )

    def set(self, place: Place, **columns: Any) -> None:
        """Change columns of an entry and nothing else."""
        names = ", ".join(f"{name} = ?" for name in columns)
        self.sql(place[0], f"UPDATE entries SET {names} WHERE notification_id = ?", *columns.values(), place[1])

    def record(self) -> list[Any]:
        """All rows of all partitions but the states, which are a cache and are compared by their meaning."""
        queries = (
            "SELECT * FROM entries ORDER BY notification_id",
            "SELECT n FROM counter",
            "SELECT * FROM claims ORDER BY key",
        )
        return [self.sql(partition, query) for partition in range(PARTITIONS) for query in queries]
