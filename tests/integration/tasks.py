"""Tasks of the worker nodes: plain Celery ones, and a reliable one."""

from __future__ import annotations

import os
import time

from celery import shared_task

from gwi_celery import ReliableTask


@shared_task
def add(x: int, y: int) -> int:
    return x + y


@shared_task
def fail(reason: str) -> None:
    raise RuntimeError(reason)


@shared_task
def mark(folder: str, name: str) -> str:
    """Leave a file that says when this ran."""
    with open(os.path.join(folder, name), "a") as file:
        file.write(f"{time.time()}\n")
    return name


@shared_task
def hold(folder: str, name: str, seconds: float = 600.0) -> str:
    """Say that it began, and end once somebody allows it (or the time is up)."""
    mark(folder, f"{name}.began")
    deadline = time.monotonic() + seconds
    while not os.path.exists(os.path.join(folder, "go")) and time.monotonic() < deadline:
        time.sleep(0.02)
    return name


@shared_task(base=ReliableTask, bind=True)
def job(self: ReliableTask, *, tenant_id: str, run_id: str, folder: str) -> int:
    """Two recorded steps; holds between them until it is allowed on."""
    first = self.step("first", mark, folder, f"{run_id}.first")
    assert first == f"{run_id}.first"
    hold(folder, run_id)
    self.step("second", mark, folder, f"{run_id}.second")
    return self.attempt
