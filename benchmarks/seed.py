"""Many finished jobs of one tenant, written to the emulator by batched commits.

One job is run through the store; its record is then copied under other keys, which is what as many jobs
would have left.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import uuid4

from google.auth.credentials import AnonymousCredentials
from google.cloud import firestore

from benchmarks import protocol
from gwi_celery.stores.base import JobRef
from gwi_celery.stores.url import open_store

#: Documents in one commit, Firestore's own limit.
_BATCH = 500


def seed(project: str, runs: int) -> None:
    """Leave ``runs`` jobs of the benchmark's tenant in an empty project."""
    store = open_store(f"firestore://{project}")
    first = uuid4().hex
    protocol.run(store, first, steps=0)
    store.close()
    client = firestore.Client(project=project, credentials=AnonymousCredentials())
    [model] = client.collection_group("gwi_jobs").get()
    fields, parent = model.to_dict(), model.reference.parent

    def write(start: int) -> None:
        batch = client.batch()
        for number in range(start, min(start + _BATCH, runs)):
            key = f"run-{number}"
            data = {**fields["data"], "key": key, "run_id": key, "submission": key}
            document: dict[str, Any] = {
                **fields,
                "updated": fields["updated"] - timedelta(seconds=number),
                "data": data,
            }
            name = JobRef(protocol.TENANT, protocol.TASK, key).id
            batch.set(parent.document(name), document)
        batch.commit()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(1, runs, _BATCH)))


def bare_query(project: str, limit: int) -> Callable[[], int]:
    """The list's query by Google's own client: how many documents it has returned."""
    client = firestore.Client(project=project, credentials=AnonymousCredentials())
    [one] = client.collection_group("gwi_jobs").limit(1).get()
    descending = firestore.Query.DESCENDING
    query = one.reference.parent.order_by("updated", direction=descending).limit(limit)
    return lambda: len(query.get())
