"""What this installation is told, once, from the environment. Nothing here decides a number: that is in the log."""

import os
import re
from collections.abc import Mapping
from datetime import time
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct, structs

PARTITIONS_MOST = 1024
SANDBOX_DIR = "carbon-sandbox"  # where CARBON_DATA_DIR does not say: beside the live one, not in it
_DATABASES, _CACHES = ("postgresql", "postgres", "sqlite"), ("redis", "rediss", "unix")
_HOUR = r"off|([01][0-9]|2[0-3]):[0-5][0-9]"
_SECRET = re.compile(r"(://[^:/?#]*:)[^/?#]*(?=@)|([?&]password=)[^&#]*")


class SettingsInvalid(Exception):
    """A variable of the environment that cannot be read, with its name."""


class Settings(Struct, frozen=True):
    """Each field is the environment variable `CARBON_<NAME>`. An empty URL means the embedded default."""

    data_dir: str = "carbon-data"
    database_url: str = ""
    redis_url: str = ""
    partitions: Annotated[int, Meta(ge=1, le=PARTITIONS_MOST)] = (
        4  # of a journal that is created; one that exists keeps its own
    )
    subject_key: str = ""  # hex; default: a file in the data folder, made on first use
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8000
    public_url: str = ""  # as callers write it, where a proxy stands before us: terminals sign it
    region: str = "330500"  # GB/T 2260 code, in serials: Huzhou
    scheme: str = "HZTDR"  # the programme's short name, in serials
    batches_at: str = "04:00"  # when the server closes batches that were left open, in China; "off": never
    settle_at: str = "02:30"  # when the server settles the day before, in China; "off": never
    pay_daily: bool = False  # and whether it then pays what waits, while the fund suffices
    sandbox: bool = False  # with data, keys and a clock of its own: for tests, and never live
    log: Literal["critical", "error", "warning", "info", "debug"] = "info"
    webhooks_http: bool = False  # for development: webhooks without TLS
    webhooks_internal: bool = False  # for development and closed networks: webhooks to internal addresses

    @property
    def mode(self) -> Literal["live", "test"]:
        return "test" if self.sandbox else "live"

    @property
    def journal_url(self) -> str:
        """For `open_journal`: PostgreSQL's own URL, or SQLite's folder."""
        return self.database_url if self.postgres else f"sqlite:///{self.folder / 'journal'}"

    @property
    def read_url(self) -> str:
        """For SQLAlchemy: the read models."""
        return self._alchemy("read.sqlite")

    @property
    def directory_url(self) -> str:
        """For SQLAlchemy: bindings and keys, which are not in the log and cannot be rebuilt from it."""
        return self._alchemy("directory.sqlite")

    @property
    def webhooks_url(self) -> str:
        """For SQLAlchemy: endpoints of webhooks and what is to be told to them."""
        return self._alchemy("webhooks.sqlite")

    @property
    def postgres(self) -> bool:
        return urlsplit(self.database_url).scheme in ("postgresql", "postgres")

    @property
    def folder(self) -> Path:
        """Where files are: `sqlite:///folder` names one, the data folder is the default, and PostgreSQL's."""
        named = "" if self.postgres else urlsplit(self.database_url).path.removeprefix("/")
        return Path(named or self.data_dir).absolute()

    @property
    def closing_at(self) -> time | None:
        return None if self.batches_at == "off" else time.fromisoformat(self.batches_at)

    @property
    def settling_at(self) -> time | None:
        return None if self.settle_at == "off" else time.fromisoformat(self.settle_at)

    def _alchemy(self, name: str) -> str:
        if self.postgres:
            return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", self.database_url)
        self.folder.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{self.folder / name}"

    def shown(self) -> dict[str, object]:
        """The settings in force, with passwords and keys hidden."""
        told = msgspec.to_builtins(self)
        for name in ("database_url", "redis_url"):
            told[name] = _SECRET.sub(r"\1\2***", told[name])
        told["subject_key"] = "***" if self.subject_key else ""
        return told


def load(environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from `CARBON_*` variables. Raises SettingsInvalid."""
    found = os.environ if environment is None else environment
    names = {f"CARBON_{name.upper()}": name for name in Settings.__struct_fields__}
    told = {name: found[variable] for variable, name in names.items() if variable in found}
    try:
        settings = msgspec.convert(told, Settings, strict=False)
        if settings.sandbox and "data_dir" not in told:
            settings = structs.replace(settings, data_dir=SANDBOX_DIR)
    except msgspec.ValidationError as error:
        what, _, field = str(error).partition(" - at `$.")
        raise SettingsInvalid(f"CARBON_{field.rstrip('`').upper()}: {what}") from None
    database, redis = (urlsplit(url).scheme for url in (settings.database_url, settings.redis_url))
    for holds, what in (
        (not settings.database_url or database in _DATABASES, "DATABASE_URL begins with postgresql:// or sqlite:///"),
        (
            "," not in urlsplit(settings.database_url).netloc.rpartition("@")[2],
            "DATABASE_URL names several hosts as postgresql://user@/name?host=a,b&port=5432,5432",
        ),
        (not settings.redis_url or redis in _CACHES, "REDIS_URL begins with redis://, rediss:// or unix://"),
        (not re.search(r"[?#%]", str(settings.folder)), "DATA_DIR, from / on, has none of ? # % in it"),
        (re.fullmatch(r"(([0-9a-fA-F]{2}){32,})?", settings.subject_key), "SUBJECT_KEY is 32 bytes or more in hex"),
        (
            re.fullmatch(r"(https?://[A-Za-z0-9._~:\[\]-]+(/[A-Za-z0-9._~/-]*[A-Za-z0-9._~-])?)?", settings.public_url),
            "PUBLIC_URL is http:// or https:// with a host and perhaps a path, without a / at its end",
        ),
        (re.fullmatch(r"[0-9]{6}", settings.region), "REGION is a GB/T 2260 code of six digits"),
        (re.fullmatch(_HOUR, settings.batches_at), "BATCHES_AT is HH:MM in China, or off"),
        (re.fullmatch(_HOUR, settings.settle_at), "SETTLE_AT is HH:MM in China, or off"),
        (re.fullmatch(r"[A-Z0-9]{1,16}", settings.scheme), "SCHEME is up to 16 capital letters and digits"),
    ):
        if not holds:
            raise SettingsInvalid(f"CARBON_{what}")
    return settings
