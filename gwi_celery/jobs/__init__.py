"""Find jobs, say why they wait, and mend them: ``from gwi_celery import jobs``.

::

    jobs.find(tenant="acme", status="failed", error="ValueError", older_than=3600)
    jobs.explain(task_id)   # waits for the lock run:r1 of acme, held by host:123 since 12:04 ...
    jobs.cancel(task_id, "wrong customer", tree=True)
    jobs.replay(task_id, from_step="post")

A job is named by its task's id, an AsyncResult, a JobRef or a record. Each function takes ``app=``, an
app that was set up; without it, Celery's current one.
"""

from gwi_celery.jobs.changing import cancel, fork, replay
from gwi_celery.jobs.looking import JobDetails, descendants, explain, find, get
from gwi_celery.stores.base import (
    AttemptEnd,
    Checkpoint,
    CheckpointKind,
    JobRecord,
    JobRef,
    JobStatus,
    LockRecord,
    LockRef,
    Origin,
    Page,
    PastAttempt,
    Progress,
    Wait,
)

__all__ = [
    "AttemptEnd",
    "Checkpoint",
    "CheckpointKind",
    "JobDetails",
    "JobRecord",
    "JobRef",
    "JobStatus",
    "LockRecord",
    "LockRef",
    "Origin",
    "Page",
    "PastAttempt",
    "Progress",
    "Wait",
    "cancel",
    "descendants",
    "explain",
    "find",
    "fork",
    "get",
    "replay",
]
