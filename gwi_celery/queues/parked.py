"""Messages held back on Pub/Sub: until one is due, only the worker that parked it can settle it.

Workers are asked by remote control: first which of them has a message, if need be twice; then those that
have one, to act.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from gwi_celery.errors import ConfigurationError, GwiError, NotFound
from gwi_celery.headers import SEALED_AS, SETTLE_COMMAND
from gwi_celery.integration import integration
from gwi_celery.stores.base import JobRef

#: Seconds within which workers have to say what they have: first, and when asked again for the rest.
_ANSWERS: Final = (1.0, 3.0)
#: Seconds within which the workers that have a message have to act.
_ACT: Final = 20.0
#: What an operator can do where no worker can.
_INSTEAD: Final = (
    "`gwi jobs explain TASK_ID` says what its job waits for (a lock is freed by `gwi locks release`), "
    "and `gwi jobs cancel TASK_ID` ends the job: its message is then dropped when it is due"
)

#: A queue's name, and what a message is called: its task's id, or its own.
Key: TypeAlias = "tuple[str, str]"


@dataclass(frozen=True)
class Parked:
    """Which of the messages asked for workers have parked."""

    #: Message -> its job; None if it is not a reliable task's.
    found: dict[Key, JobRef | None]
    #: Message -> the worker that has it.
    where: dict[Key, str]
    #: How many workers answered.
    workers: int


def look(app: Any, keys: Collection[Key]) -> Parked:
    """Which of ``keys`` a worker has parked. None of them if workers take no remote control."""
    found: dict[Key, JobRef | None] = {}
    where: dict[Key, str] = {}
    workers: set[str] = set()
    for seconds in _ANSWERS:  # one that was just being parked again is found the second time
        missing = [key for key in keys if key not in found]
        if not missing or not app.conf.worker_enable_remote_control:
            break
        for worker, rows in _ask(app, "look", missing, timeout=seconds):
            workers.add(worker)
            for queue, name, job in rows:
                found[queue, name] = None if job is None else JobRef(*job)
                where[queue, name] = worker
    return Parked(found, where, len(workers))


def settle(app: Any, how: str, looked: Parked, keys: Collection[Key]) -> int:
    """Have them delivered (``now``) or dropped (``drop``); returns how many were."""
    if not keys:
        return 0
    workers = sorted({looked.where[key] for key in keys})
    to = {"destination": workers, "limit": len(workers), "timeout": _ACT}
    return sum(len(rows) for _, rows in _ask(app, how, list(keys), **to))


def not_found(app: Any, looked: Parked) -> GwiError:
    """What to do next, where no worker has any of it."""
    if not app.conf.worker_enable_remote_control:
        return ConfigurationError(
            "on Pub/Sub only the worker that parked a message can settle it before it is due, and this "
            f"app's workers take no remote control. {_INSTEAD}"
        )
    who, then = "no worker answered", "start one that consumes the queue"
    if looked.workers:
        who, then = f"{answered(looked.workers)}, and none has it parked", "wait"
    return NotFound(
        f"nothing was done: {who}. A worker parks a message for ten minutes at most, then another "
        f"may get it: {then}, and ask again. Or else: {_INSTEAD}"
    )


def answered(workers: int) -> str:
    return f"{workers} worker{'' if workers == 1 else 's'} answered"


def _ask(
    app: Any, how: str, keys: Sequence[Key], **options: Any
) -> list[tuple[str, list[tuple[str, str, Any]]]]:
    """Each worker's name and answer."""
    named, at = [list(key) for key in keys], time.time()
    seal = integration(app).authority.seal(SEALED_AS, how, named, at)
    asked = {"how": how, "named": named, "at": at, "seal": seal}
    answers = app.control.broadcast(SETTLE_COMMAND, asked, reply=True, **options) or ()
    return [
        # A worker of an earlier release doesn't know the command; another may have refused it.
        (worker, rows if isinstance(rows, list) else [])
        for answer in answers
        for worker, rows in answer.items()
    ]
