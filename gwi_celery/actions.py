"""What an operator did: who, when, what, to what, from where (``gwi_celery.audit``)."""

from __future__ import annotations

import contextvars
import getpass
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

logger = logging.getLogger("gwi_celery.audit")

#: Seconds that an action is kept: somewhat more than a year.
KEPT: Final = 400 * 86_400.0

_actor: contextvars.ContextVar[str | None] = contextvars.ContextVar("operator", default=None)


@dataclass(frozen=True)
class Action:
    """One action of an operator."""

    #: ``cancel``, ``replay``, ``redrive``, ``force release``, ``purge``, or a tool's own word.
    what: str
    #: The job, lock or queue it was done to.
    target: str
    #: The target's tenant; None for a queue, which all tenants share.
    tenant: str | None
    #: Who did it: what :func:`acting_as` says, else the user of the process.
    who: str
    #: From where: host, process and program.
    where: str
    #: Seconds since the epoch, by the clock of that machine.
    at: float
    details: Mapping[str, Any] = field(default_factory=dict)
    #: Set by the store.
    id: str = ""

    def dumps(self) -> str:
        """ASCII JSON, which can hold any text."""
        fields = {name: value for name, value in vars(self).items() if name != "id"}
        return json.dumps(fields, default=str)

    def log(self) -> None:
        """Log one line of JSON, in which no text can begin a new line."""
        logger.info("operator action %s", self.dumps())

    @classmethod
    def loads(cls, text: str, id: str) -> Action:
        return cls(**json.loads(text), id=id)


@contextmanager
def acting_as(who: str) -> Iterator[None]:
    """Name the person who acts inside the block; for tools that several people use."""
    token = _actor.set(who)
    try:
        yield
    finally:
        _actor.reset(token)


def action(what: str, target: str, tenant: str | None = None, **details: Any) -> Action:
    """An action by the current operator, now."""
    return Action(what, target, tenant, _actor.get() or _user(), _place(), time.time(), details)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user often has no name
        return f"uid {os.getuid()}"


def _place() -> str:
    return f"{socket.gethostname()}:{os.getpid()} {os.path.basename(sys.argv[0] or 'python')}"
