"""What becomes of a message, pulled or pushed. Every end of a run is a row in ``reliability/ends.py``."""

from __future__ import annotations

from enum import Enum


class Settlement(Enum):
    """What becomes of a message: what a pull worker does to it, and what a push is answered with."""

    ACKED = ("acked", 204)
    #: Kept in the dead letter first; then it is done with as well.
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
