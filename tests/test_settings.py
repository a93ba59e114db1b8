"""Settings: one struct from the environment, complete without any, and telling no secret."""

from pathlib import Path
from typing import Any

import pytest

from carbon_points.api.installation import open_installation
from carbon_points.settings import Settings, SettingsInvalid, load


def test_without_any_it_is_the_embedded_default() -> None:
    known = load({})
    assert known == Settings()
    assert known.redis_url == ""
    here = Path("carbon-data").absolute()
    assert known.journal_url == f"sqlite:///{here / 'journal'}"


@pytest.mark.parametrize(
    ("database", "folder"),
    [
        ("sqlite:////there/data", "/there/data"),
        ("sqlite:///there/data", str(Path("there/data").absolute())),
        ("sqlite://", "/elsewhere"),
        ("", "/elsewhere"),
    ],
)
def test_sqlite_is_a_folder_and_the_data_folder_unless_it_says_so(database: str, folder: str) -> None:
    known = load({"CARBON_DATABASE_URL": database, "CARBON_DATA_DIR": "/elsewhere"})
    assert known.journal_url == f"sqlite:///{folder}/journal"


def test_what_is_kept_in_files_beside_postgresql_lies_in_the_data_folder() -> None:
    """And not in a folder of the database's name wherever the program was started."""
    known = load({"CARBON_DATABASE_URL": "postgresql://carbon@db/carbon", "CARBON_DATA_DIR": "/elsewhere"})
    assert known.folder == Path("/elsewhere")


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_postgresql_holds_all_that_sqlite_held(scheme: str) -> None:
    known = load({"CARBON_DATABASE_URL": f"{scheme}://carbon:secret@db:5432/carbon?sslmode=require"})
    assert known.journal_url == f"{scheme}://carbon:secret@db:5432/carbon?sslmode=require"
    expected = "postgresql+psycopg://carbon:secret@db:5432/carbon?sslmode=require"
    assert known.read_url == known.directory_url == expected


def test_several_hosts_of_postgresql_are_passed_on_as_they_are() -> None:
    url = "postgresql://carbon@/carbon?host=a,b&port=5432,5433&target_session_attrs=read-write"
    known = load({"CARBON_DATABASE_URL": url})
    assert known.journal_url == url
    assert known.read_url == known.directory_url == url.replace("postgresql", "postgresql+psycopg", 1)


@pytest.mark.parametrize(
    ("name", "value", "field", "read"),
    [
        ("CARBON_PORT", "80", "port", 80),
        ("CARBON_PARTITIONS", "1024", "partitions", 1024),
        ("CARBON_HOST", "::", "host", "::"),
        ("CARBON_REDIS_URL", "redis://cache", "redis_url", "redis://cache"),
        ("CARBON_REGION", "330800", "region", "330800"),
        ("CARBON_PUBLIC_URL", "https://points.example.cn:8443/api", "public_url", "https://points.example.cn:8443/api"),
    ],
)
def test_a_variable_is_read_into_its_field(name: str, value: str, field: str, read: object) -> None:
    assert getattr(load({name: value, "OTHER": "x", "CARBON_UNKNOWN": "x"}), field) == read


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CARBON_PORT", "many"),
        ("CARBON_PORT", "80.5"),
        ("CARBON_PORT", "-1"),
        ("CARBON_PORT", "65536"),
        ("CARBON_DATA_DIR", "a#b"),
        ("CARBON_DATA_DIR", "a?b"),
        ("CARBON_DATA_DIR", "per%20cent"),
        ("CARBON_PARTITIONS", "0"),
        ("CARBON_PARTITIONS", "1025"),
        ("CARBON_DATABASE_URL", "mysql://db"),
        ("CARBON_DATABASE_URL", "/folder"),
        ("CARBON_DATABASE_URL", "postgresql://u@a:1,b:2/db"),
        ("CARBON_SUBJECT_KEY", "secret"),
        ("CARBON_SUBJECT_KEY", "00" * 31),
        ("CARBON_REGION", "Huzhou"),
        ("CARBON_SCHEME", "湖州"),
        ("CARBON_SCHEME", ""),
        ("CARBON_LOG", "loud"),
        ("CARBON_REDIS_URL", "cache:6379"),
    ],
)
def test_a_variable_that_cannot_be_read_is_named_and_its_value_is_not(name: str, value: str) -> None:
    with pytest.raises(SettingsInvalid) as refused:
        load({name: value})
    assert name in str(refused.value)
    assert "secret" not in str(refused.value)


def test_what_is_shown_hides_passwords_and_keys() -> None:
    told: dict[str, Any] = load(
        {
            "CARBON_DATABASE_URL": "postgresql://carbon:hunter2@db/carbon?password=hunter2&sslmode=require",
            "CARBON_REDIS_URL": "rediss://:hunter2@cache:6379/0",
            "CARBON_SUBJECT_KEY": "ab" * 32,
        }
    ).shown()
    assert "hunter2" not in str(told)
    assert "abab" not in str(told)
    assert told["database_url"] == "postgresql://carbon:***@db/carbon?password=***&sslmode=require"
    assert told["redis_url"] == "rediss://:***@cache:6379/0"
    assert told["port"] == 8000


@pytest.mark.parametrize("name", ["plain", "with space", "湖州", "a:b@c", "a&b=c", "'quoted\"", "-"])
def test_a_data_folder_may_have_almost_any_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    installation = open_installation(load({"CARBON_DATA_DIR": str(folder), "CARBON_PARTITIONS": "1"}))
    installation.directory.issue_key("app", "x")
    installation.close()
    assert {path.name for path in tmp_path.iterdir()} == {name}
    assert {"journal", "read.sqlite", "directory.sqlite", "subject.key"} <= {path.name for path in folder.iterdir()}
    again = open_installation(load({"CARBON_DATA_DIR": str(folder)}))
    assert len(again.journal.partitions) == 1
    assert len(again.directory.keys()) == 1
    again.close()


def test_an_installation_keeps_the_number_of_partitions_that_it_was_made_with(tmp_path: Path) -> None:
    for asked in ("3", "7"):
        installation = open_installation(load({"CARBON_DATA_DIR": str(tmp_path), "CARBON_PARTITIONS": asked}))
        assert len(installation.journal.partitions) == 3
        installation.close()
