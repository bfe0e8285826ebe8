"""Processes of tests that are forked from one that has imported what they need.

A start costs a second of a CPU, most of it imports, and the suite starts hundreds. The zygote only
imports: it has one thread, and opens nothing, so that what it forks is as good as new. From there on the
child is a process as any other: a session, an environment, signals and an exit code of its own. All
processes of pytest-xdist share one, and one more for what gevent patches.

``make test-all`` starts each worker from nothing instead, and so do tests of the start itself
(``Worker(fresh=True)``).
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import mmap
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.machine import PATIENCE

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
    "gwi_celery.worker.pausing",
    "gwi_celery.worker.stopping",
    "gwi_celery.service.worker",
    "gwi_celery.provisioned",
    "gwi_celery.upkeep",
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
    """One for all processes of a run, started by the first that calls :meth:`fork`.

    It ends when none of those that have called it is left.

    Args:
        run: Names the run, so that its processes find each other's.
        gevent: One whose modules were patched by gevent before they were imported.
    """

    def __init__(self, run: str, gevent: bool = False) -> None:
        self._address = f"\0gwi-tests-{run}-{'gevent' if gevent else 'plain'}"
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
        if self._control is not None:
            return self._control
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            control.setsockopt(socket.SOL_SOCKET, option, _MOST)
        process: subprocess.Popen[bytes] | None = None
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                control.connect(self._address)
                break
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise
            if process is None:
                process = self._start()
            time.sleep(0.01)
        atexit.register(control.close)
        self._control = control
        return control

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote", self._address[1:]],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        atexit.register(process.wait)
        return process


#: None: each process is started from nothing.
ZYGOTE: Zygote | None = None
#: Of processes that gevent patches.
GEVENT_ZYGOTE: Zygote | None = None


def set_up() -> None:
    """From here on this process's :func:`start` forks."""
    global ZYGOTE, GEVENT_ZYGOTE
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid4().hex
    ZYGOTE, GEVENT_ZYGOTE = Zygote(run), Zygote(run, gevent=True)


def start(
    module: str,
    arguments: Sequence[str],
    *,
    folder: Path = ROOT,
    env: dict[str, str] | None = None,
    talks: bool = False,
    fresh: bool = False,
    gevent: bool = False,
) -> subprocess.Popen[str] | Forked:
    """``python -m module arguments``, in a session of its own.

    Args:
        talks: It has a stdin, and its stderr is the test's; else its stderr goes where its stdout does.
        fresh: Start it from nothing, whatever the others do.
        gevent: It would patch its modules with gevent as it starts.
    """
    env = dict(os.environ) if env is None else env
    zygote = GEVENT_ZYGOTE if gevent else ZYGOTE
    if zygote is not None and not fresh:
        return zygote.fork(module, arguments, folder, env, talks)
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


def run(
    script: str,
    *arguments: str,
    folder: Path,
    env: Mapping[str, str] | None = None,
    gevent: bool = False,
) -> subprocess.CompletedProcess[str]:
    """A program's text, run to its end in a process of its own; its stdout has its stderr, too.

    Args:
        env: On top of this process's environment.
        gevent: It begins by patching its modules with gevent.
    """
    name = f"script_{uuid4().hex}"
    (folder / f"{name}.py").write_text(script)
    return run_module(name, *arguments, folder=folder, env=env, gevent=gevent)


def run_module(
    module: str,
    *arguments: str,
    folder: Path,
    env: Mapping[str, str] | None = None,
    gevent: bool = False,
) -> subprocess.CompletedProcess[str]:
    """As :func:`run`, of ``python -m module``."""
    whole = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    process = start(module, arguments, folder=folder, env=whole, gevent=gevent)
    hangs = threading.Timer(PATIENCE, process.kill)
    hangs.start()
    assert process.stdout is not None
    with process.stdout:
        printed = process.stdout.read()
    code = process.wait()
    hangs.cancel()
    return subprocess.CompletedProcess([module, *arguments], code, printed)


