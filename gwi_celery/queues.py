"""What operators do with queues: look, pause, and deal with dead letters and with what is delayed.

``celery -A app gwi queues|dlq|delayed`` is this on a command line. All of it works on each broker of
ours, but where Pub/Sub can't: it shows nothing of what is delayed, and counts only with the extra
``monitoring``. What changes anything is kept in the audit trail first (``gwi_celery.audit``).
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kombu.utils import json as kombu_json

from gwi_celery.brokers.base import (
    DEAD_LETTER_SUFFIX,
    DEATH_ATTEMPTS,
    DEATH_DELIVERIES,
    DEATH_ERROR,
    DEATH_KIND,
    DEATH_QUEUE,
    DEATH_REASON,
    DEATH_TIME,
    DEATH_TRACEBACK,
    DEATH_WORKER,
    KINDS_OF_DEATH,
    OutgoingMessage,
    QueueState,
    StoredMessage,
    dead_letter_queue,
)
from gwi_celery.brokers.embedded import EmbeddedBroker
from gwi_celery.errors import ConfigurationError, InvalidCall
from gwi_celery.integration import broker_for, integration
from gwi_celery.text import nearest
from gwi_celery.transport.envelope import is_of_one_reader

__all__ = [
    "DeadLetter",
    "QueueState",
    "Waiting",
    "cancel_delayed",
    "dead_letters",
    "delayed",
    "export",
    "load",
    "pause",
    "purge",
    "queues",
    "redrive",
    "release_delayed",
    "resume",
    "where",
]

#: Attribute of a message that was imported: the id it was exported under.
_IMPORTED: Final = "gwi-imported"
#: Messages that are published, or moved, at a time.
_BATCH: Final = 100
#: Seconds of a bounded rate that one batch takes: a look into Pub/Sub's dead letters costs more.
_PACE, _PACE_ELSEWHERE = 1.0, 10.0


# --- queues ---------------------------------------------------------------------------------------


def queues(app: Any) -> list[QueueState]:
    """The app's task queues and those that the broker knows, by name, without dead letters.

    Queues of one connection (replies, remote control) are left out.
    """
    broker = broker_for(app)
    # What is configured and was never used is there for people all the same.
    names = {str(name) for name in app.amqp.queues}
    known = set(broker.queues())
    for name in known:
        base = name.removesuffix(DEAD_LETTER_SUFFIX)
        if not is_of_one_reader(base):
            names.add(base)
    return [
        broker.state(name) if broker.has_queue(name) else _missing(broker, name)
        for name in sorted(names)
    ]


def _missing(broker: Any, name: str) -> QueueState:
    """Nobody has used it yet, or it was deleted and left dead letters."""
    size = broker.size(dead_letter_queue(name))
    dead = None if size is None else size.total
    return QueueState(name, 0, 0, 0, oldest=0.0, consumers=0, dead=dead)


def pause(app: Any, queue: str) -> None:
    """Have no worker begin with what is in the queue; calls go on being accepted, and jobs that run end.

    It holds for all workers, those that start later too, until :func:`resume`. Raises NotFound.
    """
    _embedded(app, "paused").set_paused(queue, True)


def resume(app: Any, queue: str) -> None:
    """The reverse of :func:`pause`. Raises NotFound."""
    _embedded(app, "resumed").set_paused(queue, False)


def _embedded(app: Any, what: str) -> EmbeddedBroker:
    broker = broker_for(app)
    if not isinstance(broker, EmbeddedBroker):
        raise ConfigurationError(
            f"on Pub/Sub this can't be {what}: a subscription shows nothing that it holds back, and has "
            "no switch. Stop its workers (or `celery -A APP control cancel_consumer QUEUE`) instead; "
            "jobs that wait are in `gwi jobs list`"
        )
    return broker


# --- dead letters ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class DeadLetter:
    """A message that was given up, and why. Times are seconds since the epoch."""

    #: The queue it died in, and its id in that queue's dead letter.
    queue: str
    id: str
    #: One of ``KINDS_OF_DEATH``, and what its worker wrote.
    reason: str
    text: str
    #: The error's class and traceback; "" if there was none.
    error: str
    traceback: str
    #: "" where the message doesn't say.
    task: str
    task_id: str
    tenant: str
    run_id: str
    #: Attempts that a worker began, and times it was delivered.
    attempts: int
    deliveries: int
    #: "host:pid" of the worker that gave it up.
    worker: str
    published_at: float
    died_at: float
    #: When the broker drops it; None where it can't say.
    expires_at: float | None
    #: The whole message, as the broker has it.
    data: bytes
    attributes: Mapping[str, str]
    priority: int = 0


def dead_letters(
    app: Any,
    queue: str | None = None,
    *,
    reason: str | None = None,
    task: str | None = None,
    tenant: str | None = None,
    error: str | None = None,
    text: str | None = None,
    since: float | None = None,
    older_than: float | None = None,
    ids: Collection[str] | None = None,
) -> Iterator[DeadLetter]:
    """Dead letters that fit all that is given, of one queue or of all.

    Args:
        reason: One of ``KINDS_OF_DEATH``. Raises InvalidCall for another.
        error: The class of the error, without its module.
        text: Some part of its reason's text.
        since: Seconds since the epoch: died then or later.
        older_than: Seconds since it died, at least.
        ids: Those of the messages, or of their tasks.
    """
    if reason is not None and reason not in KINDS_OF_DEATH:
        raise InvalidCall(f"there is no reason {reason!r}; {nearest(reason, KINDS_OF_DEATH)}")
    before = None if older_than is None else time.time() - older_than

    def fits(dead: DeadLetter) -> bool:
        return (
            reason in (None, dead.reason)
            and task in (None, dead.task)
            and tenant in (None, dead.tenant)
            and (error is None or error in (dead.error, dead.error.rpartition(".")[2]))
            and (text is None or text in dead.text)
            and (since is None or dead.died_at >= since)
            and (before is None or dead.died_at <= before)
            and (ids is None or dead.id in ids or (dead.task_id != "" and dead.task_id in ids))
        )

    broker = broker_for(app)
    for name in [queue] if queue is not None else _queues_with_dead_letters(app):
        for message in broker.browse(dead_letter_queue(name)):
            dead = _dead_letter(name, message)
            if fits(dead):
                yield dead


def _queues_with_dead_letters(app: Any) -> list[str]:
    known = {n for n in broker_for(app).queues() if n.endswith(DEAD_LETTER_SUFFIX)}
    return sorted(name.removesuffix(DEAD_LETTER_SUFFIX) for name in known)


def _dead_letter(queue: str, message: StoredMessage) -> DeadLetter:
    said = message.attributes
    headers = _headers(message.data)
    kind = said.get(DEATH_KIND) or _kind_of(said)
    return DeadLetter(
        queue=queue,
        id=message.message_id,
        reason=kind if kind in KINDS_OF_DEATH else "unknown",
        text=said.get(DEATH_REASON, ""),
        error=said.get(DEATH_ERROR, ""),
        traceback=said.get(DEATH_TRACEBACK, ""),
        task=said.get("task") or _text(headers.get("task")),
        task_id=said.get("task_id") or _text(headers.get("id")),
        tenant=said.get("tenant", ""),
        run_id=said.get("run", ""),
        attempts=_number(said.get(DEATH_ATTEMPTS)),
        deliveries=_number(said.get(DEATH_DELIVERIES) or said.get(_FORWARDED)),
        worker=said.get(DEATH_WORKER, ""),
        published_at=message.published_at,
        died_at=float(said.get(DEATH_TIME) or message.published_at),
        expires_at=message.expires_at,
        data=message.data,
        attributes=dict(said),
        priority=message.priority,
    )


#: What Pub/Sub's own dead lettering writes.
_FORWARDED: Final = "CloudPubSubDeadLetterSourceDeliveryCount"
#: How 0.1 began its reasons -> their kind.
_FORMER: Final = {
    "not a Celery": "malformed",
    "its body can't be decoded": "malformed",
    "no task is registered": "unregistered",
    "delivered ": "deliveries",
    "rejected": "rejected",
    "DeadlineExceeded": "deadline",
    "CrashLimitExceeded": "crashed",
    "TimeLimitExceeded": "time-limit",
    "IdempotencyMismatch": "mismatch",
}


def _kind_of(said: Mapping[str, str]) -> str:
    if DEATH_REASON not in said:
        return "deliveries" if _FORWARDED in said else "unknown"
    for begin, kind in _FORMER.items():
        if said[DEATH_REASON].startswith(begin):
            return kind
    return "failed"


def _headers(data: bytes) -> dict[str, Any]:
    """The message's headers, as far as it has any; for people."""
    try:
        found = kombu_json.loads(data)["headers"]
    except Exception:  # whatever a publisher may have sent
        return {}
    return found if isinstance(found, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else 0


def redrive(
    app: Any,
    chosen: Iterable[DeadLetter],
    *,
    rate: float | None = None,
    moved: Callable[[int], object] = lambda n: None,
) -> int:
    """Put dead letters back into their queues, where each is a new submission; how many that was.

    A reliable job goes on from its last recorded step. What another has taken meanwhile is left out.
    Safe to be killed and begun anew, also on Pub/Sub, where publishing and taking away are two calls:
    a reliable job of a message that then is in both places runs once.

    Args:
        rate: Messages a second at most; None: as fast as it goes.
        moved: Called with the number of each batch, for a progress bar.
    """
    broker = broker_for(app)
    if rate is not None and not rate > 0:
        raise InvalidCall(f"a rate of {rate!r} a second moves nothing: give one above 0")
    pace = _PACE if isinstance(broker, EmbeddedBroker) else _PACE_ELSEWHERE
    total = 0
    for queue, ids in _by_queue(chosen).items():
        size = max(len(ids), 1) if rate is None else max(int(rate * pace), 1)
        for start in range(0, len(ids), size):
            began = time.monotonic()
            batch = ids[start : start + size]
            done = broker.redrive(queue, only=frozenset(batch))
            total += done
            moved(done)
            if rate is not None and start + size < len(ids):
                time.sleep(max(len(batch) / rate - (time.monotonic() - began), 0.0))
    return total


def purge(app: Any, chosen: Iterable[DeadLetter]) -> int:
    """Delete dead letters for good; how many that was."""
    broker = broker_for(app)
    return sum(
        broker.discard(dead_letter_queue(queue), frozenset(ids))
        for queue, ids in _by_queue(chosen).items()
    )


def _by_queue(chosen: Iterable[DeadLetter]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for dead in chosen:
        found.setdefault(dead.queue, []).append(dead.id)
    return found


def export(chosen: Iterable[DeadLetter]) -> Iterator[str]:
    """Each as one line of JSON, which :func:`load` takes: all of it, its arguments too."""
    for dead in chosen:
        fields = {k: v for k, v in vars(dead).items() if k != "data"}
        fields["data"] = base64.b64encode(dead.data).decode("ascii")
        yield json.dumps(fields)


def load(app: Any, lines: Iterable[str]) -> int:
    """Put exported dead letters into their queues' dead letters; how many were not there yet.

    Those that were loaded before, or never left, are left out: it can be begun anew. All lines are
    checked first; InvalidCall names the one that is wrong, and nothing is loaded.
    """
    broker = broker_for(app)
    read = [_read(line, n) for n, line in enumerate(lines, 1) if line.strip()]
    by_queue: dict[str, list[DeadLetter]] = {}
    for dead in read:
        by_queue.setdefault(dead.queue, []).append(dead)
    loaded = 0
    for queue, wanted in by_queue.items():
        name = dead_letter_queue(queue)
        there = {message.attributes.get(_IMPORTED) for message in broker.browse(name)} | {
            _name(_dead_letter(queue, message)) for message in broker.browse(name)
        }
        new = {_name(d): d for d in wanted}
        messages = [_outgoing(d, n) for n, d in new.items() if n not in there]
        if messages:
            integration(app).record_action("import", queue, messages=len(messages))
        for start in range(0, len(messages), _BATCH):
            batch = messages[start : start + _BATCH]
            broker.publish_many([("", name, message) for message in batch])
            loaded += len(batch)
    return loaded


def _name(dead: DeadLetter) -> str:
    """Names one death, wherever it is kept."""
    return f"{dead.queue} {dead.id} {dead.died_at:.6f}"


def _outgoing(dead: DeadLetter, name: str) -> OutgoingMessage:
    said = {
        DEATH_QUEUE: dead.queue,
        DEATH_REASON: dead.text,
        DEATH_KIND: dead.reason,
        DEATH_TIME: f"{dead.died_at:.6f}",
        _IMPORTED: name,
    }
    return OutgoingMessage(dead.data, {**dead.attributes, **said}, dead.priority)


_TYPES: Final[dict[str, Any]] = {
    **dict.fromkeys(("queue", "id", "reason", "text", "error", "traceback", "worker"), str),
    **dict.fromkeys(("task", "task_id", "tenant", "run_id", "data"), str),
    **dict.fromkeys(("attempts", "deliveries", "priority"), int),
    **dict.fromkeys(("published_at", "died_at"), (int, float)),
    "expires_at": (int, float, type(None)),
    "attributes": dict,
}


def _read(line: str, number: int) -> DeadLetter:
    def wrong(why: str) -> InvalidCall:
        return InvalidCall(
            f"line {number} is no exported dead letter: {why}. Nothing was imported: mend or leave "
            "out that line, and import the file again"
        )

    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise wrong(f"not JSON ({exc})") from exc
    if not isinstance(fields, dict) or fields.keys() != _TYPES.keys():
        raise wrong(f"it needs exactly {', '.join(_TYPES)}")
    for name, kind in _TYPES.items():
        if not isinstance(fields[name], kind) or isinstance(fields[name], bool):
            raise wrong(f"its {name} is of another type")
    attributes = fields["attributes"]
    if not all(isinstance(v, str) for v in attributes.values()):
        raise wrong("an attribute is no text")
    if not fields["queue"] or fields["queue"].endswith(DEAD_LETTER_SUFFIX):
        raise wrong("its queue is none that jobs are sent to")
    try:
        data = base64.b64decode(fields["data"], validate=True)
    except (ValueError, binascii.Error) as exc:
        raise wrong(f"its data is not base64 ({exc})") from exc
    return DeadLetter(**{**fields, "data": data})


# --- what is delayed ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Waiting:
    """A message that is held back until a time. Times are seconds since the epoch."""

    queue: str
    id: str
    task: str
    task_id: str
    tenant: str
    run_id: str
    published_at: float
    #: When it may be delivered.
    due: float


def delayed(app: Any, queue: str | None = None) -> Iterator[Waiting]:
    """What waits for its time (an ETA, a retry, a lock, a limit), of one queue or of all.

    Raises ConfigurationError on Pub/Sub, which shows nothing of it: ask ``gwi_celery.jobs`` there.
    """
    broker = _embedded(app, "listed")
    for state in queues(app):
        if queue not in (None, state.name):
            continue
        for message in broker.browse(state.name):
            if message.state == "delayed" and message.due is not None:
                said = message.attributes
                yield Waiting(
                    state.name,
                    message.message_id,
                    said.get("task", ""),
                    said.get("task_id", ""),
                    said.get("tenant", ""),
                    said.get("run", ""),
                    message.published_at,
                    message.due,
                )


def where(app: Any, task_id: str) -> str | None:
    """Where the message of a task is that no worker has begun, in a sentence; None: nowhere, or unseen.

    On Pub/Sub nothing can be seen.
    """
    broker = broker_for(app)
    if not isinstance(broker, EmbeddedBroker):
        return None
    for state in queues(app):
        for message in broker.browse(state.name):
            if message.attributes.get("task_id") != task_id:
                continue
            if message.state == "delayed":
                left = max((message.due or 0.0) - time.time(), 0.0)
                return f"is delayed in queue {state.name}: it is due in {left:.0f} s"
            if message.state == "leased":
                return (
                    f"was taken from queue {state.name} by a worker that has not begun with it yet"
                )
            if state.paused:
                return f"waits in queue {state.name}, which is paused: `gwi queues resume {state.name}`"
            if not state.consumers:
                start = f"start one with -Q {state.name}"
                return f"waits in queue {state.name}, which no worker consumes: {start}"
            return f"waits in queue {state.name} behind {state.ready} others: add workers"
    return None


def release_delayed(app: Any, chosen: Iterable[Waiting]) -> int:
    """Have them delivered now; how many still waited. What they wait for may make them wait again."""
    broker = _embedded(app, "hastened")
    found = _waiting_by_queue(chosen)
    return sum(broker.hasten(queue, frozenset(ids)) for queue, ids in found.items())


def cancel_delayed(app: Any, chosen: Iterable[Waiting]) -> int:
    """Delete them for good; how many still waited. A reliable job is cancelled by ``jobs.cancel``."""
    broker = _embedded(app, "cancelled")
    found = _waiting_by_queue(chosen)
    return sum(broker.discard(queue, frozenset(ids)) for queue, ids in found.items())


def _waiting_by_queue(chosen: Iterable[Waiting]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for waiting in chosen:
        found.setdefault(waiting.queue, []).append(waiting.id)
    return found
