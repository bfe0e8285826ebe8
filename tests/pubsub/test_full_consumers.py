"""Consumers that are full don't wear out a message which waits for one that has room."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from kombu import Connection

from gwi_celery.brokers.base import OutgoingMessage, QueueSpec
from gwi_celery.brokers.pubsub.broker import PubSubBroker
from tests.pubsub.conftest import settled
from tests.workers import dead_letters, eventually

pytestmark = pytest.mark.emulator

DATA = b'{"body": "", "headers": {}, "properties": {}}'
CONSUMERS = 6


def drain(*connections: Connection) -> None:
    for connection in connections:
        with suppress(socket.timeout):
            connection.drain_events(timeout=0.02)


def test_a_message_of_a_quiet_queue_outlives_any_number_of_full_consumers(
    url: str, connect: Callable[..., PubSubBroker]
) -> None:
    broker = connect(max_deliveries=2)
    for queue in ("busy", "quiet"):
        broker.declare_queue(QueueSpec(queue))
    settled()
    busy: list[Any] = []
    quiet: list[Any] = []
    with ExitStack() as stack:
        connections = [
            stack.enter_context(Connection(f"{url}?max_deliveries=2&lease_seconds=10"))
            for _ in range(CONSUMERS)
        ]
        for n, connection in enumerate(connections):
            channel = connection.default_channel
            channel.basic_qos(0, 1, False)
            channel.basic_consume("busy", False, busy.append, f"busy-{n}")
            channel.basic_consume("quiet", False, quiet.append, f"quiet-{n}")
        for _ in range(CONSUMERS):
            broker.publish("", "busy", OutgoingMessage(DATA))
        eventually(lambda: drain(*connections) or len(busy) == CONSUMERS)

        broker.publish("", "quiet", OutgoingMessage(DATA))
        until = time.monotonic() + 3
        while time.monotonic() < until:
            drain(*connections)
        assert quiet == []
        busy[0].ack()
        eventually(lambda: drain(*connections) or quiet)
        assert quiet[0].properties["delivery_count"] == 1
        assert not quiet[0].delivery_info["redelivered"]
        for message in [*busy[1:], *quiet]:
            message.ack()
    for queue in ("busy.dead", "quiet.dead"):
        assert dead_letters(broker, queue) == []
