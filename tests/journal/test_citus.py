"""A journal whose partitions Citus places on several machines. Runs where CARBON_CITUS_URL names a cluster.

The URL is a coordinator's, with a database for tests alone that has the extension on every node, and a role that may
create schemas and move them. The schemas p000 to p003 are made in it, and dropped at the end.
"""

import os
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.rows import tuple_row

from carbon_points.journal.journal import create_journal
from tests.given import NOON, capturing, holding, reversal, ride
from tests.journal.city import City, opened
from tests.journal.processes import nothing_is_lost, writing
from tests.journal.test_two_processes import in_balance, no_gaps

URL = os.environ.get("CARBON_CITUS_URL", "")
PARTITIONS = 4
NAMES = [f"p{number:03d}" for number in range(PARTITIONS)]
pytestmark = [
    pytest.mark.citus,
    pytest.mark.skipif(not URL, reason="CARBON_CITUS_URL names no PostgreSQL with Citus"),
]


def asked(sql: str, *values: object) -> list[tuple[object, ...]]:
    with psycopg.connect(URL, autocommit=True, row_factory=tuple_row) as connection:
        cursor = connection.execute(sql, values)
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
def city() -> Iterator[City]:
    """On a journal that is distributed; refused where the database has one already, which may be somebody's."""
    there = asked("SELECT nspname FROM pg_namespace WHERE nspname = ANY(%s)", NAMES)
    assert not there, "this database holds a journal: CARBON_CITUS_URL wants one of its own"
    try:
        made = create_journal(URL, partitions=PARTITIONS, distributed=True)
        assert (list(made.made), list(made.distributed)) == (NAMES, NAMES)
        with opened(URL, clock=lambda: NOON) as city:  # when points of the rides can be spent
            yield city.found()
    finally:
        for name in NAMES:
            asked(f"DROP SCHEMA IF EXISTS {name} CASCADE")


def node_of(schema: str) -> tuple[object, ...]:
    """Host and port of the machine that has it."""
    [node] = asked(
        "SELECT DISTINCT nodename, nodeport FROM citus_shards WHERE table_name = %s::text::regclass",
        f"{schema}.entries",
    )
    return node


def other_nodes(than: tuple[object, ...]) -> list[tuple[object, ...]]:
    return asked(
        "SELECT nodename, nodeport FROM pg_dist_node WHERE isactive AND shouldhaveshards AND noderole = 'primary' "
        "AND (nodename, nodeport) <> (%s::text, %s::int) ORDER BY 1, 2",
        *than,
    )


def test_a_distributed_journal_keeps_what_a_journal_promises(city: City) -> None:
    assert all(city.do(ride(str(n), resident=f"res_{n}")).position > 0 for n in range(40))
    assert city.do(ride("1", resident="res_1")).replayed
    assert city.do(ride("1", resident="res_2")).refusal  # another partition's, or this one's
    assert city.do(holding("d1", 5, resident="res_3")).refusal is None
    assert city.do(capturing("d1", 5, resident="res_3")).refusal is None
    assert city.do(reversal("4", resident="res_4")).refusal is None
    with opened(URL) as again:
        assert len(again.journal.partitions) == PARTITIONS
        no_gaps(again)
        in_balance(again)


def test_distributing_again_changes_nothing(city: City) -> None:
    made = create_journal(URL, partitions=PARTITIONS, distributed=True)
    assert (made.partitions, made.made, made.distributed) == (PARTITIONS, (), ())


def test_four_processes_on_a_distributed_journal_lose_nothing(city: City) -> None:
    with writing(URL) as writers:
        writers.all_acknowledged(200, within=120)
    nothing_is_lost(city, writers)


def test_a_partition_that_moves_to_another_machine_under_its_writers_loses_nothing(city: City) -> None:
    before = node_of("p000")
    if not (others := other_nodes(before)):
        pytest.skip("the cluster has one machine: there is nowhere to move to")
    with writing(URL) as writers:
        writers.all_acknowledged(50, within=120)
        asked("SELECT citus_schema_move('p000', %s::text, %s::int)", *others[0])
        moved = max(told[-1].at for told in writers.told)
        writers.all_acknowledged(50, within=120, after=moved)
    assert node_of("p000") == others[0]
    nothing_is_lost(city, writers)
