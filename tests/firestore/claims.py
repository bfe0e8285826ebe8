"""Claims by attempts of their own, and what a store keeps beside its records."""

from __future__ import annotations

import itertools
from typing import Any

from gwi_celery.firestore.client import Client
from gwi_celery.firestore.documents import Query
from gwi_celery.stores.base import Claimed, ClaimRequest, JobRef, LockRef
from gwi_celery.stores.firestore import FirestoreStore
from tests.firestore_wire import Wire

#: Seconds. The emulator's clock goes on by itself: no lease runs out unless a test moves it.
TTL = 3000.0
_nonces = itertools.count()


def request(key: str = "k", tenant: str = "acme", **options: Any) -> ClaimRequest:
    scope = options.pop("scope", (key,))
    return ClaimRequest(
        **{
            "job": JobRef(tenant, "task", key),
            "lock": LockRef(tenant, scope),
            "run_id": "r1",
            "fingerprint": "f",
            "submission": "s1",
            "owner": "host:1",
            "nonce": f"n{next(_nonces)}",
            "lease_ttl": TTL,
            "result_ttl": TTL * 100,
            **options,
        }
    )


def take(store: FirestoreStore, **options: Any) -> Claimed:
    answer = store.claim(request(**options))
    assert isinstance(answer, Claimed), answer
    return answer


def chunk_names(wire: Wire) -> list[str]:
    client = Client(wire.url)
    found = client.query(Query("", "gwi_chunks", descendants=True, mask=[]))
    client.close()
    return list(found.documents)
