"""What a queue's publishers may ask for: one record for each queue (docs/security.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any, Final

from gwi_celery import options
from gwi_celery.errors import ConfigurationError
from gwi_celery.headers import DEADLINE_HEADER, MAX_RETRIES_HEADER, RUN_HEADER, TENANT_HEADER

#: A message as Celery makes it, and the plain job format.
CELERY, PLAIN = "celery", "plain"

#: Celery's own tasks. A plain job never reaches them, whatever a queue's rights are.
BUILT_IN: Final = "celery."


@dataclass(frozen=True)
class Rights:
    """What a message of one queue may ask for.

    A *foreign* publisher is one of plain jobs, or of Celery messages without what our transport gives
    them; with signing keys, one whose message is not signed.
    """

    #: Names of tasks, with ``*`` and ``?``. Applies to all publishers.
    tasks: tuple[str, ...] = ("*",)
    #: ``celery``, ``plain``. Copies that a worker makes of plain jobs are always accepted.
    formats: tuple[str, ...] = (CELERY, PLAIN)
    #: Headers of this package that a foreign publisher may set.
    headers: tuple[str, ...] = (TENANT_HEADER, RUN_HEADER, DEADLINE_HEADER, MAX_RETRIES_HEADER)
    #: Exchanges and queues to which a message's callbacks, errbacks, chain and chord may be sent.
    #: None: for the app's own messages any, for a foreign publisher's none.
    exchanges: tuple[str, ...] | None = None
    #: Whether an unsigned message is refused. None: yes, if there are signing keys.
    signed: bool | None = None

    def may_ask_for(self, task: str) -> bool:
        return any(fnmatchcase(task, pattern) for pattern in self.tasks)


def read_rights(given: Any, where: str) -> dict[str, Rights]:
    """Rights by queue, from a setting (a mapping, or its JSON). Raises ConfigurationError."""
    by_queue = options.MAPPING.convert(given, where)
    known = {field.name for field in fields(Rights)}
    made = {}
    for queue, given_rights in by_queue.items():
        place = f"{where}[{queue!r}]"
        if isinstance(given_rights, Rights):
            made[queue] = given_rights
            continue
        if not isinstance(given_rights, Mapping):
            raise ConfigurationError(f"{place} takes a mapping of {', '.join(sorted(known))}")
        options.check_known(given_rights, known, f"{place} has ")
        values = {
            name: _SIGNED.convert(value, f"{place}.{name}")
            if name == "signed"
            else (_EXCHANGES if name == "exchanges" else _NAMES).convert(value, f"{place}.{name}")
            for name, value in given_rights.items()
        }
        for wrong in {*values.get("formats", ())} - {CELERY, PLAIN}:
            raise ConfigurationError(
                f"{place}.formats has {wrong!r}; it takes {CELERY} and {PLAIN}"
            )
        made[queue] = Rights(**values)
    return made


_NAMES = options.TEXTS.called("a list of texts")
_EXCHANGES = options.optional(_NAMES)
_SIGNED = options.optional(options.BOOLEAN)

_DEFAULT: Final = Rights()
#: Stands for all queues that have no rights of their own.
ANY_QUEUE: Final = "*"


def rights_of(by_queue: Mapping[str, Rights], queue: str) -> Rights:
    return by_queue.get(queue) or by_queue.get(ANY_QUEUE) or _DEFAULT
