"""pytest-celery's nodes as plain processes: real workers and emulators, and no Docker.

pytest-celery wraps Docker's container objects. :class:`Machine` offers what those wrappers use of
one, over a process of this machine with a folder of its own; :class:`WorkerProcess` is the worker's
container on top of it. Kill, restart, logs and ``exec_run`` mean what they mean for a container:
when the main process dies, all that it started dies with it.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import signal as signals
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

from pytest_celery import CeleryTestContainer, CeleryWorkerContainer

#: Seconds between SIGTERM and SIGKILL where the caller names none.
STOP_TIMEOUT = 10.0

#: What pytest-celery sets for a container and would be wrong here.
_CONTAINER_ONLY = frozenset({"PYTHONPATH"})


class Machine:
    """What Docker's ``Container`` object is to pytest-celery, over a process of this machine.

    Args:
        command: What to run; ``%h`` becomes this node's host name. ``celery`` and ``python`` are
            this interpreter's.
        folder: Its working directory; ``content`` is written there.
        env: Environment on top of this process's own.
        content: Path below the folder -> the file's bytes.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        *,
        env: Mapping[str, str] | None = None,
        content: Mapping[str, bytes] | None = None,
    ) -> None:
        self.id = uuid4().hex
        self.name = f"{Path(command[0]).name}-{self.id[:12]}"
        self.folder = folder
        self._command = [part.replace("%h", self.hostname) for part in _of_this_python(command)]
        self._env = {k: v for k, v in (env or {}).items() if k not in _CONTAINER_ONLY}
        self._process: subprocess.Popen[bytes] | None = None
        #: Size of the log when the process was last started; before it is what an earlier start printed.
        self._log_start = 0
        folder.mkdir(parents=True, exist_ok=True)
        for path, data in (content or {}).items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)

    @property
    def hostname(self) -> str:
        return self.id[:12]

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def status(self) -> str:
        """``created``, ``running`` or ``exited``, as Docker names them."""
        if self._process is None:
            return "created"
        return "running" if self._process.poll() is None else "exited"

    @property
    def attrs(self) -> dict[str, Any]:
        """No ports and no networks: a process needs no mapping to be reached."""
        return {
            "Config": {
                "Hostname": self.hostname,
                "Env": [f"{name}={value}" for name, value in self._env.items()],
            },
            "HostConfig": {"PortBindings": {}},
            "NetworkSettings": {"Networks": {}, "Ports": {}},
        }

    def start(self) -> None:
        """Start the process, unless it runs."""
        if self.status == "running":
            return
        path = self.folder / "node.log"
        self._log_start = path.stat().st_size if path.exists() else 0
        with path.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 the test's own command
                self._command,
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def reload(self) -> None:
        """Nothing to do: Docker's objects are snapshots, this one is always current."""

    def logs(self) -> bytes:
        """Its output, restarts included."""
        path = self.folder / "node.log"
        return path.read_bytes() if path.exists() else b""

    def logs_since_start(self) -> bytes:
        """Its output since the last start."""
        return self.logs()[self._log_start :]

    def kill(self, signal: str | int | None = None) -> None:
        """Send a signal, SIGKILL by default; that one takes all of its children along."""
        number = _signal_number(signal)
        if self.status != "running" or self._process is None:
            return
        if number == signals.SIGKILL:
            self._end()
        else:
            self._process.send_signal(number)

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """SIGTERM, then SIGKILL after ``timeout`` seconds."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=timeout)
        self._end()

    def restart(self, timeout: float = STOP_TIMEOUT) -> None:
        self.stop(timeout)
        self.start()

    def wait(self, timeout: float) -> int:
        """Wait until it has ended by itself; returns its exit code. Raises subprocess.TimeoutExpired."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was never started")
        code = self._process.wait(timeout=timeout)
        self._end()
        return code

    def exec_run(self, cmd: str | Sequence[str], **kwargs: Any) -> tuple[int, bytes]:
        """Run another command in the node's folder and environment: its exit code and output."""
        command = shlex.split(cmd) if isinstance(cmd, str) else list(cmd)
        done = subprocess.run(  # noqa: S603 the test's own command
            _of_this_python(command),
            cwd=self.folder,
            env=self._environment(),
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        return done.returncode, done.stdout

    def get_archive(self, path: str) -> tuple[Iterator[bytes], dict[str, Any]]:
        """A tar archive of a file or folder of the node's, as Docker gives one."""
        source = self.folder / path.lstrip("/")
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            tar.add(source, arcname=source.name)
        return iter([buffer.getvalue()]), {"name": source.name, "size": buffer.tell()}

    def _end(self) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signals.SIGKILL)
        self._process.wait(timeout=STOP_TIMEOUT)

    def _environment(self) -> dict[str, str]:
        # The folder first, as /app is in a container; then what this process can import.
        path = os.pathsep.join([str(self.folder), *(p for p in sys.path if p)])
        pid = {} if self.pid is None else {"NODE_PID": str(self.pid)}
        return {**os.environ, "PYTHONUNBUFFERED": "1", **self._env, "PYTHONPATH": path, **pid}


def _of_this_python(command: Sequence[str]) -> list[str]:
    program, *rest = command
    if program == "celery":
        return [sys.executable, "-m", "celery", *rest]
    return [sys.executable if program in ("python", "python3") else program, *rest]


def _signal_number(signal: str | int | None) -> int:
    if signal is None:
        return signals.SIGKILL
    return signals.Signals[signal].value if isinstance(signal, str) else int(signal)


class WorkerProcess(CeleryWorkerContainer):
    """A ``celery worker`` of this machine, as pytest-celery's worker container."""

    #: Seconds from the start until the worker is ready. A loaded machine needs many times the usual.
    START_TIMEOUT = 120.0

    _container: Machine

    def ready(self) -> bool:
        """Wait until the worker, as it was last started, is ready. Raises AssertionError."""
        deadline = time.monotonic() + self.START_TIMEOUT
        prompt = self.ready_prompt.encode()
        while prompt not in self._container.logs_since_start():
            if self.status == "exited" or time.monotonic() > deadline:
                raise AssertionError(f"{self.name} is not ready ({self.status}):\n{self.logs()}")
            time.sleep(0.02)
        return True

    def wait(self, timeout: float = 120.0) -> int:
        """Wait until the worker has stopped by itself; returns its exit code."""
        return self._container.wait(timeout)

    @property
    def pid(self) -> int | None:
        return self._container.pid

    @classmethod
    def app_module(cls) -> ModuleType:
        from gwi_celery.testing import worker_app

        return worker_app

    @classmethod
    def utils_module(cls) -> ModuleType:
        from gwi_celery.testing import worker_utils

        return worker_utils

    def teardown(self) -> None:
        self._container.stop()


@contextmanager
def worker_process(
    command: Sequence[str],
    folder: Path,
    *,
    env: Mapping[str, str] | None = None,
    content: Mapping[str, bytes] | None = None,
    cls: type[CeleryTestContainer] = WorkerProcess,
) -> Iterator[Any]:
    """A started worker container; stopped at the end, by force if it must be."""
    machine = Machine(command, folder, env=env, content=content)
    machine.start()
    try:
        yield cls(machine)
    finally:
        machine.stop()
