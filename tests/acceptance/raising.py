"""An app whose jobs end in every odd way; for real workers. ``RAISING_FOLDER`` is its folder."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import celeryd_init

from gwi_celery import Reliable, ReliableTask, setup
from gwi_celery.sqlite import Database

FOLDER = Path(os.environ.get("RAISING_FOLDER", "."))

app = Celery("raising")
setup(app, folder=str(FOLDER / "gwi"), lease_seconds=2, lock_ttl=2, contention_delay=0.1)


_write = Database.write


@contextmanager
def _write_where_there_is_room(self: Database, **options: Any) -> Iterator[Any]:
    """Where there is a file ``full``, the store's file can't grow: a full disk, as SQLite has it."""
    with _write(self, **options) as c:
        if self.path is not None and self.path.name == "store.sqlite3":
            full = (FOLDER / "full").exists()
            pages = c.execute("PRAGMA page_count").fetchone()[0] if full else 2**30
            c.execute(f"PRAGMA max_page_count={pages}")
        yield c


@celeryd_init.connect
def _limit_its_disk(instance: Any, **_: Any) -> None:
    """Of this app's worker: who only imports this module has a disk like any other."""
    if instance.app is app:
        Database.write = _write_where_there_is_room  # type: ignore[assignment,method-assign]


