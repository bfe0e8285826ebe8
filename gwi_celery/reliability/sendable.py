"""Refuses, before anything is published, what every worker would refuse on arrival.

Otherwise ``.delay()`` would return, and the message would go to the dead letter.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from functools import cache, wraps
from typing import Any

from amqp.basic_message import Message as BasicMessage
from celery.app.amqp import AMQP
from celery.app.base import Celery
from celery.app.task import Task
from kombu import Producer, compression

from gwi_celery.errors import InvalidCall
from gwi_celery.reliability import fields
from gwi_celery.text import shown

#: Longest time from now, seconds: about 317 years, so that no date leaves Python's range. Workers allow
#: less (``fields``).
_LONGEST = 1e10

#: Field of a message -> the call's option that sets it, if that has another name.
_OPTIONS = {
    "id": "task_id",
    "eta": "eta or countdown",
    "group": "group_id",
    "timelimit": "time_limit or soft_time_limit",
    "callbacks": "link",
    "errbacks": "link_error",
}


def check_messages(amqp: Any) -> None:
    """Have the messages of all calls through this ``app.amqp`` checked. Safe to call twice."""
    for protocol, make in amqp.task_protocols.items():
        if not hasattr(make, "_gwi_checks"):
            amqp.task_protocols[protocol] = _checked(make)
    vars(amqp).pop("create_task_message", None)  # Celery caches one of them there


def _checked(make: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(make)
    def message_of(task_id: Any, name: str, *args: Any, **options: Any) -> Any:
        message = make(task_id, name, *args, **options)
        # Celery adds these to the message only when it sends it.
        headers = {**message.headers, **(options.get("headers") or {})}
        properties = {**message.properties, "priority": options.get("priority")}
        body = message.body
        protocol_1 = isinstance(body, Mapping)
        for found, kinds in (
            (body if protocol_1 else headers, fields.HEADERS),
            (properties, fields.PROPERTIES),
            (body if protocol_1 else body[2], fields.CALLBACKS),
        ):
            wrong = fields.first_wrong(found, kinds)
            if wrong is not None:
                field, kind = wrong
                raise InvalidCall(
                    f"{name}: {_OPTIONS.get(field, field)} is not {kind.what}, so every worker would "
                    "refuse the message: nothing was sent"
                )
        return message

    message_of._gwi_checks = True  # type: ignore[attr-defined]
    return message_of


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raises InvalidCall for options of a call that make Celery raise an error which explains nothing."""
    for option in ("countdown", "expires"):
        seconds = options.get(option)
        if seconds is None or (option == "expires" and isinstance(seconds, (str, date))):
            continue
        good = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
        if not good or not -_LONGEST <= seconds <= _LONGEST:  # NaN is in no range
            more = ", or a datetime" if option == "expires" else ", or eta= a datetime"
            raise InvalidCall(
                f"{name}: {option} is {shown(seconds)}: pass the number of seconds from now{more}"
            )
    for option in ("eta", "expires"):
        when = options.get(option)
        written = isinstance(when, str) and not fields.HEADERS[option].takes(when)
        if written or (option == "eta" and not isinstance(when, (str, date, type(None)))):
            raise InvalidCall(
                f"{name}: {option} is {shown(when)}: pass a datetime, or {fields.HEADERS[option].what}"
            )
    packed = options.get("compression")
    try:
        packed is None or compression.get_encoder(packed)
    except (KeyError, TypeError):
        raise InvalidCall(
            f"{name}: no compression is registered as {packed!r:.100}: pass 'gzip', or leave it out"
        ) from None


def check_reliable(name: str, options: Mapping[str, Any]) -> None:
    """Raises InvalidCall for options that break a reliable task's promise, or that are misspelt.

    Other options that Celery doesn't know are left to routers, or become properties of the message.
    """
    serializer = options.get("serializer")
    if serializer not in (None, "json", "application/json"):
        raise InvalidCall(
            f"{name}: serializer is {shown(serializer)}: a reliable task's messages are JSON, as "
            "duplicates are recognised by their payload; leave it out"
        )
    stamps: Iterable[Any] = options.get("stamped_headers") or ()
    for option in options.keys() - _known_options() - set(stamps):
        meant = difflib.get_close_matches(option, _known_options(), n=1, cutoff=0.85)
        if meant:
            raise InvalidCall(
                f"{name}: there is no option {option!r}, so it would have no effect: did you mean "
                f"{meant[0]!r}?"
            )


@cache
def _known_options() -> frozenset[str]:
    """The options of a call that Celery, Kombu and this package know."""
    takers = (Celery.send_task, Task.apply_async, AMQP.as_task_v2, Producer.publish)
    names = {name for taker in takers for name in inspect.signature(taker).parameters}
    properties = {name for name, _ in BasicMessage.PROPERTIES}
    ours = {"idempotency_key", "deadline", "labels", "queue"}
    return frozenset(names | properties | ours)
