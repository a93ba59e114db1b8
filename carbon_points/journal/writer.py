"""A partition's writer: commits what is waiting, as it comes; alone when idle, together under load.

While more is waiting, one batch is appended as the next is decided, on the states that the first will leave. Should the
append fail, both are decided again, one after the other.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from carbon_points.journal.partition import Batch, Outcome, Partition, Repeated
from carbon_points.journal.waiting import Item, Overloaded, Waiting, answer

BATCH = 128  # a larger one would leave nothing to be read and answered while it is appended


class _Appending(NamedTuple):
    """A batch that is being appended. It is answered by whoever appends it, unless that fails."""

    batch: Batch
    items: Sequence[Item]
    begun: float
    done: Future[None]


class Writer:
    """`ended` is told of items before they are answered."""

    def __init__(self, partition: Partition, waiting: Waiting, ended: Callable[[Sequence[Item]], None]) -> None:
        self._partition, self._waiting, self._ended = partition, waiting, ended
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"append-{partition.number}")

    def run(self) -> None:
        """Until what is waiting is closed, and all of it is answered."""
        while (items := self._take()) or not self._waiting.closed:
            with self._partition.turn:
                self._write(items)
        self._pool.shutdown()

    def _take(self, ahead: _Appending | None = None) -> list[Item]:
        """What is decided next: as soon as there is anything, or what is ahead is done."""
        while True:
            items, late = self._waiting.take(BATCH)
            self._answer(late, [Overloaded("it waited too long, and was not looked at")] * len(late))
            if items or self._waiting.closed or ahead is None or ahead.done.done():
                return items

    def _write(self, items: list[Item]) -> None:
        """These, and whatever comes while they are appended, until nothing does or somebody else wants the turn."""
        ahead: _Appending | None = None
        while items:
            begun, writes = time.monotonic(), [item.write for item in items]
            try:
                batch = self._partition.decided(writes, ahead.batch if ahead else None)
            except Repeated:
                self._settle(ahead)
                ahead = None
                continue  # with the same
            except Exception as error:  # noqa: BLE001  # tried again below, which knows what to do with which
                self._settle(ahead)
                ahead = None
                self._again(items, error, begun)
            else:
                if ahead and not self._settle(ahead, batch):
                    ahead = None
                    self._again(items)
                elif len(items) == 1 and not ahead:
                    self._append_now(batch, items, begun)
                else:
                    ahead = self._submit(batch, items, begun)
            goes_on = ahead and not self._partition.turn.wanted and not self._partition.crowded
            items = self._take(ahead) if goes_on else []
        self._settle(ahead)

    def _submit(self, batch: Batch, items: Sequence[Item], begun: float) -> _Appending:
        done = self._pool.submit(self._append, batch, items)
        done.add_done_callback(lambda _: self._waiting.nudge())
        return _Appending(batch, items, begun, done)

    def _append(self, batch: Batch, items: Sequence[Item]) -> None:
        self._answer(items, self._partition.appended(batch))

    def _append_now(self, batch: Batch, items: Sequence[Item], begun: float) -> None:
        try:
            self._append(batch, items)
        except Exception as error:  # noqa: BLE001  # as above
            self._again(items, error, begun, batch)
        else:
            self._partition.forget(batch)

    def _settle(self, ahead: _Appending | None, following: Batch | None = None) -> bool:
        """Wait until it is appended, whatever that takes. Whether `following` was rightly decided meanwhile."""
        if ahead is None:
            return True
        if (error := ahead.done.exception()) is None:
            self._partition.forget(ahead.batch, following)
            return True
        assert isinstance(error, Exception)
        self._again(ahead.items, error, ahead.begun, *((ahead.batch, following) if following else (ahead.batch,)))
        return False

    def _again(
        self, items: Sequence[Item], failed: Exception | None = None, begun: float = 0.0, *undone: Batch
    ) -> None:
        """Decide and append them by themselves. `undone` were decided, and will not be appended."""
        outcomes: Sequence[Outcome | Exception]
        if failed is not None:
            self._partition.undo(failed, *undone)
        try:
            outcomes = self._partition.retried([item.write for item in items], failed, begun)
        except Exception as error:  # noqa: BLE001  # every waiting caller gets it; the thread lives on
            outcomes = [error] * len(items)
        self._answer(items, outcomes)

    def _answer(self, items: Sequence[Item], outcomes: Sequence[Outcome | Exception]) -> None:
        self._ended(items)
        answer((item.answer, outcome) for item, outcome in zip(items, outcomes, strict=True))
