"""Reports in, verdicts out: the one way in for actions, one at a time, as NDJSON over HTTP, or from a file.

A report names its resident by the source's own word for them (a subject); the directory says whose that is.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from carbon_points.api.installation import Installation, View
from carbon_points.api.problems import NOT_DECODED, ApiError, of_exception, of_validation
from carbon_points.domain.account import (
    AccountUnknown,
    ActionCredited,
    ActionFacts,
    Balance,
    RecordAction,
    TapRecorded,
)
from carbon_points.domain.event import County, Id, Word
from carbon_points.domain.quantity import decimal, moment
from carbon_points.domain.refusal import Conflict, Refusal
from carbon_points.journal.entry import action_id
from carbon_points.journal.journal import Journal, Rules
from carbon_points.journal.partition import Outcome, Write

LINE_MOST = 64 * 1024  # bytes of one line
_ODD = bytes(range(32)) + b"\x7f\\"  # control characters, and what begins the writing of one
_Short = Annotated[str, Meta(min_length=1, max_length=128)]
Found = Literal["accepted", "duplicate", "conflict", "pending", "refused", "malformed"]


class Report(Struct, frozen=True, forbid_unknown_fields=True):
    """One reported act. Its identity is `source` and `record_id`: sent again, it changes nothing."""

    source: Id
    record_id: Annotated[Word, Meta(examples=["2026-11-21-000017"])]
    resident: Annotated[Word, Meta(description="the source's own name for them: a card number, a phone")]
    behaviour: Annotated[Word, Meta(examples=["bus"])]
    quantity: Annotated[str, Meta(max_length=400, description="an exact decimal in quotes", examples=["1"])]
    unit: Annotated[Word, Meta(examples=["trip"])]
    occurred_at: Annotated[datetime, Meta(description="when it ended, with its offset")]
    county: County | None = None


class Receipt(Struct, frozen=True, omit_defaults=True):
    """What became of a report. `verdict` "duplicate" is the earlier answer again. `balance` is right at once."""

    verdict: Found
    action_id: str = ""
    source: str = ""
    record_id: str = ""
    behaviour: str = ""
    methodology: str = ""
    version: str = ""
    counted: Decimal | None = None
    reduction_mg: int | None = None
    points: int | None = None
    expires_on: date | None = None
    limits: tuple[str, ...] = ()
    paired_with: str = ""
    balance: Balance | None = None
    code: str = ""
    detail: str = ""
    line: int = 0
    position: str = ""


_decoder = msgspec.json.Decoder(Report)


def report_of(line: bytes) -> Report:
    """A report from its JSON. Raises ApiError."""
    try:
        return _decoder.decode(line)
    except NOT_DECODED as error:
        raise of_validation(error) from None


def command_of(report: Report, resident: str) -> RecordAction:
    """The domain's own command. Refuses quantities and times that are none."""
    return RecordAction(
        resident=resident,
        source=report.source,
        record_id=report.record_id,
        behaviour=report.behaviour,
        quantity=decimal(report.quantity),
        unit=report.unit,
        occurred_at=moment(report.occurred_at),
        county=report.county,
    )


def facts_of(rules: Rules, source: str, behaviour: str) -> ActionFacts:
    """What the decision needs. Refusals, in order: SourceUnknown, SourceSuspended, BehaviourNotAllowed."""
    return ActionFacts(rules.methodologies, rules.sources.reporting(source, behaviour))


