"""What really happened, one JSON line per event, written by the job itself.

The demo checks its invariants on this file, not on what the store says about itself. Without
the variable :data:`FILE` nothing is written.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

#: Environment variable that names the file.
FILE = "REPO_INSIGHT_AUDIT"


class Trail:
    """The events of one attempt. ``task`` is the bound task.

    An event is appended in a single write, so that two processes never mix theirs, and what was
    written stays when the process is killed right after.
    """

    def __init__(self, task: Any, tenant: str, run: str) -> None:
        self._task = task
        self._file = os.environ.get(FILE)
        self._who = {
            "tenant": tenant,
            "run": run,
            "task_id": task.request.id,
            "fence": task.fence,
            "attempt": task.attempt,
            "generation": task.generation,
            "pid": os.getpid(),
        }

    def note(self, event: str, **fields: Any) -> None:
        if self._file is None:
            return
        line = json.dumps({"event": event, **fields, **self._who, "at": time.time()}) + "\n"
        fd = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(fd, line.encode())
        finally:
            os.close(fd)

    def step(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """``task.step``, noting whether the function was really called."""
        called = False

        def noted() -> Any:
            nonlocal called
            called = True
            self.note("step called", step=name)
            return function(*args)

        value = self._task.step(name, noted)
        self.note("step recorded" if called else "step answered", step=name)
        return value
