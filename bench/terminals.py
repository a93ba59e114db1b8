"""Terminals at one busy merchant: authorise and capture as pairs, beside the plain way, while reports come in.

Payment codes are real, of residents' own secrets, and good for the three minutes that a look takes; keys are bearer
keys, or signatures (`signed`). PostgreSQL, the load generator and the server share the cores.
"""

import os
import secrets
import sys
import tempfile
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from rich.console import Console
from rich.table import Table
from servers import HERE, Load, Ours, compiled, database, load, ours, peer, postgres

from carbon_points import codes
from carbon_points.api.installation import Installation, open_installation, redemption_id_of
from carbon_points.directory import Caller
from carbon_points.domain import account, consent, merchant, terminal
from carbon_points.journal.partition import Write
from carbon_points.settings import load as settings
from carbon_points_terminal.signing import Signer, new_key, public_text

QUICK = os.environ.get("BENCH") == "quick"
SECONDS = 4 if QUICK else 12
CONNECTIONS = 64
TERMINALS = 20
RESIDENTS = 13_000 if QUICK else 40_000  # each shows a code once
MERCHANT = "teahouse"
console = Console()


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="carbon-bench-") as named:
        folder = Path(named)
        folder.chmod(0o755)
        binary = compiled(folder)
        with postgres(folder) as server:
            figures = {"peer": look_at_peer(server, folder, binary), "ours": look_at_ours(server, folder, binary)}
    pairs, plain = figures["ours"]["most"]["per_second"] / 2, figures["peer"]["per_second"] / 2
    figures["ratios"] = {"pairs_vs_plain": round(pairs / plain, 2), "pairs_per_second": round(pairs, 1)}
    (HERE / "terminals.json").write_bytes(msgspec.json.format(msgspec.json.encode(figures)))
    show(figures)


def show(figures: dict[str, Any]) -> None:
    table = Table("look", "pairs a second", "p50 ms", "p99 ms", "statuses", title="authorise and capture")
    for name, one in (("plain SQL in litestar", figures["peer"]), *figures["ours"].items()):
        table.add_row(
            name, f"{one['per_second'] / 2:,.0f}", f"{one['p50_ms']}", f"{one['p99_ms']}", str(one["statuses"])
        )
    console.print(table)
    console.print(figures["ratios"], "processor time of the server's process a pair, us:", end=" ")
    console.print(figures["ours"]["most"]["server_cpu_us_a_pair"])


def raw(path: str, headers: dict[str, str], body: object) -> str:
    """A whole request on one line, as the load generator reads it."""
    content = msgspec.json.encode(body).decode()
    lines = [f"POST {path} HTTP/1.1", "Host: bench", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(content)}", "", content]
    return "\r\x01".join(lines)


def sent(binary: Path, port: int, folder: Path, lines: list[str], *, rate: int = 0) -> Load:
    file = folder / "pairs.txt"
    file.write_text("\n".join(lines))
    words: dict[str, Any] = {"connections": CONNECTIONS if not rate else 256, "seconds": SECONDS, "rate": rate}
    return load(binary, port, file, path="-", **words)


def look_at_peer(server: str, folder: Path, binary: Path) -> dict[str, Any]:
    with database(server) as url, peer("redeem", {"PEER_URL": url.replace("postgresql://", _PEERS)}) as port:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO balances SELECT 'res_' || n, 1000, 0 FROM generate_series(1, %s) n", (RESIDENTS,)
            )
        lines: list[str] = []
        for n in range(3_000 * SECONDS):
            key = f"{secrets.token_hex(8)}-{n}"
            body = {"resident": f"res_{n % RESIDENTS + 1}", "merchant": MERCHANT, "terminal": "t1", "points": 1}
            first = raw("/v1/redemptions", {"Idempotency-Key": key}, body)
            lines.append(f"{first}\x02" + raw(f"/v1/redemptions/{key}/capture", {}, {"points": 1}))
        return msgspec.to_builtins(sent(binary, port, folder, lines))


_PEERS = "postgresql+psycopg://"


