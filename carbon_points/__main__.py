"""The command line: parse, call, print. With `--json`, the last line of each command is one JSON object."""

# The decorators of rich_click are not typed to the end:
# pyright: reportUnknownMemberType=false

import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, time
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import rich_click as click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from sqlalchemy.exc import SQLAlchemyError

from carbon_points import __version__, settings
from carbon_points.api import settling
from carbon_points.api.installation import Installation, allowed, create_installation, done, open_installation
from carbon_points.api.intake import Tally
from carbon_points.directory import ROLES, Role
from carbon_points.domain.account import LapseDue
from carbon_points.domain.merchant import MerchantUnknown
from carbon_points.domain.methodology import PublishMethodology, parse
from carbon_points.domain.refusal import Refusal
from carbon_points.domain.source import ChangeSource, NothingToChange, RegisterSource
from carbon_points.grants import grants
from carbon_points.ingest import ingest as ingest_file
from carbon_points.ingest import judges_for
from carbon_points.journal.codec import Unreadable
from carbon_points.journal.partition import Unavailable, Write
from carbon_points.journal.recorder import SERVER_NAME, Unreachable
from carbon_points.judges import MOST, calm_collector, cores
from carbon_points.projections import residents, trial_balance
from carbon_points.projections.rows import Snapshot
from carbon_points.webhooks.deliveries import DELIVERY_STATUSES, DeliveryStatus
from carbon_points.webhooks.endpoints import Endpoint, new_endpoint_id
from carbon_points.webhooks.messages import EVENT_TYPES, EventType

NICE = 5  # of the process that follows
FILE_NICE = 10  # of those that take in a file
SWITCH_SECONDS = 0.001  # how long a thread may keep another from the interpreter; five times that is Python's own
console = Console(stderr=True)
as_json = click.option("--json", "plain", is_flag=True, help="One JSON object on the last line.")


def main() -> None:
    """The program. Exit codes: 0 done, 1 found wrong or refused, 2 called wrongly, 3 a database or folder is away."""
    try:
        cli(standalone_mode=True)
    except (Refusal, settings.SettingsInvalid, ValueError) as error:
        sys.exit(_failed("refused", error, 1))
    except (Unavailable, Unreachable, SQLAlchemyError, OSError) as error:
        sys.exit(_failed("unavailable", error, 3))


def _failed(how: str, error: Exception, code: int) -> int:
    console.print(f"[red]{how}[/]: {escape(str(error))}", highlight=False)
    if "--json" in sys.argv:
        sys.stdout.write(json({"error": getattr(error, "code", how), "detail": str(error)}))
    return code


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """carbon_points: an open backend for personal carbon inclusion (碳普惠).

    Settings come from the environment: see `carbon-points config check`.
    """


@contextmanager
def opened(*, sandbox: bool = False) -> Generator[Installation]:
    installation = open_installation(loaded(sandbox=sandbox))
    try:
        yield installation
    finally:
        installation.close()


def loaded(*, sandbox: bool) -> settings.Settings:
    """The settings, which the command itself may say are a sandbox's."""
    return settings.load({**os.environ, "CARBON_SANDBOX": "1"} if sandbox else None)


def show(plain: bool, told: Any, table: Callable[[], Table] | None = None) -> None:
    """Print for a program, or for a person."""
    if plain:
        sys.stdout.write(json(told))
        sys.stdout.flush()
    elif table:
        Console().print(table())
    else:
        Console().print_json(json(told))


def json(told: Any) -> str:
    return msgspec.json.encode(told).decode() + "\n"


def rows(title: str, columns: tuple[str, ...], lines: list[tuple[Any, ...]]) -> Table:
    table = Table(*columns, title=title, title_justify="left")
    for line in lines:
        table.add_row(*(str(cell) for cell in line))
    return table


# -- creating --------------------------------------------------------------------------------------------------------


