"""Bytes that were written once are read for ever: each event type, the leaf hash, the claim key, the partition.

What fails here would make a stored log unreadable, or give its entries other hashes.
"""

import hashlib
import json
from pathlib import Path

import msgspec
import pytest

from carbon_points.domain.event import Event
from carbon_points.journal.codec import EVENT_TYPES, Unreadable, decode, encode
from carbon_points.journal.entry import action_id, claim_key, key_of_action, leaf_bytes, leaf_hash
from carbon_points.journal.streams import partition_of
from tests.golden.events import EVENTS

LEAF = "d2b884a8b0def15c7b1b0390695b62f749c169955a0cdd66f20e1e62a6ad140e"
STORED = Path(__file__).with_name("events.ndjson")


class Line(msgspec.Struct, frozen=True):
    """A stored event: the text of its state, and the leaf hash it has as the first of `res_1` in partition 3."""

    type: str
    state: str
    leaf: str


LINES = [msgspec.json.decode(line, type=Line) for line in STORED.read_bytes().splitlines()]
REMEDY = (
    "bytes of this kind are in somebody's log: they must be read as before. Give the new shape a new type name "
    "with an upcaster in journal/codec.py, and add its events and bytes here beside the old ones"
)


def shown(event: Event) -> str:
    return f"{event.type_name} {len(encode(event)[1])}"


@pytest.mark.parametrize("name", EVENT_TYPES)
def test_every_event_type_has_stored_bytes(name: str) -> None:
    remedy = (
        f"no bytes of {name} are kept: add an event with all its fields to tests/golden/events.py, and its line "
        "(type, state, leaf) to events.ndjson, as `encode` and `leaf_hash` give them on the day the type is new"
    )
    assert name in {line.type for line in LINES}, remedy
    assert name in {event.type_name for event in EVENTS}, remedy


def test_every_event_here_has_its_line_and_every_line_its_event() -> None:
    assert [line.type for line in LINES] == [event.type_name for event in EVENTS]


PAIRS = [pytest.param(line, event, id=shown(event)) for line, event in zip(LINES, EVENTS, strict=False)]


@pytest.mark.parametrize(("line", "event"), PAIRS)
def test_stored_bytes_are_read_as_the_event_they_were(line: Line, event: Event) -> None:
    assert decode(line.type, line.state.encode()) == event, REMEDY


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line.type} {len(line.state.encode())}")
def test_what_is_read_is_written_as_the_same_bytes(line: Line) -> None:
    assert encode(decode(line.type, line.state.encode())) == (line.type, line.state.encode()), REMEDY


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line.type} {len(line.state.encode())}")
def test_stored_bytes_keep_their_leaf_hash(line: Line) -> None:
    assert leaf_hash(3, "res_1", 1, line.type, line.state.encode()).hex() == line.leaf


@pytest.mark.parametrize("event", EVENTS, ids=shown)
def test_an_event_with_everything_said_says_every_field_in_its_order(event: Event) -> None:
    written = list(json.loads(encode(event)[1]))
    known = list(event.__struct_encode_fields__)
    assert written == [field for field in known if field in written]


def test_every_field_of_every_type_is_in_some_stored_bytes() -> None:
    for name, kind in EVENT_TYPES.items():
        written = {field for line in LINES if line.type == name for field in json.loads(line.state)}
        assert written == set(kind.__struct_encode_fields__), f"{name}: {REMEDY}"


# -- what is not read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("action-credited/99", b"{}"),
        ("", b"{}"),
        ("price-changed/1", b""),
        ("price-changed/1", b"{}"),
        ("price-changed/1", b'{"recorded_at":"2026-11-22T01:02:03Z","merchant":"m","fen_per_point":1,"extra":1}'),
        ("price-changed/1", b'{"recorded_at":"2026-11-22T01:02:03Z","merchant":"m","fen_per_point":1.5}'),
        ("price-changed/1", b'{"recorded_at":"2026-11-22T01:02:03Z","merchant":"m","fen_per_point":1}}'),
        ("price-changed/1", b"\xff"),
    ],
)
def test_bytes_that_no_type_explains_are_unreadable(name: str, state: bytes) -> None:
    with pytest.raises(Unreadable):
        decode(name, state)


# -- vectors ---------------------------------------------------------------------------------------------------------


def test_the_leaf_of_an_entry_is_laid_out_as_the_format_says() -> None:
    laid = leaf_bytes(2, "res_å", 7, "t/1", b"{}")
    assert laid.hex() == (
        "01"  # format
        "00000002"  # partition
        "0000000000000007"  # version
        "00000006" + "res_å".encode().hex() + "00000003" + b"t/1".hex() + "00000002" + b"{}".hex()
    )
    assert leaf_hash(2, "res_å", 7, "t/1", b"{}") == hashlib.sha256(b"\x00" + laid).digest()
    assert leaf_hash(2, "res_å", 7, "t/1", b"{}").hex() == LEAF


def test_no_byte_can_move_from_one_field_of_a_leaf_to_the_next() -> None:
    leaves = {
        leaf_hash(0, "ab", 1, "c", b"d"),
        leaf_hash(0, "a", 1, "bc", b"d"),
        leaf_hash(0, "ab", 1, "cd", b""),
        leaf_hash(0, "", 1, "abc", b"d"),
        leaf_hash(1, "ab", 1, "c", b"d"),
        leaf_hash(0, "ab", 2, "c", b"d"),
    }
    assert len(leaves) == 6


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("action", "szt", "1"), "5bed8c5cdaa8343120b8ffc90a60da70"),
        (("redemption", "d1"), "ad6469fcf1fc5809ba92f3861fa6f2d9"),
        (("refund", "d1", "f1"), "c19d0f4bf33698a50ce231d18cb20cf2"),
        (("source", "深圳通"), "da34d476b4a860f1ea4f921182da5eb1"),
        ((), "e3b0c44298fc1c149afbf4c8996fb924"),
    ],
)
def test_a_claim_s_key_is_sixteen_bytes_that_never_change(words: tuple[str, ...], key: str) -> None:
    assert claim_key(words).hex() == key


def test_no_letter_can_move_from_one_word_of_a_claim_to_the_next() -> None:
    assert len({claim_key(words) for words in [("a", "bc"), ("ab", "c"), ("abc",), ("abc", ""), ("", "abc")]}) == 5


@pytest.mark.parametrize(
    ("stream", "of_4", "of_64"),
    [("res_1", 3, 43), ("methodologies", 3, 59), ("pool/pool_1", 3, 59), ("merchant/å", 1, 1)],
)
def test_a_stream_s_partition_never_changes(stream: str, of_4: int, of_64: int) -> None:
    assert (partition_of(stream, 4), partition_of(stream, 64)) == (of_4, of_64)
    assert partition_of(stream, 1) == 0
    assert partition_of("123456789", 2**32) == 0xCBF43926  # the check value that every CRC-32 gives


# -- an action's public id -------------------------------------------------------------------------------------------


def test_an_action_s_public_id_is_its_claim_key_and_leads_back_to_it() -> None:
    name = action_id("szt", "1")
    assert name == "act_lpwyyxg2va2dcify77equyg2oa"
    assert key_of_action(name) == claim_key(("action", "szt", "1"))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "act_",
        "act_1",
        "act_" + "a" * 25,
        "act_" + "a" * 27,
        "act_" + "1" * 26,
        "act_" + "é" * 26,
        "lot_" + "a" * 26,
        "a" * 26,
        "act_act_" + "a" * 26,
        "act_" + "=" * 32,
        "act_" + "a" * 10000,
    ],
)
def test_what_is_no_action_s_id_leads_nowhere(name: str) -> None:
    assert key_of_action(name) is None
