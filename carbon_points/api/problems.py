"""Errors on the wire: RFC 9457 problem details with a stable `code`, and whether sending again can help.

The one place where refusals meet HTTP. A refusal of the domain without a row here is a defect that a test finds.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any, Literal, cast

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example
from msgspec import Struct
from sqlalchemy.exc import SQLAlchemyError

from carbon_points.domain.refusal import Refusal, codes
from carbon_points.journal.journal import DecidedElsewhere
from carbon_points.journal.partition import Unavailable
from carbon_points.journal.recorder import Unreachable
from carbon_points.journal.waiting import Overloaded
from carbon_points.projections.rows import CursorInvalid

Retryable = Literal["never", "same-key", "new-key", "query-first"]
MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 1

log = logging.getLogger(__name__)


class Detail(Struct, frozen=True):
    """One wrong place in the request: a JSON pointer or a parameter's name, and what is wrong with it."""

    pointer: str
    message: str


class Problem(Struct, frozen=True, omit_defaults=True):
    """An RFC 9457 problem. `facts` are the numbers behind the refusal; `request_id` finds it in our logs."""

    type: str
    title: str
    status: int
    code: str
    retryable: Retryable
    detail: str = ""
    request_id: str = ""
    facts: dict[str, Any] = {}
    errors: list[Detail] = []


class ApiError(Exception):
    """A request that fails before the domain sees it."""

    def __init__(self, code: str, detail: str = "", errors: list[Detail] | None = None) -> None:
        super().__init__(code, detail)
        self.code, self.detail, self.errors = code, detail, errors or []


# -- the catalogue: code -> status, whether to send again, and a title where no refusal of the domain has one ---------

UNKNOWN, CONFLICT, UNPROCESSABLE, FORBIDDEN = 404, 409, 422, 403

STATUS: Mapping[str, tuple[int, Retryable]] = {
    "malformed": (400, "never"),
    "identity-reused": (UNPROCESSABLE, "never"),
    **dict.fromkeys(
        ("quantity-invalid", "quantity-negative", "quantity-too-long", "time-invalid", "time-without-offset"),
        (UNPROCESSABLE, "never"),
    ),
    **dict.fromkeys(
        (
            "behaviour-unknown",
            "no-methodology-in-force",
            "methodology-invalid",
            "unit-mismatch",
            "quantity-below-least",
            "quantity-above-most",
            "occurred-in-future",
            "reported-too-late",
            "consent-span-invalid",
            "points-invalid",
            "hold-time-invalid",
            "price-invalid",
            "period-invalid",
            "amount-invalid",
            "money-invalid",
            "offer-invalid",
            "offer-span-invalid",
            "items-invalid",
            "not-whole-items",
            "webhook-url-invalid",
            "clock-too-far",
        ),
        (UNPROCESSABLE, "never"),
    ),
    **dict.fromkeys(("behaviour-not-allowed", "source-suspended", "terminal-suspended"), (FORBIDDEN, "never")),
    **dict.fromkeys(
        (
            "source-unknown",
            "account-unknown",
            "consent-unknown",
            "action-unknown",
            "redemption-unknown",
            "merchant-unknown",
            "terminal-unknown",
            "activation-code-unknown",
            "pool-unknown",
            "lot-unknown",
            "offer-unknown",
            "campaign-unknown",
            "webhook-unknown",
        ),
        (UNKNOWN, "never"),
    ),
    **dict.fromkeys(
        (
            "methodology-altered",
            "version-not-later",
            "nothing-to-change",
            "frozen-already",
            "action-not-reversible",
            "hold-expired",
            "redemption-not-held",
            "redemption-not-captured",
            "capture-exceeds-hold",
            "refund-exceeds-captured",
            "nothing-to-pool",
            "price-unchanged",
            "terms-unchanged",
            "reversal-mismatch",
            "use-refund",
            "nothing-to-settle",
            "day-not-over",
            "gathering-not-open",
            "nothing-gathered",
            "verified-exceeds-gathered",
            "less-than-one-kilogram",
            "units-not-for-sale",
            "units-not-held",
            "subject-bound",
            "campaigns-too-many",
            "budget-below-spent",
            "restock-exceeds-stock",
            "key-ended",
            "activation-code-expired",
            "activation-code-used",
        ),
        (CONFLICT, "never"),
    ),
    **dict.fromkeys(("code-malformed", "allowance-invalid"), (400, "never")),
    **dict.fromkeys(
        (
            "allowance-elsewhere",
            "allowance-expired",
            "allowance-exceeded",
            "offline-not-allowed",
            "offline-too-late",
            "offline-exceeds-terms",
        ),
        (CONFLICT, "never"),
    ),
    "allowance-unknown": (UNKNOWN, "never"),
    "offline-in-future": (CONFLICT, "same-key"),
    "code-unknown": (UNKNOWN, "never"),
    "rate-limited": (429, "same-key"),
    **dict.fromkeys(
        (
            "offer-not-open",
            "offer-sold-out",
            "offer-limit-reached",
            "offer-day-limit-reached",
            "campaign-spent",
        ),
        (CONFLICT, "new-key"),
    ),
    "too-many-attempts": (429, "same-key"),
    "account-frozen": (CONFLICT, "query-first"),
    "consent-missing": (CONFLICT, "same-key"),
    "exit-without-entry": (CONFLICT, "never"),
    **dict.fromkeys(
        ("insufficient-points", "code-expired", "code-used", "hold-abandoned", "redemption-reversed"),
        (CONFLICT, "new-key"),
    ),
    "fund-insufficient": (CONFLICT, "same-key"),
    "settlement-overlaps": (CONFLICT, "same-key"),
    **dict.fromkeys(("batch-not-open", "totals-differ", "nothing-in-batch"), (CONFLICT, "query-first")),
}

