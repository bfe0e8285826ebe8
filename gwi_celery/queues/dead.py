"""Dead letters: finding them, and putting them back or deleting them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any, Final

from gwi_celery.brokers.base import DEAD_LETTER_SUFFIX, KINDS_OF_DEATH, dead_letter_queue
from gwi_celery.brokers.embedded import EmbeddedBroker
from gwi_celery.brokers.letters import DeadLetter, letter_of
from gwi_celery.errors import InvalidCall
from gwi_celery.integration import broker_for, integration
from gwi_celery.stores.base import JobFilter, JobStatus
from gwi_celery.stores.queues import LetterFilter, QueueRecords
from gwi_celery.text import nearest

#: Seconds that one batch of a limited rate lasts; longer on Pub/Sub, where each batch costs a search.
_PACE: Final = 1.0
_PACE_ELSEWHERE: Final = 10.0
#: Lowest and highest rate, messages a second: at least one in twelve days.
_RATES: Final = (1e-6, 1_000_000)


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
    look: bool = False,
    at_a_time: int = 200,
) -> Iterator[DeadLetter]:
    """Dead letters that fit all that is given, of one queue or of all.

    On Pub/Sub these are the store's records, with an index for each filter: the latest death first, and
    without their messages' ``data`` and ``attributes``.

    Args:
        reason: One of ``KINDS_OF_DEATH``. Raises InvalidCall for another.
        error: The class of the error, with or without its module.
        text: A part of the reason's text.
        since: Seconds since the epoch: died then or later.
        older_than: Seconds since it died, at least.
        ids: Ids of the messages, or of their tasks.
        look: On Pub/Sub, read the dead letters themselves, which leases them for a moment. They come with
            their messages, unless another process has leased these (see ``DeadLetter.whole``). One
            without a record (Pub/Sub forwarded it, or the store was unavailable) gets one.
        at_a_time: Records that are read at a time.
    """
    if reason is not None and reason not in KINDS_OF_DEATH:
        raise InvalidCall(f"there is no reason {reason!r}; {nearest(reason, KINDS_OF_DEATH)}")
    before = None if older_than is None else time.time() - older_than
    wanted = LetterFilter(queue, reason, task, tenant, None, None, since, before)
    if error is not None:
        wanted = replace(wanted, error=error.rpartition(".")[2])

    def fits(dead: DeadLetter) -> bool:
        return (
            reason in (None, dead.reason)
            and task in (None, dead.task)
            and tenant in (None, dead.tenant)
            and (error is None or error in (dead.error, dead.error_class))
            and (text is None or text in dead.text)
            and (since is None or dead.died_at >= since)
            and (before is None or dead.died_at <= before)
            and (ids is None or dead.id in ids or (dead.task_id != "" and dead.task_id in ids))
            and queue in (None, dead.queue)
        )

    records = recorded(app)
    if records is None:
        found = _looked(app, queue)
    elif look:
        found = _recording(app, records, queue, wanted)
    elif ids is not None:
        found = _named(records, ids)
    else:
        found = _listed(records, wanted, at_a_time)
    yield from filter(fits, found)


def count(app: Any, queue: str | None = None) -> int:
    """The number of dead letters, of one queue or of all; on Pub/Sub only those with a record."""
    records = recorded(app)
    if records is not None:
        return records.count(LetterFilter(queue))
    return sum(1 for _ in _looked(app, queue))


def recorded(app: Any) -> QueueRecords | None:
    """The store's records of dead letters; None if the broker can be searched, or the store has none."""
    if isinstance(broker_for(app), EmbeddedBroker):
        return None
    return integration(app).authority.records


def _looked(app: Any, queue: str | None) -> Iterator[DeadLetter]:
    broker = broker_for(app)
    for name in [queue] if queue is not None else _queues_with_dead_letters(app):
        for message in broker.browse(dead_letter_queue(name)):
            yield letter_of(name, message)


def _recording(
    app: Any, records: QueueRecords, queue: str | None, wanted: LetterFilter
) -> Iterator[DeadLetter]:
    """Each dead letter once; those without a record are recorded, and ended ones are deleted."""
    met: set[str] = set()
    for name in [queue] if queue is not None else _queues_with_dead_letters(app):
        letters = {letter.id: letter for letter in _looked(app, name)}
        known = records.known(list(letters))
        done_with = {id for id, there in known.items() if not there}
        if done_with:
            broker_for(app).discard(dead_letter_queue(name), done_with)
        for id, letter in letters.items():
            if id not in known:
                records.keep(letter)
            if id not in done_with:
                yield letter
        met |= letters.keys()
    yield from (letter for letter in _listed(records, wanted) if letter.id not in met)


