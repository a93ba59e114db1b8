"""A slow model of what the platform promises a terminal, and a network between the two that does what networks do.

The real platform is in `tests/api/test_reference_terminal.py`. The model can be asked what is true at any moment, under
a clock of the test's own, thousands of times in a minute.
"""

import base64
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from carbon_points_terminal import Answer, Journal, NoAnswer, Request, Response, Terminal, Timing
from carbon_points_terminal.ids import ulid

NOON = datetime(2026, 6, 15, 4, tzinfo=UTC)
FEN = 2  # a point
Faults = Iterator[str]


class Time:
    """A clock that moves when somebody sleeps, or a network is slow."""

    def __init__(self) -> None:
        self.at = NOON

    def __call__(self) -> datetime:
        return self.at

    def pass_(self, seconds: float) -> None:
        assert seconds >= 0
        self.at += timedelta(seconds=seconds)


def problem(status: int, code: str, retryable: str = "never", **facts: object) -> Response:
    body = {"type": f"/problems/{code}", "title": code, "code": code, "retryable": retryable, "facts": facts}
    headers = {"content-type": "application/problem+json"} | ({"retry-after": "1"} if status in {429, 503} else {})
    return Response(status, msgspec.json.encode(body), headers)


def shown(status: int, body: object) -> Response:
    return Response(status, msgspec.json.encode(body), {"content-type": "application/json"})


