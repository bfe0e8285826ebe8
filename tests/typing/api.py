"""The public API as a user would write it. Never run: mypy --strict checks it.

So does pyright. An ``ignore`` that nothing needs is an error, so each shows what a checker refuses.
"""

from __future__ import annotations

import threading

from celery import Celery

from gwi_celery import (
    Limit,
    Reliable,
    ReliableTask,
    Settings,
    broker_for,
    carry,
    reliable_task,
    setup,
    store_for,
)
from gwi_celery.brokers.base import Broker
from gwi_celery.stores.base import JobRef, JobStatus, Page, Store

app = Celery("typed")
settings: Settings = setup(app, lock_ttl=10)
options = Reliable(lock="type", idempotency=lambda arguments: str(arguments["order"]), deadline=60)
store: Store = store_for(app)
broker: Broker = broker_for(app)
page: Page = store.list_jobs("acme", status=JobStatus.FAILED)
fan_out = Reliable(key="payload", lock=None)
limited = Reliable(
    limits=[
        Limit("{tenant_id}", max_running=3),
        Limit(lambda arguments: str(arguments["model"]), rate="500/m"),
    ]
)
cancelled: bool = store.cancel(JobRef("acme", "task", "run:r1"), "why")


def list_files(repo: str, *, depth: int) -> list[str]:
    return [repo] * depth


def named_step(*, name: str) -> str:
    return name


class Task(ReliableTask):
    def part(self, number: int) -> int:
        return number

    def body(self) -> int:
        with self.cursor("scan", start=0) as cursor:
            cursor.advance(cursor.value + 1)
        fence: int = self.fence
        key: str = self.derive_key("charge", 1)
        self.checkpoint("notes", {"key": key})
        self.check()
        files: list[str] = self.step("list", list_files, "repo", depth=2)
        count: int = self.step("count", lambda: len(files))
        parts: int = self.step("part", self.part, number=count)
        named: str = self.step("name", named_step, name="the step's own argument")
        self.step("list", list_files, "repo", depth="2")  # type: ignore[arg-type]
        self.step("list", list_files, "repo")  # type: ignore[call-arg]
        self.step("list", list_files, "repo", depth=2, order=1)  # type: ignore[call-arg]
        text: str = self.step("count", len, files)  # type: ignore[assignment]
        threading.Thread(target=carry(self.part), args=(count,)).start()
        later: int = carry(self.part)(1)
        return later + fence + self.attempt + self.generation + parts + len(named + text)


@reliable_task(app, bind=True, reliable=options)
def analyse(self: ReliableTask, *, tenant_id: str, order: int) -> list[str]:
    return self.step("list", list_files, tenant_id, depth=order)


@reliable_task(name="count")
def count(tenant_id: str, run_id: str = "r1") -> int:
    return len(tenant_id + run_id)


found: list[str] = analyse(tenant_id="acme", order=1)
number: int = count("acme", run_id="r2")
analyse.delay(tenant_id="acme", order=1)
count.delay("acme")
count.apply_async(("acme",), idempotency_key="k", countdown=3, labels={"customer": "7"})
count.apply_async(("acme",), idempotency_key=7)  # type: ignore[arg-type]
count.apply_async(("acme",), deadline="soon")  # type: ignore[arg-type]
count.apply_async(("acme",), labels=["customer"])  # type: ignore[arg-type]
analyse.delay(tenant_id="acme")  # type: ignore[call-arg]
analyse.delay(tenant_id="acme", order="1")  # type: ignore[arg-type]
count.delay("acme", run="r2")  # type: ignore[call-arg]
wrong: str = count("acme")  # type: ignore[assignment]
