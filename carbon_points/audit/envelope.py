"""The form of a stored entry: that its columns, hash and bytes are what the format says, before any meaning."""

from datetime import datetime

from carbon_points.audit.finding import Wrong, must, same
from carbon_points.audit.replay.days import GRACE
from carbon_points.domain.event import Event
from carbon_points.journal import codec
from carbon_points.journal.entry import Entry, leaf_hash
from carbon_points.journal.streams import FUND, METHODOLOGIES, SOURCES, partition_of


def is_resident(stream: object) -> bool:
    """Residents' streams are read once, in order; the others are few, and known before them."""
    return isinstance(stream, str) and stream.startswith("res_")


class Envelope:
    """One partition's entries, opened in order. Positions are held by whoever reads them."""

    def __init__(self, partition: int, partitions: int) -> None:
        self._partition, self._partitions = partition, partitions
        self._versions: dict[str, int] = {}
        self._recorded_at: datetime | None = None

    def open(self, entry: Entry) -> Event:
        """The event inside. Raises Wrong: right partition, next version, leaf hash, bytes, time, in that order."""
        must(_typed(entry), "a column does not hold its type")
        if (before := self._versions.get(entry.stream)) is None:
            _known_stream(entry.stream)
            if (right := partition_of(entry.stream, self._partitions)) != self._partition:
                raise Wrong(f"the stream belongs to partition {right}")
            before = 0
        same("version", entry.version, before + 1)
        if entry.leaf != leaf_hash(self._partition, entry.stream, entry.version, entry.type, entry.state):
            raise Wrong("the leaf hash is not that of the entry")
        event = codec.decode(entry.type, entry.state)
        must(codec.encode(event) == (entry.type, entry.state), "the state is not in its one stored form")
        if self._recorded_at and event.recorded_at < self._recorded_at - GRACE:
            raise Wrong(f"recorded at {event.recorded_at}, after an entry of {self._recorded_at}")
        self._versions[entry.stream] = entry.version
        self._recorded_at = max(self._recorded_at or event.recorded_at, event.recorded_at)
        return event

    @property
    def latest(self) -> datetime:
        """When the latest entry that was opened was recorded. One must have been."""
        assert self._recorded_at is not None
        return self._recorded_at

    @property
    def streams(self) -> int:
        return len(self._versions)


def _typed(entry: Entry) -> bool:
    """A column may hold what it likes, on SQLite: the entry was read without a look at it."""
    texts = type(entry.stream) is str and type(entry.type) is str
    return texts and type(entry.version) is int and type(entry.state) is bytes and type(entry.leaf) is bytes


def _known_stream(stream: str) -> None:
    kind, _, name = stream.partition("/")
    known = is_resident(stream) or stream in (METHODOLOGIES, SOURCES, FUND) or (kind in ("merchant", "pool") and name)
    must(bool(known), "no kind of stream has such a name")
