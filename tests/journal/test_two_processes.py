"""Two journals on one database, as two processes have them: neither knows of the other, and nothing happens twice.

Each `City` here has its own connections, its own states in memory and its own batches, as a process has.
"""

import random
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from carbon_points.domain.account import FreezeAccount, HoldDeclined, InsufficientPoints
from carbon_points.domain.refusal import Conflict
from carbon_points.domain.source import ChangeSource
from carbon_points.journal import journal as journal_module
from carbon_points.journal.journal import open_journal
from carbon_points.journal.partition import Outcome, Unavailable
from carbon_points.journal.recorder import Contended, Unreachable
from tests.conftest import Clock
from tests.given import NOON, capturing, holding, refunding, reversal, ride, voiding
from tests.journal.city import City, balances, entries, events, folded, opened

THREADS = 20


@pytest.fixture
def cities(shared_journal_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[City, City]]:
    monkeypatch.setattr(journal_module, "WAITING_SECONDS", 60.0)  # of a busy machine it is no overload
    with opened(shared_journal_url, clock=clock) as one, opened(shared_journal_url, clock=clock) as other:
        yield one.found(), other


def at_once(*work: Callable[[], Any]) -> list[Any]:
    """All of them from threads of their own, begun together."""
    ready = threading.Barrier(len(work))

    def begin(one: Callable[[], Any]) -> Any:
        ready.wait()
        return one()

    with ThreadPoolExecutor(len(work)) as threads:
        return [done.result() for done in [threads.submit(begin, one) for one in work]]


def no_gaps(city: City) -> None:
    for number, head in city.journal.heads().items():
        assert [e.position for e in city.journal.entries(number)] == list(range(1, head + 1))
    versions: Counter[str] = Counter()
    for entry in entries(city.journal):
        versions[entry.stream] += 1
        assert entry.version == versions[entry.stream]


def in_balance(city: City) -> None:
    """What the log says stands on every account is what the states say."""
    standing = balances(events(city.journal))
    for asset in ("mg", "points", "fen"):
        assert sum(amount for (of, _), amount in standing.items() if of == asset) == 0
    for stream, state in folded(city.journal).items():
        if stream.startswith("res_"):
            assert standing[("points", f"resident/{stream}")] == sum(state.grants.values())
            assert standing[("points", f"held/{stream}")] == state.held(NOON)
            kept = city.journal.state(stream)
            assert (kept.grants, kept.holds, kept.debt_points) == (state.grants, state.holds, state.debt_points)


# -- races -----------------------------------------------------------------------------------------------------------


def test_two_processes_that_send_the_same_records_accept_each_once(cities: tuple[City, City]) -> None:
    def send(city: City, seed: int) -> list[Outcome]:
        commands = [ride(str(n), resident=f"res_{n % 7}") for n in range(30)]
        random.Random(seed).shuffle(commands)
        return [city.ask(command) for command in commands]

    work = [lambda n=n: send(cities[n % 2], n) for n in range(THREADS)]
    outcomes = [outcome for sent in at_once(*work) for outcome in sent]
    assert all(outcome.refusal is None and outcome.failure is None for outcome in outcomes)
    first = Counter(o.events[-1].record_id for o in outcomes if not o.replayed)
    assert first == Counter(str(n) for n in range(30))
    places = {(o.events[-1].record_id, o.partition, o.position) for o in outcomes}
    assert len(places) == 30  # everyone was told the same place
    for city in cities:
        no_gaps(city)
        in_balance(city)
    credited = [e for e in entries(cities[0].journal) if e.type == "action-credited/1"]
    assert len(credited) == 30


def test_two_processes_that_write_to_the_same_accounts_lose_nothing(cities: tuple[City, City]) -> None:
    def live(city: City, who: int) -> None:
        chosen = random.Random(who)
        for n in range(8):
            resident, name = f"res_{chosen.randrange(3)}", f"{who}-{n}"
            assert city.ask(ride(name, resident=resident)).failure is None
            held = city.ask(holding(name, chosen.randrange(1, 12), resident=resident))
            if held.refusal is None:
                end = chosen.choice([voiding(name, resident=resident), capturing(name, 1, resident=resident)])
                assert city.ask(end).refusal is None
            if chosen.random() < 0.3:
                assert city.ask(reversal(name, resident=resident)).refusal is None

    at_once(*[lambda who=who: live(cities[who % 2], who) for who in range(THREADS)])
    for city in cities:
        no_gaps(city)
        in_balance(city)


