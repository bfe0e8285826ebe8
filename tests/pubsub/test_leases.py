"""What waits between arrival and its user: never given to two, never kept from others for long."""

from __future__ import annotations

import time

import pytest

from gwi_celery.brokers.base import QueueSpec
from gwi_celery.brokers.pubsub import arrivals as module
from gwi_celery.brokers.pubsub import streams
from gwi_celery.brokers.pubsub.client import pb
from tests.contract.brokers import readable, send, wait_for
from tests.machine import PATIENCE
from tests.pubsub.conftest import settled
from tests.workers import eventually

pytestmark = pytest.mark.emulator


@pytest.fixture
def broker(connect):
    made = connect()
    made.declare_queue(QueueSpec("q"))
    settled()
    return made


def test_what_a_busy_user_does_not_poll_is_given_back(connect, monkeypatch):
    """A worker that is in a task sees nothing; others are not kept waiting by its prefetch."""
    monkeypatch.setattr(module, "_LONGEST_WAIT", 0.5)
    broker = connect(lease_seconds=600)
    broker.declare_queue(QueueSpec("q"))
    settled()
    busy = broker.receiver()
    busy.subscribe("q")
    busy.clear()
    assert busy.poll("q", 4) == []
    send(broker, b"a")
    assert readable(busy), "it has arrived, and is not polled"
    time.sleep(0.5)
    busy._queues["q"]._review()
    assert not any(busy._queues["q"]._arrived.values())
    other = connect(lease_seconds=600)
    receiver = other.receiver()
    receiver.subscribe("q")
    assert wait_for(receiver).data == b"a", "and not when its lease is over"
    assert busy.poll("q", 4) == []


@pytest.mark.parametrize("bulk", [False, True], ids=["pull", "stream"])
def test_what_waited_past_its_lease_is_not_given_out(broker, monkeypatch, bulk):
    monkeypatch.setattr(module, "_LONGEST_WAIT", 60.0)  # even if nobody looks after it
    receiver = broker.receiver()
    receiver.subscribe("q", bulk=bulk)
    receiver.clear()
    assert receiver.poll("q", 1) == []
    send(broker, b"a")
    assert readable(receiver)
    queue = receiver._queues["q"]
    eventually(lambda: sum(map(len, queue._arrived.values())))
    (waiting,) = [d for arrived in queue._arrived.values() for d in arrived]
    age = time.monotonic() - waiting.leased_at
    assert waiting.lease_seconds == 10
    time.sleep(max(9.1 - age, 0))
    now_held = [d for arrived in queue._arrived.values() for d in arrived]
    found = receiver.poll("q", 1)
    assert all(d.ack_id != waiting.ack_id for d in found)
    assert waiting in now_held or len(now_held) == 1
    delivery = found[0] if found else wait_for(receiver)
    assert delivery.data == b"a"
    assert delivery.ack_id != waiting.ack_id, "delivered again, under a lease of its own"


def test_what_a_stream_redelivers_replaces_what_waits(broker, monkeypatch):
    """A user who is absent for several leases finds each message once."""
    broker.declare_queue(QueueSpec("control", auto_delete=True))
    settled()
    receiver = broker.receiver()
    receiver.subscribe("control", bulk=True)
    receiver.clear()
    assert receiver.poll("control", 1) == []
    queue = receiver._queues["control"]
    arrivals = []
    arrived = queue.arrived

    def counted(line, received):
        arrivals.extend(item.message.message_id for item in received)
        return arrived(line, received)

    monkeypatch.setattr(queue, "arrived", counted)
    send(broker, b"a", b"b", queue="control")
    eventually(lambda: len(arrivals) >= 4, what="redelivered by the emulator")
    found = receiver.poll("control", 100)
    deadline = time.monotonic() + PATIENCE
    while len(found) < 2 and time.monotonic() < deadline:  # one may have lapsed just now
        found += receiver.poll("control", 100)
    assert sorted(d.data for d in found) == [b"a", b"b"]
    broker.ack(found)
    assert broker.flush(PATIENCE)
    time.sleep(streams.STREAM_LEASE + 1)
    assert receiver.poll("control", 100) == []


def test_what_is_redelivered_early_replaces_what_waits(broker, monkeypatch):
    monkeypatch.setattr(module, "_LONGEST_WAIT", 60.0)
    receiver = broker.receiver()
    receiver.subscribe("q")
    receiver.clear()
    assert receiver.poll("q", 1) == []
    send(broker, b"a")
    queue = receiver._queues["q"]
    eventually(lambda: any(queue._arrived.values()))
    [(line, [waiting])] = queue._arrived.items()
    message = pb["PubsubMessage"](data=b"a", message_id=waiting.message_id)
    queue.arrived(line, [pb["ReceivedMessage"](ack_id="again", message=message)])
    found = [d.ack_id.split()[-1] for arrived in queue._arrived.values() for d in arrived]
    assert found == ["again"]


def test_one_does_not_hoard_what_is_delayed(broker, connect):
    """Twelve messages for later, one place: at most one is held, the rest is for whoever has room."""
    receiver = broker.receiver()
    receiver.subscribe("q")
    receiver.clear()
    assert receiver.poll("q", 1) == []
    send(broker, *(b"%d" % n for n in range(12)), delay=3.0)
    time.sleep(1.5)
    assert len(receiver._queues["q"]._delayed) <= 1
    other = connect()
    free = other.receiver()
    free.subscribe("q")
    found: set[bytes] = set()
    for _ in range(11):
        delivery = wait_for(free)
        other.ack([delivery])  # on a busy machine all of them take longer than a lease
        found.add(delivery.data)
    assert len(found) == 11
