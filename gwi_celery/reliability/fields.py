"""The allowed types and ranges of a task message's headers and properties: one table.

Celery trusts its own publisher: a value of another type ends the worker, or fails later and elsewhere.
So messages are checked on arrival, whoever sent them. Fields that are not in the table are unused, and
may hold anything.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from celery.app.task import Context
from celery.utils.time import maybe_iso8601

from gwi_celery.headers import (
    DEADLINE_HEADER,
    DUE_HEADER,
    HOLDS_HEADER,
    KEY_HEADER,
    LABELS_HEADER,
    MAX_RETRIES_HEADER,
    PAYLOAD_HEADER,
    REDRIVE_HEADER,
    REPLAY_HEADER,
    RUN_HEADER,
    TENANT_HEADER,
)
from gwi_celery.options import LONGEST

#: Most retries: a backoff computes 2 ** retries.
MOST_RETRIES: Final = 100_000
#: Most labels of one job, and most characters of a label's name and of its value.
MOST_LABELS: Final = 8
LABEL_NAME: Final = 64
LABEL_VALUE: Final = 256
#: Latest deadline, seconds since the epoch: the year 5138, which every clock can handle.
_LATEST: Final = 1e11


class Kind(NamedTuple):
    """What a field may be, besides absent or null."""

    what: str
    takes: Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _name(value: Any) -> bool:
    """A text without lone surrogates: it is copied into logs, keys and other messages."""
    return isinstance(value, str) and bool(value.strip()) and _encodes(value)


def _encodes(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _number(lowest: float, highest: float) -> Callable[[Any], bool]:
    def takes(value: Any) -> bool:
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        return good and lowest <= value <= highest  # NaN is in no range

    return takes


#: Whether it is a finite number that a float can hold. A bool is not a number.
is_number: Final = _number(-sys.float_info.max, sys.float_info.max)


def _whole(lowest: int, highest: int) -> Kind:
    def takes(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest

    return Kind(f"a whole number from {lowest} to {highest}", takes)


def _time(value: Any) -> bool:
    """A time that Celery's parser accepts, in a range that every clock and timer can handle."""
    if not isinstance(value, str):
        return False
    try:
        when = maybe_iso8601(value)
    except (ValueError, OverflowError):
        return False
    return isinstance(when, datetime) and 1 < when.year < 2200


def _limits(value: Any) -> bool:
    seconds = _number(0, LONGEST)
    return isinstance(value, (list, tuple)) and (
        not value or (len(value) == 2 and all(v is None or seconds(v) for v in value))
    )


def _texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_name, value))


def signature(value: Any) -> bool:
    """A call to be made, as Celery writes it."""
    return (
        isinstance(value, dict)
        and _name(value.get("task"))
        and isinstance(value.get("args") or [], (list, tuple))
        and isinstance(value.get("kwargs") or {}, dict)
        and isinstance(value.get("options") or {}, dict)
        and isinstance(value.get("subtask_type"), (str, type(None)))
    )


def _signatures(value: Any) -> bool:
    # Celery takes a single signature for a list of one.
    return signature(value) or (isinstance(value, (list, tuple)) and all(map(signature, value)))


def labels(value: Any) -> bool:
    """A few short texts, by name. A name has no "=", which separates name and value in a command."""
    return (
        isinstance(value, dict)
        and len(value) <= MOST_LABELS
        and all(
            _name(name)
            and "=" not in name
            and len(name) <= LABEL_NAME
            and isinstance(text, str)
            and _encodes(text)
            and len(text) <= LABEL_VALUE
            for name, text in value.items()
        )
    )


def _replay(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _COUNT.takes(value.get("generation"))
        and "from_step" in value
        and (value["from_step"] in (None, "") or _name(value["from_step"]))
    )


#: Celery makes each header an attribute of its request, where one named like a method would replace it.
_ABSENT = Kind("absent, as Celery's request has a method of that name", lambda value: False)
_METHODS = [
    name for name in dir(Context) if callable(getattr(Context, name)) and not name.startswith("__")
]

_NAME = Kind("a text that is not empty", _name)
_TEXT = Kind("a text", _text)
_FLAG = Kind("true or false", lambda value: isinstance(value, bool))
_COUNT = _whole(0, 2**31 - 1)
_RETRIES = _whole(0, MOST_RETRIES)
_TIME = Kind("an ISO 8601 time before the year 2200", _time)
_CALLS = Kind("a list of signatures", _signatures)
_CALL = Kind("a signature", signature)

#: Header -> what it may be. A protocol 1 body has them as its own fields.
HEADERS: Final[Mapping[str, Kind]] = {
    "task": _NAME,
    "id": _NAME,
    "root_id": _NAME,
    "parent_id": _NAME,
    "group": _NAME,
    "group_index": _COUNT,
    "shadow": _TEXT,
    "argsrepr": _TEXT,
    "kwargsrepr": _TEXT,
    "origin": _TEXT,
    "lang": _TEXT,
    "eta": _TIME,
    "expires": _TIME,
    "retries": _RETRIES,
    "timelimit": Kind("a list of two numbers of seconds", _limits),
    "ignore_result": _FLAG,
    "replaced_task_nesting": _COUNT,
    "stamped_headers": Kind("a list of texts", _texts),
    "stamps": Kind("an object", lambda value: isinstance(value, dict)),
    "compression": _TEXT,
    "taskset": _NAME,
    "utc": _FLAG,
    TENANT_HEADER: _TEXT,
    RUN_HEADER: _TEXT,
    KEY_HEADER: _NAME,
    DEADLINE_HEADER: Kind("a number of seconds since the epoch", _number(0, _LATEST)),
    MAX_RETRIES_HEADER: _RETRIES,
    HOLDS_HEADER: _COUNT,
    REPLAY_HEADER: Kind('{"generation": a whole number, "from_step": a text or null}', _replay),
    REDRIVE_HEADER: _NAME,
    DUE_HEADER: _NAME,
    PAYLOAD_HEADER: _NAME,
    LABELS_HEADER: Kind(f"an object of at most {MOST_LABELS} texts", labels),
    **dict.fromkeys(_METHODS, _ABSENT),
}

PROPERTIES: Final[Mapping[str, Kind]] = {
    "correlation_id": _TEXT,
    "reply_to": _TEXT,
    "priority": _whole(-(2**31), 2**31 - 1),
}

DELIVERY_INFO: Final[Mapping[str, Kind]] = {"exchange": _TEXT, "routing_key": _TEXT}

#: Fields that a message's body has besides the task's arguments.
CALLBACKS: Final[Mapping[str, Kind]] = {
    "callbacks": _CALLS,
    "errbacks": _CALLS,
    "chain": _CALLS,
    "chord": _CALL,
}


def wrong(fields: Mapping[str, Any], kinds: Mapping[str, Kind], where: str) -> str | None:
    """What is wrong with these fields, without their values; None if nothing is."""
    found = first_wrong(fields, kinds)
    return found and f"its {where} {found[0]!r} is not {found[1].what}"


def first_wrong(fields: Mapping[str, Any], kinds: Mapping[str, Kind]) -> tuple[str, Kind] | None:
    """The first field that is not of its kind, and the kind; None if there is none."""
    for name, kind in kinds.items():
        value = fields.get(name)
        given = value is not None or (kind is _ABSENT and name in fields)
        if given and not kind.takes(value):
            return name, kind
    return None
