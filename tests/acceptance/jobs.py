"""The app that acceptance tests run in real workers.

It writes an audit trail (one JSON line an event, appended atomically) and can be told to kill its
whole process group at a point of the protocol: ``crash-at`` in ``JOBS_FOLDER`` names the point
and is taken away first, so that it happens once.
"""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from celery import Celery, signals
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded

import gwi_celery.app
from gwi_celery import Limit, Reliable, ReliableTask, carry, setup
from gwi_celery.stores.base import Claimed

FOLDER = Path(os.environ.get("JOBS_FOLDER", "."))

app = Celery("jobs")
if os.environ.get("JOBS_STORE_URL"):
    # Another store under test; broker and, unless told, results stay in the folder.
    app.conf.result_backend = os.environ.get("JOBS_RESULT_URL", f"embedded://{FOLDER / 'gwi'}")
    app.conf.gwi_store_url = os.environ["JOBS_STORE_URL"]
if os.environ.get("JOBS_BROKER_URL"):
    app.conf.broker_url = os.environ["JOBS_BROKER_URL"]
setup(
    app,
    folder=str(FOLDER / "gwi"),
    # Pub/Sub's shortest is 10 seconds.
    lease_seconds=float(os.environ.get("JOBS_LEASE_SECONDS", "2")),
    lock_ttl=2,
    contention_delay=0.2,
)


def audit(event: str, **fields: Any) -> None:
    line = json.dumps({"event": event, "pid": os.getpid(), **fields}) + "\n"
    fd = os.open(FOLDER / "audit.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def crash(point: str) -> None:
    """Kill what the file says, if it names this point: ``<point>``, or ``<point> child``."""
    request = FOLDER / "crash-at"
    try:
        wanted, _, whom = request.read_text().strip().partition(" ")
    except FileNotFoundError:
        return
    if wanted != point:
        return
    request.unlink()
    audit("crash", point=point)
    if whom == "child":
        os.kill(os.getpid(), signal.SIGKILL)
    elif whom == "main":
        os.kill(os.getppid(), signal.SIGKILL)
    else:
        os.killpg(os.getpgid(0), signal.SIGKILL)


class CrashingStore:
    """The real store, with a crash point after each operation."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._store, name)
        if name not in ("claim", "save", "finish"):
            return operation

        def call(*args: Any, **kwargs: Any) -> Any:
            answer = operation(*args, **kwargs)
            if name != "claim" or isinstance(answer, Claimed):
                crash(f"after-{name}")
            return answer

        return call


if app.conf.result_backend.startswith("firestore:"):
    # The class, and the URL it gets.
    app.backend_cls = f"tests.acceptance.crashing:CrashingBackend+{app.conf.result_backend}"

_integration = gwi_celery.app.integration(app)
_integration._store = CrashingStore(_integration.store)  # type: ignore[assignment]


class Around(ReliableTask):
    """As Flask's documentation has it: ``self.run``, and no super()."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        audit("around")
        return self.run(*args, **kwargs)


@app.task(shared=False, base=Around, bind=True, name="parallel", max_retries=3)
def parallel(self: Any, *, tenant_id: str) -> dict[str, Any]:
    def part(n: int) -> int:
        audit("part", n=n)
        return n

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(carry(lambda n: self.step(f"part-{n}", part, n)), range(4)))
        stranger = pool.submit(self.step, "stranger", int).exception()
    if self.request.retries == 0:
        raise self.retry(countdown=0)
    return {
        "made": made,
        "trace": self.request.headers["trace"],
        "stranger": type(stranger).__name__,
    }


@app.task(
    shared=False,
    base=ReliableTask,
    bind=True,
    name="limited",
    reliable=Reliable(limits=[Limit("{tenant_id}", max_running=1)]),
)
def limited(self: Any, *, tenant_id: str, run_id: str) -> str:
    """At its first attempt the first run hangs."""
    audit("limited", run=run_id, attempt=self.attempt)
    while run_id == "hangs" and self.attempt == 1:
        time.sleep(0.05)
        self.check()
    audit("limited over", run=run_id)
    return run_id


@app.task(shared=False, base=ReliableTask, bind=True)
def tick(self: Any, *, tenant_id: str, run_id: str) -> None:
    audit("tick", due=self.request.headers["gwi_due"])


