"""The plain way: a handler that inserts the action and adds to the resident's balance, a transaction a request.

No methodology, no caps, no consent, no replay of an earlier answer: litestar, SQLAlchemy's async engine and psycopg,
with a pool of connections, uvloop and httptools.
"""

import os
import sys
from datetime import datetime

import uvicorn
from litestar import Litestar, post
from msgspec import Struct
from sqlalchemy import BigInteger, Column, DateTime, MetaData, Numeric, Table, Text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import create_async_engine

metadata = MetaData()
ACTIONS = Table(
    "actions",
    metadata,
    Column("source", Text, primary_key=True),
    Column("record_id", Text, primary_key=True),
    Column("resident", Text, nullable=False),
    Column("behaviour", Text, nullable=False),
    Column("quantity", Numeric, nullable=False),
    Column("unit", Text, nullable=False),
    Column("occurred_at", DateTime(timezone=True), nullable=False),
    Column("reduction_mg", BigInteger, nullable=False),
    Column("points", BigInteger, nullable=False),
)
BALANCES = Table(
    "balances",
    metadata,
    Column("resident", Text, primary_key=True),
    Column("reduction_mg", BigInteger, nullable=False),
    Column("points", BigInteger, nullable=False),
)


class Report(Struct):
    source: str
    record_id: str
    resident: str
    behaviour: str
    quantity: str
    unit: str
    occurred_at: datetime


engine = create_async_engine(os.environ["PEER_URL"], pool_size=16, max_overflow=16)
_new = insert(ACTIONS).on_conflict_do_nothing()
_adds = insert(BALANCES)
_adds = _adds.on_conflict_do_update(
    index_elements=["resident"],
    set_={name: BALANCES.c[name] + _adds.excluded[name] for name in ("reduction_mg", "points")},
)


@post("/v1/actions")
async def record(data: Report) -> dict[str, int]:
    async with engine.begin() as connection:
        row = {name: getattr(data, name) for name in data.__struct_fields__}
        made = await connection.execute(_new, {**row, "reduction_mg": 80_000, "points": 10})
        if made.rowcount:
            await connection.execute(_adds, {"resident": data.resident, "reduction_mg": 80_000, "points": 10})
    return {"reduction_mg": 80_000, "points": 10}


async def create() -> None:
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)


app = Litestar([record], on_startup=[create])

if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", log_level="warning", access_log=False)
