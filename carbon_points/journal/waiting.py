"""What waits for a partition's writer: bounded, fair between those who sent it, and not for ever.

Each source has a lane of its own, and whatever is no report (redemptions, consents, lots) shares one. A batch takes
from the lanes in turns, so that a source that floods us delays itself. No source may fill the room, nor all of them.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import NamedTuple

from carbon_points.journal.partition import Outcome, Unavailable, Write

Answer = Future[Outcome] | asyncio.Future[Outcome]


class Item(NamedTuple):
    """`key`: the identity that is being decided with it, where that is one in all partitions."""

    write: Write
    answer: Answer
    until: float
    key: bytes | None = None


LANE_SHARE = 2  # a source takes no more than half of the room
KEPT_SHARE = 4  # and all sources together leave a fourth of it to what is no report


class Overloaded(Unavailable):
    """More is waiting than will be answered soon: the caller should come back later."""


class Waiting:
    """Thread-safe. `most` commands wait, each for at most `patience` seconds."""

    def __init__(self, most: int, patience: float) -> None:
        self._most, self._patience = most, patience
        self._lanes: dict[str, deque[Item]] = {}
        self._count = 0
        self._closed = False
        self._lock = threading.Lock()
        self._some = threading.Event()

    def put(self, write: Write, answer: Answer, key: bytes | None = None) -> None:
        """Raises Overloaded, and Unavailable once it is closed."""
        name: str = getattr(write.command, "source", "")
        with self._lock:  # nothing may come after the last
            if self._closed:
                raise Unavailable("the journal is closed")
            in_lane = len(self._lanes.get(name, ()))
            room = self._most - self._most // KEPT_SHARE if name else self._most
            if self._count >= room or (name and in_lane >= self._most // LANE_SHARE):
                raise Overloaded(f"{self._count} commands are waiting")
            self._lanes.setdefault(name, deque()).append(Item(write, answer, time.monotonic() + self._patience, key))
            self._count += 1
            if self._count == 1:
                self._some.set()

    def take(self, most: int) -> tuple[list[Item], list[Item]]:
        """What is decided next, in turns from all lanes; and what has waited too long.

        As soon as there is anything. Both are empty once it is closed, and when the taker was nudged.
        """
        self._some.wait()
        late, taken = list[Item](), list[Item]()
        with self._lock:
            now = time.monotonic()
            while self._count and len(taken) < most:
                for name in list(self._lanes)[: most - len(taken)]:
                    lane = self._lanes.pop(name)
                    item = lane.popleft()
                    self._count -= 1
                    (taken if item.until > now else late).append(item)
                    if lane:  # to the end: it has had its turn
                        self._lanes[name] = lane
            if not self._count and not self._closed:
                self._some.clear()
        return taken, late

    def nudge(self) -> None:
        """Have the taker look about, even if nothing waits."""
        self._some.set()

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Take nothing more; what waits is still taken."""
        with self._lock:
            self._closed = True
            self._some.set()


def answer(pairs: Iterable[tuple[Answer, Outcome | Exception]]) -> None:
    """Give each its outcome; those of an event loop together, since waking a loop costs more than a result."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Answer, Outcome | Exception]]] = {}
    for given, outcome in pairs:
        if isinstance(given, Future):
            _settle([(given, outcome)])
        else:
            by_loop.setdefault(given.get_loop(), []).append((given, outcome))
    for loop, theirs in by_loop.items():
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            loop.call_soon_threadsafe(_settle, theirs)


def _settle(pairs: Sequence[tuple[Answer, Outcome | Exception]]) -> None:
    for given, outcome in pairs:
        with suppress(asyncio.InvalidStateError, InvalidStateError):  # who waited has left
            if isinstance(outcome, Exception):
                given.set_exception(outcome)
            else:
                given.set_result(outcome)
