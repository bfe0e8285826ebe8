"""Checks a task's options, from its decorator, ``task_annotations`` or ``task_...`` settings.

Celery reads most of them late: when the worker starts, which then ends with a traceback, at each call, or
when a job fails for the first time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from celery.utils.imports import symbol_by_name
from celery.utils.time import rate
from kombu.serialization import prepare_accept_content, registry

from gwi_celery.errors import ConfigurationError, InvalidCall
from gwi_celery.reliability import fields
from gwi_celery.reliability.fields import Kind
from gwi_celery.reliability.limits import check_arguments
from gwi_celery.reliability.options import OPTIONS, Reliable, check_shared, is_misplaced
from gwi_celery.reliability.sendable import check_options
from gwi_celery.text import safe_error


def _read_by(read: Callable[[Any], Any]) -> Callable[[Any], bool]:
    """Whether ``read``, which Celery calls with the option, gives 0 or more."""

    def takes(value: Any) -> bool:
        try:
            number = read(value)
        except (ValueError, TypeError, KeyError, OverflowError):
            return False
        return fields.is_number(number) and bool(number >= 0)

    return takes


def _seconds(value: Any) -> bool:
    return fields.HEADERS["timelimit"].takes((value, value))


def _count(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


def _errors(value: Any) -> bool:
    classes = value if isinstance(value, (list, tuple, set, frozenset)) else (None,)
    return all(isinstance(cls, type) and issubclass(cls, BaseException) for cls in classes)


def _errors_or_one(value: Any) -> bool:
    return _errors(value) or _errors((value,))


def _queue(value: Any) -> bool:
    """Whether it is a queue's name, or Kombu's Queue."""
    name = getattr(value, "name", value)
    return isinstance(name, str) and bool(name)


_SECONDS = Kind("a number of seconds, 0 or more", _seconds)
_LIST = "a list of exception classes, such as (OSError,)"

#: Option -> what it may be, besides None.
KINDS: Final[Mapping[str, Kind]] = {
    "rate_limit": Kind(
        "a rate such as '10/s', '100/m' or '5/h', or a number a second", _read_by(rate)
    ),
    "time_limit": _SECONDS,
    "soft_time_limit": _SECONDS,
    "max_retries": Kind("a whole number, 0 or more (None: without end)", _count),
    "default_retry_delay": _SECONDS,
    "retry_backoff": Kind("True, or a number of seconds", _read_by(float)),
    "retry_backoff_max": Kind("a whole number of seconds", _read_by(int)),
    "retry_kwargs": Kind("a dict of retry()'s options", lambda value: isinstance(value, dict)),
    "autoretry_for": Kind(_LIST, _errors),
    "dont_autoretry_for": Kind(_LIST, _errors),
    "throws": Kind(_LIST, _errors_or_one),
    "priority": fields.PROPERTIES["priority"],
    "ignore_result": fields.HEADERS["ignore_result"],
    "queue": Kind("the name of a queue", _queue),
    "routing_key": Kind("a text", lambda value: isinstance(value, str)),
}


#: Options that are checked as those of a call are.
_CALL_OPTIONS: Final = ("expires", "compression")
#: Settings that hold for all tasks; Celery passes them to the pool.
_SETTINGS: Final = ("task_time_limit", "task_soft_time_limit")


def wrong(name: str, options: Mapping[str, Any]) -> str | None:
    """Why a task of this name can't have these options, by their names; None if it can."""
    for option, kind in KINDS.items():
        value = options.get(option)
        if value is not None and not kind.takes(value):
            return f"{name}: {option}={value!r:.100} is not {kind.what}"
    soft, hard = options.get("soft_time_limit"), options.get("time_limit")
    if soft and hard and soft > hard:
        return (
            f"{name}: soft_time_limit={soft} is above time_limit={hard}, so it would never be "
            "reached: make it the smaller one"
        )
    return None


