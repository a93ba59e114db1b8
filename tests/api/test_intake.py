"""Reports of a batch are read a quicker way than one alone: both must find the same."""

from typing import Any

import msgspec
import pytest

from carbon_points.api.intake import Report, _read, report_of
from carbon_points.api.problems import ApiError
from carbon_points.domain.methodology import Methodologies
from carbon_points.domain.source import Source, Sources
from carbon_points.journal.journal import Rules

RULES = Rules(Methodologies(), Sources({"szt": Source("szt", "szt", ("bus",), True, None, None)}))
GOOD = {"source": "szt", "record_id": "r1", "resident": "公交卡 1", "behaviour": "bus", "quantity": "1", "unit": "trip"}
GOOD |= {"occurred_at": "2026-11-20T08:00:00+08:00"}
SAID: list[dict[str, Any]] = [
    {},
    {"county": "330523"},
    {"county": "33052x"},
    {"occurred_at": "2026-11-20T08:00:00Z"},
    {"occurred_at": "yesterday"},
    {"source": "hz"},
    {"source": "a name that none can have"},
    {"source": ""},
    {"record_id": ""},
    {"record_id": "r" * 128},
    {"record_id": "r" * 129},
    {"record_id": "r\x00"},
    {"record_id": "r\n"},
    {"resident": "c\x7f"},
    {"resident": "a\\b"},
    {"behaviour": "b" * 129},
    {"unit": "\u2028"},
    {"quantity": "1" * 401},
    {"quantity": 1},
    {"note": "?"},
]
RAW = [
    b"",
    b"{",
    b"[]",
    b"\xff",
    msgspec.json.encode({}),
    msgspec.json.encode(GOOD) + b"\r",
    b"\t" + msgspec.json.encode(GOOD),
]
RAW += [
    msgspec.json.encode(GOOD).replace(b"r1", odd) for odd in (b"\x01", b"\x7f", b"\\u0007", b"\\n", b"\\u0041", b"\xc3")
]


def found(read: Any, *arguments: Any) -> object:
    try:
        report: Report = read(*arguments)
    except ApiError as error:
        return error.code, error.detail
    return {name: getattr(report, name) for name in Report.__struct_fields__}


@pytest.mark.parametrize("line", [*(msgspec.json.encode(GOOD | said) for said in SAID), *RAW])
def test_a_line_of_a_batch_is_read_as_a_report_alone_is(line: bytes) -> None:
    assert found(_read, line, RULES, None) == found(report_of, line)
