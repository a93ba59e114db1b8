"""Terminals: the keys with which they sign, and whether they are suspended.

A private key never leaves its terminal; the public one is a fact, so that whoever reads the log knows by which key
something could be signed when. These facts lie in the stream of the terminal's merchant.

Invariant: a terminal has one key that nothing ends, and at most one more, which has less than a day to live.
"""

from datetime import datetime, timedelta
from typing import ClassVar, Literal

from msgspec import Struct

from carbon_points.domain.event import Command, Event, Id, Text
from carbon_points.domain.refusal import Refusal

OVERLAP = timedelta(hours=24)  # how long a key lives on beside the one that took its place


class AddTerminalKey(Command):
    """Let a terminal sign with another key: `public_key` is base64 of its 32 bytes.

    `replaces` is the key that signed this wish, and lives on for a day. Without it the terminal was activated anew,
    perhaps because the device is gone, and its keys end at once. A key is one terminal's, and is taken once.
    """

    claimed_everywhere: ClassVar[bool] = True

    merchant: Id
    terminal: Id
    key_id: str
    public_key: str
    replaces: str | None = None

    def claim(self) -> tuple[str, ...]:
        return ("terminal-key", self.public_key)


class SuspendTerminal(Command):
    """Nothing is taken from a terminal that is suspended, until it no longer is. Its state decides: it may be said
    again."""

    merchant: Id
    terminal: Id
    suspended: bool
    reason: Text


class TerminalKeyAdded(Event):
    type_name: ClassVar[str] = "terminal-key-added/1"
    merchant: str
    terminal: str
    key_id: str
    public_key: str
    replaces: str | None = None


class TerminalKeyEnded(Event):
    """A key has an end, or an earlier one. `rotated`: its successor was signed by it; `replaced`: by nothing."""

    type_name: ClassVar[str] = "terminal-key-ended/1"
    merchant: str
    terminal: str
    key_id: str
    ends_at: datetime
    cause: Literal["rotated", "replaced"]


class TerminalSuspended(Event):
    type_name: ClassVar[str] = "terminal-suspended/1"
    merchant: str
    terminal: str
    suspended: bool
    reason: str


class SigningKey(Struct):
    public_key: str
    added_at: datetime
    ends_at: datetime | None = None


class Identity(Struct):
    """A terminal's keys that have not ended when the last one was added, by id. `changes` counts its events here."""

    keys: dict[str, SigningKey] = {}
    suspended: bool = False
    changes: int = 0


class TerminalIsSuspended(Refusal):
    code = "terminal-suspended"
    title = "The terminal is suspended"


class KeyEnded(Refusal):
    code = "key-ended"
    title = "The terminal's key has ended or is about to: another has taken its place"


def add_key(identity: Identity, command: AddTerminalKey, *, now: datetime) -> list[Event]:
    """The ends of the keys whose place it takes, then the key. Refusals, in order: TerminalIsSuspended; KeyEnded.

    Whoever is suspended cannot make itself a new key; whom the operator activates can, and stays suspended.
    """
    known = identity.keys.get(command.replaces or "")
    if command.replaces is not None and identity.suspended:
        raise TerminalIsSuspended(merchant=command.merchant, terminal=command.terminal)
    if command.replaces is not None and (known is None or known.ends_at is not None):
        raise KeyEnded(key_id=command.replaces)
    ends: list[Event] = []
    for key_id, key in identity.keys.items():
        rotated = key_id == command.replaces
        ends_at = now + OVERLAP if rotated else now
        if key.ends_at is None or key.ends_at > ends_at:
            ends.append(
                TerminalKeyEnded(
                    recorded_at=now,
                    merchant=command.merchant,
                    terminal=command.terminal,
                    key_id=key_id,
                    ends_at=ends_at,
                    cause="rotated" if rotated else "replaced",
                )
            )
    return [
        *ends,
        TerminalKeyAdded(
            recorded_at=now,
            merchant=command.merchant,
            terminal=command.terminal,
            key_id=command.key_id,
            public_key=command.public_key,
            replaces=command.replaces,
        ),
    ]


def suspend(identity: Identity, command: SuspendTerminal, *, now: datetime) -> list[Event]:
    """Nothing, where it stands so already."""
    if command.suspended == identity.suspended:
        return []
    return [
        TerminalSuspended(
            recorded_at=now,
            merchant=command.merchant,
            terminal=command.terminal,
            suspended=command.suspended,
            reason=command.reason,
        )
    ]


def evolve(identity: Identity, event: TerminalKeyAdded | TerminalKeyEnded | TerminalSuspended) -> None:
    identity.changes += 1
    match event:
        case TerminalKeyAdded():
            ended = [k for k, key in identity.keys.items() if key.ends_at and key.ends_at <= event.recorded_at]
            for key_id in ended:
                del identity.keys[key_id]
            identity.keys[event.key_id] = SigningKey(event.public_key, event.recorded_at)
        case TerminalKeyEnded():
            identity.keys[event.key_id].ends_at = event.ends_at
        case TerminalSuspended():
            identity.suspended = event.suspended