@cli.command()
@click.option(
    "--partitions",
    type=click.IntRange(1, settings.PARTITIONS_MOST),
    help="Of the journal, for ever. Default: CARBON_PARTITIONS, or 4.",
)
@click.option("--distributed", is_flag=True, help="Let Citus place each partition on one of its machines.")
@click.option("--print-grants", "role", metavar="ROLE", help="Print the SQL that gives a service's role its rights.")
@as_json
def init(partitions: int | None, distributed: bool, role: str | None, plain: bool) -> None:
    """Make everything that is missing of an installation. The only command that needs rights to create.

    Saying the same again changes nothing. On PostgreSQL, run it as the owner.
    """
    known = settings.load()
    if role and not known.postgres:
        raise click.UsageError("--print-grants is for PostgreSQL: SQLite has no roles")
    found = create_installation(known, partitions=partitions, distributed=distributed)
    told: dict[str, Any] = msgspec.to_builtins(found)
    sql = grants(role, found.partitions) if role else None
    if sql and not plain:
        sys.stdout.write(sql)
        return
    words = {name: ", ".join(told[name]) or "nothing new" for name in ("made", "distributed", "adopted")}
    lines = [("partitions", found.partitions), *words.items()]
    show(plain, {**told, "grants": sql}, lambda: rows("installation", ("", ""), lines))


# -- running ---------------------------------------------------------------------------------------------------------


@cli.command()
@click.option("--host", help="Default: CARBON_HOST, or 127.0.0.1.")
@click.option("--port", type=int, help="Default: CARBON_PORT, or 8000. 0 takes a free one.")
@click.option("--sandbox", is_flag=True, help="As CARBON_SANDBOX=1: for tests, with data, keys and a clock of its own.")
@as_json
def serve(host: str | None, port: int | None, sandbox: bool, plain: bool) -> None:
    """Serve the API. The reference is at /docs. SIGTERM answers what it has taken, then stops."""
    import uvicorn

    from carbon_points.api.app import create_app
    from carbon_points.api.server import configured

    told = loaded(sandbox=sandbox)
    os.environ.setdefault("PGAPPNAME", SERVER_NAME)
    # SQLite's readers and writers would meet at its one file.
    command = (sys.executable, "-m", "carbon_points", "follow", "--json", *(("--sandbox",) if told.sandbox else ()))
    installation = open_installation(told, command=command if told.postgres else ())
    calm_collector()
    sys.setswitchinterval(SWITCH_SECONDS)
    app = create_app(installation)
    config = configured(app, host=host or told.host, port=told.port if port is None else port, log=told.log)
    bound = config.bind_socket()
    name, number = bound.getsockname()[:2]
    url = f"http://[{name}]:{number}" if ":" in name else f"http://{name}:{number}"
    if plain:
        show(plain, {"url": url, "docs": f"{url}/docs"})
    server = uvicorn.Server(config)
    server.run(sockets=[bound])
    sys.exit(0 if server.started else 3)


@cli.command(hidden=True)
@click.option("--sandbox", is_flag=True)
@as_json
def follow(sandbox: bool, plain: bool) -> None:
    """Follow the log and deliver webhooks, as `serve` on PostgreSQL has it done, until standard input ends."""
    with opened(sandbox=sandbox) as installation:
        calm_collector()
        os.nice(NICE)  # who writes has the processor first
        for number in (signal.SIGINT, signal.SIGTERM):  # whoever started us says when to stop, by the end of our input
            signal.signal(number, signal.SIG_IGN)
        assert installation.deliverer is not None, "an installation that was opened delivers"
        installation.deliverer.start()
        installation.follower.heed(sys.stdin.buffer)
        positions = installation.read_model.positions()
    show(plain, {"positions": positions})


@cli.command()
@click.option("--actions", "file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Real reports.")
@click.option("--stay", is_flag=True, help="Leave the server up, with its address and keys.")
@click.option("--seed", type=int, default=20261121, show_default=True, help="Of the invented city.")
@as_json
def demo(file: Path | None, stay: bool, seed: int, plain: bool) -> None:
    """Walk the whole loop against a real server on the embedded default, over HTTP only."""
    from carbon_points.demo import run

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends it that way leaves no server behind either
    told = run(file=file, seed=seed, stay=stay, say=console.print)
    show(plain, told.figures, told.table)
    told.wait()


@cli.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--source", required=True, help="The one source whose reports these are.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Default: FILE.report.ndjson.")
@click.option("--as", "renames", multiple=True, metavar="A=B", help="Read behaviour A as B.")
@as_json
def ingest(file: Path, source: str, report: Path | None, renames: tuple[str, ...], plain: bool) -> None:
    """Take in a file of reports (NDJSON, or .gz of it). Repeat or resume it whenever in doubt."""
    rename = dict(pair.split("=", 1) for pair in renames if "=" in pair)
    if len(rename) != len(renames):
        raise click.UsageError("--as wants A=B")
    where = report or file.with_name(file.name + ".report.ndjson")
    columns = (TextColumn("{task.fields[told]}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    if settings.load().postgres:  # then a server works beside it, on the same cores perhaps
        os.nice(FILE_NICE)  # before there is any thread, since each has a priority of its own
    with opened() as installation, Progress(*columns, console=console, transient=plain) as bar:
        calm_collector()
        task = bar.add_task("ingest", total=_lines(file), told="reading")

        def progress(line: int, tally: Tally) -> None:
            bar.update(task, completed=line, told=f"{tally.read:,} read, {tally.accepted:,} accepted")

        with judges_for(installation, file) as deciding:
            found = ingest_file(
                installation, file, source, report=where, rename=rename, progress=progress, deciding=deciding
            )
        installation.follower.catch_up(3600.0)
    told = msgspec.to_builtins(found)
    told = {**told.pop("tally"), **told}
    show(plain, told, lambda: rows(f"{file.name}", ("verdict", "lines"), _verdicts(found.tally)))


def _lines(file: Path) -> int | None:
    """How many lines a plain file has, for the progress bar; unknown for a packed one."""
    if file.suffix == ".gz":
        return None
    with file.open("rb") as opened_file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: opened_file.read(1 << 20), b""))


def _verdicts(tally: Tally) -> list[tuple[Any, ...]]:
    names = ("read", "accepted", "duplicate", "conflict", "pending", "refused", "malformed")
    lines: list[tuple[Any, ...]] = [(name, f"{getattr(tally, name):,}") for name in names]
    return lines + [(f"  {code}", f"{count:,}") for code, count in sorted(tally.refused_by_code.items())]


# -- sources, keys, methodologies ------------------------------------------------------------------------------------


@cli.group()
def sources() -> None:
    """Who may report."""


@sources.command("add")
@click.argument("source")
@click.option("--behaviours", required=True, help="Comma-separated.")
@click.option("--name", help="Default: the id.")
@click.option("--opens-accounts", is_flag=True, help="Its reports open accounts, by the consent it holds itself.")
@click.option("--lateness-days", type=int, help="How late a report still counts. Default: for ever.")
@click.option("--county", help="GB/T 2260 code, for totals.")
@as_json
def add_source(
    source: str,
    behaviours: str,
    name: str | None,
    opens_accounts: bool,
    lateness_days: int | None,
    county: str | None,
    plain: bool,
) -> None:
    """Register a source, or change what it may do. Saying the same again changes nothing."""
    told: dict[str, Any] = {
        "source": source,
        "behaviours": [b.strip() for b in behaviours.split(",") if b.strip()],
        "opens_accounts": opens_accounts,
        "lateness_days": lateness_days,
    }
    with opened() as installation:
        known = installation.journal.rules()
        if unknown := [b for b in told["behaviours"] if b not in known.methodologies.counted_by]:
            console.print(f"[yellow]no methodology counts {escape(', '.join(unknown))} yet[/]", highlight=False)
        if source in known.sources.by_id:
            outcome = installation.journal.commit([Write(msgspec.convert(told, ChangeSource))])[0]
            if not isinstance(outcome.refusal, NothingToChange):
                done(outcome)
        else:
            new = {**told, "name": name or source, "county": county}
            done(installation.journal.commit([Write(msgspec.convert(new, RegisterSource))])[0])
        installation.journal.rules_changed()
        show(plain, installation.journal.rules().sources.by_id[source])