def check(task: Any, conf: Any) -> None:
    """Raises ConfigurationError for the first option of the task (or its class) that can't work."""
    why = wrong(task.name, {option: getattr(task, option, None) for option in KINDS})
    if why is not None:
        raise ConfigurationError(why)
    try:
        check_options(task.name, {name: getattr(task, name, None) for name in _CALL_OPTIONS})
    except InvalidCall as exc:
        raise ConfigurationError(str(exc)) from None
    _check_serializer(task, conf.accept_content)


#: Attributes that the promise needs: name -> (value, what would happen otherwise).
_REQUIRED: dict[str, tuple[Any, str]] = {
    "acks_late": (True, "a worker that is killed would lose the job"),
    "reject_on_worker_lost": (True, "a pool process that is killed would lose the job"),
    "acks_on_failure": (False, "a failed job would not be kept in the dead letter"),
    "acks_on_timeout": (True, "a job past its hard time limit would run again, although it failed"),
    "retry_on_worker_lost": (False, "a killed job's retry would count as a new submission"),
    "serializer": ("json", "duplicates could not be recognised by their payload"),
}


def check_reliable(task: Any, app: Any) -> None:
    """As :func:`check`, and what a reliable task promises; ``task`` is its class."""
    if not isinstance(task.reliable, Reliable):
        raise ConfigurationError(
            f"{task.name}: reliable={task.reliable!r} is not a Reliable(...) object"
        )
    for attribute, (needed, otherwise) in _REQUIRED.items():
        value = getattr(task, attribute, needed)
        if value != needed:
            raise ConfigurationError(
                f"{task.name}: {attribute}={value!r} breaks the promise of a reliable task: "
                f"{otherwise}. Leave it out ({needed!r} is set for you), or use a plain task"
            )
    check(task, app.conf)
    misplaced = [name for name in OPTIONS if is_misplaced(name, vars(task))]
    if misplaced:
        given = ", ".join(f"{name}={vars(task)[name]!r}" for name in misplaced)
        raise ConfigurationError(
            f"{task.name}: {given} would be ignored there: pass "
            f"reliable=Reliable({given}) to the decorator (or set it in the class)"
        )
    options = task.reliable
    check_arguments(task.name, options.limits, task.run, (options.tenant, options.run))
    check_shared(task.name, options.limits, app._tasks)


def _check_serializer(task: Any, accepted: Any) -> None:
    name = task.serializer
    if name is None:
        return
    if name not in registry.name_to_type and name not in registry.type_to_name:
        raise ConfigurationError(
            f"{task.name}: no serializer is registered as {name!r:.100}: leave it out, for JSON"
        )
    kind = registry.name_to_type.get(name, name)
    if accepted is not None and kind not in prepare_accept_content(accepted):
        raise ConfigurationError(
            f"{task.name}: serializer={name!r} is not in app.conf.accept_content, so every worker "
            "would refuse its messages: leave it out, for JSON"
        )


#: Option -> what it names, for messages. Celery imports both when a worker starts.
_IMPORTED: Final[Mapping[str, Kind]] = {
    "Strategy": Kind("a function", callable),
    "Request": Kind("a class", lambda found: isinstance(found, type)),
}


def _check_imported(task: Any) -> None:
    for option, kind in _IMPORTED.items():
        named = getattr(task, option)
        try:
            found = symbol_by_name(named)
        except Exception as exc:  # a module may raise anything while it is imported
            raise ConfigurationError(
                f"{task.name}: {option}={named!r:.100} can't be imported ({safe_error(exc, 300)}): write "
                "'package.module:Name', or leave it out"
            ) from exc
        if not kind.takes(found):
            raise ConfigurationError(
                f"{task.name}: {option}={named!r:.100} is not {kind.what}: leave it out"
            )


def check_all(app: Any) -> None:
    """Check all tasks of the app, what they import, and the settings that stand for their options.

    Raises ConfigurationError.
    """
    for setting in _SETTINGS:
        value = app.conf[setting]
        if value is not None and not _SECONDS.takes(value):
            raise ConfigurationError(f"app.conf.{setting} is {value!r:.100}, not {_SECONDS.what}")
    for task in app.tasks.values():
        check(task, app.conf)
        _check_imported(task)
