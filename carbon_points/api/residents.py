"""Residents: open an account, ask and give consent, show what it holds. Balances come from the log: right at once."""

import hashlib
from contextlib import suppress
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import PathParameter, QueryParameter
from msgspec import Meta, Struct

from carbon_points.api.access import takes
from carbon_points.api.installation import (
    IDEMPOTENCY_KEY,
    LIMIT,
    MIN_POSITION,
    PLAIN,
    Installation,
    example,
    id_from_key,
    receipt,
    threaded,
)
from carbon_points.api.problems import documented
from carbon_points.directory import Caller, SubjectBound, new_resident
from carbon_points.domain import account
from carbon_points.domain.account import (
    Account,
    Balance,
    ConsentGiven,
    FreezeAccount,
    GiveConsent,
    OpenAccount,
    WithdrawConsent,
)
from carbon_points.domain.consent import Consent
from carbon_points.domain.event import County, Id, Text, Word
from carbon_points.domain.quantity import CHINA, civil_day, moment
from carbon_points.domain.refusal import Conflict
from carbon_points.journal import codec
from carbon_points.journal.partition import Outcome
from carbon_points.projections.statements import Line, statement

_KEYS = "keys of calls"  # where the directory binds them: no source's id has a space
RESIDENT = PathParameter(pattern=r"^res_[a-z2-7]{20}$", description="the resident's pseudonym")


class Subject(Struct, frozen=True, forbid_unknown_fields=True):
    """How a source names this resident. Kept as a keyed hash, outside the log."""

    source: Id
    subject: Word


