"""Payers: a code says who pays, in every process and while its secret is in force; and it is not to be guessed."""

import base64
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.exc import SQLAlchemyError

from carbon_points import codes
from carbon_points.codes import CodeExpired, CodeMalformed, CodeUnknown
from carbon_points.directory import new_resident
from carbon_points.directory import payers as of_payers
from carbon_points.directory.payers import Payers, Throttled
from tests.directory.conftest import KEY, Opening
from tests.directory.test_directory import at, execute, stored

OTHER = bytes(32)
OpeningPayers = Callable[..., Payers]
NOW = datetime(2025, 6, 15, 4, 0, 30, tzinfo=UTC)
STEP = codes.step_at(NOW)
TILL = "shop/t1"
NOBODYS = codes.made("000000000", bytes(codes.SECRET_BYTES), STEP)  # but in one of a thousand million runs


@pytest.fixture
def opening_payers(opening: Opening) -> OpeningPayers:
    return lambda key=KEY: opening(key).payers


@pytest.fixture
def payers(opening_payers: OpeningPayers) -> Payers:
    return opening_payers()


class Phone:
    """What a resident's phone does with the secret that it was told."""

    def __init__(self, payers: Payers) -> None:
        self.resident = new_resident()
        self.told = payers.issue(self.resident)

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
        self, payers: Payers, opening_payers: OpeningPayers
    ) -> None:
        phone, other = Phone(payers), Phone(payers)
        for one in (payers, opening_payers()):
            payer = one.payer(phone.code(), NOW)
            assert payer.resident == phone.resident
            assert payer.step.endswith(f":{STEP}")
            assert phone.told.handle not in payer.step
            assert one.payer(other.code(), NOW).step != payer.step

    @pytest.mark.parametrize("away", [-1, 0, 1])
    def test_each_step_is_claimed_by_a_text_of_its_own(self, payers: Payers, away: int) -> None:
        phone = Phone(payers)
        now = NOW + timedelta(minutes=away)
        assert payers.payer(phone.code(), now) == payers.payer(phone.code(), NOW)
        assert payers.payer(phone.code(STEP + 1), NOW) != payers.payer(phone.code(), NOW)

    def test_what_is_no_code_of_now_is_told_what_it_is(self, payers: Payers) -> None:
        phone = Phone(payers)
        for code, refusal in (
            ("1234", CodeMalformed),
            (phone.code(STEP - 2), CodeExpired),
            (phone.code(STEP + 2), CodeUnknown),
            (codes.made(Phone(payers).told.handle, phone.told.secret, STEP), CodeUnknown),
        ):
            with pytest.raises(refusal):
                payers.payer(code, NOW)

    def test_many_are_looked_up_together_and_each_is_told_its_own(self, payers: Payers) -> None:
        phones = [Phone(payers) for _ in range(20)]
        asked = [*(phone.code() for phone in phones), phones[0].code(STEP - 5), next(phones[1].wrong()), "8"]
        found = payers.payers([(code, None) for code in asked], NOW)
        assert [found[phone.code(), None] for phone in phones] == [payers.payer(phone.code(), NOW) for phone in phones]
        assert [type(found[code, None]) for code in asked[20:]] == [CodeExpired, CodeUnknown, CodeMalformed]

    def test_a_code_that_was_looked_up_a_moment_ago_is_known_without_the_database(
        self, payers: Payers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        phone = Phone(payers)
        assert payers.known(phone.code(), NOW) is None
        payer = payers.payer(phone.code(), NOW)
        with monkeypatch.context() as away:
            away.setattr(payers, "_engine", None)
            assert payers.known(phone.code(), NOW) == payers.payer(phone.code(), NOW) == payer
            assert payers.known(phone.code(STEP + 1), NOW) == payers.payer(phone.code(STEP + 1), NOW)
            assert payers.known(next(phone.wrong()), NOW) is None
        monkeypatch.setattr(of_payers, "CACHED", 3)
        for _ in range(9):
            payers.payer(Phone(payers).code(), NOW)
        assert len(payers._known) <= 3

    def test_a_new_secret_stops_the_one_before_elsewhere_within_seconds(
        self, payers: Payers, opening_payers: OpeningPayers, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(of_payers, "FRESH_SECONDS", 0.0)
        phone, elsewhere = Phone(payers), opening_payers()
        before = elsewhere.payer(phone.code(), NOW)
        old = phone.code()
        phone.told = payers.issue(phone.resident)
        for one in (payers, elsewhere):
            with pytest.raises(CodeUnknown):
                one.payer(old, NOW)
            assert one.payer(phone.code(), NOW).resident == phone.resident
            assert one.payer(phone.code(), NOW) != before, "what was claimed for the old one is not claimed for this"
        [row] = stored(url, "payers")
        assert (row["handle"], bool(row["replaced_at"])) == (phone.told.handle, True)

    def test_a_new_secret_stops_the_one_before_at_once_where_it_was_made(self, payers: Payers) -> None:
        phone = Phone(payers)
        payers.payer(phone.code(), NOW)
        payers.issue(phone.resident)
        assert payers.known(phone.code(), NOW) is None
        with pytest.raises(CodeUnknown):
            payers.payer(phone.code(), NOW)

    def test_an_erased_residents_phone_leads_to_nobody(self, opening: Opening, url: str) -> None:
        directory = opening()
        payers = directory.payers
        phone, kept = Phone(payers), Phone(payers)
        directory.bind("szt", ["card"], phone.resident)
        payers.payer(phone.code(), NOW)
        assert directory.erase(phone.resident) == 1
        with pytest.raises(CodeUnknown):
            payers.payer(phone.code(), NOW)
        assert [row["resident"] for row in stored(url, "payers")] == [kept.resident]

    def test_a_handle_that_is_somebodys_is_not_given_again(
        self, payers: Payers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drawn = iter([7, 7, 8])
        monkeypatch.setattr(of_payers.secrets, "randbelow", lambda _: next(drawn))
        assert [Phone(payers).told.handle, Phone(payers).told.handle] == ["000000007", "000000008"]

    def test_two_processes_that_replace_one_secret_leave_one_that_works(
        self, opening_payers: OpeningPayers, url: str
    ) -> None:
        processes, resident = [opening_payers(), opening_payers()], new_resident()
        with ThreadPoolExecutor(8) as threads:
            told = list(threads.map(lambda n: processes[n % 2].issue(resident), range(16)))
        [row] = stored(url, "payers")
        [last] = [one for one in told if one.handle == row["handle"]]
        assert opening_payers().payer(codes.made(last.handle, last.secret, STEP), NOW).resident == resident

    def test_what_is_stored_is_sealed_for_its_own_row_under_the_subject_key(
        self, payers: Payers, opening_payers: OpeningPayers, url: str
    ) -> None:
        phone, thief = Phone(payers), Phone(payers)
        kept = str(stored(url, "payers"))
        assert phone.told.secret.hex() not in kept
        assert base64.b32encode(phone.told.secret).decode() not in kept
        assert repr(phone.told.secret)[2:-1] not in kept
        rows = at(url, "payers")
        of_thief = f"(SELECT p.sealed FROM {rows} p WHERE p.resident = '{thief.resident}')"
        execute(url, f"UPDATE {rows} SET sealed = {of_thief} WHERE resident = '{phone.resident}'")
        stolen = codes.made(phone.told.handle, thief.told.secret, STEP)
        for one, code in ((opening_payers(), stolen), (opening_payers(OTHER), thief.code())):
            with pytest.raises(CodeUnknown):
                one.payer(code, NOW)
        assert payers.payer(thief.code(), NOW).resident == thief.resident

    def test_a_backend_is_made_codes_of_the_phones_own_secret_or_of_one_that_no_phone_has(
        self, payers: Payers, opening_payers: OpeningPayers
    ) -> None:
        phone, without = Phone(payers), new_resident()
        assert payers.code(phone.resident, STEP)[0] == phone.code()
        code, payer = payers.code(without, STEP)
        for one in (payers, opening_payers()):
            assert one.payer(code, NOW) == payer
            assert one.code(without, STEP) == (code, payer)
        elsewhere = opening_payers(OTHER)  # which cannot unseal what is there
        code, payer = elsewhere.code(without, STEP)
        assert elsewhere.payer(code, NOW) == payer

    def test_an_error_of_the_database_tells_no_handle(self, payers: Payers, url: str) -> None:
        phone = Phone(payers)
        execute(url, f"DROP TABLE {at(url, 'payers')}")
        with pytest.raises(SQLAlchemyError) as failed:
            payers.payer(phone.code(), NOW)
        assert phone.told.handle not in str(failed.value)


class TestGuesses:
    def test_after_ten_wrong_codes_none_of_the_handle_is_looked_at_for_ten_minutes(
        self, payers: Payers, opening_payers: OpeningPayers
    ) -> None:
        phone, other = Phone(payers), Phone(payers)
        wrong = phone.wrong()
        for _ in range(10):
            with pytest.raises(CodeUnknown):
                payers.payer(next(wrong), NOW)
        for one in (payers, opening_payers()):  # a restart forgets nothing
            for code in (next(wrong), phone.code()):
                with pytest.raises(Throttled) as refused:
                    one.payer(code, NOW + timedelta(seconds=60))
                assert refused.value.facts == {"seconds": 540}
            assert one.known(phone.code(), NOW) is None
            assert one.payer(other.code(), NOW).resident == other.resident
        later = NOW + timedelta(minutes=10)
        assert payers.payer(phone.code(STEP + 10), later).resident == phone.resident
        with pytest.raises(CodeUnknown):
            opening_payers().payer(next(wrong), later)
        assert opening_payers().payer(phone.code(STEP + 10), later).resident == phone.resident

    def test_each_ten_minutes_have_ten_guesses(self, payers: Payers, opening_payers: OpeningPayers) -> None:
        phone = Phone(payers)
        wrong = phone.wrong()
        for minutes in (0, 10, 25):
            now = NOW + timedelta(minutes=minutes)
            told = [refused_by(one, next(wrong), now) for one in (payers, opening_payers()) for _ in range(10)]
            assert told == [CodeUnknown] * 10 + [Throttled] * 10

    def test_wrong_codes_at_several_processes_count_together(
        self, payers: Payers, opening_payers: OpeningPayers
    ) -> None:
        phone, processes = Phone(payers), [payers, opening_payers(), opening_payers()]
        told = [refused_by(processes[n % 3], code) for n, code in zip(range(30), phone.wrong(), strict=False)]
        assert 10 <= told.count(CodeUnknown) <= 12, "each process may have been told of the last one too late"
        assert set(told[12:]) == {Throttled}

    def test_of_many_guesses_at_once_no_more_are_judged_than_one_by_one(self, payers: Payers) -> None:
        phone = Phone(payers)
        guesses = [code for code, _ in zip(phone.wrong(), range(60), strict=False)]
        found = payers.payers([(code, None) for code in guesses[:30]], NOW)
        assert [type(one) for one in found.values()].count(CodeUnknown) == 10
        phone = Phone(payers)
        guesses = [code for code, _ in zip(phone.wrong(), range(60), strict=False)]
        with ThreadPoolExecutor(20) as threads:
            told = list(threads.map(lambda code: refused_by(payers, code), guesses))
        assert told.count(CodeUnknown) == 10

    def test_right_old_and_unknown_codes_count_for_nothing_and_write_nothing(self, payers: Payers, url: str) -> None:
        phone = Phone(payers)
        before = stored(url, "payers")
        for n in range(30):
            assert payers.payer(phone.code(), NOW)
            assert refused_by(payers, phone.code(STEP - 3)) is CodeExpired
            assert refused_by(payers, codes.made(f"{n:09}", phone.told.secret, STEP)) is CodeUnknown
        assert stored(url, "payers") == before

    def test_a_new_secret_has_a_new_beginning(self, payers: Payers) -> None:
        phone = Phone(payers)
        for _, code in zip(range(10), phone.wrong(), strict=False):
            assert refused_by(payers, code) is CodeUnknown
        phone.told = payers.issue(phone.resident)
        assert payers.payer(phone.code(), NOW).resident == phone.resident

    @pytest.mark.parametrize("away", [-700, 700])
    def test_a_clock_that_was_wrong_blocks_nobody_for_long(self, payers: Payers, away: int) -> None:
        phone = Phone(payers)
        for _, code in zip(range(10), phone.wrong(), strict=False):
            assert refused_by(payers, code, NOW + timedelta(seconds=away)) is CodeUnknown
        assert payers.payer(phone.code(), NOW).resident == phone.resident


class TestGuessesAtOneTerminal:
    """Whoever tries one code of each of many handles never meets the limit of a handle."""

    @pytest.fixture
    def guess(self, payers: Payers) -> Callable[[], str]:
        """A wrong code of another handle each time, every second one of nobody's."""
        guesses = (code for _ in range(100) for code in (next(Phone(payers).wrong()), NOBODYS))
        return lambda: next(guesses)

    def test_after_thirty_wrong_codes_none_is_looked_at_for_ten_minutes(
        self, payers: Payers, opening_payers: OpeningPayers, guess: Callable[[], str]
    ) -> None:
        phone = Phone(payers)
        assert [refused_by(payers, guess(), till=TILL) for _ in range(30)] == [CodeUnknown] * 30
        minute_later = NOW + timedelta(seconds=60)
        for code in (guess(), phone.code()):
            assert payers.known(code, minute_later, TILL) is None
            with pytest.raises(Throttled) as refused:
                payers.payer(code, minute_later, TILL)
            assert refused.value.facts == {"seconds": 540, "terminal": TILL}
        later = NOW + timedelta(minutes=10)
        assert payers.payer(phone.code(STEP + 10), later, TILL).resident == phone.resident

    def test_others_go_on(self, payers: Payers, guess: Callable[[], str]) -> None:
        phone = Phone(payers)
        for _ in range(40):
            refused_by(payers, guess(), till=TILL)
        for till in ("shop/t2", None):
            for _ in range(2):
                known = payers.known(phone.code(), NOW, till) or payers.payer(phone.code(), NOW, till)
                assert known.resident == phone.resident
        assert refused_by(payers, phone.code(), till=TILL) is Throttled

    def test_they_count_together_at_several_processes_and_a_restart_forgets_nothing(
        self, payers: Payers, opening_payers: OpeningPayers, guess: Callable[[], str]
    ) -> None:
        processes = [payers, opening_payers(), opening_payers()]
        told = [refused_by(processes[n % 3], guess(), till=TILL) for n in range(45)]
        assert 30 <= told.count(CodeUnknown) <= 32, "each process may have been told of the last one too late"
        assert set(told[33:]) == {Throttled}
        restarted = opening_payers()
        told = [refused_by(restarted, guess(), till=TILL) for _ in range(3)]
        assert told == [CodeUnknown, Throttled, Throttled], "it learns how many there were by the first wrong one"

    def test_of_many_at_once_no_more_are_judged_than_one_by_one(self, payers: Payers, guess: Callable[[], str]) -> None:
        guesses = [guess() for _ in range(60)]
        found = payers.payers([(code, TILL) for code in {*guesses}], NOW)
        assert [type(one) for one in found.values()].count(CodeUnknown) == 30
        with ThreadPoolExecutor(20) as threads:
            told = list(threads.map(lambda code: refused_by(payers, code, till="shop/t2"), guesses))
        assert told.count(CodeUnknown) == 30

    def test_right_and_old_codes_count_for_nothing(self, payers: Payers, url: str) -> None:
        phone = Phone(payers)
        for _ in range(40):
            assert payers.payer(phone.code(), NOW, TILL)
            assert refused_by(payers, phone.code(STEP - 3), till=TILL) is CodeExpired
        assert stored(url, "wrong_codes") == []

    def test_a_call_that_is_sent_again_late_is_taken_back(
        self, payers: Payers, opening_payers: OpeningPayers, url: str
    ) -> None:
        phone = Phone(payers)
        used, late = payers.payer(phone.code(), NOW, TILL), NOW + timedelta(hours=1)
        for one in (payers, opening_payers()):
            with pytest.raises(CodeUnknown):
                one.payer(phone.code(), late, TILL)
            assert one.was(phone.code(), used, TILL)
            assert refused_by(one, phone.code(), late, TILL) is CodeExpired
        assert not payers.was(next(phone.wrong()), used, TILL)
        assert [row["wrong"] for row in stored(url, "wrong_codes")] == [0]

    def test_memory_is_bounded(self, payers: Payers, guess: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(of_payers, "CACHED", 3)
        for n in range(9):
            code = guess()
            assert payers.known(code, NOW, f"shop/{n}") is None
            refused_by(payers, code, till=f"shop/{n}")
        assert len(payers._tills) <= 3
        assert not payers._unsure


def refused_by(payers: Payers, code: str, now: datetime = NOW, till: str | None = None) -> type[Exception]:
    try:
        found = payers.payer(code, now, till)
    except (CodeExpired, CodeUnknown, Throttled) as refusal:
        return type(refusal)
    raise AssertionError(found)
