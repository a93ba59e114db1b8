"""Events and commands: what may be written in them, and when an earlier one says something else."""

from typing import Any

import msgspec
import pytest

from carbon_points.domain.event import Amount, Command, County, Event, Id, Month, Text
from carbon_points.journal.codec import EVENT_TYPES
from tests.given import NOON

KINDS = {"Id": Id, "Text": Text, "County": County, "Month": Month}
RIGHT = {
    "Id": ("res_1", "2018-08-31:AAAJ@szt.7", "x" * 64),
    "Text": ("误读 of card 7", "x" * 200),
    "County": ("330523",),
    "Month": ("2026-10",),
}
WRONG = {
    "Id": ("", "_x", "a b", "a/b", "å", "a\x00", "a\nb", "x" * 65, "١"),
    "Text": ("", "\n", "a\nb", "a\x00b", "\x7f", "x" * 201),
    "County": ("", "33052", "3305230", "33052x", "３３０５２３"),
    "Month": ("2026-13", "2026-00", "1999-12", "2026-1", "2026-10-01"),
}
ENDED = {"Id": "a\n", "Text": "a\n", "County": "330523\n", "Month": "2026-10\n"}


def each(told: dict[str, tuple[str, ...]]) -> list[Any]:
    return [pytest.param(kind, text, id=f"{kind} {text[:20]!r}") for kind, texts in told.items() for text in texts]


@pytest.mark.parametrize(("kind", "text"), each(RIGHT))
def test_what_has_its_form_is_read(kind: str, text: str) -> None:
    assert msgspec.convert(text, KINDS[kind]) == text


@pytest.mark.parametrize(("kind", "text"), each(WRONG))
def test_what_has_another_form_is_not_read(kind: str, text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(text, KINDS[kind])


@pytest.mark.parametrize("kind", ENDED)
def test_a_line_end_at_the_end_is_not_read(kind: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(ENDED[kind], KINDS[kind])


@pytest.mark.parametrize("amount", [-1, 10**15 + 1, 1.5, "1", True])
def test_an_amount_is_a_whole_number_within_its_bounds(amount: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(amount, Amount)


class Wish(Command):
    who: str
    what: str


class Fact(Event):
    type_name = "fact/1"
    who: str
    more: int


def test_only_fields_that_both_have_can_differ() -> None:
    assert Wish(who="a", what="b").differs(Fact(recorded_at=NOON, who="a", more=1)) == []
    assert Wish(who="x", what="b").differs(Fact(recorded_at=NOON, who="a", more=1)) == ["who"]


def test_a_command_has_no_claim_unless_it_says_so() -> None:
    assert Wish(who="a", what="b").claim() is None


@pytest.mark.parametrize("name", EVENT_TYPES)
def test_a_type_s_name_is_short_with_a_version_and_its_events_cannot_be_changed(name: str) -> None:
    kind = EVENT_TYPES[name]
    word, _, version = name.partition("/")
    assert word.replace("-", "").isalpha()
    assert word.islower()
    assert version.isdecimal()
    assert kind.__struct_config__.frozen
    assert kind.__struct_config__.forbid_unknown_fields
