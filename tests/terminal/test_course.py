"""The timing table: what a terminal does at which second, and what it tells the cashier."""

from datetime import timedelta
from itertools import pairwise

import msgspec
import pytest

from carbon_points_terminal import Capture, Request, Response, Sale
from carbon_points_terminal.course import Timing
from carbon_points_terminal.terminal import SaleNotApproved, SaleUnknown, UnresolvedFirst, UseRefund
from tests.terminal.platform import NOON, Platform, Till, problem, shown

CODE = "801234567890123456"


def test_a_sale_that_is_answered_is_shown_and_counted() -> None:
    till = Till()
    paid = till.terminal.pay(100, CODE)
    assert paid.state == "DONE"
    assert paid.outcome
    assert (paid.outcome.result, paid.outcome.points, paid.outcome.fen) == ("approved", 100, 200)
    assert till.platform.points == 900
    assert till.journal.totals(1).sales.points == 100


def test_a_refusal_is_told_by_its_code_and_ends_the_call() -> None:
    till = Till(platform=Platform(points=10))
    refused = till.terminal.pay(100, CODE)
    assert refused.outcome
    assert (refused.outcome.result, refused.outcome.code) == ("declined", "insufficient-points")
    assert till.posted() == ["POST redemptions"]


def test_an_answer_that_is_lost_is_asked_for_by_reference_five_seconds_later() -> None:
    till = Till("answer-lost")
    paid = till.terminal.pay(100, CODE)
    assert paid.outcome
    assert paid.outcome.result == "approved"
    assert till.posted() == ["POST redemptions", "GET redemptions"]
    assert till.seconds() == pytest.approx(10.2 + 5 + 0.2)


def test_what_never_arrived_is_sent_again_with_its_key() -> None:
    till = Till("lost")
    paid = till.terminal.pay(100, CODE)
    assert paid.outcome
    assert paid.outcome.result == "approved"
    assert till.posted() == ["GET redemptions", "POST redemptions"]
    assert till.platform.heard[1].key == paid.reference


def test_what_stays_unknown_is_reversed_and_not_before_fifteen_seconds() -> None:
    till = Till("answer-lost", "lost")
    reversed_ = till.terminal.pay(100, CODE)
    assert reversed_.outcome
    assert (reversed_.outcome.result, reversed_.outcome.code) == ("reversed", "timeout")
    assert till.posted() == ["POST redemptions", "POST redemptions/reversal", "GET redemptions"]
    assert till.platform.points == 1000
    totals = till.journal.totals(1)
    assert (totals.sales.points, totals.reversals.points) == (100, 100), "both rows, as the platform has them"


def test_a_connection_that_is_refused_at_once_waits_for_the_fifteenth_second() -> None:
    till = Till("lost", "lost", "lost")
    till.network.seconds = 0
    till.terminal.pay(100, CODE)
    assert till.posted() == ["POST redemptions/reversal"]
    assert till.seconds() >= 15
    queries = [noted for noted in till.journal.log() if noted.what == "send query"]
    assert [round((noted.at - NOON).total_seconds()) for noted in queries] == [5, 10]


def test_a_reversal_that_is_not_answered_is_repeated_with_its_mark_and_then_is_an_exception() -> None:
    till = Till("answer-lost", *["lost"] * 7)
    waiting = till.terminal.pay(100, CODE)
    assert (waiting.state, waiting.reversals, waiting.exception) == ("REVERSING", 1, False)
    assert till.terminal.step() is None, "not before its time"
    waits: list[float] = []
    while not waiting.exception:
        due = till.terminal.due()
        assert due is not None
        waits.append((due - till.time.at).total_seconds())
        till.time.pass_(waits[-1])
        told = till.terminal.step()
        assert told is not None
        waiting = told
    assert waits == [5, 10, 20, 40, 80]
    assert waiting.reversals == 6
    assert till.terminal.unresolved() == [waiting], "an exception stays on the list"
    till.finish()
    bodies = [msgspec.json.decode(one.body) for one in till.platform.heard if one.path.endswith("reversal")]
    assert [body["repeat"] for body in bodies] == [True], "the six before it were lost"
    assert till.platform.points == 1000


