"""One call of a terminal: what was asked, how far it is, and what became of it. Frozen facts, no decisions.

A call is known by its reference, which is its Idempotency-Key and was made before anything was sent. Whatever a till
may ever need to ask again, reverse or give back is in the call, so that a till that lost power needs nothing else.
"""

from datetime import datetime
from typing import Literal
from urllib.parse import quote

import msgspec
from msgspec import Struct

from carbon_points_terminal.wire import Request

State = Literal["SENT", "UNKNOWN", "REVERSING", "STORED", "DONE"]
Step = Literal["ask", "query", "reversal", "look", "give-back"]
Reason = Literal["customer-cancel", "invalid-response", "timeout", "mismatch"]
Result = Literal["approved", "declined", "reversed", "not-sent"]
Kind = Literal["sale", "refund", "reversal"]
HOLD_SECONDS = 300


# -- what can be asked -----------------------------------------------------------------------------------------------


class Sale(Struct, frozen=True, tag="sale", omit_defaults=True):
    """Points of whoever shows the code: spent at once (`capture`: pay), or set aside first (authorise).

    With an offer, `points` is what the till shows as its price, and the platform's own price counts.
    """

    points: int
    code: str = ""
    resident: str = ""
    capture: bool = True
    hold_seconds: int = HOLD_SECONDS
    offer: str = ""
    items: int = 1


class Offline(Struct, frozen=True, tag="offline"):
    """Points that were taken without a network, by a signed allowance. The goods are gone: it is sent until it is
    answered, and can neither be reversed nor held back."""

    points: int
    allowance: str
    allowance_id: str


class Capture(Struct, frozen=True, tag="capture"):
    """Spend what the sale `of` holds, or part of it."""

    of: str
    redemption_id: str
    points: int


class Void(Struct, frozen=True, tag="void"):
    """Let go what the sale `of` holds."""

    of: str
    redemption_id: str


class Refund(Struct, frozen=True, tag="refund"):
    """Give back captured points of the sale `of`."""

    of: str
    redemption_id: str
    points: int


class Sum(Struct, frozen=True):
    count: int = 0
    points: int = 0
    fen: int = 0

    def __add__(self, other: "Sum") -> "Sum":
        return Sum(self.count + other.count, self.points + other.points, self.fen + other.fen)


class Totals(Struct, frozen=True):
    """What a batch moved, as both sides add it up."""

    sales: Sum = Sum()
    refunds: Sum = Sum()
    reversals: Sum = Sum()


class Close(Struct, frozen=True, tag="close"):
    """Close a batch, if the platform comes to the same totals."""

    batch: int
    totals: Totals


Ask = Sale | Offline | Capture | Void | Refund | Close
FollowUp = Capture | Void | Refund


# -- what comes back -------------------------------------------------------------------------------------------------


class Redemption(Struct, frozen=True):
    """A redemption as the platform shows it. `declined_because`: a code."""

    redemption_id: str
    status: str
    merchant: str | None = None
    terminal: str | None = None
    points: int = 0
    amount_fen: int = 0
    captured_points: int = 0
    captured_fen: int = 0
    refunded_points: int = 0
    refunded_fen: int = 0
    expires_at: datetime | None = None
    declined_because: str = ""


class Refunded(Struct, frozen=True):
    """The answer to a refund: what this one gave back."""

    refund_id: str
    redemption_id: str
    points: int
    amount_fen: int
    status: str = ""


class Reversed(Struct, frozen=True):
    """The answer to a reversal. `action`: what had to be done, none where nothing had arrived."""

    redemption_id: str
    status: str
    action: Literal["none", "released", "refunded"]
    points: int = 0
    amount_fen: int = 0


class Line(Struct, frozen=True, rename={"fen": "amount_fen"}):
    """What one redemption moved in a batch, by kind; `count` times, of so many points and fen in all."""

    redemption_id: str
    kind: str
    points: int
    fen: int
    count: int = 1


class Closed(Struct, frozen=True):
    """The answer to the close of a batch. `totals` and `lines` are the platform's; `unresolved`: why it cannot confirm.

    With a `next_batch`, the batch is closed on the platform's side.
    """

    answer: Literal["agreed", "not-agreed", "cannot-confirm"]
    batch: int
    next_batch: int | None = None
    totals: Totals | None = None
    lines: tuple[Line, ...] = ()
    unresolved: tuple[str, ...] = ()


# -- the call itself -------------------------------------------------------------------------------------------------


class Outcome(Struct, frozen=True, omit_defaults=True):
    """What became of a call, once and for all. `code`: why, where it is no approval."""

    result: Result
    code: str = ""
    status: str = ""
    redemption_id: str = ""
    points: int = 0
    fen: int = 0
    detail: str = ""
    closed: Closed | None = None