def test_two_processes_with_whole_batches_on_the_same_streams_both_get_through(cities: tuple[City, City]) -> None:
    def send(city: City, who: str) -> list[Outcome]:
        made = []
        for n in range(10):
            made += city.all(*(ride(f"{who}-{n}-{r}", resident=f"res_{r}") for r in range(10)))
        return made

    outcomes = [o for sent in at_once(lambda: send(cities[0], "a"), lambda: send(cities[1], "b")) for o in sent]
    assert all(outcome.position > 0 and not outcome.replayed for outcome in outcomes)
    no_gaps(cities[0])
    in_balance(cities[0])


@pytest.mark.parametrize("both", [False, True], ids=["one process", "two processes"])
def test_twenty_threads_that_redeem_the_same_hundred_points_spend_what_there_is(
    cities: tuple[City, City], both: bool
) -> None:
    first, other = cities
    first.all(*(ride(str(n)) for n in range(10)))  # 100 points

    def redeem(city: City, name: str) -> bool:
        held = city.ask(holding(name, 15))
        assert held.refusal is None
        if isinstance(declined := held.events[-1], HoldDeclined):
            assert declined.reason == InsufficientPoints.code
            return False
        captured = city.ask(capturing(name, 15))
        assert captured.refusal is None
        return True

    work = [lambda n=n: redeem((first, other)[n % 2 if both else 0], f"d{n}") for n in range(THREADS)]
    assert sum(at_once(*work)) == 6  # six times fifteen; ten points are left
    standing = balances(events(first.journal))
    assert standing[("points", "merchant/bakery")] == 90
    assert standing[("points", "resident/res_1")] == 10
    assert other.resident().available(NOON) == 10
    no_gaps(first)
    in_balance(other)


def test_twenty_threads_with_one_redemption_id_hold_and_capture_once(cities: tuple[City, City]) -> None:
    cities[0].all(*(ride(str(n)) for n in range(10)))

    def redeem(city: City) -> tuple[Outcome, Outcome]:
        return city.ask(holding("d1", 60)), city.ask(capturing("d1", 60))

    made = at_once(*[lambda n=n: redeem(cities[n % 2]) for n in range(THREADS)])
    for step in (0, 1):
        outcomes = [both[step] for both in made]
        assert all(outcome.refusal is None for outcome in outcomes), [str(o.refusal) for o in outcomes if o.refusal]
        assert sum(not outcome.replayed for outcome in outcomes) == 1
        assert len({(o.partition, o.position) for o in outcomes}) == 1
    assert balances(events(cities[1].journal))[("points", "merchant/bakery")] == 60


def test_refunds_from_everywhere_give_back_no_more_than_was_captured(cities: tuple[City, City]) -> None:
    cities[0].all(*(ride(str(n)) for n in range(10)), holding("d1", 100), capturing("d1", 100))
    work = [lambda n=n: cities[n % 2].ask(refunding(f"f{n}", 30)) for n in range(THREADS)]
    assert sum(outcome.refusal is None for outcome in at_once(*work)) == 3
    assert cities[1].resident().available(NOON) == 90


def test_one_id_with_different_content_from_everywhere_is_accepted_once_and_else_a_conflict(
    cities: tuple[City, City],
) -> None:
    work = [lambda n=n: cities[n % 2].ask(ride("1", quantity=Decimal(n + 1))) for n in range(THREADS)]
    outcomes = at_once(*work)
    assert sum(not outcome.replayed for outcome in outcomes) == 1
    assert sum(isinstance(outcome.refusal, Conflict) for outcome in outcomes) == THREADS - 1
    assert cities[0].resident().available(NOON) == 10


# -- what the other process wrote meanwhile --------------------------------------------------------------------------


