"""What keeps a journal fit for Citus, held on a plain PostgreSQL: there each partition may lie on a machine of its own.

What is promised of the cluster itself is in `test_citus.py`.
"""

import ast
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege

import carbon_points.journal
from carbon_points.grants import grants
from carbon_points.projections.loop import follow
from carbon_points.projections.read_model import ReadModel
from tests.conftest import postgres_in
from tests.given import NOON, capturing, holding, reversal, ride
from tests.golden.test_bytes import LINES
from tests.journal.city import City, entries, opened
from tests.journal.test_two_processes import at_once

PARTITIONS = 3
SOURCES = sorted(Path(carbon_points.journal.__file__).parent.glob("*.py"))
# What is local to a node or differs between nodes: nothing may depend on it.
LOCAL = re.compile(
    r"\b(LISTEN|NOTIFY|pg_notify|pg_\w*advisory\w*|LOCK TABLE|constraint_name|\w+_pkey|nextval|\w*serial|IDENTITY"
    r"|REFERENCES|TRIGGER|VIEW)\b"
)


class Observed:
    """A city with a server of its own, which wrote down each statement with its transaction."""

    def __init__(self, url: str, log: Path) -> None:
        self.url, self._log = url, log

    def transactions(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for line in self._log.read_text("utf-8", "replace").splitlines():
            if told := re.match(r"tx (\d+ \d+/\d+) LOG:\s+(?:statement|execute [^:]*): (.*)", line):
                found[told[1]].append(told[2])
        return found

    def rows(self, sql: str) -> list[Any]:
        with psycopg.connect(self.url) as connection:
            return connection.execute(sql).fetchall()


@pytest.fixture(scope="module")
def observed() -> Iterator[Observed]:
    folder = Path(tempfile.mkdtemp(prefix="observed-"))
    server = postgres_in(folder, cleanup_mode="delete")
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        for setting, value in (("log_line_prefix", "tx %p %v "), ("log_statement", "all")):
            connection.execute(f"ALTER SYSTEM SET {setting} = '{value}'")
        connection.execute("SELECT pg_reload_conf()")
    live(server.get_uri())
    yield Observed(server.get_uri(), server.log)
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def live(url: str) -> None:
    """All kinds of work, from two processes' journals that get in each other's way."""

    def work(city: City, who: int) -> None:
        for n in range(12):
            resident, name = f"res_{n % 5}", f"{who}-{n}"
            for command in (
                ride(name, resident=resident),
                ride(f"both-{n}", resident=resident),
                holding(name, 5, resident=resident),
                capturing(name, 5, resident=resident),
                reversal(name, resident=resident),
            ):
                assert city.ask(command).failure is None

    with opened(url, partitions=PARTITIONS) as one, opened(url) as other:
        one.found()
        at_once(*[lambda who=who: work((one, other)[who % 2], who) for who in range(6)])
        assert all(len(list(one.journal.entries(p))) for p in range(PARTITIONS))
        read_model = ReadModel(url)
        follow(one.journal, read_model)
        read_model.close()
        list(one.journal.lapsed(NOON))


# -- the tables ------------------------------------------------------------------------------------------------------

OURS = r"nspname ~ '^p\d{3}$'"


def test_every_table_of_a_partition_has_a_primary_key(observed: Observed) -> None:
    tables = observed.rows(
        "SELECT nspname, relname, EXISTS(SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary) "
        f"FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE {OURS} AND relkind IN ('r', 'p')"
    )
    assert len(tables) == PARTITIONS * 5
    assert not [table for table in tables if not table[2]]


def test_a_partition_has_no_view_sequence_function_or_type_of_its_own(observed: Observed) -> None:
    assert not observed.rows(
        "SELECT nspname, relname, relkind FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace "
        f"WHERE {OURS} AND relkind NOT IN ('r', 'p', 'i', 'I', 't')"
    )
    assert not observed.rows(f"SELECT proname FROM pg_proc JOIN pg_namespace n ON n.oid = pronamespace WHERE {OURS}")
    assert not observed.rows(
        "SELECT typname FROM pg_type JOIN pg_namespace n ON n.oid = typnamespace "
        f"WHERE {OURS} AND typrelid = 0 AND typelem = 0"
    )


def test_a_partition_has_no_trigger_and_no_foreign_key(observed: Observed) -> None:
    of_ours = f"JOIN pg_class c ON c.oid = %s JOIN pg_namespace n ON n.oid = relnamespace WHERE {OURS}"
    assert not observed.rows(f"SELECT tgname FROM pg_trigger {of_ours % 'tgrelid'}")
    assert not observed.rows(f"SELECT conname FROM pg_constraint {of_ours % 'conrelid'} AND contype = 'f'")


def test_no_column_of_a_partition_takes_its_value_from_the_node(observed: Observed) -> None:
    assert not observed.rows(
        "SELECT table_schema, table_name, column_name FROM information_schema.columns "
        r"WHERE table_schema ~ '^p\d{3}$' AND (column_default IS NOT NULL OR is_identity = 'YES')"
    )


@pytest.mark.parametrize("table", ["entries", "claims"])
def test_the_role_of_a_service_may_add_to_the_log_and_change_nothing_in_it(observed: Observed, table: str) -> None:
    role = f"service_{uuid4().hex[:8]}"
    column = {"entries": "state", "claims": "stream"}[table]
    with psycopg.connect(observed.url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role}")
        connection.execute("CREATE SCHEMA IF NOT EXISTS directory; CREATE SCHEMA IF NOT EXISTS webhooks")
        connection.execute(grants(role, PARTITIONS))
        connection.execute(f"SET ROLE {role}")
        for partition in range(PARTITIONS):
            name = f"p{partition:03d}.{table}"
            assert connection.execute(f"SELECT count(*) > 0 FROM {name}").fetchone() == (True,)
            for wrong in (f"UPDATE {name} SET {column} = {column}", f"DELETE FROM {name}", f"TRUNCATE {name}"):
                with pytest.raises(InsufficientPrivilege):
                    connection.execute(wrong)


# -- what is done with them ------------------------------------------------------------------------------------------


def test_no_transaction_touches_two_partitions(observed: Observed) -> None:
    touched = {
        transaction: {schema for statement in statements for schema in re.findall(r"\bp\d{3}\b", statement)}
        for transaction, statements in observed.transactions().items()
    }
    assert not {t: observed.transactions()[t] for t, schemas in touched.items() if len(schemas) > 1}
    # and what was looked at is what happened: each partition's log was appended to, in transactions of several parts
    appended = [
        statements
        for statements in observed.transactions().values()
        if any("counter" in s and "UPDATE" in s for s in statements)
        and any("INSERT" in s and "entries" in s for s in statements)
    ]
    assert {re.findall(r"\bp\d{3}\b", " ".join(s))[0] for s in appended} == {"p000", "p001", "p002"}


def test_no_statement_on_a_partition_is_of_a_kind_that_stays_on_one_node(observed: Observed) -> None:
    said = [s for statements in observed.transactions().values() for s in statements if re.search(r"\bp\d{3}\b", s)]
    assert len(said) > 100
    assert not [s for s in said if LOCAL.search(s)]


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.name)
def test_the_journals_code_names_nothing_that_is_local_to_a_node(file: Path) -> None:
    assert not [word for word in words(file) if LOCAL.search(word)], "see docs/decisions.md, 2026-11-25"


def words(file: Path) -> Iterator[str]:
    """Names and texts of a program, without what it says to its readers."""
    tree = ast.parse(file.read_text("utf-8"))
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if id(node) not in told:
                yield text
            case ast.Attribute(attr=name) | ast.Name(id=name):
                yield name
            case _:
                pass


def test_every_number_in_the_log_is_one_that_any_reader_of_json_reads_exactly(observed: Observed) -> None:
    with opened(observed.url) as city:
        stored = [entry.state for entry in entries(city.journal)]
    stored += [line.state.encode() for line in LINES]  # and of every type there is
    seen = [number for state in stored for number in numbers(msgspec.json.decode(state))]
    assert seen
    assert not [number for number in seen if not isinstance(number, int) or abs(number) >= 2**53]


def numbers(said: Any) -> Iterator[int | float]:
    match said:
        case bool():
            return
        case int() | float():
            yield said
        case list():
            for one in said:
                yield from numbers(one)
        case dict():
            yield from numbers(list(said.values()))
        case _:
            return
