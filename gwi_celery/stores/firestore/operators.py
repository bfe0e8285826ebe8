"""What operators did, and the key that proves who is one, in a database.

An action's document is named by how long it is until the end of time, so that a plain listing shows the
latest first and needs no index.
"""

from __future__ import annotations

import secrets
from typing import Final
from uuid import uuid4

from gwi_celery.actions import KEPT, Action
from gwi_celery.firestore import documents
from gwi_celery.firestore.client import Client
from gwi_celery.firestore.documents import Micros, Query, Write
from gwi_celery.stores.firestore.holder import Tries
from gwi_celery.stores.firestore.records import SECOND, Places

ACTIONS: Final = "gwi_actions"
KEYS: Final = "gwi_keys"
#: Microseconds since the epoch: the year 5138.
_END: Final = 10**17
#: Documents in one query.
_BATCH: Final = 300


def key(client: Client, places: Places) -> bytes:
    """The database's own key, made when first asked for."""
    name = f"{places.base}/{KEYS}/operator"
    tries = Tries("make the operators' key")
    for _ in tries:
        found = client.read([name]).documents.get(name)
        if found is not None:
            return bytes(found.fields["data"])
        with tries.once():
            client.commit([documents.create(name, {"data": secrets.token_bytes(32)})])
    raise AssertionError


def keeping(client: Client, places: Places, action: Action) -> Write:
    """The write that keeps it, for a commit of its own or of another's."""
    now = client.about_now()
    name = f"{places.base}/{ACTIONS}/{_END - now:018}-{uuid4().hex[:8]}"
    gc_at = Micros(now + round(KEPT * SECOND))
    return Write(name, {"data": action.dumps(), "gc_at": gc_at})


def listed(
    client: Client, places: Places, tenant: str | None, limit: int, before: str | None
) -> list[Action]:
    found: list[Action] = []
    while len(found) < limit:
        after = None if before is None else (f"{places.base}/{ACTIONS}/{before}",)
        read = client.query(Query(places.base, ACTIONS, after=after, limit=_BATCH)).documents
        for name, document in read.items():
            before = name.rpartition("/")[2]
            action = Action.loads(document.fields["data"], before)
            if tenant in (None, action.tenant):
                found.append(action)
        if len(read) < _BATCH:
            break
    return found[:limit]