@sources.command("list")
@as_json
def list_sources(plain: bool) -> None:
    """All sources."""
    with opened() as installation:
        found = list(installation.journal.rules().sources.by_id.values())
    lines = [(s.id, s.name, ", ".join(s.behaviours), s.opens_accounts, s.suspended) for s in found]
    show(plain, {"sources": found}, lambda: rows("sources", ("id", "name", "behaviours", "opens", "suspended"), lines))


@cli.group()
def keys() -> None:
    """Who may call the API."""


@keys.command("add")
@click.argument("role", type=click.Choice(ROLES))
@click.argument("owner")
@as_json
def add_key(role: Role, owner: str, plain: bool) -> None:
    """Make a key for a source's, merchant/terminal's or buyer's id, or a name. It is shown once."""
    with opened() as installation:
        key, secret = installation.directory.issue_key(role, owner)
    show(plain, {"key_id": key.key_id, "role": role, "owner": owner, "secret": secret})


@keys.command("list")
@as_json
def list_keys(plain: bool) -> None:
    """All keys, without their secrets."""
    with opened() as installation:
        found = installation.directory.keys()
    lines = [(k.key_id, k.role, k.owner, k.created_at, k.revoked_at or "") for k in found]
    show(plain, {"keys": found}, lambda: rows("keys", ("key", "role", "owner", "created", "revoked"), lines))


@keys.command("revoke")
@click.argument("key_id")
@as_json
def revoke_key(key_id: str, plain: bool) -> None:
    """Revoke a key; every process stops taking it within seconds."""
    with opened() as installation:
        revoked = installation.directory.revoke_key(key_id)
    show(plain, {"key_id": key_id, "revoked": revoked})
    sys.exit(0 if revoked else 1)


@cli.group()
def terminals() -> None:
    """What merchants' terminals sign with, and whether anything is taken from them."""


@terminals.command("activate")
@click.argument("merchant")
@click.argument("terminal")
@as_json
def activate_terminal(merchant: str, terminal: str, plain: bool) -> None:
    """Make a code with which a terminal is activated, once, within a day. It is shown once."""
    from carbon_points.api.terminals import new_code

    with opened() as installation:
        show(plain, new_code(installation, merchant, terminal))


def _suspension(merchant: str, terminal: str, *, suspended: bool, reason: str, plain: bool) -> None:
    from carbon_points.api.terminals import suspended as suspend

    with opened() as installation:
        suspend(installation, merchant, terminal, suspended=suspended, reason=reason)
    show(plain, {"merchant": merchant, "terminal": terminal, "suspended": suspended})


@terminals.command("suspend")
@click.argument("merchant")
@click.argument("terminal")
@click.option("--reason", required=True, help="It stands in the log.")
@as_json
def suspend_terminal(merchant: str, terminal: str, reason: str, plain: bool) -> None:
    """Take nothing from a terminal any more; every process obeys within seconds. May be said again."""
    _suspension(merchant, terminal, suspended=True, reason=reason, plain=plain)


@terminals.command("resume")
@click.argument("merchant")
@click.argument("terminal")
@click.option("--reason", required=True, help="It stands in the log.")
@as_json
def resume_terminal(merchant: str, terminal: str, reason: str, plain: bool) -> None:
    """Take from a terminal again."""
    _suspension(merchant, terminal, suspended=False, reason=reason, plain=plain)


@terminals.command("refresh")
@as_json
def refresh_terminals(plain: bool) -> None:
    """Copy keys and suspensions from the log, after the directory was restored from a backup."""
    from carbon_points.api.terminals import refresh

    with opened() as installation:
        installation.follower.catch_up(600.0)
        terminals = refresh(installation)
    show(plain, {"terminals": terminals})


