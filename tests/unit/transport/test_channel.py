"""Who is served when: one message for each drain, queues by turns, and no wake-up that never ends.

A channel gives back what it holds when it is closed, even if its broker fails meanwhile.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import Connection, Consumer, Exchange, Queue
from kombu.common import itermessages

from gwi_celery.brokers.base import OutgoingMessage
from gwi_celery.errors import BrokerUnavailable
from gwi_celery.transport import register
from tests.machine import PATIENCE
from tests.workers import eventually

register()


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    with Connection(f"embedded://{tmp_path}") as made:
        yield made


def put(connection: Connection, queue: str, *bodies: Any) -> Queue:
    declared = Queue(queue, Exchange(queue), routing_key=queue)
    with connection.Producer() as producer:
        for body in bodies:
            producer.publish(
                body, exchange=declared.exchange, routing_key=queue, declare=[declared]
            )
    return declared


@pytest.mark.parametrize("no_ack", [True, False])
def test_a_drain_delivers_one_message(connection: Connection, no_ack: bool) -> None:
    queue, got = put(connection, "q", *range(5)), []
    with Consumer(connection, [queue], callbacks=[lambda body, m: got.append(body)], no_ack=no_ack):
        for n in range(5):
            connection.drain_events(timeout=0)
            assert got == list(range(n + 1)), "and the next needs no waiting"
        with pytest.raises(socket.timeout):
            connection.drain_events(timeout=0)


def test_messages_can_be_counted_as_they_come(connection: Connection) -> None:
    queue = put(connection, "q", *range(10))
    channel = connection.default_channel
    found = [body for body, _ in itermessages(connection, channel, queue, limit=3, no_ack=True)]
    assert found == [0, 1, 2]


def _drain(connection: Connection) -> None:
    connection.drain_events(timeout=PATIENCE)


def _go_around(connection: Connection) -> None:
    """As Celery's event loop does, once it is woken."""
    connection.transport.on_readable()


@pytest.mark.parametrize("serve", [_drain, _go_around])
@pytest.mark.parametrize("prefetch", [1, 2])
def test_queues_take_turns(
    connection: Connection, serve: Callable[[Connection], None], prefetch: int
) -> None:
    """Also when rounds without a message lie between two deliveries."""
    queues = [put(connection, name, *[name] * 8) for name in "abc"]
    order: list[str] = []
    waiting: list[Any] = []

    def receive(body: str, message: Any) -> None:
        order.append(body)
        waiting.append(message)

    with Consumer(connection, queues, callbacks=[receive], prefetch_count=prefetch):
        while len(order) < 24:
            serve(connection)
            for _ in range(len(order) % 3):  # full, or only woken
                connection.transport.on_readable()
            while waiting:
                waiting.pop().ack()
    for n in range(0, 24 - 6, 6):
        assert set(order[n : n + 6]) == set("abc"), order


