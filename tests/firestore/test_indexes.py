"""The index file serves every query that the store makes, and nothing is indexed that needn't be."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from celery import Celery

from gwi_celery.backends.firestore import FirestoreBackend
from gwi_celery.config import DAY
from gwi_celery.firestore import indexes
from gwi_celery.firestore.client import Client
from gwi_celery.firestore.documents import Query
from gwi_celery.stores.base import JobStatus, Replay, StoredResult
from gwi_celery.stores.firestore import FirestoreStore
from gwi_celery.stores.firestore.blobs import INLINE
from gwi_celery.stores.limits import LimitRef, LimitSetting
from gwi_celery.testing.twin.firestore import served
from tests.contract import test_store_queues as letters
from tests.contract.stores import StoreCase, failure, step, success
from tests.contract.test_store_records import WANTED, fill
from tests.firestore.claims import TTL, request, take
from tests.firestore_wire import Wire

ASCENDING, DESCENDING, EQUAL = 1, 2, 5
GROUPS = (
    *("gwi_jobs", "gwi_locks", "gwi_barred", "gwi_steps", "gwi_chunks", "gwi_results", "gwi_parts"),
    *("gwi_actions", "gwi_keys", "gwi_letters", "gwi_queues", "gwi_limits", "gwi_places"),
)


def case_of(store: FirestoreStore, wire: Wire) -> StoreCase:
    return StoreCase(store, lambda: store, wire.advance, TTL, TTL * 100)


def limit_something(store: FirestoreStore) -> None:
    limit = LimitRef("openai", {}, max_running=1)
    store.set_limit(LimitSetting("openai", {}, 2, None, 0.0, "ops"))
    take(store, key="limited", limits=[limit])
    assert len(store.list_places()) == len(store.list_places(limit.id)) == 1


def use_everything(wire: Wire) -> None:
    store = wire.store()
    large = b"x" * (INLINE + 1)
    lease = store.save(take(store).lease, step("a", large))
    store.finish(store.save(lease, step("b")), failure(large))
    store.list_locks("acme")
    limit_something(store)
    store.cancel(request("never").job, "no", in_advance=True)
    store.operator_key()
    assert store.list_actions(limit=1, before=store.list_actions()[0].id) == []
    for status in (None, JobStatus.FAILED):
        for run_id in (None, "r1"):
            take(store, key=f"{status}{run_id}1")
            take(store, key=f"{status}{run_id}2")
            page = store.list_jobs("acme", status=status, run_id=run_id, limit=1)
            if page.next_token:
                of = {"status": status, "run_id": run_id}
                store.list_jobs("acme", limit=1, token=page.next_token, **of)
    fill(case_of(store, wire))
    for wanted, _ in WANTED.values():
        for of in (wanted, replace(wanted, since=0.0, before=1e10)):
            token = store.find_jobs(of, limit=1).next_token
            store.find_jobs(of, limit=1, token=token)
    for record in letters.fill(store.queues):
        assert store.queues.get(record.id)
    for wanted_letter, found in letters.WANTED.values():
        assert store.queues.count(wanted_letter) == len(found)
        token = store.queues.find(wanted_letter, limit=1).next_token
        store.queues.find(wanted_letter, limit=1, token=token)
    store.queues.expiring(1e10)
    store.get_checkpoints(request().job)
    claimed = take(store, replay=Replay(2, "b"))
    store.load(claimed.lease)
    store.finish(claimed.lease, success(large))
    results = FirestoreBackend(
        Celery(set_as_current=False), url=f"firestore://{wire.url.project}", intercept=wire
    )
    results.count_part("g", "a")
    wire.advance(TTL * 101 + DAY)
    store.cleanup()
    results.cleanup()
    results.close()
    store.close()


@pytest.mark.emulator
def test_every_query_is_served_and_every_field_has_its_say(wire: Wire) -> None:
    use_everything(wire)
    sent = [getattr(each, "structured_aggregation_query", each) for each in wire.requests]
    queries = [each.structured_query for each in sent if hasattr(each, "structured_query")]
    assert len(queries) > 10
    for query in queries:
        assert served(query), query
    overrides = {(f["collectionGroup"], f["fieldPath"]) for f in indexes.load()["fieldOverrides"]}
    client = Client(wire.url)
    store = wire.store()
    lease = take(store, key="again").lease
    result = StoredResult("t1", "key", "SUCCESS", b"meta", 10.0)
    store.finish(store.save(lease, step("a", b"x" * (INLINE + 1))), failure(), result)
    results = FirestoreBackend(
        Celery(set_as_current=False), url=f"firestore://{wire.url.project}", intercept=wire
    )
    results.count_part("g2", "a")
    store.cancel(request("never").job, "no", in_advance=True)
    store.operator_key()
    take(store, key="last")
    limit_something(store)
    store.bar_calls_of("acme", "t", "enough")
    fill(case_of(store, wire))
    letters.fill(store.queues)
    store.queues.set_paused("q", True)
    used = set()
    for group in GROUPS:
        found = client.query(Query("", group, descendants=True)).documents.values()
        assert found
        used |= {(group, path) for document in found for path in document.fields}
    assert used == overrides
    results.close()
    client.close()
    store.close()


def test_the_file_is_what_the_firebase_cli_takes() -> None:
    content = json.loads(indexes.text())
    assert set(content) == {"indexes", "fieldOverrides"}
    assert content == indexes.load()
    ttl = {f["collectionGroup"] for f in content["fieldOverrides"] if f.get("ttl")}
    assert ttl == {*GROUPS} - {"gwi_keys", "gwi_queues", "gwi_limits"}


def test_the_same_for_gcloud() -> None:
    commands = indexes.commands("proj", "db-1")
    scopes = [i["queryScope"] for f in indexes.load()["fieldOverrides"] for i in f["indexes"]]
    assert commands[-1] == (
        "gcloud firestore operations list '--filter=done!=true' --project proj --database db-1"
    )
    ttl = [n for n, command in enumerate(commands[:-1]) if "ttls" in command]
    assert ttl == list(range(ttl[0], len(commands) - 1)), "once the indexes are begun"
    assert set(scopes) == {"COLLECTION"}, "gcloud makes no other index of a single field"
    assert (
        "gcloud firestore indexes composite create --collection-group gwi_jobs "
        "--query-scope collection --field-config field-path=status,order=ascending "
        "--field-config field-path=updated,order=descending --project proj --database db-1 "
        "--quiet --async"
    ) in commands
    assert (
        "gcloud firestore indexes composite create --collection-group gwi_jobs "
        "--query-scope collection-group --field-config field-path=terms,array-config=contains "
        "--field-config field-path=created,order=descending --project proj --database db-1 "
        "--quiet --async"
    ) in commands
    assert (
        "gcloud firestore fields ttls update gc_at --collection-group gwi_locks --enable-ttl "
        "--project proj --database db-1 --quiet --async"
    ) in commands
    assert (
        "gcloud firestore indexes fields update data --disable-indexes --collection-group "
        "gwi_steps --project proj --database db-1 --quiet --async"
    ) in commands
    assert (
        "gcloud firestore indexes fields update updated --index order=descending "
        "--collection-group gwi_jobs --project proj --database db-1 --quiet --async"
    ) in commands
