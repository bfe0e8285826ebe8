"""The result backends on which their contract is checked. A new one joins with an entry in ``CASES``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from celery import Celery

from gwi_celery import broker_for
from gwi_celery.backends.base import ReliableBackend
from gwi_celery.backends.embedded import EmbeddedBackend
from gwi_celery.backends.firestore import FirestoreBackend
from gwi_celery.stores.sqlite import forget_memory_store
from tests.clocks import FakeClock
from tests.firestore_wire import Wire

#: ``result_expires`` of the apps, seconds.
EXPIRES = 360_000


@dataclass
class BackendCase:
    """One backend under test, with nothing in it yet."""

    app: Celery
    #: The app's own.
    backend: ReliableBackend
    #: Gives one more on the same data, as another process would have.
    another: Callable[[], ReliableBackend]
    #: Lets seconds of its clock pass.
    advance: Callable[[float], None]

    def outlast_result(self) -> None:
        self.advance(EXPIRES * 1.1)

    def sent(self, queue: str = "celery") -> int:
        """Messages that were sent."""
        broker = broker_for(self.app)
        if not broker.has_queue(queue):
            return 0
        size = broker.size(queue)
        assert size is not None
        return size.ready


def _app() -> Celery:
    app = Celery(f"backend-{uuid4().hex}", set_as_current=False)
    app.conf.broker_url = f"embedded://:memory:/{uuid4().hex}"
    app.conf.result_expires = EXPIRES
    app.conf.accept_content = ["json"]
    return app


def _use(app: Celery, backend: Any) -> None:
    """Make it the app's, in all threads."""
    backend.thread_safe = True
    app._backend = backend


@contextmanager
def _embedded(folder: Path, name: str) -> Iterator[BackendCase]:
    app, clock = _app(), FakeClock()
    url = f"embedded://{folder}" if name == "embedded" else f"embedded://:memory:/{folder.name}"
    opened: list[Any] = []

    def another() -> ReliableBackend:
        opened.append(EmbeddedBackend(app, url=url, clock=clock))
        return opened[-1]

    _use(app, another())
    yield BackendCase(app, opened[0], another, clock.advance)
    if name == "embedded":
        for backend in opened:
            backend._db.close()
    forget_memory_store(folder.name)
    app.close()


@contextmanager
def _firestore(folder: Path, name: str) -> Iterator[BackendCase]:
    app, wire = _app(), Wire()
    opened: list[Any] = []

    def another() -> ReliableBackend:
        url = f"firestore://{wire.url.project}"
        opened.append(FirestoreBackend(app, url=url, intercept=wire))
        return opened[-1]

    _use(app, another())
    yield BackendCase(app, opened[0], another, wire.advance)
    for backend in opened:
        backend.close()
    wire.close()
    app.close()


CASES: dict[str, Callable[[Path, str], AbstractContextManager[BackendCase]]] = {
    "embedded": _embedded,
    "embedded-memory": _embedded,
    "firestore": _firestore,
}
