"""Sources: registered once, changed openly, and heard only on what they may report."""

from typing import Any

import pytest

from carbon_points.domain.event import Event
from carbon_points.domain.source import (
    BehaviourNotAllowed,
    ChangeSource,
    NothingToChange,
    RegisterSource,
    Sources,
    SourceSuspended,
    SourceUnknown,
    decide,
    evolve,
)
from tests.given import NOON


def registering(**said: Any) -> RegisterSource:
    return RegisterSource(**({"source": "szt", "name": "深圳通", "behaviours": ("bus", "metro_in")} | said))


def changing(**said: Any) -> ChangeSource:
    return ChangeSource(**({"source": "szt", "behaviours": ("bus", "metro_in")} | said))


def after(*commands: RegisterSource | ChangeSource) -> Sources:
    sources = Sources()
    for command in commands:
        for event in decide(sources, command, now=NOON):
            evolve(sources, event)
    return sources


def test_a_registered_source_may_report_its_behaviours() -> None:
    sources = after(registering(opens_accounts=True, lateness_days=3, county="330502"))
    source = sources.reporting("szt", "metro_in")
    assert (source.opens_accounts, source.lateness_days, source.county) == (True, 3, "330502")


def test_the_refusals_of_a_report_come_in_order() -> None:
    sources = after(registering(), changing(behaviours=("bus",), suspended=True))
    with pytest.raises(SourceUnknown):
        sources.reporting("unheard-of", "walk")
    with pytest.raises(SourceSuspended):  # and the behaviour is not its own either
        sources.reporting("szt", "walk")
    evolve(sources, decide(sources, changing(behaviours=("bus",)), now=NOON)[0])
    with pytest.raises(BehaviourNotAllowed):
        sources.reporting("szt", "walk")
    assert sources.reporting("szt", "bus").id == "szt"


def test_a_change_of_an_unknown_source_is_refused() -> None:
    with pytest.raises(SourceUnknown):
        decide(Sources(), changing(), now=NOON)


def test_a_change_to_how_it_already_stands_is_refused() -> None:
    sources = after(registering())
    with pytest.raises(NothingToChange):
        decide(sources, changing(), now=NOON)


@pytest.mark.parametrize(
    "said", [{"behaviours": ("bus",)}, {"opens_accounts": True}, {"lateness_days": 0}, {"suspended": True}]
)
def test_each_term_of_a_source_can_be_changed_and_stands_afterwards(said: dict[str, Any]) -> None:
    changed = after(registering(county="330502"), changing(**said)).by_id["szt"]
    assert {field: getattr(changed, field) for field in said} == said
    assert (changed.name, changed.county) == ("深圳通", "330502")


def test_a_registration_is_claimed_by_the_source_and_differs_in_what_it_says() -> None:
    [event] = decide(Sources(), registering(), now=NOON)
    assert registering().claim() == ("source", "szt")
    assert registering().differs(event) == []
    assert registering(name="其他", opens_accounts=True).differs(event) == ["name", "opens_accounts"]


def test_an_event_of_something_else_leaves_the_sources_alone() -> None:
    class Unrelated(Event):
        type_name = "unrelated/1"

    sources = after(registering())
    evolve(sources, Unrelated(recorded_at=NOON))
    assert set(sources.by_id) == {"szt"}
