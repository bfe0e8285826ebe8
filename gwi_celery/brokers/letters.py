"""A dead letter: a message that was given up, with all that is known of why."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from kombu.utils import json as kombu_json

from gwi_celery.brokers.base import (
    DEATH_ATTEMPTS,
    DEATH_DELIVERIES,
    DEATH_ERROR,
    DEATH_KIND,
    DEATH_REASON,
    DEATH_TIME,
    DEATH_TRACEBACK,
    DEATH_WORKER,
    KINDS_OF_DEATH,
    StoredMessage,
)


@dataclass(frozen=True)
class DeadLetter:
    """A message that was given up, and why. Times are seconds since the epoch."""

    #: Its queue, and its id in that queue's dead letter.
    queue: str
    id: str
    #: One of ``KINDS_OF_DEATH``, and the worker's own words.
    reason: str
    text: str
    #: The error's class and traceback; "" if there was none.
    error: str
    traceback: str
    #: "" where the message doesn't say.
    task: str
    task_id: str
    tenant: str
    run_id: str
    #: Attempts that a worker began, and times it was delivered.
    attempts: int
    deliveries: int
    #: "host:pid" of the worker that gave it up.
    worker: str
    published_at: float
    died_at: float
    #: When the broker drops it; None if the broker can't say.
    expires_at: float | None
    #: The whole message, as the broker has it; empty where only its record was read.
    data: bytes = b""
    attributes: Mapping[str, str] = field(default_factory=dict)
    priority: int = 0
    #: Whether its message was read, and not only its record.
    whole: bool = True

    @property
    def error_class(self) -> str:
        """The error's class, without its module."""
        return self.error.rpartition(".")[2]

    def dumps(self) -> str:
        """All but the message, as ASCII JSON, which can hold any text."""
        return json.dumps({name: getattr(self, name) for name in _RECORDED})

    @classmethod
    def loads(cls, text: str) -> DeadLetter:
        found = json.loads(text)
        return cls(**{name: found[name] for name in _RECORDED}, whole=False)


_RECORDED: Final = [
    each.name
    for each in dataclasses.fields(DeadLetter)
    if each.name not in ("data", "attributes", "whole")
]


def letter_of(queue: str, message: StoredMessage) -> DeadLetter:
    """The dead letter that a message in ``queue``'s dead letter queue is."""
    attributes = message.attributes
    named = "task" in attributes and "task_id" in attributes  # our transport's: no need to parse it
    headers = {} if named else _headers(message.data)
    kind = attributes.get(DEATH_KIND) or _kind_of(attributes)
    return DeadLetter(
        queue=queue,
        id=message.message_id,
        reason=kind if kind in KINDS_OF_DEATH else "unknown",
        text=attributes.get(DEATH_REASON, ""),
        error=attributes.get(DEATH_ERROR, ""),
        traceback=attributes.get(DEATH_TRACEBACK, ""),
        task=attributes.get("task") or _text(headers.get("task")),
        task_id=attributes.get("task_id") or _text(headers.get("id")),
        tenant=attributes.get("tenant", ""),
        run_id=attributes.get("run", ""),
        attempts=_number(attributes.get(DEATH_ATTEMPTS)),
        deliveries=_number(attributes.get(DEATH_DELIVERIES) or attributes.get(_FORWARDED)),
        worker=attributes.get(DEATH_WORKER, ""),
        published_at=message.published_at,
        died_at=_moment(attributes.get(DEATH_TIME), message.published_at),
        expires_at=message.expires_at,
        data=message.data,
        attributes=dict(attributes),
        priority=message.priority,
    )


#: Seconds since the epoch: the year 2286.
LATEST: Final = 1e10
#: Attribute that Pub/Sub's own dead lettering adds.
_FORWARDED: Final = "CloudPubSubDeadLetterSourceDeliveryCount"
#: How 0.1 began its reasons -> their kind.
_FORMER: Final = {
    "not a Celery": "malformed",
    "its body can't be decoded": "malformed",
    "no task is registered": "unregistered",
    "delivered ": "deliveries",
    "rejected": "rejected",
    "DeadlineExceeded": "deadline",
    "CrashLimitExceeded": "crashed",
    "TimeLimitExceeded": "time-limit",
    "IdempotencyMismatch": "mismatch",
}


def _kind_of(attributes: Mapping[str, str]) -> str:
    if DEATH_REASON not in attributes:
        return "deliveries" if _FORWARDED in attributes else "unknown"
    for begin, kind in _FORMER.items():
        if attributes[DEATH_REASON].startswith(begin):
            return kind
    return "failed"


def _headers(data: bytes) -> dict[str, Any]:
    """The message's headers, for people; {} if it has none."""
    try:
        found = kombu_json.loads(data)["headers"]
    except Exception:  # whatever a publisher may have sent
        return {}
    return found if isinstance(found, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _moment(text: str | None, otherwise: float) -> float:
    try:
        found = float(text or "")
    except ValueError:
        return otherwise
    return found if 0 <= found <= LATEST else otherwise


def _number(text: str | None) -> int:
    # Anybody may have written it, and int() refuses thousands of digits.
    return int(text) if text and re.fullmatch("[0-9]{1,9}", text) else 0
