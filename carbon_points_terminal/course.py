"""What a terminal does next about a call, and what an answer means for it: pure functions, no clock, no network.

The course of a sale, and the one promise behind it: it ends with an approval, with a refusal that nothing can undo,
or with a reversal that the platform has confirmed.

    SENT       the ask is out                     answer: DONE; none or 5xx: UNKNOWN
    UNKNOWN    query by reference, 5 s later      held, captured, declined: DONE; none: ask again, then reverse
               waits for the resident             poll every 4 s until 60 s after the ask
               still unknown                      REVERSING, not before 15 s after the ask
    REVERSING  reversal, again with a mark        confirmed: DONE; six tries: an exception, which goes on, ever slower

    STORED     taken offline; sent                answer: DONE; none: again, ever slower, and never in anybody's way

What follows a sale (capture, void, refund) and the close of a batch are safe to ask again with the same key, so their
way out of UNKNOWN is to ask again until they are answered.
"""

from datetime import datetime, timedelta

from msgspec import Struct
from msgspec.structs import replace

from carbon_points_terminal.call import (
    Call,
    Capture,
    Close,
    Closed,
    Kind,
    Move,
    Offline,
    Outcome,
    Reason,
    Redemption,
    Refund,
    Refunded,
    Result,
    Reversed,
    Sale,
    Void,
)
from carbon_points_terminal.wire import Answer, NoAnswer, Refused, Silence, read

APPROVED = frozenset({"held", "captured", "partially_refunded", "refunded"})
SPENT = frozenset({"captured", "partially_refunded", "refunded"})
OVER = frozenset({"declined", "voided", "expired", "reversed"})


class Timing(Struct, frozen=True):
    """The table of seconds. `asks`: how often a sale is sent at most; `tries`: reversals before it is an exception."""

    answer: int = 10
    query_after: int = 5
    confirm_every: int = 4
    confirm_for: int = 60
    reverse_after: int = 15
    again_first: int = 5
    tries: int = 6
    asks: int = 3
    ask_again_for: int = 30
    exception_first: int = 300
    exception_most: int = 3600


class Facts(Struct, frozen=True):
    """What a decision may know besides the call. `counted`: a batch has the spending of this call's sale already."""

    at: datetime
    batch: int
    timing: Timing = Timing()
    counted: bool = False


# -- sending ---------------------------------------------------------------------------------------------------------


def sending(call: Call, facts: Facts) -> Call:
    """The call as it is written down before its next request leaves."""
    asking, reversing = call.step == "ask", call.step == "reversal"
    return replace(
        call,
        in_flight=True,
        attempt=call.attempt + 1,
        begun=call.begun or facts.at,
        asks=call.asks + asking,
        reversals=call.reversals + reversing,
    )


def interrupted(call: Call, facts: Facts) -> Call:
    """The call as a till finds it that has stopped meanwhile: what was out is unanswered, what never left never will.

    A clock that was put back must not let a call wait for what is now far ahead.
    """
    if isinstance(call.ask, Offline):  # the goods are gone, whether it was sent or not
        found = answered(call, NoAnswer("the till stopped"), facts) if call.in_flight else call
        latest = facts.at + timedelta(seconds=facts.timing.exception_first)
        return replace(found, due=min(found.due or facts.at, latest))
    if call.attempt == 0:
        return never_sent(call, "interrupted")
    call = replace(call, interrupted=True, begun=min(call.begun or facts.at, facts.at))
    if call.in_flight:
        return answered(call, NoAnswer("the till stopped"), facts)
    if call.step == "ask" and isinstance(call.ask, Sale):
        return replace(_unknown(call, facts, None), due=facts.at)
    latest = facts.at + timedelta(seconds=facts.timing.exception_most)
    return replace(call, due=min(call.due or facts.at, latest))


def never_sent(call: Call, code: str) -> Call:
    """The end of what has not left the till, and never will."""
    assert call.attempt == 0, "what was sent may be anywhere"
    return _done(call, Outcome("not-sent", code))


