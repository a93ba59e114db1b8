"""What feeds the read models: a thread that follows the journal, and a rebuild from nothing.

Following is asking each partition for what comes after the stored position, in batches; a commit of this process is a
hint to ask at once. A database that fails is asked again, later and later: nothing is lost, since the log is elsewhere.
"""

import logging
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from typing import IO, Any, BinaryIO

from msgspec import Struct

from carbon_points.journal.journal import Journal
from carbon_points.projections.filling import fill
from carbon_points.projections.ranker import Ranker
from carbon_points.projections.read_model import ReadModel

BATCH = 2_000
POLL_SECONDS = 0.5
# A batch costs much the same whatever is in it: gather, unless somebody waits, and for longer while more keeps coming.
GATHER_SECONDS, GATHER_MOST_SECONDS = 0.1, 0.4
BACK_OFF_MOST_SECONDS = 5.0
RESTART_SECONDS = 1.0
HINT, HURRY = b".", b"!"

_log = logging.getLogger(__name__)


class Ahead(Exception):
    """The rows follow from entries that the log does not have: it was restored, or it is another one."""


class Follower:
    """Keeps a read model up with a journal. Others may follow with the same read model, here or elsewhere.

    With a `command`, that program follows in a process of its own, so that it takes no time from this one's: it is
    told on its standard input when there is something, and started again should it end. A `ranker` runs beside it.
    """

    def __init__(
        self, journal: Journal, read_model: ReadModel, command: Sequence[str] = (), *, ranker: Ranker | None = None
    ) -> None:
        self._journal = journal
        self._read_model = read_model
        self._command = list(command)
        self._ranker = ranker
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        assert self._thread is None, "it follows already"
        self._stopping.clear()
        work = self._tell if self._command else self._run
        self._thread = threading.Thread(target=work, name="follower", daemon=True)
        self._thread.start()
        if self._ranker is not None:
            self._ranker.start()

    def stop(self) -> None:
        """Return when the batch at hand is done."""
        self._stopping.set()
        if self._ranker is not None:
            self._ranker.stop()
        self._journal.appended.set()
        self._read_model.wanted.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def lag(self) -> dict[int, int]:
        """By partition, how many entries the rows are behind the log."""
        stored = self._read_model.positions()
        return {partition: max(head - stored.get(partition, 0), 0) for partition, head in self._journal.heads().items()}

    def catch_up(self, timeout: float) -> bool:
        """Whether the rows follow the log as far as it goes now, at the latest after `timeout` seconds.

        Where no thread is started, the caller's own does the work, all of it, and raises what `follow` raises.
        """
        deadline = time.monotonic() + timeout
        heads = self._journal.heads()
        if self._thread is None:
            follow(self._journal, self._read_model)
        self._journal.appended.set()
        return all(
            self._read_model.wait_for(partition, head, max(deadline - time.monotonic(), 0.0))
            for partition, head in heads.items()
        )

    def _tell(self) -> None:
        """Keep the other process running, and pass on the hints of this one."""
        while not self._stopping.is_set():
            try:
                process = subprocess.Popen(self._command, stdin=subprocess.PIPE, bufsize=0)  # noqa: S603  # this program
            except OSError:  # no room for another process, or for its pipe: there may be some later
                _log.exception("the process that follows the log cannot be started; trying again")
                self._stopping.wait(RESTART_SECONDS)
                continue
            with process:
                assert process.stdin is not None
                with suppress(BrokenPipeError):  # it has ended: below we see so
                    gather = GATHER_SECONDS
                    while not self._stopping.is_set() and process.poll() is None:
                        if not self._journal.appended.wait(POLL_SECONDS):
                            gather = GATHER_SECONDS
                            continue
                        self._hint(process.stdin)
                        if not self._stopping.is_set() and self._read_model.wanted.wait(gather):
                            self._hint(process.stdin)  # who waits may wait for what the last hint was about
                        gather = min(gather * 2, GATHER_MOST_SECONDS)
                    process.stdin.close()  # it finishes the batch at hand, and ends
            if not self._stopping.is_set():
                _log.error("the process that follows the log ended with %s; starting it again", process.returncode)
                self._stopping.wait(RESTART_SECONDS)

    def _hint(self, to: IO[bytes]) -> None:
        self._journal.appended.clear()
        to.write(HURRY if self._read_model.wanted.is_set() else HINT)
        self._read_model.wanted.clear()

    def heed(self, hints: BinaryIO) -> None:
        """The other end: follow, and be told by whoever started this process, until it says no more."""
        self.start()
        while hint := hints.read(1):
            if hint == HURRY:
                self._read_model.wanted.set()
            self._journal.appended.set()
        self.stop()

    def _run(self) -> None:
        wait = 0.0
        while not self._stopping.is_set():
            self._journal.appended.clear()
            self._read_model.wanted.clear()
            try:
                follow(self._journal, self._read_model, stopping=self._stopping)
                wait = 0.0
            except Exception:  # noqa: BLE001  # whatever it is, the log is still there: to stop would mend nothing
                wait = min(wait * 2 or POLL_SECONDS, BACK_OFF_MOST_SECONDS)
                _log.exception("the read models do not follow the log; asking again in %.1f s", wait)
                self._stopping.wait(wait)
                continue
            if self._journal.appended.wait(POLL_SECONDS):
                self._read_model.wanted.wait(GATHER_SECONDS)


def follow(journal: Journal, read_model: ReadModel, *, stopping: threading.Event | None = None) -> int:
    """Apply what is in the journal and not in the rows, partition by partition in turns. Returns how many entries.

    Raises Ahead, and what `ReadModel.apply` and the journal raise.
    """
    applied = 0
    stored = read_model.positions()
    heads = journal.heads()
    if ahead := {partition: position for partition, position in stored.items() if position > heads.get(partition, 0)}:
        raise Ahead(f"the rows stand at {ahead}, the log at {heads}: they are not of this log, and want a rebuild")
    behind = [partition.number for partition in journal.partitions]
    while behind and not (stopping and stopping.is_set()):
        for partition in list(behind):
            entries = list(islice(journal.entries(partition, stored.get(partition, 0), chunk=BATCH), BATCH))
            if entries:
                stored[partition] = read_model.apply(partition, entries)
                applied += len(entries)
            if len(entries) < BATCH:
                behind.remove(partition)
    return applied


class RebuildReport(Struct, frozen=True):
    entries: int
    seconds: float


def rebuild(journal: Journal, url: str, helpers: Sequence[Any] = ()) -> RebuildReport:
    """Make the rows from nothing beside the live ones, which are read and written meanwhile, and put them in place.

    `helpers` are of `staging.helpers`, for this journal and URL.
    """
    begun = time.monotonic()
    live = ReadModel(url, keep=True)
    try:
        with live.beside() as made:
            fill(made, journal, helpers)
            follow(journal, made)
            live.replace_with(made, lambda: follow(journal, made))
            entries = sum(live.positions().values())
    finally:
        live.close()
    return RebuildReport(entries, time.monotonic() - begun)