@terminals.command("keys")
@click.argument("merchant")
@click.argument("terminal")
@as_json
def list_terminal_keys(merchant: str, terminal: str, plain: bool) -> None:
    """The keys of a terminal, as the log has them; the directory is made to agree."""
    from carbon_points.api.terminals import keys_of

    with opened() as installation:
        found = keys_of(installation, merchant, terminal)
    title = f"{merchant}/{terminal}{', suspended' if found.suspended else ''}"
    lines = [(k.key_id, k.status, k.added_at, k.ends_at or "", k.public_key) for k in found.keys]
    show(plain, found, lambda: rows(title, ("key", "status", "added", "ends", "public key"), lines))


@cli.group()
def methodologies() -> None:
    """The tables by which actions are counted."""


@methodologies.command("list")
@as_json
def list_methodologies(plain: bool) -> None:
    """All versions in the log."""
    with opened() as installation:
        known = installation.journal.rules().methodologies.tables
    found = [p for _, versions in sorted(known.items()) for p in versions]
    told = [{"id": p.table.id, "version": p.table.version, "digest": p.digest} for p in found]
    lines = [
        (t.id, t.version, t.adopted.from_, f"{t.factors.reduction.value} {t.factors.reduction.unit}", t.title.zh)
        for t in (p.table for p in found)
    ]
    show(
        plain,
        {"methodologies": told},
        lambda: rows("methodologies", ("id", "version", "from", "factor", "title"), lines),
    )


@methodologies.command("show")
@click.argument("methodology")
@as_json
def show_methodology(methodology: str, plain: bool) -> None:
    """All versions of one, with their citations."""
    with opened() as installation:
        found = installation.journal.rules().methodologies.tables.get(methodology, [])
    show(plain, {"versions": [{"digest": p.digest, "table": p.table} for p in found]})
    sys.exit(0 if found else 1)


@methodologies.command("check")
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@as_json
def check_methodologies(files: tuple[Path, ...], plain: bool) -> None:
    """Read tables and run their worked examples (default: those that are shipped)."""
    from carbon_points.methodologies import check, shipped

    tables = [(f.read_text("utf-8"), f.with_suffix(".examples.toml").read_text("utf-8")) for f in files]
    results = [check(text, examples) for text, examples in tables or [(s.text, s.examples) for s in shipped()]]
    wrong = [w for result in results for w in result.wrong]
    show(
        plain,
        {"tables": len(results), "examples": sum(r.examples for r in results), "wrong": wrong},
    )
    sys.exit(1 if wrong else 0)


@methodologies.command("publish")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@as_json
def publish_methodology(file: Path, plain: bool) -> None:
    """Put a table into the log, for good."""
    text = file.read_text("utf-8")
    table = parse(text)
    with opened() as installation:
        command = PublishMethodology(methodology=table.id, version=table.version, table=text)
        outcome = done(installation.journal.commit([Write(command)])[0])
    show(plain, {"id": table.id, "version": table.version, "published": not outcome.replayed})


# -- webhooks --------------------------------------------------------------------------------------------------------


@cli.group()
def webhooks() -> None:
    """Who is told what happens, and what became of it."""


@webhooks.command("add")
@click.argument("url")
@click.option("--merchant", help="Tell what concerns this merchant.")
@click.option("--app", "app_name", help="Tell this app everything.")
@click.option("--type", "types", type=click.Choice(EVENT_TYPES), multiple=True, help="Default: all.")
@as_json
def add_webhook(
    url: str, merchant: str | None, app_name: str | None, types: tuple[EventType, ...], plain: bool
) -> None:
    """Tell an address what happens from now on. Its secret is shown here, and by `rotate`."""
    if (merchant is None) == (app_name is None):
        raise click.UsageError("an endpoint is a merchant's or an app's: --merchant or --app")
    with opened() as installation:
        allowed(installation.settings).check(url)
        if merchant is not None and not installation.journal.state(f"merchant/{merchant}").name:
            raise MerchantUnknown(merchant=merchant)
        made, secret, _ = installation.endpoints.add(
            new_endpoint_id(),
            url=url,
            merchant=merchant,
            app=app_name,
            types=types,
            positions=installation.journal.heads(),
            now=installation.clock(),
        )
    show(plain, {**_webhook(made), "secret": secret})


