"""What is held back on Pub/Sub: only the worker that gave it back until it is due can settle it before.

Workers are asked by remote control, twice: who has it, which may be asked again, and then those to act.
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

#: Seconds in which workers have to say what they have; asked again for what none has, they have longer.
_ANSWERS: Final = (1.0, 3.0)
#: Seconds in which those that have it have to act.
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
    """What workers have parked of what was asked for."""

    #: Whose jobs they are; None of what is no reliable task's.
    found: dict[Key, JobRef | None]
    #: By which worker.
    where: dict[Key, str]
    #: How many workers answered.
    workers: int


def look(app: Any, keys: Collection[Key]) -> Parked:
    """Which of them a worker has parked. Nothing where workers take no remote control."""
    found: dict[Key, JobRef | None] = {}
    where: dict[Key, str] = {}
    workers: set[str] = set()
    for seconds in _ANSWERS:  # one that is just being parked anew is found the second time
        missing = [key for key in keys if key not in found]
        if not missing or not app.conf.worker_enable_remote_control:
            break
        for worker, rows in _ask(app, "look", missing, timeout=seconds):
            workers.add(worker)
            for queue, name, job in rows:
                found[queue, name] = None if job is None else JobRef(*job)
                where[queue, name] = worker
    return Parked(found, where, len(workers))


def settle(app: Any, how: str, there: Parked, keys: Collection[Key]) -> int:
    """Have them delivered ``now``, or ``drop`` them; how many were."""
    if not keys:
        return 0
    workers = sorted({there.where[key] for key in keys})
    to = {"destination": workers, "limit": len(workers), "timeout": _ACT}
    return sum(len(rows) for _, rows in _ask(app, how, list(keys), **to))


def not_found(app: Any, there: Parked) -> GwiError:
    """What to do next, where no worker has any of it."""
    if not app.conf.worker_enable_remote_control:
        return ConfigurationError(
            "on Pub/Sub only the worker that gave a message back until it is due can settle it before, "
            f"and this app's workers take no remote control. {_INSTEAD}"
        )
    who, then = "no worker answered", "start one that consumes the queue"
    if there.workers:
        who, then = f"{answered(there.workers)}, and none has it parked", "wait"
    return NotFound(
        f"nothing was done: {who}. A message is parked for ten minutes at most by the worker that saw "
        f"it, and then seen by another: {then}, and ask again. Or else: {_INSTEAD}"
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
        # One of an earlier release knows no such command; one may have refused.
        (worker, rows if isinstance(rows, list) else [])
        for answer in answers
        for worker, rows in answer.items()
    ]
