"""Receivers are told what happened: everything, in numbers without gaps, for days, and nobody waits for a slow one."""

import threading
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
import time_machine
from standardwebhooks import Webhook

from carbon_points.domain.account import CapturePoints, VoidHold
from carbon_points.webhooks import deliverer as of_deliverer
from carbon_points.webhooks import deliveries as of_deliveries
from carbon_points.webhooks import sending as of_sending
from carbon_points.webhooks.deliveries import AT_ONCE, LEASE_SECONDS, SCHEDULE, Deliveries, Leased
from carbon_points.webhooks.endpoints import Endpoints
from carbon_points.webhooks.messages import messages
from carbon_points.webhooks.sending import Answer
from tests.api.city import wait_for
from tests.conftest import Clock
from tests.webhooks.conftest import BOTH, Told
from tests.webhooks.receiver import Receiver, Say

SECOND = timedelta(seconds=1)


class TestTelling:
    @BOTH
    def test_a_receiver_is_told_what_happened_since_it_was_made_signed_and_numbered(
        self, told: Told, receiver: Receiver
    ) -> None:
        told.held(0)
        endpoint = told.endpoint(receiver, merchant="bakery")
        told.held(1)
        told.log.do(CapturePoints(resident="res_1", redemption_id="rdm_1", points=1))
        told.held(2)
        told.log.do(VoidHold(resident="res_1", redemption_id="rdm_2"))
        told.deliverer.drain()
        assert sorted(receiver.sequences) == [1, 2, 3, 4]
        got = sorted(receiver.got, key=lambda one: one.told["sequence"])
        said = [(one.told["type"], one.told["data"]["redemption_id"]) for one in got]
        assert said == [
            ("redemption.held", "rdm_1"),
            ("redemption.captured", "rdm_1"),
            ("redemption.held", "rdm_2"),
            ("redemption.voided", "rdm_2"),
        ]
        for one in got:
            assert one.headers["webhook-sequence"] == str(one.told["sequence"])
            assert one.headers["content-type"] == "application/json"
            assert one.id == one.told["id"]
            with time_machine.travel(told.clock(), tick=False):
                assert Webhook(told.secret(endpoint)).verify(one.body, one.headers) == one.told
        assert [row.status for row in told.rows(endpoint)] == ["delivered"] * 4

    def test_a_merchant_is_told_its_own_an_app_all_and_both_what_they_asked_for(
        self, told: Told, receiver: Receiver, other: Receiver, elsewhere: str
    ) -> None:
        told.endpoint(receiver, merchant="mall", types=("redemption.held",))
        app = told.endpoint(other)
        told.held(1)
        told.held(2, merchant="mall", resident=elsewhere)
        told.log.do(CapturePoints(resident=elsewhere, redemption_id="rdm_2", points=1))
        told.deliverer.drain()
        assert [got.told["data"]["redemption_id"] for got in receiver.got] == ["rdm_2"]
        assert "resident" not in receiver.got[0].told["data"]
        assert len(other.got) == 3
        assert {got.told["data"]["resident"] for got in other.got} == {"res_1", elsewhere}
        assert [row.sequence for row in told.rows(app)] == [1, 2, 3]

    def test_the_same_event_has_one_name_for_everybody(self, told: Told, receiver: Receiver, other: Receiver) -> None:
        told.endpoint(receiver)
        told.held(1)
        told.endpoint(other)
        told.held(2)
        told.deliverer.drain()
        assert {got.told["data"]["redemption_id"]: got.id for got in receiver.got}["rdm_2"] == other.got[0].id

    def test_nothing_is_told_twice_by_reading_again(self, told: Told, receiver: Receiver) -> None:
        told.endpoint(receiver)
        told.held(1)
        for deliverer in (told.deliverer, told.another(), told.another(told.process())):
            deliverer.drain()
        assert receiver.sequences == [1]

    def test_a_long_stretch_without_news_is_not_read_again_after_a_restart(
        self, told: Told, receiver: Receiver
    ) -> None:
        endpoint = told.endpoint(receiver, merchant="mall")
        told.held(1)
        told.deliverer.drain()
        assert told.endpoints.one(endpoint.endpoint_id).positions == told.log.journal.heads()

    def test_a_rotated_secret_signs_beside_its_successor_for_a_day(
        self, told: Told, receiver: Receiver, clock: Clock
    ) -> None:
        endpoint = told.endpoint(receiver)
        former = told.secret(endpoint)
        new, again = told.endpoints.rotate(endpoint.endpoint_id, "call 1", now=clock())
        assert (new != former, again) == (True, False)
        assert told.endpoints.rotate(endpoint.endpoint_id, "call 1", now=clock()) == (new, True)
        for number, hours in enumerate((0, 23, 25)):
            clock.at += timedelta(hours=hours) if number < 2 else timedelta(hours=2)
            told.held(number)
            told.deliverer.drain()
            got = receiver.got[-1]
            with time_machine.travel(clock(), tick=False):
                Webhook(new).verify(got.body, got.headers)
                assert len(got.headers["webhook-signature"].split(" ")) == (2 if number < 2 else 1)
                if number < 2:
                    Webhook(former).verify(got.body, got.headers)

    def test_secrets_are_stored_sealed_and_another_key_sends_nothing(
        self, told: Told, receiver: Receiver, url: str
    ) -> None:
        endpoint = told.endpoint(receiver)
        told.held(1)
        secret = told.secret(endpoint)
        with told.endpoints.engine.connect() as connection:
            rows = str(connection.exec_driver_sql(f"SELECT * FROM {place(url)}endpoints").all())
        assert secret.removeprefix("whsec_") not in rows
        stranger = Endpoints(url, bytes(32))
        told.another(Deliveries(stranger)).drain()
        stranger.close()
        assert not receiver.got
        assert "another subject key" in str(told.rows(endpoint)[0].answer)