def reversing(call: Call, reason: Reason, facts: Facts) -> Call:
    """Begin to reverse a sale: at once what is known to have arrived, what is not known, 15 s after the ask."""
    assert isinstance(call.ask, Sale), "only a sale is reversed"
    earliest = facts.at
    if call.outcome is None and call.begun:
        earliest = max(earliest, call.begun + timedelta(seconds=facts.timing.reverse_after))
    return replace(
        call, state="REVERSING", step="reversal", due=earliest, reason=reason, outcome=None, tries=0, in_flight=False
    )


# -- answers ---------------------------------------------------------------------------------------------------------


def answered(call: Call, answer: Answer, facts: Facts) -> Call:
    """What the answer to the request that is out makes of the call."""
    call = replace(call, in_flight=False, last=told(answer))
    match call.step, call.ask:
        case "ask", Sale():
            return _of_sale(call, answer, facts)
        case "ask", Offline():
            return _of_offline(call, answer, facts)
        case "ask", Close():
            return _of_close(call, answer, facts)
        case "ask", _:
            return _of_follow_up(call, answer, facts)
        case "query", _:
            return _of_query(call, answer, facts)
        case "reversal", _:
            return _of_reversal(call, answer, facts)
        case "look", _:
            return _of_look(call, answer, facts)
        case _:
            return _of_give_back(call, answer, facts)


def late(call: Call, answer: Answer, facts: Facts) -> Call:
    """An answer to a request that was given up. It counts only where it ends an open question about a sale.

    Once a reversal was begun, nothing that arrives late can make an approval of it.
    """
    if call.state == "UNKNOWN" and isinstance(call.ask, Sale):
        shown = read(answer, Redemption)
        if isinstance(shown, Redemption) and not _wrong(call, shown) and shown.status in APPROVED | OVER:
            return _shown(replace(call, last=told(answer)), shown, facts)
    return call


def told(answer: Answer) -> str:
    """An answer in one line, for lists and logs."""
    if isinstance(answer, NoAnswer):
        return answer.reason
    said = read(answer, dict[str, object])
    match said:
        case Refused(problem=problem):
            return f"{answer.status} {problem.code}"
        case Silence(reason=reason):
            return reason
        case _:
            return f"{answer.status} {said.get('status') or said.get('answer') or ''}".rstrip()


# -- a sale ----------------------------------------------------------------------------------------------------------


def _of_sale(call: Call, answer: Answer, facts: Facts) -> Call:
    said = read(answer, Redemption)
    match said:
        case Silence():
            return _unknown(replace(call, unanswered=True), facts, said)
        case Redemption():
            return _shown(call, said, facts)
        case Refused(again=True):
            return _ask_again(call, said, facts)
        case Refused(problem=problem) if problem.retryable == "query-first" or call.unanswered:
            return _unknown(replace(call, refused=problem.code), facts, None)
        case Refused(problem=problem):
            return _done(call, Outcome("declined", problem.code, detail=problem.detail or problem.title))


def _ask_again(call: Call, said: Refused, facts: Facts) -> Call:
    """The same key again, when the platform says so; a 503 leaves open whether this one counted."""
    call = replace(call, unanswered=call.unanswered or said.failed, refused="" if said.failed else said.problem.code)
    at = facts.at + timedelta(seconds=facts.timing.query_after if said.wait is None else said.wait)
    if call.asks < facts.timing.asks and at <= _begun(call) + timedelta(seconds=facts.timing.ask_again_for):
        return replace(call, due=at)
    return _unknown(call, facts, None)


def _unknown(call: Call, facts: Facts, said: Silence | None) -> Call:
    """The outcome is open: ask for it by reference, after a pause."""
    reason: Reason = "invalid-response" if said and said.invalid else call.reason
    at = facts.at + timedelta(seconds=facts.timing.query_after)
    return replace(call, state="UNKNOWN", step="query", due=at, reason=reason)


