"""The command-line terminal: parse, call, show. With `--json`, the last line of each command is one JSON object.

Exit codes: 0 done as asked, 1 declined, refused or not agreed, 2 called wrongly, 3 no terminal, key or journal to work
with, 4 not known yet: it goes on by itself, with the next command or with `run`.
"""

# The decorators of rich_click are not typed to the end:
# pyright: reportUnknownMemberType=false

import os
import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any, cast

import msgspec
import rich_click as click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from carbon_points_terminal.call import HOLD_SECONDS, Call, Close, Offline, Sale
from carbon_points_terminal.enrolment import EnrolmentFailed, Folder, NotEnrolled, Settings
from carbon_points_terminal.files import KeyUnusable
from carbon_points_terminal.ids import SteadyClock, new_nonce, new_reference, wall_clock
from carbon_points_terminal.journal import Journal, JournalError
from carbon_points_terminal.over_http import OverHttp
from carbon_points_terminal.signing import Signer
from carbon_points_terminal.terminal import NotNow, Terminal, differences
from carbon_points_terminal.wire import Refused, Silence

FOLDER = "CARBON_TERMINAL_DIR"
BEARER = "CARBON_TERMINAL_KEY"
REST = 5.0  # seconds at most that `run` sleeps, so that it finds what another command has begun
PREPARE_EVERY = 3600.0  # seconds after which `run` fetches what is needed for a time without a network
DONE, NO, UNUSABLE, OPEN = 0, 1, 3, 4
console = Console(stderr=True)
as_json = click.option("--json", "plain", is_flag=True, help="One JSON object on the last line.")
Show = Callable[[Any], None]

# What a cashier reads: whether there is a sale, in words that leave no doubt.
WORDS = {
    "approved": "[bold green]APPROVED[/] 成功",
    "declined": "[bold red]DECLINED[/] 未成功",
    "reversed": "[bold red]REVERSED[/] 已撤销",
    "not-sent": "[bold red]NOT SENT[/] 未发送",
    "SENT": "[bold yellow]WAIT[/] 处理中",
    "UNKNOWN": "[bold yellow]WAIT[/] 结果未知，正在查询",
    "STORED": "[bold green]STORED[/] 已离线受理，联网后上传",
    "REVERSING": "[bold red]NO SALE[/] 正在撤销，请勿交付商品；可接待下一位顾客",
}

# Why there is none, by the platform's code. Other codes stand for themselves.
WHY = {
    "insufficient-points": "积分不足",
    "account-frozen": "居民账户已冻结",
    "not-agreed": "居民没有同意",
    "not-agreed-in-time": "居民没有及时同意",
    "hold-abandoned": "这一笔没有完成，没有扣积分",
    "code-used": "付款码已用过",
    "code-expired": "付款码已过期",
    "code-unknown": "付款码无效",
    "code-malformed": "付款码不正确",
    "rate-limited": "试得太频繁，请稍候",
    "offer-sold-out": "商品已兑完",
    "offer-not-open": "商品不在兑换时间内",
    "offer-limit-reached": "居民已达兑换上限",
    "offer-day-limit-reached": "今天的份数已兑完",
    "campaign-spent": "活动预算已用完",
}


def main() -> None:
    """The program."""
    try:
        cli(standalone_mode=True)
    except NotNow as error:
        sys.exit(_failed(error, error.code, OPEN if error.code == "unresolved-first" else NO))
    except EnrolmentFailed as error:
        sys.exit(_failed(error, error.code, OPEN if error.code == "unanswered" else NO))
    except (JournalError, KeyUnusable, NotEnrolled) as error:
        sys.exit(_failed(error, error.code, UNUSABLE))
    except (OSError, ValueError) as error:
        sys.exit(_failed(error, "unusable", UNUSABLE))


def _failed(error: Exception, code: str, status: int) -> int:
    console.print(f"[red]{code}[/]: {escape(str(error))}", highlight=False)
    if "--json" in sys.argv:
        _say({"error": code, "detail": str(error)})
    return status


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    envvar=FOLDER,
    default=Path.home() / ".carbon-points-terminal",
    help=f"The terminal's own folder. Default: {FOLDER}, or .carbon-points-terminal at home.",
)
@click.pass_context
def cli(context: click.Context, folder: Path) -> None:
    """A terminal (终端) that spends residents' points at a merchant's till.

    Whatever happens to the network or the power, each call comes to one end, and is told.
    """
    context.obj = Folder(folder)


