"""Allowances in the directory: one key for all processes, one text for one allowance, nobody's once they are erased."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from carbon_points.directory import Directory
from carbon_points.directory.allowances import KEPT, LIFE, AllowanceInvalid
from carbon_points.domain.refusal import Conflict
from tests.directory.conftest import KEY
from tests.given import NOON

R = "res_" + "a" * 20
SECOND = timedelta(seconds=1)


def test_processes_that_begin_at_once_sign_with_one_key(url: str) -> None:
    directories = [Directory(url, KEY) for _ in range(4)]

    def tokens(number: int) -> str:
        return directories[number].allowances.grant(f"alw_{number}", R, "shop", 1, NOON).token

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(tokens, range(4)))
    assert len({token.split(".")[1] for token in found}) == 1
    for directory in directories:
        assert [directory.allowances.read(token).id for token in found] == [f"alw_{n}" for n in range(4)]
        assert len(directory.allowances.public_keys()) == 1
        directory.close()


def test_granted_twice_at_once_it_is_one_and_says_the_same(directory: Directory) -> None:
    def grant(second: int) -> tuple[str, bool]:
        granted = directory.allowances.grant("alw_1", R, "shop", 10, NOON + second * SECOND)
        return granted.token, granted.again

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(grant, range(4)))
    assert len({token for token, _ in found}) == 1
    assert sorted(again for _, again in found) == [False, True, True, True]
    with pytest.raises(Conflict) as refused:
        directory.allowances.grant("alw_1", "res_" + "b" * 20, "mall", 11, NOON)
    assert refused.value.facts["fields"] == ["resident", "merchant", "points"]


def test_what_has_ended_is_outstanding_no_more_and_later_gone(directory: Directory) -> None:
    allowances = directory.allowances
    allowances.grant("alw_1", R, "shop", 10, NOON)
    assert [one.id for one in allowances.outstanding(R, NOON + LIFE - SECOND)] == ["alw_1"]
    assert allowances.outstanding(R, NOON + LIFE) == []
    allowances.grant("alw_2", R, "shop", 10, NOON + LIFE + KEPT)
    assert allowances.find("alw_1")  # what it paid may still be sent
    allowances.grant("alw_3", R, "shop", 10, NOON + LIFE + KEPT + SECOND)
    assert allowances.find("alw_1") is None


def test_whoever_is_erased_is_led_to_by_none(directory: Directory) -> None:
    other = "res_" + "b" * 20
    for name, resident in (("alw_1", R), ("alw_2", other)):
        directory.allowances.grant(name, resident, "shop", 10, NOON)
    directory.erase(R)
    assert directory.allowances.find("alw_1") is None
    assert directory.allowances.find("alw_2")


def test_a_key_that_this_process_has_not_seen_is_looked_up(url: str, directory: Directory) -> None:
    token = directory.allowances.grant("alw_1", R, "shop", 10, NOON).token
    later = Directory(url, b"x" * 32)  # its own key follows the first, which it cannot unseal
    theirs = later.allowances.grant("alw_2", R, "shop", 10, NOON).token
    later.close()
    assert theirs.split(".")[1] != token.split(".")[1]
    assert directory.allowances.read(theirs).id == "alw_2"
    assert directory.allowances.read(token).id == "alw_1"
    with pytest.raises(AllowanceInvalid):
        directory.allowances.read(theirs.replace(theirs.split(".")[1], token.split(".")[1]))


def test_the_private_key_lies_sealed(url: str, tmp_path: Path, directory: Directory) -> None:
    directory.allowances.grant("alw_1", R, "shop", 10, NOON)
    _, key = directory.allowances._signer or ("", None)  # pyright: ignore[reportPrivateUsage]
    assert key
    directory.close()
    for file in tmp_path.rglob("*"):
        assert key.private_bytes_raw() not in file.read_bytes(), file
