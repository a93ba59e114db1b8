"""One running installation: the journal, the directory, the read models, and how the API speaks to them."""

import asyncio
import base64
import hashlib
import re
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from functools import partial, wraps
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

from anyio import to_thread
from litestar import Request, Response
from litestar.openapi.spec import Example
from litestar.params import Body, HeaderParameter, QueryParameter
from msgspec import Struct

from carbon_points import __version__
from carbon_points.api.orders import Finisher, Orders, done
from carbon_points.api.problems import ApiError
from carbon_points.api.roots import Roots
from carbon_points.directory import KEY_FILE, Caller, Directory, DirectoryIncomplete, subject_key
from carbon_points.directory.payers import Payer, Shown
from carbon_points.domain.event import Command
from carbon_points.domain.methodology import PublishMethodology
from carbon_points.domain.refusal import Refusal
from carbon_points.journal.journal import Journal, Rules, SteadyClock, create_journal, open_journal
from carbon_points.journal.partition import Outcome, Unavailable, Write
from carbon_points.journal.streams import METHODOLOGIES
from carbon_points.methodologies import shipped
from carbon_points.projections.cache import CityCache
from carbon_points.projections.loop import Follower
from carbon_points.projections.ranker import Ranker
from carbon_points.projections.read_model import ReadModel
from carbon_points.sandbox.city import Sandbox
from carbon_points.sandbox.clock import MovedClock
from carbon_points.settings import Settings
from carbon_points.webhooks.deliverer import AT_ONCE_MOST, Deliverer
from carbon_points.webhooks.deliveries import Deliveries
from carbon_points.webhooks.endpoints import Endpoints, WebhooksIncomplete
from carbon_points.webhooks.sending import Allowed, Sender

P = ParamSpec("P")
R = TypeVar("R")
Group = TypeVar("Group")
Name = TypeVar("Name")
Found = TypeVar("Found")
View = Callable[[Any, datetime], object]
BODY_MOST = 256 * 1024  # bytes; a batch of actions has no such limit
READ_WAIT_SECONDS = 5.0
FEED_SECONDS = 2.0  # how long the one who feeds Redis, for whom nobody waits, waits for it
DEADLINE_SECONDS = 20.0  # of a write: then its caller is told to send it again, whatever the database does
POSITION_HEADER = "Carbon-Position"
REPLAYED_HEADER = "Idempotency-Replayed"
AGENT = f"carbon_points/{__version__}"  # to those whom we call


