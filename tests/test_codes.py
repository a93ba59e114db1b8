"""Payment codes: made as RFC 6238 has it, told from a mistyped one by the check digit, and good for a few steps."""

import re
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from carbon_points import codes
from carbon_points.codes import Code, CodeExpired, CodeMalformed, CodeUnknown

SECRET, NOW = bytes(range(20)), 29_166_480
HANDLES = st.text("0123456789", min_size=9, max_size=9)
SECRETS = st.binary(min_size=20, max_size=20)
STEPS = st.integers(11, 2**40)
CODES = st.builds(codes.made, HANDLES, SECRETS, STEPS)

# RFC 6238, appendix B, SHA-256: seconds and the password of 8 digits, in steps of 30 s.
PUBLISHED = [
    (59, "46119246"),
    (1_111_111_109, "68084774"),
    (1_111_111_111, "67062674"),
    (1_234_567_890, "91819424"),
    (2_000_000_000, "90698825"),
    (20_000_000_000, "77737706"),
]


@pytest.mark.parametrize(("seconds", "eight_digits"), PUBLISHED)
def test_the_password_is_that_of_rfc_6238(seconds: int, eight_digits: str) -> None:
    seed = b"12345678901234567890123456789012"
    assert codes.password(seed, seconds // 30) == eight_digits[-6:], "six digits are the last of eight"


@pytest.mark.parametrize(("digits", "digit"), [("7992739871", "3"), ("411111111111111", "1"), ("0", "0")])
def test_the_check_digit_is_luhns(digits: str, digit: str) -> None:
    assert codes.check_digit(digits) == digit


# -- the form --------------------------------------------------------------------------------------------------------


@given(handle=HANDLES, secret=SECRETS, step=STEPS)
def test_a_code_is_18_digits_and_is_read_as_it_was_made(handle: str, secret: bytes, step: int) -> None:
    made = codes.made(handle, secret, step)
    assert re.fullmatch("80[0-9]{16}", made)
    assert codes.read(made) == Code(handle, codes.password(secret, step))


@given(code=CODES, place=st.integers(0, 17), digit=st.sampled_from("0123456789"))
def test_one_wrong_digit_is_always_told(code: str, place: int, digit: str) -> None:
    assume(code[place] != digit)
    with pytest.raises(CodeMalformed):
        codes.read(code[:place] + digit + code[place + 1 :])


@given(code=CODES, place=st.integers(0, 16))
def test_two_swapped_neighbours_are_told_unless_they_are_0_and_9(code: str, place: int) -> None:
    pair = code[place : place + 2]
    assume(pair[0] != pair[1] and set(pair) != {"0", "9"})
    with pytest.raises(CodeMalformed):
        codes.read(code[:place] + pair[::-1] + code[place + 2 :])


def test_what_the_check_digit_does_not_tell_the_password_does() -> None:
    code = next(c for c in (codes.made("000000090", SECRET, step) for step in range(NOW, NOW + 999)) if "09" in c[2:17])
    swapped = code[:2] + code[2:17].replace("09", "90", 1) + code[17]
    assert codes.read(swapped) != codes.read(code)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "digits"),
        ("8" * 17, "digits"),
        ("8" * 19, "digits"),
        ("80123456789123456x", "digits"),
        ("80 123456789 123456 1", "digits"),
        ("801234567891234561\n", "digits"),
        ("８０１２３４５６７８９１２３４５６７", "digits"),
        ("٨" * 18, "digits"),
        ("134567890123456788", "prefix"),
        ("280000000000000009", "prefix"),
        ("800000000000000000", "check digit"),
    ],
)
def test_what_is_no_code_is_told_so_and_not_repeated(text: str, wrong: str) -> None:
    with pytest.raises(CodeMalformed) as refused:
        codes.read(text)
    assert refused.value.facts == {"wrong": wrong}


def test_a_code_that_is_shown_by_mistake_shows_nothing() -> None:
    assert not re.search(r"\d", repr(codes.read(codes.made("123456789", SECRET, NOW))))


# -- time ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("away", [-1, 0, 1])
def test_a_code_is_good_in_its_own_step_and_the_ones_beside_it(away: int) -> None:
    assert codes.step_of(made_in(NOW + away), SECRET, NOW) == NOW + away


@pytest.mark.parametrize(
    ("away", "refusal"), [(-11, CodeUnknown), (-10, CodeExpired), (-2, CodeExpired), (2, CodeUnknown)]
)
def test_an_older_code_is_expired_for_ten_minutes_and_any_other_unknown(away: int, refusal: Any) -> None:
    with pytest.raises(refusal):
        codes.step_of(made_in(NOW + away), SECRET, NOW)


def test_another_secret_makes_another_code() -> None:
    with pytest.raises(CodeUnknown):
        codes.step_of(made_in(NOW), SECRET[::-1], NOW)


@given(step=st.integers(11, 2**32))
def test_a_code_ends_when_it_is_taken_no_more(step: int) -> None:
    end = codes.ends_at(step)
    assert codes.step_of(made_in(step), SECRET, codes.step_at(end) - 1) == step
    with pytest.raises(CodeExpired):
        codes.step_of(made_in(step), SECRET, codes.step_at(end))


def made_in(step: int) -> Code:
    return codes.read(codes.made("123456789", SECRET, step))
