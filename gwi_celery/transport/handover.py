"""Hands messages over to Celery's worker, whether they were pulled or pushed.

No message may end a worker. An error before the task begins is the message's fault: it is dead-lettered
with the reason, and the worker continues. Once the task has begun, an error belongs to the attempt: the
message is redelivered, and the attempt counts. The message is also redelivered if a state can't be
stored. An error of the broker is neither: it is raised unchanged, and Celery reconnects.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery.exceptions import BackendError

from gwi_celery.brokers.base import Delivery
from gwi_celery.errors import BrokerError, MalformedMessage, NotAllowed, StoreError
from gwi_celery.text import public_error, safe_error
from gwi_celery.transport import budget, envelope
from gwi_celery.transport.death import Death
from gwi_celery.transport.message import Message
from gwi_celery.transport.source import Source, is_marked

logger = logging.getLogger(__name__)


def decode(delivery: Delivery, channel: Any) -> Message:
    """The message that was delivered.

    Raises MalformedMessage; NotAllowed if it has to be signed and is not; StoreError if the store's key
    is needed to check its signature and can't be read.
    """
    authority = getattr(channel, "authority", None)
    try:
        # A message whose signature is missing or wrong is not parsed.
        signed = authority is not None and authority.admit(delivery)
        limit = authority.max_decoded_bytes if authority is not None else 0
        limit = limit or budget.automatic()
        budget.check(delivery.data, limit, "it")
        raw = envelope.decode(delivery)
        message = Message(raw, channel=channel, limit=limit)
        marked = is_marked(message.headers, delivery.attributes)
        message.source = Source(delivery.queue, raw["plain"], signed, marked)
        return message
    except (MalformedMessage, StoreError):
        raise
    except Exception as exc:
        raise MalformedMessage(public_error(exc)) from exc


def why_refused(exc: MalformedMessage) -> str:
    """The dead letter's reason for a message that could not be decoded."""
    return str(exc) if isinstance(exc, NotAllowed) else f"not a Celery message: {exc}"


def hand_over(message: Message, receive: Callable[[Message], object]) -> None:
    """Call ``receive`` with the message. Raises only the broker's errors."""
    try:
        receive(message)
    except Exception as exc:
        if isinstance(exc, BrokerError) and not isinstance(exc, MalformedMessage):
            raise
        settle_error(message, exc)


def settle_error(
    message: Message, exc: Exception, reject: Callable[..., object] | None = None
) -> None:
    """Settle a message whose handling raised ``exc``: requeue or dead-letter it, as described above.

    Args:
        reject: Called instead of the message's own method.
    """
    log_error(message, exc)
    if message.acknowledged:
        return
    reject = reject or message.reject
    if message.begun or isinstance(exc, (StoreError, BackendError)):
        reject(requeue=True)  # its state, such as REVOKED, could not be written
    else:
        message.death_reason = f"not a Celery task: {safe_error(exc)}"
        message.death = Death.refused(exc)
        reject(requeue=False)


def log_error(message: Message, exc: Exception) -> None:
    logger.error(
        "message %s could not be handled: %s",
        message.delivery_tag,
        safe_error(exc),
        # For the traceback, a log's formatter asks the exception for its text, which recurses again.
        exc_info=not isinstance(exc, RecursionError),
    )