class OddText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class OddRepr(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class OddReduce(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("no pickle")


class OddArgs(Exception):
    @property
    def args(self) -> Any:
        raise RuntimeError("no args")


class ExitsInText(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class NeedsArguments(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class HoldsALock(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class UnpicklesBadly(Exception):
    """Pickles, and can't be read by another process."""

    def __reduce__(self) -> Any:
        return _only_in, (os.getpid(), str(self))


def _only_in(pid: int, text: str) -> Exception:
    if pid != os.getpid():
        raise RuntimeError("not in this process")
    return UnpicklesBadly(text)


class OwnKind(BaseException):
    pass


def _cyclic() -> Exception:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    return first


if sys.version_info >= (3, 11):

    def _nested(depth: int) -> BaseException:
        exc: Exception = ValueError("innermost")
        for _ in range(depth):
            exc = ExceptionGroup("nested", [exc])  # noqa: F821
        return exc


def _validation_error() -> BaseException:
    """pydantic's, where it is installed; else one that keeps its text to itself likewise."""
    try:
        import pydantic
    except ImportError:

        class ValidationError(ValueError):
            def __str__(self) -> str:
                return "validation error: Input should be a valid integer"

        return ValidationError()

    class Model(pydantic.BaseModel):
        n: int

    try:
        Model(n="no")  # type: ignore[arg-type]
    except pydantic.ValidationError as exc:
        return exc
    raise AssertionError


#: Name -> what is raised, and what the caller's exception says: its class's name and a part of its text.
KINDS: dict[str, tuple[Any, str, str]] = {
    "odd text": (lambda: OddText("a"), "OddText", "text raises RuntimeError"),
    "odd repr": (lambda: OddRepr("a thing"), "OddRepr", "a thing"),
    "odd reduce": (lambda: OddReduce("a thing"), "OddReduce", "a thing"),
    "odd args": (lambda: OddArgs("a thing"), "OddArgs", "a thing"),
    "exits in its text": (lambda: ExitsInText("a"), "ExitsInText", "text raises SystemExit"),
    "needs arguments": (lambda: NeedsArguments(404, "gone"), "NeedsArguments", "404: gone"),
    "holds a lock": (lambda: HoldsALock("a thing"), "HoldsALock", "a thing"),
    "unpickles badly": (lambda: UnpicklesBadly("a thing"), "UnpicklesBadly", "a thing"),
    "huge": (lambda: ValueError("x" * 3_000_000), "ValueError", "more characters"),
    "cyclic": (_cyclic, "ValueError", "first"),
    "own kind": (lambda: OwnKind("a thing"), "OwnKind", "a thing"),
    "cancelled": (lambda: asyncio.CancelledError("a thing"), "CancelledError", "a thing"),
    "validation": (_validation_error, "ValidationError", "valid integer"),
    "lost attribute": (lambda: FileNotFoundError(2, "None", "a.txt"), "FileNotFoundError", "a.txt"),
    "no memory": (lambda: MemoryError("a thing"), "MemoryError", "a thing"),
    "unprintable": (lambda: ValueError("\ud800"), "ValueError", "\ud800"),
    "typed": (lambda: ValueError({"__type__": "x", "__value__": 1}), "ValueError", "__type__"),
    "command": (lambda: subprocess.CalledProcessError(3, ["x"]), "CalledProcessError", "status 3"),
}

if sys.version_info >= (3, 11):
    KINDS["group"] = (lambda: _nested(1), "ExceptionGroup", "nested")
    KINDS["deep group"] = (lambda: _nested(5000), "ExceptionGroup", "nested")

#: Name -> a result that has no JSON form, or another one than it seems.
RESULTS: dict[str, Any] = {
    "object": object,
    "exception": lambda: ValueError("returned"),
    "deep": lambda: __import__("functools").reduce(lambda inner, _: [inner], range(100_000), None),
    "typed": lambda: {"__type__": "nothing", "__value__": 1},
}


@app.task(shared=False, name="plain_raises")
def plain_raises(kind: str) -> None:
    raise KINDS[kind][0]()


@app.task(shared=False, name="raises", base=ReliableTask, bind=True, reliable=Reliable())
def raises(self: Any, kind: str, *, tenant_id: str, run_id: str) -> None:
    raise KINDS[kind][0]()


@app.task(shared=False, name="plain_returns")
def plain_returns(kind: str) -> Any:
    return RESULTS[kind]()


@app.task(shared=False, name="returns", base=ReliableTask)
def returns(kind: str, *, tenant_id: str, run_id: str) -> Any:
    return RESULTS[kind]()


@app.task(shared=False, name="returns_result", base=ReliableTask)
def returns_result(*, tenant_id: str, run_id: str) -> Any:
    return app.AsyncResult("another")


@app.task(shared=False, name="add")
def add(a: int, b: int) -> int:
    return a + b


@app.task(shared=False, name="takes_nothing")
def takes_nothing() -> None: ...


@app.task(shared=False, name="total")
def total(numbers: Any) -> Any:
    return sum(n if isinstance(n, int) else total(n) for n in numbers)


@app.task(shared=False, name="reliable_total", base=ReliableTask)
def reliable_total(numbers: Any, *, tenant_id: str) -> Any:
    return total(numbers)


class BadHandler(app.Task):  # type: ignore[name-defined,misc]
    def on_failure(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("the handler's own")


@app.task(shared=False, name="bad_handler", base=BadHandler)
def bad_handler() -> None:
    raise ValueError("the job's own")


def _when_told(size: int) -> str:
    """Random text, which doesn't compress, once the test says so."""
    while not (FOLDER / "go").exists():
        time.sleep(0.02)
    return os.urandom(size // 2).hex()


@app.task(shared=False, name="large")
def large(size: int) -> str:
    return _when_told(size)


@app.task(shared=False, name="large_failure")
def large_failure(size: int) -> None:
    raise ValueError(*[_when_told(18_000) for _ in range(size // 18_000)])


@app.task(shared=False, name="large_retry", bind=True, max_retries=1)
def large_retry(self: Any, size: int) -> str:
    if self.request.retries == 0:
        raise self.retry(
            exc=ValueError(*[_when_told(18_000) for _ in range(size // 18_000)]), countdown=0
        )
    return "done"


@app.task(shared=False, name="reliable_large", base=ReliableTask)
def reliable_large(size: int, *, tenant_id: str, run_id: str) -> str:
    return _when_told(size)
