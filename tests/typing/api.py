"""The public API as a user would write it. Never run: mypy --strict checks it."""

from __future__ import annotations

from celery import Celery

from gwi_celery import Reliable, ReliableTask, Settings, broker_for, setup, store_for
from gwi_celery.brokers.base import Broker
from gwi_celery.stores.base import JobRef, JobStatus, Page, Store

app = Celery("typed")
settings: Settings = setup(app, lock_ttl=10)
options = Reliable(lock="type", idempotency=lambda arguments: str(arguments["order"]), deadline=60)
store: Store = store_for(app)
broker: Broker = broker_for(app)
page: Page = store.list_jobs("acme", status=JobStatus.FAILED)
cancelled: bool = store.cancel(JobRef("acme", "task", "run:r1"), "why")


class Task(ReliableTask):
    def body(self) -> int:
        with self.cursor("scan", start=0) as cursor:
            cursor.advance(cursor.value + 1)
        fence: int = self.fence
        key: str = self.derive_key("charge", 1)
        self.checkpoint("notes", {"key": key})
        self.check()
        return fence + self.attempt + self.generation