class Installation(Struct, frozen=True):
    settings: Settings
    journal: Journal
    directory: Directory
    read_model: ReadModel
    follower: Follower
    cache: CityCache
    clock: Callable[[], datetime]
    bindings: "Together[tuple[str, bool], str, str]"
    deadlines: "Deadlines"
    paying: "Together[None, Shown, Payer]"
    orders: Orders
    finisher: Finisher
    roots: Roots
    endpoints: Endpoints
    deliveries: Deliveries
    deliverer: Deliverer | None  # None: another process delivers
    sandbox: Sandbox | None = None

    async def write(self, command: Command, facts: object = None, view: View | None = None) -> Outcome:
        """Have a command decided and made durable. Raises its Refusal, Unavailable, or Overloaded."""
        return done(await self.ask(Write(command, facts, view)))

    def ask(self, write: Write) -> asyncio.Future[Outcome]:
        """The same without waiting. The outcome may be a refusal; at the deadline it is Unavailable."""
        return self.deadlines.watched(self.journal.ask(write))

    async def rules(self) -> Rules:
        return self.journal.rules_at_hand() or await asyncio.to_thread(self.journal.rules)

    async def resident(self, source: str, subject: str, *, create: bool) -> str | None:
        """The resident whom a source's subject means. Those who ask at the same time are looked up together."""
        known = self.directory.known(source, subject)
        return known or await self.bindings.ask((source, create), subject)

    async def payer(self, code: str, till: str | None = None) -> Payer:
        """Whose a payment code is, `till` where a terminal's wrong ones are counted. Those who ask at the same time are
        looked up together.

        Refusals, in order: CodeMalformed, Throttled, CodeExpired, CodeUnknown.
        """
        known = self.directory.payers.known(code, self.clock(), till) or await self.paying.ask(None, (code, till))
        assert known is not None, "a code has its payer or its refusal"
        return known

    def write_now(self, command: Command, facts: object = None, view: View | None = None) -> Outcome:
        """The same from a thread."""
        return done(self.journal.submit(Write(command, facts, view)).result())

    def reach(self, min_position: str | None) -> None:
        """Wait until the read models have reached a position that a write told. Raises ApiError."""
        if min_position is None:
            return
        if not re.fullmatch(r"[0-9]{1,4}:[0-9]{1,15}", min_position):
            raise ApiError("parameter-invalid", "min_position is the Carbon-Position of a write: partition:position")
        partition, _, position = min_position.partition(":")
        if int(partition) >= len(self.journal.partitions):
            raise ApiError("parameter-invalid", "min_position names a partition that is not here")
        if self.read_model.wait_for(int(partition), int(position), 0):
            return
        if self.journal.partitions[int(partition)].recorder.head() < int(position):
            raise ApiError("parameter-invalid", "min_position is beyond the log: no write told it")
        if not self.read_model.wait_for(int(partition), int(position), READ_WAIT_SECONDS):
            raise ApiError("position-not-reached", min_position)

    def start(self) -> None:
        """What works beside the calls: following the log, finishing what was left, and telling of it."""
        self.follower.start()
        self.finisher.start()
        if self.deliverer is not None:
            self.deliverer.start()
        if self.sandbox:
            self.sandbox.start()

    def close(self) -> None:
        if self.sandbox:
            self.sandbox.stop()
        if self.deliverer is not None:
            self.deliverer.stop()
        self.finisher.stop()
        self.follower.stop()
        self.read_model.close()
        self.cache.close()
        self.journal.close()
        self.directory.close()
        self.endpoints.close()


