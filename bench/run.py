"""Our paths beside their peers and the physical limits, in one run: a table of ratios, and `results.json`.

`BENCH=quick` takes shorter looks. Every figure of a ratio comes from this run, on this machine, with PostgreSQL, the
load generator and the server on the same cores; see README.md beside this file for what each line compares.
"""

import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import psycopg
from psycopg.conninfo import conninfo_to_dict
from rich.console import Console
from rich.table import Table
from servers import (
    HERE,
    TUNED,
    Load,
    Ours,
    carbon_points,
    compiled,
    database,
    environment_of,
    load,
    ours,
    peer,
    pgbench,
    postgres,
)

from carbon_points.domain.account import ActionFacts, RecordAction
from carbon_points.journal import codec
from carbon_points.journal.journal import Journal, open_journal
from carbon_points.journal.partition import Write

QUICK = os.environ.get("BENCH") == "quick"
SECONDS = 4 if QUICK else 12  # of each look through HTTP
CONNECTIONS = (32, 128, 256)
BULK = 100_000 if QUICK else 200_000  # actions of each bulk look
LONG, LOOKS = (20_000, 300) if QUICK else (100_000, 1_000)
RATES = (500, 1_000) if QUICK else (500, 1_000, 2_000)
RESIDENTS = 20_000
MANY = 300_000
NEEDED = {  # name: (at least, aim, whether more is better)
    "single_vs_upsert": (4.0, 6.0, True),
    "single_vs_pgbench": (0.5, 0.8, True),
    "lone_p99_vs_insert": (3.0, 1.5, False),
    "bulk_cold_vs_copy": (0.15, 0.4, True),
    "bulk_warm_vs_copy": (0.2, 0.5, True),
    "rebuild_vs_read": (0.3, 0.6, True),
    "long_account_vs_new": (1.3, 1.05, False),
}
console = Console()


def main() -> None:
    figures: dict[str, Any] = {"quick": QUICK, "postgresql": TUNED}
    with tempfile.TemporaryDirectory(prefix="carbon-bench-") as named:
        folder = Path(named)
        folder.chmod(0o755)
        binary = compiled(folder)
        with postgres(folder) as server:
            for name, look in (
                ("pgbench", lambda: look_at_pgbench(server)),
                ("upsert", lambda: look_at_peer(server, folder, binary, "upsert")),
                ("per_request", lambda: look_at_peer(server, folder, binary, "per_request")),
                ("insert", lambda: look_at_insert(server)),
                ("single", lambda: look_at_ours(server, folder, binary)),
                ("bulk", lambda: look_at_bulk(server, folder)),
                ("long_account", lambda: look_at_long_account(server)),
            ):
                begun = time.monotonic()
                figures[name] = look()
                console.print(f"[dim]{name}: {time.monotonic() - begun:.0f} s[/]", highlight=False)
    figures["ratios"] = ratios(figures)
    figures["memory_mb"] = figures["single"]["memory_mb"]
    (HERE / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(figures)))
    show(figures)


def ratios(f: dict[str, Any]) -> dict[str, float]:
    """Of several numbers of connections, the one where we stand worst."""
    single = {c: f["single"]["at"][c]["per_second"] for c in map(str, CONNECTIONS)}
    told = {
        "single_vs_upsert": min(single[c] / f["upsert"][c]["per_second"] for c in single),
        "single_vs_pgbench": min(single[c] / f["pgbench"][c] for c in single),
        "single_vs_per_request": min(single[c] / f["per_request"][c]["per_second"] for c in single),
        "lone_p99_vs_insert": f["single"]["lone"]["p99_ms"] / f["insert"]["p99_ms"],
        "bulk_cold_vs_copy": f["bulk"]["cold"]["copy_seconds"] / f["bulk"]["cold"]["seconds"],
        "bulk_warm_vs_copy": f["bulk"]["warm"]["copy_seconds"] / f["bulk"]["warm"]["seconds"],
        "rebuild_vs_read": f["bulk"]["read_seconds"] / f["bulk"]["rebuild_seconds"],
        "long_account_vs_new": f["long_account"]["long_ms"] / f["long_account"]["new_ms"],
    }
    return {name: round(value, 3) for name, value in told.items()}