if os.environ.get("JOBS_BEAT"):
    app.conf.beat_schedule = {
        "tick": {
            "task": tick.name,
            "schedule": 0.5,
            "kwargs": {"tenant_id": "acme", "run_id": "nightly"},
        }
    }
    app.conf.beat_max_loop_interval = 0.2


@app.task(shared=False, base=ReliableTask, bind=True, name="three_steps", max_retries=5)
def three_steps(self: Any, *, tenant_id: str, run_id: str, factor: int = 1) -> dict[str, Any]:
    audit("attempt", fence=self.fence, attempt=self.attempt, generation=self.generation)

    def work(n: int) -> int:
        audit("step", name=f"s{n}", attempt=self.attempt)
        if n == 2:
            crash("inside-step")
        return n * factor

    total = sum(self.step(f"s{n}", work, n) for n in (1, 2, 3))
    return {"total": total, "run": run_id}


@app.task(shared=False, base=ReliableTask, bind=True, name="counted")
def counted(self: Any, *, tenant_id: str, run_id: str, to: int, pause: float = 0.0) -> int:
    audit("attempt", fence=self.fence, attempt=self.attempt, generation=self.generation)
    with self.cursor("n", start=0, save_every=0) as cursor:
        for n in range(cursor.value, to):
            audit("n", n=n, attempt=self.attempt)
            time.sleep(pause)
            cursor.advance(n + 1)
    return to


@app.task(
    shared=False, base=ReliableTask, bind=True, name="flaky", max_retries=3, default_retry_delay=0.1
)
def flaky(self: Any, *, tenant_id: str, run_id: str, fail_times: int) -> str:
    audit("attempt", fence=self.fence, attempt=self.attempt, retries=self.request.retries)
    self.step("once", audit, "once")
    if self.request.retries < fail_times:
        raise self.retry(exc=RuntimeError("not yet"))
    return "done"


@app.task(
    shared=False,
    base=ReliableTask,
    bind=True,
    name="auto",
    autoretry_for=(ValueError,),
    max_retries=3,
    retry_backoff=True,
    retry_backoff_max=1,
    retry_jitter=False,
)
def auto(self: Any, *, tenant_id: str, run_id: str, fail_times: int) -> str:
    audit("attempt", retries=self.request.retries)
    if self.request.retries < fail_times:
        raise ValueError("again")
    return "done"


@app.task(shared=False, base=ReliableTask, bind=True, name="fails")
def fails(self: Any, *, tenant_id: str, run_id: str) -> str:
    audit("attempt", generation=self.generation, attempt=self.attempt)
    self.step("first", audit, "first")
    if not (FOLDER / "repaired").exists():
        raise RuntimeError("broken on purpose")
    return "repaired"


@app.task(shared=False, base=ReliableTask, bind=True, name="slow", time_limit=1.5)
def slow(self: Any, *, tenant_id: str, run_id: str) -> str:
    audit("attempt", attempt=self.attempt)
    if not (FOLDER / "repaired").exists():
        time.sleep(60)
    return "repaired"


@app.task(
    shared=False,
    base=ReliableTask,
    bind=True,
    name="poison",
    reliable=Reliable(max_crashes=2, lock_ttl=1),
)
def poison(self: Any, *, tenant_id: str, run_id: str) -> None:
    audit("attempt", attempt=self.attempt)
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(shared=False, base=ReliableTask, bind=True, name="hold")
def hold(self: Any, *, tenant_id: str, run_id: str, label: str, seconds: float) -> str:
    audit("start", label=label, at=time.time())
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.02)
        self.check()
    audit("end", label=label, at=time.time())
    return label


@app.task(shared=False, base=ReliableTask, bind=True, name="soft", soft_time_limit=0.5)
def soft(self: Any, *, tenant_id: str, run_id: str) -> str:
    try:
        time.sleep(60)
    except SoftTimeLimitExceeded:
        audit("soft")
    return "in time"


@app.task(shared=False, base=ReliableTask, bind=True, name="rejects")
def rejects(self: Any, *, tenant_id: str, run_id: str) -> None:
    audit("rejects")
    raise Reject("not for us", requeue=False)


