"""What pytest-celery runs inside a worker node to look at its processes."""

from __future__ import annotations

import json
import os

import psutil

_COLUMNS = [
    "pid",
    "name",
    "username",
    "cmdline",
    "cpu_percent",
    "memory_percent",
    "create_time",
]


def get_running_processes_info(columns: list[str] | None = None) -> str:
    """The node's processes as JSON: the worker and its children, not the rest of the machine."""
    worker = psutil.Process(int(os.environ["NODE_PID"]))
    family = [worker, *worker.children(recursive=True)]
    return json.dumps([process.as_dict(columns or _COLUMNS) for process in family])
