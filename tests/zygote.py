"""Processes of tests that are forked from one that has imported what they need.

A start costs a second of a CPU, most of it imports, and the suite starts hundreds. The zygote only
imports: it has one thread, and opens nothing, so that what it forks is as good as new. From there on the
child is a process as any other: a session, an environment, signals and an exit code of its own.

``make test-all`` starts each worker from nothing instead, and so do tests of the start itself
(``Worker(fresh=True)``).
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
#: What workers import, in the order in which they do.
_PRELOADED = (
    "celery.__main__",
    "celery.bin.celery",
    "celery.bin.worker",
    "celery.apps.worker",
    "celery.worker.autoscale",
    "celery.worker.components",
    "celery.worker.consumer",
    "celery.worker.control",
    "celery.concurrency.prefork",
    "celery.concurrency.asynpool",
    "celery.concurrency.solo",
    "celery.concurrency.thread",
    "celery.app.events",
    "celery.app.control",
    "celery.app.amqp",
    "celery.backends.base",
    "celery.events.state",
    "kombu.pidbox",
    "gwi_celery.app",
    "gwi_celery.integration",
    "gwi_celery.service.app",
    "gwi_celery.cli.serve",
    "uvicorn",
    "gwi_celery.transport.embedded",
    "gwi_celery.transport.pubsub",
    "gwi_celery.backends.embedded",
    "gwi_celery.backends.firestore",
    "gwi_celery.stores.firestore",
    "gwi_celery.stores.sqlite",
    "gwi_celery.brokers.pubsub.broker",
    "gwi_celery.worker.consumer",
    "gwi_celery.worker.grace",
)
_MOST = 1 << 20


class Forked:
    """Such a process, with what :class:`subprocess.Popen` has of one."""

    def __init__(self, pid: int, status: socket.socket, stdin: Any, stdout: Any) -> None:
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        self.returncode: int | None = None
        self._status = status
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _look(self, timeout: float | None) -> int | None:
        with self._lock:
            if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
                code = self._status.recv(16)
                self._status.close()
                if not code:
                    raise RuntimeError("the zygote has ended")
                self.returncode = int(code)
            return self.returncode


class Zygote:
    """One for each process that asks, started at the first :meth:`fork`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control: socket.socket | None = None

    def fork(
        self, module: str, arguments: Sequence[str], folder: Path, env: dict[str, str], talks: bool
    ) -> Forked:
        request = json.dumps([module, arguments, str(folder), env]).encode()
        with ExitStack() as stack:
            mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.enter_context(theirs)
            output, end = os.pipe()
            stack.callback(os.close, end)
            if talks:
                begin, stdin = os.pipe()
                put: Any = os.fdopen(stdin, "w", encoding="utf-8")
            else:
                begin, put = os.open(os.devnull, os.O_RDONLY), None
            stack.callback(os.close, begin)
            fds = [theirs.fileno(), begin, end, sys.__stderr__.fileno() if talks else end]
            with self._lock:
                socket.send_fds(self._connected(), [request], fds)
        pid = mine.recv(16)
        if not pid:
            raise RuntimeError("the zygote has ended")
        return Forked(int(pid), mine, put, os.fdopen(output, encoding="utf-8", errors="replace"))

    def _connected(self) -> socket.socket:
        if self._control is None:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                self._control.setsockopt(socket.SOL_SOCKET, option, _MOST)
                theirs.setsockopt(socket.SOL_SOCKET, option, _MOST)
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, "-m", "tests.zygote", str(theirs.fileno())],
                    cwd=ROOT,
                    env={"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1"},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            atexit.register(process.wait)
            atexit.register(self._control.close)
        return self._control


#: This process's; None: each process is started from nothing.
ZYGOTE: Zygote | None = None


def start(
    module: str,
    arguments: Sequence[str],
    *,
    folder: Path = ROOT,
    env: dict[str, str] | None = None,
    talks: bool = False,
    fresh: bool = False,
) -> subprocess.Popen[str] | Forked:
    """``python -m module arguments``, in a session of its own.

    Args:
        talks: It has a stdin, and its stderr is the test's; else its stderr goes where its stdout does.
        fresh: Start it from nothing, whatever the others do.
    """
    env = dict(os.environ) if env is None else env
    if ZYGOTE is not None and not fresh:
        return ZYGOTE.fork(module, arguments, folder, env, talks)
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env=env,
        stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=None if talks else subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


# --- in the zygote ---------------------------------------------------------------------------------


def serve(control: socket.socket) -> str:
    """Fork whenever asked. Returns in each child, with its module; the zygote itself exits here."""
    wakes, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    children: dict[int, socket.socket] = {}
    watched: list[Any] = [control, wakes]
    while True:
        ready, _, _ = select.select(watched, [], [])
        if wakes in ready:
            os.read(wakes, 4096)
            for pid in list(children):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    with children.pop(pid) as told:
                        told.send(str(os.waitstatus_to_exitcode(status)).encode())
        if control in ready:
            request, fds, _, _ = socket.recv_fds(control, _MOST, 4)
            if not request:
                os._exit(0)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for told in (control, *children.values()):
                    told.close()
                for number, fd in enumerate(fds[1:]):
                    os.dup2(fd, number)
                for fd in (wakes, waker, *fds):
                    os.close(fd)
                return _become(request)
            for fd in fds[1:]:
                os.close(fd)
            children[pid] = socket.socket(fileno=fds[0])
            children[pid].send(str(pid).encode())


def _become(request: bytes) -> str:
    module, arguments, folder, env = json.loads(request)
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.path[0] = folder
    sys.path[1:1] = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv[1:] = arguments
    return str(module)


def main(fd: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they warn of is not of any one child
        for name in _PRELOADED:
            importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "a thread would be missing in what is forked"
    gc.freeze()
    runpy.run_module(serve(socket.socket(fileno=fd)), run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
