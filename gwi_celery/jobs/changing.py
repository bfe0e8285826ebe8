"""Mending jobs: cancel and replay. What is done is kept in the audit trail."""

from __future__ import annotations

from typing import Any

from celery.result import AsyncResult

from gwi_celery.errors import InvalidCall
from gwi_celery.jobs.naming import Named, app_of, known_record, record_of, store_of
from gwi_celery.reliability.origin import call_of
from gwi_celery.stores.base import JobRecord, JobRef, JobStatus, Store


def cancel(
    job: Named, reason: str = "cancelled by an operator", *, app: Any = None
) -> list[JobRef]:
    """End a job as cancelled, whether it runs, waits or was handed back; the jobs that this ended.

    One that runs stops at its next step, renewal or ``check()``. A ``JobRef`` of a job that no worker has
    seen yet is cancelled in advance; a task's id of one is not known (Celery's ``revoke`` is for that).

    Args:
        reason: What its caller gets.

    Raises InvalidCall when nothing is known of the job.
    """
    store = store_of(app)
    if isinstance(job, JobRef) and record_of(store, job) is None:
        return [job] if store.cancel(job, reason, in_advance=True) else []
    record = known_record(store, job)
    return [record.job] if store.cancel(record.job, reason) else []


def replay(
    job: Named,
    *,
    from_step: str | None = None,
    resume: bool = False,
    app: Any = None,
    **options: Any,
) -> AsyncResult:
    """Run a job that has ended anew, with the call that its record keeps; its AsyncResult.

    All of it; or ``from_step`` on; or, with ``resume``, from where it ended, with all that it recorded. A
    job that failed goes on with its chain and its callbacks: they were never called. Takes
    ``apply_async``'s options, such as ``countdown`` and ``queue``.

    Raises InvalidCall when the job is unknown, has not ended, has no such step, when its call was not
    kept (``keep_calls``), or when this app has no such task.
    """
    app = app_of(app)
    store = store_of(app)
    record = known_record(store, job)
    if not record.status.terminal:
        raise InvalidCall(
            f"{record.job.task} is {record.status.value}: only what has ended is replayed. Wait for its "
            "end, or cancel it first"
        )
    call, task = _kept_call(store, record), _task(app, record)
    options.setdefault("queue", call["queue"])
    if call["priority"] is not None:
        options.setdefault("priority", call["priority"])
    if record.status is JobStatus.FAILED:
        for option, kept in (("link", "link"), ("link_error", "link_error"), ("chain", "chain")):
            if call[kept]:
                options.setdefault(option, call[kept])
    # It stays the child of the task that called it.
    for option, of in (("root_id", record.origin.root_id), ("parent_id", record.origin.parent_id)):
        if of is not None:
            options.setdefault(option, of)
    key = record.job.key
    named_by = key.removeprefix("task:") if key.startswith("task:") else None
    result: AsyncResult = task.replay(
        call["args"],
        call["kwargs"],
        from_step="" if resume else from_step,
        task_id=named_by,
        headers=call["headers"],
        **options,
    )
    return result


def _kept_call(store: Store, record: JobRecord) -> dict[str, Any]:
    envelope = store.get_envelope(record.job)
    if envelope is None:
        raise InvalidCall(
            f"the call of {record.job.task} was not kept (by setting keep_calls, or by 0.1): make it "
            f"with {record.job.task.rpartition('.')[2]}.replay(...) and its arguments"
        )
    return call_of(envelope)


def _task(app: Any, record: JobRecord) -> Any:
    task = app.tasks.get(record.job.task)
    if not hasattr(task, "replay"):
        raise InvalidCall(
            f"this app has no reliable task {record.job.task!r}: import the module that defines it"
        )
    return task
