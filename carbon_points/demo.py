"""The demonstration: a real server on the embedded default, a fresh data folder, and the whole loop over HTTP.

Either a small city of its own making (the same seed makes the same city) or a file of real reports. The figures are
read from the server's own trial balance at the end.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date, datetime, timedelta
from datetime import time as daytime
from pathlib import Path
from typing import Any, cast

import httpx
from rich.markup import escape
from rich.table import Table

from carbon_points import settings
from carbon_points.api.installation import open_installation
from carbon_points.api.intake import report_of
from carbon_points.api.problems import ApiError
from carbon_points.domain.quantity import CHINA, MG_PER_KG, month_of

Say = Callable[[str], None]

RESIDENTS = 60
DAYS = 30
NAMED_MOST = 500  # residents of a file who open their accounts themselves, with a consent to trade
PRICE_FEN_PER_KG = 5  # about 50 yuan a tonne, as such units have been sold
SPONSOR_FEN = 500_000
SOURCES = (
    ("huzhou-bus", "湖州公交", ("bus",)),
    ("hello-bike", "城市共享单车", ("shared_bike", "shared_ebike")),
    ("huge-recycling", "虎哥回收站", ("waste_sorting", "clothes_recycling")),
    ("green-canteen", "绿色食堂", ("cleared_plate", "no_cutlery")),
    ("steps", "步数授权", ("walk",)),
)
MERCHANTS = (
    ("nanxun-teahouse", "南浔古镇茶馆", "330503"),
    ("anji-bamboo", "安吉竹品小店", "330523"),
    ("huzhou-bus-coupon", "湖州公交乘车券", "330500"),
)
COUNTIES = ("330502", "330503", "330521", "330522", "330523")
FEN_PER_POINT = 2


class DemoFailed(ValueError):
    """The server answered otherwise than the loop needs."""


class Walked:
    """What the walk found, and the server if it stays."""

    def __init__(self, figures: dict[str, Any], server: "Server", say: Say, *, stay: bool) -> None:
        self.figures, self._server, self._say, self._stay = figures, server, say, stay

    def table(self) -> Table:
        table = Table("what", "figure", title="核算减排量 → 减碳量交易 → 普惠反哺", title_justify="left")
        for name, value in _flat(self.figures):
            table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
        return table

    def wait(self) -> None:
        """Keep the server up until it is interrupted, if it was asked to stay."""
        if self._stay:
            self._say(f"up at {self._server.url}, reference at {self._server.url}/docs; keys:")
            for role, secret in self._server.keys.items():
                self._say(f"  {role:9} {secret}")
            try:
                self._server.process.wait()
            except KeyboardInterrupt:
                self._say("stopping")
        self._server.stop()


def run(*, file: Path | None, seed: int, stay: bool, say: Say) -> Walked:
    """Start a server, walk the loop, read the figures. Raises DemoFailed where a call is refused."""
    server = Server()
    try:
        server.start()
        say(f"[dim]serving at {server.url} from {server.folder}[/]")
        with httpx.Client(base_url=server.url, timeout=120) as http:
            walk = Walk(server, http, random.Random(seed), say)
            figures = walk.file(file) if file else walk.city()
        walk.http.close()
        if not stay:
            server.stop()
        return Walked(figures, server, say, stay=stay)
    except BaseException:
        server.stop()
        raise


class Server:
    """`carbon-points serve` in a process of its own, with a key for every role."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="carbon-points-demo-"))
        self.url = ""
        self.keys: dict[str, str] = {}
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CARBON_")}
        environment |= {"CARBON_DATA_DIR": str(self.folder), "CARBON_LOG": "warning"}
        installation = open_installation(settings.load(environment))
        wanted = [("operator", "demo"), ("app", "demo-app"), ("auditor", "demo"), ("buyer", "huzhou-marathon")]
        wanted += [("terminal", f"{merchant}/t1") for merchant, _, _ in MERCHANTS]
        for role, owner in wanted:
            _, secret = installation.directory.issue_key(role, owner)  # pyright: ignore[reportArgumentType]
            self.keys[owner if role == "terminal" else role] = secret
        installation.close()
        command = [sys.executable, "-m", "carbon_points", "serve", "--port", "0", "--json"]
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        if not (told := self.process.stdout.readline()):
            raise DemoFailed("the server did not start")
        self.url = json.loads(told)["url"]
        self._until_ready()

    def _until_ready(self) -> None:
        for _ in range(300):
            if self.process.poll() is not None:
                raise DemoFailed("the server did not start")
            try:
                if httpx.get(f"{self.url}/readyz", timeout=2).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
        raise DemoFailed("the server did not get ready")

    def stop(self) -> None:
        if getattr(self, "process", None) and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
            assert self.process.stdout is not None
            self.process.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Walk:
    """The loop, step by step, as its users would walk it."""

    def __init__(self, server: Server, http: httpx.Client, chance: random.Random, say: Say) -> None:
        self.server, self.http, self.chance, self.say = server, http, chance, say
        self.residents: dict[str, str] = {}  # subject -> pseudonym
        self.verdicts: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.accepted: list[dict[str, Any]] = []
        self.calls = 0

    def call(self, role: str, method: str, path: str, body: object = None, *, check: bool = True) -> httpx.Response:
        self.calls += 1
        headers = {"Authorization": f"Bearer {self.server.keys[role]}", "Idempotency-Key": f"demo-{self.calls}"}
        answer = self.http.request(method, path, json=body, headers=headers)
        if check and answer.is_error:
            raise DemoFailed(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer

    # -- the two cities ----------------------------------------------------------------------------------------------

    def city(self) -> dict[str, Any]:
        """A city of its own making."""
        self.say("[bold]1[/] sources and merchants register, residents open accounts and consent")
        for source, name, behaviours in SOURCES:
            self.call("operator", "POST", "/v1/sources", {"source": source, "name": name, "behaviours": behaviours})
        self._merchants()
        for number in range(RESIDENTS):
            subjects = [{"source": source, "subject": f"card-{number:04d}"} for source, _, _ in SOURCES]
            self._open(f"card-{number:04d}", subjects, COUNTIES[number % len(COUNTIES)])
        return self._loop([json.dumps(act, ensure_ascii=False) for act in self._acts()])

    def file(self, file: Path) -> dict[str, Any]:
        """A file of real reports: some of its people open accounts themselves, the source opens the others'."""
        lines = [line for line in file.read_text("utf-8", errors="replace").splitlines() if line.strip()]
        behaviours: dict[str, set[str]] = defaultdict(set)
        people: Counter[tuple[str, str]] = Counter()
        for line in lines:
            with suppress(ApiError):  # what is no report is sent as it stands, and judged
                report = report_of(line.encode())
                behaviours[report.source].add(report.behaviour)
                people[(report.source, report.resident)] += 1
        self.say(f"[bold]1[/] {len(lines):,} reports of {len(people):,} people in {escape(file.name)}")
        for source, found in behaviours.items():
            body = {"source": source, "name": source, "behaviours": sorted(found), "opens_accounts": True}
            self.call("operator", "POST", "/v1/sources", body)
        self._merchants()
        for (source, subject), _ in people.most_common(NAMED_MOST):
            self._open(subject, [{"source": source, "subject": subject}], None)
        return self._loop(lines)

    # -- steps -------------------------------------------------------------------------------------------------------

    def _loop(self, lines: list[str]) -> dict[str, Any]:
        self._report(lines)
        self._redeem()
        self._pool()
        self._settle()
        return self._figures()

    def _merchants(self) -> None:
        for merchant, name, county in MERCHANTS:
            body = {"merchant": merchant, "name": name, "fen_per_point": FEN_PER_POINT, "county": county}
            self.call("operator", "POST", "/v1/merchants", body)
            self.call("operator", "POST", f"/v1/merchants/{merchant}/terminals", {"terminal": "t1"})

    def _open(self, subject: str, subjects: list[dict[str, str]], county: str | None) -> None:
        since = "2015-01-01T00:00:00+08:00"
        consents = [{"purpose": p, "version": "2026-01", "from": since} for p in ("record", "trade")]
        body = {"subjects": subjects, "consents": consents, "county": county}
        self.residents[subject] = self.call("app", "POST", "/v1/residents", body).json()["resident"]

    def _acts(self) -> Iterator[dict[str, Any]]:
        """A month of a green city, with the slips that real sources make."""
        chance, last = self.chance, datetime.now(CHINA).date()
        serial = 0
        for number in range(RESIDENTS):
            for day in (last - timedelta(days=d) for d in range(DAYS, 0, -1)):
                for behaviour, source, unit, often, amount in _HABITS:
                    if chance.random() < often:
                        serial += 1
                        minute = chance.randrange(6 * 60, 22 * 60)
                        at = datetime.combine(day, daytime(minute // 60, minute % 60), CHINA)
                        yield {
                            "source": source,
                            "record_id": f"{day:%Y%m%d}-{serial:06d}",
                            "resident": f"card-{number:04d}",
                            "behaviour": behaviour,
                            "quantity": amount(chance),
                            "unit": unit,
                            "occurred_at": at.isoformat(),
                        }

    def _report(self, lines: list[str]) -> None:
        """Report everything, the first hundred twice."""
        body = "".join(line + "\n" for line in [*lines, *lines[:100]]).encode()
        headers = {"Authorization": f"Bearer {self.server.keys['operator']}", "Content-Type": "application/x-ndjson"}
        began = time.monotonic()
        with self.http.stream("POST", "/v1/actions/batch", content=body, headers=headers) as answer:
            answer.raise_for_status()
            for line in answer.iter_lines():
                told = json.loads(line)
                self.verdicts[told.get("verdict", "unjudged")] += 1
                if told.get("verdict") == "refused":
                    self.refused[told["code"]] += 1
                elif told.get("verdict") == "accepted":
                    self.accepted.append(told)
        rate = sum(self.verdicts.values()) / (time.monotonic() - began)
        self.say(f"[bold]2[/] {sum(self.verdicts.values()):,} reports judged, {rate:,.0f}/s: {dict(self.verdicts)}")
        if self.accepted:
            action = self.accepted[0]["action_id"]
            self.call("operator", "POST", f"/v1/actions/{action}/reversal", {"reason": "演示：来源更正"})

    def _redeem(self) -> None:
        """Those who can, redeem: captured whole, in part, voided, refunded, and once too much."""
        outcomes: Counter[str] = Counter()
        for turn, resident in enumerate(self.residents.values()):
            merchant = MERCHANTS[turn % len(MERCHANTS)][0]
            balance = self.call("app", "GET", f"/v1/residents/{resident}").json()["balance"]
            points = balance["points_available"] // 2
            if points < 2:
                continue
            terminal = f"{merchant}/t1"
            if turn == 0:
                greedy = self._asks(resident, merchant, balance["points_available"] + 1)
                answer = self.call(terminal, "POST", "/v1/redemptions", greedy, check=False)
                outcomes[answer.json()["code"]] += 1
            body = self._asks(resident, merchant, points)
            held = self.call(terminal, "POST", "/v1/redemptions", body).json()["redemption_id"]
            outcomes[self._finish(terminal, held, turn, points)] += 1
        self.say(f"[bold]3[/] redemptions at the terminals: {dict(outcomes)}")

    def _asks(self, resident: str, merchant: str, points: int) -> dict[str, Any]:
        """What a terminal asks for, by the payment code that the resident shows."""
        code = self.call("app", "POST", f"/v1/residents/{resident}/payment-codes").json()["code"]
        return {"code": code, "merchant": merchant, "terminal": "t1", "points": points}

    def _finish(self, terminal: str, held: str, turn: int, points: int) -> str:
        match turn % 10:
            case 7:
                return self.call(terminal, "POST", f"/v1/redemptions/{held}/void").json()["status"]
            case 8:
                part = {"points": points // 2}
                self.call(terminal, "POST", f"/v1/redemptions/{held}/capture", part)
                return "captured in part"
            case 9:
                self.call(terminal, "POST", f"/v1/redemptions/{held}/capture", {"points": points})
                self.call(terminal, "POST", f"/v1/redemptions/{held}/refunds", {"points": points})
                return self.call(terminal, "GET", f"/v1/redemptions/{held}").json()["status"]
            case 5:
                return "held"
            case _:
                answer = self.call(terminal, "POST", f"/v1/redemptions/{held}/capture", {"points": points})
                return answer.json()["status"]

    def _pool(self) -> None:
        """Pool what may be traded, verify it, issue it, sell most of it, retire some of that."""
        totals: Counter[tuple[str, str]] = Counter()
        for receipt in self.accepted:
            totals[(receipt["methodology"], receipt["version"])] += receipt["reduction_mg"]
        self._until_even()  # the days are told by the read models, which follow a moment later
        if not (days := [d["day"] for d in self.call("operator", "GET", "/v1/city/days").json()]):
            return
        months = {
            "from_month": month_of(date.fromisoformat(min(days))),
            "until_month": month_of(date.fromisoformat(max(days))),
        }
        sold = 0
        for (methodology, version), mg in sorted(totals.items()):
            if mg < MG_PER_KG:
                continue
            body = {"methodology": methodology, "version": version, **months}
            sold += self._lot(self.call("operator", "POST", "/v1/pools", body).json()["pool_id"])
        self.say(f"[bold]4[/] {sold} kg sold in lots to huzhou-marathon, half of them retired for good")

    def _lot(self, pool: str) -> int:
        after, gathering = "", 0
        while after is not None:
            told = self.call("operator", "POST", f"/v1/pools/{pool}/gather?after={after}").json()
            after, gathering = told["next_resident"], told["gathering"]
        sealed = self.call("operator", "POST", f"/v1/pools/{pool}/seal?gathering={gathering}", check=False)
        if sealed.status_code == 409 or (gathered := sealed.json()["gathered_mg"]) < MG_PER_KG:
            return 0  # nobody who consented has enough of this
        found = {"verifier": "演示核证机构", "report": f"核证报告 {pool}", "verified_mg": gathered}
        self.call("operator", "POST", f"/v1/pools/{pool}/verifications", found)
        lot = self.call("operator", "POST", f"/v1/pools/{pool}/lots").json()
        kg = max(lot["kg"] * 4 // 5, 1)
        sale = {"buyer": "huzhou-marathon", "kg": kg, "price_fen": kg * PRICE_FEN_PER_KG}
        sold = self.call("operator", "POST", f"/v1/lots/{lot['lot_id']}/sales", sale).json()
        paid = {"origin": "sale", "payer": sale["buyer"], "amount_fen": sale["price_fen"]}
        paid |= {"sale_id": sold["sale_id"], "lot_id": lot["lot_id"]}
        self.call("operator", "POST", "/v1/fund/receipts", paid)
        use = {"holder": sale["buyer"], "kg": max(kg // 2, 1), "purpose": "event", "beneficiary": "湖州马拉松"}
        use["reason"] = "赛事碳中和"
        self.call("buyer", "POST", f"/v1/lots/{lot['lot_id']}/retirements", use)
        return kg

    def _settle(self) -> None:
        sponsor = {"origin": "sponsor", "payer": "国网湖州供电公司", "amount_fen": SPONSOR_FEN}
        self.call("operator", "POST", "/v1/fund/receipts", sponsor)
        paid = 0
        for merchant, _, _ in MERCHANTS:
            closed = self.call("operator", "POST", f"/v1/merchants/{merchant}/settlements", check=False)
            if closed.status_code == 409:
                continue  # nobody came
            path = f"/v1/merchants/{merchant}/settlements/{closed.json()['settlement_id']}/payment"
            paid += self.call("operator", "POST", path).json()["amount_fen"]
        self.say(f"[bold]5[/] merchants settled and paid {paid / 100:,.2f} yuan from the fund")

    # -- figures -----------------------------------------------------------------------------------------------------

    def _figures(self) -> dict[str, Any]:
        """Everything from the trial balance, once the read models have taken the last entry."""
        self._until_even()
        told = self.call("auditor", "GET", "/v1/trial-balance").json()
        stand: Counter[tuple[str, str]] = Counter()
        for account in told["accounts"]:
            stand[(account["asset"], account["account"].partition("/")[0])] += account["amount"]
        retired = stand[("mg", "retired")]
        sold = stand[("mg", "buyer")] + retired
        return {
            "actions": {
                "accepted": self.verdicts["accepted"],
                "duplicate": self.verdicts["duplicate"],
                "refused": self.verdicts["refused"],
                "pending": self.verdicts["pending"],
                "refused_by_code": dict(self.refused),
            },
            "reduction_mg": -stand[("mg", "issued")],
            "points": {
                "granted": -stand[("points", "issued")],
                "held": stand[("points", "held")],
                "redeemed": stand[("points", "redeemed")] + stand[("points", "merchant")],
                "expired": stand[("points", "expired")],
                "available": stand[("points", "resident")],
            },
            "lots": {
                "issued_kg": (stand[("mg", "lot")] + sold) // MG_PER_KG,
                "sold_kg": sold // MG_PER_KG,
                "retired_kg": retired // MG_PER_KG,
            },
            "fund_fen": {
                "in": -stand[("fen", "buyers")] - stand[("fen", "sponsors")],
                "out": stand[("fen", "merchant")],
                "balance": stand[("fen", "fund")],
            },
            "trial_balance": told["totals"],
            "entries": sum(told["positions"].values()),
        }

    def _until_even(self) -> None:
        for _ in range(600):
            if not any(self.http.get("/readyz").json()["lag"].values()):
                return
            time.sleep(0.1)
        raise DemoFailed("the read models do not catch up")


def _flat(figures: dict[str, Any], under: str = "") -> Iterator[tuple[str, object]]:
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from _flat(cast(dict[str, Any], value), f"{under}{name} ")
        else:
            yield under + name, value


def _km(least: float, most: float) -> Callable[[random.Random], str]:
    return lambda chance: f"{chance.uniform(least, most):.2f}"


def _once(_: random.Random) -> str:
    return "1"


def _steps(chance: random.Random) -> str:
    return str(chance.randrange(1_500, 21_000))


# behaviour, source, unit, how often a day, how much. One bike report in fifty or so did not move: it is refused.
_HABITS = (
    ("bus", "huzhou-bus", "trip", 0.75, _once),
    ("shared_bike", "hello-bike", "km", 0.35, _km(0.0, 6.0)),
    ("waste_sorting", "huge-recycling", "kg", 0.15, _km(0.3, 4.0)),
    ("cleared_plate", "green-canteen", "time", 0.45, _once),
    ("walk", "steps", "step", 0.9, _steps),
)