def test_a_process_decides_by_what_another_has_written_meanwhile(cities: tuple[City, City]) -> None:
    mine, theirs = cities
    mine.do(ride("1"))
    theirs.do(ride("2"))
    theirs.do(holding("d1", 20))
    outcome = mine.do(ride("3"))  # from a state in memory that is two events old
    assert outcome.refusal is None
    assert outcome.version == 6
    in_balance(mine)


def test_points_that_another_process_credited_can_be_spent_here(cities: tuple[City, City]) -> None:
    mine, theirs = cities
    mine.do(ride("1"))
    theirs.do(ride("2"))
    assert mine.do(holding("d1", 20)).position > 0


def test_an_account_that_another_process_thawed_can_spend_here(cities: tuple[City, City]) -> None:
    mine, theirs = cities
    mine.do(ride("1"))
    mine.do(FreezeAccount(resident="res_1", frozen=True, reason="-"))
    theirs.do(FreezeAccount(resident="res_1", frozen=False, reason="-"))
    assert mine.do(holding("d1", 10)).position > 0


def test_an_account_that_another_process_opened_is_known_here(cities: tuple[City, City]) -> None:
    mine, theirs = cities
    assert mine.do(holding("d0", 1)).refusal is not None
    theirs.do(ride("1"))
    assert mine.do(holding("d1", 10)).position > 0


def test_a_hold_that_another_process_made_can_be_captured_here(cities: tuple[City, City]) -> None:
    mine, theirs = cities
    mine.do(ride("1"))
    theirs.do(holding("d1", 10))
    assert mine.do(capturing("d1", 10)).position > 0


def test_an_earlier_answer_is_given_with_the_balance_of_now(cities: tuple[City, City]) -> None:
    mine, theirs = cities
    mine.do(ride("1"))
    theirs.do(ride("2"))
    assert mine.do(ride("1"), view=lambda account, now: account.available(now)).view == 20


