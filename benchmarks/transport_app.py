"""The app of the transport benchmark: Celery's default settings, but for what ``BENCH_CONF`` says.

``BENCH_BROKER`` is the broker. The worker appends to the file ``BENCH_MARK``: the times of the first and
of the ``BENCH_COUNT``-th call of ``noop``, for ``mark`` the seconds since it was called, and for
``numbered`` its number before them.
"""

from __future__ import annotations

import contextlib
import json
import os
import time

from celery import Celery

import gwi_celery  # noqa: F401 it registers the transports

BROKER = os.environ["BENCH_BROKER"]

app = Celery("bench-transport", broker=BROKER)
app.conf.update(
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    **json.loads(os.environ.get("BENCH_CONF", "{}")),
)

_COUNT = int(os.environ.get("BENCH_COUNT", "0"))
_seen = 0


# Not shared: a benchmark that loads this module again would give both to any app of its process.
@app.task(shared=False)
def noop() -> None:
    """Nothing but counting."""
    global _seen  # noqa: PLW0603 the worker runs one task at a time
    _seen += 1
    if _seen in (1, _COUNT):
        _append(time.time())


@app.task(shared=False)
def mark(sent: float) -> None:
    """Append the seconds from the call to here."""
    _append(time.time() - sent)


@app.task(shared=False)
def numbered(n: int, sent: float) -> None:
    """The same for a call that is told from others."""
    _append(f"{n} {time.time() - sent}")


def _append(value: object) -> None:
    fd = os.open(os.environ["BENCH_MARK"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with contextlib.closing(os.fdopen(fd, "ab", 0)) as file:
        file.write(f"{value}\n".encode())
