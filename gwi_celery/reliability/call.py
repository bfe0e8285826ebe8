"""One call of a reliable task: whose it is, and what it is the same as. Pure functions.

Ids come from the call's bound arguments, positional ones too, else from its headers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gwi_celery.errors import ConflictingIds, InvalidCall, MissingTenant, NotSerializable
from gwi_celery.ids import fingerprint
from gwi_celery.reliability.options import Reliable
from gwi_celery.stores.base import JobRef, LockRef
from gwi_celery.transport.headers import (
    KEY_HEADER,
    REDRIVE_HEADER,
    RUN_HEADER,
    TENANT_HEADER,
)


@dataclass(frozen=True)
class Call:
    """A call, understood."""

    task: str
    tenant: str
    run: str | None
    job: JobRef
    lock: LockRef
    arguments: Mapping[str, Any]

    def fingerprint(self) -> str:
        """Digest of the payload, whichever way the arguments were passed."""
        try:
            return fingerprint(self.arguments)
        except (TypeError, ValueError) as exc:
            raise NotSerializable(f"the arguments of {self.task} have no JSON form: {exc}") from exc


def understand(
    function: Callable[..., Any],
    task: str,
    options: Reliable,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    headers: Mapping[str, Any],
    task_id: str,
) -> Call:
    """Find tenant, run and keys of a call.

    Raises MissingTenant, ConflictingIds, InvalidCall.
    """
    arguments = bind(function, args, filled(function, options, args, kwargs, headers))
    tenant = _id(task, "tenant", options.tenant, TENANT_HEADER, arguments, headers)
    if tenant is None:
        raise MissingTenant(
            f"{task} was called without a tenant: pass {options.tenant}=..., or "
            f"headers={{{options.tenant!r}: ...}}"
        )
    run = _id(task, "run", options.run, RUN_HEADER, arguments, headers)
    key = _key(task, options, arguments, headers, run, task_id)
    job = JobRef(tenant, task, key)
    return Call(task, tenant, run, job, _lock(task, options, arguments, run, job), arguments)


def bind(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments by name; ``*args`` and ``**kwargs`` taken apart where names are known."""
    try:
        signature = inspect.signature(function)
        bound = signature.bind_partial(*args, **kwargs).arguments
    except (TypeError, ValueError):
        # Wrong arguments: Celery's own check, or the call itself, says so better than we could.
        return {**{f"*{i}": value for i, value in enumerate(args)}, **kwargs}
    named: dict[str, Any] = {}
    for name, value in bound.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            named.update({f"*{i}": item for i, item in enumerate(value)})
        else:
            named[name] = value
    return named


def filled(
    function: Callable[..., Any],
    options: Reliable,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    headers: Mapping[str, Any],
) -> dict[str, Any]:
    """``kwargs``, and the tenant and run that only the headers name, where the function takes them.

    A call by headers alone (a plain job, or ``send_task``) is so the same job as one by arguments.
    """
    arguments = dict(kwargs)
    try:
        signature = inspect.signature(function)
        bound = signature.bind_partial(*args, **kwargs).arguments
    except (TypeError, ValueError):
        return arguments  # the call itself says what is wrong
    for name, own_header in ((options.tenant, TENANT_HEADER), (options.run, RUN_HEADER)):
        parameter = signature.parameters.get(name)
        if parameter is None or name in bound or parameter.kind not in _BY_NAME:
            continue
        value = headers.get(name, headers.get(own_header))
        if value is not None:
            arguments[name] = value
    return arguments


_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def submission(task_id: str, headers: Mapping[str, Any]) -> str:
    """Names the submission: the task id, and which redrive of it, if it came from a dead letter."""
    redrive = headers.get(REDRIVE_HEADER)
    return f"{task_id}/{redrive}" if redrive else task_id


def _id(
    task: str,
    what: str,
    name: str,
    own_header: str,
    arguments: Mapping[str, Any],
    headers: Mapping[str, Any],
) -> str | None:
    found: dict[str, str] = {}
    for place, value in (
        (f"argument {name}", arguments.get(name)),
        (f"header {name}", headers.get(name)),
        (f"header {own_header}", headers.get(own_header)),
    ):
        if value is None:
            continue
        if not isinstance(value, str):
            raise InvalidCall(
                f"{task}: the {what} in its {place} is {value!r}, a {type(value).__name__}: "
                f"pass it as text, so that str({value!r}) and {value!r} can't be two {what}s"
            )
        if not value.strip():
            if what == "tenant":
                raise MissingTenant(f"{task}: the tenant in its {place} is empty: pass one")
            raise InvalidCall(
                f"{task}: the {what} in its {place} is empty: pass one, or none at all"
            )
        found[place] = value
    if len(set(found.values())) > 1:
        raise ConflictingIds(
            f"{task}: two different {what}s in one call ("
            + ", ".join(f"{place}: {value!r}" for place, value in found.items())
            + "): pass it in one place"
        )
    return next(iter(found.values()), None)


def _key(
    task: str,
    options: Reliable,
    arguments: Mapping[str, Any],
    headers: Mapping[str, Any],
    run: str | None,
    task_id: str,
) -> str:
    given = headers.get(KEY_HEADER)
    if given is not None:
        return "key:" + _text(given, f"{task}: the idempotency key")
    if callable(options.idempotency):
        return "key:" + _text(
            _apply(options.idempotency, arguments, f"{task}: Reliable(idempotency=...)"),
            f"{task}: what Reliable(idempotency=...) gave",
        )
    return f"run:{run}" if run is not None else f"task:{task_id}"


def _lock(
    task: str, options: Reliable, arguments: Mapping[str, Any], run: str | None, job: JobRef
) -> LockRef:
    if callable(options.lock):
        key = _apply(options.lock, arguments, f"{task}: Reliable(lock=...)")
        return LockRef(job.tenant, ("key", _text(key, f"{task}: what Reliable(lock=...) gave")))
    if options.lock is None or run is None:
        return LockRef(job.tenant, ("job", task, job.key))
    if options.lock == "type":
        return LockRef(job.tenant, ("type", task, run))
    return LockRef(job.tenant, ("run", run))


def _apply(function: Callable[..., Any], arguments: Mapping[str, Any], what: str) -> Any:
    try:
        return function(arguments)
    except KeyError as exc:
        raise InvalidCall(f"{what} needs the argument {exc}, which this call doesn't have") from exc


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidCall(f"{what} is {value!r}: it must be a text, and not empty")
    return value
