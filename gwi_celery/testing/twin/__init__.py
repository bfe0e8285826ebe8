"""A strict twin of Google Pub/Sub: what its documentation promises, rather than what its emulator does.

A server in its own process, without Java, to which Google's clients and this package connect by
``PUBSUB_EMULATOR_HOST``. It holds pulls and strands what an abandoned one takes, closes streams, applies
filters, forgets what was just created, redelivers early, and refuses what the service refuses: each is a
switch of :class:`Behaviour`, with its source. It counts what would be billed, and can be cut off.

::

    with start_twin(faults=0.01) as twin:
        os.environ.update(twin.environ)
        ...
        print(twin.cost())

By hand: ``python -m gwi_celery.testing.twin --port 8085``.

:mod:`gwi_celery.testing.twin.cloudrun` runs a push service as Cloud Run does.

Left out, and why; what is left out of an API is answered with UNIMPLEMENTED, which says so:

- snapshots, schemas, ingestion, export subscriptions, message transforms, ``SetIamPolicy``, and the REST
  API: neither this package nor Google's own clients need them to run jobs
- acked messages that are retained, so a seek into the past brings none of them: nothing here seeks
- IAM policies that differ by account, and conditions that are evaluated: a test has one caller, and
  :meth:`Twin.deny` denies it a permission
- regions, and quotas of bytes: one process can neither be several regions nor reach such a quota
- the slow start of pushes: each subscription gets ten requests at a time, and pauses after a failure
- storage of what waits for longer than a day, which is billed: runs take minutes
- of Firestore: contention by what is really contended (ABORTED comes by chance, which is stricter);
  transactions that expire, ramp-up, and TTL policies: the proxy would have to keep all documents itself
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from gwi_celery.brokers.pubsub.options import STRICT_HOST
from gwi_celery.gcp.emulators import FIRESTORE_HOST, PUBSUB_HOST
from gwi_celery.testing.emulators import Emulator, free_port, running
from gwi_celery.testing.twin.behaviour import (
    FIRESTORE_LENIENT,
    FIRESTORE_STRICT,
    LENIENT,
    STRICT,
    Behaviour,
    FirestoreBehaviour,
)

__all__ = [
    "FIRESTORE_LENIENT",
    "FIRESTORE_STRICT",
    "LENIENT",
    "STRICT",
    "Behaviour",
    "FirestoreBehaviour",
    "FirestoreTwin",
    "Twin",
    "start_firestore_twin",
    "start_twin",
]

#: The variables that name a twin: Google's own, and for this package that it is no emulator of Google's.
PUBSUB_VARIABLES: tuple[str, ...] = (PUBSUB_HOST, STRICT_HOST)
FIRESTORE_VARIABLES: tuple[str, ...] = (FIRESTORE_HOST,)

_CONTROL = "/gwi.testing.Twin/Control"


class _TwinProcess(Emulator):
    """A twin in its own process. Its verbs raise ValueError for arguments that it doesn't take."""

    def __init__(
        self,
        kind: str,
        variables: tuple[str, ...],
        port: int | None,
        *options: str,
        **switches: Any,
    ) -> None:
        endpoint = f"127.0.0.1:{port or free_port()}"
        command = [sys.executable, "-m", "gwi_celery.testing.twin"]
        command += ["--port", endpoint.rpartition(":")[2], *options]
        command += [f"--set={name}={json.dumps(value)}" for name, value in switches.items()]
        super().__init__(kind, endpoint, command)
        #: The environment variables that switch Google's clients, and this package, to it.
        self.environ = dict.fromkeys(variables, endpoint)

    def _answers(self) -> bool:
        try:
            self._do("cost")
        except grpc.RpcError:
            return False
        return True

    def switch(self, **switches: Any) -> dict[str, Any]:
        """Change switches from now on. Returns the values of all of them."""
        return self._do("switch", **switches)

    def cost(self) -> dict[str, Any]:
        """Calls by name, bytes as they are billed, USD; of Pub/Sub, also how many leases ran out."""
        return self._do("cost")

    def cut_off(self, seconds: float, *, keep: bool = True) -> None:
        """Refuse connections for some seconds; then go on, with its state (``keep``) or without it."""
        self._do("cut_off", seconds=seconds, keep=keep)
        while self._answers():  # until its last answers are out
            time.sleep(0.01)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Accept connections but don't answer."""
        assert self.pid is not None, "start it first"
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def _do(self, verb: str, **arguments: Any) -> dict[str, Any]:
        with grpc.insecure_channel(self.endpoint, [("grpc.enable_http_proxy", 0)]) as channel:
            call = channel.unary_unary(_CONTROL)
            try:
                answer = call(json.dumps({"verb": verb, **arguments}).encode(), timeout=10)
            except grpc.RpcError as exc:
                if exc.code() is grpc.StatusCode.INVALID_ARGUMENT:
                    raise ValueError(exc.details()) from None
                raise
        found: dict[str, Any] = json.loads(answer)
        return found


