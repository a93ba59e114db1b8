"""A settlement as a file: one JSON document and one CSV table, the same bytes whenever they are made.

Both follow from the log alone: from the rows between two vectors of positions, and from what the settlement says of
itself. audit/FORMAT.md, section 10, describes them; the verifier writes its own and compares digests.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime

import msgspec
from msgspec import Struct

from carbon_points.domain.order import Tally, Totals
from carbon_points.domain.quantity import CHINA, civil_day
from carbon_points.projections.merchants import Kind, Row, totals_of

SCHEMA = "carbon-points-settlement/1"
CURRENCY = "CNY"
BOM = b"\xef\xbb\xbf"
FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")  # a spreadsheet reckons with these
COLUMNS = (
    "类型 kind",
    "时间 time",
    "终端 terminal",
    "批次 batch",
    "核销单号 redemption",
    "退款单号 refund",
    "积分 points",
    "金额(分) fen",
    "日志分区 partition",
    "日志位置 position",
    "离线受理时间 captured_offline_at",
)
KINDS: Mapping[Kind, str] = {"sale": "销售 sale", "refund": "退款 refund", "reversal": "冲正 reversal"}


class Head(Struct, frozen=True):
    """What a settlement says of itself. `roots` are Merkle roots in hex, of each partition as far as `through`."""

    merchant: str
    name: str
    settlement_id: str
    day: date | None
    after: Mapping[str, int]
    through: Mapping[str, int]
    roots: Mapping[str, str]


class Files(Struct, frozen=True):
    json: bytes
    csv: bytes
    totals: Totals


def files(head: Head, rows: Sequence[Row]) -> Files:
    """Both, with `rows` in the order in which they were recorded."""
    totals = totals_of(rows)
    carried = totals_of(r for r in rows if civil_day(r.recorded_at) < head.day) if head.day else None
    return Files(_json(head, rows, totals, carried), _csv(head, rows, totals, carried), totals)


def _json(head: Head, rows: Sequence[Row], totals: Totals, carried: Totals | None) -> bytes:
    told = {
        "schema": SCHEMA,
        "currency": CURRENCY,
        **msgspec.structs.asdict(head),
        "totals": totals,
        "carried": carried,
        "points": totals.points,
        "amount_fen": totals.fen,
        "rows": [msgspec.structs.asdict(row) | _times(row) for row in rows],
    }
    return msgspec.json.encode(told, order="sorted") + b"\n"


def _csv(head: Head, rows: Sequence[Row], totals: Totals, carried: Totals | None) -> bytes:
    written = io.StringIO()
    lines = csv.writer(written, lineterminator="\r\n")
    lines.writerows(_headed(head))
    lines.writerow(COLUMNS)
    lines.writerows(_line(row) for row in rows)
    lines.writerows(_summed(totals, carried))
    return BOM + written.getvalue().encode()


def _headed(head: Head) -> Iterator[Sequence[object]]:
    yield "#格式 schema", SCHEMA
    yield "#商户 merchant", plain(head.merchant)
    yield "#商户名称 name", plain(head.name)
    yield "#结算单 settlement", plain(head.settlement_id)
    yield "#结算日 day", head.day.isoformat() if head.day else ""
    yield "#币种 currency", CURRENCY
    yield "#日志起点 after", _vector(head.after)
    yield "#日志终点 through", _vector(head.through)
    for partition, root in sorted(head.roots.items(), key=lambda pair: int(pair[0])):
        yield f"#日志根 root {partition}", root


def _line(row: Row) -> Sequence[object]:
    return (
        KINDS[row.kind],
        _time(row.recorded_at),
        plain(row.terminal),
        row.batch,
        plain(row.redemption_id),
        plain(row.refund_id or ""),
        row.points,
        row.amount_fen,
        row.partition,
        row.position,
        _times(row)["captured_offline_at"],
    )


def _summed(totals: Totals, carried: Totals | None) -> Iterator[Sequence[object]]:
    yield "#合计 totals", "笔数 count", "积分 points", "金额(分) fen"
    yield from _tallies("", totals)
    if carried:
        yield from _tallies("其中前日结转 carried ", carried)
    yield "#应付 payable", "", totals.points, totals.fen


def _tallies(prefix: str, totals: Totals) -> Iterator[Sequence[object]]:
    named: Iterable[tuple[Kind, Tally]] = (
        ("sale", totals.sales),
        ("refund", totals.refunds),
        ("reversal", totals.reversals),
    )
    for kind, tally in named:
        yield f"#{prefix}{KINDS[kind]}", tally.count, tally.points, tally.fen


def plain(text: str) -> str:
    """The text of a cell, so that no spreadsheet takes it for a formula."""
    return f"'{text}" if text.startswith(FORMULA) else text


def _vector(positions: Mapping[str, int]) -> str:
    return " ".join(f"{p}:{n}" for p, n in sorted(positions.items(), key=lambda pair: int(pair[0])))


def _times(row: Row) -> dict[str, str | None]:
    taken = row.captured_offline_at
    return {"recorded_at": _time(row.recorded_at), "captured_offline_at": _time(taken) if taken else None}


def _time(at: datetime) -> str:
    return at.astimezone(CHINA).isoformat(timespec="microseconds")
