"""The audit trail: what operators did, kept in the store.

``store.cancel()`` and ``store.force_release()`` write their entry in the same commit, so that neither
exists without the other. A replay, and a purge or a redrive through the app's broker, write theirs first,
and are not done if that fails. With a database for each tenant, a tenant's actions are kept in its own
database, and actions on queues are only logged.

Each action is also logged as one line of JSON by the logger ``gwi_celery.audit``.
"""

from __future__ import annotations

from typing import Any

from gwi_celery.actions import Action, acting_as
from gwi_celery.integration import integration

__all__ = ["Action", "acting_as", "entries", "record"]


def record(app: Any, what: str, target: str, *, tenant: str | None = None, **details: Any) -> None:
    """Record an operator's action that nothing else records. Raises StoreError if that fails.

    Args:
        what: A verb, such as ``purge``.
        target: What it is done to, as people name it.
        details: Values with a JSON form. Never a job's arguments or results.
    """
    integration(app).record_action(what, target, tenant, **details)


def entries(
    app: Any, *, tenant: str | None = None, limit: int = 100, before: str | None = None
) -> list[Action]:
    """Recorded actions, latest first; each is kept for 400 days.

    Args:
        tenant: Only actions on this tenant's jobs and locks; None: all.
        before: The ``id`` of an entry: only earlier ones.
    """
    return integration(app).store.list_actions(tenant=tenant, limit=limit, before=before)
