"""Kill the server, or its database, at any moment under load: what was acknowledged is there, once, where it was said.

The moments come from a seed that is printed; FAULTS_SEED=... plays a long run again.
"""

import os
import random
import time

import pytest

from tests.faults.conftest import Place
from tests.faults.load import Load, must_hold, must_repeat
from tests.faults.servers import PostgreSQL, journal_at, running, wait_for

KILLS, KILLS_LONG = 3, 200
RECOVERS_WITHIN = 15.0  # seconds after the database is there again


def seeded(seed: int | None) -> random.Random:
    seed = seed or int(os.environ.get("FAULTS_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"FAULTS_SEED={seed}")  # noqa: T201  # shown where the test fails
    return random.Random(seed)


def kill_servers(place: Place, kills: int, seed: int | None) -> None:
    chosen, server = seeded(seed), place.server()
    with running(server):
        load = Load([server], place.secret, sources=4)
        with load.running():
            for _ in range(kills):
                time.sleep(chosen.uniform(0.02, 0.4))
                server.kill()
                server.start()
            wait_for(load.progress(50), RECOVERS_WITHIN, "reports are taken again")
            wait_for(load.at_least(50 * kills), kills * RECOVERS_WITHIN, "a busy machine has reported as much")
        told = load.told
        assert told.broken >= kills  # each kill met somebody who waited for an answer
        with journal_at(place.url) as journal:
            must_hold(told, journal, may_break=True)
            must_repeat(server, place.secret, told, journal)
    server.verified()


def kill_databases(place: Place, postgres: PostgreSQL, kills: int, seed: int | None) -> None:
    chosen, server = seeded(seed), place.server()
    with running(server):
        load = Load([server], place.secret, sources=4)
        with load.running():
            for _ in range(kills):
                wait_for(load.progress(1), RECOVERS_WITHIN, "reports are taken again")
                time.sleep(chosen.uniform(0.02, 0.4))
                postgres.kill()
                time.sleep(chosen.uniform(0, 0.5))
                postgres.start()
            wait_for(load.progress(50), RECOVERS_WITHIN, "reports are taken again")
            wait_for(load.at_least(20 * kills), kills * RECOVERS_WITHIN, "a busy machine has reported as much")
        told = load.told
        with journal_at(place.url) as journal:
            must_hold(told, journal)
            must_repeat(server, place.secret, told, journal)
    server.verified()


def test_what_a_killed_server_acknowledged_is_there_once_and_the_rest_may_be_sent_again(place: Place) -> None:
    kill_servers(place, KILLS, seed=1)


def test_what_was_acknowledged_before_the_database_was_killed_is_there_once_and_the_server_goes_on(
    place: Place, postgres: PostgreSQL
) -> None:
    kill_databases(place, postgres, KILLS, seed=2)


@pytest.mark.long
def test_two_hundred_kills_of_the_server_lose_nothing(place: Place) -> None:
    kill_servers(place, KILLS_LONG, seed=None)


@pytest.mark.long
def test_two_hundred_kills_of_the_database_lose_nothing(place: Place, postgres: PostgreSQL) -> None:
    kill_databases(place, postgres, KILLS_LONG, seed=None)