def place(url: str) -> str:
    return "webhooks." if url.startswith("postgresql") else ""


class TestTrying:
    @BOTH
    def test_what_fails_is_tried_again_for_days_under_the_same_name_and_number(
        self, told: Told, receiver: Receiver, clock: Clock
    ) -> None:
        endpoint = told.endpoint(receiver)
        receiver.says(500)
        told.held(1)
        tried = []
        for tries, pause in enumerate(SCHEDULE, 1):
            if pause:
                clock.move(pause - SECOND)
                told.deliverer.drain()
                assert len(receiver.got) == tries - 1, "not before its time"
                clock.move(SECOND)
            told.deliverer.drain()
            assert len(receiver.got) == tries
            tried.append(clock())
        assert tried[-1] - tried[0] == timedelta(hours=75, minutes=35, seconds=5)
        assert len({(got.id, got.body) for got in receiver.got}) == 1
        stamps = [int(got.headers["webhook-timestamp"]) for got in receiver.got]
        assert stamps == [int(at.timestamp()) for at in tried]
        [row] = told.rows(endpoint)
        assert (row.status, row.tries, row.answer, row.next_at) == ("failed", 10, "HTTP 500", None)

    def test_tries_are_spread_and_never_before_the_schedule(self, told: Told, receiver: Receiver, clock: Clock) -> None:
        chances = iter([0.0, 0.5, 1.0])
        process = told.process(lambda: next(chances))
        endpoint = told.endpoint(receiver)
        receiver.says(500)
        for number in range(3):
            told.held(number)
        told.another(process).drain()
        pauses = sorted((row.next_at or clock()) - clock() for row in told.rows(endpoint))
        assert pauses == [5 * SECOND, 5.5 * SECOND, 6 * SECOND]

    @pytest.mark.parametrize(
        ("said", "answer"),
        [
            (Say(302, {"location": "http://127.0.0.1/"}), "HTTP 302"),
            (Say(404), "HTTP 404"),
            (Say(before=9), "no answer within 0.2 s"),
            (Say(503), "HTTP 503"),
        ],
    )
    def test_whatever_is_not_2xx_in_time_is_tried_again(
        self, told: Told, receiver: Receiver, clock: Clock, monkeypatch: pytest.MonkeyPatch, said: Say, answer: str
    ) -> None:
        endpoint = told.endpoint(receiver)
        receiver.says(said, 204)
        told.held(1)
        with monkeypatch.context() as hurried:
            if said.before:  # whoever does answer may be slow here
                hurried.setattr(of_sending, "TIMEOUT_SECONDS", 0.2)
            told.deliverer.drain()
        [row] = told.rows(endpoint)
        assert (row.status, row.tries, row.answer) == ("waiting", 1, answer)
        clock.move(10 * SECOND)
        told.deliverer.drain()
        [row] = told.rows(endpoint)
        assert (row.status, row.tries, row.answer) == ("delivered", 2, "HTTP 204")
        assert receiver.sequences == [1, 1]

    @pytest.mark.parametrize(("asked", "waits"), [("120", 120), ("2", 5), ("99999999", 3_600)])
    def test_retry_after_is_heeded_within_bounds(
        self, told: Told, receiver: Receiver, clock: Clock, asked: str, waits: int
    ) -> None:
        endpoint = told.endpoint(receiver)
        receiver.says(Say(503, {"retry-after": asked}), 200)
        told.held(1)
        told.deliverer.drain()
        assert told.rows(endpoint)[0].next_at == clock() + waits * SECOND
        clock.move(waits * SECOND)
        told.deliverer.drain()
        assert told.rows(endpoint)[0].status == "delivered"


