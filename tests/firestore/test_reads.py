"""What a page of a list costs: about as many reads as it has entries."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from gwi_celery import setup
from gwi_celery.integration import integration
from gwi_celery.stores.base import JobFilter, JobStatus
from gwi_celery.stores.firestore import FirestoreStore
from gwi_celery.stores.queues import LetterFilter
from tests.cli.conftest import Gwi
from tests.contract import test_store_queues as letters
from tests.contract.stores import StoreCase
from tests.contract.test_store_records import fill
from tests.firestore_wire import Wire

pytestmark = [pytest.mark.emulator, pytest.mark.usefixtures("firestore_emulator")]


class Counting:
    """Between a store and the emulator: counts the documents that Firestore would bill as read."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.reads = 0
        self.rpcs = 0

    def __call__(self, method: str, request: Any, call: Any) -> Any:
        answer = self._wire(method, request, call)
        self.rpcs += 1
        if method == "RunQuery":
            self.reads += sum(each.HasField("document") for each in answer)
        elif method == "BatchGetDocuments":
            self.reads += sum(bool(each.missing) or each.HasField("found") for each in answer)
        return answer

    def took(self) -> tuple[int, int]:
        """Reads and RPCs since it was asked last."""
        found = (self.reads, self.rpcs)
        self.reads = self.rpcs = 0
        return found


def test_a_page_of_jobs_or_dead_letters_costs_one_read_more_than_it_has_entries(wire: Wire) -> None:
    counting = Counting(wire)
    store = FirestoreStore(wire.url, intercept=counting)
    fill(StoreCase(store, lambda: store, wire.advance, 3000.0, 360_000.0))
    letters.fill(store.queues)
    counting.took()

    for wanted in (JobFilter(), JobFilter(tenant="acme"), JobFilter(task="review")):
        page = store.find_jobs(wanted, limit=2)
        assert counting.took() == (3, 1), wanted
        store.find_jobs(wanted, limit=2, token=page.next_token)
        assert counting.took()[0] <= 3
    assert len(store.find_jobs(JobFilter(tenant="acme", status=JobStatus.FAILED)).jobs) == 1
    assert counting.took() == (1, 1), "two filters at once read what fits both"
    store.list_jobs("acme", limit=2)
    assert counting.took() == (3, 1)

    queues = store.queues
    for of in (
        LetterFilter(),
        LetterFilter(reason="failed"),
        LetterFilter("celery", tenant="acme"),
    ):
        queues.find(of, limit=1)
        assert counting.took() == (2, 1), of
    assert queues.count(LetterFilter()) == 6
    assert counting.took() == (0, 1), "a count is billed as one read for each thousand"
    queues.get("id1")
    assert counting.took() == (1, 1)
    queues.paused()
    assert counting.took() == (1, 1)
    queues.keep(letters.letter(1))
    assert counting.took() == (0, 1), "one write for a dead letter"

    app = Celery(f"reads-{wire.url.project}", set_as_current=False)
    setup(
        app, broker_url=f"pubsub://{wire.url.project}", store_url=f"firestore://{wire.url.project}"
    )
    integration(app)._store = store
    for verb in ("jobs", "dlq"):
        assert len(Gwi(app).json(verb, "list", "--limit", "2")) == 2
        assert counting.took() == (4, 1), (
            "whether there are more, it and its page ask by one more each"
        )
    app.close()
    store.close()
