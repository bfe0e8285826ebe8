"""Dead letters as lines of JSON: exported, and imported again."""

from __future__ import annotations

import base64
import binascii
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from gwi_celery.brokers.base import (
    DEAD_LETTER_SUFFIX,
    DEATH_ID,
    DEATH_KIND,
    DEATH_QUEUE,
    DEATH_REASON,
    DEATH_TIME,
    Broker,
    OutgoingMessage,
    dead_letter_queue,
)
from gwi_celery.brokers.letters import LATEST, DeadLetter, letter_of
from gwi_celery.errors import (
    BrokerError,
    BrokerUnavailable,
    InvalidCall,
    PublishFailed,
    TooLarge,
)
from gwi_celery.ids import digest
from gwi_celery.integration import broker_for, integration
from gwi_celery.queues.dead import recorded
from gwi_celery.text import from_json

#: Attribute of a message that was imported: the id it was exported under.
_IMPORTED: Final = "gwi-imported"
#: Messages that are published at a time.
_BATCH: Final = 100


def export(chosen: Iterable[DeadLetter]) -> Iterator[str]:
    """Each as one line of JSON, which :func:`load` takes: all of it, its arguments too.

    Raises InvalidCall for one whose message was not read.
    """
    for dead in chosen:
        if not dead.whole:
            raise InvalidCall(
                f"only the record of dead letter {dead.id} was read: find it with look=True; if its "
                "message can't be read even then, another process is reading it: leave it out"
            )
        fields = {k: v for k, v in vars(dead).items() if k not in ("data", "whole")}
        fields["data"] = base64.b64encode(dead.data).decode("ascii")
        yield json.dumps(fields)


def load(
    app: Any,
    lines: Iterable[str],
    *,
    file: str = "",
    loaded: Callable[[int], object] = lambda n: None,
) -> int:
    """Put exported dead letters back into their queues' dead letters; returns how many.

    Those that are still there are left out, so this can be interrupted and repeated.

    Args:
        file: Where the lines are from, for errors.
        loaded: Called with how many were loaded since the last call.

    Raises InvalidCall for a line that is wrong, before anything is loaded; for lines whose messages are
    too large for this broker, once all others are loaded; and BrokerError. Each error names the line,
    and says how many were loaded.
    """
    broker, records = broker_for(app), recorded(app)
    by_queue: dict[str, list[tuple[int, DeadLetter]]] = {}
    for n, line in enumerate(lines, 1):
        if line.strip():
            dead = _read(line, _place(file, n))
            by_queue.setdefault(dead.queue, []).append((n, dead))
    total = 0
    too_large: dict[int, Exception] = {}
    for queue, wanted in by_queue.items():
        there = _there(app, queue, [dead for _, dead in wanted])
        new = {name: (n, dead) for n, dead in wanted if (name := _name(dead)) not in there}
        if new:
            integration(app).record_action("import", queue, messages=len(new))
        named = list(new.items())
        for start in range(0, len(named), _BATCH):
            batch = named[start : start + _BATCH]
            messages = [_outgoing(dead, name) for name, (_, dead) in batch]
            errors = _publish(broker, dead_letter_queue(queue), messages)
            done = [each for n, each in enumerate(batch) if n not in errors]
            for name, (_, dead) in done if records is not None else ():
                # If killed before this, the next import publishes it again, under the same id: see
                # redrive.
                integration(app).authority.died(_kept_again(app, dead, name))
            total += len(done)
            loaded(len(done))
            failed = {batch[n][1][0]: error for n, error in errors.items()}
            lasting = {n: error for n, error in failed.items() if not isinstance(error, TooLarge)}
            if lasting:
                raise _interrupted(file, lasting, total)
            too_large |= failed
    if too_large:
        raise _left_out(file, too_large, total)
    return total


def _publish(
    broker: Broker, queue: str, messages: Sequence[OutgoingMessage]
) -> Mapping[int, Exception]:
    """Errors of the messages that were not published, by their places."""
    try:
        broker.publish_many([("", queue, message) for message in messages])
    except PublishFailed as exc:
        return exc.errors
    except BrokerError as exc:  # none was
        return dict.fromkeys(range(len(messages)), exc)
    return {}


def _place(file: str, *lines: int) -> str:
    numbers = ", ".join(map(str, sorted(lines)))
    return (f"{file}: " if file else "") + f"line{'s' if len(lines) > 1 else ''} {numbers}"


def _interrupted(file: str, errors: Mapping[int, Exception], total: int) -> BrokerError:
    line, error = min(errors.items())
    kind = BrokerUnavailable if isinstance(error, BrokerUnavailable) else BrokerError
    return kind(
        f"{_place(file, line)} could not be imported: {error}. {total} lines were imported: import the "
        "file again, which leaves those out"
    )


