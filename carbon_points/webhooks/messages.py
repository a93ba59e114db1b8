"""What is told of the log: which entries become events for merchants and apps, how they are named, written and signed.

Events are thin: ids and amounts. An event's id follows from where its entry lies and what it is, so that whoever
reads the same log names it the same way, and a log that went another way after a restore names other events.
"""

import base64
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import msgspec
from msgspec import Struct
from standardwebhooks import Webhook

from carbon_points.domain.event import Event
from carbon_points.journal import codec
from carbon_points.journal.entry import Entry

EventType = Literal[
    "redemption.confirming",
    "redemption.held",
    "redemption.declined",
    "redemption.captured",
    "redemption.refunded",
    "redemption.voided",
    "redemption.expired",
    "redemption.reversed",
    "batch.closed",
    "settlement.closed",
    "settlement.paid",
    "webhook.test",
]
EVENT_TYPES: tuple[EventType, ...] = get_args(EventType)
TEST: EventType = "webhook.test"
BODY_MOST = 20_000  # bytes; a receiver may refuse more
ID = re.compile(r"evt_([0-9]{1,4})_([0-9]{1,15})_([a-z2-7]{10})")
LEAF_DIGITS = 10


class Telling(Struct, frozen=True):
    """What an entry is told as, by itself, and which of its fields. None: it is told by another entry."""

    type: Callable[[Any], EventType | None]
    fields: tuple[str, ...]


def _always(name: EventType) -> Callable[[Any], EventType]:
    return lambda _: name


_MOVED = ("redemption_id", "merchant", "terminal", "points", "amount_fen")
_RELEASED: dict[str, EventType] = {
    "voided": "redemption.voided",
    "expired": "redemption.expired",
    "reversed": "redemption.reversed",
    "declined": "redemption.declined",
    "unconfirmed": "redemption.declined",
}

# To tell of another kind of entry: a row here, and its name in `EventType`. The entry names its merchant.
TOLD: dict[str, Telling] = {
    "points-held/1": Telling(
        lambda held: "redemption.confirming" if held.confirm_seconds else "redemption.held", (*_MOVED, "expires_at")
    ),
    "hold-confirmed/1": Telling(_always("redemption.held"), ("redemption_id", "merchant", "expires_at")),
    "hold-declined/1": Telling(
        _always("redemption.declined"), ("redemption_id", "merchant", "terminal", "points", "reason")
    ),
    "points-captured/1": Telling(_always("redemption.captured"), _MOVED),
    "hold-released/1": Telling(lambda released: _RELEASED[released.cause], ("redemption_id", "merchant", "cause")),
    "points-refunded/1": Telling(
        lambda refunded: "redemption.reversed" if refunded.reversal else "redemption.refunded",
        ("redemption_id", "refund_id", "merchant", "points", "amount_fen"),
    ),
    # Where its resident is known, what it undoes is told by what the resident's entries say of it.
    "order-reversed/1": Telling(
        lambda reversed_: None if reversed_.resident else "redemption.reversed",
        ("redemption_id", "merchant", "terminal", "points", "reason"),
    ),
    "batch-closed/1": Telling(_always("batch.closed"), ("merchant", "terminal", "batch", "by", "totals")),
    "settlement-closed/1": Telling(
        _always("settlement.closed"), ("settlement_id", "merchant", "captures", "refunds", "points", "amount_fen")
    ),
    "merchant-paid/1": Telling(_always("settlement.paid"), ("settlement_id", "merchant", "amount_fen")),
}


class Message(Struct, frozen=True):
    """One event as it is told. `resident` is for apps: a merchant knows its redemptions only."""

    id: str
    type: EventType
    created_at: datetime
    merchant: str
    data: dict[str, Any]
    partition: int = -1
    position: int = 0
    resident: str | None = None

    def told(self, *, whole: bool) -> dict[str, Any]:
        """The data for an app, which is told whose it is, or for a merchant, which is not."""
        return {**self.data, "resident": self.resident} if whole and self.resident else self.data

    def body(self, sequence: int, *, whole: bool) -> bytes:
        """The bytes that are signed and sent, the `sequence`th to their receiver."""
        said = {"type": self.type, "id": self.id, "sequence": sequence, "created_at": self.created_at}
        told = msgspec.json.encode({**said, "data": self.told(whole=whole)})
        assert len(told) < BODY_MOST, "events are thin: what is long belongs behind an id"
        return told


def event_id(entry: Entry) -> str:
    return f"evt_{entry.partition}_{entry.position}_{base64.b32encode(entry.leaf).decode().lower()[:LEAF_DIGITS]}"


def place_of(name: str) -> tuple[int, int] | None:
    """The partition and position that an event's id names, or None where it is no such id."""
    found = ID.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else None


def message(entry: Entry) -> Message | None:
    """What is told of an entry, if anything is. Raises Unreadable."""
    telling = TOLD.get(entry.type)
    if telling is None:
        return None
    event: Event = codec.decode(entry.type, entry.state)
    name = telling.type(event)
    if name is None:
        return None
    data = {field: getattr(event, field) for field in telling.fields}
    return Message(
        id=event_id(entry),
        type=name,
        created_at=event.recorded_at,
        merchant=data["merchant"],
        data=data,
        partition=entry.partition,
        position=entry.position,
        resident=getattr(event, "resident", None),
    )


def messages(entries: Iterable[Entry]) -> Iterator[Message]:
    return (told for entry in entries if (told := message(entry)) is not None)


def signed(secrets: Sequence[str], name: str, at: datetime, body: bytes) -> dict[str, str]:
    """The headers of Standard Webhooks for one try: a signature by each secret in force."""
    at = at.astimezone(UTC)  # the library takes whatever clock it is given for UTC
    signatures = [Webhook(secret).sign(name, at, body.decode()) for secret in secrets]
    return {
        "webhook-id": name,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }
