"""FORMAT.md says what is stored: its example is recomputed here from the page alone, and it leaves nothing out."""

import re
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest

import carbon_points.audit
from carbon_points.audit.replay import account as replayed
from carbon_points.audit.replay import fund, lot, merchant, offer, order
from carbon_points.audit.replay.methodology import expiry, recompute
from carbon_points.domain import account
from carbon_points.domain import fund as domain_fund
from carbon_points.domain import merchant as domain_merchant
from carbon_points.domain import offer as domain_offer
from carbon_points.domain import offline as domain_offline
from carbon_points.domain.account import ActionCredited
from carbon_points.domain.methodology import Used, digest_of, parse
from carbon_points.domain.quantity import MG_PER_KG
from carbon_points.journal.codec import EVENT_TYPES, decode, encode
from carbon_points.journal.entry import claim_key, leaf_hash
from carbon_points.journal.streams import partition_of

PAGE = (Path(carbon_points.audit.__file__).parent / "FORMAT.md").read_text("utf-8")


def _block(kind: str) -> str:
    [found] = re.findall(rf"```{kind}\n(.*?)\n```", PAGE, re.DOTALL)
    return found


def _example() -> ActionCredited:
    event = decode("action-credited/1", _block("json").encode())
    assert isinstance(event, ActionCredited)
    return event


def test_the_example_is_read_from_its_bytes_as_the_page_says() -> None:
    """Read by hand, without the project's own encoding."""
    raw = bytes.fromhex(_block("hex").replace("\n", ""))
    assert raw[0] == 1
    partition, version, rest = int.from_bytes(raw[1:5]), int.from_bytes(raw[5:13]), raw[13:]
    fields: list[bytes] = []
    while rest:
        length = int.from_bytes(rest[:4])
        fields.append(rest[4 : 4 + length])
        rest = rest[4 + length :]
    stream, type_name, state = (field.decode() for field in fields)
    assert (type_name, state) == ("action-credited/1", _block("json"))
    assert partition == partition_of(stream, 4)
    assert leaf_hash(partition, stream, version, type_name, state.encode()).hex() == _block("leaf")
    assert f"Resident `{stream}`" in PAGE
    assert f"= {partition}. Their fifth bus ride of 31 August 2018 is version {version} of" in PAGE
    assert f"`{len(state):08x}` and then the state" in PAGE


def test_the_example_has_its_one_stored_form() -> None:
    event = _example()
    assert encode(event) == ("action-credited/1", _block("json").encode())


def test_the_example_is_recomputed_from_the_table_on_the_page() -> None:
    event, table = _example(), parse(_block("toml"))
    assert event.digest == digest_of(_block("toml"))
    four = Used(4, Decimal(4), 40)
    found = recompute(table, event.quantity, {"day": four, "month": four, "year": four})
    assert (found.counted, found.reduction_mg, found.points, found.limits) == (
        event.counted,
        event.reduction_mg,
        event.points,
        event.limits,
    )
    assert event.recorded_at == datetime(2026, 11, 22, 1, 2, 3, 456789, UTC)
    assert expiry(table, date(2026, 11, 22)) == event.expires_on


def test_the_example_has_its_claim() -> None:
    assert claim_key(("action", "szt", "0a1b2c3d")).hex() == _block("claim")


@pytest.mark.parametrize("type_name", EVENT_TYPES)
def test_every_type_and_every_field_is_on_the_page(type_name: str) -> None:
    assert type_name in PAGE
    for field in msgspec.structs.fields(EVENT_TYPES[type_name]):
        assert f"`{field.encode_name}`" in PAGE, field.encode_name


def test_strings_are_escaped_as_the_page_says() -> None:
    text = "".join(chr(n) for n in range(0x21)) + '"\\/\x7f\u2028公'
    short = {0x08: "\\b", 0x09: "\\t", 0x0A: "\\n", 0x0C: "\\f", 0x0D: "\\r"}
    expected = "".join(short.get(n, f"\\u{n:04x}") for n in range(0x20)) + ' \\"\\\\/\x7f\u2028公'
    event = account.AccountFrozen(recorded_at=datetime(2026, 1, 1, tzinfo=UTC), resident="r", frozen=True, reason=text)
    assert f'"reason":"{expected}"'.encode() in encode(event)[1]


def test_the_numbers_of_the_format_are_those_that_the_program_keeps_to() -> None:
    """The verifier has its own: whoever changes the domain's must change the format, and its version."""
    assert replayed.CLOCK_SKEW == account.CLOCK_SKEW
    assert replayed.TAPS_KEPT == account.TAPS_KEPT
    assert replayed.REGRANT_DAYS == account.REGRANT_DAYS
    assert account.HOLD_MOST.total_seconds() == replayed.HOLD_MOST_SECONDS
    assert replayed.POINTS_MOST == account.POINTS_MOST
    assert account.ExitWithoutEntry.code == replayed.EXIT_WITHOUT_ENTRY
    assert merchant.PRICE_MOST_FEN == domain_merchant.PRICE_MOST_FEN
    assert merchant.CLOCK_SKEW == domain_offline.CLOCK_SKEW
    assert order.ALLOWANCE == domain_offline.CLAIM
    bounds = msgspec.json.schema(domain_offline.Offline)["$defs"]["Offline"]["properties"]
    points = {"minimum": 1, "maximum": merchant.POINTS_MOST}
    assert bounds["most_points"].items() >= points.items() <= bounds["most_sum"].items()
    assert bounds["most_count"].items() >= {"minimum": 1, "maximum": merchant.COUNT_MOST}.items()
    assert bounds["most_age_hours"].items() >= {"minimum": 1, "maximum": merchant.HOURS_MOST}.items()
    assert fund.FEN_MOST == domain_fund.FEN_MOST
    assert lot.MG_PER_KG == MG_PER_KG
    assert offer.ITEMS_MOST == domain_offer.ITEMS_MOST
    assert offer.CAMPAIGNS_MOST == domain_offer.CAMPAIGNS_MOST
    assert offer.COUNT_MOST == domain_offer.COUNT_MOST
    assert offer.ITEM_MOST == domain_offer.ITEM_POINTS_MOST == domain_offer.ITEM_FEN_MOST
    assert offer.BUDGET_MOST == domain_offer.BUDGET_MOST
