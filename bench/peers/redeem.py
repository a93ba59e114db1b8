"""The plain way to redeem: two handlers, a transaction each, over a balance, an order and its state.

Idempotent by a unique key, points never below zero, a row locked in the hold and in the capture: what a careful team
writes with litestar and SQLAlchemy in a week. No code is checked and no signature, no stock, no grants that expire, no
batch, nothing an auditor could replay.
"""

import os
import sys

import uvicorn
from litestar import Litestar, Request, Response, post
from msgspec import Struct
from sqlalchemy import BigInteger, Column, DateTime, MetaData, Table, Text, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import create_async_engine

metadata = MetaData()
BALANCES = Table(
    "balances",
    metadata,
    Column("resident", Text, primary_key=True),
    Column("available", BigInteger, nullable=False),
    Column("held", BigInteger, nullable=False),
)
ORDERS = Table(
    "orders",
    metadata,
    Column("key", Text, primary_key=True),
    Column("resident", Text, nullable=False),
    Column("merchant", Text, nullable=False),
    Column("terminal", Text, nullable=False),
    Column("points", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    Column("expires_at", DateTime(timezone=True), nullable=False),
)
MERCHANTS = Table(
    "merchants",
    metadata,
    Column("merchant", Text, primary_key=True),
    Column("captured", BigInteger, nullable=False),
)


class Hold(Struct):
    resident: str
    merchant: str
    terminal: str
    points: int


class Part(Struct):
    points: int


engine = create_async_engine(os.environ["PEER_URL"], pool_size=16, max_overflow=16)


@post("/v1/redemptions")
async def hold(request: Request, data: Hold) -> Response[dict[str, str]]:
    key = request.headers["Idempotency-Key"]
    async with engine.begin() as connection:
        row = {"key": key, "status": "held", **{name: getattr(data, name) for name in data.__struct_fields__}}
        later = func.now() + text("interval '300 seconds'")
        made = await connection.execute(insert(ORDERS).values(**row, expires_at=later).on_conflict_do_nothing())
        if made.rowcount:
            enough = (BALANCES.c.resident == data.resident) & (BALANCES.c.available >= data.points)
            moved = {"available": BALANCES.c.available - data.points, "held": BALANCES.c.held + data.points}
            taken = await connection.execute(update(BALANCES).where(enough).values(moved))
            if not taken.rowcount:
                await connection.rollback()
                return Response({"status": "declined"}, status_code=409)
    return Response({"status": "held", "key": key}, status_code=201)


@post("/v1/redemptions/{key:str}/capture")
async def capture(key: str, data: Part) -> Response[dict[str, str]]:
    async with engine.begin() as connection:
        order = (await connection.execute(select(ORDERS).where(ORDERS.c.key == key).with_for_update())).one()
        if order.status == "held":
            await connection.execute(update(ORDERS).where(ORDERS.c.key == key).values(status="captured"))
            theirs = BALANCES.c.resident == order.resident
            await connection.execute(update(BALANCES).where(theirs).values(held=BALANCES.c.held - data.points))
            adds = insert(MERCHANTS).values(merchant=order.merchant, captured=data.points)
            more = {"captured": MERCHANTS.c.captured + data.points}
            await connection.execute(adds.on_conflict_do_update(index_elements=["merchant"], set_=more))
    return Response({"status": "captured"}, status_code=201)


async def create() -> None:
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)


app = Litestar([hold, capture], on_startup=[create])

if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", log_level="warning", access_log=False)
