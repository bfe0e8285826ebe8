"""Resolves a call of a reliable task to its tenant, run, job and lock.

Ids come from the call's bound arguments, including positional ones, else from its headers.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from celery.app.task import Context

from gwi_celery import beat
from gwi_celery.errors import ConflictingIds, InvalidCall, MissingTenant, NotSerializable
from gwi_celery.headers import (
    DEADLINE_HEADER,
    DUE_HEADER,
    KEY_HEADER,
    LABELS_HEADER,
    PREFIX,
    REDRIVE_HEADER,
    REPLAY_HEADER,
    RUN_HEADER,
    TENANT_HEADER,
)
from gwi_celery.reliability import fields
from gwi_celery.reliability.limits import limits_of
from gwi_celery.reliability.options import Reliable
from gwi_celery.reliability.payload import Payload
from gwi_celery.stores.limits import LimitRef
from gwi_celery.stores.values import JobRef, LockRef
from gwi_celery.text import raw, shown

#: Longest tenant, run or key, bytes: they are stored in records along with other fields.
_LONGEST = 10_000


@dataclass(frozen=True)
class Call:
    """A resolved call."""

    task: str
    tenant: str
    run: str | None
    job: JobRef
    lock: LockRef
    #: By name, as they were passed.
    arguments: Mapping[str, Any]
    payload: Payload
    limits: Sequence[LimitRef] = ()

    def fingerprint(self) -> str:
        """Digests of the payload's forms: two payloads are the same if they share one."""
        try:
            return self.payload.fingerprint()
        except (TypeError, ValueError) as exc:
            raise NotSerializable(f"the arguments of {self.task} have no JSON form: {exc}") from exc


def resolve_call(
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
    payload = Payload.of(function, args, with_ids(function, options, args, kwargs, headers))
    arguments = payload.named
    tenant = _id(task, "tenant", options.tenant, TENANT_HEADER, arguments, headers)
    if tenant is None:
        raise MissingTenant(
            f"{task} was called without a tenant: pass {options.tenant}=..., or "
            f"headers={{{options.tenant!r}: ...}}"
        )
    run = _id(task, "run", options.run, RUN_HEADER, arguments, headers)
    key = _key(task, options, payload, headers, run, task_id)
    job = JobRef(tenant, task, key)
    lock = _lock(task, options, arguments, run, job)
    ids = {options.tenant: tenant} | ({} if run is None else {options.run: run})
    limits = limits_of(task, options.limits, function, {**arguments, **ids})
    return Call(task, tenant, run, job, lock, arguments, payload, limits)


def headers_of(
    task: str,
    headers: Mapping[str, Any] | None,
    idempotency_key: str | None,
    deadline: float | None,
    options: Reliable | None = None,
    labels: object = None,
) -> dict[str, Any]:
    """The headers of a call, from its own options and the task's. Raises InvalidCall.

    Args:
        options: The task's. None for a plain task, or one that isn't registered here.
    """
    sent = dict(headers or {})
    if labels is not None:
        sent[LABELS_HEADER] = dict(labels) if isinstance(labels, Mapping) else labels
    if sent.get(LABELS_HEADER) is not None and not fields.labels(sent[LABELS_HEADER]):
        raise InvalidCall(
            f"{task}: labels= takes at most {fields.MOST_LABELS} texts by name, such as "
            f"{{'customer': '7'}}: names of at most {fields.LABEL_NAME} characters without '=', and "
            f"values of at most {fields.LABEL_VALUE}"
        )
    if idempotency_key is not None:
        sent[KEY_HEADER] = given_key(task, idempotency_key)
    if deadline is not None:
        if not fields.is_number(deadline):
            raise InvalidCall(
                f"{task}: the deadline is {shown(deadline)}: pass a number, the seconds from now"
            )
        sent[DEADLINE_HEADER] = time.time() + deadline
    elif options is not None and options.deadline is not None:
        sent.setdefault(DEADLINE_HEADER, time.time() + options.deadline)
    due = beat.due()
    if due is not None:
        sent.setdefault(DUE_HEADER, due)
    return sent


def with_ids(
    function: Callable[..., Any],
    options: Reliable,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    headers: Mapping[str, Any],
) -> dict[str, Any]:
    """``kwargs``, with the tenant and run added that only the headers name, if the function takes them.

    So a call that names them in headers is the same job as one that passes them as arguments.
    """
    arguments = dict(kwargs)
    try:
        signature = inspect.signature(function)
        bound = signature.bind_partial(*args, **kwargs).arguments
    except (TypeError, ValueError):
        return arguments  # the call itself will report what is wrong
    for name, own_header in ((options.tenant, TENANT_HEADER), (options.run, RUN_HEADER)):
        parameter = signature.parameters.get(name)
        if parameter is None or name in bound or parameter.kind not in _BY_NAME:
            continue
        value = headers.get(name, headers.get(own_header))
        if value is not None:
            arguments[name] = value
    return arguments


_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def callers_headers(message: Mapping[str, Any], options: Reliable) -> dict[str, Any]:
    """The caller's headers, out of all fields of the message.

    Monitoring libraries put their own headers into an entry named "headers", and expect to read them in
    ``request.headers``. So that entry's content is merged with the caller's headers, except for this
    package's names: those are not read from there when a call is made.
    """
    given = Context({name: v for name, v in message.items() if name != "headers"}).headers or {}
    nested = message["headers"]
    if not isinstance(nested, Mapping):
        return {**given, "headers": nested}
    ours = {options.tenant, options.run}
    theirs = {n: v for n, v in nested.items() if n not in ours and not n.startswith(PREFIX)}
    return {**theirs, **given, "headers": nested}


def submission(task_id: str, headers: Mapping[str, Any]) -> str:
    """The submission's id: the task id, with its redrive if it came from a dead letter."""
    redrive = headers.get(REDRIVE_HEADER)
    return f"{task_id}/{redrive}" if redrive else task_id


@contextmanager
def for_logs() -> Iterator[None]:
    """Leave arguments' values out of errors, which a worker logs and stores in the dead letter."""
    try:
        yield
    except ConflictingIds as exc:
        raise ConflictingIds(exc.public) from None


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
                f"{task}: the {what} in its {place} is a {type(value).__name__}: pass it as text, so "
                f"that 1 and '1' can't be two {what}s"
            )
        if not value.strip():
            if what == "tenant":
                raise MissingTenant(f"{task}: the tenant in its {place} is empty: pass one")
            raise InvalidCall(
                f"{task}: the {what} in its {place} is empty: pass one, or none at all"
            )
        found[place] = _bounded(value, f"{task}: the {what} in its {place}")
    if len(set(found.values())) > 1:
        ids = ", ".join(f"{place}: {value!r}" for place, value in found.items())
        raise ConflictingIds(
            *(
                f"{task}: two different {what}s in one call ({places}): pass it in one place"
                for places in (ids, ", ".join(found))
            )
        )
    return next(iter(found.values()), None)


