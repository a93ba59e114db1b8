"""Consent: what it covers, to the edge of each of its terms."""

from datetime import UTC, datetime, timedelta

import pytest
from msgspec import ValidationError, convert, json

from carbon_points.domain.consent import Consent, covering
from tests.given import consent

START, END = datetime(2025, 6, 1, tzinfo=UTC), datetime(2025, 7, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("said", "covered"),
    [
        ({}, True),
        ({"from_": START}, True),
        ({"from_": START + SECOND}, False),
        ({"until": END}, True),
        ({"until": END - SECOND}, False),
        ({"source": "szt"}, True),
        ({"source": "hello-bike"}, False),
        ({"behaviours": ("bus", "walk")}, True),
        ({"behaviours": ("walk",)}, False),
        ({"behaviours": ()}, False),
    ],
)
def test_a_consent_covers_a_span_only_where_each_of_its_terms_does(said: dict[str, object], covered: bool) -> None:
    assert consent(**said).covers("bus", source="szt", start=START, end=END) is covered


def test_where_no_source_is_in_question_a_consent_for_one_source_covers() -> None:
    assert consent(source="szt").covers("bus", source=None, start=START, end=END)


def test_of_several_consents_the_first_given_that_allows_it_is_named() -> None:
    given = [
        consent("late", "trade", from_=END),
        consent("record", "record"),
        consent("first", "trade"),
        consent("second", "trade"),
    ]
    found = covering(given, "trade", "bus", source=None, start=START, end=END)
    assert found is not None
    assert found.id == "first"


def test_a_consent_to_record_does_not_allow_to_trade_nor_the_other_way_round() -> None:
    assert covering([consent(purpose="record")], "trade", "bus", source=None, start=START, end=END) is None
    assert covering([consent(purpose="trade")], "record", "bus", source=None, start=START, end=END) is None


def test_a_consent_is_written_with_from_and_read_back_the_same() -> None:
    given = consent(behaviours=("bus",), until=END)
    assert b'"from":' in json.encode(given)
    assert json.decode(json.encode(given), type=Consent) == given


def test_a_consent_for_another_purpose_or_with_an_unknown_term_is_not_read() -> None:
    told = {"id": "c", "purpose": "record", "version": "1", "from": START}
    assert convert(told, Consent).id == "c"
    for wrong in ({"purpose": "sell"}, {"scope": "all"}):
        with pytest.raises(ValidationError):
            convert(told | wrong, Consent)
