"""A city in a box: twenty terminals, a network that loses, repeats, delays and cuts off, and a server that dies.

One seed makes one history: time is a number, chance is seeded, and nothing runs by itself. The terminals are the
reference terminal, the server is the whole API on its own journal and read models; between them lies a network that
this file plays, and each write of the server waits for its turn, so that calls overlap in any order. A server that
dies takes with it whatever it had in memory and every call that it had begun: what was committed stays, as after a
SIGKILL (real ones are in tests/faults).
"""

import asyncio
import hashlib
import heapq
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio.to_thread
from litestar import Litestar

from carbon_points import codes
from carbon_points.api.app import create_app
from carbon_points.api.installation import Installation, open_installation
from carbon_points.directory import Caller
from carbon_points.domain import account, consent, merchant, methodology, offer, source
from carbon_points.domain.order import FollowOrder
from carbon_points.journal.partition import Outcome, Write
from carbon_points.journal.streams import stream_of
from carbon_points.settings import load
from carbon_points_terminal import Call, Journal, NoAnswer, Request, Response, Terminal
from carbon_points_terminal.call import Capture, Close, Closed, Refund, Sale, Void
from carbon_points_terminal.terminal import NotNow, Send
from tests.api.city import green

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
TERMINALS, RESIDENTS = 20, 8
POINTS = 100  # of each resident at first
STOCK = 4
ANSWER_SECONDS = 10.0  # a terminal waits for an answer no longer
FINISH_SECONDS = 20.0  # the server's finisher runs every second: here less often, which is harder
HOLD_SECONDS = 120
PLANNED_SECONDS = 400.0
CLOSES = 3  # of one batch: the platform may not be able to confirm yet
QUIET_SECONDS = 1_200.0  # in which, on a network that is whole again, everything must come to its end


class Timeline:
    """What happens next. Of what is due at one moment, what was asked for first."""

    def __init__(self) -> None:
        self.now = 0.0
        self._waiting: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._waiting, (self.now + seconds, self._count, what))

    def step(self, until: float) -> bool:
        if not self._waiting or self._waiting[0][0] > until:
            return False
        self.now, _, what = heapq.heappop(self._waiting)
        what()
        return True


class Server:
    """The installation, the API on it, and the loop that its calls run in. One for many histories in a row."""

    def __init__(self, folder: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.at = EPOCH
        settings = load({"CARBON_DATA_DIR": str(folder), "CARBON_PARTITIONS": "3", "CARBON_LOG": "error"})
        self.installation: Installation = open_installation(settings, clock=lambda: self.at)
        self.app: Litestar = create_app(self.installation)
        journal: Any = self.installation.journal
        journal.ask, journal.submit = self._ask, self._submit
        directory: Any = self.installation.directory  # who calls is not what is tried here
        directory.known_caller = lambda secret: (True, Caller("", "terminal", secret))
        self.asked: Callable[[Write, asyncio.Future[Outcome]], None] = self._at_once
        self.commit(source.RegisterSource(source="szt", name="szt", behaviours=("green",)))
        self.commit(methodology.PublishMethodology(methodology="green", version="1", table=green()))
        journal.rules_changed()

    def commit(self, *commands: Any, facts: object = None) -> None:
        for outcome in [self.write(Write(command, facts)) for command in commands]:
            assert outcome.refusal is None, outcome.refusal
            assert outcome.failure is None, outcome.failure

    def _ask(self, write: Write) -> asyncio.Future[Outcome]:
        waiting: asyncio.Future[Outcome] = self.loop.create_future()
        self.asked(write, waiting)
        return waiting

    def write(self, write: Write) -> Outcome:
        """As the journal's writer does it, and at once."""
        return self.installation.journal.partition_of(stream_of(write.command)).commit([write])[0]

    def _at_once(self, write: Write, waiting: asyncio.Future[Outcome]) -> None:
        waiting.set_result(self.write(write))

    def _submit(self, write: Write) -> "Future[Outcome]":
        given: Future[Outcome] = Future()
        given.set_result(self.write(write))
        return given

    def spin(self) -> None:
        """Let the calls go on as far as they can."""
        ready: Any = self.loop
        while ready._ready:  # the one way to know that nothing is left to do
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()

    def forget(self) -> None:
        """What a process that dies had in memory."""
        for partition in self.installation.journal.partitions:
            partition.drop()
        self.installation.orders.forget()

    def close(self) -> None:
        self.spin()
        self.loop.close()
        self.installation.close()


@contextmanager
def server() -> Iterator[Server]:
    """In memory where the machine has a file system there: what is durable is not what is tried here."""
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="carbon-", dir=shared if shared.is_dir() else None))
    threads = asyncio.to_thread, anyio.to_thread.run_sync
    asyncio.to_thread, anyio.to_thread.run_sync = _here, _here
    try:
        made = Server(folder)
        yield made
        made.close()
    finally:
        asyncio.to_thread, anyio.to_thread.run_sync = threads
        shutil.rmtree(folder)