@webhooks.command("list")
@click.option("--merchant", help="Of this one.")
@as_json
def list_webhooks(merchant: str | None, plain: bool) -> None:
    """All endpoints, without their secrets."""
    found: list[Endpoint] = []
    with opened() as installation:
        while page := installation.endpoints.all(merchant=merchant, after=found[-1].endpoint_id if found else None):
            found += page
    lines = [(e.endpoint_id, e.merchant or e.app, e.url, e.reason or e.status, e.sequence) for e in found]
    columns = ("endpoint", "of", "url", "status", "told")
    show(plain, {"webhooks": [_webhook(one) for one in found]}, lambda: rows("webhooks", columns, lines))


def _webhook(one: Endpoint) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.to_builtins(one)
    del told["positions"]
    return told


@webhooks.command("disable")
@click.argument("endpoint_id")
@as_json
def disable_webhook(endpoint_id: str, plain: bool) -> None:
    """Tell it nothing until it is enabled again. The log keeps what it misses."""
    with opened() as installation:
        changed = installation.endpoints.change(endpoint_id, now=installation.clock(), enabled=False)
    show(plain, _webhook(changed))


@webhooks.command("enable")
@click.argument("endpoint_id")
@click.option("--skip-missed", is_flag=True, help="Not what happened meanwhile.")
@as_json
def enable_webhook(endpoint_id: str, skip_missed: bool, plain: bool) -> None:
    """Tell it again, and what it missed."""
    with opened() as installation:
        heads = installation.journal.heads() if skip_missed else None
        changed = installation.endpoints.change(endpoint_id, now=installation.clock(), enabled=True, positions=heads)
    show(plain, _webhook(changed))


@webhooks.command("remove")
@click.argument("endpoint_id")
@as_json
def remove_webhook(endpoint_id: str, plain: bool) -> None:
    """Forget it, its secrets and its deliveries."""
    with opened() as installation:
        removed = installation.endpoints.remove(endpoint_id)
    show(plain, _webhook(removed))


@webhooks.command("rotate")
@click.argument("endpoint_id")
@as_json
def rotate_webhook(endpoint_id: str, plain: bool) -> None:
    """A new secret, shown here. For a day the former one signs beside it."""
    with opened() as installation:
        secret, _ = installation.endpoints.rotate(endpoint_id, new_endpoint_id(), now=installation.clock())
    show(plain, {"endpoint_id": endpoint_id, "secret": secret})


