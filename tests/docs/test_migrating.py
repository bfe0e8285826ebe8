"""docs/migrating.md for real: old and new broker side by side, and celery-once before and after."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from benchmarks.servers import redis_server
from gwi_celery.testing.twin import start_twin
from tests.machine import PATIENCE
from tests.workers import ROOT, Worker, eventually

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

PAGE = (ROOT / "docs" / "migrating.md").read_text()


def block(word: str) -> str:
    """The page's Python block with that word."""
    [found] = [b for b in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if word in b]
    return found


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[str]:
    with redis_server(tmp_path) as url:
        yield url


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """A worker on a module of the test's folder."""
    with ExitStack() as stack:

        def make(app: str, **env: str) -> Worker:
            path = f"{ROOT}:{tmp_path}"
            worker = Worker(app, tmp_path, pool="solo", env={**env, "PYTHONPATH": path})
            stack.callback(worker.close)
            return worker.ready()

        yield make


def call(folder: Path, program: str, until: Callable[[], bool] = lambda: True, **env: str) -> Any:
    """What a caller's program prints, as JSON. It lives until then: gcpubsub sends in the background."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"{program}\nimport sys; sys.stdout.flush(); sys.stdin.read()"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{folder}", **env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "it has failed; see what it wrote"
        eventually(until)
    finally:
        process.communicate(timeout=PATIENCE)
    return json.loads(line)


SHIP = "import json, shop; print(json.dumps([shop.ship.delay({n}).id for _ in range(3)]))"
SHIPPED = (
    "import json, shop\n"
    "print(json.dumps([shop.app.AsyncResult(id).get(timeout=30) for id in {ids}]))"
)


def move(
    start: Callable[..., Worker], folder: Path, old: dict[str, str], left: Callable[[], int]
) -> None:
    """The page's steps: new workers, then callers, then the old ones drain and stop."""
    (folder / "shop.py").write_text(block("OLD_BROKER"))
    new = {"GWI_FOLDER": str(folder / "gwi")}
    # Called the old way, while nobody works.
    ids = call(folder, SHIP.format(n=1), lambda: left() == 3, **old)
    start("shop", **new)
    more = call(folder, SHIP.format(n=2), **new)
    assert call(folder, SHIPPED.format(ids=more), **new) == ["shipped 2"] * 3
    assert left() == 3, "the new workers leave the old queue alone"
    drains = start("shop", **old)
    assert call(folder, SHIPPED.format(ids=ids), **old) == ["shipped 1"] * 3
    eventually(lambda: left() == 0)
    assert drains.stop() >= 0
    last = call(folder, SHIP.format(n=3), **new)
    assert call(folder, SHIPPED.format(ids=last), **new) == ["shipped 3"] * 3


def test_from_redis(start: Callable[..., Worker], cache: str, tmp_path: Path) -> None:
    with redis.Redis.from_url(f"{cache}/0") as client:
        old = {"OLD_BROKER": f"{cache}/0", "OLD_RESULTS": f"{cache}/1"}
        move(start, tmp_path, old, lambda: client.llen("celery"))


def test_from_gcpubsub(start: Callable[..., Worker], cache: str, tmp_path: Path) -> None:
    # Kombu's transport has no answer to what is not usable at once.
    quiet = {"faults": 0, "early_expiry": 0, "settle": 0, "name_rest": 0}
    with start_twin(**quiet) as twin:
        project = f"p-{uuid.uuid4().hex[:20]}"
        old = {
            "OLD_BROKER": f"gcpubsub://projects/{project}",
            "OLD_RESULTS": f"{cache}/1",
            **twin.environ,
        }

        def left() -> int:
            with contextlib.suppress(ValueError):  # it is made by the first call
                counts = twin.counts(f"projects/{project}/subscriptions/kombu-celery")
                return counts["waiting"] + counts["leased"]
            return 0

        move(start, tmp_path, old, left)


def test_from_celery_once(start: Callable[..., Worker], cache: str, tmp_path: Path) -> None:
    """Its decorator, as the page has it, and ours in its place: what the page's table says of both."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path]
    subprocess.run([*pip, "celery-once==3.0.1"], check=True, timeout=100)
    new = block("# was: @app.task")
    [was] = re.findall(r"^# was: (.*)$", new, re.MULTILINE)
    (tmp_path / "new.py").write_text(new)
    (tmp_path / "old.py").write_text(
        "from celery import Celery\n"
        "from celery_once import AlreadyQueued, QueueOnce\n"
        f"app = Celery('shop', broker='{cache}/0', backend='{cache}/1')\n"
        "app.conf.ONCE = {'backend': 'celery_once.backends.Redis',\n"
        f"    'settings': {{'url': '{cache}/2'}}}}\n"
        f"{was}\n"
        "def invoice(order, note=''):\n"
        "    return f'invoice of {order}'\n"
    )
    program = (
        "import json, old\n"
        "first = old.invoice.delay(7).id\n"
        "try:\n"
        "    old.invoice.delay(7, note='again')\n"
        "except old.AlreadyQueued:\n"
        "    print(json.dumps([first, 'already queued']))\n"
    )
    first, second = call(tmp_path, program)
    assert second == "already queued"
    ours = {"GWI_FOLDER": str(tmp_path / "gwi")}
    start("new", **ours)
    program = (
        "import json, new\n"
        "calls = [new.invoice.delay(7, tenant_id='acme') for _ in range(2)]\n"
        "print(json.dumps([call.get(timeout=30) for call in calls]))\n"
    )
    assert call(tmp_path, program, **ours) == ["invoice of 7"] * 2, "the duplicate gets its result"
    start("old")
    result = f"import json, old; print(json.dumps(old.app.AsyncResult('{first}').get(timeout=30)))"
    assert call(tmp_path, result) == "invoice of 7"
