"""Offline from end to end: a resident's app, a terminal without a network, a real server that hears of it later."""

import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from itertools import repeat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from carbon_points_terminal import Call, OverHttp
from carbon_points_terminal.terminal import NotNow
from tests.api.city import City, served
from tests.api.conftest import Founded
from tests.api.test_offline import granted, terms
from tests.api.test_reference_terminal import Till
from tests.conftest import PROJECT


@pytest.fixture
def till(own_city: City) -> Till:
    terms(own_city)
    till = Till(own_city)
    till.time.at = own_city.installation.clock()
    till.terminal.prepare()
    return till


def outage(till: Till) -> None:
    till.network.faults = repeat("lost")


def back(till: Till) -> None:
    """The network is there again; the server's clock has gone on as the terminal's has."""
    till.network.faults = iter(())
    clock: Any = till.city.installation.clock
    clock.move(till.time.at - clock.at)


def verdict(till: Till, call: Call) -> tuple[str, str]:
    found = till.journal.find(call.reference)
    assert found
    assert found.outcome
    return found.outcome.result, found.outcome.code


def test_an_outage_of_hours_and_every_verdict_after_it(till: Till, own_city: City) -> None:
    residents = [own_city.resident(points=200) for _ in range(3)]
    allowances = [granted(own_city, resident, 150) for resident in residents]
    outage(till)
    paid = [till.terminal.pay_offline(allowance, 100) for allowance in allowances]
    with pytest.raises(NotNow, match="paid"):
        till.terminal.pay_offline(allowances[0], 10)
    till.time.pass_(3 * 3600)
    till.terminal.catch_up()
    assert [call.state for call in till.terminal.stored()] == ["STORED"] * 3
    own_city.captured(residents[1], 150)  # online, meanwhile: what is left is not enough
    back(till)
    till.terminal.forward()
    lost = ("declined", "insufficient-points")
    assert [verdict(till, call) for call in paid] == [("approved", ""), lost, ("approved", "")]
    assert [till.left(resident) for resident in residents] == [100, 50, 100]
    assert till.journal.totals(1).sales.points == 200
    placed: Any = own_city.installation.orders.placed(till.terminal.sale(paid[0].reference).redemption_id)
    assert placed.captured_offline_at == paid[0].made


def test_two_terminals_that_took_the_same_allowance_are_paid_once(till: Till, own_city: City) -> None:
    resident = own_city.resident(points=400)
    allowance = granted(own_city, resident, 200)
    other = Till(own_city)
    other.time = till.time
    other.terminal = other.terminal.__class__(
        other.journal, other.network, till.time, other.terminal._ids, till.time.pass_
    )
    other.terminal.prepare()
    outage(till)
    calls = [one.terminal.pay_offline(allowance, 150) for one in (till, other)]
    back(till)
    till.terminal.forward()
    other.terminal.forward()
    assert verdict(till, calls[0]) == ("approved", "")
    assert verdict(other, calls[1]) == ("declined", "code-used")
    assert till.left(resident) == 250


@pytest.mark.parametrize("fault", ["answer-lost", "twice", "late"])
def test_an_answer_that_is_lost_is_asked_for_until_it_comes_and_counts_once(
    till: Till, own_city: City, fault: str
) -> None:
    resident = own_city.resident(points=200)
    call = till.terminal.pay_offline(granted(own_city, resident, 100), 100)
    till.network.faults = iter([fault])
    till.terminal.forward()
    back(till)
    for request in till.network.late:
        till.network.over.send(request)
    till.finish()
    assert verdict(till, call) == ("approved", "")
    assert till.left(resident) == 100
    refunded = till.terminal.refund(call.reference, 30)
    assert refunded.outcome
    assert refunded.outcome.result == "approved"
    assert till.left(resident) == 130


def test_what_comes_too_late_is_lost_and_what_the_clock_said_too_early_is_not(till: Till, own_city: City) -> None:
    early, late = own_city.resident(points=100), own_city.resident(points=100)
    first = till.terminal.pay_offline(granted(own_city, late, 100), 100)
    till.time.pass_(25 * 3600)
    back(till)
    till.terminal.prepare()
    allowance = granted(own_city, early, 100)
    with pytest.raises(NotNow) as refused:
        till.terminal.pay_offline(allowance, 100)
    assert refused.value.code == "offline-too-old"
    till.terminal.forward()
    assert verdict(till, first) == ("declined", "offline-too-late")
    till.time.pass_(600)  # the terminal's clock runs ahead
    second = till.terminal.pay_offline(allowance, 100)
    till.terminal.forward()
    assert [call.reference for call in till.terminal.stored()] == [second.reference]
    back(till)
    till.finish()
    assert verdict(till, second) == ("approved", "")


def test_the_program_takes_forwards_and_lists(founded: Founded, tmp_path: Path) -> None:
    """As it is run, by the real time: processes, and nothing between them but the folder."""
    data = Path(shutil.copytree(founded[0], tmp_path / "data"))
    with served({"CARBON_DATA_DIR": str(data)}, lambda: datetime.now(UTC), founded[1]) as city:
        terms(city)
        resident = city.resident(card="card-1")
        today = (datetime.now(UTC) - timedelta(minutes=1)).isoformat()
        city.earn("card-1", 300, occurred_at=today)
        one, other = granted(city, resident, 150), granted(city, resident, 150)
        environment = {"CARBON_TERMINAL_DIR": str(tmp_path / "till"), "PYTHONPATH": "."}

        def run(*words: str, typed: str = "", code: int = 0) -> Any:
            command = [sys.executable, "-m", "carbon_points_terminal", *words, "--json"]
            done = subprocess.run(
                command,
                cwd=PROJECT,
                env=os.environ | environment,
                input=typed,
                text=True,
                capture_output=True,
                check=False,
            )
            assert done.returncode == code, (words, done.stdout, done.stderr)
            return msgspec.json.decode(done.stdout.splitlines()[-1])

        url, key = str(city.http.base_url), city.keys["next terminal"]
        run("activate", "--url", url, "--merchant", "shop", "--terminal", "t2", typed=f"{key}\n")
        assert run("offline", "prepare")["limits"]["most_count"] == 50
        assert run("offline", "pay", "100", typed=f"{one}\n")["state"] == "STORED"
        run("offline", "pay", "150", "--allowance", other)
        city.captured(resident, 150)
        listed = run("offline", "forward", code=1)
        assert [line["code"] for line in listed["data"]] == ["", "insufficient-points"]
        assert (listed["approved"], listed["declined"]) == ({"count": 1, "points": 100}, {"count": 1, "points": 150})
        assert run("batch", "close")["answer"] == "agreed"
        assert city.balance(resident)["points_available"] == 50


def test_a_key_of_another_installation_is_not_taken(till: Till, own_city: City) -> None:
    resident = own_city.resident(points=100)
    allowance = granted(own_city, resident, 100)
    till.network.over = OverHttp(str(own_city.http.base_url), own_city.keys["terminal"], client=own_city.http)
    with pytest.raises(NotNow) as refused:
        till.terminal.pay_offline(allowance[:-6] + "AAAAAA", 100)
    assert refused.value.code == "allowance-invalid"