def _of_query(call: Call, answer: Answer, facts: Facts) -> Call:
    said = read(answer, Redemption)
    if isinstance(said, Redemption):
        return _shown(call, said, facts)
    wait = facts.timing.query_after
    if isinstance(said, Refused) and said.again and said.wait:
        wait = max(wait, said.wait)
    at = facts.at + timedelta(seconds=wait)
    if at <= _begun(call) + timedelta(seconds=facts.timing.reverse_after):
        return replace(call, due=at)
    return reversing(call, call.reason, facts)


def _shown(call: Call, shown: Redemption, facts: Facts) -> Call:
    """The platform shows how the sale stands."""
    sale = call.ask
    assert isinstance(sale, Sale)
    if wrong := _wrong(call, shown):
        return reversing(replace(call, last=wrong), "mismatch", facts)
    call = replace(call, redemption_id=shown.redemption_id)
    if shown.status in OVER:
        return _done(call, _outcome("declined", shown, shown.declined_because or call.refused or shown.status))
    if shown.status in SPENT or (shown.status == "held" and not sale.capture):
        spent = shown.captured_points, shown.captured_fen
        return _done(_moved(call, "sale", *spent, facts) if shown.status in SPENT else call, _sold(shown))
    if shown.status == "none":
        return _absent(call, facts)
    return _pending(call, facts)


def _absent(call: Call, facts: Facts) -> Call:
    """It never arrived, or has not yet. The same key again is safe; where a sale is not wanted any more, a reversal.

    A till that was interrupted, or whose customer has waited for long, does not sell: nobody stands there any more.
    """
    if call.refused and not call.unanswered:
        return _done(call, Outcome("declined", call.refused))
    until = _begun(call) + timedelta(seconds=facts.timing.ask_again_for)
    if call.asks < facts.timing.asks and facts.at <= until and not call.interrupted and not call.refused:
        return replace(call, state="SENT", step="ask", due=facts.at)
    return reversing(call, call.reason, facts)


def _pending(call: Call, facts: Facts) -> Call:
    """It waits for the resident, or stands in between: poll as long as a cashier can be asked to wait."""
    until = _begun(call) + timedelta(seconds=facts.timing.confirm_for)
    if facts.at < until:
        at = min(facts.at + timedelta(seconds=facts.timing.confirm_every), until)
        return replace(call, state="UNKNOWN", step="query", due=at)
    return reversing(call, "timeout", facts)


def _wrong(call: Call, shown: Redemption) -> str:
    """In what the redemption that is shown is not the one that was asked for."""
    assert isinstance(call.ask, Sale | Offline)
    if shown.status in OVER | {"none"}:
        return ""
    if (shown.merchant, shown.terminal) not in {(call.merchant, call.terminal), (None, None)}:
        return f"shown for {shown.merchant}/{shown.terminal}"
    if shown.points != call.ask.points and not (isinstance(call.ask, Sale) and call.ask.offer):
        return f"shown with {shown.points} points, asked for {call.ask.points}"
    return ""


def _sold(shown: Redemption) -> Outcome:
    spent = shown.status in SPENT
    points, fen = (shown.captured_points, shown.captured_fen) if spent else (shown.points, shown.amount_fen)
    return replace(_outcome("approved", shown), points=points, fen=fen)


# -- a reversal ------------------------------------------------------------------------------------------------------


def _of_reversal(call: Call, answer: Answer, facts: Facts) -> Call:
    match read(answer, Reversed):
        case Reversed() as said:
            call = replace(call, redemption_id=said.redemption_id)
            if said.action == "refunded":
                call = _moved(call, "reversal", said.points, said.amount_fen, facts)
                if not facts.counted and not any(move.kind == "sale" for move in call.moves):
                    return replace(call, step="look", due=facts.at, giving_back=False)
            return _done(call, Outcome("reversed", call.reason, said.status, said.redemption_id))
        case Refused(problem=problem) if problem.code == "use-refund" or problem.facts.get("current_state") in SPENT:
            return replace(call, step="look", due=facts.at, giving_back=True)
        case Refused(problem=problem) if problem.facts.get("current_state") in OVER:
            return _done(
                call, Outcome("reversed", call.reason, str(problem.facts["current_state"]), call.redemption_id)
            )
        case Refused() | Silence() as said:
            return _later(call, facts, said.wait)


