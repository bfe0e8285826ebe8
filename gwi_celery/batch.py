"""``with publish_batch():`` publishes many calls together.

Each ``.delay()`` inside returns its AsyncResult at once; the messages go out in a few large requests, at
the latest at the end of the block. By then the broker has confirmed them all, or an error names the rest.
Celery's ``group`` and ``chunks`` inside a batch are published the same way.

A batch includes what the block starts in a copy of its context: asyncio tasks, ``asyncio.to_thread``.
What such a task publishes after the end of the block is published on its own.
"""

from __future__ import annotations

import contextvars
from collections.abc import Iterator
from contextlib import contextmanager

from gwi_celery import forks
from gwi_celery.brokers.base import Broker, OutgoingMessage
from gwi_celery.errors import BatchFailed, BrokerError, PublishFailed

#: Messages held back at most, which bounds the memory of a batch.
_FLUSH_AT = 2000

_Message = tuple[str, str, OutgoingMessage]

_current: contextvars.ContextVar[Batch | None] = contextvars.ContextVar("batch", default=None)


class Batch:
    """The messages of one ``with publish_batch()``."""

    def __init__(self) -> None:
        self._lock = forks.rlock()
        self._finished = False
        self._waiting: dict[Broker, list[_Message]] = {}
        #: Published and confirmed so far.
        self.published = 0
        #: Task id (or "message N", counted from 1, where there is none) -> why it was not published.
        self.errors: dict[str, Exception] = {}

    def add(self, broker: Broker, message: _Message) -> bool:
        """Add it to the batch. False: the batch has ended."""
        with self._lock:
            if self._finished:
                return False
            waiting = self._waiting.setdefault(broker, [])
            waiting.append(message)
            if len(waiting) >= _FLUSH_AT:
                self._flush(broker)
            return True

    def finish(self) -> None:
        """Publish the rest. Raises BatchFailed if any message of the batch was not published."""
        with self._lock:
            self._finished = True
            for broker in list(self._waiting):
                self._flush(broker)
        if self.errors:
            raise BatchFailed(self.errors, self.published)

    def _flush(self, broker: Broker) -> None:
        messages = self._waiting.pop(broker)
        failed: dict[int, Exception] = {}
        try:
            broker.publish_many(messages)
        except PublishFailed as exc:
            failed = exc.errors
        except BrokerError as exc:
            failed = dict.fromkeys(range(len(messages)), exc)
        for n, error in failed.items():
            number = self.published + len(self.errors) + n + 1
            name = messages[n][2].attributes.get("task_id") or f"message {number}"
            self.errors[name] = error
        self.published += len(messages) - len(failed)


def current_batch() -> Batch | None:
    """The batch that this thread (or context) publishes into."""
    return _current.get()


@contextmanager
def publish_batch() -> Iterator[Batch]:
    """Publish all calls made inside together; see the module.

    The batch is also published when the block raises, as its AsyncResults were handed out.

    Raises:
        BatchFailed: some calls were not published; ``errors`` has why, by task id. The others were.
    """
    batch = Batch()
    token = _current.set(batch)
    try:
        yield batch
    finally:
        _current.reset(token)
        batch.finish()
