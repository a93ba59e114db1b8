"""The demonstration: one command walks the whole loop, over HTTP only, and its figures close."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from carbon_points.demo import run
from tests.conftest import PROJECT

SECONDS_MOST = 60  # on a machine that has nothing else to do
SHOWN = {
    "actions": {"accepted", "duplicate", "refused"},
    "points": {"granted", "held", "redeemed", "expired", "available"},
    "lots": {"issued_kg", "sold_kg", "retired_kg"},
    "fund_fen": {"in", "out", "balance"},
    "trial_balance": {"mg", "points", "fen"},
}


@contextmanager
def demo(*arguments: str | Path) -> Iterator["subprocess.Popen[str]"]:
    """The command as a stranger types it; whatever is set here for other installations is none of its business, nor
    that the tests may run where nobody interrupts them, in the background. However a test ends, so does it."""
    command = [sys.executable, "-m", "carbon_points", "demo", "--json", *map(str, arguments)]
    environment = os.environ | {"CARBON_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/x", "CARBON_PORT": "wrong"}
    pipe = subprocess.PIPE
    here = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=pipe, stderr=pipe, text=True)
    finally:
        signal.signal(signal.SIGINT, here)
    with process:
        try:
            yield process
        finally:
            process.kill()


def figures(*arguments: str | Path) -> Any:
    with demo(*arguments) as process:
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    return json.loads(output.splitlines()[-1])


def walked(file: Path) -> Any:
    """The figures of a walk with a file."""
    return run(file=file, seed=1, stay=False, say=lambda _: None).figures


def closes(told: Any) -> None:
    """Everything named is there, and adds up."""
    assert set(told) >= {*SHOWN, "reduction_mg", "entries"}
    for name, keys in SHOWN.items():
        assert set(told[name]) >= keys
    assert told["trial_balance"] == {"mg": 0, "points": 0, "fen": 0}
    points, lots, fund = told["points"], told["lots"], told["fund_fen"]
    spent = points["held"] + points["redeemed"] + points["expired"]
    assert points["granted"] == points["available"] + spent
    assert told["reduction_mg"] >= lots["issued_kg"] * 1_000_000
    assert lots["issued_kg"] >= lots["sold_kg"] >= lots["retired_kg"]
    assert fund["balance"] == fund["in"] - fund["out"]
    assert told["entries"] >= told["actions"]["accepted"]


def test_the_small_city_closes_its_loop_in_a_minute() -> None:
    begun = time.monotonic()
    told = figures()
    load = max(os.getloadavg()[0] / (os.cpu_count() or 1), 1)
    assert time.monotonic() - begun < SECONDS_MOST * load
    closes(told)
    assert told["actions"]["accepted"] > 4_000
    assert told["actions"]["duplicate"] + told["actions"]["refused"] >= 100
    assert told["actions"]["refused_by_code"] == {"quantity-below-least": told["actions"]["refused"]}
    assert told["points"]["redeemed"] > 0
    assert told["points"]["held"] > 0
    assert told["lots"]["retired_kg"] > 0
    assert told["fund_fen"]["out"] > 0


def file_of(folder: Path, days: int, resident: str = "card") -> Path:
    """So many days of two people with a heavy bin each."""
    file = folder / "a.ndjson"
    fields = {"source": "station", "behaviour": "waste_sorting", "unit": "kg", "quantity": "2.5"}
    lines = [
        json.dumps(
            fields | {"record_id": f"{who}-{day}", "resident": who, "occurred_at": f"2025-03-{day:02d}T09:00:00Z"}
        )
        for day in range(1, days + 1)
        for who in (f"{resident}-1", f"{resident}-2")
    ]
    file.write_text("\n".join(lines) + "\n\n", "utf-8")
    return file


def test_a_file_of_real_actions_walks_the_same_loop(tmp_path: Path) -> None:
    told = walked(file_of(tmp_path, 20))
    closes(told)
    assert told["actions"]["accepted"] == 40
    assert told["actions"]["duplicate"] == 40
    # 40 x 2.5 kg x 1340 g, less the first, which its source takes back
    assert told["reduction_mg"] == 39 * 3_350_000
    assert told["lots"]["issued_kg"] == 39 * 3_350 // 1_000
    assert told["lots"]["sold_kg"] == told["lots"]["issued_kg"] * 4 // 5


def test_a_file_with_nothing_in_it_is_walked_too(tmp_path: Path) -> None:
    told = walked(file_of(tmp_path, 0))
    closes(told)
    assert told["actions"]["accepted"] == told["lots"]["issued_kg"] == 0


def test_a_file_with_mistakes_in_it_is_walked_too(tmp_path: Path) -> None:
    file = file_of(tmp_path, 1)
    file.write_bytes(file.read_bytes() + b'nonsense\n{"source": 1}\n"\xff"\n[1, 2]\n')
    told = walked(file)
    closes(told)
    assert told["actions"]["accepted"] == 2


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stay_it_tells_its_address_and_keys_and_leaves_nothing_behind(
    tmp_path: Path, ended_by: signal.Signals
) -> None:
    with demo("--stay", "--actions", file_of(tmp_path, 2)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        closes(json.loads(process.stdout.readline()))
        said = ""
        while "huzhou-bus-coupon/t1" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        [url] = set(re.findall(r"up at (http://\S+?),", said.replace("\n", " ")))
        [folder] = re.findall(r"from (/\S+)", said)
        key = re.search(r"auditor\s+(cp_live_\S+)", said)
        assert key is not None
        answer = httpx.get(f"{url}/v1/fund", headers={"Authorization": f"Bearer {key[1]}"})
        assert answer.json()["in_fen"] > 0
        assert httpx.get(f"{url}/docs").status_code == 200
        assert Path(folder).is_dir()
        process.send_signal(ended_by)
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert not Path(folder).exists()
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{url}/healthz")
