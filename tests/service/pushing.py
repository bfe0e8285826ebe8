"""A push service in a process of its own, and a push subscription that feeds it from any broker."""

from __future__ import annotations

import base64
import contextlib
import os
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
from celery.result import AsyncResult
from google.cloud import pubsub_v1

from gwi_celery import broker_for, store_for
from gwi_celery.brokers.base import Broker, Delivery, QueueSpec
from gwi_celery.stores.base import JobStatus
from gwi_celery.testing.emulators import free_port
from gwi_celery.transport.leases import LeaseKeeper
from tests.apps import imported
from tests.machine import PATIENCE
from tests.workers import Worker, dead_letters, read_audit

APP = "tests.acceptance.jobs"

#: What Pub/Sub takes for an ack.
ACKS = {102, 200, 201, 202, 204}

#: httpx's ``verify`` where all is plain HTTP: it would read its authorities' certificates at each call.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@contextmanager
def jobs_in(folder: Path) -> Iterator[ModuleType]:
    """The jobs module, made anew for ``folder``, for fixtures that outlive a test."""
    before = os.environ.get("JOBS_FOLDER")
    os.environ["JOBS_FOLDER"] = str(folder)
    try:
        with imported(APP) as jobs:
            broker_for(jobs.app).declare_queue(QueueSpec("celery"))
            yield jobs
    finally:
        if before is None:
            os.environ.pop("JOBS_FOLDER", None)
        else:
            os.environ["JOBS_FOLDER"] = before


def numbers(folder: Path) -> list[int]:
    """What ``counted`` has counted to, in order."""
    return [e["n"] for e in read_audit(folder) if e["event"] == "n"]


def fifty_are_counted(jobs: ModuleType, result: AsyncResult, folder: Path) -> None:
    """A job that an instance took over from one that was killed has counted each number once."""
    assert result.get(timeout=PATIENCE) == 50
    counts = Counter(numbers(folder))
    assert set(counts) == set(range(50))
    assert sum(counts.values()) <= 51, "only the one in flight at the kill is done again"
    record = store_for(jobs.app).list_jobs("acme").jobs[0]
    assert (record.status, record.generation) == (JobStatus.SUCCEEDED, 1)
    assert dead_letters(broker_for(jobs.app)) == []


class Service(Worker):
    """``celery gwi serve`` on a free port of loopback."""

    def __init__(
        self,
        app: str,
        folder: Path,
        *,
        port: int = 0,
        env: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE, verify=NO_TLS)
        settings = {"GWI_ENVIRONMENT": "development", **(env or {})}
        super().__init__(app, folder, env=settings, **options)

    def command(self, pool: str, concurrency: int) -> list[str]:
        options = ["--pool", pool, "--concurrency", str(concurrency)]
        return ["gwi", "serve", "--host", "127.0.0.1", "--port", str(self.port), *options]

    def ready(self) -> Service:
        self.wait_for(r"Uvicorn running")
        return self

    def push(self, data: bytes, **attributes: str) -> httpx.Response:
        """Push one message, wrapped."""
        return self.http.post("/push", json=envelope(data, attributes))

    def stats(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.http.get("/stats").json()
        return answer

    def close(self) -> None:
        self.http.close()
        super().close()


def envelope(data: bytes, attributes: Any = (), attempt: int = 1) -> dict[str, Any]:
    """What Pub/Sub posts."""
    return {
        "message": {
            "data": base64.b64encode(data).decode(),
            "attributes": dict(attributes),
            "messageId": "1",
            "publishTime": "2026-11-24T12:00:00.123Z",
        },
        "subscription": "projects/p/subscriptions/s",
        "deliveryAttempt": attempt,
    }


def push_to(url: str, project: str, subscription: str = "gwi-celery", **config: Any) -> None:
    """Make a subscription of the transport's a push subscription, as an operator would."""
    with pubsub_v1.SubscriberClient() as client:
        client.modify_push_config(
            subscription=client.subscription_path(project, subscription),
            push_config={"push_endpoint": f"{url}/push", **config},
        )


class PushSubscription:
    """Does to a queue of the embedded broker what Pub/Sub does: posts, acks a success, or nacks."""

    def __init__(self, broker: Broker, queue: str, url: str, parallel: int = 2) -> None:
        self._broker = broker
        self._queue = queue
        self._url = url
        self._stop = threading.Event()
        self._keeper = LeaseKeeper(broker)
        self._places = threading.Semaphore(parallel)
        self._threads = ThreadPoolExecutor(parallel)
        #: Status of each answer; 0: the connection broke.
        self.answers: Counter[int] = Counter()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> PushSubscription:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join(timeout=PATIENCE)
        self._threads.shutdown(wait=True)
        self._keeper.stop()

    def _run(self) -> None:
        receiver = self._broker.receiver()
        receiver.subscribe(self._queue)
        try:
            while not self._stop.is_set():
                if not self._places.acquire(timeout=0.05):
                    continue
                deliveries = receiver.poll(self._queue, 1)
                for delivery in deliveries:
                    self._keeper.keep(delivery)
                    self._threads.submit(self._post, delivery)
                if not deliveries:
                    self._places.release()
                    self._stop.wait(0.02)
        finally:
            receiver.close()

    def _post(self, delivery: Delivery) -> None:
        try:
            status = 0
            with contextlib.suppress(httpx.HTTPError):
                body = envelope(delivery.data, delivery.attributes, delivery.deliveries)
                status = httpx.post(
                    f"{self._url}/push", json=body, timeout=PATIENCE, verify=NO_TLS
                ).status_code
            self.answers[status] += 1
            self._keeper.drop(delivery)
            if status in ACKS:
                self._broker.ack([delivery])
            else:
                self._broker.nack(delivery, 0.1)
        finally:
            self._places.release()
