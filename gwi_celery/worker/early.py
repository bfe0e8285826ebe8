"""Workers tell operators what they gave back to Pub/Sub until its time, and settle that for them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from celery.worker.control import control_command, inspect_command

from gwi_celery.brokers.base import Delivery
from gwi_celery.errors import BrokerError, StoreError, TooLarge
from gwi_celery.headers import DELAYED_COMMAND, SEALED_AS, SETTLE_COMMAND
from gwi_celery.integration import integration
from gwi_celery.transport.delayed import due_now, job_of

if TYPE_CHECKING:
    from gwi_celery.brokers.pubsub.broker import PubSubBroker

logger = logging.getLogger(__name__)

#: Seconds for which an operator's command is good; clocks may differ by as much.
_GOOD_FOR: Final = 600.0


def install() -> None:
    """Have workers of this process answer the commands."""
    inspect_command(name=DELAYED_COMMAND)(_delayed)
    control_command(name=SETTLE_COMMAND)(_settle)


def _delayed(state: Any) -> list[dict[str, Any]]:
    """Messages that came before their time, and whose they are."""
    broker = _broker(state)
    return [] if broker is None else list(broker.early.rows())


def _settle(
    state: Any, how: str, named: Sequence[tuple[str, str]], at: float, seal: str
) -> list[tuple[str, str, Any]] | dict[str, str]:
    """What of ``named`` (queues and names) is parked here, by those; and what was done to it.

    Args:
        how: ``look``, which tells the jobs of reliable tasks; ``now`` or ``drop``.
        at: Seconds since the epoch at which it was asked.
        seal: Proves that an operator asked.
    """
    authority, broker = integration(state.app).authority, _broker(state)
    try:
        sealed = authority.is_sealed(seal, SEALED_AS, how, named, at)
        if not sealed or abs(time.time() - at) > _GOOD_FOR:
            logger.error(
                "delayed messages stay as they are: no operator of this app's asked for it"
            )
            return {"error": "it is not sealed by this app's operators, or its clock is wrong"}
        if broker is None:
            return []
        found = {
            (queue, name): delivery
            for queue, name in named
            if (delivery := broker.parked.find(queue, name)) is not None
        }
        if how == "look":
            channel = state.consumer.task_consumer.channel
            return [(*key, _parts(job_of(state.app, channel, d))) for key, d in found.items()]
        if how == "drop":
            done = broker.parked.drop(list(found.values()))
        else:
            done = _publish_now(broker, [due_now(d, authority) for d in found.values()])
    except StoreError as exc:
        return {"error": str(exc)}
    gone = {delivery.ack_id for delivery in done}
    return [(*key, None) for key, delivery in found.items() if delivery.ack_id in gone]


def _publish_now(broker: PubSubBroker, deliveries: Sequence[Delivery]) -> list[Delivery]:
    done: list[Delivery] = []
    for queue in {delivery.queue for delivery in deliveries}:
        try:
            done += broker.parked.publish_now([d for d in deliveries if d.queue == queue])
        except (BrokerError, TooLarge) as exc:
            logger.error("delayed messages of queue %r are not delivered now: %s", queue, exc)
    return done


def _parts(job: Any) -> list[str] | None:
    return None if job is None else [job.tenant, job.task, job.key]


def _broker(state: Any) -> PubSubBroker | None:
    """That of the worker's connection; None if it is no Pub/Sub broker."""
    consumer = state.consumer.task_consumer
    broker = getattr(consumer and consumer.channel.connection, "broker", None)
    return broker if hasattr(broker, "parked") else None