def test_a_reversal_says_that_it_repeats_from_the_second_on_and_keeps_its_key() -> None:
    till = Till("answer-lost", "lost", "answer-lost")
    till.terminal.pay(100, CODE)
    till.finish()
    sent = [one for one in till.platform.heard if one.path.endswith("reversal")]
    assert [msgspec.json.decode(one.body)["repeat"] for one in sent] == [False, True]
    assert len({one.key for one in sent}) == 1


def test_a_sale_that_waits_for_the_resident_is_polled_every_four_seconds() -> None:
    till = Till(platform=Platform(confirms=True))
    asked = till.terminal.begin(Sale(100, CODE))
    for _ in range(3):
        till.terminal.step()
        till.time.pass_(4)
    till.platform.confirm()
    paid = till.terminal.settle(asked.reference)
    assert paid.outcome
    assert paid.outcome.result == "approved"
    gaps = [noted.at for noted in till.journal.log() if noted.what == "send query"]
    assert all(later - sooner >= timedelta(seconds=4) for sooner, later in pairwise(gaps))


def test_a_resident_who_says_no_ends_the_sale_and_one_who_says_nothing_has_it_reversed() -> None:
    till = Till(platform=Platform(confirms=False))
    asked = till.terminal.begin(Sale(100, CODE))
    till.terminal.step()
    till.platform.confirm()
    told = till.terminal.settle(asked.reference)
    assert told.outcome
    assert (told.outcome.result, told.outcome.code) == ("declined", "not-agreed")

    till = Till(platform=Platform(confirms=True))
    told = till.terminal.pay(100, CODE)
    assert told.outcome
    assert told.outcome.result == "reversed"
    assert 60 <= till.seconds() <= 66
    assert till.platform.points == 1000


def test_a_platform_that_is_busy_is_asked_again_with_the_same_key_when_it_says() -> None:
    till = Till("busy", "busy")
    paid = till.terminal.pay(100, CODE)
    assert paid.outcome
    assert paid.outcome.result == "approved"
    assert till.posted() == ["POST redemptions"]
    assert till.seconds() == pytest.approx(0.2 * 3 + 1 * 2)


@pytest.mark.parametrize("fault", ["failed", "portal", "proxy", "garbled", "failed-after"])
def test_what_is_no_answer_of_the_platform_is_no_answer(fault: str) -> None:
    till = Till(fault)
    paid = till.terminal.pay(100, CODE)
    assert paid.outcome
    assert paid.outcome.result == "approved"
    assert "GET redemptions" in till.posted()
    assert till.platform.points == 900


def test_an_answer_about_another_sum_is_reversed_as_a_mismatch() -> None:
    till = Till()
    hear = till.platform.hear
    till.platform.hear = lambda request: _with_points(hear(request), 77)  # type: ignore[method-assign]
    told = till.terminal.pay(100, CODE)
    assert told.state == "DONE"
    assert told.outcome
    assert (told.outcome.result, told.outcome.code) == ("reversed", "mismatch")


def _with_points(answer: Response, points: int) -> Response:
    body = msgspec.json.decode(answer.body)
    return Response(answer.status, msgspec.json.encode(body | {"points": points}), answer.headers)


def test_a_refusal_at_the_door_says_nothing_about_the_copy_before_it() -> None:
    """The first may have counted; the second was stopped because the terminal was suspended meanwhile."""
    till = Till("busy")
    sale = till.terminal.begin(Sale(100, CODE))
    till.terminal.step()
    assert till.terminal.unresolved()[0].unanswered, "a 503 leaves open whether it counted"
    till.time.pass_(2)
    hear = till.platform.hear
    till.platform.hear = lambda request: (hear(request), problem(403, "terminal-suspended"))[1]  # type: ignore[method-assign]
    send = till.terminal.take()
    assert send is not None
    told = till.terminal.answered(send, till.network.send(send.request))
    assert told.state == "UNKNOWN"
    till.platform.hear = hear  # type: ignore[method-assign]
    told = till.terminal.settle(sale.reference)
    assert told.outcome
    assert told.outcome.result == "approved"


def test_an_offer_is_asked_for_and_reversed_by_its_items_as_its_price_is_the_platforms() -> None:
    till = Till("lost", "lost", "lost")
    sent: list[Request] = []
    send = till.network.send
    till.network.send = lambda request: (sent.append(request), send(request))[1]  # type: ignore[method-assign]
    till.terminal.pay(30, CODE, offer="coffee", items=2)
    till.terminal.step()
    sold, *_, undone = [msgspec.json.decode(one.body) for one in sent if one.body]
    assert (sold["offer"], sold["items"], "points" in sold) == ("coffee", 2, False)
    assert (undone["offer"], undone["items"], "points" in undone) == ("coffee", 2, False)