def show(figures: dict[str, Any]) -> None:
    table = Table("ratio", "here", "at least", "aim", "", title="carbon_points beside its peers and limits")
    for name, value in figures["ratios"].items():
        least, aim, more = NEEDED.get(name, (None, None, True))
        met = least is None or (value >= least if more else value <= least)
        bound = "" if least is None else f"{'≥' if more else '≤'} {least}"
        table.add_row(name, f"{value:.3f}", bound, str(aim or ""), "" if least is None else "met" if met else "missed")
    table.add_row("memory_mb", f"{figures['memory_mb']:.0f}", "≤ 500", "300", "")
    console.print(table)
    console.print(f"all figures: {HERE / 'results.json'}", highlight=False)


# -- reports ---------------------------------------------------------------------------------------------------------

_made = 0


def reports(file: Path, count: int, residents: int, *, in_turn: bool = False, distinct: bool = False) -> Path:
    """Bus rides of a month, never the same record id twice in a run.

    Of residents at random or in turn, or of one each whom nobody has heard of (`distinct`).
    """
    global _made  # noqa: PLW0603  # the run's own counter of record ids
    begun = datetime.now(UTC) - timedelta(days=25)
    with file.open("w") as out:
        for n in range(count):
            _made += 1
            at = begun + timedelta(seconds=random.randrange(25 * 86_400))
            card = MANY + _made if distinct else n % residents if in_turn else random.randrange(residents)
            out.write(
                f'{{"source":"szt","record_id":"r{_made:012d}","resident":"card-{card:09d}","behaviour":"bus",'
                f'"quantity":"1","unit":"trip","occurred_at":"{at:%Y-%m-%dT%H:%M:%S}Z"}}\n'
            )
    return file


# -- peers and limits ------------------------------------------------------------------------------------------------


def look_at_pgbench(server: str) -> dict[str, float]:
    """One transaction an action, of the two rows that an action is at least: no program between."""
    with database(server) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                "CREATE TABLE pgbench_entries (stream text, version bigint, state bytea NOT NULL, "
                "PRIMARY KEY (stream, version))"
            )
            connection.execute("CREATE SEQUENCE pgbench_versions CACHE 1000")
            connection.execute(
                "CREATE TABLE pgbench_balances (resident bigint PRIMARY KEY, reduction_mg bigint NOT NULL, "
                "points bigint NOT NULL)"
            )
        script = HERE / "peers" / "actions.sql"
        return {str(c): pgbench(url, script, clients=c, seconds=SECONDS) for c in CONNECTIONS}


def look_at_peer(server: str, folder: Path, binary: Path, name: str) -> dict[str, Any]:
    with database(server) as url:
        known = {key: str(value) for key, value in conninfo_to_dict(url).items()}
        environment = {
            "PEER_URL": url.replace("postgresql://", "postgresql+psycopg://"),
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": known["dbname"],
            "POSTGRES_HOST": known.get("host", ""),
            "POSTGRES_PORT": known.get("port", ""),
            "POSTGRES_USER": known.get("user", ""),
            "POSTGRES_PASSWORD": known.get("password", "none"),
        }
        with peer(name, environment) as port:
            file = folder / "peer.ndjson"
            known = reports(file, RESIDENTS, RESIDENTS, in_turn=True)  # residents are there, as in a city that runs
            load(binary, port, known, connections=32, seconds=60)
            told: dict[str, Any] = {}
            for c in CONNECTIONS:
                sent = reports(file, 5_000 * SECONDS, RESIDENTS)
                found = load(binary, port, sent, connections=c, seconds=SECONDS)
                _answered(found)
                told[str(c)] = msgspec.to_builtins(found)
            return told