@contextmanager
def opened(folder: Folder) -> Generator[Terminal]:
    """The terminal of a folder. What an earlier command left open is open again."""
    settings = folder.settings()
    with ExitStack() as stack:
        transport = stack.enter_context(OverHttp(settings.url, _caller(folder, settings)))
        journal: Journal = stack.enter_context(folder.journal(settings))
        yield Terminal(journal, transport, SteadyClock(), new_reference, sleep)


def _caller(folder: Folder, settings: Settings) -> Signer | str:
    key = folder.caller(settings)
    return key if isinstance(key, str) else Signer(key, settings.key_id, wall_clock, new_nonce)


# -- showing ---------------------------------------------------------------------------------------------------------


def _say(told: Any) -> None:
    sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
    sys.stdout.flush()


def facts_of(call: Call) -> dict[str, Any]:
    """A call for a program."""
    outcome = call.outcome
    told: dict[str, Any] = {
        "reference": call.reference,
        "stan": f"{call.stan:06}",
        "kind": _kind(call),
        "state": call.state,
        "exception": call.exception,
        "redemption_id": call.redemption_id or (outcome.redemption_id if outcome else ""),
        "last": call.last,
    }
    if outcome:
        told |= {"result": outcome.result, "code": outcome.code, "status": outcome.status}
        told |= {"points": outcome.points, "amount_fen": outcome.fen}
    return told


def _kind(call: Call) -> str:
    if isinstance(call.ask, Sale):
        return "pay" if call.ask.capture else "authorise"
    return type(call.ask).__name__.lower()


def _line(call: Call) -> str:
    outcome = call.outcome
    parts = [WORDS[outcome.result if outcome else call.state]]
    if isinstance(call.ask, Offline) and not outcome:
        parts.append(f"{call.ask.points} points (积分)")
    if outcome and outcome.result == "approved" and outcome.points:
        parts.append(f"{outcome.points} points (积分), {outcome.fen / 100:.2f} yuan")
    if outcome and outcome.code:
        parts.append(escape(f"{outcome.code} {WHY.get(outcome.code, '')}".rstrip()))
    if call.exception:
        parts.append("[bold]exception (异常单)[/]: tell whoever runs this terminal")
    return " · ".join([*parts, f"{_kind(call)} {call.stan:06} {call.reference}"])


def _show(call: Call, plain: bool) -> None:
    if plain:
        _say(facts_of(call))
    else:
        Console().print(_line(call), highlight=False, soft_wrap=True)


def _end(terminal: Terminal, call: Call, plain: bool, wanted: str = "approved") -> None:
    """Show what became of it; then, with nobody waiting, try once what else is due. Exits by the outcome."""
    _show(call, plain)
    terminal.catch_up()
    sys.exit(OPEN if call.outcome is None else DONE if call.outcome.result == wanted else NO)


# -- becoming a terminal -----------------------------------------------------------------------------------------------


@cli.command()
@click.option("--url", required=True, help="Where the platform is: https://…")
@click.option("--merchant", help="With a bearer key only: whose terminal this is.")
@click.option("--terminal", "name", help="With a bearer key only: which one.")
@click.option(
    "--again", is_flag=True, help="This folder's terminal anew, with its journal: its key was lost, or ended."
)
@as_json
@click.pass_obj
def activate(folder: Folder, url: str, merchant: str | None, name: str | None, again: bool, plain: bool) -> None:
    """Become a terminal (激活), by the one-time code that the operator has shown.

    The code is asked for, or read from standard input: what stands in a command line is seen by others. With
    --merchant and --terminal, a bearer key is taken instead, from CARBON_TERMINAL_KEY or standard input.
    """
    if not url.startswith(("https://", "http://")):
        raise click.UsageError("--url begins with https:// (or http://, on a machine of your own)")
    if bool(merchant) != bool(name):
        raise click.UsageError("--merchant and --terminal go together, and with a bearer key")
    if merchant and name:
        settings = Settings(url, merchant, name)
        folder.use_bearer(settings, os.environ.get(BEARER) or _secret("Bearer key"), again=again)
    else:
        with OverHttp(url, None) as transport:
            settings = folder.activate(url, _secret("Activation code (激活码)"), transport, again=again)
    _told_settings(settings, plain)


