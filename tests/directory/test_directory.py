"""The directory: whom a source means is found again, told to nobody, and can be forgotten; so are keys."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from carbon_points import directory as of_directory
from carbon_points.directory import Directory, OwnerInvalid, SubjectBound, new_resident, subject_key
from tests.directory.conftest import KEY, Opening

OTHER = bytes(32)


class TestBindings:
    def test_a_subject_means_the_same_resident_for_ever(self, directory: Directory, opening: Opening) -> None:
        resident = directory.resident("szt", "card-1")
        assert directory.resident("szt", "card-1") == opening().resident("szt", "card-1") == resident

    def test_each_source_and_each_subject_means_somebody_else(self, directory: Directory) -> None:
        found = {
            directory.resident(s, n) for s, n in (("szt", "1"), ("szt", "2"), ("hz", "1"), ("s", "zt1"), ("sz", "t1"))
        }
        assert len(found) == 5

    def test_a_pseudonym_says_nothing(self) -> None:
        made = {new_resident() for _ in range(1_000)}
        assert len(made) == 1_000
        assert all(len(r) == 24 and r.startswith("res_") for r in made)
        assert all(set(r[4:]) <= set("abcdefghijklmnopqrstuvwxyz234567") for r in made)

    def test_many_are_found_and_made_together(self, directory: Directory) -> None:
        known = directory.resident("szt", "700")
        names = [str(n) for n in range(1_500)]
        assert directory.residents("szt", names, create=False) == {"700": known}
        made = directory.residents("szt", [*names, *names])
        assert len(set(made.values())) == 1_500
        assert made["700"] == known
        assert directory.residents("szt", names, create=False) == made
        assert directory.residents("szt", []) == {}

    def test_a_subject_is_bound_to_one_resident(self, directory: Directory, opening: Opening) -> None:
        resident = directory.resident("szt", "1")
        for one in (directory, opening()):
            one.bind("hz", ["a", "b"], resident)
            with pytest.raises(SubjectBound):
                one.bind("hz", ["a"], new_resident())
        assert directory.residents("hz", ["a", "b"]) == {"a": resident, "b": resident}

    def test_of_several_subjects_all_are_bound_or_none(self, directory: Directory) -> None:
        directory.bind("szt", ["taken"], new_resident())
        with pytest.raises(SubjectBound):
            directory.bind("szt", ["free", "taken"], new_resident())
        assert directory.residents("szt", ["free"], create=False) == {}

    def test_twenty_threads_and_two_processes_make_one_resident_of_a_subject(self, opening: Opening) -> None:
        processes = [opening(), opening()]
        names = [str(n) for n in range(50)]

        def ask(number: int) -> dict[str, str]:
            return processes[number % 2].residents("szt", names if number % 3 else names[::-1])

        with ThreadPoolExecutor(20) as threads:
            first, *others = threads.map(ask, range(60))
        assert all(other == first for other in others)
        assert len(set(first.values())) == 50

    def test_twenty_threads_and_two_processes_use_a_key_at_one_of_two_merchants(self, opening: Opening) -> None:
        two = [opening(), opening()]
        merchants = ["tea", "bakery"]

        def ask(n: int) -> tuple[str, ...]:
            return tuple(two[n % 2].app_order_at(f"rdm_{key}", merchants[n // 2 % 2]) for key in range(30))

        with ThreadPoolExecutor(20) as threads:
            told = set(threads.map(ask, range(20)))
        assert len(told) == 1
        assert set(told.pop()) <= set(merchants)

    def test_what_is_stored_is_neither_the_subject_nor_a_hash_that_others_could_make(
        self, directory: Directory, opening: Opening, url: str
    ) -> None:
        directory.resident("szt", "13800000000")
        rows = stored(url, "bindings")
        assert "13800000000" not in str(rows)
        opening(OTHER).resident("szt", "13800000000")
        assert len({bytes(row["subject"]) for row in stored(url, "bindings")}) == 2

    def test_an_erased_resident_is_found_by_no_name(
        self, directory: Directory, opening: Opening, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(of_directory, "BINDING_FRESH_SECONDS", 0.0)
        elsewhere = opening()
        resident = directory.resident("szt", "1")
        directory.bind("hz", ["a"], resident)
        kept = directory.resident("szt", "2")
        assert elsewhere.resident("szt", "1") == resident
        assert directory.erase(resident) == 2
        assert directory.erase(resident) == 0
        for one in (directory, elsewhere):
            assert one.residents("szt", ["1", "2"], create=False) == {"2": kept}
        assert resident not in str(stored(url, "bindings"))


class TestKeys:
    def test_a_key_says_who_calls(self, directory: Directory, opening: Opening) -> None:
        key, secret = directory.issue_key("terminal", "shop/t1")
        for one in (directory, opening()):
            caller = one.caller(secret)
            assert caller is not None
            assert (caller.key_id, caller.role, caller.owner) == (key.key_id, "terminal", "shop/t1")
        assert directory.keys() == [key]

    def test_a_secret_is_long_random_and_not_kept(self, directory: Directory, url: str) -> None:
        secrets = [directory.issue_key("app", "x")[1] for _ in range(3)]
        assert len(set(secrets)) == 3
        assert all(secret.startswith("cp_live_") and len(secret) > 48 for secret in secrets)
        for secret in secrets:
            assert secret not in str(stored(url, "keys"))
            assert secret.removeprefix("cp_live_") not in str(stored(url, "keys"))

    @pytest.mark.parametrize("secret", ["", "cp_live_", "cp_live_wrong", "x" * 10_000, "密", "\x00"])
    def test_a_wrong_secret_is_nobodys(self, directory: Directory, secret: str) -> None:
        directory.issue_key("app", "x")
        assert directory.caller(secret) is None

    def test_a_revoked_key_is_nobodys_elsewhere_within_seconds(
        self, directory: Directory, opening: Opening, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(of_directory, "FRESH_SECONDS", 0.0)
        elsewhere = opening()
        key, secret = directory.issue_key("app", "x")
        assert elsewhere.caller(secret)
        assert directory.revoke_key(key.key_id)
        assert directory.caller(secret) is None
        assert elsewhere.caller(secret) is None
        assert not directory.revoke_key(key.key_id)
        assert not directory.revoke_key("key_nobody")
        [shown] = directory.keys()
        assert shown.revoked_at is not None

    def test_wrong_secrets_do_not_fill_the_memory(self, directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(of_directory, "CACHED", 10)
        _, secret = directory.issue_key("app", "x")
        for n in range(50):
            assert directory.caller(f"wrong {n}") is None
            assert directory.caller(secret)
        assert len(directory._callers) <= 12

    @pytest.mark.parametrize(
        ("role", "owner"),
        [
            ("app", ""),
            ("app", "a\nb"),
            ("app", "x" * 65),
            ("source", "a/b"),
            ("terminal", "shop"),
            ("terminal", "shop/"),
            ("terminal", "/t1"),
            ("terminal", "shop/t1/t2"),
        ],
    )
    def test_an_owner_that_nobody_can_be_gets_no_key(self, directory: Directory, role: Any, owner: str) -> None:
        with pytest.raises(OwnerInvalid):
            directory.issue_key(role, owner)
        assert directory.keys() == []


def test_a_directory_of_the_release_before_gains_what_it_lacks_and_keeps_what_it_has(
    directory: Directory, opening: Opening, url: str
) -> None:
    resident = directory.resident("szt", "card")
    execute(url, f"DROP TABLE {at(url, 'payers')}")
    newer = opening()
    assert newer.made
    assert newer.payers.issue(resident).secret
    assert newer.resident("szt", "card") == resident
    assert not opening().made


class TestSubjectKey:
    def test_it_is_made_once_and_for_its_owner_alone(self, tmp_path: Path) -> None:
        folder = tmp_path / "not" / "there yet"
        made = subject_key("", folder)
        assert len(made) == 32
        assert subject_key("", folder) == made
        assert stat.S_IMODE((folder / "subject.key").stat().st_mode) == 0o600

    def test_it_is_taken_as_told_and_then_stored_nowhere(self, tmp_path: Path) -> None:
        assert subject_key(KEY.hex(), tmp_path / "data") == KEY
        assert not (tmp_path / "data").exists()


def stored(url: str, table: str) -> list[dict[str, Any]]:
    """All rows of a table, behind the directory's back."""
    engine = create_engine(url)
    with engine.connect() as connection:
        rows = [dict(row._mapping) for row in connection.execute(text(f"SELECT * FROM {at(url, table)}"))]
    engine.dispose()
    return rows


def execute(url: str, statement: str) -> None:
    """What somebody does to the database, behind the directory's back."""
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def at(url: str, table: str) -> str:
    return f"directory.{table}" if url.startswith("postgresql") else table