# -- the next customer -----------------------------------------------------------------------------------------------


def test_no_new_sale_begins_while_one_is_open_and_its_reversal_is_not_begun() -> None:
    till = Till("answer-lost", *["lost"] * 3)
    first = till.terminal.begin(Sale(100, CODE))
    while (call := till.terminal.unresolved()[0]).reversals == 0:
        with pytest.raises(UnresolvedFirst) as refused:
            till.terminal.begin(Sale(50, CODE))
        assert refused.value.reference == first.reference
        due = till.terminal.due()
        assert due is not None
        till.time.pass_(max((due - till.time.at).total_seconds(), 0))
        till.terminal.step()
    assert call.state == "REVERSING"
    assert till.terminal.begin(Sale(50, CODE)).state == "SENT"


def test_an_exception_does_not_stand_in_the_next_customers_way() -> None:
    till = Till("answer-lost", *["lost"] * 7)
    waiting = till.terminal.pay(100, CODE)
    assert waiting.state == "REVERSING"
    till.network.faults = iter(())
    begun = till.time.at
    paid = till.terminal.pay(50, CODE)
    assert paid.outcome
    assert paid.outcome.result == "approved"
    assert (till.time.at - begun).total_seconds() < 1
    till.finish()
    assert till.platform.points == 950


def test_an_approval_that_comes_after_the_reversal_was_begun_is_ignored_and_logged() -> None:
    till = Till()
    sale = till.terminal.begin(Sale(100, CODE))
    send = till.terminal.take()
    assert send is not None
    till.terminal.reverse(sale.reference)
    told = till.terminal.answered(send, till.platform.hear(send.request))
    assert told.state == "REVERSING"
    assert [noted.what for noted in till.journal.log(sale.reference)][-1] == "late answer ignored"
    till.finish()
    told = till.terminal.sale(sale.reference)
    assert told.outcome
    assert (told.outcome.result, told.outcome.code) == ("reversed", "customer-cancel")
    assert till.platform.points == 1000


def test_an_answer_to_an_earlier_request_is_not_taken_for_that_to_the_one_that_is_out() -> None:
    till = Till("lost")
    till.terminal.begin(Sale(100, CODE))
    first = till.terminal.take()
    assert first is not None
    till.terminal.answered(first, till.network.send(first.request))
    till.time.pass_(5)
    query = till.terminal.take()
    assert query is not None
    till.terminal.answered(first, problem(404, "not-found"))
    assert till.terminal.unresolved()[0].in_flight, "the query is still out"
    told = till.terminal.answered(query, till.network.send(query.request))
    assert (told.state, told.step) == ("SENT", "ask"), "it never arrived: the same again"


def test_an_approval_that_comes_late_while_the_question_is_open_ends_it() -> None:
    till = Till("lost")
    sale = till.terminal.begin(Sale(100, CODE))
    first = till.terminal.take()
    assert first is not None
    till.terminal.answered(first, till.network.send(first.request))
    assert till.terminal.unresolved()[0].state == "UNKNOWN"
    told = till.terminal.answered(first, till.platform.hear(first.request))
    assert told.reference == sale.reference
    assert told.outcome
    assert told.outcome.result == "approved"


def test_a_till_that_was_switched_off_does_not_sell_to_a_customer_who_has_left() -> None:
    till = Till("busy")
    sale = till.terminal.begin(Sale(100, CODE))
    till.terminal.step()
    till.restarted()
    till.terminal.resolve()
    till.finish()
    told = till.terminal.sale(sale.reference)
    assert told.outcome
    assert told.outcome.result == "reversed"
    assert till.posted() == ["GET redemptions", "POST redemptions/reversal"]


def test_what_was_taken_back_before_it_was_sent_is_never_sent() -> None:
    till = Till()
    sale = till.terminal.begin(Sale(100, CODE))
    told = till.terminal.reverse(sale.reference)
    assert told.outcome
    assert (told.outcome.result, told.outcome.code) == ("not-sent", "customer-cancel")
    assert till.terminal.take() is None
    assert till.posted() == []