def receipt_of(outcome: Outcome, line: int = 0) -> Receipt:
    """The receipt of a command that was carried out, or was carried out before."""
    event = outcome.events[-1]
    place = f"{outcome.partition}:{outcome.position}"
    known = outcome.view if isinstance(outcome.view, Balance) else None
    if isinstance(event, TapRecorded):
        verdict: Found = "refused" if event.refused else "duplicate" if outcome.replayed else "pending"
        return Receipt(
            verdict=verdict,
            action_id=action_id(event.source, event.record_id),
            source=event.source,
            record_id=event.record_id,
            behaviour=event.behaviour,
            methodology=event.methodology,
            balance=known,
            code=event.refused or "",
            line=line,
            position=place,
        )
    assert isinstance(event, ActionCredited)
    return Receipt(
        verdict="duplicate" if outcome.replayed else "accepted",
        action_id=action_id(event.source, event.record_id),
        source=event.source,
        record_id=event.record_id,
        behaviour=event.behaviour,
        methodology=event.methodology,
        version=event.version,
        counted=event.counted,
        reduction_mg=event.reduction_mg,
        points=event.points,
        expires_on=event.expires_on,
        limits=event.limits,
        paired_with=event.paired_with or "",
        balance=known,
        line=line,
        position=place,
    )


def in_brief(outcome: Outcome, line: int) -> Receipt:
    """The same for who only counts what was accepted."""
    event = outcome.events[-1]
    if outcome.replayed or not isinstance(event, ActionCredited):
        return receipt_of(outcome, line)
    return Receipt(
        "accepted",
        version=event.version,
        reduction_mg=event.reduction_mg,
        points=event.points,
        line=line,
        position=f"{outcome.partition}:{outcome.position}",
    )


# -- many at once ----------------------------------------------------------------------------------------------------


class _Plain(Report, frozen=True, forbid_unknown_fields=True):
    """A report of a line in which nothing can spell a control character: what patterns cost most of reading is left."""

    source: str
    record_id: _Short
    resident: _Short
    behaviour: _Short
    unit: _Short


_plain_decoder = msgspec.json.Decoder(_Plain)


def judge(
    installation: Installation,
    lines: Sequence[tuple[int, bytes]],
    *,
    only: str | None = None,
    view: View | None = None,
    told: Callable[[Outcome, int], Receipt] = receipt_of,
) -> list[Receipt]:
    """A verdict for every line, in order; the good ones are durable when it returns.

    `only` is the one source that may be named, `view` what is told of the account after each. Raises Unavailable: then
    the same lines may be sent again.
    """
    receipts, commands = understood(installation, lines, only=only)
    receipts |= decided(installation.journal, commands, view=view, told=told)
    return [receipts[number] for number, _ in lines]


def understood(
    installation: Installation, lines: Sequence[tuple[int, bytes]], *, only: str | None = None
) -> tuple[dict[int, Receipt], dict[int, RecordAction]]:
    """By line, the receipts of what is no report that may be made, and the commands of the others."""
    rules = installation.journal.rules()
    receipts: dict[int, Receipt] = {}
    reports: dict[int, Report] = {}
    for number, line in lines:
        try:
            reports[number] = _read(line, rules, only)
        except ApiError as error:
            receipts[number] = Receipt("malformed", code=error.code, detail=error.detail, line=number)
    facts, residents = _Facts(rules), _residents(installation, rules, reports)
    commands: dict[int, RecordAction] = {}
    for number, report in reports.items():
        try:
            facts.of(report.source, report.behaviour)
            if (resident := residents[report.source].get(report.resident)) is None:
                raise AccountUnknown(source=report.source)
            commands[number] = command_of(report, resident)
        except Refusal as refusal:
            receipts[number] = _refused(number, report, refusal)
    return receipts, commands


def decided(
    journal: Journal,
    commands: Mapping[int, RecordAction],
    *,
    view: View | None = None,
    told: Callable[[Outcome, int], Receipt] = receipt_of,
) -> dict[int, Receipt]:
    """By line, what became of commands; durable when it returns. Raises Unavailable."""
    facts = _Facts(journal.rules())
    receipts: dict[int, Receipt] = {}
    writes: dict[int, Write] = {}
    for number, command in commands.items():
        try:
            writes[number] = Write(command, facts.of(command.source, command.behaviour), view)
        except Refusal as refusal:
            receipts[number] = _refused(number, command, refusal)
    for number, outcome in zip(writes, journal.commit(list(writes.values())), strict=True):
        receipts[number] = _judged(number, commands[number], outcome, told)
    return receipts