class ConsentAsked(Struct, frozen=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """`from`: default now; for trade, default the first of this month, since a month is pooled whole or not at all."""

    purpose: Literal["record", "trade"]
    version: Annotated[Word, Meta(description="which text the resident agreed to", examples=["2026-01"])]
    from_: datetime | None = None
    until: datetime | None = None
    source: Id | None = None
    behaviours: tuple[Id, ...] | None = None


class NewResident(Struct, frozen=True, forbid_unknown_fields=True):
    county: County | None = None
    subjects: Annotated[tuple[Subject, ...], Meta(max_length=50)] = ()
    consents: Annotated[tuple[ConsentAsked, ...], Meta(max_length=20)] = ()


class Freeze(Struct, frozen=True, forbid_unknown_fields=True):
    frozen: bool
    reason: Text


class GrantShown(Struct, frozen=True):
    expires_on: date
    points: int


class ResidentShown(Struct, frozen=True):
    """Balances at this instant. `unpooled_mg` are the reductions that no pool took yet."""

    resident: str
    frozen: bool
    county: str | None
    balance: Balance
    unpooled_mg: int
    grants: list[GrantShown]
    consents: list[Consent]


class StatementPage(Struct, frozen=True):
    data: list[Line]
    next_cursor: str | None


@post(
    "/v1/residents",
    operation_id="openAccount",
    tags=["residents"],
    summary="Open a resident's account",
    description="Gives the resident a random pseudonym, binds the sources' names for them, and records their consents.",
    guards=[takes("app")],
    status_code=201,
    responses={
        200: ResponseSpec(ResidentShown, description="The earlier answer again", generate_examples=False),
        **documented(
            "idempotency-key-missing",
            "identity-reused",
            "subject-bound",
            "consent-span-invalid",
            "time-without-offset",
            "time-invalid",
            body=True,
        ),
    },
)
@threaded
def open_account(
    request: Request[Caller, Any, Any],
    data: Annotated[
        NewResident,
        example(
            county="330503",
            subjects=[{"source": "huzhou-bus", "subject": "card-0001"}],
            consents=[{"purpose": "record", "version": "2026-01"}, {"purpose": "trade", "version": "2026-01"}],
        ),
    ],
    installation: NamedDependency[Installation],
    idempotency_key: Annotated[str, IDEMPOTENCY_KEY],
) -> Response[ResidentShown]:
    ids = [id_from_key("con_", request, f"opening {i}") for i in range(len(data.consents))]
    for asked in data.consents:  # before anything is written
        _check_span(asked)
    resident = _whose(installation, id_from_key("key_", request, "account"), data)
    outcome = installation.write_now(OpenAccount(resident=resident, county=data.county))
    for subject in data.subjects:
        installation.directory.bind(subject.source, [subject.subject], resident)
    for asked, consent_id in zip(data.consents, ids, strict=True):
        _, outcome = _give(installation, resident, asked, consent_id)  # a call that was broken off is so at its end
    return receipt(_shown(installation, resident), outcome)


def _whose(installation: Installation, key: str, data: NewResident) -> str:
    """The resident of this key; or the one whom a source's report already made, if a subject names one.

    A digest of each field is bound beside the key: subjects are in no log, and other content must be found out.
    Refusals, in order: SubjectBound, Conflict.
    """
    directory = installation.directory
    fields = {name: f"{key}\0{name}\0{_digest(getattr(data, name))}" for name in data.__struct_fields__}
    bound = directory.residents(_KEYS, [key, *fields.values()], create=False)
    if key not in bound:
        named = {
            found[subject.subject]
            for subject in data.subjects
            if (found := directory.residents(subject.source, [subject.subject], create=False))
        }
        if len(named) > 1:
            raise SubjectBound(subjects=len(named))
        with suppress(SubjectBound):  # the same call is being answered elsewhere, and was first
            directory.bind(_KEYS, [key, *fields.values()], named.pop() if named else new_resident())
        bound = directory.residents(_KEYS, [key, *fields.values()], create=False)
    if differ := [name for name, field in fields.items() if bound.get(field) != bound[key]]:
        raise Conflict(fields=differ)
    return bound[key]


def _digest(value: object) -> str:
    return hashlib.sha256(msgspec.json.encode(value)).hexdigest()


@get(
    "/v1/residents/{resident:str}",
    operation_id="getResident",
    tags=["residents"],
    summary="Balances, grants and consents",
    guards=[takes("app", "auditor")],
    responses=documented("account-unknown"),
)
@threaded
def get_resident(resident: Annotated[str, RESIDENT], installation: NamedDependency[Installation]) -> ResidentShown:
    return _shown(installation, resident)


@get(
    "/v1/residents/{resident:str}/statement",
    operation_id="getStatement",
    tags=["residents"],
    summary="What moved, newest first",
    guards=[takes("app", "auditor")],
    description="Read from the log itself: right at once.",
    responses=documented("account-unknown", "position-not-reached"),
)
@threaded
def get_statement(
    resident: Annotated[str, RESIDENT],
    installation: NamedDependency[Installation],
    cursor: Annotated[str | None, QueryParameter(pattern=r"^[0-9]{1,15}$")] = None,
    limit: Annotated[int, LIMIT] = 50,
    min_position: Annotated[str | None, MIN_POSITION] = None,
) -> StatementPage:
    installation.reach(min_position)  # of no need here: taken where every list takes it
    page = statement(installation.journal, resident, before=int(cursor) if cursor else None, limit=limit)
    if not page.lines and not installation.journal.state(resident).opened:
        raise account.AccountUnknown(resident=resident)
    return StatementPage(page.lines, str(page.before) if page.before > 1 else None)


@post(
    "/v1/residents/{resident:str}/consents",
    operation_id="giveConsent",
    tags=["residents"],
    summary="Record a consent",
    guards=[takes("app")],
    status_code=201,
    responses={
        200: ResponseSpec(Consent, description="The earlier answer again", generate_examples=False),
        **documented(
            "account-unknown",
            "idempotency-key-missing",
            "identity-reused",
            "consent-span-invalid",
            "time-without-offset",
            "time-invalid",
            body=True,
        ),
    },
)
@threaded
def give_consent(
    request: Request[Caller, Any, Any],
    resident: Annotated[str, RESIDENT],
    data: Annotated[ConsentAsked, example(purpose="trade", version="2026-01", behaviours=["bus", "metro"])],
    installation: NamedDependency[Installation],
    idempotency_key: Annotated[str, IDEMPOTENCY_KEY],
) -> Response[Consent]:
    consent_id = id_from_key("con_", request, f"consent {resident}")
    consent, outcome = _give(installation, resident, data, consent_id)
    return receipt(consent, outcome)


@delete(
    "/v1/residents/{resident:str}/consents/{consent_id:str}",
    operation_id="withdrawConsent",
    tags=["residents"],
    summary="Withdraw a consent",
    description="From now on. What was pooled under it before stays pooled.",
    guards=[takes("app")],
    status_code=200,
    responses=documented("account-unknown", "consent-unknown"),
)
@threaded
def withdraw_consent(
    resident: Annotated[str, RESIDENT],
    consent_id: Annotated[str, PathParameter(max_length=64, pattern=PLAIN)],
    installation: NamedDependency[Installation],
) -> Response[ResidentShown]:
    outcome = installation.write_now(WithdrawConsent(resident=resident, consent_id=consent_id))
    return receipt(_shown(installation, resident), outcome, created=200)


@post(
    "/v1/residents/{resident:str}/freeze",
    operation_id="freezeAccount",
    tags=["residents"],
    summary="Stop, or allow again, earning and spending",
    guards=[takes()],
    status_code=200,
    responses=documented("account-unknown", "frozen-already", body=True),
)
@threaded
def freeze_account(
    resident: Annotated[str, RESIDENT],
    data: Annotated[Freeze, example(frozen=True, reason="异常活动，待查")],
    installation: NamedDependency[Installation],
) -> Response[ResidentShown]:
    command = FreezeAccount(resident=resident, frozen=data.frozen, reason=data.reason)
    outcome = installation.write_now(command)
    return receipt(_shown(installation, resident), outcome, created=200)


@delete(
    "/v1/residents/{resident:str}/bindings",
    operation_id="eraseResident",
    tags=["residents"],
    summary="Forget who a resident is",
    description="Destroys every binding of a source's name to this pseudonym. The log keeps figures about nobody.",
    guards=[takes("app")],
    status_code=200,
    responses=documented(),
)
@threaded
def erase_resident(resident: Annotated[str, RESIDENT], installation: NamedDependency[Installation]) -> dict[str, int]:
    return {"bindings_destroyed": installation.directory.erase(resident)}


def _shown(installation: Installation, resident: str) -> ResidentShown:
    known: Account = installation.journal.state(resident)
    at = installation.clock()
    if not known.opened:
        raise account.AccountUnknown(resident=resident)
    return ResidentShown(
        resident,
        known.frozen,
        known.county,
        account.balance(known, at),
        sum(known.unpooled.values()),
        [GrantShown(day, points) for day, points in sorted(known.grants.items()) if day >= civil_day(at)],
        list(known.consents.values()),
    )


def _check_span(asked: ConsentAsked) -> None:
    begin, end = (moment(at) if at else None for at in (asked.from_, asked.until))
    if begin and end and end <= begin:
        raise account.ConsentSpanInvalid(until=end.isoformat())


def _give(installation: Installation, resident: str, asked: ConsentAsked, consent_id: str) -> tuple[Consent, Outcome]:
    """Give a consent, or find it given before under this id, though it be withdrawn since. Raises Conflict."""
    entry = installation.journal.find(("consent", resident, consent_id))
    earlier = codec.decode(entry.type, entry.state) if entry else None
    known = earlier.consent if isinstance(earlier, ConsentGiven) else None
    consent = _consent(asked, consent_id, known.from_ if known else _left_out(asked, installation.clock()))
    if known and known != consent:
        told = zip(Consent.__struct_fields__, Consent.__struct_encode_fields__, strict=True)
        raise Conflict(fields=[name for field, name in told if getattr(known, field) != getattr(consent, field)])
    return consent, installation.write_now(GiveConsent(resident=resident, consent=consent))


def _left_out(asked: ConsentAsked, at: datetime) -> datetime:
    """When a consent begins that does not say it."""
    month = at.astimezone(CHINA).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return month.astimezone(UTC) if asked.purpose == "trade" else at


def _consent(asked: ConsentAsked, consent_id: str, left_out: datetime) -> Consent:
    begin = moment(asked.from_) if asked.from_ else left_out
    return Consent(
        id=consent_id,
        purpose=asked.purpose,
        version=asked.version,
        from_=begin,
        until=moment(asked.until) if asked.until else None,
        source=asked.source,
        behaviours=asked.behaviours,
    )


handlers = [
    open_account,
    get_resident,
    get_statement,
    give_consent,
    withdraw_consent,
    freeze_account,
    erase_resident,
]
