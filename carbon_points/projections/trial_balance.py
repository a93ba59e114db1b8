"""The trial balance: what stands on every account, and that each asset's accounts together are zero.

The accounts of residents are many, and are kept as three sums: what residents have, hold and owe.
"""

from collections.abc import Iterator
from operator import attrgetter

from msgspec import Struct, structs
from sqlalchemy import Table, select

from carbon_points.domain.posting import Asset, Posting, floor, postings
from carbon_points.projections.rows import Batch, Made, Snapshot, added, fields, key, metadata

ASSETS: tuple[Asset, ...] = ("mg", "points", "fen")
SUMMED = frozenset({"resident", "held", "debt"})

ACCOUNTS = Table(
    "accounts",
    metadata,
    key("asset"),
    key("account"),
    added("amount"),
)


class Account(Struct, frozen=True):
    """Accounts are named as in the domain's postings; `resident`, `held` and `debt` are all residents' together."""

    asset: Asset
    account: str
    amount: int


class TrialBalance(Struct, frozen=True):
    """`totals` by asset are 0 at every moment. `positions`: the log that it follows from.

    `below_floor` names accounts with less than may stand on them. Where `positions` are behind the log it may name
    some for a moment, since what an event of one partition spends may lie in another that is read later.
    """

    totals: dict[str, int]
    accounts: list[Account]
    below_floor: list[str]
    positions: dict[str, int]


def fold(batch: Batch, made: Made) -> None:
    for moves in (*(moves for _, moves in batch.moved), *_credited(batch)):
        made[ACCOUNTS].add(((asset, _account(name)), (amount,)) for asset, name, amount in moves)


def _account(name: str) -> str:
    kind = name.partition("/")[0]
    return kind if kind in SUMMED else name


def _credited(batch: Batch) -> Iterator[list[Posting]]:
    """What credited actions move together: residents being one account, that is what one with their sums moves."""
    if batch.credited:
        events = [e for _, e, _ in batch.credited]
        names = ("reduction_mg", "debt_mg", "points", "debt_points")
        yield postings(structs.replace(events[0], **{name: sum(map(attrgetter(name), events)) for name in names}))


# -- reading ---------------------------------------------------------------------------------------------------------


def trial_balance(at: Snapshot) -> TrialBalance:
    query = select(*fields(ACCOUNTS, Account)).order_by(ACCOUNTS.c.asset, ACCOUNTS.c.account)
    accounts = at.structs(Account, query)
    totals: dict[str, int] = dict.fromkeys(ASSETS, 0)
    below: list[str] = []
    for account in accounts:
        totals[account.asset] += account.amount
        least = floor(account.asset, account.account)
        if least is not None and account.amount < least:
            below.append(f"{account.asset} {account.account}")
    return TrialBalance(totals, accounts, below, at.vector)
