"""The trial balance: what stands on every account, and that each asset's accounts together are zero.

The accounts of residents are many, and are kept as three sums: what residents have, hold and owe.
"""

from msgspec import Struct
from sqlalchemy import Connection, Table, select

from carbon_points.domain.posting import Asset, floor
from carbon_points.projections.rows import Batch, Rows, Snapshot, added, fields, key, metadata, write

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


def fold(batch: Batch) -> Rows:
    rows = Rows(ACCOUNTS)
    for moves in batch.moved.values():
        for asset, account, amount in moves:
            kind = account.partition("/")[0]
            rows.put(asset=asset, account=kind if kind in SUMMED else account, amount=amount)
    return rows


def apply(connection: Connection, batch: Batch) -> None:
    write(connection, fold(batch))


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
