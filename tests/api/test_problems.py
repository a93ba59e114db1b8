"""Errors on the wire: every refusal of the domain has its row, and every row its refusal."""

import pkgutil
from importlib import import_module

import pytest
from litestar.exceptions import ClientException, InternalServerException, NotFoundException, TooManyRequestsException
from sqlalchemy.exc import OperationalError

import carbon_points
from carbon_points.api.problems import OURS, STATUS, ApiError, documented, of_exception, problem
from carbon_points.domain.refusal import Refusal, codes
from carbon_points.journal.partition import Unavailable
from carbon_points.journal.recorder import Unreachable
from carbon_points.journal.waiting import Overloaded
from carbon_points.projections.rows import CursorInvalid


@pytest.fixture(autouse=True, scope="module")
def everything() -> None:
    """All modules are imported, so that all refusals are declared."""
    for module in pkgutil.walk_packages(carbon_points.__path__, "carbon_points."):
        if not module.name.endswith("__main__"):
            import_module(module.name)


def test_every_refusal_has_a_status() -> None:
    for code, refusal in codes().items():
        assert code in STATUS, (
            f"{refusal.__module__}.{refusal.__name__} may be raised, and HTTP does not know {code!r}: "
            "give it a row in STATUS of carbon_points/api/problems.py, with its status and whether to send again"
        )


def test_every_row_is_a_refusal_that_exists() -> None:
    for code in STATUS:
        assert code in codes(), (
            f"no Refusal has the code {code!r}: take its row out of STATUS of carbon_points/api/problems.py, "
            "or put it into OURS if the API raises it itself"
        )


def test_no_code_is_told_twice() -> None:
    declared = [kind.code for kind in _kinds(Refusal)]
    assert len(declared) == len(set(declared)), "two refusals share a code: callers cannot tell them apart"
    assert not set(STATUS) & set(OURS), "a code of the domain stands in OURS, too: its title would hide the domain's"


def _kinds(kind: type[Refusal]) -> list[type[Refusal]]:
    return [each for sub in kind.__subclasses__() for each in (sub, *_kinds(sub))]


@pytest.mark.parametrize("code", sorted({*STATUS, *OURS}))
def test_each_code_makes_a_problem(code: str) -> None:
    told = problem(code)
    assert (told.code, told.type) == (code, f"/problems/{code}")
    assert 400 <= told.status < 600
    assert told.title[0].isupper()
    assert code == code.lower().replace("_", "-").replace(" ", "-")


def test_only_what_may_be_answered_otherwise_later_is_worth_sending_again() -> None:
    for code, (status, again, *_) in {**STATUS, **OURS}.items():
        if status in {400, 401, 403, 404, 405, 413, 415, 422}:
            assert again == "never", code
        if status >= 500:
            assert again == "same-key", code


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ApiError("not-found"), 404, "not-found"),
        (CursorInvalid("x"), 400, "cursor-invalid"),
        (Overloaded("x"), 503, "overloaded"),
        (Unavailable("x"), 503, "unavailable"),
        (Unreachable("x"), 503, "unavailable"),
        (OperationalError("select secret", {}, Exception("password=hunter2")), 503, "unavailable"),
        (NotFoundException(), 404, "not-found"),
        (ClientException(), 400, "parameter-invalid"),
        (TooManyRequestsException(), 500, "internal"),
        (InternalServerException("at line 17"), 500, "internal"),
        (ZeroDivisionError("hunter2"), 500, "internal"),
    ],
)
def test_whatever_is_raised_is_a_problem_and_tells_no_secret(error: Exception, status: int, code: str) -> None:
    told = of_exception(error)
    assert (told.status, told.code) == (status, code)
    assert "hunter2" not in str(told)
    assert "select" not in str(told)


def test_what_is_documented_is_what_a_call_can_meet() -> None:
    told = documented("account-unknown", body=True)
    assert set(told) == {400, 401, 403, 404, 413, 503}
    assert "unknown-field" in told[400].description
    assert set(documented(public=True)) == {400, 503}
