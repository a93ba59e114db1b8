"""The machine of one attempt: what a till does next, by the timing of terminals (docs/api.md), without a network."""

from typing import Any

import pytest
from playwright.sync_api import Page

SECOND = 1_000
NOTHING = {"answered": False}
PLAY = """async ({steps, codeIsThere, what}) => {
  const machine = await import("/static/terminal/sale.js");
  const made = {reference: "ref", reversalKey: "rev", captureKey: "cap", what, amount_fen: 200, batch: 1};
  let entry = machine.newSale(made, 0), now = 0;
  const calls = [];
  for (const {answer, takes} of steps) {
    now = Math.max(now, entry.due);
    entry = machine.sending(entry, now);
    calls.push({at: now, phase: entry.phase, ...machine.callOf(entry, {merchant: "shop", terminal: "t1", code: "8"})});
    now += takes;
    entry = machine.answered(entry, answer, {now, codeIsThere});
  }
  const exception = machine.isException(entry), blocks = machine.blocksSales(entry);
  return {calls, entry, exception, blocks, now, totals: machine.totals([entry], 1)};
}"""


def play(page: Page, *steps: tuple[dict[str, Any], float], code: bool = False, points: int = 100) -> Any:
    """What is sent and when, where each call is answered with this after so many seconds."""
    told = [{"answer": answer, "takes": takes * SECOND} for answer, takes in steps]
    return page.evaluate(PLAY, {"steps": told, "codeIsThere": code, "what": {"points": points}})


def says(status: str, points: int = 100, **more: Any) -> dict[str, Any]:
    captured = points if status == "captured" else 0
    body = {"redemption_id": "rdm_1", "status": status, "points": points, "amount_fen": 200}
    body |= {"captured_points": captured, "captured_fen": captured * 2, "refunded_points": 0, "refunded_fen": 0}
    return {"answered": True, "status": 200, "body": body | more, "retryAfterMs": 0}


def refuses(code: str, status: int = 409, retryable: str = "never", **facts: Any) -> dict[str, Any]:
    body = {"code": code, "retryable": retryable, "facts": facts}
    return {"answered": True, "status": status, "body": body, "retryAfterMs": 0}


def times(played: Any) -> list[tuple[str, float]]:
    return [(call["phase"], call["at"] / SECOND) for call in played["calls"]]


def test_an_answered_sale_is_one_call(modules: Page) -> None:
    played = play(modules, (says("captured"), 1))
    assert played["entry"]["outcome"] == {"word": "paid"}
    (call,) = played["calls"]
    assert call["key"] == "ref"
    assert call["content"] == {
        "code": "8",
        "merchant": "shop",
        "terminal": "t1",
        "points": 100,
        "hold_seconds": 300,
        "capture": True,
    }


def test_a_refusal_is_an_end(modules: Page) -> None:
    played = play(modules, (refuses("insufficient-points", retryable="new-key"), 1))
    assert played["entry"]["outcome"] == {"word": "declined", "code": "insufficient-points", "facts": {}}


def test_silence_is_asked_after_and_then_reversed(modules: Page) -> None:
    played = play(modules, (NOTHING, 10), (NOTHING, 10), (says("reversed", action="none"), 1))
    assert times(played) == [("paying", 0), ("asking", 15), ("reversing", 25)]
    assert played["calls"][1]["path"] == "/v1/redemptions?reference=ref"
    told = {"reference": "ref", "points": 100, "reason": "timeout", "repeat": False}
    assert played["calls"][2]["content"] == told
    assert played["entry"]["outcome"] == {"word": "reversed", "action": "none"}


def test_nothing_is_reversed_sooner_than_fifteen_seconds_after_it_was_sent(modules: Page) -> None:
    played = play(modules, (NOTHING, 0), (NOTHING, 0), (NOTHING, 0), (NOTHING, 0), (says("reversed"), 0))
    assert times(played) == [("paying", 0), ("asking", 5), ("asking", 10), ("asking", 15), ("reversing", 15)]


def test_what_never_arrived_is_sent_once_more_under_its_own_reference(modules: Page) -> None:
    never = says("none", points=0)
    played = play(modules, (NOTHING, 0), (never, 0), (NOTHING, 0), (never, 0), (says("reversed"), 0), code=True)
    assert times(played) == [("paying", 0), ("asking", 5), ("paying", 5), ("asking", 10), ("reversing", 20)]
    assert {call["key"] for call in played["calls"] if call["phase"] == "paying"} == {"ref"}


def test_without_its_code_it_is_reversed_instead(modules: Page) -> None:
    played = play(modules, (NOTHING, 0), (says("none", points=0), 0), (says("reversed"), 0))
    assert times(played) == [("paying", 0), ("asking", 5), ("reversing", 15)]


@pytest.mark.parametrize(
    "answer", [says("captured"), says("refunded", captured_points=100)], ids=["captured", "refunded"]
)
def test_what_is_found_paid_is_paid(modules: Page, answer: Any) -> None:
    assert play(modules, (NOTHING, 10), (answer, 1))["entry"]["outcome"] == {"word": "paid"}