class Twin(_TwinProcess):
    """A twin of Pub/Sub; its switches are those of :class:`Behaviour`."""

    def __init__(self, port: int | None = None, *, lenient: bool = False, **switches: Any) -> None:
        LENIENT.changed(**switches)  # raises ValueError, before a process is started
        options = ["--lenient"] if lenient else []
        super().__init__("twin", PUBSUB_VARIABLES, port, *options, **switches)

    def reset(self) -> None:
        """Forget everything: topics, subscriptions, costs, denials."""
        self._do("reset")

    def counts(self, subscription: str) -> dict[str, int]:
        """What became of a subscription's messages: delivered, acked, nacked, expired, waiting, ..."""
        return self._do("counts", subscription=subscription)

    def certificates(self) -> dict[str, str]:
        """Key id -> PEM certificate of what signs push tokens; empty before the first token."""
        return self._do("certificates")

    def deny(self, permission: str, resource: str = "*", who: str = "caller") -> None:
        """Answer PERMISSION_DENIED to calls that need ``permission`` on ``resource``, or in that project.

        A caller that has pushes signed as an account needs ``iam.serviceAccounts.actAs`` on
        ``projects/-/serviceAccounts/EMAIL``. ``who="agent"`` is Pub/Sub's service agent: without its
        permissions nothing is dead-lettered.
        """
        self._do("deny", permission=permission, resource=resource, who=who)

    def allow(self, permission: str, resource: str = "*", who: str = "caller") -> None:
        """Undo :meth:`deny`."""
        self._do("allow", permission=permission, resource=resource, who=who)

    def grant(self, role: str, member: str = "agent", condition: str = "") -> None:
        """Bind ``role`` in the policy of every project, until :meth:`reset`.

        ``member`` is ``agent``, or as a policy has it. The twin evaluates no ``condition``: a binding
        that has one gives nothing.
        """
        self._do("grant", role=role, member=member, condition=condition)

    def disable(self, disabled: bool = True) -> None:
        """Switch the project's Pub/Sub API off, or on again."""
        self._do("disable", disabled=disabled)

    def without_project(self, without: bool = True) -> None:
        """Have no project of whatever id, or have them all again."""
        self._do("without_project", without=without)


class FirestoreTwin(_TwinProcess):
    """A twin of Firestore, before an emulator; its switches are those of :class:`FirestoreBehaviour`."""

    def __init__(
        self, emulator: str, port: int | None = None, *, lenient: bool = False, **switches: Any
    ) -> None:
        FIRESTORE_LENIENT.changed(**switches)
        options = [f"--firestore={emulator}", *(["--lenient"] if lenient else [])]
        super().__init__("Firestore twin", FIRESTORE_VARIABLES, port, *options, **switches)


@contextmanager
def start_twin(*, lenient: bool = False, **switches: Any) -> Iterator[Twin]:
    """A running twin on a free port of loopback."""
    with running(Twin(lenient=lenient, **switches)) as twin:
        yield twin


@contextmanager
def start_firestore_twin(
    emulator: str, *, lenient: bool = False, **switches: Any
) -> Iterator[FirestoreTwin]:
    """A running twin of Firestore, a proxy for the emulator at ``emulator`` (``host:port``)."""
    with running(FirestoreTwin(emulator, lenient=lenient, **switches)) as twin:
        yield twin
