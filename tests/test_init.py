"""`carbon-points init`, and a service that may do no more than serve: on real databases, with real roles."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import InsufficientPrivilege

from carbon_points.methodologies import shipped
from tests.api.city import City, apart, city_in
from tests.test_command_line import Installed

TABLES = {f"{one.table.id}/{one.table.version}" for one in shipped()}
EVERYTHING = ["p000", "p001", "p002", "subject key", "directory", "read models", "webhooks"]


# -- init ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgresql"])
def here(request: pytest.FixtureRequest, tmp_path: Path) -> Installed:
    """A place for an installation, where there is none yet."""
    more = {"CARBON_DATABASE_URL": request.getfixturevalue("postgres_url")} if request.param == "postgresql" else {}
    return Installed(tmp_path / "data", CARBON_PARTITIONS="3", **more)


def test_init_makes_everything_of_an_installation_and_says_so(here: Installed) -> None:
    told = here.told("init")
    assert (told["partitions"], told["made"], told["distributed"]) == (3, EVERYTHING, [])
    assert set(told["adopted"]) == TABLES
    assert here.told("verify")["entries"] == len(TABLES)


def test_init_again_changes_nothing_and_says_so(here: Installed) -> None:
    here.told("init", "--partitions", "3")
    for words in (("init",), ("init", "--partitions", "3")):
        assert here.told(*words) == {"partitions": 3, "made": [], "distributed": [], "adopted": [], "grants": None}
    assert here.told("verify")["entries"] == len(TABLES)


def test_init_finishes_what_another_left_half_done(here: Installed) -> None:
    here.told("init")
    if url := here.environment.get("CARBON_DATABASE_URL"):
        with psycopg.connect(url) as connection:
            connection.execute("DROP SCHEMA p002, directory CASCADE")
    else:
        for file in here.folder.rglob("*.sqlite*"):
            if file.name.startswith(("p002", "directory")):
                file.unlink()
    assert here.told("init")["made"] == ["p002", "directory"]
    assert here.told("init")["made"] == []


def test_a_journal_keeps_its_number_of_partitions_and_init_refuses_another(here: Installed) -> None:
    here.told("init", "--partitions", "2")
    for wished in ("1", "3"):
        code, output, errors = here.ended("init", "--partitions", wished, "--json")
        assert (code, "2 partitions, for ever" in output) == (1, True)
        assert "Traceback" not in errors
    assert here.told("init")["partitions"] == 2


def test_init_refuses_to_distribute_without_citus_and_makes_nothing(here: Installed) -> None:
    code, output, errors = here.ended("init", "--distributed", "--json")
    assert (code, "Citus" in output) == (1, True)
    assert "Traceback" not in errors
    assert here.told("init")["made"] == EVERYTHING


def test_grants_are_printed_for_postgresql_only(tmp_path: Path) -> None:
    assert Installed(tmp_path / "data").run("init", "--print-grants", "service").exit_code == 2


# -- a service -------------------------------------------------------------------------------------------------------


class Roles(NamedTuple):
    """A database of PostgreSQL's `owner`, and what both roles' commands are run with."""

    database: str
    service: str
    as_owner: Installed
    as_service: Installed


@pytest.fixture
def roles(postgres_url: str, tmp_path: Path) -> Roles:
    """As docs/operations.md has an administrator make them."""
    owner, service = (f"{name}_{uuid4().hex[:8]}" for name in ("owner", "service"))
    database = conninfo_to_dict(postgres_url)["dbname"]
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {owner} LOGIN")
        connection.execute(f"CREATE ROLE {service} LOGIN")
        connection.execute(f"ALTER DATABASE {database} OWNER TO {owner}")
    return Roles(postgres_url, service, *(installed(postgres_url, role, tmp_path) for role in (owner, service)))


def installed(url: str, role: str, folder: Path) -> Installed:
    return Installed(folder / "data", CARBON_DATABASE_URL=re.sub(r"//[^@]*@", f"//{role}@", url))


@pytest.fixture
def served(roles: Roles) -> Iterator[City]:
    """An installation that the owner made, as the service runs it."""
    granted(roles)
    with city_in(environment(roles.as_service), datetime.now(UTC)) as city:
        yield city.found()


def earned(city: City, points: int) -> str:
    """A resident with points of this hour."""
    card = city.name("card")
    resident = city.resident(card=card)
    city.earn(card, points, occurred_at=city.installation.clock().isoformat())
    return resident


def granted(roles: Roles) -> None:
    """What `init` prints, run by the owner as it is."""
    sql = roles.as_owner.run("init", "--print-grants", roles.service).stdout
    with connected(roles.as_owner) as connection:
        connection.execute(sql.encode())


def connected(who: Installed) -> "psycopg.Connection[Any]":
    return psycopg.connect(who.environment["CARBON_DATABASE_URL"], autocommit=True)


def environment(who: Installed) -> dict[str, str]:
    return {name: value for name, value in who.environment.items() if name.startswith("CARBON_")}


def test_a_service_without_a_right_to_create_records_redeems_and_reads(roles: Roles, served: City) -> None:
    with connected(roles.as_service) as connection:
        may = "SELECT has_database_privilege(current_database(), 'CREATE')"
        assert connection.execute(may).fetchone() == (False,)
    resident = earned(served, 300)
    served.captured(resident, 120)
    assert served.balance(resident)["points_available"] == 180
    served.settled()
    assert served.done(served.get("/readyz", by=""))["status"] == "ready"
    assert served.done(served.get(f"/v1/residents/{resident}/statement"))


def test_a_service_without_a_right_to_create_is_served_and_commanded_as_any_other(roles: Roles) -> None:
    granted(roles)
    as_service = roles.as_service
    key = as_service.told("keys", "add", "app", "city")
    as_service.told("sources", "add", "szt", "--behaviours", "bus", "--opens-accounts")
    assert as_service.told("init")["made"] == []
    with apart(environment(as_service), {"app": key["secret"]}) as (city, _):
        assert city.get("/v1/methodologies", by="app").status_code == 200
    as_service.told("lapse")
    assert as_service.told("verify")["ok"] is True
    as_service.told("export", as_service.folder / "export")
    assert as_service.told("keys", "revoke", key["key_id"])["revoked"] is True


def test_a_service_for_which_webhooks_are_not_there_yet_is_told_who_makes_them(roles: Roles) -> None:
    """As after a release that brought them, before the owner ran `init`."""
    granted(roles)
    with connected(roles.as_owner) as connection:
        connection.execute("DROP SCHEMA webhooks CASCADE")
    code, output, errors = roles.as_service.ended("keys", "list", "--json")
    assert (code, "carbon-points init" in output, "Traceback" in errors) == (1, True, False)
    assert roles.as_owner.told("init")["made"] == ["webhooks"]


@pytest.mark.parametrize("table", ["entries", "claims"])
def test_the_database_itself_refuses_a_service_that_changes_the_log(roles: Roles, served: City, table: str) -> None:
    earned(served, 100)
    with connected(roles.as_service) as connection:
        for partition in range(2):
            name = f"p{partition:03d}.{table}"
            column = {"entries": "state", "claims": "stream"}[table]
            for wrong in (f"UPDATE {name} SET {column} = {column}", f"DELETE FROM {name}", f"TRUNCATE {name}"):
                with pytest.raises(InsufficientPrivilege):
                    connection.execute(wrong)


def test_the_grants_may_be_run_again_while_the_service_runs_and_mend_what_is_wrong(roles: Roles, served: City) -> None:
    before = rights(roles)
    with connected(roles.as_owner) as connection:  # a right given by mistake is taken again
        connection.execute(f"GRANT UPDATE, DELETE ON p000.entries TO {roles.service}")
    granted(roles)
    assert rights(roles) == before
    assert served.recorded()["reduction_mg"] > 0


def rights(roles: Roles) -> list[Any]:
    with connected(roles.as_owner) as connection:
        return connection.execute(
            "SELECT table_schema, table_name, privilege_type FROM information_schema.role_table_grants "
            "WHERE grantee = %s ORDER BY 1, 2, 3",
            (roles.service,),
        ).fetchall()


def test_after_a_rebuild_by_the_owner_the_service_reads_on(roles: Roles, served: City) -> None:
    resident = earned(served, 100)
    roles.as_owner.told("rebuild")
    served.settled()
    assert served.balance(resident)["points_available"] == 100
    assert served.done(served.get(f"/v1/residents/{resident}/statement"))


def test_a_service_that_finds_no_installation_is_told_who_makes_it(roles: Roles) -> None:
    code, output, errors = roles.as_service.ended("sources", "list", "--json")
    assert (code, "carbon-points init" in output) == (1, True)
    assert "Traceback" not in errors


def test_a_service_of_a_new_release_asks_the_owner_for_the_table_that_it_lacks(roles: Roles) -> None:
    granted(roles)
    with connected(roles.as_owner) as connection:  # as the release before left it
        connection.execute("DROP TABLE directory.payers")
    for words in (("sources", "list"), ("init",)):
        code, output, errors = roles.as_service.ended(*words, "--json")
        assert (code, "carbon-points init" in output, "directory" in output) == (1, True, True)
        assert "Traceback" not in errors
    assert roles.as_owner.told("init")["made"] == ["directory"]
    with city_in(environment(roles.as_service), datetime.now(UTC)) as city:  # tables of the owner's are granted as made
        resident = city.resident()
        assert city.done(city.post(f"/v1/residents/{resident}/payment-codes", by="app"))["code"]
