"""Mending jobs: cancel, replay, fork. What is done is kept in the audit trail."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import uuid4

from celery.result import AsyncResult

from gwi_celery.actions import action
from gwi_celery.errors import InvalidCall
from gwi_celery.headers import DUE_HEADER, KEY_HEADER, RUN_HEADER
from gwi_celery.jobs.looking import calls_of, children_of
from gwi_celery.jobs.naming import Named, app_of, known_record, record_of, store_of
from gwi_celery.reliability import compensation
from gwi_celery.reliability.call import own_lock
from gwi_celery.reliability.origin import call_of
from gwi_celery.reliability.wording import check_step
from gwi_celery.stores.base import (
    AttemptEnd,
    Checkpoint,
    Claimed,
    JobRecord,
    JobRef,
    JobStatus,
    Store,
)
from gwi_celery.stores.interventions import undoes


def cancel(
    job: Named, reason: str = "cancelled by an operator", *, tree: bool = False, app: Any = None
) -> list[JobRef]:
    """End a job as cancelled, whether it runs, waits or was handed back; returns the jobs that ended.

    One that runs stops at its next step, renewal or ``check()``. Its task's ``@task.on_cancel`` runs
    once, as a job of its own; call this again if that job could not be sent. A ``JobRef`` of a job that
    no worker has seen yet is cancelled in advance; a task id of such a job is unknown (use Celery's
    ``revoke``).

    Args:
        reason: What its caller gets.
        tree: Also the jobs that it has called, those that they have called, and so on, of the same
            tenant. Those that have not begun never will. Jobs of ``@task.on_cancel`` are not among them.

    Raises InvalidCall if the job is unknown, and kombu.exceptions.OperationalError if the job of
    ``@task.on_cancel`` can't be sent.
    """
    app = app_of(app)
    store = store_of(app)
    if isinstance(job, JobRef) and record_of(store, job) is None:
        return [job] if store.cancel(job, reason, in_advance=True) else []
    ended: list[JobRef] = []
    todo, seen = [known_record(store, job)], set()
    while todo:
        record = todo.pop()
        if record.job in seen:
            continue
        seen.add(record.job)
        if tree:  # before its calls are searched for, so that none begins unseen in between
            for task_id in calls_of(record):
                store.bar_calls_of(record.job.tenant, task_id, reason)
        if store.cancel(record.job, reason):
            ended.append(record.job)
        _undo(app, store, record)
        if tree:
            # An undo that was cancelled would leave half of its job done.
            todo += [each for each in children_of(store, record) if not undoes(each.job.task)]
    return ended


def _undo(app: Any, store: Store, record: JobRecord) -> None:
    """Send the job that undoes a cancelled one, if its call is known; if not, its worker does."""
    now = store.get_job(record.job)
    task, envelope = app.tasks.get(record.job.task), store.get_envelope(record.job)
    if now is None or now.status is not JobStatus.CANCELLED or not (task and envelope):
        return
    call = call_of(envelope)
    compensation.ask(task, now, call["args"], call["kwargs"], call["queue"])


def replay(
    job: Named,
    *,
    from_step: str | None = None,
    resume: bool = False,
    app: Any = None,
    **options: Any,
) -> AsyncResult:
    """Run an ended job again, with the call that its record keeps; returns its AsyncResult.

    It runs from the start; or from ``from_step`` on; or, with ``resume``, from where it ended, with all
    that it recorded. If it had failed, its chain and its callbacks follow: they were never called.
    Takes ``apply_async``'s options, such as ``countdown`` and ``queue``.

    Raises InvalidCall if the job is unknown, has not ended or has no such step, if its call was not kept
    (``keep_calls``), or if this app has no such task.
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
        for option in ("link", "link_error", "chain"):
            if call[option]:
                options.setdefault(option, call[option])
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


def fork(
    job: Named,
    *,
    run_id: str,
    from_step: str | None = None,
    changes: Mapping[str, Any] | None = None,
    app: Any = None,
    **options: Any,
) -> AsyncResult:
    """Start a new job with another's call and earlier steps, under a new run id; returns its AsyncResult.

    The other job doesn't change, and may even run. Takes ``apply_async``'s options.

    Args:
        from_step: Steps recorded before this one are copied; None: all recorded steps.
        changes: New values of arguments, by name. The copied steps were made with the old ones.

    Raises InvalidCall if the job is unknown, its call was not kept, it has no such step, or a job of that
    run exists already.
    """
    app = app_of(app)
    store = store_of(app)
    record = known_record(store, job)
    call, task = _kept_call(store, record), _task(app, record)
    taken = _steps_before(store, record, from_step)
    kwargs = {**_by_name(task, call), **(changes or {})}
    headers = {name: value for name, value in call["headers"].items() if name not in _OWN_HEADERS}
    if task.reliable.run in kwargs:
        kwargs[task.reliable.run] = run_id
    headers[RUN_HEADER] = run_id
    task_id = options.pop("task_id", None) or str(uuid4())
    headers, resolved = task.addressed((), kwargs, headers, task_id)
    existing = store.get_job(resolved.job)
    if existing is not None and not _is_half_forked(existing):
        raise InvalidCall(
            f"there is a job of {record.job.task} for run {run_id!r} already: name another run_id"
        )
    store.record_action(
        action("fork", f"{record.job.task} {record.job.key}", record.job.tenant, run=run_id)
    )
    wanted = task.claim_request(resolved, headers, task_id, os.getpid(), redelivered=False)
    claimed = store.claim(replace(wanted, lock=own_lock(resolved.job)))
    if not isinstance(claimed, Claimed):
        raise InvalidCall(
            f"the job of run {run_id!r} is already being forked, or runs: name another run_id"
        )
    lease = claimed.lease
    for step in taken:
        lease = store.save(lease, step)
    store.release(lease, AttemptEnd(_FORKED))
    options.setdefault("queue", call["queue"])
    result: AsyncResult = task.apply_async(
        kwargs=kwargs, headers=headers, task_id=task_id, **options
    )
    return result


#: The end of the attempt that wrote a forked job's first steps.
_FORKED = "forked"
#: Headers that name the other job.
_OWN_HEADERS = (RUN_HEADER, KEY_HEADER, DUE_HEADER)


def _steps_before(store: Store, record: JobRecord, from_step: str | None) -> list[Checkpoint]:
    recorded = store.get_checkpoints(record.job)
    names = [step.name for step in recorded]
    if from_step is None:
        return recorded
    check_step("fork", record.job.task, from_step, names)
    return recorded[: names.index(from_step)]


def _by_name(task: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """The call's arguments by name, so that some can be changed. Raises InvalidCall."""
    if not call["args"]:
        return dict(call["kwargs"])
    signature = inspect.signature(task.run)
    bound = signature.bind(*call["args"], **call["kwargs"])
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            named |= value
        elif kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY):
            raise InvalidCall(
                f"can't fork {task.name}: its argument {name!r} can't be passed by name: replay "
                "it, or call the task anew"
            )
        else:
            named[name] = value
    return named


def _is_half_forked(record: JobRecord) -> bool:
    """Whether an earlier fork was interrupted before its call was sent: this one then finishes it."""
    ends = [past.end.how for past in record.attempts if past.end is not None]
    return record.status is JobStatus.PENDING and bool(ends) and set(ends) <= {_FORKED, "lost"}


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
