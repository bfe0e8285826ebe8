"""What every shared broker keeps between processes, and when one of them is killed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from gwi_celery.brokers.base import Broker, QueueSpec
from tests.contract.broker_process import Peer
from tests.contract.brokers import SHARED, assert_empty, bodies, readable, send, wait_for

#: Seconds of real time: longer than any of these tests, and short enough to wait for.
LONG_LEASE, SHORT_LEASE = 300.0, 1.0


@pytest.fixture(params=SHARED)
def service(request, tmp_path) -> tuple[str, str]:
    """A backend's name and its place."""
    return request.param, str(tmp_path / "broker")


@pytest.fixture
def broker(service) -> Iterator[Broker]:
    backend, place = service
    broker = SHARED[backend](place, LONG_LEASE)
    broker.declare_queue(QueueSpec("q"))
    yield broker
    broker.close()


@pytest.fixture
def start(service, broker) -> Iterator[Callable[..., list[Peer]]]:
    """Starts that many processes, which are ready."""
    peers: list[Peer] = []

    def start(count: int = 1, lease_seconds: float = LONG_LEASE) -> list[Peer]:
        started = [Peer(*service, lease_seconds) for _ in range(count)]
        peers.extend(started)
        assert [peer.answer() for peer in started] == ["ready"] * count
        return started

    yield start
    for peer in peers:
        peer.close()


def test_a_publish_wakes_another_process(broker, start):
    [peer] = start()
    assert peer.ask("listen", "q") == "listening"
    for _ in range(3):
        peer.tell("wake")
        send(broker, b"m")
        assert peer.answer() is True


def test_another_process_wakes_this_one(broker, start):
    [peer] = start()
    receiver = broker.receiver()
    receiver.subscribe("q")
    receiver.clear()
    assert not readable(receiver, 0)
    peer.tell("publish", "p", 1)
    assert readable(receiver)
    assert wait_for(receiver).data == b"p/0"


def test_many_processes_lose_nothing_and_ack_once(broker, start):
    """Four publish 500 messages each, while four receive."""
    consumers, producers = start(4), start(4)
    for consumer in consumers:
        consumer.tell("consume")
    for number, producer in enumerate(producers):
        producer.tell("publish", number, 500)
    assert [producer.answer() for producer in producers] == ["published"] * 4
    send(broker, *[b"end"] * 4)

    acked = Counter(body for consumer in consumers for body in consumer.answer())

    assert acked == Counter(f"{number}/{n}" for number in range(4) for n in range(500))
    assert_empty(broker)


def test_what_a_killed_process_held_is_delivered_again(broker, start):
    [peer] = start(lease_seconds=SHORT_LEASE)
    send(broker, b"1", b"2", b"3")
    assert peer.ask("hold", 2) == ["1", "2"]
    receiver = broker.receiver()
    receiver.subscribe("q")
    third = wait_for(receiver)
    assert (third.data, third.deliveries) == (b"3", 1)
    broker.ack([third])

    peer.kill()

    again = [wait_for(receiver), wait_for(receiver)]
    assert sorted(bodies(again)) == [b"1", b"2"]
    assert [delivery.deliveries for delivery in again] == [2, 2]
    broker.ack(again)
    assert_empty(broker)


def test_the_queues_of_a_killed_process(broker, start):
    """Its auto_delete queue goes with it, once somebody notices; one with a living peer stays."""
    for name in ("killed", "shared"):
        broker.declare_queue(QueueSpec(name, auto_delete=True))
    killed, living = start(2)
    assert killed.ask("listen", "killed", "shared") == "listening"
    assert living.ask("listen", "shared") == "listening"
    send(broker, b"m", queue="killed")
    assert broker.has_queue("killed")

    killed.kill()
    for queue in ("killed", "shared"):
        send(broker, b"m", queue=queue)

    assert broker.queues() == ["q", "shared"]
    assert living.ask("wake") is True


def test_a_new_process_finds_nothing_of_a_killed_ones_temporary_queue(broker, start):
    """As a worker that is started again under the same name."""
    spec = QueueSpec("control", auto_delete=True, expires=1000.0)
    broker.declare_queue(spec)
    [peer] = start()
    assert peer.ask("listen", "control") == "listening"
    send(broker, b"shut down", queue="control")
    peer.kill()

    broker.declare_queue(spec)

    assert broker.receiver().poll("control", 1) == []


def test_both_sides_of_a_fork_go_on(broker, start):
    [peer] = start()
    assert peer.ask("fork") == {
        "child": 0,
        "woken by the child": True,
        "from the child": ["from the child, opened anew"],
        "own lease": True,
        "still subscribed": True,
        "own queue": ["for the parent"],
    }
