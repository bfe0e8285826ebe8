"""``@task.on_cancel``: a task that undoes a job which was cancelled after it had begun.

Whoever cancels the job sends it, and so does the worker that finds the job cancelled: it isn't lost if
either of them dies. Its idempotency key makes all of these calls one job.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gwi_celery.headers import RUN_HEADER, TENANT_HEADER
from gwi_celery.stores.base import JobRecord
from gwi_celery.stores.interventions import UNDO_SUFFIX

if TYPE_CHECKING:
    from gwi_celery.reliability.task import ReliableTask


def register(task: ReliableTask, function: Callable[..., Any]) -> Any:
    """Make a bound task of the function, called with the arguments of the job that it undoes."""
    return task.app.task(
        function,
        name=f"{task.name}{UNDO_SUFFIX}",
        base=type(task).__mro__[1],
        bind=True,
        shared=False,
        reliable=task.reliable,
        ignore_result=task.ignore_result,
    )


def ask(
    task: Any,
    record: JobRecord,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    queue: str | None = None,
) -> None:
    """Send the task that undoes the job, if it has one and the job has begun.

    Raises kombu.exceptions.OperationalError.
    """
    undoes = task.app.tasks.get(f"{task.name}{UNDO_SUFFIX}")
    if undoes is None or not record.attempt:
        return
    headers = {TENANT_HEADER: record.job.tenant}
    if record.run_id is not None:
        headers[RUN_HEADER] = record.run_id
    undoes.apply_async(
        args,
        dict(kwargs),
        headers=headers,
        idempotency_key=f"{record.job.id} {record.generation}",
        queue=queue,
        parent_id=record.origin.task_id or None,
        root_id=record.origin.root_id,
    )
