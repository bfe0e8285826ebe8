"""Prepares a worker's connection for replies, so that remote control answers from the start.

A worker replies through the app's connection pool. Without this, its first reply opens the connection and
looks up the reply exchange. On a busy machine that takes longer than the second for which Celery's
commands wait by default.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import signals

from gwi_celery.transport.base import Transport

logger = logging.getLogger(__name__)


def prepare_workers() -> None:
    """Have each worker of this process open its connection and declare the exchange when it starts."""
    signals.worker_ready.connect(_prepare, weak=False, dispatch_uid="gwi-prepare-replies")


def _prepare(sender: Any = None, **kwargs: Any) -> None:
    connection, app = getattr(sender, "connection", None), getattr(sender, "app", None)
    if connection is None or app is None or not app.conf.worker_enable_remote_control:
        return
    if not isinstance(connection.transport, Transport):
        return
    try:
        with app.amqp.producer_pool.acquire(block=True, timeout=5) as producer:
            app.control.mailbox.reply_exchange(producer.channel).declare()
    except Exception as exc:
        logger.info("the first reply to a control command may take longer: %s", exc)