class _Facts:
    """What decides reports of a batch, looked up once for each source and behaviour."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._known: dict[tuple[str, str], ActionFacts | Refusal] = {}

    def of(self, source: str, behaviour: str) -> ActionFacts:
        """As `facts_of`."""
        found = self._known.get((source, behaviour))
        if found is None:
            try:
                found = facts_of(self._rules, source, behaviour)
            except Refusal as refusal:
                found = refusal
            self._known[source, behaviour] = found
        if isinstance(found, Refusal):
            raise found
        return found


def _read(line: bytes, rules: Rules, only: str | None) -> Report:
    """A report of the one source, or of any. Raises ApiError."""
    if len(line) > LINE_MOST:
        raise ApiError("line-too-long")
    report = _plain(line)
    if report is None or report.source not in rules.sources.by_id:
        report = report_of(line)
    if only is not None and report.source != only:
        raise ApiError("not-yours", f"the key or call is for {only}")
    return report


def _plain(line: bytes) -> Report | None:
    if len(line.translate(None, _ODD)) != len(line):
        return None
    try:
        return _plain_decoder.decode(line)
    except NOT_DECODED:
        return None  # the other decoder says what is wrong


def _residents(installation: Installation, rules: Rules, reports: dict[int, Report]) -> dict[str, dict[str, str]]:
    """Whom the subjects of each source mean. Only of what a source may report, and only if it opens accounts, is a new
    resident made."""
    subjects: dict[str, set[str]] = {}
    for report in reports.values():
        source = rules.sources.by_id.get(report.source)
        if source and not source.suspended and report.behaviour in source.behaviours:
            subjects.setdefault(report.source, set()).add(report.resident)
    return {
        source: installation.directory.residents(
            source, list(theirs), create=rules.sources.by_id[source].opens_accounts
        )
        for source, theirs in subjects.items()
    }


def _judged(
    number: int, report: Report | RecordAction, outcome: Outcome, told: Callable[[Outcome, int], Receipt]
) -> Receipt:
    if outcome.failure:
        problem = of_exception(outcome.failure)
        return Receipt("refused", code=problem.code, record_id=report.record_id, detail=problem.title, line=number)
    if outcome.refusal:
        return _refused(number, report, outcome.refusal)
    return told(outcome, number)


def _refused(number: int, report: Report | RecordAction, refusal: Refusal) -> Receipt:
    verdict: Found = "conflict" if isinstance(refusal, Conflict) else "refused"
    return Receipt(
        verdict,
        source=report.source,
        record_id=report.record_id,
        behaviour=report.behaviour,
        code=refusal.code,
        detail=str(refusal),
        line=number,
    )


class Tally(Struct):
    """Verdicts counted; they add up to `read`."""

    read: int = 0
    accepted: int = 0
    duplicate: int = 0
    conflict: int = 0
    pending: int = 0
    refused: int = 0
    malformed: int = 0
    refused_by_code: dict[str, int] = {}
    reduction_mg: int = 0
    points: int = 0

    def join(self, other: "Tally") -> None:
        for name in self.__struct_fields__:
            if name != "refused_by_code":
                setattr(self, name, getattr(self, name) + getattr(other, name))
        for code, count in other.refused_by_code.items():
            self.refused_by_code[code] = self.refused_by_code.get(code, 0) + count

    def add(self, receipts: Sequence[Receipt]) -> None:
        for verdict, count in Counter(r.verdict for r in receipts).items():
            setattr(self, verdict, getattr(self, verdict) + count)
        self.read += len(receipts)
        for r in receipts:
            if r.verdict == "refused":
                self.refused_by_code[r.code] = self.refused_by_code.get(r.code, 0) + 1
            elif r.verdict == "accepted":
                self.reduction_mg += r.reduction_mg or 0
                self.points += r.points or 0