class Together(Generic[Group, Name, Found]):
    """Asks the directory for many callers of one event loop at once: all of a group that wait are one question."""

    def __init__(self, find: Callable[[Group, Sequence[Name]], Mapping[Name, Found | Refusal]]) -> None:
        self._find = find
        self._asked: dict[Group, dict[Name, asyncio.Future[Found | None]]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def ask(self, group: Group, name: Name) -> Found | None:
        """What was found of a name, or None. Raises its refusal."""
        names = self._asked.setdefault(group, {})
        if name not in names:
            names[name] = asyncio.get_running_loop().create_future()
        found = names[name]
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(found)  # one caller's leaving is not the others'

    async def _ask(self) -> None:
        while self._asked:
            group = next(iter(self._asked))  # who asked first
            asked = self._asked.pop(group)
            try:
                found = await asyncio.to_thread(self._find, group, list(asked))
            except Exception as error:  # noqa: BLE001  # whoever asked gets it
                found = dict.fromkeys(asked, error)
            for name, waiting in asked.items():
                told = found.get(name)
                if isinstance(told, Exception):
                    waiting.set_exception(told)
                else:
                    waiting.set_result(told)


class Deadlines:
    """Ends what has waited for too long. All may wait as long, so that whoever came first is the next."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._watched: deque[tuple[float, asyncio.Future[Outcome]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def watched(self, waiting: asyncio.Future[Outcome]) -> asyncio.Future[Outcome]:
        loop = waiting.get_loop()
        while self._watched and self._watched[0][1].done():
            self._watched.popleft()
        self._watched.append((loop.time() + self._seconds, waiting))
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._end, loop)
        return waiting

    def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        while self._watched:
            until, waiting = self._watched[0]
            if not waiting.done():
                if until > loop.time():
                    self._timer = loop.call_at(until, self._end, loop)
                    return
                waiting.set_exception(Unavailable("not answered in time: send the same again, it counts once"))
            self._watched.popleft()


def open_installation(
    settings: Settings, *, clock: Callable[[], datetime] | None = None, command: Sequence[str] = ()
) -> Installation:
    """Everything of an installation, opened; nothing is started. With a `command`, that program will follow the log and
    deliver webhooks.

    A log without any methodology is new: it adopts the tables that this release ships. Later ones are published
    by hand. Raises OtherMode where the data is a sandbox's and the settings are not, or the other way.
    """
    real = clock or SteadyClock()
    moved = MovedClock(real) if settings.sandbox else None
    clock = moved or real
    journal = open_journal(settings.journal_url, partitions=settings.partitions, clock=clock, mode=settings.mode)
    adopt(journal)
    key = subject_key(settings.subject_key, Path(settings.data_dir))
    try:
        directory = Directory(settings.directory_url, key, mode=settings.mode)
    except DirectoryIncomplete:
        journal.close()
        raise
    try:
        deliveries = Deliveries(Endpoints(settings.webhooks_url, key))
    except WebhooksIncomplete:
        journal.close()
        directory.close()
        raise
    sandbox = None
    if moved is not None and directory.moves is not None:
        moved.follow(directory.moves)
        sandbox = Sandbox(journal, directory, moved)
    read_model = ReadModel(settings.read_url)
    ranker = None
    if not command:
        feeding = CityCache(settings.redis_url or None, scope=name_of(journal), patience=FEED_SECONDS)
        ranker = Ranker(read_model, feeding, clock)
    follower = Follower(journal, read_model, command, ranker=ranker)
    deadlines = Deadlines(DEADLINE_SECONDS)
    cache = CityCache(settings.redis_url or None, scope=name_of(journal))
    return Installation(
        settings,
        journal,
        directory,
        read_model,
        follower,
        cache,
        clock,
        Together(lambda asked, subjects: directory.residents(asked[0], subjects, create=asked[1])),
        deadlines,
        Together(lambda _, shown: directory.payers.payers(shown, clock())),
        Orders(journal, lambda write: deadlines.watched(journal.ask(write))),
        Finisher(journal, read_model, follower, clock),
        Roots(journal, settings.folder / "roots.json"),
        deliveries.endpoints,
        deliveries,
        None if command else Deliverer(journal, deliveries, sender_of(settings), clock=clock, real=real),
        sandbox,
    )


def sender_of(settings: Settings) -> Callable[[], Sender]:
    return lambda: Sender(allowed(settings), agent=AGENT, most=AT_ONCE_MOST)


def allowed(settings: Settings) -> Allowed:
    """What webhooks may reach."""
    return Allowed(http=settings.webhooks_http, internal=settings.webhooks_internal)


def adopt(journal: Journal) -> tuple[str, ...]:
    """Publish the shipped tables in a log that has none: all of them or, where it fails, none."""
    if journal.rules().methodologies.tables:
        return ()
    commands = [
        PublishMethodology(methodology=one.table.id, version=one.table.version, table=one.text) for one in shipped()
    ]
    outcomes = [done(outcome) for outcome in journal.commit([Write(command) for command in commands])]
    journal.rules_changed()
    published = zip(commands, outcomes, strict=True)
    return tuple(f"{c.methodology}/{c.version}" for c, outcome in published if not outcome.replayed)


class Initialised(Struct, frozen=True):
    """An installation that is all there, and what was done for it just now."""

    partitions: int
    made: tuple[str, ...]
    distributed: tuple[str, ...]
    adopted: tuple[str, ...]


def create_installation(settings: Settings, *, partitions: int | None = None, distributed: bool = False) -> Initialised:
    """Make what is missing of an installation. Raises ValueError where it stands and has other partitions."""
    wanted = settings.partitions if partitions is None else partitions
    created = create_journal(settings.journal_url, partitions=wanted, distributed=distributed, mode=settings.mode)
    if partitions not in (None, created.partitions):
        raise ValueError(f"the journal has {created.partitions} partitions, for ever: it cannot have {partitions}")
    made = list(created.made)
    folder = Path(settings.data_dir)
    if not settings.subject_key and not (folder / KEY_FILE).exists():
        made.append("subject key")
    key = subject_key(settings.subject_key, folder)
    directory = Directory(settings.directory_url, key, mode=settings.mode)
    read_model = ReadModel(settings.read_url)
    endpoints = Endpoints(settings.webhooks_url, key)
    journal = open_journal(settings.journal_url)
    try:
        adopted = adopt(journal)
    finally:
        journal.close()
        read_model.close()
        directory.close()
        endpoints.close()
    made += ["directory"] * directory.made + ["read models"] * read_model.made + ["webhooks"] * endpoints.made
    return Initialised(created.partitions, tuple(made), created.distributed, adopted)


def name_of(journal: Journal) -> str:
    """What no other log has: the hash of the first table that it published, and when."""
    first = next(journal.entries(journal.partition_of(METHODOLOGIES).number, until=1))
    return first.leaf.hex()


# -- requests and responses ------------------------------------------------------------------------------------------


def threaded(function: Callable[P, R]) -> Callable[P, Awaitable[R]]:
    """Run a handler that waits for a database in a thread.

    Instead of Litestar's `sync_to_thread`, which in 2.25 wraps a handler twice where a path has two methods, and then
    answers 500.
    """

    @wraps(function)
    async def handler(*args: P.args, **kwargs: P.kwargs) -> R:
        return await to_thread.run_sync(partial(function, *args, **kwargs))

    return handler


def receipt(body: Any, outcome: Outcome, *, created: int = 201) -> Response[Any]:
    """The answer to a write: where it stands in the log, and whether it is an earlier answer again."""
    return Response(body, status_code=200 if outcome.replayed else created, headers=position_headers(outcome))


def position_headers(outcome: Outcome) -> dict[str, str]:
    headers = {POSITION_HEADER: f"{outcome.partition}:{outcome.position}"}
    if outcome.replayed:
        headers[REPLAYED_HEADER] = "true"
    return headers


PLAIN = r"^[^\x00-\x1f\x7f]+$(?!\n)"  # no control characters: no id has any, and PostgreSQL takes no NUL
CURSOR = QueryParameter(max_length=64, description="`next_cursor` of the page before", pattern=PLAIN)
LIMIT = QueryParameter(ge=1, le=100, description="rows of a page")


def following(cursors: Sequence[str], limit: int) -> str | None:
    """The cursor of the next page, by the cursors of this one's rows; None where this one is the last."""
    return cursors[-1] if len(cursors) == limit else None


def id_from_key(prefix: str, request: Request[Caller, Any, Any], operation: str) -> str:
    """The id of what a call makes, from its Idempotency-Key: the same key of the same caller makes the same thing."""
    key = request.headers.get("Idempotency-Key", "").strip('"')
    if not 1 <= len(key) <= 200:
        raise ApiError("idempotency-key-missing")
    return _id(prefix, request.user, operation, key)


def redemption_id_of(caller: Caller, reference: str) -> str:
    """The id of what a caller asks for under its own reference, the Idempotency-Key. Raises ApiError.

    It is told in a header, and later in an address or a body: what they might not carry alike is refused, or a
    reversal would be of another call than was meant.
    """
    key = reference.strip('"')
    if not 1 <= len(key) <= 200:
        raise ApiError("idempotency-key-missing")
    if not (key.isascii() and key.isprintable() and key == key.strip(" ")):
        raise ApiError("idempotency-key-missing", "it is printable ASCII, without white space around it")
    return _id("rdm_", caller, "redemption", key)


def _id(prefix: str, caller: Caller, operation: str, key: str) -> str:
    told = f"{caller.scope}\0{operation}\0{key}".encode()
    return prefix + base64.b32encode(hashlib.sha256(told).digest()).decode().lower()[:20]


def example(**fields: object) -> Any:
    """The mark of a JSON body, with one that a caller could send."""
    return Body(examples=[Example(value=fields)])


IDEMPOTENCY_KEY = HeaderParameter(
    name="Idempotency-Key",
    description="Makes the call safe to repeat, for ever: the same key and body give the same answer.",
    min_length=1,
    max_length=200,
)
MIN_POSITION = QueryParameter(
    name="min_position",
    description="Wait until the read models have reached this `Carbon-Position` of a write, at most 5 s.",
    pattern=r"^[0-9]{1,4}:[0-9]{1,15}$",
)
