"""Millions of actions through `carbon-points ingest`, the read models following: what it costs as the log grows.

    .venv/bin/python bench/million.py [COUNT]        ten million by default; 200,000 is enough to see it work

The reports are the taps of Shenzhen and the rides of Valleybike (../shared/data), told again of other residents and
days; where those are not at hand, a made-up mix. A line is printed at each million (a tenth, if there are fewer), and
everything is written to `million.json`.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import psutil
import psycopg
from rich.console import Console
from servers import CLI, HERE, TUNED, carbon_points, database, environment_of, postgres

DATA = HERE.parent.parent / "shared" / "data"
BEHAVIOURS = ("bus", "metro_in", "metro_out", "shared_ebike", "walk", "waste_sorting")
RESIDENTS = 20  # how often the real people are told again as others; after them come other days
FIRST_DAY = datetime(2018, 9, 1, tzinfo=UTC)
console = Console(soft_wrap=True)
MIB = 2**20


def main() -> None:
    lines = int(sys.argv[1].replace("_", "")) if len(sys.argv) > 1 else 10_000_000
    with tempfile.TemporaryDirectory(prefix="carbon-million-") as named:
        folder = Path(named)
        folder.chmod(0o755)
        file, real = folder / "reports.ndjson", DATA.is_dir()
        written(file, reports() if real else made_up(), lines)
        console.print(f"{lines:,} {'real' if real else 'made-up'} reports, {file.stat().st_size / MIB:,.0f} MiB")
        with postgres(folder) as server, database(server) as url:
            told = measured(url, folder, file, lines)
    told = {"lines": lines, "real": real, "postgresql": TUNED, **told}
    (HERE / "million.json").write_bytes(msgspec.json.format(msgspec.json.encode(told)))
    show(told, lines)
    console.print(f"all figures: {HERE / 'million.json'}")


# -- reports ---------------------------------------------------------------------------------------------------------

Report = tuple[str, str, str, str, str, datetime]  # record, resident, behaviour, quantity, unit, when


def reports() -> Iterator[Report]:
    """The real ones, again and again: each time of other people, then of the next day."""
    real: list[Report] = []
    for name in ("shenzhen", "valleybike"):
        said = subprocess.run([sys.executable, DATA / "map_actions.py", name], check=True, capture_output=True).stdout
        for line in said.splitlines():
            told = msgspec.json.decode(line)
            behaviour = "shared_ebike" if name == "valleybike" else told["behaviour"]
            at = datetime.fromisoformat(told["occurred_at"])
            real.append((told["record_id"], told["resident"], behaviour, told["quantity"], told["unit"], at))
    for again in count():
        days, people = divmod(again, RESIDENTS)
        for record, resident, behaviour, quantity, unit, at in real:
            yield f"{record}-{again}", f"{resident}-{people}", behaviour, quantity, unit, at + timedelta(days)


def made_up() -> Iterator[Report]:
    """A mix of no city: half a million residents, a year."""
    for n in count():
        behaviour, quantity, unit = (
            ("bus", "1", "trip"),
            ("walk", str(3_000 + n % 9_000), "step"),
            ("shared_ebike", f"{1 + n % 7}.{n % 10}", "km"),
            ("waste_sorting", f"0.{1 + n % 9}", "kg"),
            ("bus", "1", "trip"),
        )[n % 5]
        at = FIRST_DAY + timedelta(minutes=n * 7_919 % 525_600)
        yield f"r{n}", f"card-{n * 104_729 % 500_000}", behaviour, quantity, unit, at


def written(file: Path, made: Iterator[Report], lines: int) -> None:
    with file.open("w") as out:
        for _, (record, resident, behaviour, quantity, unit, at) in zip(range(lines), made, strict=False):
            out.write(
                f'{{"source":"city","record_id":"{record}","resident":"{resident}","behaviour":"{behaviour}",'
                f'"quantity":"{quantity}","unit":"{unit}","occurred_at":"{at.isoformat()}"}}\n'
            )


# -- the run ---------------------------------------------------------------------------------------------------------


def measured(url: str, folder: Path, file: Path, lines: int) -> dict[str, Any]:
    environment = environment_of(url, folder / "data")
    carbon_points(environment, "sources", "add", "city", "--behaviours", ",".join(BEHAVIOURS), "--opens-accounts")
    command = [str(CLI), "ingest", str(file), "--source", "city", "--json"]
    step, steps, rates = min(1_000_000, max(lines // 10, 1)), list[dict[str, Any]](), list[tuple[float, int]]()
    with following(environment) as follower, psycopg.connect(url, autocommit=True) as connection:
        begun, origin = time.monotonic(), wal(connection)
        with subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True) as process:
            memory = dict[str, float]()
            while process.poll() is None:
                time.sleep(0.5)
                peaks(memory, process.pid, follower.pid)
                done = progressed(folder / "data")
                if done:  # at its end it keeps none, and waits for the read models
                    rates.append((round(time.monotonic() - begun, 2), done))
                if done // step > len(steps):
                    steps.append(observed(connection, done, rates, origin))
                    show_step(steps)
            said = process.stdout.read() if process.stdout else ""
        if process.returncode:
            raise SystemExit(f"ingest ended with {process.returncode}: {said}")
        found = msgspec.json.decode(said.splitlines()[-1])
        steps.append(observed(connection, found["read"], [*rates, (found["seconds"], found["read"])], origin))
        caught_up = round(time.monotonic() - begun - (rates[-1][0] if rates else 0), 1)
    return {"ingest": found, "caught_up_seconds": caught_up, "peak_mb": memory, "steps": steps, "rates": rates}


@contextmanager
def following(environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """The process that a server would have follow for it."""
    command = [str(CLI), "follow", "--json"]
    with subprocess.Popen(
        command, env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()  # which it takes for the end


def progressed(folder: Path) -> int:
    """The line that the run says it has done."""
    for file in (folder / "ingest").glob("*.json"):
        with suppress(FileNotFoundError, msgspec.DecodeError):
            return msgspec.json.decode(file.read_bytes())["lines"]
    return 0


def peaks(memory: dict[str, float], ingest: int, follower: int) -> None:
    """The most that each process of ours ever had in memory, in megabytes, as the system counts it."""
    with suppress(psutil.Error, OSError, StopIteration):  # one that has just ended
        deciding = [p for p in psutil.Process(ingest).children() if "spawn_main" in " ".join(p.cmdline())]
        named = {"ingest": ingest, "follower": follower, **{f"decides {n}": p.pid for n, p in enumerate(deciding, 1)}}
        for name, pid in named.items():
            status = Path(f"/proc/{pid}/status").read_text().splitlines()
            memory[name] = int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024


# -- the database ----------------------------------------------------------------------------------------------------

_OURS = "(n.nspname ~ '^p[0-9]+$' OR n.nspname IN ('read', 'directory'))"
_TABLES = f"""
SELECT n.nspname || '.' || c.relname, pg_relation_size(c.oid),
    CASE WHEN c.reltoastrelid = 0 THEN 0 ELSE pg_total_relation_size(c.reltoastrelid) END,
    s.n_live_tup, s.n_dead_tup, s.n_tup_upd, s.n_tup_hot_upd, s.autovacuum_count, s.autoanalyze_count
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_stat_user_tables s ON s.relid = c.oid
WHERE c.relkind = 'r' AND {_OURS}
"""
_INDEXES = f"""
SELECT n.nspname || '.' || t.relname, c.relname, pg_relation_size(c.oid)
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid
JOIN pg_namespace n ON n.oid = t.relnamespace WHERE t.relkind = 'r' AND {_OURS}
"""
_LAG = """
SELECT (SELECT sum(n) FROM p000.counter)::bigint, (SELECT coalesce(sum(position), 0) FROM read.positions)::bigint
"""


def wal(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn").fetchone()
    assert row is not None
    return int(row[0])


def observed(
    connection: psycopg.Connection[Any], done: int, rates: list[tuple[float, int]], origin: int
) -> dict[str, Any]:
    """Everything of the database at one moment."""
    tables: dict[str, dict[str, Any]] = {}
    names = ("heap", "toast", "live", "dead", "updated", "updated_in_place", "autovacuums", "autoanalyzes")
    for table, *figures in connection.execute(_TABLES):
        tables[table] = {**dict(zip(names, map(int, figures), strict=True)), "indexes": {}}
    for table, index, size in connection.execute(_INDEXES):  # type: ignore[call-overload]
        tables[table]["indexes"][index] = int(size)
    row = connection.execute(_LAG).fetchone()
    assert row is not None
    return {
        "lines": done,
        "seconds": rates[-1][0],
        "entries": row[0],
        "lag": row[0] - row[1],
        "wal_bytes": wal(connection) - origin,
        "tables": {name: figures for name, figures in sorted(tables.items()) if figures["heap"] > 16 * 1024},
    }


# -- telling ---------------------------------------------------------------------------------------------------------


def show_step(steps: list[dict[str, Any]]) -> None:
    now, before = steps[-1], steps[-2] if len(steps) > 1 else {"lines": 0, "seconds": 0.0, "wal_bytes": 0}
    lines = now["lines"] - before["lines"]
    dead = sum(table["dead"] for table in now["tables"].values())
    vacuums = sum(table["autovacuums"] for table in now["tables"].values())
    heap, indexes = sized(now)
    if len(steps) == 1:
        console.print("     lines      /s       lag WAL B/line   heap MB  index MB   dead rows  autovacuums")
    rate = lines / max(now["seconds"] - before["seconds"], 0.01)
    written_ahead = (now["wal_bytes"] - before["wal_bytes"]) / max(lines, 1)
    console.print(
        f"{now['lines']:>10,} {rate:>7,.0f} {now['lag']:>9,} {written_ahead:>10,.0f} {heap / MIB:>9,.0f} "
        f"{indexes / MIB:>9,.0f} {dead:>11,} {vacuums:>12,}"
    )


def sized(step: dict[str, Any]) -> tuple[int, int]:
    tables = step["tables"].values()
    return sum(t["heap"] + t["toast"] for t in tables), sum(sum(t["indexes"].values()) for t in tables)


def show(told: dict[str, Any], lines: int) -> None:
    """Bytes a line by table and index at the end, and what an index grew by in the last step."""
    last, before = told["steps"][-1], told["steps"][-2] if len(told["steps"]) > 1 else told["steps"][-1]
    console.print(f"{'bytes a line':<58}{'at the end':>11}{'in the last step':>18}")
    since = max(last["lines"] - before["lines"], 1)
    for name, table in last["tables"].items():
        earlier = before["tables"].get(name, {"heap": 0, "toast": 0, "indexes": {}})
        pieces = {f"{name} heap": (table["heap"], earlier["heap"]), f"{name} toast": (table["toast"], earlier["toast"])}
        pieces |= {f"  {index}": (size, earlier["indexes"].get(index, 0)) for index, size in table["indexes"].items()}
        for piece, (size, former) in pieces.items():
            if size >= lines:
                console.print(f"{piece:<58}{size / lines:>11,.1f}{(size - former) / since:>18,.1f}")
    found = told["ingest"]
    verdicts = {kind: found[kind] for kind in ("accepted", "pending", "refused", "duplicate", "conflict", "malformed")}
    console.print(f"{found['actions_per_second']:,} lines/s; {verdicts}")
    console.print(f"read models {told['caught_up_seconds']} s after it; peak MB: {told['peak_mb']}")


if __name__ == "__main__":
    main()
