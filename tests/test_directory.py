"""The directory: whom a source means is found again, told to nobody, and can be forgotten; so are keys and payers."""

import base64
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from carbon_points import codes
from carbon_points import directory as of_directory
from carbon_points.codes import CodeExpired, CodeMalformed, CodeUnknown
from carbon_points.directory import Directory, OwnerInvalid, SubjectBound, Throttled, new_resident, subject_key

KEY, OTHER = bytes(range(32)), bytes(32)
Opening = Callable[..., Directory]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each place where a directory can lie."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'directory.sqlite'}"
    return request.getfixturevalue("postgres_url").replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture
def opening(url: str) -> Iterator[Opening]:
    """Opens the same directory, as often as it is asked: each as another process would."""
    made: list[Directory] = []

    def open_one(key: bytes = KEY) -> Directory:
        made.append(Directory(url, key))
        return made[-1]

    yield open_one
    for one in made:
        one.close()


@pytest.fixture
def directory(opening: Opening) -> Directory:
    return opening()


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


NOW = datetime(2025, 6, 15, 4, 0, 30, tzinfo=UTC)
STEP = codes.step_at(NOW)


class Phone:
    """What a resident's phone does with the secret that it was told."""

    def __init__(self, directory: Directory) -> None:
        self.resident = new_resident()
        self.told = directory.issue_secret(self.resident)

    def code(self, step: int = STEP) -> str:
        return codes.made(self.told.handle, self.told.secret, step)

    def wrong(self) -> Iterator[str]:
        """Codes of the right form that it did not make in any step that is looked at."""
        right = {codes.password(self.told.secret, STEP + away) for away in range(-30, 30)}
        guesses = (f"{number:06}" for number in range(1_000_000))
        for digits in (codes.PREFIX + self.told.handle + guess for guess in guesses if guess not in right):
            yield digits + codes.check_digit(digits)


