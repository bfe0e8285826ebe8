"""Cloud Run as a container sees it: the IAM check before it, and how instances start, freeze and stop.

::

    with start_twin() as twin, start_cloud_run(
        [sys.executable, "-m", "celery", "-A", "app", "gwi", "serve"],
        invoker="pusher@p.iam.gserviceaccount.com",
        audience="https://jobs",
        certificates=twin.certificates,
    ) as service:
        ...  # a push subscription to service.url, by that account and for that audience

Instances are processes of this machine, which listen on ``$PORT``. Each behaviour is a switch of
:class:`CloudRunBehaviour`, with its source. Left out, as a push can't tell: revisions, traffic splits,
HTTP/2, minimum instances, and scaling by anything but requests.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from gwi_celery.testing.emulators import free_port
from gwi_celery.testing.twin.behaviour import Switches

#: What is left of a token's signature: https://cloud.google.com/run/docs/troubleshooting#signature-removed
SIGNATURE_REMOVED = "SIGNATURE_REMOVED_BY_GOOGLE"


@dataclass(frozen=True)
class CloudRunBehaviour(Switches):
    """The switches of a Cloud Run twin."""

    #: Only the invoker's tokens, for the audience, get in; their signature is removed.
    #: https://cloud.google.com/run/docs/authenticating/service-to-service
    iam: bool = True
    #: Seconds that an answer may take; then 504, while the instance goes on.
    #: https://cloud.google.com/run/docs/configuring/request-timeout
    request_timeout: float = 300.0
    #: Instances keep their CPU without requests; else they are stopped (SIGSTOP) after the last answer.
    #: https://cloud.google.com/run/docs/configuring/billing-settings
    cpu_always: bool = False
    #: Seconds from SIGTERM to SIGKILL.
    #: https://cloud.google.com/run/docs/container-contract#instance-shutdown
    grace: float = 10.0
    #: Seconds that a new instance takes longer than its program does.
    #: https://cloud.google.com/run/docs/tips/general#optimize_performance
    cold_start: float = 0.5
    #: Requests at a time in one instance.
    #: https://cloud.google.com/run/docs/about-concurrency
    concurrency: int = 1
    #: https://cloud.google.com/run/docs/configuring/max-instances
    max_instances: int = 3
    #: Seconds that a request waits for an instance, before 429.
    #: https://cloud.google.com/run/docs/about-instance-autoscaling
    queue_wait: float = 10.0


class Instance:
    """One container. ``requests`` is how many it has now."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], folder: Path | None) -> None:
        self.port = free_port()
        self.requests = 0
        self.ending = False
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 closed in close()
        self.process = subprocess.Popen(  # noqa: S603 a test's own command
            list(command),
            cwd=folder,
            env={**env, "PORT": str(self.port), "K_SERVICE": "twin"},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def log(self) -> str:
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode("utf-8", "replace")

    def wait_listening(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < until:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return True
            time.sleep(0.05)
        return False

    def signal_all(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def end(self, grace: float) -> None:
        """SIGTERM to the main process; SIGKILL to all that is left after ``grace`` seconds."""
        self.signal_all(signal.SIGCONT)
        if grace > 0:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(grace)
        self.signal_all(signal.SIGKILL)
        self.process.wait()


class CloudRun:
    """A service. Use :func:`start_cloud_run`.

    Args:
        command: Of an instance; it listens on ``$PORT`` of loopback.
        invoker: The account that may call it.
        audience: Of that account's tokens; by default the service's URL.
        certificates: Key id -> PEM of who signs them: :meth:`Twin.certificates`.
        env: The instances' environment; by default this process's.
        folder: Their working directory.
    """

    #: Seconds that a container may take to listen, before it counts as failed.
    start_timeout = 240.0

    def __init__(
        self,
        command: Sequence[str],
        *,
        invoker: str = "",
        audience: str = "",
        certificates: Callable[[], Mapping[str, str]] = dict,
        env: Mapping[str, str] | None = None,
        folder: Path | None = None,
        **switches: Any,
    ) -> None:
        self.behaviour = CloudRunBehaviour().changed(**switches)
        self._command, self._folder = command, folder
        self._env = dict(os.environ if env is None else env)
        self._invoker, self._audience, self._certificates = invoker, audience, certificates
        self._changed = threading.Condition()
        self._instances: list[Instance] = []
        self._ended: list[Instance] = []
        self._threads: list[threading.Thread] = []
        #: Status of each answer to Pub/Sub, in order.
        self.answers: list[int] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._serving = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._serving.start()

    # --- instances ----------------------------------------------------------------------------

    @property
    def instances(self) -> list[Instance]:
        """Those that run, the oldest first."""
        with self._changed:
            return [each for each in self._instances if not each.ending]

    def log(self) -> str:
        """All output of all instances."""
        with self._changed:
            found = [*self._ended, *self._instances]
        return "".join(each.log() for each in found)

    def shut_down(self, instance: Instance, *, kill: bool = False) -> None:
        """Scale it in: SIGTERM, then SIGKILL, and no new requests. ``kill``: as when its host dies."""
        with self._changed:
            instance.ending = True
        thread = threading.Thread(
            target=self._end, args=(instance, 0.0 if kill else self.behaviour.grace)
        )
        self._threads.append(thread)
        thread.start()

    def _end(self, instance: Instance, grace: float) -> None:
        instance.end(grace)
        with self._changed:
            if instance in self._instances:
                self._instances.remove(instance)
                self._ended.append(instance)
            self._changed.notify_all()

    def _acquire(self) -> Instance | None:
        """A place for a request, in an instance that runs or in a new one; None: 429."""
        until = time.monotonic() + self.behaviour.queue_wait
        with self._changed:
            while True:
                for each in self._instances:
                    if not each.ending and each.requests < self.behaviour.concurrency:
                        if each.process.poll() is not None:
                            self.shut_down(each, kill=True)  # it has crashed
                            continue
                        each.requests += 1
                        each.signal_all(signal.SIGCONT)
                        return each
                running = sum(not each.ending for each in self._instances)
                if running < self.behaviour.max_instances:
                    instance = Instance(self._command, self._env, self._folder)
                    instance.requests = 1
                    self._instances.append(instance)
                    break
                left = until - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(left)
        time.sleep(self.behaviour.cold_start)
        if instance.wait_listening(self.start_timeout):
            return instance
        self.shut_down(instance, kill=True)
        return None

    def _release(self, instance: Instance) -> None:
        with self._changed:
            instance.requests -= 1
            frozen = not (instance.requests or self.behaviour.cpu_always or instance.ending)
            if frozen:
                instance.signal_all(signal.SIGSTOP)
            self._changed.notify_all()

    # --- requests -----------------------------------------------------------------------------

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> int:
        """Hand a request on; the answer's status."""
        passed = dict(headers)
        if self.behaviour.iam:
            status, token = self._admit(headers.get("Authorization", ""))
            if status:
                return status
            passed["Authorization"] = f"Bearer {token.rpartition('.')[0]}.{SIGNATURE_REMOVED}"
        instance = self._acquire()
        if instance is None:
            return 429
        connection = http.client.HTTPConnection(
            "127.0.0.1", instance.port, timeout=self.behaviour.request_timeout
        )
        try:
            connection.request(method, path, body, passed)
            return connection.getresponse().status
        except TimeoutError:
            return 504
        except (OSError, http.client.HTTPException):
            return 503  # the instance has ended
        finally:
            connection.close()
            self._release(instance)

    def _admit(self, authorization: str) -> tuple[int, str]:
        """(the status of a refusal, or 0; the token)."""
        from google.auth import exceptions, jwt

        kind, _, token = authorization.partition(" ")
        if kind.lower() != "bearer":
            return 403, ""  # anonymous
        try:
            claims = jwt.decode(
                token, certs=self._certificates(), audience=self._audience or self.url
            )
        except (ValueError, exceptions.GoogleAuthError):
            return 401, ""
        return (0, token) if claims.get("email") == self._invoker else (403, "")

    def close(self) -> None:
        """Kill all instances."""
        self._server.shutdown()
        self._server.server_close()
        self._serving.join()
        for instance in self.instances:
            self.shut_down(instance, kill=True)
        for thread in self._threads:
            thread.join()
        for instance in self._ended:
            instance._log.close()


def _handler(service: CloudRun) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
            status = service.answer(self.command, self.path, headers, body)
            service.answers.append(status)
            with contextlib.suppress(OSError):  # the client has disconnected
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

        def log_message(self, *args: object) -> None: ...

    return Handler


@contextmanager
def start_cloud_run(command: Sequence[str], **options: Any) -> Iterator[CloudRun]:
    """A service on a free port of loopback; its first request starts the first instance.

    ``options``: see :class:`CloudRun`; the rest are switches of :class:`CloudRunBehaviour`.
    """
    service = CloudRun(command, **options)
    try:
        yield service
    finally:
        service.close()