def _of_look(call: Call, answer: Answer, facts: Facts) -> Call:
    """How it stands after the reversal: what had been spent; or what is still to be given back, by a refund."""
    said = read(answer, Redemption)
    if not isinstance(said, Redemption):
        return _later(call, facts, said.wait)
    call = replace(call, redemption_id=said.redemption_id)
    if call.giving_back and said.status in {"captured", "partially_refunded"}:
        call = _moved(call, "sale", said.captured_points, said.captured_fen, facts)
        return replace(call, step="give-back", due=facts.at, back=said.captured_points - said.refunded_points)
    if call.giving_back and said.status not in OVER | {"refunded", "none"}:
        return _later(call, facts, None)
    if said.captured_points:
        call = _moved(call, "sale", said.captured_points, said.captured_fen, facts)
    return _done(call, _outcome("reversed", said, call.reason))


def _of_give_back(call: Call, answer: Answer, facts: Facts) -> Call:
    match read(answer, Refunded):
        case Refunded() as said:
            call = _moved(call, "refund", said.points, said.amount_fen, facts)
            return _done(call, Outcome("reversed", "use-refund", said.status, said.redemption_id))
        case Refused() | Silence() as said:
            return _later(call, facts, said.wait)


def _later(call: Call, facts: Facts, wait: int | None) -> Call:
    """Again after a pause that doubles; after the last try it is an exception, which somebody has to know of."""
    timing, tries = facts.timing, call.tries + 1
    if exception := call.exception or tries >= timing.tries:
        pause = min(timing.exception_first * 2 ** min(max(tries - timing.tries, 0), 16), timing.exception_most)
    else:
        pause = timing.again_first * 2 ** (tries - 1)
    at = facts.at + timedelta(seconds=max(pause, wait or 0))
    return replace(call, tries=tries, exception=exception, due=at)


# -- what was taken offline --------------------------------------------------------------------------------------------


def _of_offline(call: Call, answer: Answer, facts: Facts) -> Call:
    """The late verdict. What the platform declines, the merchant has lost; what it does not answer is sent again."""
    if isinstance(answer, NoAnswer):
        return _forward_later(call, facts, Silence(answer.reason))
    call = replace(call, tries=call.tries + 1)
    match read(answer, Redemption):
        case Redemption() as shown if wrong := _wrong(call, shown):
            return _forward_later(replace(call, last=wrong), facts, Silence(wrong, invalid=True))
        case Redemption() as shown if shown.status in SPENT:
            call = replace(call, redemption_id=shown.redemption_id)
            return _done(_moved(call, "sale", shown.captured_points, shown.captured_fen, facts), _sold(shown))
        case Redemption() as shown if shown.status in OVER:
            return _done(call, _outcome("declined", shown, shown.declined_because or shown.status))
        case Redemption() as shown:
            return _forward_later(call, facts, Silence(f"shown as {shown.status}", invalid=True))
        case Refused() as said if said.again or said.unheard or said.problem.retryable == "query-first":
            return _forward_later(call, facts, said)
        case Refused(problem=problem):
            return _done(call, Outcome("declined", problem.code, detail=problem.detail or problem.title))
        case Silence() as said:
            return _forward_later(call, facts, said)


