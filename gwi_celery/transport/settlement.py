"""How a message is settled, pulled or pushed. ``reliability/ends.py`` has a row for every end."""

from __future__ import annotations

from enum import Enum


class Settlement(Enum):
    """How a message is settled: by a pull worker's call, or a push request's answer."""

    ACKED = ("acked", 204)
    #: Kept in the dead letter, then acked.
    DEAD_LETTERED = ("dead-lettered", 204)
    NACKED = ("nacked", 503)

    def __init__(self, text: str, push_status: int) -> None:
        self.text = text
        #: HTTP status. Pub/Sub takes 102, 200, 201, 202 and 204 for an ack, all else for a nack.
        self.push_status = push_status

    @classmethod
    def of_reject(cls, requeue: bool) -> Settlement:
        """What Celery's ``message.reject(requeue=...)`` means."""
        return cls.NACKED if requeue else cls.DEAD_LETTERED
