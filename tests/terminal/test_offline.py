"""Without a network a terminal takes what the merchant's terms allow and no more, and later sends each of it, once."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from carbon_points_terminal import Call, Journal, NoAnswer, Offline, Request, Response, Sale
from carbon_points_terminal.terminal import NotForwarded, NotNow, UnresolvedFirst, UseRefund
from tests.conftest import QUICK
from tests.terminal.platform import FAULTS, NOON, Till, problem

LIMITS = {"most_points": 200, "most_count": 5, "most_sum": 500, "most_age_hours": 24}
CODE = "801234567890123456"
HOUR = 3600


def prepared(*faults: str, **limits: int) -> Till:
    till = Till()
    till.platform.limits = LIMITS | limits
    till.terminal.prepare()
    till.platform.heard.clear()
    till.network.faults = iter(faults)
    return till


def taken(till: Till, name: str, points: int = 100, of: int = 200) -> Call:
    return till.terminal.pay_offline(till.platform.allowance(name, of, till.time.at), points)


def verdict(till: Till, call: Call) -> tuple[str, str]:
    found = till.journal.find(call.reference)
    assert found
    assert found.outcome
    return found.outcome.result, found.outcome.code


def test_it_is_stored_without_a_request_and_sent_as_it_was_taken() -> None:
    till = prepared()
    call = taken(till, "a")
    assert (call.state, till.platform.heard) == ("STORED", [])
    till.time.pass_(3 * HOUR)
    [sent] = till.terminal.catch_up()
    assert sent.outcome
    assert (sent.outcome.result, sent.outcome.points, sent.outcome.fen) == ("approved", 100, 200)
    [request] = till.platform.heard
    assert request.key == call.reference
    assert b'"captured_offline_at":"2026-06-15T04:00:00.' in request.body
    assert till.journal.totals(1).sales.points == 100


def test_the_allowance_leaves_the_journal_with_the_verdict_and_is_never_taken_again() -> None:
    till = prepared()
    taken(till, "a")
    with pytest.raises(NotNow, match="paid") as refused:
        taken(till, "a")
    assert refused.value.code == "allowance-used"
    [done] = till.terminal.catch_up()
    assert isinstance(done.ask, Offline)
    assert (done.ask.allowance, done.ask.allowance_id) == ("", "a")
    with pytest.raises(NotNow, match="paid"):
        taken(till.__class__(journal=till.journal, platform=till.platform), "a")


# Each has the fault of its line and all of those below, as far as they can be had together.
def refusals() -> list[tuple[str, dict[str, Any]]]:
    forged = {"forged": True}
    return [
        ("offline-not-prepared", {"prepare": False, "points": 0} | forged),
        ("offline-not-allowed", {"limits": None, "after": 25, "points": 0} | forged),
        ("offline-terms-old", {"after": 25, "points": 0} | forged),
        ("allowance-invalid", {"points": 0} | forged),
        ("allowance-elsewhere", {"merchant": "mall", "issued_at": 2**31, "points": 0}),
        ("clock-behind", {"issued_at": 2**31, "expires_at": 0, "points": 0}),
        ("allowance-expired", {"expires_at": int(NOON.timestamp()) - 1, "points": 0}),
        ("points-invalid", {"points": 0}),
        ("allowance-exceeded", {"points": 301, "of": 300}),
        ("offline-exceeds-terms", {"points": 201, "of": 300, "kept": (100, 100, 100, 100, 50)}),
        ("offline-too-many", {"points": 200, "of": 300, "kept": (100, 100, 100, 100, 50)}),
        ("offline-sum", {"points": 101, "of": 300, "kept": (200, 200)}),
        ("", {"points": 100, "of": 300, "kept": (200, 200)}),
    ]


@pytest.mark.parametrize(("code", "said"), refusals(), ids=[code or "taken" for code, _ in refusals()])
def test_refusals_in_their_order(code: str, said: dict[str, Any]) -> None:
    till = Till()
    till.platform.limits = said.get("limits", LIMITS)
    if said.get("prepare", True):
        till.terminal.prepare()
    for number, points in enumerate(said.get("kept", ())):
        taken(till, f"kept {number}", points)
    till.time.pass_(said.get("after", 0) * HOUR)
    told = {name: said[name] for name in ("merchant", "issued_at", "expires_at") if name in said}
    allowance = till.platform.allowance("a", said.get("of", 200), NOON, **told)
    allowance = allowance[:-5] + "AAAAA" if said.get("forged") else allowance
    kept = till.terminal.stored()
    if not code:
        till.terminal.pay_offline(allowance, said["points"])
        return
    with pytest.raises(NotNow) as refused:
        till.terminal.pay_offline(allowance, said["points"])
    assert refused.value.code == code
    assert till.terminal.stored() == kept


def test_while_one_waits_for_too_long_no_other_is_taken() -> None:
    till = prepared(*["lost"] * 3)
    taken(till, "a")
    till.time.pass_(23 * HOUR)
    till.terminal.prepare()  # is lost
    till.network.faults = iter(())
    till.terminal.prepare()
    taken(till, "b")
    till.time.pass_(2 * HOUR)
    with pytest.raises(NotNow) as refused:
        taken(till, "c")
    assert refused.value.code == "offline-too-old"
    till.terminal.forward()
    taken(till, "c")


def test_a_till_that_lost_power_still_has_it() -> None:
    till = prepared("answer-lost")
    first, second = taken(till, "a"), taken(till, "b")
    till.terminal.step(first.reference)
    assert [call.reference for call in till.restarted().stored()] == [first.reference, second.reference]
    till.finish()
    assert [verdict(till, call) for call in (first, second)] == [("approved", ""), ("approved", "")]
    assert till.platform.points == 800


def test_what_is_declined_later_is_the_merchants_loss_and_listed() -> None:
    till = prepared()
    till.platform.points = 150
    first, second = taken(till, "a"), taken(till, "b")
    till.terminal.forward()
    assert verdict(till, first) == ("approved", "")
    assert verdict(till, second) == ("declined", "insufficient-points")
    assert [call.reference for call in till.journal.offline()] == [first.reference, second.reference]
    assert till.journal.totals(1).sales.points == 100


class Choosy:
    """A platform that never says a word about some records."""

    def __init__(self, till: Till, answer: Response | NoAnswer, *names: str) -> None:
        self.till, self.answer, self.names = till, answer, names

    def send(self, request: Request) -> Any:
        if request.key in self.names:
            self.till.time.pass_(10)
            return self.answer
        return self.till.platform.hear(request)


@pytest.mark.parametrize(
    "answer",
    [
        NoAnswer("it hangs"),
        problem(500, "internal", "same-key"),
        problem(503, "unavailable", "same-key"),
        problem(403, "terminal-suspended"),
        problem(409, "account-frozen", "query-first"),
        Response(200, b"{}", {"content-type": "application/json"}),
    ],
    ids=["hangs", "500", "503", "403", "query first", "garbled"],
)
def test_one_bad_record_blocks_no_other_and_no_sale_and_no_batch(answer: Response | NoAnswer) -> None:
    till = prepared()
    bad, *good = [taken(till, name) for name in "abc"]
    till.terminal._transport = Choosy(till, answer, bad.reference)
    for _ in range(3):
        till.terminal.catch_up()
        till.time.pass_(600)
    assert [verdict(till, call) for call in good] == [("approved", ""), ("approved", "")]
    paid = till.terminal.pay(50, CODE)
    assert paid.outcome
    assert paid.outcome.result == "approved"
    for _ in range(6):
        till.terminal.forward()
    [left] = till.terminal.stored()
    assert left.reference == bad.reference
    assert left.exception == isinstance(answer, Response)
    closed = till.terminal.close_batch()
    assert closed.outcome
    assert closed.outcome.code == "agreed"


def test_no_network_costs_one_waiting_and_not_one_for_each() -> None:
    till = prepared(*["lost"] * 50)
    for name in "abcde":
        taken(till, name)
    at = till.time.at
    till.terminal.catch_up()
    assert till.time.at - at < timedelta(seconds=11)
    at = till.time.at
    till.terminal.forward()
    assert till.time.at - at < timedelta(seconds=21)
    assert not any(call.exception for call in till.terminal.stored())


def test_before_a_batch_is_closed_what_waits_is_sent_again() -> None:
    till = prepared("answer-lost")
    taken(till, "a")
    till.terminal.catch_up()
    closed = till.terminal.close_batch()
    assert closed.outcome
    assert closed.outcome.code == "agreed"
    assert till.journal.totals(1).sales.count == 1


def test_nothing_of_it_is_refunded_or_undone_before_it_was_sent() -> None:
    till = prepared()
    call = taken(till, "a")
    for undo in (till.terminal.reverse, till.terminal.void, till.terminal.cancel):
        with pytest.raises(NotForwarded):
            undo(call.reference)
    with pytest.raises(NotForwarded):
        till.terminal.refund(call.reference, 10)
    till.terminal.forward()
    with pytest.raises(UseRefund):
        till.terminal.reverse(call.reference)
    refunded = till.terminal.refund(call.reference, 10)
    assert refunded.outcome
    assert refunded.outcome.result == "approved"


def test_a_sale_whose_outcome_is_open_comes_before_it() -> None:
    till = prepared("lost", "lost")
    sale = till.terminal.begin(Sale(10, CODE))
    till.terminal.step(sale.reference)
    with pytest.raises(UnresolvedFirst):
        taken(till, "a")


def test_it_is_taken_while_a_batch_is_being_closed_and_counts_in_the_next() -> None:
    till = prepared("answer-lost", *["lost"] * 20)
    closing = till.terminal.close_batch()
    assert closing.outcome is None
    taken(till, "a")
    till.network.faults = iter(())
    assert till.terminal.forward() == []
    till.finish()
    assert (till.journal.totals(1).sales.count, till.journal.totals(2).sales.count) == (0, 1)
    assert till.terminal.close_batch().outcome.code == "agreed"  # pyright: ignore[reportOptionalMemberAccess]


def test_a_journal_of_the_release_before_takes_it_too(tmp_path: Any) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal.create(path, "shop", "t1") as made:
        connection = made._connection
        connection.executescript("DROP TABLE allowances; DROP TABLE prepared; PRAGMA user_version = 1;")
    with Journal.open(path) as journal:
        till = Till(journal=journal)
        till.platform.limits = LIMITS
        till.terminal.prepare()
        taken(till, "a")
    with Journal.open(path) as journal:
        assert [call.state for call in journal.offline()] == ["STORED"]


STEPS = st.one_of(
    st.tuples(st.just("pay"), st.integers(-1, 250), st.integers(0, 12)),
    st.tuples(st.just("wait"), st.integers(0, 20 * HOUR), st.just(0)),
    st.tuples(st.sampled_from(["catch up", "forward", "restart", "close", "sale"]), st.just(0), st.just(0)),
)


@settings(max_examples=QUICK)
@given(
    steps=st.lists(STEPS, max_size=25),
    faults=st.lists(st.sampled_from(FAULTS), max_size=30),
    points=st.sampled_from([0, 300, 5000]),
)
@example(steps=[("pay", 100, 1), ("forward", 0, 0), ("close", 0, 0)], faults=["failed-after", "twice-late"], points=300)
def test_the_caps_are_never_passed_and_each_record_is_sent_until_its_one_verdict(
    steps: list[tuple[str, int, int]], faults: list[str], points: int
) -> None:
    till = prepared()
    till.platform.points = till.platform.begun_with = points
    till.network.faults = iter(faults)
    calls: list[Call] = []
    for what, number, name in steps:
        try:
            match what:
                case "pay":
                    calls.append(taken(till, f"a{name}", number))
                case "wait":
                    till.time.pass_(number)
                case "catch up":
                    till.terminal.catch_up()
                case "forward":
                    till.terminal.forward()
                case "restart":
                    till.restarted()
                case "close":
                    till.terminal.close_batch()
                case _:
                    till.terminal.pay(10, CODE)
        except NotNow:
            pass
        within(till)
    till.finish()
    till.network.deliver()
    for call in calls:
        result, _ = verdict(till, call)
        there = till.platform.sales[call.reference]
        assert there["status"] == {"approved": "captured", "declined": "declined"}[result]
    names = [call.ask.allowance_id for call in calls if isinstance(call.ask, Offline)]
    assert len(names) == len(set(names))
    spent = sum(sale["captured"] - sale["refunded"] for sale in till.platform.sales.values())
    assert till.platform.points == points - spent


def within(till: Till) -> None:
    kept = [call.ask.points for call in till.terminal.stored() if isinstance(call.ask, Offline)]
    assert len(kept) <= LIMITS["most_count"]
    assert sum(kept) <= LIMITS["most_sum"]
    assert all(1 <= points <= LIMITS["most_points"] for points in kept)
