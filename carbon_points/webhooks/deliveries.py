"""What is to be told to whom, and what became of it: deliveries, numbered without gaps for each endpoint.

A stretch of the log becomes deliveries in one transaction with the endpoint's position and number, so that nothing is
told under two numbers, and nothing is missed. Who sends takes a lease first: several processes never send the same
delivery at the same time, and what a process took with it when it died is sent again when its lease runs out, under the
same id and number. Receivers are told at least once.
"""

import secrets
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, get_args

from msgspec import Struct
from sqlalchemy import Connection, Row, and_, case, delete, func, insert, or_, select, tuple_, update

from carbon_points.webhooks.endpoints import DELIVERIES, ENDPOINTS, D, E, Endpoints, WebhookUnknown, read
from carbon_points.webhooks.messages import TEST, Message
from carbon_points.webhooks.sending import Answer, retry_after_seconds

DeliveryStatus = Literal["waiting", "delivered", "failed"]
DELIVERY_STATUSES: tuple[DeliveryStatus, ...] = get_args(DeliveryStatus)
# How long after a try the next one comes: ten tries in 75 hours and a half.
SCHEDULE = tuple(timedelta(seconds=s) for s in (0, 5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400))
JITTER = 0.2  # of a pause, at most and on top of it: not before the schedule, and not all at once
LEASE_SECONDS = 120  # more than a try takes, by far, and than the clocks of two servers are apart
AT_ONCE = 4  # deliveries of one endpoint at the same time; one while it is slowed down
WINDOW = 500  # deliveries of an endpoint that may wait; the rest stays in the log meanwhile
RETRY_AFTER_MOST_SECONDS = 3_600
SLOWED_SECONDS, SLOWED_MOST_SECONDS = 5, 300  # pause of an endpoint that says it is too much; doubled each time
SLOW_DOWN = frozenset({429, 502, 503, 504})
GONE = 410
KEPT_DAYS = 30  # of deliveries that are over
_CHANCE = secrets.SystemRandom()


class Delivery(Struct, frozen=True):
    """`answer` is what the last try was answered with, or why it was not. `next_at`: when the next one is due."""

    sequence: int
    event_id: str
    type: str
    status: DeliveryStatus
    tries: int
    answer: str | None
    created_at: datetime
    last_at: datetime | None
    next_at: datetime | None


class Leased(Struct, frozen=True):
    """A delivery that is to be sent now, by whoever holds this lease."""

    endpoint_id: str
    sequence: int
    event_id: str
    body: bytes
    tries: int
    first_at: datetime | None
    url: str
    secrets: list[str]
    lease: str