def _key(
    task: str,
    options: Reliable,
    payload: Payload,
    headers: Mapping[str, Any],
    run: str | None,
    task_id: str,
) -> str:
    given = headers.get(KEY_HEADER)
    if given is not None:
        key = "key:" + given_key(task, given)
    elif callable(options.key):
        key = "key:" + _text(
            _apply(options.key, payload.named, f"{task}: Reliable(key=...)"),
            f"{task}: what Reliable(key=...) gave",
        )
    elif options.key == "payload":
        # A digest has a fixed length: it can't be taken for a part of the run's id.
        key = f"payload:{payload.key()} run:{run or ''}"
    elif run is not None:
        key = f"run:{run}"
    else:
        replay = headers.get(REPLAY_HEADER) or {}
        return f"task:{replay.get('task_id') or task_id}"
    due = headers.get(DUE_HEADER)
    if due is None:
        return key
    # The time contains no space, so it can't be taken for a part of the key.
    return f"due:{_text(due, f'{task}: the header {DUE_HEADER}')} {key}"


def given_key(task: str, key: Any) -> str:
    """Validate a key given with a call. Raises InvalidCall unless it is a non-empty text."""
    return _text(key, f"{task}: the idempotency key")


def _lock(
    task: str, options: Reliable, arguments: Mapping[str, Any], run: str | None, job: JobRef
) -> LockRef:
    if callable(options.lock):
        key = _apply(options.lock, arguments, f"{task}: Reliable(lock=...)")
        return LockRef(job.tenant, ("key", _text(key, f"{task}: what Reliable(lock=...) gave")))
    if options.lock is None or run is None:
        return own_lock(job)
    if options.lock == "type":
        return LockRef(job.tenant, ("type", task, run))
    return LockRef(job.tenant, ("run", run))


def own_lock(job: JobRef) -> LockRef:
    """A lock that excludes no other job."""
    return LockRef(job.tenant, ("job", job.task, job.key))


def _apply(function: Callable[..., Any], arguments: Mapping[str, Any], what: str) -> Any:
    try:
        return function(arguments)
    except KeyError as exc:
        raise InvalidCall(f"{what} needs the argument {exc}, which this call doesn't have") from exc


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidCall(f"{what} is {shown(value)}: it must be a text, and not empty")
    return _bounded(value, what)


def _bounded(value: str, what: str) -> str:
    size = len(raw(value))
    if size > _LONGEST:
        raise InvalidCall(
            f"{what} is {size:,} bytes long, and at most {_LONGEST:,} are allowed: use a digest of it"
        )
    return value
