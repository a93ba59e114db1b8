"""Events to stored bytes and back. The bytes are the record: JSON in field order, under a short name with a version.

A type name is never reused for another shape. A new shape gets the next version, and an upcaster here turns the old
bytes into the new event; `tests/golden` keeps bytes of every version ever written.
"""

from collections.abc import Iterator
from types import ModuleType

import msgspec

from carbon_points.domain import account, fund, lot, merchant, methodology, offer, order, source, terminal
from carbon_points.domain.event import Event


def _declared(*modules: ModuleType) -> Iterator[type[Event]]:
    for module in modules:
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event:
                yield kind


EVENT_TYPES: dict[str, type[Event]] = {
    kind.type_name: kind
    for kind in _declared(methodology, source, account, merchant, terminal, offer, order, lot, fund)
}

_encoder = msgspec.json.Encoder(decimal_format="string", uuid_format="canonical")
_decoders = {name: msgspec.json.Decoder(kind) for name, kind in EVENT_TYPES.items()}


class Unreadable(Exception):
    """Stored bytes that no known event type explains."""


def encode(event: Event) -> tuple[str, bytes]:
    """The type name and the state of an event."""
    return event.type_name, _encoder.encode(event)


def decode(type_name: str, state: bytes) -> Event:
    """The event that was stored. Raises Unreadable."""
    try:
        return _decoders[type_name].decode(state)
    except (KeyError, msgspec.DecodeError) as error:
        raise Unreadable(f"{type_name}: {error}") from error