class Deliveries:
    """`chance` gives numbers from 0 to 1 for the jitter."""

    def __init__(self, endpoints: Endpoints, *, chance: Callable[[], float] = _CHANCE.random) -> None:
        self.endpoints, self._engine, self._chance = endpoints, endpoints.engine, chance

    # -- from the log ------------------------------------------------------------------------------------------------

    def take_in(self, partition: int, until: int, told: Sequence[Message], to: Sequence[str], *, now: datetime) -> int:
        """Give endpoints what a stretch of a partition, which ends at `until`, tells them. How much was new."""
        made = 0
        with self._engine.begin() as connection:
            here = E.endpoint_id.in_(to) & (E.status == "enabled")
            # In one order, so that two processes wait for each other and do not block each other.
            for row in connection.execute(select(ENDPOINTS).where(here).order_by(E.endpoint_id).with_for_update()):
                stands = read(row.positions).get(partition, 0)
                if stands >= until:
                    continue
                wanted = [one for one in told if one.position > stands and _wants(row, one)]
                _number(connection, row, wanted, now=now, positions=row.positions | {str(partition): until})
                made += len(wanted)
        return made

    def rewind(self, partition: int, position: int, of: Sequence[str]) -> None:
        """Stand no further than a position: the log was restored to it."""
        with self._engine.begin() as connection:
            for row in connection.execute(select(ENDPOINTS).where(E.endpoint_id.in_(of)).with_for_update()):
                back = row.positions | {str(partition): min(row.positions.get(str(partition), 0), position)}
                connection.execute(update(ENDPOINTS).where(E.endpoint_id == row.endpoint_id).values(positions=back))

    def test(self, endpoint_id: str, event_id: str, *, now: datetime) -> tuple[Delivery, bool]:
        """Tell an endpoint that this is a test, and whether that was done before. Raises WebhookUnknown."""
        with self._engine.begin() as connection:
            row = connection.execute(select(ENDPOINTS).where(E.endpoint_id == endpoint_id).with_for_update()).first()
            if row is None or row.status == "removed":
                raise WebhookUnknown(webhook=endpoint_id)
            named = (D.endpoint_id == endpoint_id) & (D.event_id == event_id)
            earlier = connection.execute(select(DELIVERIES).where(named)).first()
            if earlier is None:
                told = Message(event_id, TEST, now, row.merchant or "", {"endpoint_id": endpoint_id})
                _number(connection, row, [told], now=now, positions=row.positions)
            found = _delivery(earlier or connection.execute(select(DELIVERIES).where(named)).one())
        self.endpoints.changed.set()
        return found, earlier is not None

    # -- sending -----------------------------------------------------------------------------------------------------

    def full(self) -> set[str]:
        """Endpoints for which as much waits as may: the log keeps the rest."""
        waiting = select(D.endpoint_id).where(D.status == "waiting").group_by(D.endpoint_id)
        with self._engine.connect() as connection:
            return set(connection.scalars(waiting.having(func.count() >= WINDOW)))

    def lease(self, most: int, *, now: datetime) -> list[Leased]:
        """Take what is due, the longest due first, a few of each endpoint."""
        with self._engine.begin() as connection:
            keys = [tuple(row) for row in connection.execute(_due(now, most))]
            if not keys:
                return []
            # Whoever was quicker has locked them, or holds a lease now: then they are not ours.
            mine = (
                select(DELIVERIES)
                .where(tuple_(D.endpoint_id, D.sequence).in_(keys), D.status == "waiting", _free(now))
                .order_by(D.next_at, D.sequence)
                .with_for_update(skip_locked=True)
            )
            rows = connection.execute(mine).all()
            lease = secrets.token_hex(8)
            until = now + timedelta(seconds=LEASE_SECONDS)
            taken = tuple_(D.endpoint_id, D.sequence).in_([(row.endpoint_id, row.sequence) for row in rows])
            connection.execute(update(DELIVERIES).where(taken).values(lease=lease, leased_until=until))
            of = select(ENDPOINTS).where(E.endpoint_id.in_({row.endpoint_id for row in rows}))
            known = {row.endpoint_id: row for row in connection.execute(of)}
        keys_of = {name: self.endpoints.secrets_of(row, now) for name, row in known.items()}
        return [
            Leased(
                endpoint_id=row.endpoint_id,
                sequence=row.sequence,
                event_id=row.event_id,
                body=bytes(row.body),
                tries=row.tries,
                first_at=row.first_at,
                url=known[row.endpoint_id].url,
                secrets=keys_of[row.endpoint_id],
                lease=lease,
            )
            for row in rows
        ]

    def settle(self, sent: Leased, answer: Answer, *, now: datetime) -> None:
        """Write down what came of a try, and when the next one is. Of a lease that another holds now only success
        counts: the receiver has the message, whoever sent it."""
        with self._engine.begin() as connection:
            this = (D.endpoint_id == sent.endpoint_id) & (D.sequence == sent.sequence)
            of = select(ENDPOINTS).where(E.endpoint_id == sent.endpoint_id).with_for_update()
            endpoint = connection.execute(of).one()
            row = connection.execute(select(DELIVERIES).where(this).with_for_update()).first()
            if row is None or row.status != "waiting" or not (answer.ok or row.lease == sent.lease):
                return
            first = row.first_at or now
            told: dict[str, Any] = {"tries": row.tries + 1, "first_at": first, "last_at": now, "answer": answer.why}
            told |= {"lease": None, "leased_until": None, "next_at": None}
            if answer.ok:
                told["status"] = "delivered"
                change: dict[str, Any] = {"succeeded_at": now, "slow_seconds": 0, "slow_until": None}
            else:
                asked = retry_after_seconds(answer.retry_after, now.timestamp(), RETRY_AFTER_MOST_SECONDS)
                change = _slowed(endpoint, answer, asked, now)
                if row.tries + 1 == len(SCHEDULE):
                    told["status"] = "failed"
                    if endpoint.status == "enabled" and not (endpoint.succeeded_at and endpoint.succeeded_at > first):
                        change |= {"status": "disabled", "reason": "failing"}
                else:
                    told["next_at"] = now + max(self._pause(row.tries + 1), timedelta(seconds=asked))
                if answer.status == GONE and endpoint.status == "enabled":
                    change |= {"status": "disabled", "reason": "gone"}
            connection.execute(update(DELIVERIES).where(this).values(**told))
            if change:
                connection.execute(update(ENDPOINTS).where(E.endpoint_id == sent.endpoint_id).values(**change))

    def release(self, leased: Iterable[Leased]) -> None:
        """What was taken and will not be sent by us: others may at once. It counts as no try."""
        with self._engine.begin() as connection:
            for one in leased:
                this = (D.endpoint_id == one.endpoint_id) & (D.sequence == one.sequence) & (D.lease == one.lease)
                connection.execute(update(DELIVERIES).where(this).values(lease=None, leased_until=None))

    def _pause(self, tries: int) -> timedelta:
        return SCHEDULE[tries] * (1 + JITTER * self._chance())

    # -- by hand -----------------------------------------------------------------------------------------------------

    def of(
        self, endpoint_id: str, *, status: DeliveryStatus | None = None, before: int | None = None, limit: int = 50
    ) -> list[Delivery]:
        """An endpoint's deliveries, the newest first."""
        query = select(DELIVERIES).where(D.endpoint_id == endpoint_id).order_by(D.sequence.desc()).limit(limit)
        query = query if status is None else query.where(D.status == status)
        query = query if before is None else query.where(D.sequence < before)
        with self._engine.connect() as connection:
            return [_delivery(row) for row in connection.execute(query)]

    def resend(
        self, endpoint_id: str, first: int, last: int, *, now: datetime, status: DeliveryStatus | None = None
    ) -> int:
        """Send again, from the first try on, what has a number of this span; how many that are. Same id, same number.

        Raises WebhookUnknown.
        """
        self.endpoints.one(endpoint_id)
        these = and_(D.endpoint_id == endpoint_id, D.sequence.between(first, last))
        these = these if status is None else and_(these, D.status == status)
        anew = {"status": "waiting", "tries": 0, "first_at": None, "next_at": now}
        with self._engine.begin() as connection:
            count = connection.execute(update(DELIVERIES).where(these).values(**anew)).rowcount
        self.endpoints.changed.set()
        return count

    def purge(self, *, now: datetime) -> int:
        """Forget what was over long ago: the log still has it. How many those were."""
        over = (D.status != "waiting") & (D.last_at < now - timedelta(days=KEPT_DAYS))
        with self._engine.begin() as connection:
            return connection.execute(delete(DELIVERIES).where(over)).rowcount