class TestPayers:
    def test_a_code_says_who_pays_in_every_process_and_never_by_its_digits(
        self, directory: Directory, opening: Opening
    ) -> None:
        phone, other = Phone(directory), Phone(directory)
        for one in (directory, opening()):
            payer = one.payer(phone.code(), NOW)
            assert payer.resident == phone.resident
            assert payer.step.endswith(f":{STEP}")
            assert phone.told.handle not in payer.step
            assert one.payer(other.code(), NOW).step != payer.step

    @pytest.mark.parametrize("away", [-1, 0, 1])
    def test_each_step_is_claimed_by_a_text_of_its_own(self, directory: Directory, away: int) -> None:
        phone = Phone(directory)
        now = NOW + timedelta(minutes=away)
        assert directory.payer(phone.code(), now) == directory.payer(phone.code(), NOW)
        assert directory.payer(phone.code(STEP + 1), NOW) != directory.payer(phone.code(), NOW)

    def test_what_is_no_code_of_now_is_told_what_it_is(self, directory: Directory) -> None:
        phone = Phone(directory)
        for code, refusal in (
            ("1234", CodeMalformed),
            (phone.code(STEP - 2), CodeExpired),
            (phone.code(STEP + 2), CodeUnknown),
            (codes.made(Phone(directory).told.handle, phone.told.secret, STEP), CodeUnknown),
        ):
            with pytest.raises(refusal):
                directory.payer(code, NOW)

    def test_many_are_looked_up_together_and_each_is_told_its_own(self, directory: Directory) -> None:
        phones = [Phone(directory) for _ in range(20)]
        asked = [*(phone.code() for phone in phones), phones[0].code(STEP - 5), next(phones[1].wrong()), "8"]
        found = directory.payers(asked, NOW)
        assert [found[phone.code()] for phone in phones] == [directory.payer(phone.code(), NOW) for phone in phones]
        assert [type(found[code]) for code in asked[20:]] == [CodeExpired, CodeUnknown, CodeMalformed]

    def test_a_code_that_was_looked_up_a_moment_ago_is_known_without_the_database(
        self, directory: Directory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        phone = Phone(directory)
        assert directory.known_payer(phone.code(), NOW) is None
        payer = directory.payer(phone.code(), NOW)
        with monkeypatch.context() as away:
            away.setattr(directory, "_engine", None)
            assert directory.known_payer(phone.code(), NOW) == directory.payer(phone.code(), NOW) == payer
            assert directory.known_payer(phone.code(STEP + 1), NOW) == directory.payer(phone.code(STEP + 1), NOW)
            assert directory.known_payer(next(phone.wrong()), NOW) is None
        monkeypatch.setattr(of_directory, "CACHED", 3)
        for _ in range(9):
            directory.payer(Phone(directory).code(), NOW)
        assert len(directory._secrets) <= 3

    def test_a_new_secret_stops_the_one_before_elsewhere_within_seconds(
        self, directory: Directory, opening: Opening, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(of_directory, "PAYER_FRESH_SECONDS", 0.0)
        phone, elsewhere = Phone(directory), opening()
        before = elsewhere.payer(phone.code(), NOW)
        old = phone.code()
        phone.told = directory.issue_secret(phone.resident)
        for one in (directory, elsewhere):
            with pytest.raises(CodeUnknown):
                one.payer(old, NOW)
            assert one.payer(phone.code(), NOW).resident == phone.resident
            assert one.payer(phone.code(), NOW) != before, "what was claimed for the old one is not claimed for this"
        [row] = stored(url, "payers")
        assert (row["handle"], bool(row["replaced_at"])) == (phone.told.handle, True)

    def test_a_new_secret_stops_the_one_before_at_once_where_it_was_made(self, directory: Directory) -> None:
        phone = Phone(directory)
        directory.payer(phone.code(), NOW)
        directory.issue_secret(phone.resident)
        assert directory.known_payer(phone.code(), NOW) is None
        with pytest.raises(CodeUnknown):
            directory.payer(phone.code(), NOW)

    def test_an_erased_residents_phone_leads_to_nobody(self, directory: Directory, url: str) -> None:
        phone, kept = Phone(directory), Phone(directory)
        directory.bind("szt", ["card"], phone.resident)
        directory.payer(phone.code(), NOW)
        assert directory.erase(phone.resident) == 1
        with pytest.raises(CodeUnknown):
            directory.payer(phone.code(), NOW)
        assert [row["resident"] for row in stored(url, "payers")] == [kept.resident]

    def test_a_handle_that_is_somebodys_is_not_given_again(
        self, directory: Directory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drawn = iter([7, 7, 8])
        monkeypatch.setattr(of_directory.secrets, "randbelow", lambda _: next(drawn))
        assert [Phone(directory).told.handle, Phone(directory).told.handle] == ["000000007", "000000008"]

    def test_two_processes_that_replace_one_secret_leave_one_that_works(self, opening: Opening, url: str) -> None:
        processes, resident = [opening(), opening()], new_resident()
        with ThreadPoolExecutor(8) as threads:
            told = list(threads.map(lambda n: processes[n % 2].issue_secret(resident), range(16)))
        [row] = stored(url, "payers")
        [last] = [one for one in told if one.handle == row["handle"]]
        assert opening().payer(codes.made(last.handle, last.secret, STEP), NOW).resident == resident

    def test_what_is_stored_is_sealed_for_its_own_row_under_the_subject_key(
        self, directory: Directory, opening: Opening, url: str
    ) -> None:
        phone, thief = Phone(directory), Phone(directory)
        kept = str(stored(url, "payers"))
        assert phone.told.secret.hex() not in kept
        assert base64.b32encode(phone.told.secret).decode() not in kept
        assert repr(phone.told.secret)[2:-1] not in kept
        rows = at(url, "payers")
        of_thief = f"(SELECT p.sealed FROM {rows} p WHERE p.resident = '{thief.resident}')"
        execute(url, f"UPDATE {rows} SET sealed = {of_thief} WHERE resident = '{phone.resident}'")
        stolen = codes.made(phone.told.handle, thief.told.secret, STEP)
        for one, code in ((opening(), stolen), (opening(OTHER), thief.code())):
            with pytest.raises(CodeUnknown):
                one.payer(code, NOW)
        assert directory.payer(thief.code(), NOW).resident == thief.resident

    def test_a_backend_is_made_codes_of_the_phones_own_secret_or_of_one_that_no_phone_has(
        self, directory: Directory, opening: Opening
    ) -> None:
        phone, without = Phone(directory), new_resident()
        assert directory.code(phone.resident, STEP)[0] == phone.code()
        code, payer = directory.code(without, STEP)
        for one in (directory, opening()):
            assert one.payer(code, NOW) == payer
            assert one.code(without, STEP) == (code, payer)
        elsewhere = opening(OTHER)  # which cannot unseal what is there
        code, payer = elsewhere.code(without, STEP)
        assert elsewhere.payer(code, NOW) == payer

    def test_an_error_of_the_database_tells_no_handle(self, directory: Directory, url: str) -> None:
        phone = Phone(directory)
        execute(url, f"DROP TABLE {at(url, 'payers')}")
        with pytest.raises(SQLAlchemyError) as failed:
            directory.payer(phone.code(), NOW)
        assert phone.told.handle not in str(failed.value)


class TestGuesses:
    def test_after_ten_wrong_codes_none_of_the_handle_is_looked_at_for_ten_minutes(
        self, directory: Directory, opening: Opening
    ) -> None:
        phone, other = Phone(directory), Phone(directory)
        wrong = phone.wrong()
        for _ in range(10):
            with pytest.raises(CodeUnknown):
                directory.payer(next(wrong), NOW)
        for one in (directory, opening()):  # a restart forgets nothing
            for code in (next(wrong), phone.code()):
                with pytest.raises(Throttled) as refused:
                    one.payer(code, NOW + timedelta(seconds=60))
                assert refused.value.facts == {"seconds": 540}
            assert one.known_payer(phone.code(), NOW) is None
            assert one.payer(other.code(), NOW).resident == other.resident
        later = NOW + timedelta(minutes=10)
        assert directory.payer(phone.code(STEP + 10), later).resident == phone.resident
        with pytest.raises(CodeUnknown):
            opening().payer(next(wrong), later)
        assert opening().payer(phone.code(STEP + 10), later).resident == phone.resident

    def test_wrong_codes_at_several_processes_count_together(self, directory: Directory, opening: Opening) -> None:
        phone, processes = Phone(directory), [directory, opening(), opening()]
        told = [refused_by(processes[n % 3], code) for n, code in zip(range(30), phone.wrong(), strict=False)]
        assert 10 <= told.count(CodeUnknown) <= 12, "each process may have been told of the last one too late"
        assert set(told[12:]) == {Throttled}

    def test_of_many_guesses_at_once_no_more_are_judged_than_one_by_one(self, directory: Directory) -> None:
        phone = Phone(directory)
        guesses = [code for code, _ in zip(phone.wrong(), range(60), strict=False)]
        assert [type(found) for found in directory.payers(guesses[:30], NOW).values()].count(CodeUnknown) == 10
        phone = Phone(directory)
        guesses = [code for code, _ in zip(phone.wrong(), range(60), strict=False)]
        with ThreadPoolExecutor(20) as threads:
            told = list(threads.map(lambda code: refused_by(directory, code), guesses))
        assert told.count(CodeUnknown) == 10

    def test_right_old_and_unknown_codes_count_for_nothing_and_write_nothing(
        self, directory: Directory, url: str
    ) -> None:
        phone = Phone(directory)
        before = stored(url, "payers")
        for n in range(30):
            assert directory.payer(phone.code(), NOW)
            assert refused_by(directory, phone.code(STEP - 3)) is CodeExpired
            assert refused_by(directory, codes.made(f"{n:09}", phone.told.secret, STEP)) is CodeUnknown
        assert stored(url, "payers") == before

    def test_a_new_secret_has_a_new_beginning(self, directory: Directory) -> None:
        phone = Phone(directory)
        for _, code in zip(range(10), phone.wrong(), strict=False):
            assert refused_by(directory, code) is CodeUnknown
        phone.told = directory.issue_secret(phone.resident)
        assert directory.payer(phone.code(), NOW).resident == phone.resident

    @pytest.mark.parametrize("away", [-700, 700])
    def test_a_clock_that_was_wrong_blocks_nobody_for_long(self, directory: Directory, away: int) -> None:
        phone = Phone(directory)
        for _, code in zip(range(10), phone.wrong(), strict=False):
            assert refused_by(directory, code, NOW + timedelta(seconds=away)) is CodeUnknown
        assert directory.payer(phone.code(), NOW).resident == phone.resident


def refused_by(directory: Directory, code: str, now: datetime = NOW) -> type[Exception]:
    try:
        found = directory.payer(code, now)
    except (CodeExpired, CodeUnknown, Throttled) as refusal:
        return type(refusal)
    raise AssertionError(found)


def test_a_directory_of_the_release_before_gains_what_it_lacks_and_keeps_what_it_has(
    directory: Directory, opening: Opening, url: str
) -> None:
    resident = directory.resident("szt", "card")
    execute(url, f"DROP TABLE {at(url, 'payers')}")
    newer = opening()
    assert newer.made
    phone = Phone(newer)
    assert newer.payer(phone.code(), NOW).resident == phone.resident
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
