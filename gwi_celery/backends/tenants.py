"""Tenants of results: two tenants that use the same task id never read each other's results.

Celery keeps results by the task's id. The result of a call with a tenant names that tenant. It is not
overwritten by another tenant's result, and a reader whose id is known to be another tenant's is refused.
Results without a tenant, such as those of release 0.1, behave as Celery's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from celery.result import AsyncResult

from gwi_celery.errors import TaskIdTaken
from gwi_celery.headers import TENANT_HEADER
from gwi_celery.text import from_json

#: The field of a stored result that names its tenant.
FIELD: Final = "gwi_tenant"


class TaskId(str):
    """A task's id that knows the task's tenant; otherwise a plain string."""

    tenant: str | None = None

    @classmethod
    def of(cls, task_id: str, tenant: str) -> TaskId:
        made = cls(task_id)
        made.tenant = tenant
        return made

    def __reduce__(self) -> Any:
        return (str, (str(self),)) if self.tenant is None else (TaskId.of, (str(self), self.tenant))


def owned(result: Any, tenant: Any) -> Any:
    """The result (Celery's AsyncResult), changed so that only that tenant's is read."""
    if isinstance(tenant, str) and isinstance(result, AsyncResult):
        result.id = TaskId.of(result.id, tenant)
    return result


def tenant_of(request: Any) -> str | None:
    """The tenant of a task's request, as its headers name it."""
    headers = getattr(request, "headers", None)
    tenant = headers.get(TENANT_HEADER) if isinstance(headers, Mapping) else None
    return tenant if isinstance(tenant, str) else None


def tenant_in(meta: Any) -> str | None:
    """The tenant of a stored result, given as JSON; None if it names none."""
    try:
        tenant = from_json(meta).get(FIELD)
    except (ValueError, AttributeError, TypeError):
        return None
    return tenant if isinstance(tenant, str) else None


def is_anothers(tenant: str | None, ours: str | None) -> bool:
    """Whether both are known, and differ."""
    return tenant is not None and ours is not None and tenant != ours


def checked(task_id: Any, meta: Any) -> Any:
    """The result. Raises TaskIdTaken if it belongs to another tenant than the id's."""
    if is_anothers(meta.get(FIELD), getattr(task_id, "tenant", None)):
        raise TaskIdTaken(
            f"the result of the task id {str(task_id)!r} is another tenant's: two calls have the same "
            "id, and results are kept by it. Use ids that no two tenants share; the job's own outcome "
            "is in the store"
        )
    return meta
