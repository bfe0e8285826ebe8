"""Makes ``app.send_task()`` and canvases honour ``apply_async()``'s options, or refuse them.

Celery would take ``idempotency_key`` and ``deadline`` for message properties, which no worker reads. It
would pass a chain's options to its first task only, and a group's key to each of its calls.
"""

from __future__ import annotations

from functools import wraps
from typing import Any
from uuid import uuid4

from celery.canvas import _chain, chord, group

from gwi_celery.backends import tenants
from gwi_celery.errors import InvalidCall
from gwi_celery.headers import TENANT_HEADER
from gwi_celery.reliability import call, sendable


def keep_promises(app: Any) -> None:
    """Called by ``setup()``. Safe to call twice."""
    for verb in ("run", "apply"):
        _refuse(_chain, verb, ("idempotency_key", "deadline"))
    for verb in ("apply_async", "apply"):
        _refuse(group, verb, ("idempotency_key",))
    _refuse(chord, "apply_async", ("idempotency_key",))
    _refuse(chord, "apply", ("idempotency_key", "deadline"))
    sendable.check_messages(app.amqp)
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
        labels: Any = None,
        **options: Any,
    ) -> Any:
        from gwi_celery.reliability.task import ReliableTask

        task = options.get("task_type") or app._tasks.get(name)
        named = {**dict(zip(("countdown", "eta"), rest, strict=False)), **options}
        sendable.check_options(name, named)
        if isinstance(task, ReliableTask):
            sendable.check_reliable(name, options)
        given = any(option is not None for option in (idempotency_key, deadline, labels))
        if "task_type" not in options and isinstance(task, ReliableTask) and len(rest) < 3:
            options["task_id"] = options.get("task_id") or str(uuid4())
            options["headers"], _ = task.addressed(
                args,
                kwargs,
                options.get("headers"),
                options["task_id"],
                idempotency_key,
                deadline,
                labels,
            )
        elif given and task is not None and not isinstance(task, ReliableTask):
            raise InvalidCall(
                f"{name} is a plain task, which has no idempotency_key, deadline or labels: make it "
                "a reliable one by base=ReliableTask, or leave them out (Celery's own expires= may do)"
            )
        elif given or "task_type" not in options:
            options["headers"] = call.headers_of(
                name, options.get("headers"), idempotency_key, deadline, labels=labels
            )
        result = send(name, args, kwargs, *rest, **options)
        return tenants.owned(result, (options.get("headers") or {}).get(TENANT_HEADER))

    app.send_task = send_task


def _refuse(canvas: Any, verb: str, options: tuple[str, ...]) -> None:
    """Have the canvas's ``verb`` refuse these options, however they are given."""
    done = getattr(canvas, verb)
    if hasattr(done, "_gwi_refuses"):
        return

    @wraps(done)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        for option in options:
            if {**self.options, **kwargs}.get(option) is not None:
                raise InvalidCall(
                    f"a {canvas.__name__.strip('_')} as a whole has no {option}: give one to each of "
                    f"its calls that is to have it, as in task.s(...).set({option}=...)"
                )
        return done(self, *args, **kwargs)

    checked._gwi_refuses = True  # type: ignore[attr-defined]
    setattr(canvas, verb, checked)
