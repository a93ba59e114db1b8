"""The directory's copy of terminals: as new as the log, never older, and what it forgets it refuses."""

import base64
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from carbon_points.directory import terminals as of_terminals
from carbon_points.directory.terminals import ActivationCodeUnknown, ActivationCodeUsed
from carbon_points.domain.terminal import Identity, SigningKey
from tests.directory.conftest import Opening
from tests.given import HOUR, NOON

OWNER = "shop/t1"


def identity(changes: int, *, suspended: bool = False, **keys: Any) -> Identity:
    """Keys by name, each with its end or None."""
    known = {n: SigningKey(base64.b64encode(n.encode().ljust(32)).decode(), NOON, end) for n, end in keys.items()}
    return Identity(known, suspended, changes)


def test_a_key_is_found_with_its_end_and_whether_its_terminal_is_suspended(opening: Opening) -> None:
    terminals = opening().terminals
    assert terminals.key("a") is None
    terminals.copy(OWNER, identity(2, suspended=True, a=NOON + HOUR, b=None), NOON)
    found = terminals.key("a")
    assert found is not None
    assert (found.owner, found.public_key, found.ends_at, found.suspended) == (OWNER, b"a".ljust(32), NOON + HOUR, True)
    assert [key.key_id for key in terminals.keys(OWNER)] == ["a", "b"]


def test_what_is_older_than_the_copy_does_not_take_its_place(opening: Opening) -> None:
    terminals = opening().terminals
    terminals.copy(OWNER, identity(3, suspended=True, b=None), NOON)
    terminals.copy(OWNER, identity(2, a=None), NOON)
    assert [(key.key_id, key.suspended) for key in terminals.keys(OWNER)] == [("b", True)]


def test_a_key_of_which_the_log_no_longer_tells_has_ended(opening: Opening) -> None:
    terminals = opening().terminals
    terminals.copy(OWNER, identity(1, a=None), NOON)
    terminals.copy("shop/t2", identity(1, other=None), NOON)
    terminals.copy(OWNER, identity(5, c=None), NOON + HOUR)
    assert {key.key_id: key.ends_at for key in terminals.keys(OWNER)} == {"a": NOON + HOUR, "c": None}
    assert [key.ends_at for key in terminals.keys("shop/t2")] == [None]


def test_what_is_refused_stays_so_until_the_log_is_copied(opening: Opening) -> None:
    terminals = opening().terminals
    for copied in (identity(0), identity(1, a=None)):
        terminals.refuse(OWNER)
        terminals.copy(OWNER, copied, NOON)
    terminals.refuse(OWNER)
    [key] = terminals.keys(OWNER)
    assert key.suspended
    terminals.copy(OWNER, identity(1, a=None), NOON)
    [key] = terminals.keys(OWNER)
    assert not key.suspended


def test_a_suspension_concerns_whatever_key_the_terminal_calls_with(opening: Opening) -> None:
    directory = opening()
    secrets = {
        (role, owner): directory.issue_key(role, owner)[1]
        for role, owner in (("terminal", OWNER), ("terminal", "shop/t2"), ("app", "shop"))
    }
    assert not any(c.suspended for s in secrets.values() if (c := directory.caller(s)))
    directory.terminals.refuse(OWNER)
    directory.terminals.refuse("shop")  # there is no such terminal, and the app is none
    callers = {named: directory.caller(secret) for named, secret in secrets.items()}
    assert {named for named, caller in callers.items() if caller and caller.suspended} == {("terminal", OWNER)}


def test_another_process_learns_of_a_suspension_within_its_freshness(
    opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = opening().terminals, opening().terminals
    one.copy(OWNER, identity(1, a=None), NOON)
    assert other.key("a") is not None
    one.refuse(OWNER)
    assert (mine := one.key("a")) is not None
    assert mine.suspended
    later = of_terminals.time.monotonic() + of_terminals.FRESH_SECONDS
    monkeypatch.setattr(of_terminals.time, "monotonic", lambda: later)
    assert (theirs := other.key("a")) is not None
    assert theirs.suspended


def test_of_two_keys_that_come_with_one_code_at_once_one_is_taken(opening: Opening) -> None:
    one, other = opening().terminals, opening().terminals
    for _ in range(5):
        code, _ = one.new_code(OWNER, NOON)

        def use(place: Any, code: str = code) -> str:
            try:
                return place[0].use_code(code, place[1], NOON)
            except ActivationCodeUsed:
                return ""

        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(use, ((one, "a"), (other, "b"))))
        assert sorted(found) == ["", OWNER]


def test_wrong_tries_are_counted_by_all_processes_together(opening: Opening) -> None:
    one, other = opening().terminals, opening().terminals
    code, until = one.new_code(OWNER, NOON)
    assert until == NOON + timedelta(hours=24)
    for place in (one, other) * (of_terminals.WRONG_MOST // 2):
        with pytest.raises(ActivationCodeUnknown):
            place.use_code(code[:-4] + "xxxx", "a", NOON)
    with pytest.raises(ActivationCodeUnknown):
        one.use_code(code, "a", NOON)
    assert one.use_code(one.new_code(OWNER, NOON)[0], "a", NOON) == OWNER
