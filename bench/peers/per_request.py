"""The library as its tutorial shows: an aggregate per resident, loaded, triggered and saved in each request.

`eventsourcing` with its PostgreSQL module, its own transcoder and an aggregate cache, behind litestar.
"""

import sys
from uuid import NAMESPACE_URL, UUID, uuid5

import uvicorn
from eventsourcing.application import AggregateNotFoundError, Application
from eventsourcing.domain import Aggregate, event
from litestar import Litestar, post
from msgspec import Struct
from msgspec.structs import asdict


class Account(Aggregate):
    def __init__(self, resident: str) -> None:
        self.resident = resident
        self.reduction_mg = 0
        self.points = 0

    @staticmethod
    def create_id(resident: str) -> UUID:
        return uuid5(NAMESPACE_URL, f"/residents/{resident}")

    @event("ActionCredited")
    def credit(self, report: dict[str, str], mg: int, points: int) -> None:  # noqa: ARG002  # it is kept in the event
        self.reduction_mg += mg
        self.points += points


class Accounts(Application[UUID]):
    env = {"AGGREGATE_CACHE_MAXSIZE": "20000"}

    def record(self, r: "Report") -> dict[str, int]:
        try:
            account = self.repository.get(Account.create_id(r.resident))
        except AggregateNotFoundError:
            account = Account(r.resident)
        account.credit(asdict(r), 80_000, 10)
        self.save(account)
        return {"reduction_mg": account.reduction_mg, "points": account.points}


class Report(Struct):
    source: str
    record_id: str
    resident: str
    behaviour: str
    quantity: str
    unit: str
    occurred_at: str


accounts = Accounts()


@post("/v1/actions", sync_to_thread=True)
def record(data: Report) -> dict[str, int]:
    return accounts.record(data)


app = Litestar([record])

if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", log_level="warning", access_log=False)
