"""What the auditor reads, wherever it lies: a journal at work or an exported folder."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Protocol, runtime_checkable

from carbon_points.audit.finding import Finding, Found, reason_of
from carbon_points.journal.entry import Claim, Entry, StateRow

_BEFORE_ALL = -(2**62)  # a first reading asks for what should not be there, too: positions below 1
_PAGE = 5_000


@runtime_checkable
class Log(Protocol):
    """A log as its auditor sees it. Reading it may fail in any way: that is a finding, not a crash."""

    @property
    def partitions(self) -> int: ...

    def heads(self) -> Mapping[int, int]:
        """The last position of each partition, by its own counter."""
        ...

    def entries(self, partition: int, after: int, until: int) -> Iterator[Entry]:
        """In order; at positions in (`after`, `until`]."""
        ...

    def claims(self, partition: int) -> Iterator[Claim] | None:
        """Every claim by its key, or None where claims are not kept."""
        ...

    def states(self, partition: int) -> Iterator[StateRow] | None:
        """Every state row by stream and part, or None where states are not kept."""
        ...

    def disagrees(self, partition: int, size: int, root: bytes) -> str | None:
        """What the log itself declares of a partition that this size and Merkle root contradict."""
        ...


class _Rows(Protocol):
    def all_claims(self, after: bytes, limit: int) -> list[Claim]: ...
    def all_states(self, after: tuple[str, str], limit: int) -> list[StateRow]: ...


class _Partition(Protocol):
    @property
    def recorder(self) -> _Rows: ...


class Journal(Protocol):
    """What is read of the journal: nothing here can write."""

    @property
    def partitions(self) -> Sequence[_Partition]: ...
    def heads(self) -> dict[int, int]: ...
    def entries(self, partition: int, after: int = 0, until: int | None = None) -> Iterator[Entry]: ...


def log_of(readable: Log | Journal) -> Log:
    """A log as it is, or a journal as the log that it keeps."""
    return readable if isinstance(readable, Log) else JournalLog(readable)


class JournalLog:
    """The log that a journal keeps."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    @property
    def partitions(self) -> int:
        return len(self._journal.partitions)

    def heads(self) -> Mapping[int, int]:
        return self._journal.heads()

    def entries(self, partition: int, after: int, until: int) -> Iterator[Entry]:
        return self._journal.entries(partition, after, until)

    def claims(self, partition: int) -> Iterator[Claim]:
        rows, after = self._journal.partitions[partition].recorder, b""
        while page := rows.all_claims(after, _PAGE):
            yield from page
            after = page[-1].key

    def states(self, partition: int) -> Iterator[StateRow]:
        rows, after = self._journal.partitions[partition].recorder, ("", "")
        while page := rows.all_states(after, _PAGE):
            yield from page
            after = (page[-1].stream, page[-1].part)

    def disagrees(self, partition: int, size: int, root: bytes) -> None:
        """A journal declares nothing of itself but its counter, and that is read as its head."""


def gapless(log: Log, partition: int, after: int, until: int) -> Iterator[Entry]:
    """The entries at positions (`after`, `until`], each of them. Raises Found at the first that is not there."""
    expected = after + 1
    for entry in _patiently(log, partition, after, until):
        if entry.position > until:
            break
        if entry.position != expected:
            reason = f"no entry has this position: the next is {entry.position}"
            raise Found(Finding(partition=partition, position=min(expected, entry.position), reason=reason))
        yield entry
        expected += 1
    if expected <= until:
        reason = f"no entry has this position, and the log counts {until} entries"
        raise Found(Finding(partition=partition, position=expected, reason=reason))


def _patiently(log: Log, partition: int, after: int, until: int) -> Iterator[Entry]:
    """Entries as they come. Many are read at once and fail at once: then one by one, to find the one that fails."""
    last = after
    with suppress(Exception):
        for entry in log.entries(partition, after or _BEFORE_ALL, until):
            last = entry.position
            yield entry
        return
    for position in range(last + 1, until + 1):
        try:
            yield from log.entries(partition, position - 1, position)
        except Exception as error:  # a damaged file fails in ways that no driver documents
            raise Found(
                Finding(partition=partition, position=position, reason=f"cannot be read: {reason_of(error)}")
            ) from error


def uncounted(log: Log, partition: int, head: int) -> None:
    """Raises Found where an entry lies beyond what the log counts, although nobody has just appended it."""
    entry = next(log.entries(partition, head, head + 1), None)
    if entry is not None and log.heads()[partition] < entry.position:
        reason = f"the log counts {head} entries, and here is another"
        raise Found(Finding(partition=partition, position=entry.position, stream=str(entry.stream), reason=reason))
