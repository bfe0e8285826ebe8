"""The one hook: events of jobs, for listeners in the worker's main process.

Jobs run in pool children, while the listeners (health endpoints, metrics) are in the parent. An event is
a line of JSON through a pipe opened before the fork: one write, which either fits whole or is dropped,
so that a child never waits for its parent and can be killed at any moment. Without a listener an event
costs one comparison.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from celery import signals
from celery._state import get_current_task

from gwi_celery.gcp import rpcs
from gwi_celery.text import raw

logger = logging.getLogger(__name__)

#: Longest line, bytes: what POSIX promises to write whole.
_LONGEST = 4096
#: Longest text in an event, bytes of JSON: several fit into a line. Events are for people and counters,
#: never for decisions.
_LONGEST_TEXT = 400


@dataclass(frozen=True)
class Event:
    #: What happened: an end in reliability/ends.py's table, or started, claimed, checkpoint, ended ...
    name: str
    #: The job's process.
    pid: int
    #: The Celery task's id; None if it concerns no task.
    task_id: str | None
    #: Seconds since the epoch.
    at: float
    facts: Mapping[str, Any]


Listener = Callable[[Event], None]


class _Hook:
    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        #: The process that listens; 0: none yet.
        self.pid = 0
        self.write_end: int | None = None

    def open(self) -> None:
        self.pid = os.getpid()
        read, self.write_end = os.pipe()
        os.set_blocking(self.write_end, False)
        threading.Thread(target=self._read, args=(read,), name="gwi-events", daemon=True).start()

    def send(self, event: Event) -> None:
        assert self.write_end is not None
        line = json.dumps([event.name, event.pid, event.task_id, event.at, event.facts]) + "\n"
        data = line.encode()
        if len(data) <= _LONGEST:
            with contextlib.suppress(OSError):  # full, or nobody reads any more
                os.write(self.write_end, data)

    def deliver(self, event: Event) -> None:
        for listener in self.listeners:
            try:
                listener(event)
            except Exception:
                logger.exception("a listener failed on the event %r", event.name)

    def _read(self, fd: int) -> None:
        rest = b""
        while True:
            chunk = os.read(fd, 65536)
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                name, pid, task_id, at, facts = json.loads(line)
                self.deliver(Event(name, pid, task_id, at, facts))


_hook = _Hook()


def listen(listener: Listener) -> None:
    """Have ``listener`` called with every event from now on, in this process and future children.

    Call it before the pool starts. It may be called in any thread, one event at a time or several.
    """
    if _hook.write_end is None:
        _hook.open()
        _watch_tasks()
    if _hook.pid != os.getpid():
        return  # a forked child: the listeners are in its parent
    _hook.listeners.append(listener)


def ignore(listener: Listener) -> None:
    """The reverse of :func:`listen`."""
    with contextlib.suppress(ValueError):
        _hook.listeners.remove(listener)


def emit(name: str, *, task_id: str | None = None, **facts: Any) -> None:
    """Emit an event. Never raises, never blocks; facts are plain values."""
    if not _hook.listeners:
        return
    if task_id is None:
        task = get_current_task()
        task_id = task.request.id if task is not None else None
    short = {key: _short(value) for key, value in facts.items() if value is not None}
    event = Event(name, os.getpid(), _short(task_id), time.time(), short)
    if event.pid == _hook.pid:
        _hook.deliver(event)
    else:
        _hook.send(event)


def _short(value: Any) -> Any:
    """A text cut to what an event may hold, with a digest, so that two texts stay different."""
    if not isinstance(value, str) or len(json.dumps(value[:_LONGEST_TEXT])) <= _LONGEST_TEXT >= len(
        value
    ):
        return value
    digest = hashlib.sha256(raw(value)).hexdigest()[:16]
    kept = value[: _LONGEST_TEXT - len(digest)]
    while len(json.dumps(kept)) > _LONGEST_TEXT - len(digest):
        kept = kept[: len(kept) * 3 // 4]
    return f"{kept}…{digest}"


# --- every task, reliable or not ------------------------------------------------------------------


def _watch_tasks() -> None:
    signals.task_prerun.connect(_started, weak=False)
    signals.task_postrun.connect(_ended, weak=False)
    signals.task_failure.connect(_failed, weak=False)


def _started(task_id: str, task: Any, **kwargs: Any) -> None:
    late = _late(task.request.eta)
    emit("started", task_id=task_id, task=task.name, retries=task.request.retries, late=late)


def _late(eta: str | None) -> float | None:
    """Seconds from a task's ETA until now, when it starts; None without an ETA."""
    if not isinstance(eta, str):
        return None
    try:
        due = datetime.fromisoformat(eta.replace("Z", "+00:00"))
    except ValueError:
        return None
    if due.tzinfo is None:
        due = due.replace(tzinfo=timezone.utc)
    return round(max(0.0, time.time() - due.timestamp()), 3)


def _failed(task_id: str, exception: BaseException, sender: Any, **kwargs: Any) -> None:
    emit("failed", task_id=task_id, task=sender.name, error=type(exception).__name__)


def _ended(task_id: str, task: Any, state: str | None = None, **kwargs: Any) -> None:
    # The main process counts its own.
    made = rpcs.news() if os.getpid() != _hook.pid else {}
    emit("ended", task_id=task_id, task=task.name, state=state, rpcs=made or None)