class Platform:
    """One merchant, one terminal, one resident. `confirms`: what the resident says, None where nobody asks."""

    def __init__(self, points: int = 1000, confirms: bool | None = None) -> None:
        self.points = self.begun_with = points
        self.confirms = confirms
        self.sales: dict[str, dict[str, Any]] = {}
        self.refunds: dict[str, dict[str, Any]] = {}
        self.batch = 1
        self.lines: list[tuple[int, str, str, int]] = []  # batch, redemption, kind, points
        self.heard: list[Request] = []
        self.signer = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
        self.limits: dict[str, int] | None = None
        self.used: set[str] = set()

    def allowance(self, name: str, points: int, at: datetime, **said: object) -> str:
        """What a resident's phone fetched then."""
        issued = int(at.timestamp())
        told = {"id": name, "merchant": "shop", "points": points, "issued_at": issued, "expires_at": issued + 86400}
        signed = f"cpa1.alk_1.{_text(msgspec.json.encode(told | said))}"
        return f"{signed}.{_text(self.signer.sign(signed.encode()))}"

    def hear(self, request: Request) -> Response:
        self.heard.append(request)
        body = msgspec.json.decode(request.body) if request.body else {}
        match request.path.replace("?", "/").split("/")[2:]:
            case ["redemptions"]:
                return self._sell(request.key, body)
            case ["merchants", "shop"]:
                return shown(200, {"merchant": "shop", "offline": self.limits})
            case ["allowance-keys"]:
                public = base64.b64encode(self.signer.public_key().public_bytes_raw()).decode()
                return shown(200, {"data": [{"key_id": "alk_1", "public_key": public}]})
            case ["redemptions", "reversal"]:
                return self._reverse(body)
            case ["redemptions", what] if what.startswith("reference="):
                return self._show(what.removeprefix("reference="))
            case ["redemptions", redemption, do]:
                sale = self.sales[redemption.removeprefix("rdm_")]
                return getattr(self, f"_{do}")(sale, request.key, body)
            case ["merchants", _, "terminals", _, "batches", number, "close"]:
                return self._close(int(number), body)
            case _:
                return problem(404, "not-found")

    def _redemption(self, sale: dict[str, Any]) -> dict[str, Any]:
        taken, back = sale["captured"], sale["refunded"]
        return {
            "redemption_id": f"rdm_{sale['reference']}",
            "status": sale["status"],
            "merchant": "shop",
            "terminal": "t1",
            "points": sale["points"],
            "amount_fen": sale["points"] * FEN,
            "expires_at": "2026-06-15T05:00:00Z",
            "captured_points": taken,
            "captured_fen": taken * FEN,
            "refunded_points": back,
            "refunded_fen": back * FEN,
            **({"declined_because": sale["because"]} if "because" in sale else {}),
        }

    def _new(self, reference: str, points: int, status: str) -> dict[str, Any]:
        sale = {"reference": reference, "points": points, "status": status, "captured": 0, "refunded": 0}
        self.sales[reference] = sale
        return sale

    def _move(self, sale: dict[str, Any], kind: str, points: int) -> None:
        self.lines.append((self.batch, f"rdm_{sale['reference']}", kind, points))

    def _sell(self, reference: str, body: dict[str, Any]) -> Response:
        if sale := self.sales.get(reference):
            if sale["status"] == "declined":
                return problem(409, "insufficient-points", "new-key")
            if sale["status"] == "reversed" and not sale["points"]:
                return problem(409, "redemption-reversed", current_state="reversed")
            return shown(200, self._redemption(sale))
        if "allowance" in body:
            allowance = msgspec.json.decode(_bytes(body["allowance"].split(".")[2]))["id"]
            if allowance in self.used:
                self._new(reference, body["points"], "declined")["because"] = "code-used"
                return problem(409, "code-used", "new-key")
            self.used.add(allowance)
        if body["points"] > self.points:
            self._new(reference, body["points"], "declined")["because"] = "insufficient-points"
            return problem(409, "insufficient-points", "new-key")
        sale = self._new(reference, body["points"], "held")
        sale["wants"] = body["capture"]
        self.points -= sale["points"]
        if self.confirms is not None:
            sale["status"] = "confirming"
        elif body["capture"]:
            self._take(sale, sale["points"])
        return shown(201, self._redemption(sale))

    def confirm(self) -> None:
        """The resident answers whatever waits for them."""
        for sale in self.sales.values():
            if sale["status"] == "confirming":
                sale["status"] = "held" if self.confirms else "declined"
                if not self.confirms:
                    self.points += sale["points"]
                    sale["because"] = "not-agreed"
                elif sale["wants"]:
                    self._take(sale, sale["points"])

    def _take(self, sale: dict[str, Any], points: int) -> None:
        self.points += sale["points"] - points
        sale |= {"status": "captured", "captured": points}
        self._move(sale, "sale", points)

    def _capture(self, sale: dict[str, Any], key: str, body: dict[str, Any]) -> Response:
        if sale["status"] == "held":
            self._take(sale, body["points"])
            return shown(201, self._redemption(sale))
        if sale["captured"] == body["points"]:  # the same answer, whatever came later
            return shown(200, self._redemption(sale | {"status": "captured", "refunded": 0}))
        return problem(409, "redemption-not-held", current_state=sale["status"])

    def _void(self, sale: dict[str, Any], key: str, body: dict[str, Any]) -> Response:
        if sale["status"] == "held":
            self.points += sale["points"]
            sale["status"] = "voided"
            return shown(201, self._redemption(sale))
        if sale["status"] == "voided":
            return shown(200, self._redemption(sale))
        return problem(409, "redemption-not-held", current_state=sale["status"])

    def _refunds(self, sale: dict[str, Any], key: str, body: dict[str, Any]) -> Response:
        if key in self.refunds:
            return shown(200, self.refunds[key])
        if sale["status"] not in {"captured", "partially_refunded"}:
            return problem(409, "redemption-not-captured", current_state=sale["status"])
        if body["points"] > sale["captured"] - sale["refunded"]:
            return problem(409, "refund-exceeds-captured")
        self._back(sale, body["points"], "refund")
        whole = sale["refunded"] == sale["captured"]
        sale["status"] = "refunded" if whole else "partially_refunded"
        self.refunds[key] = {
            "refund_id": f"rfd_{key}",
            "redemption_id": f"rdm_{sale['reference']}",
            "points": body["points"],
            "amount_fen": body["points"] * FEN,
        }
        return shown(201, self.refunds[key])

    def _back(self, sale: dict[str, Any], points: int, kind: str) -> None:
        self.points += points
        sale["refunded"] += points
        self._move(sale, kind, points)

    def _reverse(self, body: dict[str, Any]) -> Response:
        reference = body["reference"]
        sale = self.sales.get(reference) or self._new(reference, 0, "none")
        match sale["status"]:
            case "none" | "declined" | "voided" | "refunded":
                sale["status"] = "reversed" if sale["status"] == "none" else sale["status"]
            case "held" | "confirming":
                self.points += sale["points"]
                sale |= {"status": "reversed", "action": "released"}
            case "captured" | "partially_refunded":
                if not any(line[:3] == (self.batch, f"rdm_{reference}", "sale") for line in self.lines):
                    return problem(409, "use-refund")
                back = sale["captured"] - sale["refunded"]
                self._back(sale, back, "reversal")
                sale |= {"status": "reversed", "action": "refunded", "back": back}
        told = {"redemption_id": f"rdm_{reference}", "status": "reversed", "action": sale.get("action", "none")}
        back = sale.get("back", 0)
        return shown(201, told | {"points": back, "amount_fen": back * FEN})

    def _show(self, reference: str) -> Response:
        none = {"reference": reference, "points": 0, "status": "none", "captured": 0, "refunded": 0}
        return shown(200, self._redemption(self.sales.get(reference, none)))

    def totals(self, batch: int) -> dict[str, dict[str, int]]:
        def of(kind: str) -> dict[str, int]:
            found = [points for at, _, what, points in self.lines if (at, what) == (batch, kind)]
            return {"count": len(found), "points": sum(found), "fen": sum(found) * FEN}

        return {"sales": of("sale"), "refunds": of("refund"), "reversals": of("reversal")}

    def _close(self, number: int, body: dict[str, Any]) -> Response:
        there, closed = self.totals(number), number < self.batch
        told: dict[str, Any] = {"batch": number, "totals": there}
        if body != there:
            lines = [
                {"redemption_id": redemption, "kind": kind, "points": points, "amount_fen": points * FEN}
                for at, redemption, kind, points in self.lines
                if at == number
            ]
            return shown(
                200, told | {"answer": "not-agreed", "next_batch": number + 1 if closed else None, "lines": lines}
            )
        self.batch = max(self.batch, number + 1)
        return shown(200, told | {"answer": "agreed", "next_batch": number + 1, "lines": []})


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