# -- after a sale ----------------------------------------------------------------------------------------------------


def test_authorise_capture_and_refund_are_counted_as_the_platform_counts_them() -> None:
    till = Till()
    held = till.terminal.authorise(100, CODE)
    assert till.journal.totals(1).sales.count == 0, "what is held is not sold"
    till.terminal.capture(held.reference, 60)
    till.terminal.refund(held.reference, 10)
    assert till.platform.points == 950
    assert msgspec.to_builtins(till.journal.totals(1)) == till.platform.totals(1)


@pytest.mark.parametrize("do", ["capture", "refund", "void"])
def test_what_follows_a_sale_is_sent_again_with_its_key_until_it_is_answered(do: str) -> None:
    till = Till()
    sale = till.terminal.pay(100, CODE) if do == "refund" else till.terminal.authorise(100, CODE)
    till.network.faults = iter(["answer-lost", "lost", "failed-after"])
    call = getattr(till.terminal, do)(sale.reference, *([] if do == "void" else [40]))
    assert call.outcome
    assert call.outcome.result == "approved"
    sent = [one for one in till.platform.heard if one.path.split("/")[-1].startswith(do)]
    assert len(sent) == 3
    assert len({(one.key, one.body) for one in sent}) == 1
    assert msgspec.to_builtins(till.journal.totals(1)) == till.platform.totals(1)


def test_a_cashier_is_not_kept_waiting_for_a_refund_that_goes_on_by_itself() -> None:
    till = Till()
    sale = till.terminal.pay(100, CODE)
    till.network.faults = iter(["lost"] * 50)
    open_ = till.terminal.refund(sale.reference, 40)
    assert open_.state == "UNKNOWN"
    assert till.seconds() < 90
    till.finish()
    assert till.platform.points == 940


def test_an_edge_that_is_not_there_is_told_with_the_state_that_forbids_it() -> None:
    till = Till()
    sale = till.terminal.authorise(100, CODE)
    till.terminal.void(sale.reference)
    call = till.terminal.capture(sale.reference, 100)
    assert call.outcome
    assert (call.outcome.result, call.outcome.code, call.outcome.status) == (
        "declined",
        "redemption-not-held",
        "voided",
    )


def test_a_customer_who_changes_their_mind_gets_all_of_it_back() -> None:
    till = Till()
    sale = till.terminal.pay(100, CODE)
    told = till.terminal.cancel(sale.reference)
    assert told.outcome
    assert told.outcome.result == "reversed"
    assert till.platform.points == 1000
    with pytest.raises(SaleNotApproved):
        till.terminal.refund(sale.reference, 1)


def test_a_sale_that_is_undone_while_its_capture_is_open_is_counted_once_on_each_side() -> None:
    till = Till()
    held = till.terminal.authorise(100, CODE)
    till.network.faults = iter(["answer-lost", *["lost"] * 3])
    assert till.terminal.capture(held.reference, 60).state == "UNKNOWN"
    till.network.faults = iter(())
    till.terminal.cancel(held.reference)
    till.finish()
    assert till.platform.points == 1000
    assert msgspec.to_builtins(till.journal.totals(1)) == till.platform.totals(1)


def test_a_sale_of_a_closed_batch_is_refunded_and_not_reversed() -> None:
    till = Till()
    sale = till.terminal.pay(100, CODE)
    till.terminal.close_batch()
    with pytest.raises(UseRefund):
        till.terminal.reverse(sale.reference)
    with pytest.raises(SaleUnknown):
        till.terminal.reverse("01HZZZZZZZZZZZZZZZZZZZZZZZ")
    refunded = till.terminal.refund(sale.reference, 100)
    assert refunded.outcome
    assert (refunded.outcome.result, refunded.outcome.points, till.platform.points) == ("approved", 100, 1000)


def test_a_reversal_that_comes_too_late_for_its_batch_gives_the_points_back_by_a_refund() -> None:
    till = Till("answer-lost", *["lost"] * 2)
    waiting = till.terminal.pay(100, CODE)
    assert waiting.state == "REVERSING"
    till.platform.batch += 1  # the platform closed it by itself, at night
    till.finish()
    assert till.platform.points == 1000
    told = till.terminal.sale(waiting.reference)
    assert told.outcome
    assert (told.outcome.result, told.outcome.code) == ("reversed", "use-refund")


