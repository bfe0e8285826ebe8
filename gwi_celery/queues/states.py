"""Queues at a glance, and pausing them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gwi_celery.brokers.base import DEAD_LETTER_SUFFIX, QueueState, dead_letter_queue
from gwi_celery.brokers.embedded import EmbeddedBroker
from gwi_celery.errors import ConfigurationError, NotFound
from gwi_celery.integration import broker_for, integration
from gwi_celery.queues.dead import recorded
from gwi_celery.stores.queues import LetterFilter
from gwi_celery.transport.envelope import is_of_one_reader


def queues(app: Any) -> list[QueueState]:
    """The app's task queues and those that the broker knows, ordered by name.

    Dead letters, and queues of one connection (replies, remote control), are left out.
    """
    broker = broker_for(app)
    # Configured queues are shown even if they were never used.
    names = {str(name) for name in app.amqp.queues}
    known = set(broker.queues())
    for name in known:
        base = name.removesuffix(DEAD_LETTER_SUFFIX)
        if not is_of_one_reader(base):
            names.add(base)
    found = [
        broker.state(name) if broker.has_queue(name) else _missing(broker, name)
        for name in sorted(names)
    ]
    records = recorded(app)
    if records is None:
        return found
    paused = records.paused()
    return [
        replace(state, dead=records.count(LetterFilter(state.name)), paused=state.name in paused)
        for state in found
    ]


def _missing(broker: Any, name: str) -> QueueState:
    """A queue that nobody has used yet, or that was deleted and left dead letters."""
    size = broker.size(dead_letter_queue(name))
    dead = None if size is None else size.total
    return QueueState(name, 0, 0, 0, oldest=0.0, consumers=0, dead=dead)


def pause(app: Any, queue: str) -> None:
    """Let no worker begin with the queue's messages; calls are still accepted, and running jobs finish.

    It holds for all workers, later ones too, until :func:`resume`. On Pub/Sub workers notice it
    within ten seconds or so, and finish what they have taken by then.

    Raises NotFound; ConfigurationError for a queue that Pub/Sub pushes, or if the store can't keep a
    pause.
    """
    _set_paused(app, queue, True)


def resume(app: Any, queue: str) -> None:
    """The reverse of :func:`pause`. Raises NotFound."""
    _set_paused(app, queue, False)


def _set_paused(app: Any, queue: str, paused: bool) -> None:
    broker = broker_for(app)
    if isinstance(broker, EmbeddedBroker):
        broker.set_paused(queue, paused)
        return
    records = recorded(app)
    if records is None:
        raise ConfigurationError(
            "a store with a database for each tenant can't keep a pause: stop the queue's workers, "
            f"or tell them `celery -A APP control cancel_consumer {queue}`"
        )
    if not broker.has_queue(queue):
        raise NotFound(f"there is no queue {queue!r}: see `gwi queues list`")
    endpoint = _pushed_to(broker, queue)
    if paused and endpoint is not None:
        raise ConfigurationError(
            f"queue {queue!r} is pushed to {endpoint}, and Pub/Sub goes on pushing: stop that by "
            f"`gwi push-to '' -Q {queue}`, and begin it again by `gwi push-to {endpoint} -Q {queue}`"
        )
    integration(app).record_action("pause" if paused else "resume", queue)
    records.set_paused(queue, paused)


def _pushed_to(broker: Any, queue: str) -> str | None:
    for source in broker.topology.sources(queue):
        endpoint: str | None = broker.topology.admin.pushed.get(source.path)
        if endpoint is not None:
            return endpoint
    return None


def is_paused(app: Any, queue: str) -> bool:
    """Whether the queue is paused. False for a queue that doesn't exist."""
    broker, records = broker_for(app), recorded(app)
    if records is not None:
        return queue in records.paused()
    return broker.has_queue(queue) and broker.state(queue).paused
