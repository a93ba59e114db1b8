"""The two files of a settlement, written from FORMAT.md and nothing else: digests of what the log comes to.

Whoever closes settlements has a writer of its own. Neither knows the other.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta, timezone
from typing import Any

import msgspec
from msgspec import Struct, structs

from carbon_points.audit.replay.days import china_day

CHINA = timezone(timedelta(hours=8))
NAMES = {"sale": "销售 sale", "refund": "退款 refund", "reversal": "冲正 reversal"}
HEADINGS = (
    "类型 kind,时间 time,终端 terminal,批次 batch,核销单号 redemption,退款单号 refund,"
    "积分 points,金额(分) fen,日志分区 partition,日志位置 position,离线受理时间 captured_offline_at"
)
SUMS = {"sale": "sales", "refund": "refunds", "reversal": "reversals"}


class Line(Struct, frozen=True, array_like=True):
    """One capture or refund that a settlement covers. `nth`: a refund's number among those of its redemption."""

    nth: int
    recorded_at: datetime
    partition: int
    position: int
    kind: str
    terminal: str
    batch: int | None
    redemption_id: str
    refund_id: str | None
    points: int
    amount_fen: int
    captured_offline_at: datetime | None = None

    def in_batch(self, moves: Iterable[tuple[int, int]]) -> "Line":
        """The same in the batch of the move that counted it: of these, each with its batch and how many it counted."""
        counted = 0
        for batch, count in moves:
            counted += count
            if counted >= self.nth:
                return structs.replace(self, batch=batch)
        return self

    def taken(self, offline: datetime | None) -> "Line":
        """The same, taken offline at that time if it is a sale."""
        return structs.replace(self, captured_offline_at=offline) if self.kind == "sale" else self


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Line).decode


class Heading(Struct, frozen=True):
    merchant: str
    name: str
    settlement_id: str
    day: date | None
    after: dict[str, int]
    through: dict[str, int]
    roots: dict[str, str]


def sums(lines: Iterable[Line]) -> dict[str, dict[str, int]]:
    """Counts and sums by kind, as they stand in the file."""
    found = {plural: {"count": 0, "points": 0, "fen": 0} for plural in SUMS.values()}
    for line in lines:
        of_kind = found[SUMS[line.kind]]
        of_kind["count"] += 1
        of_kind["points"] += line.points
        of_kind["fen"] += line.amount_fen
    return found


def net(totals: dict[str, dict[str, int]], what: str) -> int:
    return totals["sales"][what] - totals["refunds"][what] - totals["reversals"][what]


def digests(heading: Heading, lines: Sequence[Line]) -> tuple[str, str]:
    """SHA-256 of the JSON and of the CSV file, in hex; `lines` in their order."""
    carried = None
    if heading.day is not None:
        carried = sums(line for line in lines if china_day(line.recorded_at) < heading.day)
    totals = sums(lines)
    as_json, as_csv = _json(heading, lines, totals, carried), _csv(heading, lines, totals, carried)
    return hashlib.sha256(as_json).hexdigest(), hashlib.sha256(as_csv).hexdigest()


def _json(heading: Heading, lines: Sequence[Line], totals: Any, carried: Any) -> bytes:
    told = {
        "schema": "carbon-points-settlement/1",
        "currency": "CNY",
        "merchant": heading.merchant,
        "name": heading.name,
        "settlement_id": heading.settlement_id,
        "day": heading.day.isoformat() if heading.day else None,
        "after": heading.after,
        "through": heading.through,
        "roots": heading.roots,
        "totals": totals,
        "carried": carried,
        "points": net(totals, "points"),
        "amount_fen": net(totals, "fen"),
        "rows": [
            {name: getattr(line, name) for name in Line.__struct_fields__[1:]}
            | {"recorded_at": _time(line.recorded_at), "captured_offline_at": _offline(line)}
            for line in lines
        ],
    }
    return json.dumps(told, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def _csv(heading: Heading, lines: Sequence[Line], totals: Any, carried: Any) -> bytes:
    told = [
        ["#格式 schema", "carbon-points-settlement/1"],
        ["#商户 merchant", _guarded(heading.merchant)],
        ["#商户名称 name", _guarded(heading.name)],
        ["#结算单 settlement", _guarded(heading.settlement_id)],
        ["#结算日 day", str(heading.day or "")],
        ["#币种 currency", "CNY"],
        ["#日志起点 after", _positions(heading.after)],
        ["#日志终点 through", _positions(heading.through)],
        *([f"#日志根 root {partition}", heading.roots[partition]] for partition in sorted(heading.roots, key=int)),
        HEADINGS.split(","),
        *map(_cells, lines),
        ["#合计 totals", "笔数 count", "积分 points", "金额(分) fen"],
        *_summed("", totals),
        *(_summed("其中前日结转 carried ", carried) if carried is not None else ()),
        ["#应付 payable", "", str(net(totals, "points")), str(net(totals, "fen"))],
    ]
    return b"\xef\xbb\xbf" + "".join(",".join(map(_quoted, cells)) + "\r\n" for cells in told).encode()


def _cells(line: Line) -> list[str]:
    return [
        NAMES[line.kind],
        _time(line.recorded_at),
        _guarded(line.terminal),
        "" if line.batch is None else str(line.batch),
        _guarded(line.redemption_id),
        _guarded(line.refund_id or ""),
        str(line.points),
        str(line.amount_fen),
        str(line.partition),
        str(line.position),
        _offline(line) or "",
    ]


def _summed(prefix: str, totals: dict[str, dict[str, int]]) -> list[list[str]]:
    return [
        [f"#{prefix}{NAMES[kind]}", *(str(totals[plural][what]) for what in ("count", "points", "fen"))]
        for kind, plural in SUMS.items()
    ]


def _guarded(text: str) -> str:
    return "'" + text if text[:1] in set("=+-@\t\r＝＋－＠") else text


def _quoted(cell: str) -> str:
    if any(mark in cell for mark in ',"\r\n'):
        return '"' + cell.replace('"', '""') + '"'
    return cell


def _positions(vector: dict[str, int]) -> str:
    return " ".join(f"{partition}:{vector[partition]}" for partition in sorted(vector, key=int))


def _offline(line: Line) -> str | None:
    return _time(line.captured_offline_at) if line.captured_offline_at else None


def _time(at: datetime) -> str:
    return at.astimezone(CHINA).isoformat(timespec="microseconds")
