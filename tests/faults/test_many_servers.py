"""Four servers on one database, and the same records sent to all of them: each counts once, and all answers agree."""

import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier, Event, Thread
from typing import Any

import pytest

from carbon_points.domain.account import ActionCredited
from carbon_points.journal import codec
from tests.faults.conftest import Place
from tests.faults.load import Load, Source, Told, credited, must_hold, must_repeat, report
from tests.faults.servers import PARTITIONS, journal_at, running, wait_for

SERVERS = 4
ROUNDS, ROUNDS_LONG = 30, 1_500
SECONDS, SECONDS_LONG = 2.0, 60.0
Answers = dict[str, list[tuple[int, str, str]]]  # by record id: quantity sent, verdict, position


def ask(source: Source, names: list[str], quantity: int, many: bool) -> list[tuple[str, int, str, str]]:
    """The verdict on each, one by one or as a batch. "conflict" is other content than that which counts."""
    reports = [report(name, quantity) for name in names]
    if many:
        return [(r["record_id"], quantity, r["verdict"], r.get("position", "")) for r in source.batch(reports)]
    found = []
    for said in reports:
        answer = source.one(said)
        assert answer is not None
        body = answer.json()
        if answer.status_code == 422:
            assert (body["code"], body["facts"]) == ("identity-reused", {"fields": ["quantity"]})
        found.append((said["record_id"], quantity, body.get("verdict", "conflict"), body.get("position", "")))
    return found


def same_to_all(place: Place, rounds: int) -> None:
    servers = [place.server(f"serve-{number}") for number in range(SERVERS)]
    with running(*servers):
        answers: Answers = {}
        ready = Barrier(SERVERS)
        told = Told()

        def caller(number: int) -> list[tuple[str, int, str, str]]:
            source, found = Source(servers[number].url, place.secret, told), []
            for turn in range(rounds):
                names = [f"{turn}-{n}" for n in range(5)]
                random.Random(number).shuffle(names)
                quantity = 1 + number % 2 if turn % 4 == 0 else 1  # now and then two of them say otherwise
                ready.wait(60)
                found += ask(source, names, quantity, many=(turn + number) % 3 == 0)
            source.close()
            return found

        with ThreadPoolExecutor(SERVERS) as threads:
            for found in threads.map(caller, range(SERVERS)):
                for name, *answer in found:
                    answers.setdefault(name, []).append(tuple(answer))
        assert not told.wrong, told.wrong[:5]
        assert not told.refused
        with journal_at(place.url) as journal:
            agree(answers, credited(journal))
    servers[0].verified()


def agree(answers: Answers, found: dict[str, tuple[str, int]]) -> None:
    assert set(answers) == set(found)
    for name, told in answers.items():
        position, quantity = found[name]
        assert len(told) == SERVERS
        verdicts = Counter(verdict for _, verdict, _ in told)
        assert verdicts["accepted"] == 1, (name, told)
        for said, verdict, place in told:
            assert (verdict == "conflict") == (said != quantity), (name, told)
            assert verdict == "conflict" or place == position, (name, told)


class Tail:
    """A reader of each partition that asks for what comes after the last that it saw, while others write."""

    def __init__(self, journal: Any) -> None:
        self.seen: dict[int, list[int]] = {number: [] for number in range(PARTITIONS)}
        self.actions: dict[str, str] = {}
        self._journal, self._last = journal, Event()

    @contextmanager
    def following(self) -> Iterator["Tail"]:
        threads = [Thread(target=self._follow, args=(number,)) for number in self.seen]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._last.set()
            for thread in threads:
                thread.join()

    def _follow(self, number: int) -> None:
        after, last = 0, False
        while not last:
            last = self._last.is_set()  # then once more, and that is all
            for entry in self._journal.entries(number, after):
                after = entry.position
                self.seen[number].append(after)
                event = codec.decode(entry.type, entry.state)
                if isinstance(event, ActionCredited):
                    self.actions[event.record_id] = f"{number}:{after}"


def tailed(place: Place, seconds: float) -> None:
    servers = [place.server(f"serve-{number}") for number in range(SERVERS)]
    with running(*servers), journal_at(place.url) as journal:
        load, tail = Load(servers, place.secret, sources=8), Tail(journal)
        with tail.following(), load.running():
            time.sleep(seconds)
            wait_for(load.at_least(100), 60, "enough was written to be followed")
        assert not load.told.refused
        found = must_hold(load.told, journal)
        assert load.told.acknowledged == found  # nobody was cut off: all that was sent was acknowledged
        assert tail.actions == load.told.acknowledged
        assert tail.seen == {number: list(range(1, head + 1)) for number, head in journal.heads().items()}
        must_repeat(servers[-1], place.secret, load.told, journal)
    servers[0].verified()


def test_a_record_that_is_sent_to_four_servers_at_once_counts_once_and_all_answers_agree(place: Place) -> None:
    same_to_all(place, ROUNDS)


def test_whoever_follows_the_log_while_four_servers_write_misses_nothing(place: Place) -> None:
    tailed(place, SECONDS)


@pytest.mark.long
def test_thousands_of_records_that_are_sent_to_four_servers_at_once_count_once(place: Place) -> None:
    same_to_all(place, ROUNDS_LONG)


@pytest.mark.long
def test_whoever_follows_the_log_for_a_minute_misses_nothing(place: Place) -> None:
    tailed(place, SECONDS_LONG)