class City:
    """Residents with points and the secrets of their phones; a merchant with terminals and their keys."""

    def __init__(self, running: Ours) -> None:
        installation = open_installation(settings(running.environment))
        commands: list[Any] = [merchant.RegisterMerchant(merchant=MERCHANT, name="茶馆", fen_per_point=2)]
        commands += [merchant.EnrolTerminal(merchant=MERCHANT, terminal=f"t{n}") for n in range(TERMINALS)]
        self.residents = [f"res_{n:020d}".translate(_DIGITS) for n in range(RESIDENTS)]
        since = datetime(2020, 1, 1, tzinfo=UTC)
        given = consent.Consent(id="c", purpose="record", version="1", from_=since)
        for resident in self.residents:
            commands += [
                account.OpenAccount(resident=resident),
                account.GiveConsent(resident=resident, consent=given),
            ]
        done(installation.journal.commit([Write(command) for command in commands]))
        rules = installation.journal.rules()
        facts = account.ActionFacts(rules.methodologies, rules.sources.reporting("szt", "bus"))
        rides = [
            account.RecordAction(
                resident=resident,
                source="szt",
                record_id=f"ride-{resident}",
                behaviour="bus",
                quantity=1,  # pyright: ignore[reportArgumentType]  # whole
                unit="trip",
                occurred_at=datetime.now(UTC),
            )
            for resident in self.residents
        ]
        done(installation.journal.commit([Write(ride, facts) for ride in rides]))
        payers = installation.directory.payers
        self.secrets = [payers.issue(resident) for resident in self.residents]
        self.signers = [_signer(installation, f"t{n}") for n in range(TERMINALS)]
        self.keys = [installation.directory.issue_key("terminal", f"{MERCHANT}/t{n}")[1] for n in range(TERMINALS)]
        installation.close()
        self._next = 0

    def pairs(self, count: int, *, signed: bool = False) -> list[str]:
        """Each by a resident's code of now, of the step before or of the one after: three for each resident."""
        step, lines = codes.step_at(datetime.now(UTC)), []
        for _ in range(count):
            n, turn = self._next % RESIDENTS, self._next // RESIDENTS
            self._next += 1
            made = self.secrets[n]
            code = codes.made(made.handle, made.secret, step + (0, 1, -1)[turn % 3])
            till, key = f"t{n % TERMINALS}", secrets.token_hex(12)
            held = redemption_id_of(Caller("", "terminal", f"{MERCHANT}/{till}"), key)
            body = {"code": code, "merchant": MERCHANT, "terminal": till, "points": 1}
            hold, capture = "/v1/redemptions", f"/v1/redemptions/{held}/capture"
            if signed:
                signer, part = self.signers[n % TERMINALS], {"points": 1}
                by = signer.headers("POST", f"http://bench{hold}", key, msgspec.json.encode(body))
                then = signer.headers("POST", f"http://bench{capture}", f"{key}c", msgspec.json.encode(part))
            else:
                then = {"Authorization": f"Bearer {self.keys[n % TERMINALS]}"}
                by = then | {"Idempotency-Key": key}
            lines.append(raw(hold, by, body) + "\x02" + raw(capture, then, {"points": 1}))
        return lines


def _signer(installation: Installation, name: str) -> Signer:
    """A terminal with a key that the log and the directory know."""
    key, key_id = new_key(), "trm_" + secrets.token_hex(10).translate(_DIGITS)
    added = terminal.AddTerminalKey(merchant=MERCHANT, terminal=name, key_id=key_id, public_key=public_text(key))
    done(installation.journal.commit([Write(added)]))
    shop = installation.journal.state(f"merchant/{MERCHANT}", [("identities", name)])
    now = datetime.now(UTC)
    installation.directory.terminals.copy(f"{MERCHANT}/{name}", shop.identities[name], now)
    return Signer(key, key_id, lambda: datetime.now(UTC), lambda: secrets.token_hex(12))


_DIGITS = str.maketrans("0123456789", "abcdefghij")


def done(outcomes: Any) -> None:
    for outcome in outcomes:
        if outcome.refusal or outcome.failure:
            raise SystemExit(f"{outcome.refusal or outcome.failure}")


def look_at_ours(server: str, folder: Path, binary: Path) -> dict[str, Any]:
    told: dict[str, Any] = {}
    with database(server) as url, ours(url, folder / "terminals") as running:
        city = City(running)
        sent(binary, running.port, folder, city.pairs(200))  # handles are looked up, the pools are there
        before = running.process.cpu_times()
        most = sent(binary, running.port, folder, city.pairs(1_000 * SECONDS))
        after = running.process.cpu_times()
        told["most"] = msgspec.to_builtins(most)
        used = after.user + after.system - before.user - before.system
        told["most"]["server_cpu_us_a_pair"] = round(used * 2e6 / most.answered)
        told["signed"] = msgspec.to_builtins(
            sent(binary, running.port, folder, city.pairs(1_000 * SECONDS, signed=True))
        )
        told["500 a second"] = msgspec.to_builtins(
            sent(binary, running.port, folder, city.pairs(500 * SECONDS), rate=500)
        )
        with ingesting(running, folder):
            told["500 a second, while a file is taken in"] = msgspec.to_builtins(
                sent(binary, running.port, folder, city.pairs(500 * SECONDS), rate=500)
            )
    return told


class ingesting:  # noqa: N801  # reads as a word of a sentence
    """A file of reports is taken in by another process meanwhile."""

    def __init__(self, running: Ours, folder: Path) -> None:
        self._file = folder / "reports.ndjson"
        now = datetime.now(UTC).isoformat()
        with self._file.open("w") as file:
            for n in range(40_000 * SECONDS):
                file.write(
                    f'{{"source":"szt","record_id":"bulk-{n}","resident":"card-{n % 50_000}","behaviour":"bus",'
                    f'"quantity":"1","unit":"trip","occurred_at":"{now}"}}\n'
                )
        self._running, self._thread = running, threading.Thread(target=self._ingest, daemon=True)

    def _ingest(self) -> None:
        self._running.command("ingest", str(self._file), "--source", "szt")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join()


if __name__ == "__main__":
    sys.exit(main())