# What may happen to one request. What is late arrives after as many others as it says, or at the end.
FAULTS = (
    "ok",
    "lost",
    "answer-lost",
    "late",
    "twice",
    "twice-late",
    "busy",
    "failed",
    "failed-after",
    "portal",
    "proxy",
    "garbled",
)


class Network:
    """A transport that takes a fault for every request; when there are none left, all goes well."""

    def __init__(self, platform: Platform, time: Time, faults: Faults, seconds: int = Timing().answer) -> None:
        self.platform, self.time, self.faults, self.seconds = platform, time, faults, seconds
        self.delayed: list[Request] = []

    def send(self, request: Request) -> Answer:
        self.time.pass_(0.2)
        fault = next(self.faults, "ok")
        if fault.startswith("ok") and self.delayed:
            self.platform.hear(self.delayed.pop(0))
        match fault:
            case "lost":
                return self._nothing()
            case "answer-lost":
                self.platform.hear(request)
                return self._nothing()
            case "late":
                self.delayed.append(request)
                return self._nothing()
            case "twice":
                self.platform.hear(request)
            case "twice-late":
                self.delayed.append(request)
            case "busy":
                return problem(503, "overloaded", "same-key")
            case "failed":
                return problem(500, "internal", "same-key")
            case "failed-after":
                self.platform.hear(request)
                return problem(500, "internal", "same-key")
            case "portal":
                return Response(200, b"<html>Welcome to the station's network</html>", {"content-type": "text/html"})
            case "proxy":
                return Response(404, b"<html>Not here</html>", {"content-type": "text/html"})
            case "garbled":
                self.platform.hear(request)
                return Response(200, b'{"redemption_id": "rdm', {"content-type": "application/json"})
            case _:
                pass
        return self.platform.hear(request)

    def deliver(self) -> None:
        """Whatever was on its way arrives."""
        while self.delayed:
            self.platform.hear(self.delayed.pop(0))

    def _nothing(self) -> NoAnswer:
        self.time.pass_(self.seconds)
        return NoAnswer("nothing came in time")


def references(time: Time) -> Callable[[], str]:
    """References that are never the same, and the same in every run."""
    made = iter(range(1 << 30))
    return lambda: ulid(time(), next(made).to_bytes(10))


class Till:
    """A terminal, its platform, its network and its time."""

    def __init__(self, *faults: str, platform: Platform | None = None, journal: Journal | None = None) -> None:
        self.time = Time()
        self.platform = platform or Platform()
        self.network = Network(self.platform, self.time, iter(faults))
        self.journal = journal or Journal.in_memory("shop", "t1")
        self.ids = references(self.time)
        self.terminal = self.restarted()

    def restarted(self) -> Terminal:
        """What a power cut leaves: the journal alone."""
        self.terminal = Terminal(self.journal, self.network, self.time, self.ids, self.time.pass_)
        return self.terminal

    def finish(self) -> None:
        """The network is well again, and time goes on until nothing is open."""
        self.network.faults = iter(())
        for _ in range(1000):
            if not self.terminal.unresolved():
                return
            due = self.terminal.due()
            assert due is not None, "an open call must be due at some time"
            self.time.pass_(max((due - self.time.at).total_seconds(), 0))
            self.terminal.step()
        raise AssertionError(f"still open: {self.terminal.unresolved()}")

    def seconds(self) -> float:
        return (self.time.at - NOON).total_seconds()

    def posted(self) -> list[str]:
        """What the platform heard, by the ends of the paths."""
        return [f"{one.method} {one.path.removeprefix('/v1/').partition('?')[0]}" for one in self.platform.heard]
