"""Whatever the network does and wherever the power goes: every call comes to one end, which is the platform's too."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from carbon_points_terminal import Answer, Call, Capture, Close, Journal, NoAnswer, Refund, Sale, Send, Terminal
from carbon_points_terminal.terminal import NotNow
from tests.conftest import QUICK
from tests.terminal.platform import FAULTS, NOON, Platform, Till

CODE = "801234567890123456"
DOINGS = (
    "pay",
    "pay",
    "authorise",
    "capture",
    "void",
    "refund",
    "reverse",
    "close",
    "work",
    "work",
    "restart",
    "night",
)
SPENT = {"captured", "partially_refunded", "refunded"}


class PowerCut(BaseException):
    """The till stops here and now."""


class Frail:
    """A journal at whose n-th writes the power goes: before the write, or right after it."""

    def __init__(self, journal: Journal, cuts: dict[int, bool]) -> None:
        self._journal, self._cuts, self._writes = journal, cuts, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    def keep(self, call: Call, what: str, at: datetime, *, moved: int = 0) -> None:
        self._cut(lambda: self._journal.keep(call, what, at, moved=moved))

    def note(self, reference: str, what: str, told: str, at: datetime) -> None:
        self._cut(lambda: self._journal.note(reference, what, told, at))

    def _cut(self, write: Callable[[], None]) -> None:
        self._writes += 1
        after = self._cuts.pop(self._writes, None)
        if after is False:
            raise PowerCut
        write()
        if after is True:
            raise PowerCut


def work(till: Till, doing: str, points: int) -> None:
    """One thing that a cashier, or time, does. What the terminal itself refuses is not done."""
    terminal: Terminal = till.terminal
    sales = [call.reference for call in terminal.journal.recent(50) if isinstance(call.ask, Sale)]
    sale = sales[points % len(sales)] if sales else ""
    try:
        match doing:
            case "pay" | "authorise":
                getattr(terminal, doing)(points, CODE)
            case "capture" | "refund":
                getattr(terminal, doing)(sale, points)
            case "void":
                terminal.void(sale)
            case "reverse":
                terminal.cancel(sale)
            case "close":
                terminal.close_batch()
            case "night":
                till.platform.batch += 1
            case "restart":
                till.time.pass_(7)
                till.restarted()
            case _:
                till.time.pass_(points)
                terminal.catch_up()
    except NotNow:
        pass


def holds_together(till: Till) -> None:
    """What must be so when nothing is open any more, and nothing is on its way."""
    platform, journal = till.platform, till.journal
    held = sum(one["points"] for one in platform.sales.values() if one["status"] in {"held", "confirming"})
    spent = sum(one["captured"] - one["refunded"] for one in platform.sales.values())
    assert platform.points + held + spent == platform.begun_with, "points are conserved"
    for call in journal.recent(1000):
        assert call.state == "DONE"
        assert call.outcome
        if isinstance(call.ask, Sale):
            agrees(call, platform.sales.get(call.reference, {"status": "none"})["status"])
            assert CODE not in msgspec.json.encode(call).decode()
    known = {call.reference for call in journal.recent(1000)}
    assert set(platform.sales) <= known, "nothing is sold that is not in the journal"


def every_batch_agrees(till: Till) -> None:
    """Also those that the platform has closed by itself in the meantime."""
    last = till.platform.batch
    while till.journal.batch <= last:
        closed = till.terminal.close_batch()
        assert closed.outcome
        assert closed.outcome.code == "agreed", closed.outcome
    for number in range(1, last + 1):
        assert msgspec.to_builtins(till.journal.totals(number)) == till.platform.totals(number), f"batch {number}"


def agrees(call: Call, status: str) -> None:
    """The outcome that the cashier saw is the platform's."""
    assert call.outcome
    match call.outcome.result:
        case "approved":
            # what was only held may have been voided since, by a call of its own
            assert status in SPENT | {"held", "voided"}, (call, status)
        case "reversed":
            # refunded: before it was undone, when nothing was left to give back, or because its batch was closed
            assert status in {"reversed", "refunded", "voided", "declined", "none"}, (call, status)
        case "declined":
            assert status in {"declined", "none", "voided", "reversed"}, (call, status)
        case "not-sent":
            assert status == "none", (call, status)