def _forward_later(call: Call, facts: Facts, said: Refused | Silence) -> Call:
    """Again after a pause that doubles up to five minutes. An exception is what was answered, without a verdict, so
    often that somebody has to look; that there is no network is none."""
    timing = facts.timing
    pause = min(timing.again_first * 2 ** min(call.attempt - 1, 16), timing.exception_first)
    return replace(
        call,
        exception=call.exception or call.tries >= timing.tries,
        unanswered=call.unanswered or isinstance(said, Silence) or said.failed,
        due=facts.at + timedelta(seconds=max(pause, said.wait or 0)),
    )


# -- what follows a sale, and the close of a batch ---------------------------------------------------------------------


def _of_follow_up(call: Call, answer: Answer, facts: Facts) -> Call:
    said = read(answer, Refunded if isinstance(call.ask, Refund) else Redemption)
    match said:
        case Refunded():
            if said.redemption_id != call.redemption_id:
                return _open(call, facts, Silence("shown for another redemption"))
            return _done(_moved(call, "refund", said.points, said.amount_fen, facts), _refunded(said))
        case Redemption():
            return _followed(call, said, facts)
        case Refused(again=False) if not (said.unheard and call.unanswered):
            state = str(said.problem.facts.get("current_state", ""))
            outcome = Outcome("declined", said.problem.code, state, call.redemption_id, detail=said.problem.detail)
            return _done(call, outcome)
        case _:
            return _open(call, facts, said)


def _followed(call: Call, shown: Redemption, facts: Facts) -> Call:
    if shown.redemption_id != call.redemption_id:
        return _open(call, facts, Silence("shown for another redemption"))
    if isinstance(call.ask, Capture):
        if shown.status not in SPENT:
            return _done(call, _outcome("declined", shown, shown.status))
        call = _moved(call, "sale", shown.captured_points, shown.captured_fen, facts)
        return _done(call, _sold(shown))
    assert isinstance(call.ask, Void)
    won = shown.status == "voided"
    return _done(call, _outcome("approved" if won else "declined", shown, "" if won else shown.status))


def _of_close(call: Call, answer: Answer, facts: Facts) -> Call:
    match read(answer, Closed):
        case Closed() as said:
            agreed = said.answer == "agreed"
            return _done(call, Outcome("approved" if agreed else "declined", said.answer, closed=said))
        case Refused(again=False) as said if not (said.unheard and call.unanswered):
            return _done(call, Outcome("declined", said.problem.code, detail=said.problem.detail))
        case Refused() | Silence() as said:
            return _open(call, facts, said)


def _open(call: Call, facts: Facts, said: Refused | Silence) -> Call:
    unanswered = call.unanswered or isinstance(said, Silence) or said.failed
    return _later(replace(call, state="UNKNOWN", unanswered=unanswered), facts, said.wait)


# -- the end ---------------------------------------------------------------------------------------------------------


def _done(call: Call, outcome: Outcome) -> Call:
    """Nothing more is sent. The payment code goes: nobody needs it any more."""
    ask = replace(call.ask, code="") if isinstance(call.ask, Sale) else call.ask
    ask = replace(ask, allowance="") if isinstance(ask, Offline) else ask
    return replace(call, state="DONE", ask=ask, due=None, in_flight=False, exception=False, outcome=outcome)


def _moved(call: Call, kind: Kind, points: int, fen: int, facts: Facts) -> Call:
    """A line of the open batch; what was spent is counted once, by whichever call learned of it first."""
    if kind == "sale" and (facts.counted or any(move.kind == "sale" for move in call.moves)):
        return call
    return replace(call, moves=(*call.moves, Move(facts.batch, kind, points, fen)))


def _outcome(result: Result, shown: Redemption, code: str = "") -> Outcome:
    return Outcome(result, code, shown.status, shown.redemption_id, shown.points, shown.amount_fen)


def _refunded(said: Refunded) -> Outcome:
    return Outcome("approved", "", said.status, said.redemption_id, said.points, said.amount_fen)


def _begun(call: Call) -> datetime:
    assert call.begun is not None, "nothing is answered that was never sent"
    return call.begun
