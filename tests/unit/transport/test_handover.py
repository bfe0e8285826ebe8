"""What becomes of a message whose handling raises, and of what a channel holds when it closes."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError
from kombu import Connection

from gwi_celery import ReliableTask, setup
from gwi_celery.brokers.base import OutgoingMessage, QueueSpec
from gwi_celery.brokers.embedded import EmbeddedBroker, forget_memory, memory_broker
from gwi_celery.errors import BrokerUnavailable, NotSerializable
from gwi_celery.transport import handover
from gwi_celery.transport.channel import Channel
from gwi_celery.transport.depth import MAX_DEPTH
from gwi_celery.worker.guard import GuardedRequest, guarded

DATA = b'{"body": "[[], {}, {}]", "headers": {"task": "t", "id": "1"}, "properties": {}}'


@pytest.fixture
def name() -> Iterator[str]:
    name = uuid4().hex
    yield name
    forget_memory(name)


@pytest.fixture
def broker(name: str) -> EmbeddedBroker:
    broker = memory_broker(name)
    broker.declare_queue(QueueSpec("q"))
    return broker


@pytest.fixture
def channel(name: str, broker: EmbeddedBroker) -> Iterator[Channel]:
    with Connection(f"embedded://:memory:/{name}") as connection:
        connection.transport.serves_worker = True
        yield connection.default_channel


def fetch(channel: Channel, broker: EmbeddedBroker) -> Any:
    """One message, held by the channel and handed to nobody yet."""
    broker.publish("", "q", OutgoingMessage(DATA))
    [delivery] = channel.connection.receiver.poll("q", 1, begun=False)
    [(_, message)] = channel._accept([delivery], no_ack=False)
    return message


class NoText(Exception):
    def __str__(self) -> str:
        raise SystemExit


@pytest.mark.parametrize("error", [ValueError("odd"), RecursionError(), NoText(), MemoryError()])
def test_what_is_raised_before_a_task_begins_is_the_messages_fault(
    error: Exception, channel: Channel, broker: EmbeddedBroker
) -> None:
    def receive(message: Any) -> None:
        raise error

    handover.hand_over(fetch(channel, broker), receive)
    [dead] = broker.peek("q.dead")
    assert f"not a Celery task: {type(error).__name__}" in dead.attributes["gwi-death-reason"]
    assert broker.size("q").total == 0


def test_what_is_raised_once_it_has_begun_is_an_attempt(
    channel: Channel, broker: EmbeddedBroker
) -> None:
    def receive(message: Any) -> None:
        message.begin()
        raise ValueError("not stored")

    handover.hand_over(fetch(channel, broker), receive)
    assert not broker.has_queue("q.dead")
    [delivery] = broker.receiver().poll("q", 1)
    assert delivery.attempts == 1


@pytest.mark.parametrize("error", [BrokerUnavailable("gone"), SystemExit(), KeyboardInterrupt()])
def test_an_error_of_the_broker_and_the_end_of_the_worker_keep_their_meaning(
    error: BaseException, channel: Channel, broker: EmbeddedBroker
) -> None:
    def receive(message: Any) -> None:
        raise error

    with pytest.raises(type(error)):
        handover.hand_over(fetch(channel, broker), receive)
    assert broker.size("q").leased == 1


def test_a_dead_letter_that_can_not_be_written_now_is_written_later(
    channel: Channel, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = fetch(channel, broker)

    def unavailable(*args: Any) -> None:
        raise BrokerUnavailable("no space")

    with monkeypatch.context() as patch:
        patch.setattr(channel._broker, "dead_letter", unavailable)
        message.reject(requeue=False)
    size = broker.size("q")
    assert (size.delayed, size.leased) == (1, 0)


@pytest.mark.parametrize("begun", [True, False])
def test_a_channel_that_closes_counts_what_was_begun(
    begun: bool, channel: Channel, broker: EmbeddedBroker
) -> None:
    message = fetch(channel, broker)
    if begun:
        message.begin()
    channel.close()
    [delivery] = broker.receiver().poll("q", 1)
    assert delivery.attempts == begun


@pytest.mark.parametrize("verb", ["ack", "reject", "requeue"])
def test_a_late_answer_on_a_closed_channel_does_nothing(
    verb: str, channel: Channel, broker: EmbeddedBroker
) -> None:
    message = fetch(channel, broker)
    channel.close()
    getattr(message, verb)()
    [delivery] = broker.receiver().poll("q", 1)
    assert delivery.data == DATA


def request(message: Any, execute: Any) -> Any:
    """A request as Celery makes one for each task, of a task that is run by ``execute``."""
    made = type(
        "Request",
        (guarded("celery.worker.request:Request"),),
        {
            "execute_using_pool": lambda self, pool: execute(self),
        },
    )
    one = made.__new__(made)
    one._on_reject = lambda logger, errors, requeue: message.reject(requeue=requeue)
    one._message, one._task, one._eventer = message, SimpleNamespace(acks_late=True), None
    one._connection_errors = ()
    one.id, one.name = "1", "t"
    return one


@pytest.mark.parametrize("accepted", [True, False])
def test_a_request_that_fails_frees_its_place(
    accepted: bool, channel: Channel, broker: EmbeddedBroker
) -> None:
    def execute(request: Any) -> None:
        if accepted:
            request.time_start = 1.0
        raise TypeError("time limits of another type")

    pool = SimpleNamespace(uses_semaphore=True)  # as prefork
    with pytest.raises(TaskRevokedError):
        request(fetch(channel, broker), execute).execute_using_pool(pool)
    if accepted:
        [delivery] = broker.receiver().poll("q", 1)
        assert delivery.attempts == 1
    else:
        [dead] = broker.peek("q.dead")
        assert "time limits of another type" in dead.attributes["gwi-death-reason"]


def test_a_users_own_request_is_guarded_as_well() -> None:
    class Own(GuardedRequest.__mro__[1]):  # type: ignore[misc,name-defined]
        pass

    assert guarded(GuardedRequest) is GuardedRequest
    assert issubclass(guarded(Own), Own)
    assert issubclass(guarded(Own), GuardedRequest)


@pytest.mark.parametrize("base", ["plain", "reliable"])
def test_a_call_that_is_nested_too_deep_is_refused(base: str, name: str, tmp_path: Any) -> None:
    app = Celery("deep", set_as_current=False, broker=f"embedded://:memory:/{name}")
    setup(app, folder=str(tmp_path))

    def take(value: Any, tenant_id: str = "") -> None: ...

    options = {"base": ReliableTask} if base == "reliable" else {}
    task = app.task(take, name="take", shared=False, **options)
    deep: Any = 1
    for _ in range(MAX_DEPTH - 2):
        deep = [deep]
    task.delay(deep, tenant_id="acme")
    for _ in range(300):
        deep = [deep]
    with pytest.raises(NotSerializable, match="nested deeper than 200 levels"):
        task.delay(deep, tenant_id="acme")
    assert memory_broker(name).size("celery").total == 1
    app.close()
