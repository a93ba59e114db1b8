"""A process that writes until it is killed, and says on its output what was acknowledged, batch by batch."""

import sys

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


if __name__ == "__main__":
    url, first = sys.argv[1], int(sys.argv[2])
    with opened(url) as city:
        write(city, first, first + 1_000_000)
