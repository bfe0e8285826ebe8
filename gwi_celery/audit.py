"""The audit trail: what operators did, kept in the store beside what they did it to.

``store.cancel()`` and ``store.force_release()`` write their entry in the same commit, so that neither
is there without the other. A replay, and a purge or a redrive through the app's broker, write it first,
and are not done if it can't be written. A store with a database for each tenant keeps a tenant's actions
in that tenant's; what is done to a queue is only in the log.

Each action is also one line of JSON of the logger ``gwi_celery.audit``.
"""

from __future__ import annotations

from typing import Any

from gwi_celery.actions import Action, acting_as
from gwi_celery.integration import integration

__all__ = ["Action", "acting_as", "entries", "record"]


def record(app: Any, what: str, target: str, *, tenant: str | None = None, **details: Any) -> None:
    """Keep an operator's action that nothing else records. Raises StoreError if it can't be kept.

    Args:
        what: A verb, such as ``purge``.
        target: What it is done to, for people.
        details: Whatever has a JSON form. Never a job's arguments or results.
    """
    integration(app).record_action(what, target, tenant, **details)


def entries(
    app: Any, *, tenant: str | None = None, limit: int = 100, before: str | None = None
) -> list[Action]:
    """What was done, latest first; kept for 400 days.

    Args:
        tenant: Only what was done to this tenant's; None: all.
        before: The ``id`` of an entry: go on with those before it.
    """
    return integration(app).store.list_actions(tenant=tenant, limit=limit, before=before)