def _wants(row: Row[Any], told: Message) -> bool:
    return row.merchant in (None, told.merchant) and (not row.types or told.type in row.types)


def _number(
    connection: Connection, row: Row[Any], told: Sequence[Message], *, now: datetime, positions: dict[str, int]
) -> None:
    """Give an endpoint whose row is locked its next messages."""
    made = [
        {
            "endpoint_id": row.endpoint_id,
            "sequence": row.sequence + number,
            "event_id": one.id,
            "type": one.type,
            "body": one.body(row.sequence + number, whole=row.app is not None),
            "status": "waiting",
            "tries": 0,
            "created_at": now,
            "next_at": now,
        }
        for number, one in enumerate(told, 1)
    ]
    if made:
        connection.execute(insert(DELIVERIES), made)
    change = {"sequence": row.sequence + len(made), "positions": positions}
    connection.execute(update(ENDPOINTS).where(E.endpoint_id == row.endpoint_id).values(**change))


def _free(now: datetime) -> Any:
    return or_(D.leased_until.is_(None), D.leased_until <= now)


def _due(now: datetime, most: int) -> Any:
    """Keys of deliveries that may be sent now. Those that are being sent count first against their endpoint's few."""
    free = case((_free(now), 1), else_=0)
    turn = func.row_number().over(partition_by=D.endpoint_id, order_by=(free, D.next_at, D.sequence))
    open_now = (
        select(D.endpoint_id, D.sequence, D.next_at, E.slow_seconds, free.label("free"), turn.label("turn"))
        .join(ENDPOINTS, E.endpoint_id == D.endpoint_id)
        .where(D.status == "waiting", D.next_at <= now, E.status == "enabled")
        .where(or_(E.slow_until.is_(None), E.slow_until <= now))
        .subquery()
    )
    at_once = case((open_now.c.slow_seconds > 0, 1), else_=AT_ONCE)
    return (
        select(open_now.c.endpoint_id, open_now.c.sequence)
        .where(open_now.c.free == 1, open_now.c.turn <= at_once)
        .order_by(open_now.c.next_at, open_now.c.sequence)
        .limit(most)
    )


def _slowed(endpoint: Row[Any], answer: Answer, asked: float, now: datetime) -> dict[str, Any]:
    """How an endpoint that says it is too much is spared for a while: all of its deliveries, not this one alone."""
    if answer.status not in SLOW_DOWN:
        return {}
    pause = min(endpoint.slow_seconds * 2 or SLOWED_SECONDS, SLOWED_MOST_SECONDS)
    return {"slow_seconds": pause, "slow_until": now + timedelta(seconds=max(pause, asked))}


def _delivery(row: Row[Any]) -> Delivery:
    return Delivery(
        sequence=row.sequence,
        event_id=row.event_id,
        type=row.type,
        status=row.status,
        tries=row.tries,
        answer=row.answer,
        created_at=row.created_at.astimezone(UTC),
        last_at=row.last_at,
        next_at=row.next_at,
    )
