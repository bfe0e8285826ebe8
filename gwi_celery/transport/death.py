"""What a worker adds to a message that it dead-letters: the kind of death, and its error."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, replace
from typing import Any, Final

from gwi_celery.brokers.base import (
    DEATH,
    DEATH_ERROR,
    DEATH_KIND,
    DEATH_TRACEBACK,
    DEATH_WORKER,
    Delivery,
)
from gwi_celery.errors import NotAllowed
from gwi_celery.text import cut, safe_error

#: Most bytes of a traceback: its end is kept.
TRACEBACK_BYTES: Final = 8_000
#: Most bytes of the name of an error's class.
_NAME_BYTES: Final = 200

#: Name of an error's class -> kind of death; for all others it is "failed".
_KINDS: Final = {
    "TimeLimitExceeded": "time-limit",
    "DeadlineExceeded": "deadline",
    "CrashLimitExceeded": "crashed",
    "WorkerLostError": "crashed",
    "IdempotencyMismatch": "mismatch",
    "NotAllowed": "not-allowed",
    "Reject": "rejected",
}


@dataclass(frozen=True)
class Death:
    """Why a message was dead-lettered: one of ``KINDS_OF_DEATH``, and the error's class and traceback."""

    kind: str
    error: str = ""
    traceback: str = ""

    @classmethod
    def by(cls, exc: BaseException, traceback: Any = None) -> Death:
        """The death by an error of the job."""
        error = safe_error(exc).partition(":")[0]
        text = traceback if isinstance(traceback, str) else ""
        return cls(_KINDS.get(error.rpartition(".")[2], "failed"), error, text)

    @classmethod
    def refused(cls, exc: BaseException) -> Death:
        """The death of a message that was refused on arrival."""
        return cls("not-allowed" if isinstance(exc, NotAllowed) else "malformed")


def deceased(delivery: Delivery, death: Death) -> Delivery:
    """The delivery with its death in its attributes; a publisher's own values are overwritten."""
    reported = {
        DEATH_KIND: death.kind,
        DEATH_ERROR: cut(death.error, _NAME_BYTES),
        DEATH_TRACEBACK: _end(death.traceback),
        DEATH_WORKER: f"{socket.gethostname()}:{os.getpid()}",
    }
    kept = {k: v for k, v in delivery.attributes.items() if k not in DEATH}
    return replace(delivery, attributes={**kept, **{k: v for k, v in reported.items() if v}})


def _end(traceback: str) -> str:
    raw = traceback.encode("utf-8", "surrogatepass")
    if len(raw) <= TRACEBACK_BYTES:
        return traceback
    return "... " + raw[-TRACEBACK_BYTES:].decode("utf-8", "ignore")