OURS: Mapping[str, tuple[int, Retryable, str]] = {
    "not-json": (400, "never", "The body is not well-formed JSON"),
    "wrong-type": (400, "never", "A value has the wrong type or is out of range"),
    "missing-field": (400, "never", "A field is missing"),
    "unknown-field": (400, "never", "A field is not known"),
    "quantity-not-text": (400, "never", "A quantity is a decimal in quotes, never a JSON number"),
    "parameter-invalid": (400, "never", "A parameter is missing or has the wrong form"),
    "cursor-invalid": (400, "never", "The cursor is none that this list gave"),
    "idempotency-key-missing": (400, "never", "The call needs an Idempotency-Key of 1 to 200 characters"),
    "code-missing": (400, "never", "A terminal says the payment code that the resident shows"),
    "unauthenticated": (401, "never", "The call needs a key in force: Authorization: Bearer cp_live_..."),
    "key-of-other-mode": (
        401,
        "never",
        "This key is a sandbox's (cp_test_) and the server is live, or it is live (cp_live_) and this is a sandbox",
    ),
    "signature-invalid": (401, "never", "The signature does not hold for this request"),
    "signature-expired": (401, "never", "The signature was made at another time than now: sign the call anew"),
    "signature-required": (403, "never", "This call is taken with a terminal's signature only"),
    "role-not-allowed": (403, "never", "A key of this role may not make this call"),
    "not-yours": (403, "never", "The key belongs to another source, merchant, terminal or buyer"),
    "not-found": (404, "never", "There is nothing at this address"),
    "method-not-allowed": (405, "never", "This address does not take this method"),
    "certificate-unknown": (404, "never", "No such certificate"),
    "county-unknown": (404, "never", "The resident never said in which county they live"),
    "event-unknown": (404, "never", "No such event"),
    "settlement-unknown": (404, "never", "No such settlement"),
    "batch-unknown": (404, "never", "The terminal has not come to that batch yet"),
    "settlement-without-file": (404, "never", "The settlement was closed by a program that made no files"),
    "methodology-unknown": (404, "never", "No such methodology"),
    "too-large": (413, "never", "The body is larger than this call takes"),
    "media-type-unsupported": (415, "never", "The body has another media type or encoding than this call takes"),
    "line-too-long": (422, "never", "A line is longer than 64 KiB"),
    "public-key-invalid": (422, "never", "The public key is none that a terminal may have"),
    "proof-invalid": (422, "never", "The proof is not a signature by the key that is shown"),
    "gzip-invalid": (400, "never", "The body is not a whole gzip stream"),
    "internal": (500, "same-key", "A mistake of ours; nothing is half done, and the same call may be sent again"),
    "position-not-reached": (503, "same-key", "The read models have not reached that position yet"),
    "overloaded": (503, "same-key", "More is waiting than would be answered soon"),
    "unavailable": (503, "same-key", "The journal cannot be written or read now"),
}


def problem(code: str, *, detail: str = "", facts: Mapping[str, object] | None = None, **more: Any) -> Problem:
    """The problem of a code of the catalogue."""
    if code in OURS:
        status, retryable, title = OURS[code]
    else:
        (status, retryable), title = STATUS[code], codes()[code].title
    plain = {name: _plain(value) for name, value in (facts or {}).items()}
    return Problem(f"/problems/{code}", title, status, code, retryable, detail, facts=plain, **more)


def _plain(value: Any) -> Any:
    """What JSON says of it: decimals and days as text."""
    return msgspec.to_builtins(value)


_KEYED = ("unauthenticated", "role-not-allowed")
_SENT = ("not-json", "wrong-type", "missing-field", "unknown-field", "too-large")


