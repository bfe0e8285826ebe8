"""Periodic jobs: each call that beat sends is a job of its own, named by the time it was due.

Without that, a fixed run id would make all these calls one job, and all but the first would get its
outcome. Whichever scheduler beat uses, its calls are marked with their nominal time (the header
``gwi_due``), which becomes a part of the job's key; run and lock stay as they are.
"""

from __future__ import annotations

import contextvars
import logging
from datetime import datetime, timedelta, timezone
from typing import Any

from celery import signals

logger = logging.getLogger(__name__)

_due: contextvars.ContextVar[str | None] = contextvars.ContextVar("due", default=None)


def due() -> str | None:
    """The nominal time of the entry that beat is sending; None for any other call."""
    return _due.get()


def nominal_time(entry: Any) -> str:
    """When a schedule's entry was due, in UTC: by its schedule, from when it was sent last."""
    schedule = entry.schedule
    when: datetime = schedule.now() + schedule.remaining_estimate(entry.last_run_at)
    every = getattr(schedule, "run_every", None)
    if isinstance(every, timedelta) and every < timedelta(seconds=2):
        return when.astimezone(timezone.utc).isoformat(timespec="microseconds")
    # The two readings of the clock above are a moment apart.
    whole = (when + timedelta(milliseconds=500)).replace(microsecond=0)
    return whole.astimezone(timezone.utc).isoformat(timespec="seconds")


def _named(entry: Any) -> str:
    try:
        return nominal_time(entry)
    except Exception:  # a custom schedule that can't tell: even so, each call is a job of its own
        logger.exception("no nominal time for %s: its call is named by when it is sent", entry.name)
        return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def mark(sender: Any, **kwargs: Any) -> None:
    """Beat has started: mark the calls of its scheduler from now on."""
    scheduler = sender.scheduler
    if "apply_async" in vars(scheduler):
        return
    send = scheduler.apply_async

    def apply_async(entry: Any, *args: Any, **kwargs: Any) -> Any:
        token = _due.set(_named(entry))
        try:
            return send(entry, *args, **kwargs)
        finally:
            _due.reset(token)

    scheduler.apply_async = apply_async


def install() -> None:
    """Called by ``setup()``. Safe to call twice."""
    signals.beat_init.connect(mark, dispatch_uid="gwi_celery.beat")