@cli.command()
@as_json
@click.pass_obj
def rotate(folder: Folder, plain: bool) -> None:
    """Change this terminal's key for a new one (更换密钥)."""
    settings = folder.settings()
    with OverHttp(settings.url, _caller(folder, settings)) as transport:
        _told_settings(folder.rotate(transport), plain)


def _told_settings(settings: Settings, plain: bool) -> None:
    if plain:
        _say(settings)
    else:
        name = f"{settings.merchant}/{settings.terminal}"
        Console().print(f"[green]this is terminal[/] {name} [dim]{settings.key_id or 'bearer key'}[/]", highlight=False)


def _secret(what: str) -> str:
    found = click.prompt(what, hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline()
    if not found.strip():
        raise click.UsageError(f"{what} is empty")
    return found.strip()


# -- sales -----------------------------------------------------------------------------------------------------------

_code = click.option("--code", default="", help="The payment code (付款码) that was scanned. Asked for if not given.")
_resident = click.option("--resident", default="", help="The resident's pseudonym, where an app's key is used.")
_offer = click.option("--offer", default="", help="An offer (优惠) of this merchant instead of points; see `offers`.")
_items = click.option("--items", default=1, type=click.IntRange(1), help="How many of the offer.")
_points = click.argument("points", type=click.IntRange(1))
_reference = click.argument("reference")


def _sell(folder: Folder, sale: Sale, plain: bool) -> None:
    """What stands open comes first; its outcome is shown too, for somebody may still wait for it."""
    if not sale.code and not sale.resident:
        sale = msgspec.structs.replace(sale, code=_secret("Payment code (付款码)"))
    with opened(folder) as terminal:
        for call in terminal.unresolved():
            if call.blocking:
                earlier = terminal.settle(call.reference)
                console.print(f"[dim]earlier[/] {_line(earlier)}", highlight=False, soft_wrap=True)
        _end(terminal, terminal.settle(terminal.begin(sale).reference), plain)


@cli.command()
@_points
@_code
@_resident
@_offer
@_items
@as_json
@click.pass_obj
def pay(folder: Folder, points: int, code: str, resident: str, offer: str, items: int, plain: bool) -> None:
    """Spend POINTS of whoever shows the code (支付)."""
    _sell(folder, Sale(points, code, resident, offer=offer, items=items), plain)


@cli.command()
@_points
@_code
@_resident
@_offer
@_items
@click.option("--hold-seconds", default=HOLD_SECONDS, type=click.IntRange(1, 7 * 86400))
@as_json
@click.pass_obj
def authorise(
    folder: Folder, points: int, code: str, resident: str, offer: str, items: int, hold_seconds: int, plain: bool
) -> None:
    """Set POINTS aside (冻结), to be captured or voided."""
    _sell(folder, Sale(points, code, resident, False, hold_seconds, offer, items), plain)


@cli.command()
@_reference
@_points
@as_json
@click.pass_obj
def capture(folder: Folder, reference: str, points: int, plain: bool) -> None:
    """Spend POINTS of what the sale REFERENCE holds (扣款); the rest goes back."""
    with opened(folder) as terminal:
        _end(terminal, terminal.capture(reference, points), plain)


@cli.command()
@_reference
@as_json
@click.pass_obj
def void(folder: Folder, reference: str, plain: bool) -> None:
    """Let go what the sale REFERENCE holds (解冻)."""
    with opened(folder) as terminal:
        _end(terminal, terminal.void(reference), plain)


@cli.command()
@_reference
@_points
@as_json
@click.pass_obj
def refund(folder: Folder, reference: str, points: int, plain: bool) -> None:
    """Give back POINTS of the sale REFERENCE (退款)."""
    with opened(folder) as terminal:
        _end(terminal, terminal.refund(reference, points), plain)


@cli.command()
@_reference
@as_json
@click.pass_obj
def reverse(folder: Folder, reference: str, plain: bool) -> None:
    """Undo the sale REFERENCE (撤销), whatever became of it, while its batch is open."""
    with opened(folder) as terminal:
        _end(terminal, terminal.cancel(reference), plain, "reversed")


@cli.command()
@_reference
@as_json
@click.pass_obj
def query(folder: Folder, reference: str, plain: bool) -> None:
    """How the platform shows the sale REFERENCE now (查询). Changes nothing."""
    with opened(folder) as terminal:
        _answered(terminal.query(reference), plain)


@cli.command()
@as_json
@click.pass_obj
def offers(folder: Folder, plain: bool) -> None:
    """What can be had here (优惠)."""
    with opened(folder) as terminal:
        _answered(terminal.offers(), plain)


def _answered(said: Any, plain: bool) -> None:
    match said:
        case Silence(reason=reason):
            _say({"error": "unanswered", "detail": reason}) if plain else console.print(escape(reason))
            sys.exit(OPEN)
        case Refused(problem=problem):
            told = {"error": problem.code, "detail": problem.detail}
            _say(told) if plain else console.print(f"[red]{problem.code}[/] {escape(problem.detail)}")
            sys.exit(NO)
        case _:
            _say(said if not isinstance(said, list) else {"data": cast("list[Any]", said)})


@cli.command()
@as_json
@click.pass_obj
def unresolved(folder: Folder, plain: bool) -> None:
    """Every call whose outcome is open (未决交易), and the exceptions among them (异常单)."""
    with folder.journal(folder.settings()) as journal:
        found = journal.unresolved()
    if plain:
        _say({"data": [facts_of(call) for call in found]})
    for call in [] if plain else found:
        Console().print(_line(call), highlight=False, soft_wrap=True)


# -- without a network -------------------------------------------------------------------------------------------------


@cli.group()
def offline() -> None:
    """Without a network (离线): take payments by allowances, at the merchant's risk, and send them later."""


@offline.command("prepare")
@as_json
@click.pass_obj
def prepare_offline(folder: Folder, plain: bool) -> None:
    """Fetch the merchant's terms and the keys by which allowances are checked. `run` does it every hour."""
    with opened(folder) as terminal:
        _answered(terminal.prepare(), plain)


@offline.command("pay")
@_points
@click.option("--allowance", default="", help="The allowance (离线额度码) that was scanned. Asked for if not given.")
@as_json
@click.pass_obj
def pay_offline(folder: Folder, points: int, allowance: str, plain: bool) -> None:
    """Take POINTS (离线支付) by an allowance. It can be undone by nobody until it is sent."""
    allowance = allowance or _secret("Allowance (离线额度码)")
    with opened(folder) as terminal:
        for call in terminal.unresolved():
            if call.blocking and isinstance(call.ask, Sale):
                console.print(f"[dim]earlier[/] {_line(terminal.settle(call.reference))}", highlight=False)
        _show(terminal.pay_offline(allowance, points), plain)


@offline.command("list")
@as_json
@click.pass_obj
def list_offline(folder: Folder, plain: bool) -> None:
    """Everything that was taken offline, with the platform's verdict. What it declined, the merchant has lost."""
    with folder.journal(folder.settings()) as journal:
        _list_offline(journal.offline(), plain)


@offline.command("forward")
@as_json
@click.pass_obj
def forward_offline(folder: Folder, plain: bool) -> None:
    """Send what was taken offline (上传), each payment by itself; then fetch terms and keys anew."""
    with opened(folder) as terminal:
        tried = terminal.forward()
        left = terminal.stored()
        if not left:
            terminal.prepare()
    _list_offline(tried, plain)
    declined = any(call.outcome and call.outcome.result == "declined" for call in tried)
    sys.exit(OPEN if left else NO if declined else DONE)


def _list_offline(found: list[Call], plain: bool) -> None:
    sums = {name: [0, 0] for name in ("stored", "approved", "declined")}
    for call in found:
        assert isinstance(call.ask, Offline), "nothing else is taken offline"
        total = sums[call.outcome.result if call.outcome else "stored"]
        total[:] = total[0] + 1, total[1] + call.ask.points
    if plain:
        told = {name: {"count": count, "points": points} for name, (count, points) in sums.items()}
        _say(told | {"data": [facts_of(call) for call in found]})
        return
    for call in found:
        Console().print(_line(call), highlight=False, soft_wrap=True)
    for (count, points), words in zip(
        sums.values(), ("waiting 待上传", "approved 成功", "lost 损失（被拒绝）"), strict=True
    ):
        Console().print(f"{words}: {count}, {points} points (积分)", highlight=False)


# -- batches ---------------------------------------------------------------------------------------------------------


@cli.group()
def batch() -> None:
    """The batch of sales (批次): show it, close it."""


@batch.command("show")
@click.option("--number", type=click.IntRange(1), help="Default: the open one.")
@as_json
@click.pass_obj
def show_batch(folder: Folder, number: int | None, plain: bool) -> None:
    """What this terminal counts in a batch."""
    settings = folder.settings()
    with folder.journal(settings) as journal:
        of = number or journal.batch
        totals, lines, waiting = journal.totals(of), journal.lines(of), journal.unresolved()
    if plain:
        open_ = [facts_of(call) for call in waiting]
        _say({"batch": of, "totals": totals, "lines": lines, "unresolved": open_})
        return
    table = Table("", "count 笔数", "points 积分", "yuan 元", title=f"batch (批次) {of}", title_justify="left")
    for name, label in (("sales", "sales 消费"), ("refunds", "refunds 退款"), ("reversals", "reversals 撤销")):
        found = getattr(totals, name)
        table.add_row(label, str(found.count), str(found.points), f"{found.fen / 100:.2f}")
    Console().print(table)
    for call in waiting:
        Console().print(_line(call), highlight=False, soft_wrap=True)


@batch.command("close")
@click.option("--take-theirs", is_flag=True, help="Take the platform's totals for right, after they were compared.")
@as_json
@click.pass_obj
def close_batch(folder: Folder, take_theirs: bool, plain: bool) -> None:
    """Close the open batch (结账), if the platform comes to the same totals; else show the lines that differ."""
    with opened(folder) as terminal:
        terminal.resolve()
        call = terminal.close_batch()
        closed = call.outcome.closed if call.outcome else None
        if take_theirs and closed and closed.answer == "not-agreed":
            call = terminal.close_batch(closed.totals)
        _end_of_close(terminal, call, plain)


def _end_of_close(terminal: Terminal, call: Call, plain: bool) -> None:
    assert isinstance(call.ask, Close)
    closed = call.outcome.closed if call.outcome else None
    answer = closed.answer if closed else call.outcome.code if call.outcome else call.state
    here, there = terminal.journal.totals(call.ask.batch), closed.totals if closed else None
    differing = (
        differences(terminal.journal.lines(call.ask.batch), closed.lines) if answer == "not-agreed" and closed else []
    )
    exceptions = [facts_of(one) for one in terminal.unresolved() if one.exception]
    told = {
        "answer": answer,
        "batch": call.ask.batch,
        "next_batch": terminal.journal.batch,
        "here": here,
        "there": there,
    }
    if plain:
        _say(told | {"differences": differing, "exceptions": exceptions})
    else:
        words = {"agreed": "[bold green]AGREED[/] 账平", "not-agreed": "[bold red]NOT AGREED[/] 账不平"}
        later = "[bold yellow]CANNOT CONFIRM[/] 暂不能确认，请稍后再结账"
        Console().print(f"{words.get(answer, later)} · batch (批次) {call.ask.batch}", highlight=False)
        table = Table("only here 本机", "only there 平台", title="lines that differ (差异)", title_justify="left")
        for one in differing:
            table.add_row(*(str(msgspec.to_builtins(side)) if side else "" for side in (one.here, one.there)))
        if differing:
            Console().print(table)
    sys.exit(DONE if answer == "agreed" else OPEN if call.outcome is None or answer == "cannot-confirm" else NO)


# -- running ---------------------------------------------------------------------------------------------------------


@cli.command()
@click.option("--once", is_flag=True, help="Until nothing is open, or nothing more can be done now.")
@click.option("--rounds", type=click.IntRange(1), hidden=True, help="For tests.")
@as_json
@click.pass_obj
def run(folder: Folder, once: bool, rounds: int | None, plain: bool) -> None:
    """Bring whatever is open to its end, and go on (常驻). Ctrl-C stops it; nothing is lost.

    The journal is free between its rounds, so that sales go on beside it.
    """
    fetched = -PREPARE_EVERY
    while rounds is None or rounds > 0:
        with opened(folder) as terminal:
            if monotonic() - fetched >= PREPARE_EVERY:
                fetched = monotonic()
                terminal.prepare()
            for call in terminal.catch_up():
                if call.state == "DONE":
                    _show(call, plain)
            due, left = terminal.due(), terminal.unresolved()
        if once and (due is None or due > wall_clock()):
            sys.exit(OPEN if left else DONE)
        sleep(REST if due is None else min(max((due - wall_clock()).total_seconds(), 0.2), REST))
        rounds = rounds - 1 if rounds else None


if __name__ == "__main__":
    main()
