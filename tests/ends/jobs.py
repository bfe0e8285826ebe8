"""The app whose one job ends in every way that a job can end by itself, or be ended."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from celery import Celery
from celery.exceptions import Ignore, Reject

from gwi_celery import ReliableTask, setup

FOLDER = Path(os.environ.get("ENDS_FOLDER", "."))
#: As long as a job that is to be ended goes on if nobody does.
LONG = 3.0

app = Celery("ends")
store_url = os.environ.get("ENDS_STORE_URL")
setup(
    app,
    folder=str(FOLDER / "gwi"),
    lease_seconds=5,
    lock_ttl=5,
    contention_delay=0.2,
    **({"store_url": store_url} if store_url else {}),
)


@app.task(name="ends.other")
def other() -> str:
    return "another task's"


@app.task(base=ReliableTask, bind=True, name="ends.job", max_retries=3)
def job(self: Any, kind: str, *, tenant_id: str, run_id: str, extra: Any = None) -> str:
    first = self.step("attempts", lambda: 1) and self.attempt == 1
    return WAYS[kind](self, first) or kind


def _raises(task: Any, first: bool) -> None:
    raise RuntimeError("on purpose")


def _no_json(task: Any, first: bool) -> Any:
    return object()


def _exits(task: Any, first: bool) -> None:
    sys.exit(3)


def _interrupts(task: Any, first: bool) -> None:
    raise KeyboardInterrupt


def _retries(task: Any, first: bool) -> None:
    if first:
        raise task.retry(countdown=0)


def _retries_otherwise(task: Any, first: bool) -> None:
    request = task.request
    if first:
        raise task.retry(countdown=0, kwargs={**request.kwargs, "extra": "changed"})
    assert request.kwargs["extra"] == "changed"


def _expires(task: Any, first: bool) -> None:
    raise task.retry(countdown=4.5)


def _replaces(task: Any, first: bool) -> Any:
    return task.replace(other.si())


def _ignores(task: Any, first: bool) -> None:
    raise Ignore


def _rejects(task: Any, first: bool) -> None:
    raise Reject("on purpose")


def _requeues(task: Any, first: bool) -> None:
    if first:
        raise Reject("on purpose", requeue=True)


def _lasts(task: Any, first: bool) -> None:
    began = FOLDER / f"{task.request.id}.began"
    began.touch()
    until = time.monotonic() + LONG
    while time.monotonic() < until:
        time.sleep(0.02)


def _checks(task: Any, first: bool) -> None:
    if not first:
        return
    (FOLDER / f"{task.request.id}.began").touch()
    until = time.monotonic() + 30
    while time.monotonic() < until:
        task.checkpoint("at", time.time())
        time.sleep(0.05)


def _killed(task: Any, first: bool) -> None:
    if first:
        os.kill(os.getpid(), signal.SIGKILL)


WAYS: dict[str, Any] = {
    "returns": lambda task, first: None,
    "raises": _raises,
    "no-json": _no_json,
    "exits": _exits,
    "interrupts": _interrupts,
    "retries": _retries,
    "retries-otherwise": _retries_otherwise,
    "expires": _expires,
    "replaces": _replaces,
    "ignores": _ignores,
    "rejects": _rejects,
    "requeues": _requeues,
    "soft-limit": _lasts,
    "hard-limit": _lasts,
    "terminated": _lasts,
    "deadline": _checks,
    "cancelled": _checks,
    "lock-freed": _checks,
    "killed": _killed,
}