@webhooks.command("deliveries")
@click.argument("endpoint_id")
@click.option("--status", type=click.Choice(DELIVERY_STATUSES), help="Default: all.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@as_json
def list_deliveries(endpoint_id: str, status: DeliveryStatus | None, limit: int, plain: bool) -> None:
    """What was told or is to be, the newest first."""
    with opened() as installation:
        installation.endpoints.one(endpoint_id)
        found = installation.deliveries.of(endpoint_id, status=status, limit=limit)
    lines = [(d.sequence, d.type, d.event_id, d.status, d.tries, d.answer or "", d.next_at or "") for d in found]
    columns = ("number", "type", "event", "status", "tries", "answer", "next try")
    show(plain, {"deliveries": found}, lambda: rows("deliveries", columns, lines))


@webhooks.command("resend")
@click.argument("endpoint_id")
@click.argument("first", type=click.IntRange(1))
@click.argument("last", type=click.IntRange(1), required=False)
@click.option("--status", type=click.Choice(DELIVERY_STATUSES), help="Only those that stand so.")
@as_json
def resend_deliveries(
    endpoint_id: str, first: int, last: int | None, status: DeliveryStatus | None, plain: bool
) -> None:
    """Send again what has the numbers FIRST to LAST, or FIRST alone: under the same ids and numbers."""
    with opened() as installation:
        now = installation.clock()
        count = installation.deliveries.resend(endpoint_id, first, last or first, now=now, status=status)
    show(plain, {"deliveries": count})


@cli.command()
@click.option("--forward-to", required=True, metavar="URL", help="Of a server on your machine.")
@click.option("--merchant", help="Only what concerns this merchant.")
@click.option("--at", default="http://127.0.0.1:8000", show_default=True, metavar="URL", help="Of the installation.")
@click.option("--key", envvar="CARBON_KEY", required=True, help="An app's or operator's. Better in CARBON_KEY.")
@click.option("--secret", help="whsec_... Default: a new one, which is shown.")
@click.option("--after", default="now", show_default=True, help="`after` of GET /v1/events; `start`: all there is.")
@click.option("--count", type=click.IntRange(1), help="Stop after so many.")
@as_json
def listen(
    forward_to: str,
    merchant: str | None,
    at: str,
    key: str,
    secret: str | None,
    after: str,
    count: int | None,
    plain: bool,
) -> None:
    """Hand an installation's events to a local server as it would get webhooks, until you stop it."""
    import httpx

    from carbon_points.listen import listen as follow_events
    from carbon_points.webhooks.endpoints import new_secret

    secret = secret or new_secret()
    if plain:
        show(plain, {"secret": secret})
    else:
        console.print(f"signing with {secret}; Ctrl-C ends", highlight=False)
    try:
        for one in islice(follow_events(at, key, forward_to, secret, merchant=merchant, after=after), count):
            if plain:
                show(plain, one)
            else:
                console.print(f"{one.sequence:6} {one.type:22} {one.id} {escape(one.answer)}", highlight=False)
    except KeyboardInterrupt:
        console.print("stopped")
    except httpx.TransportError as error:
        raise OSError(f"{at}: {error}") from None


# -- the log ---------------------------------------------------------------------------------------------------------


@cli.command()
@as_json
def rebuild(plain: bool) -> None:
    """Build the read models again from the log, beside the live ones, then put them in their place."""
    from carbon_points.projections.loop import rebuild as build
    from carbon_points.projections.staging import helpers

    known = settings.load()
    calm_collector()
    count = min(cores(), MOST) - 1 if known.postgres else 0
    with helpers(count, known.journal_url, known.read_url) as helping, opened() as installation:
        found = build(installation.journal, known.read_url, helping)
    show(plain, found)


@cli.command()
@click.option("--export", "folder", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Of an export.")
@as_json
def verify(folder: Path | None, plain: bool) -> None:
    """Derive every figure of the log again, trusting nobody, and compare. Exit 1 names the first wrong entry."""
    from carbon_points.audit.verify import verify as replay

    if folder:
        from carbon_points.audit.export import read_export

        report = replay(read_export(folder))
    else:
        with opened() as installation:
            with suppress(Unreadable):  # the verifier names the entry that the read models could not take
                installation.follower.catch_up(600.0)
            with installation.read_model.snapshot() as snapshot:
                report = replay(installation.journal, read_model=Compared(snapshot))
    show(plain, report)
    if report.first_wrong:
        console.print(f"[red]wrong[/]: {escape(str(report.first_wrong))}", highlight=False)
    sys.exit(0 if report.ok else 1)


class Compared:
    """The read models at one moment, as the verifier asks for them."""

    def __init__(self, at: Snapshot) -> None:
        self._at = at

    def positions(self) -> Mapping[int, int]:
        return self._at.positions

    def residents(self) -> Iterator[tuple[str, int, int, int, int, int]]:
        after: str | None = None
        while page := residents.balances(self._at, after=after, limit=5_000):
            after = page[-1].resident
            for b in page:
                yield b.resident, b.reduction_mg, b.points, b.held_points, b.debt_points, b.debt_mg

    def trial_balance(self) -> Mapping[tuple[str, str], int]:
        return {(a.asset, a.account): a.amount for a in trial_balance.trial_balance(self._at).accounts}


@cli.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@as_json
def export(folder: Path, plain: bool) -> None:
    """Write the log to files that `verify --export` can check on a machine without any database."""
    from carbon_points.audit.export import export as write

    with opened() as installation:
        manifest = write(installation.journal, folder)
    show(plain, manifest)


@cli.command()
@as_json
def lapse(plain: bool) -> None:
    """Write down the holds and grants that have run out. Nobody needs it to be right; the books look tidier."""
    with opened() as installation:
        residents = list(installation.journal.lapsed(installation.clock()))
        for start in range(0, len(residents), 500):
            for outcome in installation.journal.commit(
                [Write(LapseDue(resident=r)) for r in residents[start : start + 500]]
            ):
                done(outcome)
    show(plain, {"residents": len(residents)})


# -- merchants -------------------------------------------------------------------------------------------------------


@cli.command()
@click.option("--day", type=click.DateTime(["%Y-%m-%d"]), help="The last day to settle. Default: yesterday in China.")
@as_json
def settle(day: datetime | None, plain: bool) -> None:
    """Settle what is due of all merchants, each day by itself. The server does it each night; again changes nothing."""
    with opened() as installation:
        last = day.date() if day else settling.due_day(installation.clock(), time.min)
        found = settling.settle(installation, last)
    lines = [(c.merchant, c.day, c.settlement_id, c.points, f"{c.amount_fen / 100:,.2f}") for c in found.closed]
    lines += [(merchant, "", "carried into its next settlement", "", "") for merchant in found.carried]
    show(plain, found, lambda: rows("settled", ("merchant", "day", "settlement", "points", "yuan"), lines))


@cli.command()
@as_json
def pay(plain: bool) -> None:
    """Pay what was settled first, while the fund suffices. Exit code 3: it does not for all."""
    with opened() as installation:
        found = settling.pay(installation)
    lines = [(p.merchant, p.settlement_id, f"{p.amount_fen / 100:,.2f}") for p in found.paid]
    show(plain, found, lambda: rows("paid", ("merchant", "settlement", "yuan"), lines))
    if found.queued:
        short = f"{found.queued} settlements wait; the fund has {found.balance_fen} fen and lacks {found.short_fen}"
        console.print(f"[yellow]short[/]: {short}", highlight=False)
        sys.exit(3)


@cli.group()
def sandbox() -> None:
    """What developers try their programs against: see `serve --sandbox`."""


@sandbox.command("keys")
@as_json
def sandbox_keys(plain: bool) -> None:
    """Make a key of each role, and tell what is there to call: a shop, offers, a resident, codes that mean the same.

    Keys are told once. Said again, it makes others, and those before stay good.
    """
    with opened(sandbox=True) as installation:
        assert installation.sandbox is not None, "it was opened as one"
        installation.sandbox.found()
        found = installation.sandbox.keys()
    lines = [(name, secret) for name, secret in {**found.keys, **found.refused_keys}.items()]
    lines += [("merchant", found.merchant), ("resident", found.resident), ("subject", f"{found.subject} of test-bus")]
    lines += [(f"offer {offer}", f"{points} points") for offer, points in found.offers.items()]
    lines += [(f"code {code}", means) for code, means in found.codes.items()]
    if plain:
        show(plain, found)
    for name, told in [] if plain else [*lines, ("time", found.time)]:
        click.echo(f"{name:33} {told}")  # no table: a key is copied whole


@cli.group()
def config() -> None:
    """The settings."""


@config.command("check")
@as_json
def check_config(plain: bool) -> None:
    """The settings in force, passwords hidden. Exit 1 if one cannot be read."""
    shown = settings.load().shown()
    lines = [(f"CARBON_{name.upper()}", value) for name, value in shown.items()]
    show(plain, shown, lambda: rows("settings", ("variable", "value"), lines))


if __name__ == "__main__":
    main()
