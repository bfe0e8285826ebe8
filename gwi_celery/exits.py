"""Flushes unsent data when a process ends.

``atexit`` hooks don't run in a child of Celery's prefork pool or of ``multiprocessing``: both leave by
``os._exit``, after hooks of their own. A process that is killed, or calls ``os._exit`` itself, flushes
nothing.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import shutil
from collections.abc import Callable
from multiprocessing import current_process, util
from typing import Any, NoReturn

from celery import signals

logger = logging.getLogger(__name__)

_flushes: list[Callable[[], object]] = []


def at_exit(flush: Callable[[], object]) -> None:
    """Have ``flush`` called at the end of this process and of its forks. It may be called twice."""
    _flushes.append(flush)


def end_now(code: int) -> NoReturn:
    """End this process with that exit code, whatever its threads do. No hooks run; nothing is flushed.

    The folder that a prefork pool has made is deleted, as a hook of ``multiprocessing`` would.
    """
    folder = _temporary_folder()
    if folder is not None and folder != _process.inherited:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(code)


def _temporary_folder() -> str | None:
    # get_temp_dir() would make one, and log that.
    found: str | None = getattr(current_process(), "_config", {}).get("tempdir")
    return found


def _end_quickly(**kwargs: Any) -> None:
    """Have this worker end without a last garbage collection.

    With Google's libraries loaded, it takes most of a second of CPU, and a stop would wait for it.
    """
    atexit.register(gc.freeze)


def _flush(*args: Any, **kwargs: Any) -> None:
    for flush in _flushes:
        try:
            flush()
        except Exception:
            logger.exception("unsent data may have been lost at exit")


class _Process:
    """Registers the flush in each fork: ``multiprocessing`` calls :meth:`finalize` there."""

    #: The temporary folder of the process that this one was forked from, which deletes it.
    inherited: str | None = None

    def finalize(self) -> None:
        self.inherited = _temporary_folder()
        util.Finalize(None, _flush, exitpriority=0)


_process = _Process()
_process.finalize()  # a spawned child imports this module itself
util.register_after_fork(_process, _Process.finalize)
atexit.register(_flush)
signals.worker_process_shutdown.connect(_flush, weak=False)
signals.worker_shutdown.connect(_end_quickly, weak=False)