@app.task(shared=False, base=ReliableTask, bind=True, name="redelivered")
def redelivered(self: Any, *, tenant_id: str, run_id: str) -> str:
    audit("attempt", attempt=self.attempt)
    if self.attempt == 1:
        raise Reject("later", requeue=True)
    return "done"


@app.task(shared=False, base=ReliableTask, bind=True, name="ignores")
def ignores(self: Any, *, tenant_id: str, run_id: str) -> None:
    audit("ignores")
    raise Ignore()


@app.task(shared=False, base=ReliableTask, bind=True, name="busy")
def busy(self: Any, *, tenant_id: str, run_id: str, seconds: float) -> str:
    """Keeps a processor, and Python's interpreter lock, busy."""
    audit("start")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(10_000))
    return "done"


@app.task(shared=False, base=ReliableTask, bind=True, name="deaf")
def deaf(self: Any, *, tenant_id: str, run_id: str, seconds: float) -> str:
    """Has one step, and then no boundary for a long time."""
    self.step("first", audit, "first")
    audit("deaf", attempt=self.attempt)
    if self.attempt == 1:
        time.sleep(seconds)
    return "done"


@app.task(shared=False, base=ReliableTask, name="add")
def add(x: int, y: int, *, tenant_id: str, run_id: str | None = None) -> int:
    return x + y


@app.task(shared=False, name="plain_add")
def plain_add(x: int, y: int) -> int:
    audit("plain_add", x=x, y=y)
    return x + y


@app.task(shared=False, name="plain_sum")
def plain_sum(numbers: list[int]) -> int:
    audit("plain_sum", numbers=numbers)
    return sum(numbers)


@app.task(shared=False, name="plain_sums")
def plain_sums(groups: list[list[int]]) -> list[int]:
    return [sum(numbers) for numbers in groups]


@app.task(shared=False, name="large")
def large(size: int) -> str:
    return "0123456789abcdef" * (size // 16)


@app.task(shared=False, name="plain_fail")
def plain_fail() -> None:
    raise RuntimeError("plain failure")


@app.task(shared=False, name="on_error")
def on_error(request: Any, exc: Any, traceback: Any) -> None:
    audit("on_error", error=str(exc))


@app.task(shared=False, name="record")
def record(label: Any) -> Any:
    audit("record", label=label, at=time.time())
    return label


@app.task(shared=False, bind=True, name="plain_retry", max_retries=3)
def plain_retry(self: Any, fail_times: int) -> int:
    if self.request.retries < fail_times:
        raise self.retry(countdown=0.2)
    return int(self.request.retries)


@app.task(shared=False, bind=True)
def odd(self: Any, *args: Any, **kwargs: Any) -> None:
    """Takes anything, and notes by which message it was called."""
    audit("ran", id=self.request.id, fuzz=vars(self.request).get("fuzz", kwargs.get("fuzz")))


@app.task(shared=False, base=ReliableTask, bind=True)
def odd_reliable(self: Any, *args: Any, **kwargs: Any) -> None:
    audit("ran", id=self.request.id, fuzz=vars(self.request).get("fuzz", kwargs.get("fuzz")))


@app.task(bind=True, shared=False, name="kills", acks_late=True, reject_on_worker_lost=True)
def kills(self: Any) -> None:
    """Takes its process down, each time."""
    audit("kills")
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(bind=True, shared=False, name="told", acks_late=True)
def told(self: Any, n: int) -> None:
    """Notes what it is told of its message."""
    redelivered = self.request.delivery_info["redelivered"]
    count = self.request.properties["delivery_count"]
    audit("told", n=n, redelivered=redelivered, count=count)


@app.task(shared=False, name="naps", acks_late=True)
def naps(label: str, seconds: float) -> None:
    audit("nap", label=label)
    time.sleep(seconds)


@signals.worker_process_init.connect
def die_young(**kwargs: Any) -> None:
    """The first pool child dies as it starts, where a file says so: as soon as that says ``now``.

    Before the worker is ready that would be its end: Celery doesn't start with a child that is dead.
    """
    with suppress(FileNotFoundError):
        while (FOLDER / "die-young").read_text() != "now":
            time.sleep(0.01)
        (FOLDER / "die-young").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