def _left_out(file: str, errors: Mapping[int, Exception], total: int) -> InvalidCall:
    return InvalidCall(
        f"{_place(file, *errors)} can't be imported: {errors[min(errors)]}. {total} other lines were "
        "imported, and are left out next time: remove the named ones from the file"
    )


def _there(app: Any, queue: str, wanted: list[DeadLetter]) -> set[str]:
    """The names of those in ``wanted`` that are still there, or were loaded before."""
    records = recorded(app)
    if records is not None:
        known = records.known({id for d in wanted for id in (d.id, _id(_name(d)))})
        return {_name(d) for d in wanted if known.get(d.id) or known.get(_id(_name(d)))}
    found: set[str] = set()
    for message in broker_for(app).browse(dead_letter_queue(queue)):
        found |= {message.attributes.get(_IMPORTED, ""), _name(letter_of(queue, message))}
    return found


def _kept_again(app: Any, dead: DeadLetter, name: str) -> DeadLetter:
    """Its record: the broker keeps an imported dead letter for as long as a new one."""
    now = time.time()
    kept = broker_for(app).dead_kept
    return replace(dead, id=_id(name), published_at=now, expires_at=now + kept)


def _id(name: str) -> str:
    return digest("imported", name)[:32]


def _name(dead: DeadLetter) -> str:
    """The name of one death, wherever it is kept."""
    return f"{dead.queue} {dead.id} {dead.died_at:.6f}"


def _outgoing(dead: DeadLetter, name: str) -> OutgoingMessage:
    death = {
        DEATH_QUEUE: dead.queue,
        DEATH_REASON: dead.text,
        DEATH_KIND: dead.reason,
        DEATH_TIME: f"{dead.died_at:.6f}",
        DEATH_ID: _id(name),
        _IMPORTED: name,
    }
    return OutgoingMessage(dead.data, {**dead.attributes, **death}, dead.priority)


_TYPES: Final[dict[str, Any]] = {
    **dict.fromkeys(("queue", "id", "reason", "text", "error", "traceback", "worker"), str),
    **dict.fromkeys(("task", "task_id", "tenant", "run_id", "data"), str),
    **dict.fromkeys(("attempts", "deliveries", "priority"), int),
    **dict.fromkeys(("published_at", "died_at"), (int, float)),
    "expires_at": (int, float, type(None)),
    "attributes": dict,
}
#: What numbers may be, so that every broker and store can keep them.
_RANGES: Final[dict[str, tuple[float, float]]] = {
    **dict.fromkeys(("attempts", "deliveries"), (0, 2**31 - 1)),
    "priority": (-(2**31), 2**31 - 1),
    **dict.fromkeys(("published_at", "died_at"), (0, LATEST)),
    "expires_at": (0, sys.float_info.max),  # queues may keep messages for as long as they like
}
#: The id of a message, or of a death; it names a record.
_ID: Final = re.compile(r"[A-Za-z0-9._:~%+-]{1,256}")


def _read(line: str, place: str) -> DeadLetter:
    def wrong(why: str) -> InvalidCall:
        return InvalidCall(
            f"{place} is no exported dead letter: {why}. Nothing was imported: mend or remove "
            "that line, and import the file again"
        )

    try:
        fields = from_json(line)
    except ValueError as exc:
        raise wrong(f"not JSON ({exc})") from exc
    if not isinstance(fields, dict) or fields.keys() != _TYPES.keys():
        raise wrong(f"it needs exactly {', '.join(_TYPES)}")
    for name, kind in _TYPES.items():
        if not isinstance(fields[name], kind) or isinstance(fields[name], bool):
            raise wrong(f"its {name} is of another type")
    for name, (lowest, highest) in _RANGES.items():
        value = fields[name]
        if value is not None and not lowest <= value <= highest:  # NaN is in no range
            raise wrong(f"its {name} is not a number from {lowest:.10g} to {highest:.10g}")
    if not _ID.fullmatch(fields["id"]):
        raise wrong("its id is not that of a message")
    attributes = fields["attributes"]
    if not all(isinstance(v, str) for v in attributes.values()):
        raise wrong("an attribute is not a text")
    if not fields["queue"] or fields["queue"].endswith(DEAD_LETTER_SUFFIX):
        raise wrong("its queue is empty, or is itself a dead letter")
    try:
        data = base64.b64decode(fields["data"], validate=True)
    except (ValueError, binascii.Error) as exc:
        raise wrong(f"its data is not base64 ({exc})") from exc
    return DeadLetter(**{**fields, "data": data})