def documented(*more: str, public: bool = False, body: bool = False) -> dict[int, ResponseSpec]:
    """The problems that a call may answer with, for the API description, by status.

    `public`: it takes no key. `body`: it reads one, as JSON.
    """
    named: dict[int, list[str]] = {}
    for code in (*more, "parameter-invalid", "unavailable", *(() if public else _KEYED), *(_SENT if body else ())):
        status = OURS[code][0] if code in OURS else STATUS[code][0]
        named.setdefault(status, []).append(code)
    return {status: _documented(sorted(set(found))) for status, found in named.items()}


def _documented(found: list[str]) -> ResponseSpec:
    examples = [Example(summary=code, value=msgspec.to_builtins(problem(code))) for code in found]
    return ResponseSpec(
        Problem,
        description=", ".join(found),
        media_type=MEDIA_TYPE,
        generate_examples=False,
        examples=examples,
    )


# -- from exceptions -------------------------------------------------------------------------------------------------

_EXPECTED = re.compile(r"(?P<what>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
NOT_DECODED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # what msgspec raises of bytes that are no JSON


def of_validation(error: Exception) -> ApiError:
    """What is wrong with a body, by msgspec's sentence."""
    if not isinstance(error, msgspec.ValidationError):
        return ApiError("not-json", str(error))
    matched = _EXPECTED.fullmatch(str(error))
    what, path = (matched["what"], matched["path"] or "$") if matched else (str(error), "$")
    pointer = path.removeprefix("$").replace(".", "/").replace("[", "/").replace("]", "")
    if "unknown field" in what:
        code = "unknown-field"
    elif "missing required field" in what:
        code = "missing-field"
    elif pointer.endswith("/quantity") and "Expected `str`, got" in what:
        code = "quantity-not-text"
    elif "RFC3339" in what:
        code = "time-invalid"
    else:
        code = "wrong-type"
    return ApiError(code, what, [Detail(pointer or "/", what)])


_BY_STATUS = {
    400: "parameter-invalid",
    401: "unauthenticated",
    403: "role-not-allowed",
    404: "not-found",
    405: "method-not-allowed",
    413: "too-large",
    415: "media-type-unsupported",
}


def of_exception(error: Exception) -> Problem:
    """The problem that an exception is answered with. What is not expected is ours: 500, and logged."""
    match error:
        case Refusal():
            return problem(error.code, detail=str(error), facts=error.facts)
        case ApiError():
            return problem(error.code, detail=error.detail, errors=error.errors)
        case DecidedElsewhere():  # before the next: no fault of a database
            return problem("unavailable", detail=str(error))
        case Overloaded():
            return problem("overloaded", detail=str(error))
        case CursorInvalid():
            return problem("cursor-invalid")
        case Unavailable() | Unreachable() | SQLAlchemyError():
            log.error("unavailable: %s", error)
            return problem("unavailable")
        case ValidationException():
            return _of_parameters(error)
        case HTTPException():
            return problem(_BY_STATUS.get(error.status_code, "internal"), detail=error.detail)
        case _:
            log.error("unexpected", exc_info=error)
            return problem("internal")


def _of_parameters(error: ValidationException) -> Problem:
    """What is wrong with a call's parameters, by Litestar's list of them or, where one is missing, its sentence."""
    extra = cast(list[dict[str, Any]], error.extra if isinstance(error.extra, list) else [])
    errors = [Detail(str(e.get("key", "")), str(e.get("message", ""))) for e in extra]
    wrong = {e.pointer for e in errors}
    if "idempotency_key" in wrong or "'Idempotency-Key'" in error.detail:
        return problem("idempotency-key-missing", errors=errors)
    if wrong == {"data"}:  # whatever else is wrong with a body is found by reading it
        return problem("not-json", detail="the body is empty")
    return problem("parameter-invalid", detail="" if errors else error.detail, errors=errors)


def headers_of(problem: Problem) -> dict[str, str]:
    """What stands in the head of an answer that is a problem."""
    match problem.status:
        case 503:
            return {"Retry-After": str(RETRY_SECONDS)}
        case 429:
            return {"Retry-After": str(problem.facts.get("seconds", RETRY_SECONDS))}
        case 401:
            return {"WWW-Authenticate": "Bearer"}
        case _:
            return {}


def answer(request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    """The exception handler of the whole API."""
    found = of_exception(error)
    headers = headers_of(found)
    if isinstance(error, HTTPException) and error.headers:
        headers |= {name: value for name, value in error.headers.items() if name.lower() == "allow"}
    scope: Any = request.scope
    told = msgspec.structs.replace(found, request_id=scope.get("request_id", ""))
    return Response(told, status_code=found.status, media_type=MEDIA_TYPE, headers=headers)
