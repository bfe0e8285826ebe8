"""``app.send_task()`` keeps the promises of ``apply_async()``, or refuses what it can't keep.

Celery would take ``idempotency_key`` and ``deadline`` for properties of the message, where no worker
looks.
"""

from __future__ import annotations

from functools import wraps
from typing import Any
from uuid import uuid4

from gwi_celery.errors import InvalidCall
from gwi_celery.reliability import call


def keep_promises(app: Any) -> None:
    """Called by ``setup()``. Safe to call twice."""
    if "send_task" in vars(app):
        return
    send = app.send_task

    @wraps(send)
    def send_task(
        name: str,
        args: Any = None,
        kwargs: Any = None,
        *rest: Any,
        idempotency_key: str | None = None,
        deadline: float | None = None,
        **options: Any,
    ) -> Any:
        from gwi_celery.reliability.task import ReliableTask

        task = options.get("task_type") or app._tasks.get(name)
        given = idempotency_key is not None or deadline is not None
        if "task_type" not in options and isinstance(task, ReliableTask) and len(rest) < 3:
            options["task_id"] = options.get("task_id") or str(uuid4())
            options["headers"], _ = task.addressed(
                args, kwargs, options.get("headers"), options["task_id"], idempotency_key, deadline
            )
        elif given and task is not None and not isinstance(task, ReliableTask):
            raise InvalidCall(
                f"{name} is a plain task, which keeps no idempotency_key and no deadline: make it one "
                "with base=ReliableTask, or leave them out (Celery's own expires= may do)"
            )
        elif given or "task_type" not in options:
            options["headers"] = call.promised(
                name, options.get("headers"), idempotency_key, deadline
            )
        return send(name, args, kwargs, *rest, **options)

    app.send_task = send_task
