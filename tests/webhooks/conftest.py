"""A log on which merchants' redemptions happen, and what tells of them: on both databases, by a clock that is moved."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from carbon_points.domain.merchant import RegisterMerchant
from carbon_points.journal.partition import Outcome
from carbon_points.webhooks.deliverer import Deliverer
from carbon_points.webhooks.deliveries import Deliveries, Delivery
from carbon_points.webhooks.endpoints import Endpoint, Endpoints
from carbon_points.webhooks.messages import EventType
from carbon_points.webhooks.sending import Allowed, Sender
from tests import given
from tests.conftest import Clock
from tests.journal import city
from tests.webhooks.receiver import Receiver, receiving

KEY = bytes(range(32))
HERE = Allowed(http=True, internal=True)


def sender() -> Sender:
    return Sender(HERE, agent="test", most=64)


class Told:
    """A log, who is told of it, and by how many processes: each has its own connections."""

    def __init__(self, log: city.City, url: str, clock: Clock) -> None:
        self.log, self.url, self.clock = log, url, clock
        self.opened: list[Deliveries] = []
        self.deliveries = self.process()
        self.endpoints = self.deliveries.endpoints
        self.deliverer = self.another()
        self._made = 0

    def process(self, chance: Callable[[], float] = lambda: 0.0) -> Deliveries:
        self.opened.append(Deliveries(Endpoints(self.url, KEY), chance=chance))
        return self.opened[-1]

    def another(self, deliveries: Deliveries | None = None) -> Deliverer:
        return Deliverer(self.log.journal, deliveries or self.deliveries, sender, clock=self.clock)

    def endpoint(
        self, receiver: Receiver | str, *, merchant: str | None = None, types: tuple[EventType, ...] = ()
    ) -> Endpoint:
        """Of a merchant, or of an app."""
        url = receiver if isinstance(receiver, str) else receiver.url
        self._made += 1
        made, *_ = self.endpoints.add(
            f"whe_{self._made}",
            url=url,
            merchant=merchant,
            app=None if merchant else "app",
            types=types,
            positions=self.log.journal.heads(),
            now=self.clock(),
        )
        return made

    def secret(self, endpoint: Endpoint) -> str:
        """As its creation told it."""
        asked = {"url": endpoint.url, "merchant": endpoint.merchant, "app": endpoint.app, "types": endpoint.types}
        return self.endpoints.add(endpoint.endpoint_id, **asked, positions={}, now=self.clock())[1]

    def held(self, number: int, *, merchant: str = "bakery", resident: str = "res_1") -> Outcome:
        outcome = self.log.do(given.holding(f"rdm_{number}", 1, merchant=merchant, resident=resident))
        assert outcome.refusal is None, outcome.refusal
        return outcome

    def rows(self, endpoint: Endpoint) -> list[Delivery]:
        """In the order of their numbers."""
        return self.deliveries.of(endpoint.endpoint_id, limit=10_000)[::-1]

    def status(self, endpoint: Endpoint) -> tuple[str, str | None]:
        found = self.endpoints.one(endpoint.endpoint_id)
        return found.status, found.reason


@pytest.fixture
def log(clock: Clock) -> Iterator[city.City]:
    """Two residents with points in two partitions, and two merchants."""
    with city.opened("sqlite://", partitions=2, clock=clock) as made:
        made.found(given.table(points=1_000))
        made.do(RegisterMerchant(merchant="mall", name="商场", fen_per_point=2))
        residents = ("res_1", next(f"res_{n}" for n in range(2, 99) if apart(made, f"res_{n}")))
        for number, resident in enumerate(residents):
            made.do(given.ride(str(number), resident=resident, occurred_at=clock()))
        yield made


def apart(made: city.City, resident: str) -> bool:
    return made.journal.partition_of(resident) is not made.journal.partition_of("res_1")


@pytest.fixture
def elsewhere(log: city.City) -> str:
    """A resident of the other partition."""
    return next(f"res_{n}" for n in range(2, 99) if apart(log, f"res_{n}"))


# For what depends on the database: locks, types, several processes.
BOTH = pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if getattr(request, "param", "sqlite") == "sqlite":
        return f"sqlite:///{tmp_path / 'webhooks.sqlite'}"
    return request.getfixturevalue("postgres_url").replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture
def told(log: city.City, url: str, clock: Clock) -> Iterator[Told]:
    made = Told(log, url, clock)
    yield made
    for one in made.opened:
        one.endpoints.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as one:
        yield one


@pytest.fixture
def other() -> Iterator[Receiver]:
    with receiving() as one:
        yield one
