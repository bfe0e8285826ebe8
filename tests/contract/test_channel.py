"""What Kombu's verbs say where AMQP has an error, and what they make, on both transports."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from amqp.exceptions import PreconditionFailed
from celery import Celery
from celery.app.task import Context
from kombu import Connection, Exchange, Queue

from gwi_celery.transport import register

register()


@pytest.fixture(params=["embedded", pytest.param("pubsub", marks=pytest.mark.emulator)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "embedded":
        return f"embedded://{tmp_path}/broker"
    emulator = request.getfixturevalue("pubsub_emulator")
    return f"pubsub://{emulator.endpoint}/p-{uuid.uuid4().hex[:20]}"


@pytest.fixture
def connection(url: str) -> Iterator[Any]:
    with Connection(url) as connection:
        yield connection


@pytest.mark.parametrize("condition", ["if_empty", "if_unused"])
def test_a_queue_that_is_needed_is_not_deleted(connection: Any, condition: str) -> None:
    queue = Queue("q")(connection.default_channel)
    queue.declare()
    connection.Producer().publish({"n": 1}, routing_key="q", headers={"task": "t"})
    got: list[Any] = []
    with connection.Consumer(queue, callbacks=[lambda body, message: got.append(body)]) as consumer:
        consumer.qos(prefetch_count=1)
        with pytest.raises(PreconditionFailed, match="'q'") as refused:
            queue.delete(**{condition: True})
        assert int(refused.value.code) == 406
        assert isinstance(refused.value, connection.channel_errors)
        connection.drain_events(timeout=20)
    assert got == [{"n": 1}]


def test_an_exchange_that_is_needed_is_not_deleted(connection: Any) -> None:
    exchange = Exchange("x", "fanout")(connection.default_channel)
    Queue("q", exchange)(connection.default_channel).declare()
    with pytest.raises(PreconditionFailed, match="'x' is used"):
        exchange.delete(if_unused=True)
    assert [b[:2] for b in connection.default_channel.list_bindings()] == [("q", "x")]


def test_a_task_for_a_queue_that_is_gone_makes_it(connection: Any) -> None:
    connection.Producer().publish(
        {}, routing_key="q", headers={"task": "t"}, correlation_id="c", reply_to="r"
    )
    assert "q" in connection.transport.broker.queues()


def test_results_that_nobody_waits_for_any_more_leave_nothing(url: str) -> None:
    """Celery's own rpc:// backend answers to a queue of the caller's."""
    app = Celery("answers", broker=url, backend="rpc://")
    for queue in (str(uuid.uuid4()), "of any name"):
        request = Context(id="t", reply_to=queue, correlation_id="t")
        app.backend.store_result("t", 3, "SUCCESS", request=request)
    with app.connection() as connection:
        assert connection.transport.broker.queues() == []
    app.close()