def look_at_insert(server: str) -> dict[str, float]:
    """A lone client that writes the rows of one action, and no more, durably: what a lone request cannot beat."""
    times: list[float] = []
    with database(server) as url, psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE entries (notification_id bigint PRIMARY KEY, originator_id text NOT NULL, "
            "originator_version bigint NOT NULL, topic text NOT NULL, state bytea NOT NULL, leaf bytea NOT NULL, "
            "UNIQUE (originator_id, originator_version))"
        )
        connection.execute("CREATE TABLE claims (key bytea PRIMARY KEY, stream text, version bigint)")
        connection.execute("CREATE TABLE states (stream text, part text, state bytea, PRIMARY KEY (stream, part))")
        both = (
            "WITH e AS (INSERT INTO entries VALUES (%s, %s, %s, %s, %s, %s)), "
            "c AS (INSERT INTO claims VALUES (%s, %s, %s)) INSERT INTO states VALUES (%s, '', %s), (%s, 'u', %s)"
        )
        until, n = time.monotonic() + SECONDS, 0
        while time.monotonic() < until:
            n += 1
            stream, state = f"res_{n:020d}", random.randbytes(520)
            row = (n, stream, 1, "action-credited/1", state, random.randbytes(32), random.randbytes(16), stream, 1)
            begun = time.perf_counter()
            connection.execute(both, (*row, stream, state[:300], stream, state[:60]), prepare=True)
            times.append((time.perf_counter() - begun) * 1e3)
    cuts = statistics.quantiles(times, n=100)
    return {"per_second": len(times) / SECONDS, "p50_ms": cuts[49], "p99_ms": cuts[98]}


# -- ours ------------------------------------------------------------------------------------------------------------


def look_at_ours(server: str, folder: Path, binary: Path) -> dict[str, Any]:
    """Every step of the full path, with the read models following."""
    with database(server) as url, ours(url, folder / "single") as running:
        file, told = folder / "ours.ndjson", dict[str, Any]()
        known = reports(file, RESIDENTS, RESIDENTS, in_turn=True)
        load(binary, running.port, known, key=running.key, connections=32, seconds=60)
        told["at"] = {}
        for c in CONNECTIONS:
            sent = reports(file, 12_000 * SECONDS, RESIDENTS)
            with counted(url, running) as used:
                found = load(binary, running.port, sent, key=running.key, connections=c, seconds=SECONDS)
            _answered(found)
            told["at"][str(c)] = {**msgspec.to_builtins(found), **used(found.answered), "lag": lag(running)}
        told["caught_up_seconds"] = caught_up(running)
        sent = reports(file, 3_000 * SECONDS, RESIDENTS)
        told["lone"] = msgspec.to_builtins(
            load(binary, running.port, sent, key=running.key, connections=1, seconds=SECONDS)
        )
        told["at_rate"] = {}
        for rate in RATES:
            sent = reports(file, rate * SECONDS, RESIDENTS)
            found = load(binary, running.port, sent, key=running.key, connections=256, seconds=SECONDS, rate=rate)
            told["at_rate"][str(rate)] = msgspec.to_builtins(found)
        sent = reports(file, 12_000 * SECONDS, 1)
        hot = load(binary, running.port, sent, key=running.key, connections=32, seconds=SECONDS)
        told["hot_resident"] = msgspec.to_builtins(hot)
        if not QUICK:  # of more residents than memory keeps: each has been here before, and is read again
            running.command("ingest", str(reports(file, MANY, MANY, in_turn=True)), "--source", "szt")
            sent = reports(file, 12_000 * SECONDS, MANY)
            cold = load(binary, running.port, sent, key=running.key, connections=128, seconds=SECONDS)
            told["many_residents"] = msgspec.to_builtins(cold)
        told["memory_mb"] = peak_mb(running)
        told["bytes_an_action"] = sizes(url)
        return told


