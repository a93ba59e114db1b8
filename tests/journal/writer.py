"""A process that writes until it is killed, and says on its output what was acknowledged, batch by batch.

With `patient`, it sends a batch again until it is acknowledged, as sources do, and says when that was.
"""

import sys
import time

from carbon_points.journal.partition import Outcome, Unavailable
from carbon_points.journal.recorder import Unreachable
from tests.given import ride
from tests.journal.city import City, opened

BATCH = 7


def write(city: City, first: int, last: int) -> None:
    for begin in range(first, last, BATCH):
        names = [str(n) for n in range(begin, begin + BATCH)]
        outcomes = city.all(*(ride(name, resident=f"res_{int(name) % 5}") for name in names))
        assert all(outcome.position > 0 for outcome in outcomes)
        sys.stdout.write(
            "".join(f"{name} {o.partition} {o.position}\n" for name, o in zip(names, outcomes, strict=True))
        )
        sys.stdout.flush()


def write_patiently(city: City, first: int) -> None:
    for begin in range(first, first + 1_000_000, BATCH):
        names = [str(n) for n in range(begin, begin + BATCH)]
        outcomes = until_answered(city, names)
        assert all(outcome.position > 0 for outcome in outcomes), outcomes
        told = time.time()
        lines = [f"{name} {o.partition} {o.position} {told}\n" for name, o in zip(names, outcomes, strict=True)]
        sys.stdout.write("".join(lines))
        sys.stdout.flush()


def until_answered(city: City, names: list[str]) -> list[Outcome]:
    while True:
        try:
            return city.all(*(ride(name, resident=f"res_{int(name) % 23}") for name in names))
        except (Unavailable, Unreachable):
            time.sleep(0.05)


if __name__ == "__main__":
    url, first = sys.argv[1], int(sys.argv[2])
    with opened(url) as city:
        if "patient" in sys.argv[3:]:
            write_patiently(city, first)
        else:
            write(city, first, first + 1_000_000)
