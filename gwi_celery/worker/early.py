"""Workers tell an operator which messages they gave back to Pub/Sub until their time."""

from __future__ import annotations

from typing import Any

from celery.worker.control import inspect_command

from gwi_celery.headers import DELAYED_COMMAND


def install() -> None:
    """Have workers of this process answer the command."""
    inspect_command(name=DELAYED_COMMAND)(_delayed)


def _delayed(state: Any) -> list[dict[str, Any]]:
    """Messages that came before their time, and whose they are."""
    consumer = state.consumer.task_consumer
    early = getattr(consumer and consumer.channel.connection.broker, "early", None)
    return [] if early is None else list(early.rows())
