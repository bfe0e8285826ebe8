"""A channel gives back what it holds when it is closed, even if its broker fails meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kombu import Connection, Consumer, Queue

from gwi_celery.errors import BrokerUnavailable
from tests.workers import eventually


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