@pytest.mark.parametrize("status", ["declined", "voided", "expired"])
def test_what_is_found_ended_is_not_paid(modules: Page, status: str) -> None:
    assert play(modules, (NOTHING, 10), (says(status), 1))["entry"]["outcome"]["word"] == "declined"


@pytest.mark.parametrize("asked", [NOTHING, says("confirming")], ids=["silence", "confirming"])
def test_why_it_was_declined_is_what_the_server_says(modules: Page, asked: Any) -> None:
    said = says("declined", declined_because="insufficient-points")
    assert play(modules, (asked, 0), (said, 1))["entry"]["outcome"]["code"] == "insufficient-points"
    assert play(modules, (asked, 0), (says("declined"), 1))["entry"]["outcome"]["code"] == "not-taken"


def test_a_resident_who_is_asked_is_asked_after_for_a_minute(modules: Page) -> None:
    asked = says("confirming")
    played = play(modules, (asked, 0), *[(asked, 0)] * 15, (says("reversed", action="released"), 0))
    polls = [at for phase, at in times(played) if phase == "confirming"]
    assert polls == [4.0 * n for n in range(1, 16)]
    assert times(played)[-1] == ("reversing", 60)


def test_points_that_are_held_are_captured_by_a_key_of_their_own(modules: Page) -> None:
    played = play(modules, (says("confirming"), 0), (says("held"), 0), (says("captured"), 0))
    assert [call["key"] for call in played["calls"] if call["method"] == "POST"] == ["ref", "cap"]
    assert played["entry"]["outcome"] == {"word": "paid"}


def test_a_capture_that_never_succeeds_ends_in_a_reversal(modules: Page) -> None:
    silent = [(says("held"), 0), (NOTHING, 0)]
    played = play(modules, *silent * 3, (says("held"), 0), (says("reversed"), 0))
    assert [phase for phase, _ in times(played)].count("capturing") == 3
    assert played["entry"]["outcome"]["word"] == "reversed"


def test_an_answer_about_other_points_is_reversed(modules: Page) -> None:
    played = play(modules, (says("captured", points=90), 1), (says("reversed"), 0))
    assert times(played)[-1] == ("reversing", 15)
    assert played["calls"][-1]["content"]["reason"] == "mismatch"
    assert played["calls"][-1]["content"]["points"] == 100


def test_a_reversal_is_repeated_more_and_more_slowly_and_then_shown_to_somebody(modules: Page) -> None:
    played = play(modules, (NOTHING, 10), (NOTHING, 0), *[(NOTHING, 0)] * 7)
    at = [at - 15 for phase, at in times(played) if phase == "reversing"]
    assert at == [0, 5, 15, 35, 75, 155, 455]
    assert [c["content"]["repeat"] for c in played["calls"][2:]] == [False] + [True] * 6
    assert {call["key"] for call in played["calls"][2:]} == {"rev"}
    assert played["exception"]
    assert not played["blocks"]  # it is only its own business: the next customer is served


def test_only_what_may_still_take_points_stands_in_the_way_of_another_sale(modules: Page) -> None:
    assert play(modules, (NOTHING, 10))["blocks"]
    assert play(modules, (says("confirming"), 0))["blocks"]
    assert play(modules, (NOTHING, 10), (NOTHING, 0))["blocks"]  # it is to be reversed
    assert not play(modules, (NOTHING, 10), (NOTHING, 0), (NOTHING, 0))["blocks"]  # its reversal has begun


def test_a_reversal_that_may_not_be_is_shown_to_somebody(modules: Page) -> None:
    played = play(modules, (NOTHING, 10), (NOTHING, 0), (refuses("terminal-suspended", 403), 0))
    assert played["exception"]
    assert played["entry"]["refused"] == "terminal-suspended"


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (refuses("use-refund"), "paid"),
        (refuses("redemption-not-held", current_state="refunded"), "paid"),
        (refuses("redemption-not-held", current_state="expired"), "declined"),
    ],
)
def test_a_reversal_that_comes_too_late_tells_how_things_stand(modules: Page, answer: Any, word: str) -> None:
    assert play(modules, (NOTHING, 10), (NOTHING, 0), (answer, 0))["entry"]["outcome"]["word"] == word


def test_a_sale_that_had_been_paid_and_is_given_back_counts_twice(modules: Page) -> None:
    given_back = says("reversed", action="refunded")
    played = play(modules, (NOTHING, 10), (NOTHING, 0), (given_back, 0))
    assert played["entry"]["outcome"] == {"word": "reversed", "action": "refunded"}
    sum_of_one = {"count": 1, "points": 100, "fen": 200}
    assert played["entry"]["captured_fen"] == 200
    assert play(modules, (says("captured"), 0))["totals"]["sales"] == sum_of_one


def test_whoever_is_told_to_wait_is_not_sent_again(modules: Page) -> None:
    wait = refuses("rate-limited", 429, "same-key") | {"retryAfterMs": 20 * SECOND}
    played = play(modules, (wait, 0), (says("none", points=0), 0), (says("reversed"), 0), code=True)
    assert times(played) == [("paying", 0), ("asking", 20), ("reversing", 20)]
    assert played["entry"]["why"] == "rate-limited"