def _named(records: QueueRecords, ids: Collection[str]) -> Iterator[DeadLetter]:
    seen: set[str] = set()
    for id in dict.fromkeys(ids):
        own = records.get(id)
        found = [own] if own is not None else _listed(records, LetterFilter(task_id=id))
        for letter in found:
            if letter.id not in seen:
                seen.add(letter.id)
                yield letter


def _listed(
    records: QueueRecords, wanted: LetterFilter, at_a_time: int = 200
) -> Iterator[DeadLetter]:
    token = None
    while True:
        page = records.find(wanted, limit=at_a_time, token=token)
        yield from page.letters
        token = page.next_token
        if token is None:
            return


def _queues_with_dead_letters(app: Any) -> list[str]:
    known = {n for n in broker_for(app).queues() if n.endswith(DEAD_LETTER_SUFFIX)}
    return sorted(name.removesuffix(DEAD_LETTER_SUFFIX) for name in known)


def redrive(
    app: Any,
    chosen: Iterable[DeadLetter],
    *,
    from_step: str | None = "",
    rate: float | None = None,
    moved: Callable[[int], object] = lambda n: None,
) -> int:
    """Put dead letters back into their queues, where each is a new submission; returns how many.

    A reliable job goes on from its last recorded step. Dead letters that are gone are left out. Safe to
    interrupt and repeat, also on Pub/Sub, where publishing and removing are two calls: a reliable job
    whose message is then in both places runs once.

    Args:
        from_step: Go on from this step, though later ones are recorded; None: from the start. All jobs
            must have failed and recorded that step: else InvalidCall names one that has not, and nothing
            is moved.
        rate: Messages a second at most; None: no limit.
        moved: Called with how many were moved since the last call, for a progress bar.
    """
    broker = broker_for(app)
    if rate is not None and not _RATES[0] <= rate <= _RATES[1]:
        lowest, highest = _RATES
        raise InvalidCall(
            f"a rate of {rate!r} a second is impossible: give a number from {lowest:f} to {highest:,}"
        )
    chosen = list(chosen)
    if from_step != "":
        _check_step(app, chosen, from_step)
    pace = _PACE if isinstance(broker, EmbeddedBroker) else _PACE_ELSEWHERE
    total = 0
    for queue, ids in ids_by_queue((dead.queue, dead.id) for dead in chosen).items():
        size = max(len(ids), 1) if rate is None else max(int(rate * pace), 1)
        for start in range(0, len(ids), size):
            began = time.monotonic()
            batch = ids[start : start + size]
            total += broker.redrive(queue, only=frozenset(batch), from_step=from_step, moved=moved)
            if rate is not None and start + size < len(ids):
                time.sleep(max(len(batch) / rate - (time.monotonic() - began), 0.0))
    return total


def _check_step(app: Any, chosen: Collection[DeadLetter], from_step: str | None) -> None:
    store = integration(app).store
    for dead in chosen:
        found = (
            store.find_jobs(JobFilter(task_id=dead.task_id), limit=1).jobs if dead.task_id else ()
        )
        why = ""
        if not found:
            why = "no reliable job of it is recorded"
        elif found[0].status is not JobStatus.FAILED:
            why = f"its job is {found[0].status.value}, and not failed"
        elif from_step is not None:
            names = [c.name for c in store.get_checkpoints(found[0].job, outline=True)]
            if from_step not in names:
                steps = ", ".join(map(repr, names)) or "none"
                why = f"its recorded steps are {steps}"
        if why:
            whence = "the start" if from_step is None else f"step {from_step!r}"
            raise InvalidCall(
                f"dead letter {dead.id} of queue {dead.queue!r} can't be redriven from {whence}: {why}. "
                "Nothing was redriven: choose others, or let them go on from where they were"
            )


def purge(
    app: Any, chosen: Iterable[DeadLetter], *, purged: Callable[[int], object] = lambda n: None
) -> int:
    """Delete dead letters for good; returns how many. ``purged`` is called with each queue's number."""
    broker, records = broker_for(app), recorded(app)
    total = 0
    for queue, ids in ids_by_queue((dead.queue, dead.id) for dead in chosen).items():
        recorded_now = None if records is None else sum(records.known(ids).values())
        gone = broker.discard(dead_letter_queue(queue), frozenset(ids))
        # One that another process is reading is deleted when it is next read, as its record has ended.
        total += gone if recorded_now is None else recorded_now
        purged(len(ids))
    return total


def ids_by_queue(chosen: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Queue -> ids, from pairs of (queue, id)."""
    found: dict[str, list[str]] = {}
    for queue, id in chosen:
        found.setdefault(queue, []).append(id)
    return found
