"""What follows the log for webhooks, and sends: one thread, however slow some receivers are.

It asks the journal for what comes after where each endpoint stands; endpoints that stand at the same place are read for
together, and one that is behind catches up beside them. While nobody is to be told, it asks now and then whether there
is somebody, and does nothing else.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from itertools import islice

from sqlalchemy.exc import SQLAlchemyError

from carbon_points.journal.journal import Journal
from carbon_points.webhooks.deliveries import Deliveries, Leased
from carbon_points.webhooks.endpoints import Endpoint
from carbon_points.webhooks.messages import messages, signed
from carbon_points.webhooks.sending import Answer, Sender

AT_ONCE_MOST = 64  # deliveries of all endpoints at the same time
BATCH = 2_000  # entries
PAGE = 1_000  # endpoints
POLL_SECONDS = 0.5
IDLE_SECONDS = 2.0  # how soon the first endpoint is noticed that another process made
KEEP_SECONDS = 30.0  # how often positions are written down where there was nothing to tell
PURGE_SECONDS = 3_600.0
BACK_OFF_MOST_SECONDS = 30.0
STOP_SECONDS = 2.0  # how long what is being sent may take when this ends; then others send it
_log = logging.getLogger(__name__)


class Deliverer:
    """`sender` makes what sends, in the thread that uses it."""

    def __init__(
        self,
        journal: Journal,
        deliveries: Deliveries,
        sender: Callable[[], Sender],
        *,
        clock: Callable[[], datetime],
        real: Callable[[], datetime] | None = None,
    ) -> None:
        """`real`: the time that receivers go by, where it is not the installation's own."""
        self._journal, self._deliveries, self._endpoints = journal, deliveries, deliveries.endpoints
        self._sender, self._clock, self._real = sender, clock, real or clock
        self._seen: dict[tuple[str, int], int] = {}  # by endpoint and partition: read, and nothing to tell since
        self._kept_at = self._purged_at = 0.0
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        assert self._thread is None, "it delivers already"
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Return when nothing is being sent any more: what was not answered in time is sent again by others."""
        self._stopping.set()
        self._endpoints.changed.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def drain(self) -> None:
        """Tell what can be told now, in the caller's own thread, and return."""
        asyncio.run(self._deliver(once=True))

    def _run(self) -> None:
        wait = 0.0
        while not self._stopping.is_set():
            try:
                if self._endpoints.listening():
                    asyncio.run(self._deliver())
                else:
                    self._endpoints.changed.wait(IDLE_SECONDS)
                    self._endpoints.changed.clear()
                wait = 0.0
            except Exception:  # noqa: BLE001  # whatever it is, the log is still there: to stop would mend nothing
                wait = min(wait * 2 or POLL_SECONDS, BACK_OFF_MOST_SECONDS)
                _log.exception("webhooks are not delivered; trying again in %.1f s", wait)
                self._stopping.wait(wait)

    # -- sending -----------------------------------------------------------------------------------------------------

    async def _deliver(self, *, once: bool = False) -> None:
        """Until there is nobody to be told any more, or this stops; or until nothing is due."""
        loop = asyncio.get_running_loop()
        sender, sending = self._sender(), dict[asyncio.Task[None], Leased]()
        read_at, more = 0.0, None
        with ThreadPoolExecutor(4, thread_name_prefix="webhooks") as threads:
            loop.set_default_executor(threads)
            try:
                while once or not self._stopping.is_set():
                    self._endpoints.changed.clear()
                    if more or once or time.monotonic() >= read_at + POLL_SECONDS / 2:
                        read_at = time.monotonic()
                        more = await asyncio.to_thread(self._take_in)
                        if more is None and not once:
                            return
                    leased = await asyncio.to_thread(self._lease, AT_ONCE_MOST - len(sending))
                    for one in leased:
                        sending[asyncio.create_task(self._send(sender, one))] = one
                    if once and not (more or leased or sending):
                        return
                    if sending:
                        await asyncio.wait(sending, timeout=POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                    elif not (more or leased):
                        await asyncio.to_thread(self._endpoints.changed.wait, POLL_SECONDS)
                    self._settled(sending)
            finally:
                await self._end(sending)
                await sender.aclose()
                await asyncio.to_thread(self._keep, force=True)

    def _lease(self, most: int) -> list[Leased]:
        return self._deliveries.lease(most, now=self._clock()) if most > 0 else []

    async def _send(self, sender: Sender, one: Leased) -> None:
        if one.secrets:
            headers = signed(one.secrets, one.event_id, self._real(), one.body)
            headers |= {"webhook-sequence": str(one.sequence), "content-type": "application/json"}
            answer = await sender.post(one.url, headers, one.body)
        else:
            answer = Answer(None, "its secret was sealed by another subject key than this server's")
        await asyncio.to_thread(self._deliveries.settle, one, answer, now=self._clock())

    def _settled(self, sending: dict[asyncio.Task[None], Leased]) -> None:
        """Forget what is over. Raises what kept one from being written down: its lease runs out."""
        for task in [task for task in sending if task.done()]:
            del sending[task]
            task.result()

    async def _end(self, sending: dict[asyncio.Task[None], Leased]) -> None:
        if not sending:
            return
        await asyncio.wait(sending, timeout=STOP_SECONDS)
        left = [one for task, one in sending.items() if not task.done()]
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
        with suppress(SQLAlchemyError):  # then the leases run out by themselves
            await asyncio.to_thread(self._deliveries.release, left)

    # -- from the log ------------------------------------------------------------------------------------------------

    def _take_in(self) -> bool | None:
        """Read on for every endpoint: whether there is more to read, or None where there is nobody to be told."""
        self._purge()
        known = self._known()
        enabled = [one for one in known if one.status == "enabled"]
        if not enabled:
            return None
        full = self._deliveries.full()
        reading = [one for one in enabled if one.endpoint_id not in full]
        more = False
        for partition, head in self._journal.heads().items():  # after the endpoints were read: none is ahead of it
            if ahead := [one.endpoint_id for one in known if one.positions.get(partition, 0) > head]:
                _log.warning(
                    "the log of partition %d was restored to %d: its webhooks go on from there", partition, head
                )
                self._deliveries.rewind(partition, head, ahead)
                self._seen.clear()
                more = True
                continue
            more |= self._read(partition, head, reading)
        self._keep()
        return more

    def _known(self) -> list[Endpoint]:
        found: list[Endpoint] = []
        while page := self._endpoints.all(after=found[-1].endpoint_id if found else None, limit=PAGE):
            found += page
        enabled = {one.endpoint_id for one in found if one.status == "enabled"}
        for key in [key for key in self._seen if key[0] not in enabled]:
            del self._seen[key]  # should it be enabled again, it goes on from where it was written down to stand
        return found

    def _read(self, partition: int, head: int, reading: Sequence[Endpoint]) -> bool:
        """A batch of a partition for those who stand foremost, and one for each other place. Whether there is more."""
        standing: dict[int, list[Endpoint]] = {}
        for one in reading:
            at = max(one.positions.get(partition, 0), self._seen.get((one.endpoint_id, partition), 0))
            standing.setdefault(at, []).append(one)
        more = False
        for at in sorted(standing, reverse=True):
            if at >= head or self._stopping.is_set():
                continue
            entries = list(islice(self._journal.entries(partition, at, head, chunk=BATCH), BATCH))
            if not entries:
                continue
            until, told = entries[-1].position, list(messages(entries))
            to = {e.endpoint_id for e in standing[at] if any(e.wants(m.type, m.merchant) for m in told)}
            if to:  # where they stand then is in their rows: one that was disabled meanwhile has not moved
                self._deliveries.take_in(partition, until, told, sorted(to), now=self._clock())
            others = (one.endpoint_id for one in standing[at] if one.endpoint_id not in to)
            self._seen |= {(endpoint_id, partition): until for endpoint_id in others}
            more |= until < head
        return more

    def _keep(self, *, force: bool = False) -> None:
        """Write down where endpoints stand that were told nothing, so that a restart need not read it all again."""
        now = time.monotonic()
        if not force and now < self._kept_at + KEEP_SECONDS:
            return
        self._kept_at = now
        by_place: dict[tuple[int, int], list[str]] = {}
        for (endpoint_id, partition), position in self._seen.items():
            by_place.setdefault((partition, position), []).append(endpoint_id)
        for (partition, position), endpoints in by_place.items():
            self._deliveries.take_in(partition, position, [], endpoints, now=self._clock())

    def _purge(self) -> None:
        if (now := time.monotonic()) >= self._purged_at + PURGE_SECONDS:
            self._deliveries.purge(now=self._clock())
            self._purged_at = now