faults = st.lists(st.sampled_from(FAULTS), max_size=60)
doings = st.lists(st.tuples(st.sampled_from(DOINGS), st.integers(1, 60)), min_size=1, max_size=12)
cuts = st.dictionaries(st.integers(1, 80), st.booleans(), max_size=4)


@settings(max_examples=QUICK * 8)
@given(faults, doings, cuts, st.sampled_from([None, True, False]))
@example(["answer-lost", "lost"], [("pay", 10)], {3: True}, None)
@example(["late", "ok", "ok"], [("pay", 10)], {}, None)
@example(["ok", "lost", "lost", "lost", "answer-lost"], [("pay", 1), ("close", 1), ("reverse", 1)], {}, None)
def test_every_call_comes_to_one_end_and_both_sides_agree(
    faults: list[str], doings: list[tuple[str, int]], cuts: dict[int, bool], confirms: bool | None
) -> None:
    till = Till(*faults, platform=Platform(200, confirms))
    till.journal = Frail(till.journal, dict(cuts))  # type: ignore[assignment]
    till.restarted()
    for doing, points in doings:
        try:
            work(till, doing, points)
            till.platform.confirm()
        except PowerCut:
            till.time.pass_(3)
            restarted(till)
    finish(till)
    till.journal._cuts.clear()  # type: ignore[attr-defined]
    till.network.deliver()
    holds_together(till)
    every_batch_agrees(till)


def restarted(till: Till) -> None:
    """The power may go again while the till starts."""
    while True:
        try:
            till.restarted()
        except PowerCut:
            continue
        return


def finish(till: Till) -> None:
    while True:
        try:
            till.finish()
        except PowerCut:
            restarted(till)
            continue
        return


happenings = st.lists(
    st.tuples(st.sampled_from(["begin", "take", "hear", "answer", "give up", "wait"]), st.integers(0, 9))
)


@settings(max_examples=QUICK * 4)
@given(happenings, st.sampled_from([None, True]))
def test_answers_may_come_in_any_order_and_after_they_were_given_up(
    happenings: list[tuple[str, int]], confirms: bool | None
) -> None:
    """Driven without waiting, as a simulator does: requests and answers are on their way for as long as they like."""
    till = Till(platform=Platform(500, confirms))
    terminal, out, answers = till.terminal, list[Send](), list[tuple[Send, Answer]]()
    for what, number in happenings:
        if what == "begin":
            follow(till, number)
        elif what == "take" and (send := terminal.take()):
            out.append(send)
        elif what == "hear" and out:
            send = out[number % len(out)]
            answers.append((send, till.platform.hear(send.request)))
            till.platform.confirm()
        elif what == "answer" and answers:
            terminal.answered(*answers.pop(number % len(answers)))
        elif what == "give up" and out:
            terminal.answered(out[number % len(out)], NoAnswer("given up"))
        else:
            till.time.pass_(number)
    for send in out:
        terminal.answered(send, NoAnswer("given up"))
    till.finish()
    for send in out:  # whatever was still on its way arrives, and so do its answers
        terminal.answered(send, till.platform.hear(send.request))
    holds_together(till)
    every_batch_agrees(till)


def follow(till: Till, number: int) -> None:
    """Begin a sale, or what may follow one."""
    sales = [call for call in till.journal.recent(20) if isinstance(call.ask, Sale)]
    try:
        if number < 5 or not sales:
            till.terminal.begin(Sale(number + 1, CODE, capture=number % 2 == 0))
        elif number == 9:
            till.terminal.reverse(sales[0].reference)
        else:
            kind = (Capture, Refund)[number % 2]
            till.terminal.begin(kind(sales[0].reference, sales[0].redemption_id, number % 3 + 1))
    except NotNow:
        pass


@settings(max_examples=QUICK)
@given(st.integers(0, 10**6), st.integers(0, 40))
def test_the_same_faults_give_the_same_log(seed: int, many: int) -> None:
    faults = [FAULTS[(seed >> place) % len(FAULTS)] for place in range(many)]

    def log() -> list[object]:
        till = Till(*faults)
        for _ in range(3):
            work(till, "pay", 10)
        till.finish()
        return [msgspec.to_builtins(noted) for noted in till.journal.log()]

    assert log() == log()


def test_a_close_stands_in_the_journal_like_any_call() -> None:
    till = Till()
    closed = till.terminal.close_batch()
    assert isinstance(closed.ask, Close)
    assert closed.made == NOON
