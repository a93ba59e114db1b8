"""Terminals: a key takes the place of another, an activation ends all others, and who is suspended makes none."""

from datetime import timedelta

import pytest

from carbon_points.domain.event import Command, Event
from carbon_points.domain.merchant import (
    EnrolTerminal,
    Merchant,
    MerchantUnknown,
    RegisterMerchant,
    TerminalUnknown,
    decide,
    evolve,
)
from carbon_points.domain.terminal import (
    OVERLAP,
    AddTerminalKey,
    KeyEnded,
    SuspendTerminal,
    TerminalIsSuspended,
    TerminalKeyAdded,
    TerminalKeyEnded,
    TerminalSuspended,
)
from tests.given import NOON

HOUR = timedelta(hours=1)


def activating(key: str, terminal: str = "t1") -> AddTerminalKey:
    return AddTerminalKey(merchant="shop", terminal=terminal, key_id=f"trm_{key}", public_key=key)


def rotating(key: str, by: str) -> AddTerminalKey:
    return AddTerminalKey(merchant="shop", terminal="t1", key_id=f"trm_{key}", public_key=key, replaces=f"trm_{by}")


def suspending(suspended: bool = True) -> SuspendTerminal:
    return SuspendTerminal(merchant="shop", terminal="t1", suspended=suspended, reason="stolen")


def after(*commands: Command) -> Merchant:
    """A merchant with a terminal, an hour after each of these."""
    merchant = Merchant("shop")
    known = (
        RegisterMerchant(merchant="shop", name="x", fen_per_point=1),
        EnrolTerminal(merchant="shop", terminal="t1"),
    )
    for number, command in enumerate((*known, *commands)):
        for event in decide(merchant, command, now=NOON + (number - 2) * HOUR):
            evolve(merchant, event)
    return merchant


def ends(events: list[Event]) -> dict[str, tuple[timedelta, str]]:
    """By key: how long it lives on, and why it ends."""
    return {e.key_id: (e.ends_at - e.recorded_at, e.cause) for e in events if isinstance(e, TerminalKeyEnded)}


def test_a_terminal_is_activated_with_its_first_key() -> None:
    [added] = decide(after(), activating("a"), now=NOON)
    assert isinstance(added, TerminalKeyAdded)
    assert (added.key_id, added.public_key, added.replaces) == ("trm_a", "a", None)


@pytest.mark.parametrize("command", [activating("a", "t9"), suspending()])
def test_a_terminal_that_is_not_enrolled_is_refused(command: Command) -> None:
    with pytest.raises(MerchantUnknown):
        decide(Merchant("shop"), command, now=NOON)
    if isinstance(command, AddTerminalKey):
        with pytest.raises(TerminalUnknown):
            decide(after(), command, now=NOON)


def test_a_rotated_key_lives_on_for_a_day_and_the_one_before_it_no_longer() -> None:
    merchant = after(activating("a"))
    events = decide(merchant, rotating("b", by="a"), now=NOON + HOUR)
    assert ends(events) == {"trm_a": (OVERLAP, "rotated")}
    for event in events:
        evolve(merchant, event)
    again = decide(merchant, rotating("c", by="b"), now=NOON + 2 * HOUR)
    assert ends(again) == {"trm_a": (timedelta(0), "replaced"), "trm_b": (OVERLAP, "rotated")}
    assert isinstance(again[-1], TerminalKeyAdded), "the claim names the last event"


def test_a_key_that_has_ended_is_forgotten_with_the_next_one() -> None:
    merchant = after(activating("a"), rotating("b", by="a"), rotating("c", by="b"))
    assert set(merchant.identities["t1"].keys) == {"trm_b", "trm_c"}


@pytest.mark.parametrize("by", ["a", "nobody"])
def test_only_the_newest_key_makes_another(by: str) -> None:
    merchant = after(activating("a"), rotating("b", by="a"))
    with pytest.raises(KeyEnded):
        decide(merchant, rotating("c", by=by), now=NOON + 2 * HOUR)


def test_an_activation_ends_every_other_key_at_once() -> None:
    merchant = after(activating("a"), rotating("b", by="a"))
    events = decide(merchant, activating("c"), now=NOON + 2 * HOUR)
    assert ends(events) == dict.fromkeys(("trm_a", "trm_b"), (timedelta(0), "replaced"))


def test_who_is_suspended_makes_no_key_and_who_is_activated_stays_suspended() -> None:
    merchant = after(activating("a"), suspending())
    with pytest.raises(TerminalIsSuspended):
        decide(merchant, rotating("b", by="a"), now=NOON + 2 * HOUR)
    for event in decide(merchant, activating("b"), now=NOON + 2 * HOUR):
        evolve(merchant, event)
    assert merchant.identities["t1"].suspended


def test_a_suspension_is_a_state_that_may_be_said_again() -> None:
    merchant = after(activating("a"))
    assert decide(merchant, suspending(False), now=NOON) == []
    [event] = decide(merchant, suspending(), now=NOON)
    assert isinstance(event, TerminalSuspended)
    evolve(merchant, event)
    assert decide(merchant, suspending(), now=NOON) == []
    assert [type(e) for e in decide(merchant, suspending(False), now=NOON)] == [TerminalSuspended]


def test_every_change_is_counted() -> None:
    merchant = after(activating("a"), rotating("b", by="a"), suspending())
    assert merchant.identities["t1"].changes == 4


def test_a_public_key_is_one_terminal_s_wherever_it_is() -> None:
    assert activating("a").claim() == activating("a", "t2").claim() == ("terminal-key", "a")
    assert AddTerminalKey.claimed_everywhere
    [added] = decide(after(), activating("a"), now=NOON)
    assert activating("a", "t2").differs(added) == ["terminal"]
    assert rotating("a", by="b").differs(added) == ["replaces"]