class TestSparing:
    @pytest.mark.parametrize("status", [429, 502, 504])
    def test_who_says_it_is_too_much_is_left_alone_for_a_while_and_then_asked_once(
        self, told: Told, receiver: Receiver, clock: Clock, status: int
    ) -> None:
        told.endpoint(receiver)
        for number in range(20):
            told.held(number)
        receiver.answering = lambda _: Say(status, before=0.05)
        told.deliverer.drain()
        first = len(receiver.got)
        assert first <= 2 * AT_ONCE, "those that were under way"
        told.deliverer.drain()
        assert len(receiver.got) == first
        clock.move(timedelta(minutes=5))
        told.deliverer.drain()
        assert len(receiver.got) == first + 1, "one to see whether it is better"
        receiver.says(200)
        clock.move(timedelta(minutes=10))
        told.deliverer.drain()
        assert sorted(set(receiver.sequences)) == list(range(1, 21))

    def test_who_is_gone_is_told_nothing_any_more(self, told: Told, receiver: Receiver, clock: Clock) -> None:
        endpoint = told.endpoint(receiver)
        receiver.says(410)
        told.held(1)
        told.deliverer.drain()
        assert told.status(endpoint) == ("disabled", "gone")
        told.held(2)
        clock.move(timedelta(days=9))
        told.deliverer.drain()
        assert receiver.sequences == [1]

    def test_an_endpoint_is_disabled_when_a_message_failed_for_its_whole_schedule_and_none_got_through(
        self, told: Told, receiver: Receiver, clock: Clock
    ) -> None:
        endpoint = told.endpoint(receiver)
        receiver.says(500)
        told.held(1)
        for pause in SCHEDULE:
            assert told.status(endpoint) == ("enabled", None)
            clock.move(pause)
            told.deliverer.drain()
        assert told.status(endpoint) == ("disabled", "failing")

    def test_one_message_that_is_never_taken_disables_nobody_who_takes_others(
        self, told: Told, receiver: Receiver, clock: Clock
    ) -> None:
        endpoint = told.endpoint(receiver)
        receiver.answering = lambda got: Say(422 if got.told["sequence"] == 1 else 200)
        for number, pause in enumerate(SCHEDULE):
            clock.move(pause)
            told.held(number)
            told.deliverer.drain()
        first, *others = told.rows(endpoint)
        assert (first.status, {row.status for row in others}) == ("failed", {"delivered"})
        assert told.status(endpoint) == ("enabled", None)

    @BOTH
    def test_enabled_again_it_is_told_what_it_missed_without_a_gap(
        self, told: Told, receiver: Receiver, clock: Clock
    ) -> None:
        endpoint = told.endpoint(receiver)
        told.held(1)
        told.deliverer.drain()
        told.endpoints.change(endpoint.endpoint_id, now=clock(), enabled=False)
        told.held(2)
        told.deliverer.drain()
        assert receiver.sequences == [1]
        assert [row.sequence for row in told.rows(endpoint)] == [1], "the log is the queue: nothing is stored for it"
        told.endpoints.change(endpoint.endpoint_id, now=clock(), enabled=True)
        told.held(3)
        told.deliverer.drain()
        assert sorted(receiver.sequences) == [1, 2, 3]
        missed = told.endpoints.change(endpoint.endpoint_id, now=clock(), enabled=False)
        told.held(4)
        heads = told.log.journal.heads()
        told.endpoints.change(missed.endpoint_id, now=clock(), enabled=True, positions=heads)
        told.held(5)
        told.deliverer.drain()
        assert [got.told["data"]["redemption_id"] for got in receiver.got][-1] == "rdm_5"
        assert receiver.sequences[-1] == 4

    def test_enabled_again_it_is_told_at_once_what_waited(self, told: Told, receiver: Receiver, clock: Clock) -> None:
        endpoint = told.endpoint(receiver)
        receiver.says(410, 200)
        told.held(1)
        told.deliverer.drain()
        told.endpoints.change(endpoint.endpoint_id, now=clock(), enabled=True)
        told.deliverer.drain()
        assert receiver.sequences == [1, 1]
        assert told.rows(endpoint)[0].status == "delivered"

    def test_disabled_and_enabled_within_a_moment_it_misses_nothing(
        self, told: Told, receiver: Receiver, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between reading who is enabled and giving them what happened."""
        endpoint = told.endpoint(receiver)
        told.held(1)
        real = told.deliveries.take_in

        def meanwhile(*said: Any, **more: Any) -> int:
            told.endpoints.change(endpoint.endpoint_id, now=clock(), enabled=False)
            monkeypatch.setattr(told.deliveries, "take_in", real)
            made = real(*said, **more)
            told.endpoints.change(endpoint.endpoint_id, now=clock(), enabled=True)
            return made

        monkeypatch.setattr(told.deliveries, "take_in", meanwhile)
        told.deliverer.drain()
        told.deliverer.drain()
        assert receiver.sequences == [1]

    def test_what_is_too_much_to_wait_stays_in_the_log_until_there_is_room(
        self, told: Told, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, clock: Clock
    ) -> None:
        monkeypatch.setattr(of_deliveries, "WINDOW", 3)
        monkeypatch.setattr(of_deliverer, "BATCH", 1)
        receiver.says(500)
        endpoint = told.endpoint(receiver)
        for number in range(8):
            told.held(number)
        told.deliverer.drain()
        assert len(told.rows(endpoint)) == 3
        receiver.says(200)
        for _ in range(4):
            clock.move(timedelta(hours=1))
            told.deliverer.drain()
        assert sorted(set(receiver.sequences)) == list(range(1, 9))
        assert [row.status for row in told.rows(endpoint)] == ["delivered"] * 8


class TestByHand:
    def test_what_was_told_or_failed_is_sent_again_under_its_name_and_number(
        self, told: Told, receiver: Receiver, clock: Clock
    ) -> None:
        endpoint = told.endpoint(receiver)
        for number in range(4):
            told.held(number)
        told.deliverer.drain()
        first = {got.told["sequence"]: (got.id, got.body) for got in receiver.got}
        receiver.got.clear()
        assert told.deliveries.resend(endpoint.endpoint_id, 2, 3, now=clock()) == 2
        told.deliverer.drain()
        assert {got.told["sequence"]: (got.id, got.body) for got in receiver.got} == {n: first[n] for n in (2, 3)}
        assert told.deliveries.resend(endpoint.endpoint_id, 1, 4, now=clock(), status="failed") == 0

    def test_a_test_is_told_once_in_its_turn(self, told: Told, receiver: Receiver, clock: Clock) -> None:
        endpoint = told.endpoint(receiver, merchant="bakery", types=("settlement.paid",))
        made, again = told.deliveries.test(endpoint.endpoint_id, "evt_test_1", now=clock())
        assert (made.sequence, again) == (1, False)
        assert told.deliveries.test(endpoint.endpoint_id, "evt_test_1", now=clock()) == (made, True)
        told.deliverer.drain()
        [got] = receiver.got
        assert (got.id, got.told["type"], got.told["data"]) == (
            "evt_test_1",
            "webhook.test",
            {"endpoint_id": endpoint.endpoint_id},
        )

    def test_what_was_over_long_ago_is_forgotten_and_what_waits_is_not(
        self, told: Told, receiver: Receiver, clock: Clock
    ) -> None:
        endpoint = told.endpoint(receiver)
        receiver.says(200, 500)
        for number in range(2):
            told.held(number)
            told.deliverer.drain()
        clock.move(timedelta(days=31))
        assert told.deliveries.purge(now=clock()) == 1
        assert [row.sequence for row in told.rows(endpoint)] == [2]


class TestTogether:
    @BOTH
    def test_two_processes_never_take_the_same_delivery(self, told: Told, receiver: Receiver, clock: Clock) -> None:
        endpoints = [told.endpoint(receiver) for _ in range(3)]
        for number in range(12):
            told.held(number)
        told.deliverer._take_in()
        processes = [told.process() for _ in range(4)]
        taken: list[Leased] = []
        ready = threading.Barrier(4)

        def take(process: Deliveries) -> None:
            ready.wait()
            mine = process.lease(2, now=clock())
            taken.extend(mine)

        threads = [threading.Thread(target=take, args=(process,)) for process in processes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        keys = [(one.endpoint_id, one.sequence) for one in taken]
        assert len(keys) == len(set(keys))
        while more := processes[0].lease(100, now=clock()):
            keys += [(one.endpoint_id, one.sequence) for one in more]
        assert len(keys) == len(set(keys)) == 3 * AT_ONCE, "and never more of one endpoint than at once"
        assert len(told.rows(endpoints[0])) == 12

    @BOTH
    def test_a_process_that_is_behind_tells_nothing_twice_and_takes_nobody_back(
        self, told: Told, receiver: Receiver, clock: Clock
    ) -> None:
        endpoint = told.endpoint(receiver)
        numbers = [told.held(number) for number in range(3)]
        partition, last = numbers[0].partition, numbers[2].position
        read = list(messages(told.log.journal.entries(partition)))
        names = [endpoint.endpoint_id]
        assert told.deliveries.take_in(partition, last, read, names, now=clock()) == 3
        behind = told.process()
        for until in (numbers[1].position, last):
            assert behind.take_in(partition, until, read, names, now=clock()) == 0
        assert told.endpoints.one(endpoint.endpoint_id).positions[partition] == last
        assert told.deliveries.take_in(partition, last + 1, read, names, now=clock()) == 0
        assert [row.sequence for row in told.rows(endpoint)] == [1, 2, 3]

    @BOTH
    def test_two_processes_deliver_everything_once_in_numbers_without_gaps(
        self, told: Told, receiver: Receiver, elsewhere: str
    ) -> None:
        told.endpoint(receiver)
        deliverers = [told.another(told.process()) for _ in range(2)]
        for deliverer in deliverers:
            deliverer.start()
        for number in range(30):
            told.held(number, resident=elsewhere if number % 2 else "res_1")
        wait_for(lambda: len(receiver.got) >= 30)
        for deliverer in deliverers:
            deliverer.stop()
        assert sorted(receiver.sequences) == list(range(1, 31))
        assert receiver.at_once_most <= AT_ONCE
        by_partition: dict[str, list[tuple[int, int]]] = {}
        for got in receiver.got:
            _, partition, position, _ = got.id.split("_")
            by_partition.setdefault(partition, []).append((got.told["sequence"], int(position)))
        for numbered in by_partition.values():
            ordered = [position for _, position in sorted(numbered)]
            assert all(a < b for a, b in pairwise(ordered)), "a partition's events are numbered in their order"

    @BOTH
    def test_who_dies_between_sending_and_writing_down_lets_it_be_told_again_as_the_same(
        self, told: Told, receiver: Receiver, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        endpoint = told.endpoint(receiver)
        told.held(1)
        dying = told.process()

        def die(*_: Any, **__: Any) -> None:
            raise KeyError("killed")

        monkeypatch.setattr(dying, "settle", die)
        with pytest.raises(KeyError):
            told.another(dying).drain()
        assert len(receiver.got) == 1
        told.deliverer.drain()
        assert len(receiver.got) == 1, "the other may still be at it"
        clock.move(timedelta(seconds=LEASE_SECONDS))
        told.deliverer.drain()
        assert len(receiver.got) == 2
        assert len({(got.id, got.body) for got in receiver.got}) == 1
        assert told.rows(endpoint)[0].status == "delivered"

    @BOTH
    def test_an_answer_after_its_lease_counts_only_where_the_receiver_has_it(
        self, told: Told, receiver: Receiver, clock: Clock
    ) -> None:
        endpoint = told.endpoint(receiver)
        told.held(1)
        told.deliverer._take_in()
        [late] = told.deliveries.lease(1, now=clock())
        clock.move(timedelta(seconds=LEASE_SECONDS))
        [_] = told.process().lease(1, now=clock())
        told.deliveries.settle(late, Answer(500), now=clock())
        assert told.rows(endpoint)[0].tries == 0
        told.deliveries.settle(late, Answer(200), now=clock())
        assert told.rows(endpoint)[0].status == "delivered"

    def test_one_slow_receiver_delays_no_other(
        self, told: Told, receiver: Receiver, other: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(of_deliverer, "STOP_SECONDS", 0.1)
        told.endpoint(receiver)
        told.endpoint(other)
        receiver.says(Say(before=60))
        told.deliverer.start()
        for number in range(12):
            told.held(number)
        wait_for(lambda: len(other.got) == 12)
        assert len(receiver.got) <= AT_ONCE
        told.deliverer.stop()

    def test_stopping_gives_back_what_is_not_answered_and_counts_no_try(
        self, told: Told, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(of_deliverer, "STOP_SECONDS", 0.1)
        endpoint = told.endpoint(receiver)
        receiver.says(Say(before=60), 200)
        told.held(1)
        told.deliverer.start()
        wait_for(lambda: receiver.got)
        told.deliverer.stop()
        assert told.rows(endpoint)[0].tries == 0
        told.another().drain()
        assert len(receiver.got) == 2

    def test_while_there_is_nobody_to_tell_nothing_is_read(
        self, told: Told, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[int] = []
        real = told.log.journal.heads
        monkeypatch.setattr(told.log.journal, "heads", lambda: read.append(1) or real())
        monkeypatch.setattr(of_deliverer, "IDLE_SECONDS", 0.01)
        told.deliverer.start()
        told.held(1)
        threading.Event().wait(0.2)
        assert not read
        monkeypatch.setattr(told.log.journal, "heads", real)
        told.endpoint(receiver)
        told.held(2)
        wait_for(lambda: receiver.got)
        told.deliverer.stop()
        assert receiver.sequences == [1]

    def test_a_log_that_was_restored_to_an_earlier_place_is_told_on_from_there(
        self, told: Told, receiver: Receiver, clock: Clock
    ) -> None:
        endpoint = told.endpoint(receiver)
        ahead = {partition: head + 5 for partition, head in told.log.journal.heads().items()}
        told.endpoints.change(endpoint.endpoint_id, now=clock(), enabled=False)
        told.endpoints.change(endpoint.endpoint_id, now=clock(), enabled=True, positions=ahead)
        told.deliverer.drain()
        told.held(1)
        told.deliverer.drain()
        assert receiver.sequences == [1]
