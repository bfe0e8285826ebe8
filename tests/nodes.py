"""pytest-xdist's processes, forked from one that has collected the suite.

From nothing each of them needs ten seconds of a CPU until its first test, most of them for what the test
modules import. So one process collects, and ends its session; what it forks has all modules, and begins a
session of its own, as it would without.

pytest's first process calls :func:`fork_them`, which starts the process that collects (:func:`main`), and
has pytest-xdist start :func:`node` where it would start Python.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def fork_them(config: pytest.Config) -> None:
    """From here on pytest-xdist's processes are forked."""
    import shlex
    import subprocess
    from uuid import uuid4

    from tests.zygote import ROOT

    address = f"gwi-nodes-{uuid4().hex}"
    paths = [str(config.invocation_params.dir / path) for path in config.args]
    # With its marks, which decide how many examples a test declares as it is imported.
    arguments = ["-m", config.option.markexpr, "-n0", "-p", "no:cacheprovider", *paths]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"\0{address}")
        listener.listen(64)
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.nodes", str(listener.fileno()), *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
        )
    config.add_cleanup(process.wait)
    config.add_cleanup(process.kill)
    python = shlex.join([sys.executable, "-I", "-S", __file__, address])
    config.option.tx = [f"popen//python={python}"] * len(config.option.tx)


def node(address: str, python: list[str]) -> int:
    """Stands for a forked process: it has that one's files and exit code.

    Args:
        python: What a Python from nothing is told, should there be nobody to fork.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = json.dumps(["", [], os.getcwd(), dict(os.environ)]).encode()
        try:
            control.connect(f"\0{address}")
            with theirs:
                socket.send_fds(control, [request], [theirs.fileno(), 0, 1, 2])
            pid = int(mine.recv(16) or 0)
        except OSError:
            pid = 0
        if not pid:
            os.execv(sys.executable, [sys.executable, *python])
        # Ctrl-C reaches this process alone: the other has a session of its own.
        signal.signal(signal.SIGINT, lambda *_: os.kill(pid, signal.SIGINT))
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1):  # whose ends tell that the process has gone
            os.dup2(nothing, number)
        code = int(mine.recv(16) or 1)
        with suppress(ProcessLookupError):
            # What it forked has its end of the pipe, too: pytest-xdist would wait for that after a crash.
            os.killpg(pid, signal.SIGKILL)
        return code if code >= 0 else 128 - code


def main(listener: socket.socket, arguments: list[str]) -> None:
    """Collect, then fork whenever asked, until nobody is left. Returns in each child, as it ends."""
    import gc
    import types

    import pytest

    from tests import zygote

    class OnlyCollects:
        def pytest_runtestloop(self) -> bool:
            return True

    if pytest.main(arguments, plugins=[OnlyCollects()]) != pytest.ExitCode.OK:
        return  # each node says by itself what is wrong
    assert len(os.listdir("/proc/self/task")) == 1, "a thread would be missing in what is forked"
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    sys.stdout.flush()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    zygote.serve(listener)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # As python -c has it.
    sys.argv = ["-c"]
    sys.modules["__main__"] = module = types.ModuleType("__main__")
    sys.stdin = os.fdopen(0, closefd=False)
    exec(eval(sys.stdin.readline()), module.__dict__)


if __name__ == "__main__":
    if sys.argv[1].isdigit():
        main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
    else:
        sys.exit(node(sys.argv[1], sys.argv[2:]))
