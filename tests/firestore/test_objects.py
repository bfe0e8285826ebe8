"""Values that go to Cloud Storage: made visible by a commit as chunks are, and deleted with theirs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from google.auth.exceptions import RefreshError, TransportError

from gwi_celery.errors import ConfigurationError, LeaseLost, StoreUnavailable, StoreUnusable
from gwi_celery.firestore.objects import _Mapped
from gwi_celery.firestore.url import parse
from gwi_celery.stores.base import Completed, Held, Origin, Replay, StoredResult
from gwi_celery.stores.firestore import FirestoreStore
from gwi_celery.stores.firestore.blobs import INLINE
from tests.contract.stores import cursor, failure, step, success
from tests.fake_gcs import BUCKET, FakeStorage, fake_storage
from tests.firestore.claims import TTL, chunk_names, request, take
from tests.firestore_wire import COMMIT, Wire, fresh_url

pytestmark = [pytest.mark.emulator, pytest.mark.usefixtures("firestore_emulator")]

LARGE = bytes(range(256)) * (3 * INLINE // 256 + 1)


@pytest.fixture
def storage() -> Iterator[FakeStorage]:
    with fake_storage() as storage:
        yield storage


@pytest.fixture
def wire(storage: FakeStorage) -> Iterator[Wire]:
    wire = Wire(fresh_url(gcs_bucket=BUCKET, gcs_endpoint=storage.endpoint))
    yield wire
    wire.close()


def test_what_needs_more_than_one_commit_is_an_object(
    wire: Wire, store: FirestoreStore, storage: FakeStorage
) -> None:
    lease = take(store).lease
    with wire.counting() as calls:
        lease = store.save(lease, step("large", LARGE))
        lease = store.save(lease, step("small", LARGE[: 3 * INLINE]))
        store.finish(lease, success(LARGE))
    assert calls == [COMMIT] * 3
    assert len(storage.objects) == 2
    assert len(chunk_names(wire)) == 3
    assert [c.blob for c in store.get_checkpoints(lease.job)] == [LARGE, LARGE[: 3 * INLINE]]
    answer = store.claim(request())
    assert isinstance(answer, Completed)
    assert answer.record.outcome == LARGE
    (listed,) = store.list_jobs("acme").jobs
    assert listed == answer.record


def test_objects_go_with_what_named_them(
    wire: Wire, store: FirestoreStore, storage: FakeStorage
) -> None:
    lease = store.save(take(store).lease, cursor("c", LARGE, 1))
    lease = store.save(lease, cursor("c", LARGE + b"x", 2))
    assert len(storage.objects) == 1
    lease = store.save(lease, step("s", LARGE))
    store.finish(lease, failure(LARGE))
    assert len(storage.objects) == 3
    lease = take(store, submission="s2").lease
    assert len(storage.objects) == 2
    store.finish(lease, success(LARGE))
    claimed = take(store, replay=Replay(3, "s"))
    assert len(storage.objects) == 1
    store.finish(claimed.lease, success(LARGE))
    wire.advance(TTL * 101)
    assert store.cleanup() == 1
    assert storage.objects == {}


def test_a_result_that_stays_keeps_its_object(
    wire: Wire, store: FirestoreStore, storage: FakeStorage
) -> None:
    result = StoredResult("t", "key", "SUCCESS", os.urandom(len(LARGE)), None, tenant="acme")
    store.finish(take(store).lease, success(), result)
    (kept,) = storage.objects
    for generation, tenant in ((2, "acme"), (3, "other")):
        again = replace(result, seen_before=True, tenant=tenant)
        store.finish(take(store, replay=Replay(generation, "")).lease, success(), again)
        assert kept in storage.objects


def test_a_wait_in_place_of_what_has_expired_deletes_its_objects(
    wire: Wire, store: FirestoreStore, storage: FakeStorage
) -> None:
    store.finish(take(store, scope=("shared",)).lease, success(LARGE))
    wire.advance(TTL * 101)
    take(store, key="other", scope=("shared",))
    assert isinstance(store.claim(request(scope=("shared",), origin=Origin("t"))), Held)
    assert storage.objects == {}


def test_a_stale_holders_object_stays_invisible(wire: Wire, store: FirestoreStore) -> None:
    lease = take(store).lease
    wire.advance(TTL + 1)
    claimed = take(store)
    with pytest.raises(LeaseLost):
        store.save(lease, step("large", LARGE))
    assert store.load(claimed.lease) == []


def test_an_object_that_is_gone_or_changed_is_an_error_and_no_cut_value(
    wire: Wire, store: FirestoreStore, storage: FakeStorage
) -> None:
    lease = store.save(take(store).lease, step("large", LARGE))
    (name,) = storage.objects
    storage.objects[name] = LARGE[:-1]
    with pytest.raises(StoreUnusable, match="checksum"):
        store.fetch(lease, "large")
    del storage.objects[name]
    with pytest.raises(StoreUnusable, match=f"gone from bucket {BUCKET}"):
        store.fetch(lease, "large")
    bare = FirestoreStore(replace(wire.url, gcs_bucket=""), intercept=wire)
    with pytest.raises(StoreUnusable, match="gcs_bucket"):
        bare.get_checkpoints(lease.job)


@pytest.mark.parametrize(
    ("status", "error", "match"),
    [
        (403, StoreUnusable, r"roles/storage\.objectUser"),
        (404, StoreUnusable, "gcloud storage buckets create"),
        (400, StoreUnusable, "refuses the request"),
    ],
)
def test_what_storage_refuses_says_what_to_do(
    store: FirestoreStore, storage: FakeStorage, status: int, error: Any, match: str
) -> None:
    lease = take(store).lease
    storage.refuses = status
    with pytest.raises(error, match=match):
        store.save(lease, step("large", LARGE))
    storage.refuses = None
    store.save(lease, step("large", LARGE))


def test_storage_that_is_unavailable_is_a_temporary_matter(wire: Wire) -> None:
    url = replace(wire.url, gcs_endpoint="http://127.0.0.1:1", timeout=0.2)
    store = FirestoreStore(url, intercept=wire)
    with pytest.raises(StoreUnavailable):
        store.save(take(store).lease, step("large", LARGE))


def test_credentials_that_can_not_be_had_now_are_a_temporary_matter(wire: Wire) -> None:
    with pytest.raises(StoreUnavailable, match="try again"), _Mapped(BUCKET):
        raise TransportError("the metadata server does not answer")
    with pytest.raises(StoreUnusable, match="refuses bucket"), _Mapped(BUCKET):
        raise RefreshError("invalid_grant")


def test_without_the_extra_the_store_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"gwi-celery\[gcs\]"):
        FirestoreStore(parse("firestore://p?gcs_bucket=b"))
