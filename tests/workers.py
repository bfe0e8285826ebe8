"""Real worker processes for tests: started in a process group of their own, killed by pid."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from tests import zygote
from tests.machine import PATIENCE, Stopwatch

ROOT = Path(__file__).resolve().parent.parent


class Worker:
    """One ``celery worker``. Its output is kept in ``log``.

    Args:
        fresh: Start it from nothing, whatever the others do: for what is about its start.
    """

    def __init__(
        self,
        app: str,
        folder: Path,
        *,
        pool: str = "prefork",
        concurrency: int = 1,
        env: dict[str, str] | None = None,
        args: tuple[str, ...] = (),
        fresh: bool = False,
    ) -> None:
        self.name = f"w{time.monotonic_ns()}@test"
        self.log = ""
        self._changed = threading.Condition()
        self.process = zygote.start(
            "celery",
            ["-A", app, *self.command(pool, concurrency), *args],
            folder=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(env or {})},
            fresh=fresh,
            gevent=pool == "gevent",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def command(self, pool: str, concurrency: int) -> list[str]:
        """Celery's subcommand and its arguments."""
        options = ["--pool", pool, "--concurrency", str(concurrency), "--loglevel", "INFO"]
        return ["worker", *options, "-n", self.name]

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.log += line
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, pattern: str, timeout: float = PATIENCE, count: int = 1) -> None:
        """Until ``pattern`` is in the log ``count`` times."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while len(re.findall(pattern, self.log)) < count:
                left = deadline - time.monotonic()
                ended = self.process.poll() is not None and not self._reader.is_alive()
                if left <= 0 or ended:
                    raise AssertionError(
                        f"{pattern!r} is not in the worker's log "
                        f"({'it ended' if ended else 'time is up'}):\n{self.log}"
                    )
                self._changed.wait(min(left, 0.5))

    def ready(self) -> Worker:
        self.wait_for(r"ready\.")
        return self

    def kill(self) -> None:
        """SIGKILL for the whole process group, as when a machine goes away."""
        self._signal_group(signal.SIGKILL)
        self.process.wait(timeout=PATIENCE)

    def wait_killed(self, timeout: float = PATIENCE) -> None:
        """Until the worker has gone by itself."""
        self.process.wait(timeout=timeout)
        self._signal_group(signal.SIGKILL)  # children that outlived it

    def stop(self, timeout: float = 30.0) -> float:
        """Warm shutdown; how many seconds it took, of an idle machine's (as is ``timeout``)."""
        with Stopwatch() as watch:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
            self.wait_stopped(watch, timeout)
        self._signal_group(signal.SIGKILL)
        self._reader.join(timeout=PATIENCE)
        return watch.seconds

    def wait_stopped(self, watch: Stopwatch, timeout: float) -> None:
        """Until it has ended by itself; it fails and is killed after seconds of that watch."""
        while True:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=0.5)
                return
            if watch.seconds > timeout:
                self.kill()
                raise AssertionError(f"it did not stop in {timeout:g} s:\n{self.log}")

    def _signal_group(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def close(self) -> None:
        self.kill() if self.process.poll() is None else self._signal_group(signal.SIGKILL)
        self._reader.join(timeout=PATIENCE)
        if self.process.stdout is not None:
            self.process.stdout.close()


Started = TypeVar("Started", bound=Worker)


@contextmanager
def worker(app: str, folder: Path, **options: object) -> Iterator[Worker]:
    """A worker that is ready, and gone at the end."""
    started = Worker(app, folder, **options)  # type: ignore[arg-type]
    try:
        yield started.ready()
    finally:
        started.close()


def starting(
    kind: type[Started], app: str, folder: Path, env: Mapping[str, str] | None = None
) -> Iterator[Callable[..., Started]]:
    """For fixtures: what starts workers, or services, on a folder; they end with the test."""
    started: list[Started] = []

    def start(**options: Any) -> Started:
        own = {**(env or {}), **options.pop("env", {})}
        started.append(kind(app, folder, env=own, **options))
        started[-1].ready()
        return started[-1]

    yield start
    for each in started:
        each.close()


def eventually(check: Callable[[], object], what: str = "", *, timeout: float = PATIENCE) -> object:
    """The first true answer of ``check``, asked again until ``timeout``."""
    deadline = time.monotonic() + timeout
    while True:
        answer = check()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what or check}")
        time.sleep(0.02)


def read_audit(folder: Path) -> list[dict[str, Any]]:
    """What an app's tasks have noted there, in order."""
    path = folder / "audit.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def drained(broker: Any, queue: str = "celery") -> bool:
    """Whether nothing is in the queue: not leased either, where the broker can see that.

    False as long as it isn't found: Pub/Sub needs some seconds for one that another connection has made.
    """
    if not broker.has_queue(queue):
        return False
    size = broker.size(queue)
    return size.total == 0 if size is not None else broker.peek(queue) == []


def dead_letters(broker: Any, queue: str = "celery.dead") -> list[Any]:
    """What is in the dead letter, if there is one."""
    return broker.peek(queue) if broker.has_queue(queue) else []
