"""A reliable task's options: ``@app.task(base=ReliableTask, reliable=Reliable(...))``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, fields
from typing import Any, Final, Literal

from gwi_celery.errors import ConfigurationError
from gwi_celery.options import LONGEST
from gwi_celery.reliability.fields import is_number
from gwi_celery.reliability.limits import Limit, check_limits

#: Gets the call's arguments by name, and returns a key.
KeyFunction = Callable[[Mapping[str, Any]], str]
Key = Literal["run", "payload"] | KeyFunction


@dataclass(frozen=True)
class Reliable:
    """Options of one reliable task. None means the setting's value."""

    #: Name of the argument (or header) that holds the tenant's id.
    tenant: str = "tenant_id"
    #: Name of the argument (or header) that holds the run's id.
    run: str = "run_id"
    #: What excludes other jobs of the tenant while this one runs: "run" (the same run, whatever
    #: the task), "type" (the same run of this task), a function of the arguments, or None (no other
    #: job; even then two attempts of one job never run together).
    lock: Literal["run", "type"] | KeyFunction | None = "run"
    #: What makes two calls the same job: "run" (this task, tenant and run), "payload" (and also the
    #: same arguments: for a fan-out of one task within a run), or a function of the arguments.
    #: ``apply_async(idempotency_key=...)`` takes precedence.
    key: Key = "run"
    #: Seconds for which an outcome answers later duplicates.
    result_ttl: float | None = None
    #: Seconds until a silent holder's lock may be taken over.
    lock_ttl: float | None = None
    #: Seconds from the call after which the job fails with DeadlineExceeded.
    deadline: float | None = None
    #: Times the job may take its worker down before it fails for good.
    max_crashes: int | None = None
    #: Largest result, bytes of JSON.
    max_result_bytes: int | None = None
    #: Largest step, cursor or value, bytes of JSON.
    max_checkpoint_bytes: int | None = None
    #: Whether the job is handed back at its next step when the worker stops.
    interrupt_on_shutdown: bool | None = None
    #: Limits that hold across all workers; a job waits for a place of each.
    #: (Celery's ``rate_limit`` is each worker's own.)
    limits: Sequence[Limit] = ()
    #: The former name of ``key``.
    idempotency: InitVar[Key | None] = None

    def __post_init__(self, idempotency: Key | None) -> None:
        if idempotency is not None:
            if self.key != "run":
                raise ConfigurationError(
                    "Reliable(key=..., idempotency=...): these are two names of one option; keep key"
                )
            object.__setattr__(self, "key", idempotency)
        if not (self.lock in ("run", "type", None) or callable(self.lock)):
            raise ConfigurationError(
                f"Reliable(lock={self.lock!r}): use 'run', 'type', None, or a function of the "
                "arguments that returns a text"
            )
        if not (self.key in ("run", "payload") or callable(self.key)):
            raise ConfigurationError(
                f"Reliable(key={self.key!r}): use 'run', 'payload', or a function of the "
                "arguments that returns a text"
            )
        object.__setattr__(self, "limits", check_limits(self.limits))
        for name in ("result_ttl", "lock_ttl", "deadline"):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and 0 < value <= LONGEST):
                raise ConfigurationError(
                    f"Reliable({name}={value!r}): must be a number of seconds above 0, and at most "
                    f"{LONGEST:.0f}"
                )
        for name in ("max_crashes", "max_result_bytes", "max_checkpoint_bytes"):
            value = getattr(self, name)
            if value is not None and not (
                is_number(value) and value >= 0 and isinstance(value, int)
            ):
                raise ConfigurationError(
                    f"Reliable({name}={value!r}): must be a whole number, 0 or more"
                )


#: Options that are misplaced on a task's class. ("run" is no such name: it is the task's function.)
OPTIONS: Final = tuple(
    name for name in (*(f.name for f in fields(Reliable)), "idempotency") if name != "run"
)


def is_misplaced(name: str, attributes: Mapping[str, Any]) -> bool:
    """Whether an option of Reliable was given to the decorator or the class, where it has no effect.

    A class may use such a name for something else, such as a method or a property.
    """
    if name not in attributes:
        return False
    decorated = bool(attributes.get("_decorated"))
    return decorated or isinstance(attributes[name], (type(None), bool, int, float, str))


def limits_by_task(tasks: Mapping[str, Any]) -> Iterator[tuple[str, Limit]]:
    """(task, limit) of all reliable tasks among these."""
    for name, task in tasks.items():
        options = getattr(task, "reliable", None)
        if isinstance(options, Reliable):
            for limit in options.limits:
                yield name, limit


def check_shared(task: str, limits: Sequence[Limit], tasks: Mapping[str, Any]) -> None:
    """Raises ConfigurationError for a limit to which another of the tasks gives another number.

    Which of them holds would depend on whose job asks. Names that functions return are not known here.
    """
    if not limits:
        return
    for other, limit in limits_by_task(tasks):
        for own in limits:
            if other != task and own.contradicts(limit):
                raise ConfigurationError(
                    f"{task}: Limit({own.name!r}) has {own.allows}, and in {other} {limit.allows}: tasks "
                    "that name the same limit share it, so give it one number, or two names"
                )


def first(option: Any, setting: Any) -> Any:
    """The task's option, or the setting if that is None."""
    return setting if option is None else option
