"""Kill the server, or its database, at any moment while terminals work: nothing that a cashier was told is lost,
nothing happens twice, and nothing stays open."""

import time

import pytest

from tests.faults.conftest import Place
from tests.faults.servers import PostgreSQL, journal_at, running, wait_for
from tests.faults.test_kills import KILLS, KILLS_LONG, RECOVERS_WITHIN, seeded
from tests.faults.tills import Tills

CLIENTS = 8


def kill_servers(place: Place, kills: int, seed: int | None) -> None:
    chosen, server = seeded(seed), place.server()
    with running(server):
        tills = Tills(place, server.url, CLIENTS, chosen.randrange(1 << 20))
        with tills.running():
            for _ in range(kills):
                wait_for(tills.progress(1), RECOVERS_WITHIN, "terminals are served again")
                time.sleep(chosen.uniform(0.02, 0.4))
                server.kill()
                server.start()
            wait_for(tills.progress(20), RECOVERS_WITHIN, "terminals are served again")
        tills.settle()
        with journal_at(place.url) as journal:
            assert tills.must_hold(journal) > 5 * kills
    server.verified()


def kill_databases(place: Place, postgres: PostgreSQL, kills: int, seed: int | None) -> None:
    chosen, server = seeded(seed), place.server()
    with running(server):
        tills = Tills(place, server.url, CLIENTS, chosen.randrange(1 << 20))
        with tills.running():
            for _ in range(kills):
                wait_for(tills.progress(1), RECOVERS_WITHIN, "terminals are served again")
                time.sleep(chosen.uniform(0.02, 0.4))
                postgres.kill()
                time.sleep(chosen.uniform(0, 0.5))
                postgres.start()
            wait_for(tills.progress(20), RECOVERS_WITHIN, "terminals are served again")
        tills.settle()
        with journal_at(place.url) as journal:
            assert tills.must_hold(journal) > 5 * kills
    server.verified()


def test_what_terminals_were_told_by_a_server_that_was_killed_has_happened_once(place: Place) -> None:
    kill_servers(place, KILLS, seed=3)


def test_what_terminals_were_told_before_the_database_was_killed_has_happened_once(
    place: Place, postgres: PostgreSQL
) -> None:
    kill_databases(place, postgres, KILLS, seed=4)


@pytest.mark.long
def test_two_hundred_kills_of_the_server_under_terminals(place: Place) -> None:
    kill_servers(place, KILLS_LONG, seed=None)


@pytest.mark.long
def test_two_hundred_kills_of_the_database_under_terminals(place: Place, postgres: PostgreSQL) -> None:
    kill_databases(place, postgres, KILLS_LONG, seed=None)
