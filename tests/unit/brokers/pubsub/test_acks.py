"""When acks are sent: at once for a worker with nothing left to do, else several in one request."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest

from gwi_celery.brokers.base import Delivery
from gwi_celery.brokers.pubsub import acks
from gwi_celery.brokers.pubsub.acks import Acknowledger
from gwi_celery.brokers.pubsub.client import Client
from gwi_celery.brokers.pubsub.deliveries import Deliveries
from gwi_celery.brokers.pubsub.options import parse
from gwi_celery.errors import BrokerError, BrokerUnavailable, BrokerUnusable, NotFound
from gwi_celery.gcp import fork_gate
from tests import workers

#: All of it is done by threads of this process.
eventually = partial(workers.eventually, timeout=20)

SUBSCRIPTION = "projects/p/subscriptions/gwi-q"
OTHER = "projects/p/subscriptions/gwi-other"


class _Server:
    """A client whose requests are answered when the test says so."""

    def __init__(self) -> None:
        self.requests: list[list[str]] = []
        self.rpcs: list[str] = []
        self.futures: list[Future[None]] = []
        self.young = self.forking = False
        self.refusal: Exception | None = None

    def begin(self, rpc: str, request: Any, subscription: str, *, wait: bool) -> Future[None]:
        assert subscription == request.subscription
        # The acking thread doesn't wait for a fork.
        assert wait == (threading.current_thread().name == "gwi-acks")
        if self.forking and not wait:
            raise BrokerUnavailable("this process forks")
        if self.refusal is not None:
            raise self.refusal
        self.rpcs.append(rpc)
        self.futures.append(Future())
        self.requests.append(list(request.ack_ids))
        return self.futures[-1]

    def error(self, exc: Exception, rpc: str, subscription: str) -> Exception:
        return exc

    def settling(self, subscription: str) -> bool:
        return self.young

    def sent(self, *requests: list[str]) -> None:
        """Wait until these were sent, and no others."""
        eventually(lambda: self.requests == list(requests))


@pytest.fixture
def server() -> _Server:
    return _Server()


@pytest.fixture
def sender(server: _Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Acknowledger]:
    # What gathers waits for an answer, or for the last one.
    monkeypatch.setattr(acks, "_GATHER", 3600.0)
    monkeypatch.setattr(acks, "_FAR", 3600.0)
    made = Acknowledger(server)  # type: ignore[arg-type]
    yield made
    made.stop(0.0)


def _ack(sender: Acknowledger, *ids: str, last: bool = False) -> None:
    for id in ids:
        sender.ack((SUBSCRIPTION, id, time.monotonic() + 60), last=last)


def test_an_ack_does_not_wait_for_the_one_before(server: _Server, sender: Acknowledger) -> None:
    """A place is free once its ack has arrived: far away, one at a time would be slow."""
    for id in "abc":
        _ack(sender, id, last=True)
        eventually(lambda id=id: server.requests[-1:] == [[id]])
    assert not any(future.done() for future in server.futures)


def test_acks_at_once_share_a_request(server: _Server, sender: Acknowledger) -> None:
    sender.ack(*((SUBSCRIPTION, id, time.monotonic() + 60) for id in "abc"), last=True)
    server.sent(["a", "b", "c"])


def test_acks_of_a_busy_worker_gather_until_its_last(server: _Server, sender: Acknowledger) -> None:
    _ack(sender, "a")
    server.sent(["a"])
    for id in "bcd":
        _ack(sender, id)
        time.sleep(0.01)
    _ack(sender, "e", last=True)
    server.sent(["a"], ["b", "c", "d", "e"])


def test_acks_of_a_busy_worker_gather_until_an_answer(
    server: _Server, sender: Acknowledger
) -> None:
    _ack(sender, "a")
    server.sent(["a"])
    _ack(sender, "b", "c")
    server.futures[0].set_result(None)
    server.sent(["a"], ["b", "c"])


def test_far_from_the_server_no_ack_waits(
    server: _Server, sender: Acknowledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each that waited would be a place that stays empty. Nor does it wait for another thread."""
    _find_out_that_it_is_far(server, sender, monkeypatch)
    _ack(sender, "b", last=True)
    assert server.requests == [["a"], ["b"]]
    _ack(sender, "c")
    assert server.requests == [["a"], ["b"], ["c"]]


