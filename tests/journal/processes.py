"""Writers in processes of their own, whose acknowledgements are read while they go on."""

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

from carbon_points.domain.account import ActionCredited
from carbon_points.journal import codec
from tests.conftest import PROJECT
from tests.journal.city import City, entries


class Told(NamedTuple):
    """An acknowledgement."""

    record_id: str
    partition: int
    position: int
    at: float


class Writers:
    def __init__(self, url: str, count: int) -> None:
        self.told: list[list[Told]] = [[] for _ in range(count)]
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.journal.writer", url, str(n * 1_000_000), "patient"],
                cwd=PROJECT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for n in range(count)
        ]
        self._readers = [threading.Thread(target=self._read, args=(n,)) for n in range(count)]
        for reader in self._readers:
            reader.start()

    def _read(self, number: int) -> None:
        output = self._processes[number].stdout
        assert output is not None
        for line in output:
            if line.endswith("\n"):  # a kill may leave half of one
                record_id, partition, position, at = line.split()
                self.told[number].append(Told(record_id, int(partition), int(position), float(at)))

    def all_acknowledged(self, more: int, within: float, after: float = 0.0) -> None:
        """Wait until each writer was told of so many more records, later than a moment."""
        deadline = time.monotonic() + within
        while not all(sum(one.at > after for one in told) >= more for told in self.told):
            for process in self._processes:
                assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline, [len(told) for told in self.told]
            time.sleep(0.02)

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
        for reader in self._readers:
            reader.join()
        for process in self._processes:
            process.communicate()

    def stall(self) -> float:
        """The longest that a writer waited between two acknowledgements, in seconds."""
        return max(later.at - one.at for told in self.told for one, later in pairwise(told))


@contextmanager
def writing(url: str, count: int = 4) -> Iterator[Writers]:
    writers = Writers(url, count)
    try:
        yield writers
    finally:
        writers.stop()


def nothing_is_lost(city: City, writers: Writers) -> None:
    """What was acknowledged is there, once, at the place that was told, and positions have no gaps."""
    for number, head in city.journal.heads().items():
        assert [e.position for e in city.journal.entries(number)] == list(range(1, head + 1))
    found: dict[str, tuple[int, int]] = {}
    times: Counter[str] = Counter()
    for entry in entries(city.journal):
        event = codec.decode(entry.type, entry.state)
        if isinstance(event, ActionCredited):
            found[event.record_id] = (entry.partition, entry.position)
            times[event.record_id] += 1
    acknowledged = {one.record_id: (one.partition, one.position) for told in writers.told for one in told}
    assert {name: found.get(name) for name in acknowledged} == acknowledged
    assert set(times.values()) == {1}
