"""Control commands with which operators list and settle the messages that workers delay on Pub/Sub."""

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

#: Seconds for which an operator's command is valid; clocks may differ by as much.
_GOOD_FOR: Final = 600.0


def install() -> None:
    """Have workers of this process answer the commands."""
    inspect_command(name=DELAYED_COMMAND)(_delayed)
    control_command(name=SETTLE_COMMAND)(_settle)


def _delayed(state: Any) -> list[dict[str, Any]]:
    """Messages that were delivered before their ETA, and what they ask for."""
    broker = _broker(state)
    return [] if broker is None else list(broker.early.rows())


def _settle(
    state: Any, how: str, named: Sequence[tuple[str, str]], at: float, seal: str
) -> list[tuple[str, str, Any]] | dict[str, str]:
    """Settle those of the ``named`` messages that are parked here.

    Args:
        how: ``look`` only reads which jobs of reliable tasks they ask for; ``now`` publishes them,
            ``drop`` deletes them.
        named: Queue and name of each message.
        at: Seconds since the epoch at which the operator sent the command.
        seal: Proves that an operator sent it.

    Returns (queue, name, job or None) of each message that was found or settled; on an error, its text.
    """
    authority, broker = integration(state.app).authority, _broker(state)
    try:
        sealed = authority.is_sealed(seal, SEALED_AS, how, named, at)
        if not sealed or abs(time.time() - at) > _GOOD_FOR:
            logger.error(
                "a command for delayed messages is refused: no operator of this app sent it"
            )
            return {
                "error": "the command is not sealed by an operator of this app, or a clock is wrong"
            }
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
    """The broker of the worker's connection; None if it is not a Pub/Sub broker."""
    consumer = state.consumer.task_consumer
    broker = getattr(consumer and consumer.channel.connection, "broker", None)
    return broker if hasattr(broker, "parked") else None
