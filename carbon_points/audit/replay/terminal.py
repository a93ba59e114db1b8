"""Terminals: each key is added once and takes its predecessor's place, and a suspension changes something."""

import base64
import binascii
from datetime import datetime, timedelta

import msgspec
from msgspec import Struct

from carbon_points.audit.finding import must, same
from carbon_points.audit.scratch import Scratch
from carbon_points.domain.event import Event
from carbon_points.domain.terminal import (
    Identity,
    TerminalKeyAdded,
    TerminalKeyEnded,
    TerminalSuspended,
    evolve,
)
from carbon_points.journal.entry import Entry

OF_TERMINALS = (TerminalKeyAdded, TerminalKeyEnded, TerminalSuspended)
OVERLAP = timedelta(hours=24)
_KEY_BYTES = 32

_encode = msgspec.json.Encoder().encode
_identity = msgspec.json.Decoder(Identity)


class _Key(Struct):
    ends_at: datetime | None = None
    ended: TerminalKeyEnded | None = None


class Terminal:
    """One terminal of a merchant, from its enrolment on."""

    def __init__(self) -> None:
        self._keys: dict[str, _Key] = {}
        self._suspended = False

    def take(self, event: Event) -> None:
        match event:
            case TerminalKeyAdded():
                self._add(event)
            case TerminalKeyEnded():
                self._end(event)
            case TerminalSuspended():
                must(event.suspended != self._suspended, "that is how the terminal already stands")
                self._suspended = event.suspended
            case _:
                raise AssertionError(f"not about a terminal's keys: {event.type_name}")

    def _add(self, event: TerminalKeyAdded) -> None:
        must(_is_key(event.public_key), "the public key is not 32 bytes in base64")
        must(event.key_id not in self._keys, f"the key {event.key_id} was added before")
        must(not (event.replaces and self._suspended), "a suspended terminal made itself a key")
        for key_id, key in self._keys.items():
            if key_id != event.replaces:
                ended = key.ends_at is not None and key.ends_at <= event.recorded_at
                must(ended, f"the key {key_id} lives on beside the new one")
        if event.replaces:
            ended_by = self._keys[event.replaces].ended if event.replaces in self._keys else None
            must(ended_by is not None, f"the key {event.replaces} has no end")
            assert ended_by is not None
            same("cause of the end before", ended_by.cause, "rotated")
            same("recorded_at of the end before", ended_by.recorded_at, event.recorded_at)
        self._keys[event.key_id] = _Key()

    def _end(self, event: TerminalKeyEnded) -> None:
        key = self._keys.get(event.key_id)
        must(key is not None, f"the terminal has no key {event.key_id}")
        assert key is not None
        must(key.ends_at is None or event.ends_at < key.ends_at, f"the key {event.key_id} ends no earlier")
        if event.cause == "rotated":
            must(key.ends_at is None, f"the key {event.key_id} had another in its place")
        later = OVERLAP if event.cause == "rotated" else timedelta(0)
        same("ends_at", event.ends_at, event.recorded_at + later)
        key.ends_at, key.ended = event.ends_at, event


def keep(scratch: Scratch, entry: Entry, event: TerminalKeyAdded | TerminalKeyEnded | TerminalSuspended) -> None:
    """What a merchant's state has of the terminal after this, to be held against its row."""
    name = f"identities/{event.terminal}"
    value = scratch.part(entry.stream, name)
    known = _identity.decode(value) if value else Identity()
    evolve(known, event)
    scratch.keep(entry.stream, name, entry.version, _encode(known))


def _is_key(told: str) -> bool:
    try:
        raw = base64.b64decode(told, validate=True)
    except (ValueError, binascii.Error):
        return False
    return len(raw) == _KEY_BYTES and base64.b64encode(raw).decode() == told