def _answered(found: Load) -> None:
    """A peer or a server that refused is not compared."""
    wrong = sum(count for status, count in found.statuses.items() if status not in ("200", "201"))
    if wrong > found.answered // 100 or found.failed:  # the library's peer answers 500 to a lost race, now and then
        raise SystemExit(f"not every request was accepted: {found}")


def lag(running: Ours) -> int:
    return sum(httpx.get(f"http://127.0.0.1:{running.port}/readyz").json()["lag"].values())


def caught_up(running: Ours) -> float:
    begun = time.monotonic()
    while lag(running):
        time.sleep(0.1)
    return round(time.monotonic() - begun, 2)


def peak_mb(running: Ours) -> float:
    """The most that the server's process and the one that follows for it ever had in memory, added up."""
    return sum(_peak_mb(process) for process in (running.process, *running.process.children()))


def _peak_mb(process: psutil.Process) -> float:
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        return process.memory_info().rss / 2**20
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


@contextmanager
def counted(url: str, running: Ours) -> Iterator[Any]:
    """What a look took of processor, commits and syncs, an action."""

    def now() -> tuple[float, int, int]:
        with psycopg.connect(url) as connection:
            row = connection.execute(
                "SELECT (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()), "
                "(SELECT sum(fsyncs) FROM pg_stat_io WHERE object = 'wal')"
            ).fetchone()
        assert row is not None
        times = running.process.cpu_times()
        return times.user + times.system, int(row[0] or 0), int(row[1] or 0)

    before, after = now(), list[tuple[float, int, int]]()

    def used(actions: int) -> dict[str, float]:
        (cpu, commits, syncs), (cpu_after, commits_after, syncs_after) = before, after[0]
        return {
            "cpu_us_an_action": round((cpu_after - cpu) * 1e6 / actions, 1),
            "actions_a_transaction": round(actions / max(1, commits_after - commits), 1),
            "syncs_an_action": round((syncs_after - syncs) / actions, 4),
        }

    yield used
    after.append(now())


def sizes(url: str) -> dict[str, float]:
    """Bytes an action, by table and by what of it is index."""
    query = (
        "SELECT CASE WHEN n.nspname ~ '^p[0-9]+$' THEN 'journal' ELSE n.nspname END, c.relname, "
        "sum(pg_table_size(c.oid))::bigint, sum(pg_indexes_size(c.oid))::bigint FROM pg_class c "
        "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' "
        "AND (n.nspname ~ '^p[0-9]+$' OR n.nspname IN ('read', 'directory')) GROUP BY 1, 2"
    )
    with psycopg.connect(url) as connection:
        rows = connection.execute(query).fetchall()
        actions = connection.execute("SELECT count(*) FROM read.actions").fetchone()
    assert actions is not None
    count, told = max(1, int(actions[0])), dict[str, float]()
    for schema, table, data, index in rows:
        if data + index >= count:
            told[f"{schema}.{table}"] = round(data / count, 1)
            told[f"{schema}.{table} indexes"] = round(index / count, 1)
    return told


# -- bulk ------------------------------------------------------------------------------------------------------------


def look_at_bulk(server: str, folder: Path) -> dict[str, Any]:
    """`carbon-points ingest`, the read models following, beside COPY of the very entries that it made."""
    with database(server) as url:
        environment, told = environment_of(url, folder / "bulk"), dict[str, Any]()
        carbon_points(environment, "sources", "add", "szt", "--behaviours", "bus", "--opens-accounts")
        journal = open_journal(url)
        file = folder / "bulk.ndjson"
        try:
            for name, distinct in (("cold", True), ("warm", False)):
                before = journal.heads()
                if name == "warm":  # whose accounts are there already
                    known = reports(file, RESIDENTS, RESIDENTS, in_turn=True)
                    carbon_points(environment, "ingest", str(known), "--source", "szt")
                    before = journal.heads()
                sent = reports(file, BULK, RESIDENTS, distinct=distinct)
                found = carbon_points(environment, "ingest", str(sent), "--source", "szt")
                if found["accepted"] != BULK:
                    raise SystemExit(f"not every line was accepted: {found}")
                entries = sum(journal.heads().values()) - sum(before.values())
                told[name] = {
                    "actions_per_second": found["actions_per_second"],
                    "seconds": found["seconds"],
                    "entries": entries,
                    "copy_seconds": copied(url, before, entries),
                }
            told["read_seconds"] = read_and_decoded(journal)
        finally:
            journal.close()
        rebuilt = carbon_points(environment, "rebuild")
        told["rebuild_seconds"], told["entries"] = rebuilt["seconds"], rebuilt["entries"]
        return told


def copied(url: str, after: dict[int, int], entries: int) -> float:
    """Seconds that binary COPY takes for the same rows into an empty table with the same two unique indexes."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS copied")
        connection.execute("CREATE TABLE copied (LIKE p000.entries INCLUDING ALL)")
        connection.execute("ALTER TABLE copied DROP CONSTRAINT copied_pkey")
        connection.execute(
            "ALTER TABLE copied ADD COLUMN p int NOT NULL DEFAULT 0, ADD PRIMARY KEY (p, notification_id)"
        )
        rows: list[Any] = []
        columns = "notification_id, originator_id, originator_version, topic, state, leaf"
        for number, position in after.items():
            rows += connection.execute(
                f"SELECT {columns}, {number} FROM p{number:03d}.entries WHERE notification_id > {position} "  # type: ignore[arg-type]
                "ORDER BY notification_id"
            ).fetchall()
        assert len(rows) == entries
        with connection.cursor() as cursor, cursor.copy("COPY copied FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["int8", "text", "int8", "text", "bytea", "bytea", "int4"])
            begun = time.perf_counter()
            for row in rows:
                copy.write_row(row)
        took = time.perf_counter() - begun
        connection.execute("DROP TABLE copied")
    return took


def read_and_decoded(journal: Journal) -> float:
    """Seconds to read every entry and make its event, in this process."""
    begun = time.perf_counter()
    for number in journal.heads():
        for entry in journal.entries(number):
            codec.decode(entry.type, entry.state)
    return time.perf_counter() - begun


# -- a long account --------------------------------------------------------------------------------------------------


def look_at_long_account(server: str) -> dict[str, float]:
    """The median of one action, alone, on an account of many actions and on a new one, in turns."""
    with database(server) as url, tempfile.TemporaryDirectory() as folder:
        environment = environment_of(url, Path(folder))
        carbon_points(environment, "sources", "add", "szt", "--behaviours", "bus", "--opens-accounts")
        journal = open_journal(url)
        try:
            writes = _writes(journal, "res_" + "l" * 20)
            for _ in range(LONG // 1_000):
                journal.commit([next(writes) for _ in range(1_000)])
            times: dict[str, list[float]] = {"long": [], "new": []}
            new = _writes(journal, "res_" + "n" * 20)
            next_of = {"long": writes, "new": new}
            journal.commit([next(new)])
            for n in range(LOOKS * 2):
                name = ("long", "new")[n % 2]
                write = next(next_of[name])
                begun = time.perf_counter()
                journal.commit([write])
                times[name].append((time.perf_counter() - begun) * 1e3)
        finally:
            journal.close()
    return {"actions": LONG, **{f"{name}_ms": statistics.median(each) for name, each in times.items()}}


def _writes(journal: Journal, resident: str) -> Iterator[Write]:
    rules = journal.rules()
    facts = ActionFacts(rules.methodologies, rules.sources.reporting("szt", "bus"))
    at, n = datetime(2016, 1, 1, tzinfo=UTC), 0
    while True:
        n += 1
        yield Write(
            msgspec.convert(
                {
                    "resident": resident,
                    "source": "szt",
                    "record_id": f"{resident}-{n}",
                    "behaviour": "bus",
                    "quantity": "1",
                    "unit": "trip",
                    "occurred_at": at + timedelta(minutes=40 * n),
                },
                RecordAction,
            ),
            facts,
        )


if __name__ == "__main__":
    sys.exit(main())
