"""An entry: one stored event, as its bytes lie in the journal, and the hash that commits to them."""

import base64
import binascii
import hashlib
import struct

from msgspec import Struct

_HEAD = struct.Struct(">BIQ")
_LENGTH = struct.Struct(">I")
_LEAF_FORMAT = 1
_KEY_BYTES = 16
_DIGITS = "abcdefghijklmnopqrstuvwxyz234567"  # RFC 4648's base32, in lower case
_PAIRS = [a + b for a in _DIGITS for b in _DIGITS]
_SHIFTS = range(120, -1, -10)
_LEAF_PREFIX = b"\x00"  # RFC 6962: leaves and nodes are hashed apart


class Entry(Struct, frozen=True):
    """`position` counts a partition's entries from 1 without gaps; `version` counts a stream's events likewise."""

    partition: int
    position: int
    stream: str
    version: int
    type: str
    state: bytes
    leaf: bytes


class Claim(Struct, frozen=True):
    """An identity that was used: the hash of its words, and the event that used it."""

    key: bytes
    stream: str
    version: int


class StateRow(Struct, frozen=True):
    """A part of a stream's state ("" is the main one) as of a version: a cache that replay can rebuild.

    `kept`: a row is there to be written over. Otherwise there must be none.
    """

    stream: str
    part: str
    version: int
    state: bytes
    kept: bool = False


def leaf_bytes(partition: int, stream: str, version: int, type_name: str, state: bytes) -> bytes:
    """What the leaf hash commits to: everything of an entry but its position, which the tree itself fixes."""
    name, kind, length = stream.encode(), type_name.encode(), _LENGTH.pack
    head = _HEAD.pack(_LEAF_FORMAT, partition, version)
    return b"".join((head, length(len(name)), name, length(len(kind)), kind, length(len(state)), state))


def leaf_hash(partition: int, stream: str, version: int, type_name: str, state: bytes) -> bytes:
    """SHA-256 of 0x00 and the leaf bytes: 32 bytes."""
    return hashlib.sha256(_LEAF_PREFIX + leaf_bytes(partition, stream, version, type_name, state)).digest()


def claim_key(words: tuple[str, ...]) -> bytes:
    """16 bytes of SHA-256 over the length-prefixed words of an identity."""
    told = b"".join([_LENGTH.pack(len(word)) + word for word in map(str.encode, words)])
    return hashlib.sha256(told).digest()[:_KEY_BYTES]


def action_id(source: str, record_id: str) -> str:
    """The public id of an action: its claim key in lower-case base32. Known before it is sent, opaque to others."""
    number = int.from_bytes(claim_key(("action", source, record_id))) << 2  # 128 bits are 26 digits of 5
    return "act_" + "".join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])


def key_of_action(name: str) -> bytes | None:
    """The claim key behind an action's public id, or None where it is not one."""
    try:
        key = base64.b32decode(name.removeprefix("act_").upper() + "======")
    except (binascii.Error, ValueError):
        return None
    return key if len(key) == _KEY_BYTES and name.startswith("act_") else None