def test_a_lost_race_is_run_again_by_the_loser_and_not_noticed_by_its_caller(
    cities: tuple[City, City], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = cities
    mine.do(ride("1"))
    recorder = mine.journal.partition_of("res_1").recorder
    append, lost = recorder.append, []

    def overtaken(*args: Any) -> int:
        if not lost:
            theirs.do(ride("2"))
        try:
            return append(*args)
        except Contended:
            lost.append(1)
            raise

    monkeypatch.setattr(recorder, "append", overtaken)
    assert mine.do(ride("3")).position > 0
    assert lost == [1]
    assert mine.resident().available(NOON) == 30
    no_gaps(mine)


def test_a_record_that_another_process_wrote_between_look_and_leap_is_the_earlier_answer(
    cities: tuple[City, City], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = cities
    mine.do(ride("1", resident="res_1"))
    recorder = mine.journal.partition_of("res_1").recorder
    append, told = recorder.append, []

    def overtaken(*args: Any) -> int:
        if not told:
            told.append(theirs.do(ride("2")))
        return append(*args)

    monkeypatch.setattr(recorder, "append", overtaken)
    outcome = mine.do(ride("2"))
    assert outcome.replayed
    assert outcome.position == told[0].position
    assert mine.resident().available(NOON) == 20


def test_a_change_of_rules_by_another_process_is_seen_within_its_time(
    cities: tuple[City, City], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = cities
    assert not mine.journal.rules().sources.by_id["szt"].suspended
    theirs.do(ChangeSource(source="szt", behaviours=("bus",), suspended=True))
    mine.journal.rules_changed()  # as the passing of a second does
    assert mine.journal.rules().sources.by_id["szt"].suspended


# -- opening ---------------------------------------------------------------------------------------------------------


def test_two_processes_that_open_a_new_journal_at_once_both_get_it(shared_journal_url: str, clock: Clock) -> None:
    for journal in at_once(*[lambda: open_journal(shared_journal_url, partitions=3, clock=clock)] * 4):
        assert list(journal.heads()) == [0, 1, 2]
        journal.close()


def test_a_journal_keeps_the_number_of_partitions_it_was_created_with(shared_journal_url: str, clock: Clock) -> None:
    with opened(shared_journal_url, partitions=3, clock=clock) as city:
        city.found().all(*(ride(str(n), resident=f"res_{n}") for n in range(12)))
        before = [(e.partition, e.position, e.leaf) for e in entries(city.journal)]
    for wished in (1, 3, 8):
        with opened(shared_journal_url, partitions=wished, clock=clock) as city:
            assert len(city.journal.partitions) == 3
            assert [(e.partition, e.position, e.leaf) for e in entries(city.journal)] == before


def test_a_journal_that_is_opened_again_goes_on_where_it_stopped(shared_journal_url: str, clock: Clock) -> None:
    with opened(shared_journal_url, clock=clock) as city:
        first = city.found().do(ride("1"))
    with opened(shared_journal_url, clock=clock) as city:
        assert city.do(ride("1")).position == first.position
        assert city.do(ride("2")).position == first.position + 1
        assert city.resident().available(NOON) == 20


def test_a_journal_of_another_format_is_not_opened(shared_journal_url: str, clock: Clock) -> None:
    with opened(shared_journal_url, clock=clock) as city:
        city.found()
        rewrite_format(shared_journal_url)
    with pytest.raises(ValueError, match="format 2"):
        open_journal(shared_journal_url, clock=clock)


def rewrite_format(url: str) -> None:
    if url.startswith("sqlite"):
        with sqlite3.connect(url.removeprefix("sqlite:///") + "/p000.sqlite") as connection:
            connection.execute("UPDATE about SET value = '2' WHERE name = 'format'")
        connection.close()
    else:
        with psycopg.connect(url) as connection:
            connection.execute("UPDATE p000.about SET value = '2' WHERE name = 'format'")


def test_recorded_at_does_not_go_back_when_the_process_begins_again(shared_journal_url: str, clock: Clock) -> None:
    with opened(shared_journal_url, clock=clock) as city:
        latest = city.found().do(ride("1")).events[-1].recorded_at
    clock.move(-timedelta(seconds=20))
    with opened(shared_journal_url, clock=clock) as city:
        outcome = city.do(ride("2", occurred_at=NOON - timedelta(days=2)))
        assert outcome.events[-1].recorded_at >= latest


# -- a server that goes away -----------------------------------------------------------------------------------------


def test_connections_that_the_server_dropped_are_made_again(postgres_url: str, clock: Clock) -> None:
    with opened(postgres_url, clock=clock) as city:
        city.found().do(ride("1"))
        drop_connections(postgres_url)
        assert city.do(ride("2")).position > 0
    with opened(postgres_url, clock=clock) as city:
        assert city.resident().available(NOON) == 20
        no_gaps(city)


def test_a_server_that_only_reads_is_unavailable_and_not_a_mistake(postgres_url: str, clock: Clock) -> None:
    """As a standby is, that nobody has promoted yet."""
    with opened(postgres_url, clock=clock) as city:
        city.found()
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        name = SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(
            Identifier(connection.info.dbname)
        )
        connection.execute(name)
    with opened(postgres_url, clock=clock) as city, pytest.raises(Unavailable):
        city.do(ride())


def test_reading_is_tried_again_where_the_server_dropped_its_connection(postgres_url: str, clock: Clock) -> None:
    with opened(postgres_url, clock=clock) as city:
        city.found().do(ride("1"))
        drop_connections(postgres_url)
        assert city.resident().available(NOON) == 10


def drop_connections(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def test_a_commit_whose_answer_was_lost_is_found_and_not_made_again(
    postgres_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database committed, and the line went dead before it could say so."""
    with opened(postgres_url, clock=clock) as city:
        city.found()
        recorder = city.journal.partition_of("res_1").recorder
        append, lost = recorder.append, []

        def deaf(*args: Any) -> int:
            made = append(*args)
            if not lost:
                lost.append(made)
                raise Unreachable("the server closed the connection")
            return made

        monkeypatch.setattr(recorder, "append", deaf)
        outcome = city.do(ride("1"))
        assert (outcome.refusal, outcome.position) == (None, lost[0])
        assert city.resident().available(NOON) == 10
        no_gaps(city)
