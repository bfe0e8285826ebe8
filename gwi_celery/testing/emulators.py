"""The Pub/Sub and Firestore emulators, found or started.

The first of these that exists is used: the one that the environment names (``PUBSUB_EMULATOR_HOST``,
``FIRESTORE_EMULATOR_HOST``), the Google Cloud SDK's, started here on a free port of loopback, or Docker's
image. The SDK's programs are run directly rather than through ``gcloud``, which would leave the Java
process behind when it is stopped. Emulators persist nothing.

::

    with start_pubsub() as emulator:
        os.environ["PUBSUB_EMULATOR_HOST"] = emulator.endpoint

By hand: ``python -m gwi_celery.testing.emulators`` starts both, prints what to export, and stops them
on Ctrl-C; ``python -m gwi_celery.testing.emulators -- COMMAND`` runs a command on them.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import IO, TypeVar

from gwi_celery.errors import GwiError
from gwi_celery.gcp.emulators import FIRESTORE_HOST, PUBSUB_HOST

#: Google's image with both emulators, where there is Docker but no SDK.
DOCKER_IMAGE = "gcr.io/google.com/cloudsdktool/google-cloud-cli:emulators"

#: Seconds an emulator may take to listen; a loaded machine needs many times the usual two.
_START_TIMEOUT = 60.0
#: Seconds between SIGTERM and SIGKILL.
_STOP_TIMEOUT = 5.0

#: Runs a command until it ends, or the other end of standard input is closed: that is when the process
#: which started it ends, by SIGKILL too. The command keeps the shell's pid.
_ATTACHED = """
exec 3<&0
(trap '' TERM; cat <&3 >/dev/null; kill -TERM 0; sleep 5; kill -KILL 0) 2>/dev/null &
exec "$@" </dev/null 3<&-
"""


class EmulatorMissing(GwiError):
    """Neither a running emulator, nor the SDK with Java, nor Docker was found."""


class Emulator:
    """One emulator. ``endpoint`` is ``host:port``; it stays the same across :meth:`restart`."""

    def __init__(self, kind: str, endpoint: str, command: list[str] | None) -> None:
        self.kind = kind
        self.endpoint = endpoint
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    @property
    def ours(self) -> bool:
        """Whether this object started it, and so may stop it."""
        return self._command is not None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it and wait until it listens. Raises EmulatorMissing with its output if not."""
        if self._command is None or self._process is not None:
            return
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 closed in kill()
        self._process = subprocess.Popen(  # noqa: S603 a command of our own making
            ["/bin/sh", "-c", _ATTACHED, "sh", *self._command],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            if self._answers():
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                printed = self.log()[-2000:]
                self.kill()
                raise EmulatorMissing(f"the {self.kind} emulator did not start:\n{printed}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        # It listens before it can serve: ask for its greeting.
        connection = http.client.HTTPConnection(self.endpoint, timeout=5)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def log(self) -> str:
        """Its output so far."""
        if self._log is None:
            return ""
        # os.pread leaves the file's position alone: the emulator writes there.
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode("utf-8", "replace")

    def stop(self) -> None:
        """Stop it as an operator would. Safe to call twice."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=_STOP_TIMEOUT)
        self.kill()

    def kill(self) -> None:
        """SIGKILL: connections break in the middle of anything."""
        if self._process is not None:
            assert self._process.stdin is not None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # its watcher, too
            self._process.wait()
            self._process.stdin.close()
            self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def restart(self, *, down_for: float = 0.0) -> None:
        """Kill it, wait some seconds, and restart it, empty, at the same endpoint."""
        self.kill()
        time.sleep(down_for)
        self.start()


Started = TypeVar("Started", bound=Emulator)


@contextmanager
def start_pubsub(*, fresh: bool = False) -> Iterator[Emulator]:
    """A running Pub/Sub emulator. ``fresh``: a new one even if the environment names one."""
    with running(_find("pubsub", PUBSUB_HOST, fresh)) as emulator:
        yield emulator


@contextmanager
def start_firestore(*, fresh: bool = False) -> Iterator[Emulator]:
    """A running Firestore emulator. ``fresh``: as for :func:`start_pubsub`."""
    with running(_find("firestore", FIRESTORE_HOST, fresh)) as emulator:
        yield emulator


@contextmanager
def running(emulator: Started) -> Iterator[Started]:
    """Start it, and stop it at the end."""
    emulator.start()
    try:
        yield emulator
    finally:
        emulator.stop()


def _find(kind: str, variable: str, fresh: bool) -> Emulator:
    named = os.environ.get(variable)
    if named and not fresh:
        return Emulator(kind, named, None)
    port = free_port()
    command = _sdk_command(kind, port) or _docker_command(kind, port)
    if command is None:
        raise EmulatorMissing(
            f"no {kind} emulator: name a running one in {variable} (host:port), or install the "
            f"Google Cloud SDK with its {kind} emulator and Java, or Docker"
        )
    return Emulator(kind, f"127.0.0.1:{port}", command)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def _sdk_command(kind: str, port: int) -> list[str] | None:
    gcloud, java = shutil.which("gcloud"), shutil.which("java")
    if gcloud is None or java is None:
        return None
    platform = Path(gcloud).resolve().parent.parent / "platform"
    address = ["--host=127.0.0.1", f"--port={port}"]
    if kind == "pubsub":
        jars = sorted(
            (platform / "pubsub-emulator" / "lib").glob("cloud-pubsub-emulator-*-all.jar")
        )
        return [java, "-jar", str(jars[-1]), *address] if jars else None
    jar = platform / "cloud-firestore-emulator" / "cloud-firestore-emulator.jar"
    program = "com.google.cloud.datastore.emulator.firestore.CloudFirestore"
    # It has error messages in English only, and stops where the locale is another.
    options = ["-Duser.language=en", "-cp", str(jar), program]
    return [java, *options, *address] if jar.exists() else None


def _docker_command(kind: str, port: int) -> list[str] | None:
    docker = shutil.which("docker")
    if docker is None:
        return None
    engine = subprocess.run([docker, "info"], check=False, capture_output=True)  # noqa: S603
    if engine.returncode:
        return None  # the client alone starts nothing
    inner = ["gcloud", "beta", "emulators", kind, "start", f"--host-port=0.0.0.0:{port}"]
    publish = f"127.0.0.1:{port}:{port}"
    return [docker, "run", "--rm", "--init", "--publish", publish, DOCKER_IMAGE, *inner]


#: Name on the command line -> (its variable, how it is started).
_EMULATORS = {
    "pubsub": (PUBSUB_HOST, start_pubsub),
    "firestore": (FIRESTORE_HOST, start_firestore),
}

#: Emulators accept any name: each project is empty at first.
_DEFAULT_PROJECT = "local"


def main(argv: list[str] | None = None) -> int:
    """Run the emulators until Ctrl-C or SIGTERM, or for as long as a command takes."""
    parser = argparse.ArgumentParser(
        prog="python -m gwi_celery.testing.emulators",
        description="Starts the Pub/Sub and Firestore emulators and prints what to export.",
    )
    parser.add_argument("--only", choices=_EMULATORS, help="start this one only")
    parser.add_argument(
        "--project", default=_DEFAULT_PROJECT, help="GCP_PROJECT_ID (default: %(default)s)"
    )
    parser.add_argument("command", nargs="*", help="run this on them, after --, then stop them")
    arguments = sys.argv[1:] if argv is None else argv
    options = parser.parse_args(arguments)
    if "--" in arguments and not options.command:
        parser.error("write a command after --, or leave -- out")
    variables = {"GCP_PROJECT_ID": options.project}
    with _stoppable(), contextlib.ExitStack() as stack:
        try:
            for name in [options.only] if options.only else list(_EMULATORS):
                variable, start = _EMULATORS[name]
                variables[variable] = stack.enter_context(start()).endpoint
        except EmulatorMissing as exc:
            print(exc, file=sys.stderr)
            return 1
        if options.command:
            return _run(options.command, {**os.environ, **variables})
        for variable, value in variables.items():
            print(f"export {variable}={shlex.quote(value)}")
        print("# Ctrl-C stops them, and what is in them is gone.", flush=True)
        while True:
            signal.pause()
    return 0


def _run(command: list[str], env: dict[str, str]) -> int:
    """Its exit code, once it has ended: Ctrl-C and SIGTERM ask it to end, by SIGTERM."""
    try:
        process = subprocess.Popen(command, env=env)  # noqa: S603 the user's own command
    except OSError as exc:
        print(f"can't run {command[0]}: {exc.strerror}", file=sys.stderr)
        return not_run(exc)
    while True:
        try:
            return exit_code(process.wait())
        except KeyboardInterrupt:
            process.terminate()


def not_run(exc: OSError) -> int:
    """The exit code for a command that can't be run, as a shell has it."""
    return 127 if isinstance(exc, FileNotFoundError) else 126


def exit_code(returncode: int) -> int:
    """As a shell has it of a command that ended so: 128 and the number of the signal that killed it."""
    return returncode if returncode >= 0 else 128 - returncode


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, from before the first emulator is started."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