def test_celerys_events_are_sent_as_such_and_nothing_else_is(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits until the broker has one. Control commands and transient tasks are waited for."""
    app, sent = Celery(broker=connection.as_uri()), []

    def publish(broker: Any, exchange: str, key: str, message: OutgoingMessage) -> None:
        sent.append((exchange or key, message.event))

    # Of each connection: Celery's control has its own.
    monkeypatch.setattr(type(connection.transport.broker), "publish", publish)
    with app.events.Dispatcher(connection, hostname="worker") as events:
        events.send("worker-heartbeat")
    app.control.broadcast("ping", connection=connection)
    app.send_task("task", connection=connection, delivery_mode=1)
    assert sent == [("celeryev", True), ("celery.pidbox", False), ("celery", False)]


def test_channels_take_turns(connection: Connection) -> None:
    order: list[str] = []
    consumers = []
    for name in "ab":
        queue = put(connection, name, *[name] * 5)
        channel = connection.channel()
        consumer = Consumer(
            channel, [queue], callbacks=[lambda body, m: order.append(body)], no_ack=True
        )
        consumer.consume()
        consumers.append(consumer)
    for _ in range(10):
        connection.drain_events(timeout=PATIENCE)
    assert "".join(order) in ("ab" * 5, "ba" * 5)


def test_no_wake_up_stays_behind(connection: Connection) -> None:
    """However threads and the loop meet: once cleared, and with nobody waking, a wait is a wait."""
    transport = connection.transport
    with pytest.raises(socket.timeout):
        connection.drain_events(timeout=0)
    stop = threading.Event()

    def ring() -> None:
        while not stop.is_set():
            transport.wake()

    threads = [threading.Thread(target=ring) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(2000):
        transport._clear()
    stop.set()
    for thread in threads:
        thread.join()
    transport._clear()
    assert select.select(transport._descriptors(), [], [], 0)[0] == []
    transport.wake()
    assert select.select(transport._descriptors(), [], [], 5)[0], "and it still wakes"


def test_no_more_are_handed_over_than_fit(connection: Connection) -> None:
    queue, got = put(connection, "q", *range(9)), []
    with Consumer(connection, [queue], callbacks=[lambda body, m: got.append(m)], prefetch_count=3):
        for _ in range(4):
            connection.transport.on_readable()
        assert len(got) == 3
        got.pop().ack()
        for _ in range(4):
            connection.transport.on_readable()
        assert len(got) == 3


def test_a_task_that_runs_in_this_thread_is_acked_before_the_next_one(
    connection: Connection,
) -> None:
    """Celery acks it in the event loop's next round; until then its place is taken.

    What is left is others' once its consumer is cancelled.
    """
    queue, got = put(connection, "q", *range(4)), []
    transport = connection.transport
    transport._open_bell()  # as an event loop does

    def slow(body: int, message: Any) -> None:
        got.append(body)
        time.sleep(0.003)

    with Consumer(connection, [queue], callbacks=[slow], prefetch_count=4):
        for n in range(1, 3):
            assert select.select(transport._descriptors(), [], [], PATIENCE)[0], "it is woken"
            transport.on_readable()
            assert got == list(range(n))
    left = [connection.default_channel.basic_get("q") for _ in range(3)]
    assert [message and message.payload for message in left] == [2, 3, None]


def test_what_needs_no_ack_is_gone_before_its_callback(connection: Connection) -> None:
    """However long that takes, or if it ends the process: nobody is given it again."""
    queue, left = put(connection, "q", *range(3)), []
    broker = connection.transport.broker

    def slow(body: int, message: Any) -> None:
        left.append(broker.size("q").total)

    with Consumer(connection, [queue], callbacks=[slow], no_ack=True):
        connection.transport.on_readable()
        put(connection, "q", 3)
        connection.drain_events(timeout=PATIENCE)
    assert left == [0, 0, 0, 0]


def test_what_waits_behind_a_slow_callback_is_not_handed_over_once_it_may_be_anothers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Connection(f"embedded://{tmp_path}?lease_seconds=0.5") as connection:
        queue, got = put(connection, "q", "first", "second"), []
        transport = connection.transport

        def no_extension(*args: Any) -> Any:
            raise BrokerUnavailable("for now")

        monkeypatch.setattr(transport.broker, "extend", no_extension)

        def slow(body: str, message: Any) -> None:
            got.append(body)
            time.sleep(0.6)

        with Consumer(connection, [queue], callbacks=[slow], prefetch_count=2):
            transport.on_readable()
            assert got == ["first"]
            with Connection(f"embedded://{tmp_path}") as other:
                taken = {other.default_channel.basic_get("q").payload for _ in range(2)}
            assert taken == {"first", "second"}, "it is the other's"
            transport.on_readable()
            assert got == ["first"]


def test_a_broker_that_fails_while_a_channel_closes_keeps_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"embedded://{tmp_path}/broker?lease_seconds=600"
    got: list[Any] = []

    def locked(queue: str) -> None:
        raise BrokerUnavailable("the file is locked")

    with Connection(url) as closing:
        channel = closing.channel()
        Consumer(
            channel, [Queue("q")], callbacks=[lambda body, message: got.append(body)]
        ).consume()
        closing.Producer().publish(1, routing_key="q")
        closing.drain_events(timeout=20)
        monkeypatch.setattr(closing.transport.receiver, "unsubscribe", locked)
    assert got == [1]
    with Connection(url) as other:
        eventually(
            lambda: other.default_channel.basic_get("q", no_ack=True), what="it is redelivered"
        )