class Move(Struct, frozen=True):
    """What a call moved: a line of the batch that was open when the till learned of it."""

    batch: int
    kind: Kind
    points: int
    fen: int


class Call(Struct, frozen=True, omit_defaults=True):
    """`due`: when `step` is to be sent. `attempt` numbers the call's requests; `in_flight`: the last of them is out.

    `STORED`: taken offline, and not answered yet. `begun`: the first sending of the ask; the 15 s before a reversal
    count from there. `unanswered`: a sending of the ask went without an answer, so a copy of it may be anywhere.
    `interrupted`: the till stopped meanwhile.
    """

    reference: str
    reversal_key: str
    give_back_key: str
    stan: int
    merchant: str
    terminal: str
    ask: Ask
    made: datetime
    state: State = "SENT"
    step: Step = "ask"
    due: datetime | None = None
    begun: datetime | None = None
    attempt: int = 0
    in_flight: bool = False
    asks: int = 0
    reversals: int = 0
    tries: int = 0
    unanswered: bool = False
    interrupted: bool = False
    exception: bool = False
    refused: str = ""
    reason: Reason = "timeout"
    giving_back: bool = False
    redemption_id: str = ""
    back: int = 0
    outcome: Outcome | None = None
    moves: tuple[Move, ...] = ()
    last: str = ""

    @property
    def sale(self) -> str:
        """The reference of the sale that this call is about: its own, or that of the sale it follows."""
        return self.ask.of if isinstance(self.ask, FollowUp) else self.reference

    @property
    def blocking(self) -> bool:
        """No new sale begins: a sale's outcome is open and its reversal was not begun, or a batch is being closed."""
        if self.state == "DONE":
            return False
        match self.ask:
            case Sale():
                return not (self.state == "REVERSING" and self.reversals > 0)
            case Close():
                return True
            case _:
                return False


# -- requests --------------------------------------------------------------------------------------------------------


def request(call: Call) -> Request:
    """What the call's next step sends. Again it sends the same bytes, but for a reversal's mark that it is a repeat."""
    match call.step:
        case "ask":
            return _asked(call)
        case "query" | "look":
            return Request("GET", f"/v1/redemptions?reference={call.sale}")
        case "reversal":
            return Request("POST", "/v1/redemptions/reversal", call.reversal_key, _encoded(_reversal(call)))
        case "give-back":
            path = f"/v1/redemptions/{call.redemption_id}/refunds"
            return Request("POST", path, call.give_back_key, _encoded({"points": call.back}))


def _asked(call: Call) -> Request:
    match call.ask:
        case Sale():
            return Request("POST", "/v1/redemptions", call.reference, _encoded(_sale(call, call.ask)))
        case Offline():
            return Request("POST", "/v1/redemptions", call.reference, _encoded(_taken(call, call.ask)))
        case Capture(redemption_id=redemption_id, points=points):
            path, body = f"/v1/redemptions/{redemption_id}/capture", _encoded({"points": points})
        case Void(redemption_id=redemption_id):
            path, body = f"/v1/redemptions/{redemption_id}/void", b""
        case Refund(redemption_id=redemption_id, points=points):
            path, body = f"/v1/redemptions/{redemption_id}/refunds", _encoded({"points": points})
        case Close(batch=batch, totals=totals):
            path = f"/v1/merchants/{_of(call.merchant)}/terminals/{_of(call.terminal)}/batches/{batch}/close"
            body = _encoded(totals)
    return Request("POST", path, call.reference, body)


def _sale(call: Call, sale: Sale) -> dict[str, object]:
    body: dict[str, object] = {"code": sale.code} if sale.code else {"resident": sale.resident}
    body |= {"merchant": call.merchant, "terminal": call.terminal}
    return body | _wanted(sale) | {"hold_seconds": sale.hold_seconds, "capture": sale.capture}


def _taken(call: Call, offline: Offline) -> dict[str, object]:
    body: dict[str, object] = {"allowance": offline.allowance, "captured_offline_at": call.made}
    body |= {"merchant": call.merchant, "terminal": call.terminal}
    return body | {"points": offline.points, "capture": True}


def _reversal(call: Call) -> dict[str, object]:
    assert isinstance(call.ask, Sale), "only a sale is reversed"
    repeat = call.reversals > 1  # the first was counted when it was sent
    return {"reference": call.reference, **_wanted(call.ask), "reason": call.reason, "repeat": repeat}


def _wanted(sale: Sale) -> dict[str, object]:
    """Points, or items of an offer, whose price is the platform's to say."""
    return {"offer": sale.offer, "items": sale.items} if sale.offer else {"points": sale.points}


def _of(name: str) -> str:
    """A name as a part of a path."""
    return quote(name, safe="")


def _encoded(body: object) -> bytes:
    return msgspec.json.encode(body)
