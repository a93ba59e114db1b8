"""Refusals are answers: each has a code of its own that never changes, a sentence, and its numbers."""

import re

import pytest

# Every module that declares refusals, so that all of them are known here.
from carbon_points.domain import account, consent, fund, lot, merchant, methodology, posting, quantity, source, terminal
from carbon_points.domain.refusal import Conflict, Refusal, codes

MODULES = (account, consent, fund, lot, merchant, methodology, posting, quantity, source, terminal)


def declared() -> list[type[Refusal]]:
    found: list[type[Refusal]] = []
    waiting = [Refusal]
    while waiting:
        below = waiting.pop().__subclasses__()
        found += below
        waiting += below
    return [kind for kind in found if kind.__module__.startswith("carbon_points.domain")]


@pytest.mark.parametrize("kind", declared(), ids=lambda kind: kind.__name__)
def test_a_refusal_has_a_code_in_kebab_case_and_a_sentence(kind: type[Refusal]) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", kind.code)
    assert kind.title[0].isupper()
    assert not kind.title.endswith(".")


def test_no_two_refusals_share_a_code() -> None:
    assert len({kind.code for kind in declared()}) == len(declared())
    assert set(declared()) <= set(codes().values())


def test_a_refusal_tells_its_numbers() -> None:
    refusal = Conflict(fields=["points"])
    assert refusal.facts == {"fields": ["points"]}
    assert str(refusal) == f"{Conflict.title} (fields ['points'])"
    assert str(Conflict()) == Conflict.title
