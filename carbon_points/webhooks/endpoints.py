"""Who is told: the endpoints of merchants and apps, their secrets, and how far each has been told of the log.

An endpoint keeps its own position in each partition. The log is the queue: one that is disabled, or behind, is told
later from where it stands, and nothing is stored for it meanwhile. Secrets are sealed by a key that does not lie beside
them. Like the directory, nothing here can be rebuilt.
"""

import base64
import hashlib
import hmac
import secrets
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import Struct
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Index,
    LargeBinary,
    MetaData,
    Row,
    Table,
    create_engine,
    event,
    func,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.schema import CreateSchema

from carbon_points.domain.refusal import Conflict, Refusal
from carbon_points.projections.read_model import write_ahead
from carbon_points.projections.rows import TEXT, Json, Moment
from carbon_points.webhooks.messages import EventType

Status = Literal["enabled", "disabled", "removed"]
Reason = Literal["asked", "gone", "failing"]
SECRET_BYTES = 32
FORMER_HOURS = 24  # how long a rotated secret still signs beside its successor
INSUFFICIENT_PRIVILEGE = "42501"
_SCHEMA = "webhooks"

_metadata = MetaData()
ENDPOINTS = Table(
    "endpoints",
    _metadata,
    Column("endpoint_id", TEXT, primary_key=True),
    Column("merchant", TEXT),  # told what concerns this merchant
    Column("app", TEXT),  # told everything
    Column("url", TEXT, nullable=False),
    Column("types", Json, nullable=False),  # none: all
    Column("secret", LargeBinary, nullable=False),
    Column("former", LargeBinary),
    Column("former_until", Moment),
    Column("rotated_by", TEXT),  # the call that rotated it last: the same again changes nothing
    Column("status", TEXT, nullable=False),
    Column("reason", TEXT),
    Column("sequence", BigInteger, nullable=False),
    Column("positions", Json, nullable=False),
    Column("slow_seconds", BigInteger, nullable=False),
    Column("slow_until", Moment),
    Column("succeeded_at", Moment),
    Column("created_at", Moment, nullable=False),
    Column("asked", Json, nullable=False),  # what its creation said, for whoever says it again
)
DELIVERIES = Table(
    "deliveries",
    _metadata,
    Column("endpoint_id", TEXT, primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("event_id", TEXT, nullable=False),
    Column("type", TEXT, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("status", TEXT, nullable=False),
    Column("tries", BigInteger, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("first_at", Moment),
    Column("last_at", Moment),
    Column("next_at", Moment),
    Column("answer", TEXT),
    Column("lease", TEXT),
    Column("leased_until", Moment),
    Index("deliveries_due", "status", "next_at"),
    Index("deliveries_events", "endpoint_id", "event_id", unique=True),
)
E, D = ENDPOINTS.c, DELIVERIES.c


class Endpoint(Struct, frozen=True):
    """`sequence` is the last number it was given. `reason` says why it is disabled: asked, gone (it answered 410), or
    failing (a message failed over its whole schedule, and none got through meanwhile)."""

    endpoint_id: str
    url: str
    merchant: str | None
    app: str | None
    types: tuple[EventType, ...]
    status: Status
    reason: Reason | None
    sequence: int
    created_at: datetime
    positions: dict[int, int] = {}

    def wants(self, type_name: str, merchant: str) -> bool:
        return self.merchant in (None, merchant) and (not self.types or type_name in self.types)


class WebhooksIncomplete(ValueError):
    """A table is missing, and whoever asks may not create it."""


class WebhookUnknown(Refusal):
    code = "webhook-unknown"
    title = "No such webhook endpoint"


class Endpoints:
    """Thread-safe, and safe beside other processes. `key` seals the secrets: it lies elsewhere, also in a backup."""

    def __init__(self, url: str, key: bytes) -> None:
        self._seal = AESGCM(hmac.digest(key, b"secrets of webhooks", hashlib.sha256))
        self.engine = create_engine(url, pool_pre_ping=url.startswith("postgresql"), hide_parameters=True)
        if self.engine.dialect.name == "postgresql":
            self.engine = self.engine.execution_options(schema_translate_map={None: _SCHEMA})
        else:
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        self.changed = threading.Event()  # set where this process changed something: a hint to who delivers
        self.made = self._create()

    def _create(self) -> bool:
        """Whether there was none: a role without rights to create is enough where there is one."""
        with self.engine.connect() as connection:
            schema = _SCHEMA if connection.dialect.name == "postgresql" else None
            if all(inspect(connection).has_table(table.name, schema=schema) for table in _metadata.sorted_tables):
                return False
        try:
            with self.engine.begin() as connection:
                if schema:
                    connection.execute(_ONE_CREATES)
                    if not inspect(connection).has_schema(schema):
                        connection.execute(CreateSchema(schema))
                _metadata.create_all(connection)
        except ProgrammingError as error:
            if getattr(error.orig, "sqlstate", "") != INSUFFICIENT_PRIVILEGE:
                raise
            self.engine.dispose()
            raise WebhooksIncomplete(
                "what webhooks need is not there for this role, which may not create it: `carbon-points init` as the "
                "owner does, and `--print-grants` tells the role's rights"
            ) from error
        return True

    # -- changing ----------------------------------------------------------------------------------------------------

    def add(
        self,
        endpoint_id: str,
        *,
        url: str,
        merchant: str | None = None,
        app: str | None = None,
        types: Sequence[EventType] = (),
        positions: Mapping[int, int],
        now: datetime,
    ) -> tuple[Endpoint, str, bool]:
        """A new endpoint, told what comes after `positions`; its secret; and whether it was there already.

        Raises Conflict where it was there with other content.
        """
        assert (merchant is None) != (app is None), "an endpoint is one merchant's or one app's"
        asked: dict[str, Any] = {"url": url, "merchant": merchant, "app": app, "types": sorted(set(types))}
        with self.engine.begin() as connection:
            if earlier := connection.execute(_one(endpoint_id)).first():
                if wrong := [name for name, value in asked.items() if earlier.asked[name] != value]:
                    raise Conflict(fields=wrong)
                return _endpoint(earlier), self._opened(endpoint_id, earlier.secret), True
            secret = new_secret()
            connection.execute(
                insert(ENDPOINTS),
                {
                    **asked,
                    "endpoint_id": endpoint_id,
                    "secret": self._sealed(endpoint_id, secret),
                    "status": "enabled",
                    "sequence": 0,
                    "positions": _written(positions),
                    "slow_seconds": 0,
                    "created_at": now,
                    "asked": asked,
                },
            )
            made = connection.execute(_one(endpoint_id)).one()
        self.changed.set()
        return _endpoint(made), secret, False

    def change(
        self,
        endpoint_id: str,
        *,
        now: datetime,
        url: str | None = None,
        types: Sequence[EventType] | None = None,
        enabled: bool | None = None,
        positions: Mapping[int, int] | None = None,
    ) -> Endpoint:
        """What is said anew. Enabled again, it is told what it missed, or what comes after `positions`, and what
        waited goes out at once. Saying the present state changes nothing. Raises WebhookUnknown."""
        with self.engine.begin() as connection:
            known = _locked(connection, endpoint_id)
            told: dict[str, Any] = {}
            if url is not None:
                told["url"] = url
            if types is not None:
                told["types"] = sorted(set(types))
            if enabled is False and known.status == "enabled":
                told |= {"status": "disabled", "reason": "asked"}
            if enabled is True and known.status == "disabled":
                told |= {"status": "enabled", "reason": None, "slow_seconds": 0, "slow_until": None}
                told |= {"positions": _written(positions)} if positions is not None else {}
                waiting = (D.endpoint_id == endpoint_id) & (D.status == "waiting")
                connection.execute(update(DELIVERIES).where(waiting).values(next_at=now))
            if told:
                connection.execute(update(ENDPOINTS).where(E.endpoint_id == endpoint_id).values(**told))
            changed = connection.execute(_one(endpoint_id)).one()
        self.changed.set()
        return _endpoint(changed)

    def rotate(self, endpoint_id: str, call: str, *, now: datetime) -> tuple[str, bool]:
        """A new secret, and whether this call made it before. The former one signs beside it for `FORMER_HOURS`.

        Raises WebhookUnknown.
        """
        with self.engine.begin() as connection:
            known = _locked(connection, endpoint_id)
            if known.rotated_by == call:
                return self._opened(endpoint_id, known.secret), True
            secret = new_secret()
            connection.execute(
                update(ENDPOINTS)
                .where(E.endpoint_id == endpoint_id)
                .values(
                    secret=self._sealed(endpoint_id, secret),
                    former=known.secret,
                    former_until=now + timedelta(hours=FORMER_HOURS),
                    rotated_by=call,
                )
            )
        return secret, False

    def remove(self, endpoint_id: str) -> Endpoint:
        """Forget an endpoint, its secrets and deliveries, but not that its id was used. Raises WebhookUnknown."""
        with self.engine.begin() as connection:
            known = _locked(connection, endpoint_id)
            gone = {"status": "removed", "reason": None, "secret": b"", "former": None, "former_until": None}
            connection.execute(update(ENDPOINTS).where(E.endpoint_id == endpoint_id).values(**gone))
            connection.execute(DELIVERIES.delete().where(D.endpoint_id == endpoint_id))
        return _endpoint(known, status="removed")

    # -- asking ------------------------------------------------------------------------------------------------------

    def one(self, endpoint_id: str) -> Endpoint:
        """Raises WebhookUnknown."""
        with self.engine.connect() as connection:
            found = connection.execute(_one(endpoint_id)).first()
        if found is None or found.status == "removed":
            raise WebhookUnknown(webhook=endpoint_id)
        return _endpoint(found)

    def all(
        self, *, merchant: str | None = None, app: str | None = None, after: str | None = None, limit: int = 100
    ) -> list[Endpoint]:
        """In the order of their ids: all, a merchant's, or an app's."""
        query = select(ENDPOINTS).where(E.status != "removed").order_by(E.endpoint_id).limit(limit)
        for column, value in ((E.merchant, merchant), (E.app, app)):
            query = query if value is None else query.where(column == value)
        query = query if after is None else query.where(E.endpoint_id > after)
        with self.engine.connect() as connection:
            return [_endpoint(row) for row in connection.execute(query)]

    def listening(self) -> bool:
        """Whether there is anybody to be told: one row of a small table."""
        with self.engine.connect() as connection:
            return connection.execute(select(E.endpoint_id).where(E.status == "enabled").limit(1)).first() is not None

    def ready(self) -> None:
        """Raises what the database raises."""
        with self.engine.connect() as connection:
            connection.execute(select(1))

    def close(self) -> None:
        self.engine.dispose()

    # -- secrets -----------------------------------------------------------------------------------------------------

    def secrets_of(self, row: Row[Any], now: datetime) -> list[str]:
        """Those that sign now, the newest first; none where they were sealed by another key than this process has."""
        sealed = [row.secret, *([row.former] if row.former and row.former_until > now else [])]
        try:
            return [self._opened(row.endpoint_id, one) for one in sealed]
        except InvalidTag:
            return []

    def _sealed(self, endpoint_id: str, secret: str) -> bytes:
        nonce = secrets.token_bytes(12)
        return nonce + self._seal.encrypt(nonce, secret.encode(), endpoint_id.encode())

    def _opened(self, endpoint_id: str, sealed: bytes) -> str:
        """Raises InvalidTag where it was sealed by another key, or for another endpoint. Nothing is nobody's."""
        return self._seal.decrypt(sealed[:12], sealed[12:], endpoint_id.encode()).decode() if sealed else ""


def new_endpoint_id() -> str:
    return "whe_" + base64.b32encode(secrets.token_bytes(13)).decode().lower()[:20]


def new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def _one(endpoint_id: str) -> Any:
    return select(ENDPOINTS).where(E.endpoint_id == endpoint_id)


def _locked(connection: Connection, endpoint_id: str) -> Row[Any]:
    found = connection.execute(_one(endpoint_id).with_for_update()).first()
    if found is None or found.status == "removed":
        raise WebhookUnknown(webhook=endpoint_id)
    return found


def _endpoint(row: Row[Any], status: Status | None = None) -> Endpoint:
    return Endpoint(
        endpoint_id=row.endpoint_id,
        url=row.url,
        merchant=row.merchant,
        app=row.app,
        types=tuple(row.types),
        status=status or row.status,
        reason=row.reason,
        sequence=row.sequence,
        created_at=row.created_at,
        positions=read(row.positions),
    )


def _written(positions: Mapping[int, int]) -> dict[str, int]:
    return {str(partition): position for partition, position in positions.items()}


def read(positions: Mapping[str, int]) -> dict[int, int]:
    """JSON's names are texts."""
    return {int(partition): position for partition, position in positions.items()}


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where `_begin_sqlite` says
    write_ahead(connection)
    for pragma in ("synchronous=FULL", "busy_timeout=20000"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    """All queue up at the start: they are few and short, and one that began as a reader could not go on to write."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")


_ONE_CREATES = select(func.pg_advisory_xact_lock(0x63_70_77_68))