async def _here(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Instead of a thread."""
    kwargs.pop("limiter", None)
    return function(*args, **kwargs)


class World:
    """One history. `log` is all that happened, a line each."""

    def __init__(self, server: Server, seed: int) -> None:
        self.server, self.seed = server, seed
        self.chance = random.Random(seed)
        self.time = Timeline()
        self.begins = EPOCH + timedelta(days=2 * seed)
        self.log: list[str] = []
        self.up, self.life = True, 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.loss = self.chance.choice((0.0, 0.02, 0.1, 0.3))
        self.repeats = self.chance.choice((0.0, 0.1, 0.5))
        self.slow = self.chance.choice((0.02, 0.5, 4.0))  # seconds, on the average
        self.deaths = self.chance.choice((0.0, 0.005, 0.02))  # of a write
        self.passing = self.chance.choice((0.005, 5.0, 30.0))  # seconds, on the average
        self.whole = False
        server.at = self.begins
        server.forget()
        server.asked = self._asked
        self.merchant = f"shop-{seed}"
        self.residents = [f"res_{hashlib.sha256(f'{seed} {n}'.encode()).hexdigest()[:20]}" for n in range(RESIDENTS)]
        self.residents = ["res_" + name[4:].translate(_BASE32) for name in self.residents]
        self._found()
        self.tills = [Till(self, f"t{n}") for n in range(TERMINALS)]

    def say(self, what: str) -> None:
        self.log.append(f"{self.time.now:.3f} {what}")

    def _found(self) -> None:
        given = consent.Consent(id="c", purpose="record", version="1", from_=datetime(2020, 1, 1, tzinfo=UTC))
        for resident in self.residents:
            self.server.commit(
                account.OpenAccount(resident=resident), account.GiveConsent(resident=resident, consent=given)
            )
            rules = self.server.installation.journal.rules()
            facts = account.ActionFacts(rules.methodologies, rules.sources.reporting("szt", "green"))
            ride = account.RecordAction(
                resident=resident,
                source="szt",
                record_id=resident,
                behaviour="green",
                quantity=Decimal(POINTS // 100),
                unit="km",
                occurred_at=self.begins,
            )
            self.server.commit(ride, facts=facts)
        payers = self.server.installation.directory.payers
        self.phones = {resident: payers.issue(resident) for resident in self.residents}
        self.server.commit(
            merchant.RegisterMerchant(merchant=self.merchant, name="小店", fen_per_point=2),
            *(merchant.EnrolTerminal(merchant=self.merchant, terminal=f"t{n}") for n in range(TERMINALS)),
            offer.PublishOffer(
                merchant=self.merchant, offer="cup", title="茶杯", points=5, amount_fen=9, stock=STOCK, per_resident=3
            ),
        )

    # -- time and death ----------------------------------------------------------------------------------------------

    def clock(self) -> datetime:
        return self.begins + timedelta(seconds=self.time.now)

    def step(self, until: float) -> bool:
        going = self.time.step(until)
        self.server.at = max(self.server.at, self.clock())
        return going

    def _asked(self, write: Write, waiting: asyncio.Future[Outcome]) -> None:
        # Nobody waits for what is passed on to an order: it may come long after the call, and after what came later.
        passed_on = isinstance(write.command, FollowOrder)
        seconds = self.chance.expovariate(1 / self.passing if passed_on else 200)
        self.time.after(seconds, partial(self._write, write, waiting, self.life))

    def _write(self, write: Write, waiting: asyncio.Future[Outcome], life: int) -> None:
        """The turn of one write has come: unless the server has died since, or dies now, before or after it."""
        if life != self.life or waiting.done():
            return
        dies = not self.whole and self.chance.random() < self.deaths
        if dies and self.chance.random() < 0.5:
            self._die("before")
            return
        outcome = self.server.write(write)
        name = type(write.command).__name__
        self.say(f"{name} {getattr(write.command, 'redemption_id', '')} {_told(outcome)}")
        if dies:
            self._die("after")
            return
        waiting.set_result(outcome)
        self.server.spin()

    def _die(self, when: str) -> None:
        self.say(f"the server dies, {when} a write")
        self.up = False
        self.life += 1
        for task in self.tasks:
            task.cancel()
        self.server.spin()
        self.tasks.clear()
        self.server.forget()
        self.time.after(self.chance.uniform(0.5, 30), self._rise)

    def _rise(self) -> None:
        self.say("the server is up")
        self.up = True

    def finish(self) -> None:
        """What the server's finisher does every second, here less often."""
        if self.up:
            self.server.at = max(self.server.at, self.clock())
            self.server.installation.follower.catch_up(1)
            ended = self.server.installation.finisher.finish()
            if ended:
                self.say(f"the finisher ends {ended}")
        self.time.after(FINISH_SECONDS, self.finish)

    # -- the network -------------------------------------------------------------------------------------------------

    def lost(self) -> bool:
        return not self.whole and self.chance.random() < self.loss

    def delay(self) -> float:
        return 0.01 if self.whole else self.chance.expovariate(1 / self.slow)

    def carry(self, till: "Till", send: Send) -> None:
        """A request on its way, or two copies of it; each is lost, or comes in its own time."""
        copies = 2 if not self.whole and self.chance.random() < self.repeats else 1
        for _ in range(copies):
            if not self.lost() and not till.cut_off():
                self.time.after(self.delay(), partial(self._arrive, till, send))
        self.time.after(ANSWER_SECONDS, partial(till.waited, send))

    def _arrive(self, till: "Till", send: Send) -> None:
        if not self.up:
            return
        answer: list[Any] = []
        task = self.server.loop.create_task(self._call(send.request, till.name, answer))
        self.tasks.add(task)
        task.add_done_callback(lambda done: self._called(done, till, send, answer))
        self.server.spin()

    def _called(self, task: asyncio.Task[None], till: "Till", send: Send, answer: list[Any]) -> None:
        self.tasks.discard(task)
        if task.cancelled():
            return
        task.result()
        if not self.lost() and not till.cut_off():
            self.time.after(self.delay(), partial(till.answered, send, answer[0]))

    async def _call(self, request: Request, terminal: str, answer: list[Any]) -> None:
        parts = urlsplit(request.path)
        headers = [(b"authorization", f"Bearer {self.merchant}/{terminal}".encode()), (b"host", b"simulation")]
        if request.key:
            headers.append((b"idempotency-key", request.key.encode()))
        headers.append((b"content-length", str(len(request.body)).encode()))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": "http",
            "path": parts.path,
            "raw_path": parts.path.encode(),
            "query_string": parts.query.encode(),
            "root_path": "",
            "headers": headers,
            "client": ("simulation", 1),
            "server": ("simulation", 80),
            "state": {},
        }
        told: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": request.body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            told.append(message)

        app: Any = self.server.app
        await app(scope, receive, send)
        head = {name.decode().lower(): value.decode() for name, value in told[0]["headers"]}
        body = b"".join(message.get("body", b"") for message in told[1:])
        answer.append(Response(told[0]["status"], body, head))

    # -- the history -------------------------------------------------------------------------------------------------

    def live(self) -> "World":
        """Everything that is planned happens; then the network is whole, and all comes to its end."""
        for till in self.tills:
            till.plan()
        self.time.after(FINISH_SECONDS, self.finish)
        while self.step(PLANNED_SECONDS):
            pass
        self.whole = True
        self.say("the network is whole")
        for till in self.tills:
            till.give_up_plans()
            till.wake()
        until = self.time.now + QUIET_SECONDS
        while any(till.open() for till in self.tills) and self.step(until):
            pass
        until = self.time.now + HOLD_SECONDS + 2 * FINISH_SECONDS
        while self.step(until):  # what is held still runs out
            pass
        self._end_of_day()
        self.server.installation.follower.catch_up(1)
        return self

    def _end_of_day(self) -> None:
        for till in self.tills:
            for _ in range(CLOSES):
                till.close()
                until = self.time.now + QUIET_SECONDS
                while till.open() and self.step(until):
                    pass
                closed = till.closed()
                self.say(f"{till.name} closes: {closed.answer if closed else None}")
                if closed and closed.answer == "agreed":
                    break