#: What tests with nodes need.
NODES = ("-p", "pytest_docker_tools.plugin", "-p", "pytest_celery.plugin")


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """pytest, in a user's folder, with those plugins only that the folder or the arguments name."""
    env = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return run_module("pytest", "-q", "-p", "no:cacheprovider", *arguments, folder=folder, env=env)


# --- in the zygote ---------------------------------------------------------------------------------

# As they are before gevent replaces them.
_fork, _waitpid, _select, _signal = os.fork, os.waitpid, select.select, signal.signal
_Socket, _recv_fds = socket.socket, socket.recv_fds
#: Seconds that it waits for whoever has started it.
_ALONE = 60.0


def serve(listener: socket.socket) -> str:
    """Fork whenever asked. Returns in each child, with its module; the zygote itself exits here.

    What was forked for somebody doesn't outlive them: a crashed process of tests leaves no worker.
    """
    wakes, waker = os.pipe()
    os.set_blocking(waker, False)
    _signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    controls: list[socket.socket] = []
    #: Pid -> whom its end is told, and who asked for it.
    children: dict[int, tuple[socket.socket, socket.socket]] = {}
    patience = _ALONE
    while True:
        ready, _, _ = _select([listener, wakes, *controls], [], [], None if controls else patience)
        if not ready:
            os._exit(0)
        if wakes in ready:
            os.read(wakes, 4096)
            for pid in list(children):
                ended, status = _waitpid(pid, os.WNOHANG)
                if ended:
                    with children.pop(pid)[0] as told, suppress(OSError):
                        told.send(str(os.waitstatus_to_exitcode(status)).encode())
        if listener in ready:
            fd, _ = listener._accept()
            controls.append(_Socket(fileno=fd))
        for control in [control for control in controls if control in ready]:
            request, fds, _, _ = _recv_fds(control, _MOST, 4)
            if not request:
                controls.remove(control)
                control.close()
                for pid, (_, asked) in children.items():
                    if asked is control:
                        with suppress(ProcessLookupError):
                            os.killpg(pid, signal.SIGKILL)
                patience = 0.0  # it was the last, unless somebody waits to be let in
                continue
            pid = _fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                _signal(signal.SIGCHLD, signal.SIG_DFL)
                for told in (listener, *controls, *(told for told, _ in children.values())):
                    told.close()
                for number, fd in enumerate(fds[1:]):
                    os.dup2(fd, number)
                for fd in (wakes, waker, *fds):
                    os.close(fd)
                return _become(request)
            for fd in fds[1:]:
                os.close(fd)
            told = _Socket(fileno=fds[0])
            children[pid] = told, control
            with suppress(OSError):  # who asked may be gone
                told.send(str(pid).encode())


def _become(request: bytes) -> str:
    module, arguments, folder, env = json.loads(request)
    _have_own_memory()
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.path[0] = folder
    sys.path[1:1] = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv[1:] = arguments
    return str(module)


def _have_own_memory() -> None:
    """What the package shares with its own children, other workers' processes don't have a part in."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "gwi_celery":
            for variable, value in list(vars(module).items()):
                if isinstance(value, mmap.mmap):
                    setattr(module, variable, mmap.mmap(-1, len(value)))


def main(address: str) -> None:
    listener = _Socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(f"\0{address}")
    except OSError:  # another process was quicker to start it
        return
    listener.listen(64)
    if address.endswith("-gevent"):
        from gevent import monkey

        monkey.patch_all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they warn of is not of any one child
        for name in _PRELOADED:
            importlib.import_module(name)
    sys.modules.pop("celery.__main__")  # which is to be run, and not to be there already
    if "gevent" in sys.modules:
        # Made by an import. What is forked would share its epoll, and take each other's events.
        from gevent import get_hub

        get_hub().destroy(destroy_loop=True)
    assert len(os.listdir("/proc/self/task")) == 1, "a thread would be missing in what is forked"
    gc.freeze()
    runpy.run_module(serve(listener), run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1])