# -- batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_that_agrees_is_closed_and_the_next_is_open() -> None:
    till = Till()
    till.terminal.pay(100, CODE)
    closed = till.terminal.close_batch()
    assert closed.outcome
    assert closed.outcome.code == "agreed"
    assert till.journal.batch == till.platform.batch == 2
    till.terminal.pay(100, CODE)
    assert till.journal.totals(2).sales.count == 1


def test_a_close_that_is_not_answered_is_asked_again_and_stops_sales_until_it_is() -> None:
    till = Till()
    till.terminal.pay(100, CODE)
    till.network.faults = iter(["answer-lost", *["lost"] * 20])
    open_ = till.terminal.close_batch()
    assert open_.state == "UNKNOWN"
    sale = till.terminal.journal.recent(2)[1]
    for begin in (lambda: till.terminal.begin(Sale(10, CODE)), lambda: till.terminal.reverse(sale.reference)):
        with pytest.raises(UnresolvedFirst):
            begin()
    till.finish()
    assert till.journal.batch == till.platform.batch == 2


def test_a_batch_that_does_not_agree_stays_open_and_shows_both_sides() -> None:
    till = Till()
    till.terminal.pay(100, CODE)
    other = till.platform._new("elsewhere", 30, "captured")
    till.platform._move(other, "sale", 30)
    call = till.terminal.close_batch()
    assert call.outcome
    closed = call.outcome.closed
    assert closed
    assert (closed.answer, till.journal.batch) == ("not-agreed", 1)
    assert {line.redemption_id for line in closed.lines} > {line.redemption_id for line in till.journal.lines(1)}
    assert till.terminal.close_batch(closed.totals).outcome.closed.answer == "agreed"  # type: ignore[union-attr]


def test_a_batch_that_the_platform_closed_by_itself_is_closed_by_what_it_had_then() -> None:
    till = Till()
    first = till.terminal.pay(100, CODE)
    till.terminal.refund(first.reference, 10)
    till.platform.batch += 1  # at four in the morning
    till.terminal.refund(first.reference, 20)
    till.terminal.pay(50, CODE)
    closed = till.terminal.close_batch()
    assert closed.outcome
    assert (closed.outcome.code, till.journal.batch) == ("agreed", 2)
    for number in (1, 2):
        assert msgspec.to_builtins(till.journal.totals(number)) == till.platform.totals(number)
    assert till.journal.totals(2).refunds.points == 20
    with pytest.raises(UseRefund):
        till.terminal.reverse(first.reference)


def test_a_batch_is_not_closed_over_an_open_question() -> None:
    till = Till("answer-lost", *["lost"] * 3)
    till.terminal.pay(100, CODE)
    with pytest.raises(UnresolvedFirst):
        till.terminal.close_batch()


# -- what is written where ---------------------------------------------------------------------------------------------


def test_a_payment_code_is_forgotten_when_it_is_no_longer_needed() -> None:
    till = Till("lost")
    sale = till.terminal.pay(100, CODE)
    assert isinstance(sale.ask, Sale)
    assert sale.ask.code == ""
    assert CODE not in str(till.journal.log())


def test_a_capture_of_what_is_not_this_terminals_is_refused_here() -> None:
    till = Till()
    with pytest.raises(SaleUnknown):
        till.terminal.begin(Capture("01HZZZZZZZZZZZZZZZZZZZZZZZ", "rdm_x", 1))
    assert till.posted() == []


def test_offers_are_read_page_after_page() -> None:
    till = Till()
    asked: list[str] = []

    def hear(request: Request) -> Response:
        asked.append(request.path)
        last = "cursor" in request.path
        page = {"data": [{"offer": "tea" if last else "coffee"}], "next_cursor": None if last else "a b"}
        return shown(200, page)

    till.platform.hear = hear  # type: ignore[method-assign]
    assert till.terminal.offers() == [{"offer": "coffee"}, {"offer": "tea"}]
    assert asked == ["/v1/offers?open=true&limit=100&merchant=shop", f"{asked[0]}&cursor=a%20b"]


def test_the_table_is_that_of_the_documentation() -> None:
    assert Timing() == Timing(
        answer=10, query_after=5, confirm_every=4, confirm_for=60, reverse_after=15, again_first=5, tries=6
    )
