"""Sources that report on and on, each from a thread of its own, and remember what they were told."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from threading import Event
from time import monotonic, sleep
from typing import Any

import httpx
import msgspec

from carbon_points.domain.account import ActionCredited
from carbon_points.journal import codec
from carbon_points.journal.journal import Journal
from tests.faults.servers import Server

LINES = 20  # of a batch
HANGS_AFTER = 75.0  # seconds: what comes later is no answer
CARDS = 7
OCCURRED = (datetime.now(UTC) - timedelta(hours=1)).isoformat(timespec="seconds")
KEEP_ALIVE = httpx.Limits(max_connections=1)


def report(record_id: str, quantity: int = 1) -> dict[str, str]:
    """A kilometre by a card that others use, too: its account is written from many sides."""
    return {
        "source": "szt",
        "record_id": record_id,
        "resident": f"card-{sum(record_id.encode()) % CARDS}",
        "behaviour": "green",
        "quantity": str(quantity),
        "unit": "km",
        "occurred_at": OCCURRED,
    }


class Told:
    """What became of each report, by its record id: where it lies, if that was acknowledged."""

    def __init__(self) -> None:
        self.sent: dict[str, dict[str, str]] = {}
        self.acknowledged: dict[str, str] = {}
        self.refused: Counter[str] = Counter()  # answers that ask to come again, by code
        self.broken = 0  # connections that ended without an answer
        self.wrong: list[str] = []  # answers that nobody should get
        self.slowest = 0.0  # seconds


class Source:
    """One caller with one connection."""

    def __init__(self, url: str, secret: str, told: Told) -> None:
        self.told = told
        headers = {"Authorization": f"Bearer {secret}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=HANGS_AFTER, limits=KEEP_ALIVE)

    def close(self) -> None:
        self._http.close()

    def one(self, said: dict[str, str]) -> httpx.Response | None:
        """Report one action. None where the connection ended without an answer."""
        self.told.sent[said["record_id"]] = said
        with self._listening():
            answer = self._http.post("/v1/actions", json=said)
            if answer.status_code in {200, 201}:
                self._acknowledge(said["record_id"], answer.headers["Carbon-Position"])
            else:
                self._refused(answer)
            return answer
        return None

    def batch(self, reports: Sequence[dict[str, str]]) -> list[Any]:
        """Report many; what was told of them until the end of the answer or of the connection."""
        self.told.sent |= {said["record_id"]: said for said in reports}
        lines: list[Any] = []
        body = b"".join(msgspec.json.encode(said) + b"\n" for said in reports)
        with self._listening(), self._http.stream("POST", "/v1/actions/batch", content=body) as answer:
            if answer.status_code != 200:
                answer.read()
                self._refused(answer)
                return []
            for line in answer.iter_lines():
                found = msgspec.json.decode(line)
                if "verdict" not in found:
                    self._come_again(found)
                    break
                lines.append(found)
                if found["verdict"] in {"accepted", "duplicate"}:
                    self._acknowledge(found["record_id"], found["position"])
                elif found["verdict"] != "conflict":
                    self.told.wrong.append(str(found))
        return lines

    @contextmanager
    def _listening(self) -> Iterator[None]:
        begun = monotonic()
        try:
            yield
        except httpx.TimeoutException as error:
            self.told.wrong.append(f"no answer after {monotonic() - begun:.0f} s: {error!r}")
        except httpx.TransportError:
            self.told.broken += 1
        self.told.slowest = max(self.told.slowest, monotonic() - begun)

    def _acknowledge(self, record_id: str, position: str) -> None:
        before = self.told.acknowledged.setdefault(record_id, position)
        if before != position:
            self.told.wrong.append(f"{record_id} was told to lie at {before}, then at {position}")

    def _refused(self, answer: httpx.Response) -> None:
        kind, again = answer.headers.get("content-type"), answer.headers.get("retry-after", "")
        if answer.status_code != 503:
            if answer.status_code != 422:  # other content under a known id: its test looks at the answer
                self.told.wrong.append(f"{answer.status_code}: {answer.text}")
        elif kind != "application/problem+json" or not again.isdigit():
            self.told.wrong.append(f"{answer.headers}: {answer.text}")
        else:
            self._come_again(answer.json())

    def _come_again(self, problem: Any) -> None:
        if problem["status"] != 503 or problem["retryable"] != "same-key":
            self.told.wrong.append(str(problem))
        self.told.refused[problem["code"]] += 1


class Load:
    """Sources that report new actions until they are stopped: half of them one by one, half in batches."""

    def __init__(self, servers: Sequence[Server], secret: str, *, sources: int = 6, name: str = "r") -> None:
        self.told = Told()
        self._servers, self._secret, self._sources, self._name = servers, secret, sources, name
        self._stopping = Event()

    @contextmanager
    def running(self) -> Iterator["Load"]:
        with ThreadPoolExecutor(self._sources) as threads:
            work = [threads.submit(self._report, number) for number in range(self._sources)]
            try:
                yield self
            finally:
                self._stopping.set()
                for done in work:
                    done.result()

    def _report(self, number: int) -> None:
        server = self._servers[number % len(self._servers)]
        source = Source(server.url, self._secret, self.told)
        sent = 0
        while not self._stopping.is_set():
            before = len(self.told.acknowledged)
            if number % 2:
                names = [f"{self._name}-{number}-{n}" for n in range(sent, sent + LINES)]
                source.batch([report(name) for name in names])
                sent += LINES
            else:
                source.one(report(f"{self._name}-{number}-{sent}"))
                sent += 1
            if len(self.told.acknowledged) == before:
                sleep(0.05)  # whoever is refused does not come again at once
        source.close()

    def progress(self, more: int) -> Any:
        """Whether so many more were acknowledged than now."""
        return self.at_least(len(self.told.acknowledged) + more)

    def at_least(self, many: int) -> Any:
        """Whether so many were acknowledged."""
        return lambda: len(self.told.acknowledged) >= many


def credited(journal: Journal) -> dict[str, tuple[str, int]]:
    """Where each action lies and its quantity; each lies there once, and no position is left out."""
    found: dict[str, tuple[str, int]] = {}
    for number, head in journal.heads().items():
        entries = list(journal.entries(number))
        assert [entry.position for entry in entries] == list(range(1, head + 1))
        for entry in entries:
            event = codec.decode(entry.type, entry.state)
            if isinstance(event, ActionCredited):
                assert event.record_id not in found, f"{event.record_id} lies there twice"
                found[event.record_id] = (f"{number}:{entry.position}", int(event.quantity))
    return found


def must_hold(told: Told, journal: Journal, *, may_break: bool = False) -> dict[str, str]:
    """What was acknowledged lies where it was said to; what was not lies there once or not at all."""
    assert not told.wrong, told.wrong[:5]
    assert may_break or not told.broken
    found = {name: position for name, (position, _) in credited(journal).items()}
    assert set(found) <= set(told.sent)
    lost = {name for name, position in told.acknowledged.items() if found.get(name) != position}
    assert not lost, f"{len(lost)} acknowledged actions are not where they were said to lie: {sorted(lost)[:5]}"
    return found


def must_repeat(server: Server, secret: str, told: Told, journal: Journal) -> None:
    """The whole input again: what lies there is a duplicate, what does not is accepted; after that all is the same."""
    before = must_hold(told, journal, may_break=True)
    names = sorted(told.sent, key=lambda name: random.Random(name).random())
    expected = {name: "duplicate" if name in before else "accepted" for name in names}
    places: dict[str, str] = {}
    for _ in range(2):
        source = Source(server.url, secret, Told())
        lines = source.batch([told.sent[name] for name in names])
        while source.told.refused:  # a connection from before the fault was met: whoever is told so comes again
            assert source.told.refused.total() < 20, source.told.refused
            expected |= {line["record_id"]: "duplicate" for line in lines}
            sleep(0.2)
            met, lines = source.told.refused.total(), source.batch([told.sent[name] for name in names])
            if source.told.refused.total() == met:
                expected |= {line["record_id"]: line["verdict"] for line in lines if line["record_id"] not in before}
                break
        source.close()
        assert not source.told.wrong, source.told.wrong[:5]
        assert all(line["verdict"] in {"accepted", "duplicate"} for line in lines)
        assert {line["record_id"]: line["verdict"] for line in lines} == expected
        assert all(line["position"] == before.get(line["record_id"], line["position"]) for line in lines)
        if not places:
            places = {line["record_id"]: line["position"] for line in lines}
            expected = dict.fromkeys(names, "duplicate")
            heads = journal.heads()
    assert places == {line["record_id"]: line["position"] for line in lines}
    assert journal.heads() == heads
    assert {name: position for name, (position, _) in credited(journal).items()} == places
