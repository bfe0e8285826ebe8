"""Publishing: one message or many, confirmed or not; missing topics are recreated."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import grpc

from gwi_celery import forks
from gwi_celery.background import Scheduler
from gwi_celery.brokers.base import OutgoingMessage
from gwi_celery.brokers.pubsub import wire
from gwi_celery.brokers.pubsub.client import Client, pb
from gwi_celery.brokers.pubsub.options import PubSubOptions
from gwi_celery.brokers.pubsub.topology import Topology
from gwi_celery.errors import (
    BrokerError,
    BrokerUnavailable,
    ConfigurationError,
    NotFound,
    PublishFailed,
    TooLarge,
)

logger = logging.getLogger(__name__)

#: How often a message's topic is recreated while others delete it.
_RESTORES = 3
#: Messages and bytes of one Publish request: Pub/Sub takes 1,000 and 10 MB.
_BATCH_MESSAGES, _BATCH_BYTES = 1000, 9_000_000
#: Publish requests in flight at a time.
_PIPELINED = 8
#: Messages in flight that nobody waits for, with which an event is still sent so.
_MOST_EVENTS = 100

#: Exchange, routing key and message.
_To: TypeAlias = tuple[str, str, OutgoingMessage]
#: The same with the message as sent to Pub/Sub.
_Addressed: TypeAlias = tuple[_To, Any]


class Publisher:
    """Publisher of one connection. ``jobs`` resends unconfirmed messages that failed."""

    def __init__(
        self, client: Client, options: PubSubOptions, topology: Topology, jobs: Scheduler
    ) -> None:
        self._client = client
        self._options = options
        self._topology = topology
        self._jobs = jobs
        self._unconfirmed: set[Any] = set()
        #: How many of these failed and are being resent.
        self._late = 0
        self._unconfirmed_changed = forks.condition()

    def made(
        self,
        exchange: str,
        routing_key: str,
        message: OutgoingMessage,
        *,
        merge: bool = False,
        attempts: int = 0,
    ) -> Any:
        """The message as sent to Pub/Sub. Raises TooLarge."""
        return wire.to_pubsub(
            exchange,
            routing_key,
            message,
            now=time.time(),
            ordering=self._options.ordering,
            merge=merge,
            attempts=attempts,
        )

    def publish(
        self, exchange: str, routing_key: str, message: OutgoingMessage, *, merge: bool = False
    ) -> None:
        """As :meth:`.broker.PubSubBroker.publish`."""
        made = self.made(exchange, routing_key, message, merge=merge)
        topic = self._topic(exchange, routing_key, message)
        # In an outage events wait, too: their number is limited.
        event = message.event and len(self._unconfirmed) < _MOST_EVENTS
        if event or not self._options.publisher_confirms:
            self._publish_unconfirmed(topic, (exchange, routing_key, message), made)
            return
        try:
            self.send(topic, [made])
        except NotFound:
            self._send_again([((exchange, routing_key, message), made)])

    def publish_many(self, messages: Sequence[_To]) -> list[None]:
        """Publish all of them, many at a time. Raises PublishFailed with an error for each failure."""
        errors: dict[int, Exception] = {}
        made: dict[int, Any] = {}
        for n, message in enumerate(messages):
            try:
                made[n] = self.made(*message)
            except TooLarge as exc:
                errors[n] = exc
        # A missing exchange is reported before anything is created or sent.
        for exchange in {exchange for exchange, _, _ in messages if exchange}:
            self._topology.route(exchange, "")
        # Pub/Sub refuses a request with two ordering keys.
        by_topic: dict[tuple[str, str], list[tuple[int, Any]]] = {}
        for n, message in made.items():
            topic = self._topic(*messages[n])
            by_topic.setdefault((topic, message.ordering_key), []).append((n, message))
        pending: list[tuple[str, list[tuple[int, Any]], Any]] = []

        def settle() -> None:
            topic, chunk, future = pending.pop(0)
            try:
                self._settle(topic, [(messages[n], m) for n, m in chunk], future)
            except (BrokerError, ConfigurationError) as exc:
                errors.update({n: exc for n, _ in chunk})

        for (topic, _), numbered in by_topic.items():
            for chunk in chunks(numbered):
                if len(pending) >= _PIPELINED:
                    settle()
                pending.append((topic, chunk, self._begin(topic, [m for _, m in chunk])))
        while pending:
            settle()
        if errors:
            raise PublishFailed(errors, len(messages))
        return [None] * len(messages)

    def send(self, topic: str, messages: list[Any]) -> list[str]:
        """Publish and wait for Pub/Sub's confirmation; its ids of the messages, by ordering key."""
        ids: list[str] = []
        for key in dict.fromkeys(message.ordering_key for message in messages):
            same = [message for message in messages if message.ordering_key == key]
            request = pb["PublishRequest"](topic=topic, messages=same)
            answer = self._client.persist("Publish", request, topic, self._options.publish_timeout)
            ids += answer.message_ids
        return ids

    def _send_again(self, addressed: Sequence[_Addressed]) -> None:
        """Recreate the targets of these messages, and send them."""

        def restore() -> dict[str, list[Any]]:
            for exchange, routing_key in dict.fromkeys(to[:2] for to, _ in addressed):
                self._topology.restore(exchange, routing_key)
            by_topic: dict[str, list[Any]] = {}
            for to, made in addressed:
                by_topic.setdefault(self._topic(*to), []).append(made)
            return by_topic

        self._send_restored(restore)

    def _send_restored(self, restore: Callable[[], dict[str, list[Any]]]) -> list[str]:
        """Call ``restore`` and send the messages that it returns, by topic; Pub/Sub's ids of them.

        ``restore`` recreates their topics: somebody deleted these, maybe more than once, or an emulator
        was restarted.
        """
        left = _RESTORES
        while True:
            by_topic = restore()
            left -= 1
            try:
                return [id for topic, some in by_topic.items() for id in self.send(topic, some)]
            except NotFound:
                if not left:
                    raise

    def send_dead(self, queue: str, made: Any) -> str:
        """Publish to the dead letter of ``queue``, and wait; Pub/Sub's id of the message."""

        def restore() -> dict[str, list[Any]]:
            self._topology.restore("", queue)
            return {self._topology.dead_topic(queue): [made]}

        try:
            [id] = self.send(self._topology.dead_topic(queue), [made])
        except NotFound:
            [id] = self._send_restored(restore)
        return id

    def _topic(self, exchange: str, routing_key: str, message: OutgoingMessage) -> str:
        """Path of the topic to publish to."""
        if message.reply and not exchange:
            return self._topology.reply_topic(routing_key)
        return self._topology.route(exchange, routing_key)

    def _begin(self, topic: str, messages: list[Any]) -> Any:
        request = pb["PublishRequest"](topic=topic, messages=messages)
        return self._client.begin("Publish", request, topic, self._options.publish_timeout)

    def _settle(self, topic: str, addressed: Sequence[_Addressed], future: Any) -> None:
        """Wait for a request in flight; retry it if that can help."""
        try:
            future.result()
            return
        except grpc.RpcError as exc:
            error = self._client.error(exc, "Publish", topic)
        if isinstance(error, NotFound):
            self._send_again(addressed)
        elif isinstance(error, BrokerUnavailable):
            self.send(topic, [made for _, made in addressed])
        else:
            raise error

    # --- unconfirmed ----------------------------------------------------------------------------

    def _publish_unconfirmed(self, topic: str, to: _To, made: Any) -> None:
        future = self._begin(topic, [made])
        with self._unconfirmed_changed:
            self._unconfirmed.add(future)
        future.add_done_callback(functools.partial(self._unconfirmed_done, topic, to, made))

    def _unconfirmed_done(self, topic: str, to: _To, made: Any, future: Any) -> None:
        error = None if future.cancelled() else future.exception()
        with self._unconfirmed_changed:
            if error is not None:
                self._late += 1
                self._jobs.run(functools.partial(self._send_late, topic, to, made))
            self._unconfirmed.discard(future)
            self._unconfirmed_changed.notify_all()

    def _send_late(self, topic: str, to: _To, made: Any) -> None:
        try:
            try:
                self.send(topic, [made])
            except NotFound:
                self._send_again([(to, made)])
        except (BrokerError, ConfigurationError) as exc:
            logger.error("a message for %s, which nobody waited for, was lost: %s", topic, exc)
        finally:
            with self._unconfirmed_changed:
                self._late -= 1

    def unsettled(self) -> bool:
        """Whether anything unconfirmed is in flight or being resent."""
        return bool(self._unconfirmed or self._late)

    def wait(self, timeout: float) -> None:
        """Wait until unconfirmed messages are confirmed, or have become background jobs."""
        with self._unconfirmed_changed:
            self._unconfirmed_changed.wait_for(lambda: not self._unconfirmed, timeout)

    def after_fork(self) -> None:
        """Forget what is in flight: it is the parent's."""
        self._unconfirmed, self._late = set(), 0


def chunks(numbered: list[tuple[int, Any]]) -> Iterable[list[tuple[int, Any]]]:
    """Split into batches that each fit one Publish request."""
    chunk: list[tuple[int, Any]] = []
    size = 0
    for item in numbered:
        bytes = item[1].ByteSize()
        if chunk and (len(chunk) >= _BATCH_MESSAGES or size + bytes > _BATCH_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(item)
        size += bytes
    if chunk:
        yield chunk