def test_an_ack_in_a_fork_is_left_to_the_thread_that_can_wait(
    server: _Server, sender: Acknowledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fork may wait for the stream that the acking thread reads."""
    _find_out_that_it_is_far(server, sender, monkeypatch)
    server.forking = True
    _ack(sender, "b")
    server.sent(["a"], ["b"])


def _find_out_that_it_is_far(
    server: _Server, sender: Acknowledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acks, "_FAR", 0.0)
    _ack(sender, "a")
    server.sent(["a"])
    server.futures[0].set_result(None)
    assert sender.flush(20)  # how long answers take is known now


def test_acks_of_a_busy_worker_gather_for_milliseconds(
    server: _Server, sender: Acknowledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acks, "_GATHER", 0.01)
    _ack(sender, "a")
    server.sent(["a"])
    _ack(sender, "b")
    server.sent(["a"], ["b"])


def test_only_so_many_requests_are_in_flight(server: _Server, sender: Acknowledger) -> None:
    for n in range(8):
        _ack(sender, str(n), last=True)
        eventually(lambda n=n: len(server.requests) == n + 1)
    more = [str(n) for n in range(8, 20)]
    _ack(sender, *more, last=True)
    time.sleep(0.05)
    assert len(server.requests) == 8
    server.futures[3].set_result(None)
    eventually(lambda: server.requests[8:] == [more])


def test_what_is_in_flight_is_waited_for(server: _Server, sender: Acknowledger) -> None:
    _ack(sender, "a", "b", last=True)
    eventually(lambda: sum(map(len, server.requests)) == 2)
    assert not sender.flush(0.01)
    flushed: list[bool] = []
    waiting = threading.Thread(target=lambda: flushed.append(sender.flush(30)))
    waiting.start()
    for future in server.futures:
        future.set_result(None)
    waiting.join(30)
    assert flushed == [True]


def test_an_outage_that_hits_several_requests_is_one(
    server: _Server, sender: Acknowledger, caplog: pytest.LogCaptureFixture
) -> None:
    """All are sent again, after one pause rather than one for each."""
    for n in range(8):
        _ack(sender, str(n), last=True)
        eventually(lambda n=n: len(server.requests) == n + 1)
    for future in server.futures[:8]:
        future.set_exception(BrokerUnavailable("no route"))
    assert sender._retry_at(SUBSCRIPTION) < time.monotonic() + 1
    eventually(lambda: sum(map(len, server.requests[8:])) == 8)
    assert {id for ids in server.requests[8:] for id in ids} == set("01234567")
    for future in server.futures[8:]:
        future.set_result(None)
    assert sender.flush(10)
    assert not caplog.records


def test_a_refused_ack_is_not_sent_again(
    server: _Server, sender: Acknowledger, caplog: pytest.LogCaptureFixture
) -> None:
    _ack(sender, "a", last=True)
    server.sent(["a"])
    server.futures[0].set_exception(BrokerError("the lease is over"))
    assert sender.flush(10)
    server.refusal = BrokerError("no credentials")
    _ack(sender, "b", last=True)
    assert sender.flush(10)
    assert [r.getMessage().partition(":")[2] for r in caplog.records] == [
        " the lease is over",
        " no credentials",
    ]
    assert server.requests == [["a"]]


def test_an_ack_waits_for_a_missing_permission_as_long_as_its_lease_lasts(
    server: _Server, sender: Acknowledger, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody may give it back. What to do is in the log, once, and what can't be helped."""
    caplog.set_level(logging.INFO)
    _ack(sender, "a", last=True)
    for tries in (1, 2):
        server.sent(*[["a"]] * tries)
        server.futures[-1].set_exception(BrokerUnusable("grant roles/pubsub.subscriber"))
    server.sent(*[["a"]] * 3)
    server.futures[-1].set_result(None)
    assert sender.flush(10)
    sender.ack((SUBSCRIPTION, "b", time.monotonic()), last=True)
    server.sent(*[["a"]] * 3, ["b"])
    server.futures[-1].set_exception(BrokerUnusable("grant roles/pubsub.subscriber"))
    assert sender.flush(10), "its lease has ended"
    told = [r.getMessage().replace(SUBSCRIPTION, "S") for r in caplog.records]
    failing = "acks and nacks on S fail, now 1, and are retried until the messages' leases end: "
    assert told == [
        failing + "grant roles/pubsub.subscriber",
        "acks on S are taken again",
        failing + "grant roles/pubsub.subscriber",
        "1 messages of S could not be acked before their leases ran out: they will be redelivered",
    ]


def test_a_permission_that_is_missing_on_one_queue_holds_up_no_other(
    server: _Server, sender: Acknowledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acks, "_FIRST_PAUSE", 3600.0)
    _ack(sender, "a", last=True)
    server.sent(["a"])
    server.futures[0].set_exception(BrokerUnusable("grant roles/pubsub.subscriber"))
    eventually(lambda: sender._retry_at(SUBSCRIPTION))
    _ack(sender, "b", last=True)
    sender.ack((OTHER, "c", time.monotonic() + 60), last=True)
    server.sent(["a"], ["c"])
    server.futures[1].set_result(None)
    assert not sender.flush(0.01), "a and b still wait"
    assert len(server.requests) == 2


def test_an_ack_to_a_deleted_subscription_is_no_news(
    server: _Server, sender: Acknowledger, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of it is delivered again, and who ends with a reply unread is told nothing."""
    _ack(sender, "a", last=True)
    server.sent(["a"])
    server.futures[0].set_exception(NotFound("no such subscription"))
    assert sender.flush(10)
    assert server.requests == [["a"]]
    assert caplog.records == []


def test_a_subscription_that_is_new_may_be_unknown(server: _Server, sender: Acknowledger) -> None:
    server.young = True
    _ack(sender, "a", last=True)
    server.sent(["a"])
    server.futures[0].set_exception(NotFound("no such subscription"))
    server.sent(["a"], ["a"])


def test_acks_say_whether_the_worker_holds_anything_else(
    server: _Server, sender: Acknowledger
) -> None:
    unused: Any = None
    deliveries = Deliveries(unused, unused, unused, unused, sender, unused, unused)
    a, b, c, d, e = held = [
        Delivery("q", f"{SUBSCRIPTION} {id}", id, b"", {}, 1, 0.0, 0, 60.0) for id in "abcde"
    ]
    deliveries.leases.update({each.ack_id: time.monotonic() + 60 for each in held})
    deliveries.ack([a])
    server.sent(["a"])
    deliveries.ack([b])
    time.sleep(0.01)
    deliveries.ack([c, d, e])
    server.sent(["a"], ["b", "c", "d", "e"])
    deliveries.leases[a.ack_id] = time.monotonic() + 60
    deliveries.release(a, 0.0)
    eventually(lambda: server.rpcs == ["Acknowledge", "Acknowledge", "ModifyAckDeadline"])


def test_a_fork_waits_for_requests_that_were_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fork_gate.in_flight()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = Client(parse(f"pubsub://127.0.0.1:{silent.getsockname()[1]}/p", {}))
        request = acks.pb["AcknowledgeRequest"](subscription=SUBSCRIPTION, ack_ids=["a"])
        future = client.begin("Acknowledge", request, SUBSCRIPTION)
        assert fork_gate.in_flight() == before + 1
        future.cancel()
        eventually(lambda: fork_gate.in_flight() == before)
        with monkeypatch.context() as forking, pytest.raises(BrokerUnavailable, match="forks"):
            forking.setattr(fork_gate, "try_enter", lambda: False)
            client.begin("Acknowledge", request, SUBSCRIPTION, wait=False)
        with pytest.raises(KeyError):
            client.begin("NoSuchRpc", request, SUBSCRIPTION)
        assert fork_gate.in_flight() == before
        client.close()