_BASE32 = str.maketrans("0189", "wxyz")


def _told(outcome: Outcome) -> str:
    if outcome.refusal:
        return outcome.refusal.code
    return ("again " if outcome.replayed else "") + " ".join(event.type_name for event in outcome.events)


class Till:
    """A terminal, a cashier who has a plan, and a plug that somebody pulls."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.journal = Journal.in_memory(world.merchant, name)
        self.terminal = self._terminal()
        self.plans: list[Callable[[], Call | None]] = []
        self.buyers: dict[str, str] = {}  # by reference of a sale, whose code it was
        self.away: tuple[float, float] = (0.0, 0.0)  # cut off from then till then

    def _terminal(self) -> Terminal:
        return Terminal(self.journal, _Nobody(), self.world.clock, self._reference)

    def _reference(self) -> str:
        return f"{self.world.chance.getrandbits(120):030x}"

    def cut_off(self) -> bool:
        return not self.world.whole and self.away[0] <= self.world.time.now < self.away[1]

    def plan(self) -> None:
        chance = self.world.chance
        for _ in range(chance.randint(1, 2)):
            self.world.time.after(chance.uniform(0, 240), self._customer)
        if chance.random() < 0.2:
            begin = chance.uniform(0, 200)
            self.away = (begin, begin + chance.uniform(5, 120))
        if chance.random() < 0.1:
            self.world.time.after(chance.uniform(10, 240), self._unplugged)
        if chance.random() < 0.2:
            self.world.time.after(chance.uniform(10, 240), self.close)

    def give_up_plans(self) -> None:
        self.plans.clear()

    # -- what a cashier does -----------------------------------------------------------------------------------------

    def _customer(self) -> None:
        chance, world = self.world.chance, self.world
        resident = chance.choice(world.residents)
        phone = world.phones[resident]
        code = codes.made(phone.handle, phone.secret, codes.step_at(world.clock()))
        kind = chance.choice(("pay", "pay", "authorise", "offer"))
        points = chance.randint(1, 60)
        self.begin(partial(self._sale, kind, points, code, resident))

    def _sale(self, kind: str, points: int, code: str, resident: str) -> Call | None:
        if kind == "offer":
            ask = Sale(5, code, offer="cup", items=self.world.chance.randint(1, 2))
        else:
            ask = Sale(points, code, capture=kind == "pay", hold_seconds=HOLD_SECONDS)
        sale = self.terminal.begin(ask)
        self.buyers[sale.reference] = resident
        self.world.say(f"{self.name} begins {kind} {sale.reference}")
        self.world.time.after(self.world.chance.uniform(1, 60), partial(self._then, sale.reference, kind))
        return sale

    def _then(self, reference: str, kind: str) -> None:
        """What follows a sale, if it was approved: capture, void, refund, or a customer who changes their mind."""
        chance, sale = self.world.chance, self.journal.find(reference)
        if sale is None or sale.outcome is None or sale.outcome.result != "approved":
            return
        redemption, points = sale.redemption_id, sale.outcome.points
        if kind == "authorise":
            part = chance.randint(1, points)
            ask = Void(reference, redemption) if chance.random() < 0.3 else Capture(reference, redemption, part)
            self.begin(lambda: self.terminal.begin(ask))
            return
        match chance.randrange(4):
            case 0:
                step = 5 if kind == "offer" else 1
                part = step * chance.randint(1, points // step)
                self.begin(lambda: self.terminal.begin(Refund(reference, redemption, part)))
            case 1:
                self.begin(lambda: self.terminal.reverse(reference))

    def begin(self, what: Callable[[], Call | None]) -> None:
        """Now or, if the terminal does not begin it now, when what is open is done."""
        try:
            what()
        except NotNow as error:
            self.world.say(f"{self.name} does not begin: {error.code}")
            if error.code == "unresolved-first" and len(self.plans) < 3:
                self.plans.append(what)
        self.wake()

    def close(self) -> None:
        """Close the batch by the journal's own totals."""
        batch = self.journal.batch
        self.begin(lambda: self.terminal.begin(Close(batch, self.journal.totals(batch))))

    def closed(self) -> Closed | None:
        """The platform's answer to the last close, if there was one."""
        return next(
            (c.outcome.closed for c in self.journal.recent(1_000) if isinstance(c.ask, Close) and c.outcome), None
        )

    # -- driving the terminal ----------------------------------------------------------------------------------------

    def open(self) -> bool:
        return bool(self.terminal.unresolved())

    def wake(self) -> None:
        """Send whatever is due, and come back when the next is."""
        while send := self.terminal.take():
            self.world.carry(self, send)
        if due := self.terminal.due():
            seconds = max((due - self.world.clock()).total_seconds(), 0.001)
            self.world.time.after(seconds, self.wake)

    def waited(self, send: Send) -> None:
        """No answer came in time; if one did, this says nothing."""
        if _in_flight(self.terminal, send):
            self._take_in(send, NoAnswer("nothing came in time"))

    def answered(self, send: Send, answer: Response) -> None:
        self._take_in(send, answer)

    def _take_in(self, send: Send, answer: Response | NoAnswer) -> None:
        call = self.terminal.answered(send, answer)
        if call.outcome:
            self.world.say(f"{self.name} has {call.reference} {call.outcome.result} {call.outcome.code}")
        if self.plans and not any(one.blocking for one in self.terminal.unresolved()):
            self.begin(self.plans.pop(0))
        self.wake()

    def _unplugged(self) -> None:
        """Power is back at once, and all that the terminal knows is its journal."""
        self.world.say(f"{self.name} loses power")
        self.terminal = self._terminal()
        self.wake()


class _Nobody:
    """The network carries, not a transport."""

    def send(self, request: Request) -> NoAnswer:
        raise AssertionError(f"a terminal sends {request.path} by itself")


def _in_flight(terminal: Terminal, send: Send) -> bool:
    return any(
        call.reference == send.reference and call.in_flight and call.attempt == send.attempt
        for call in terminal.unresolved()
    )
