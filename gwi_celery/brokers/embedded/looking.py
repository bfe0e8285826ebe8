"""What operators see of the embedded broker's queues, and do to chosen messages."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeAlias

from gwi_celery.brokers.base import DEAD_LETTER_SUFFIX, QueueState, StoredMessage, dead_letter_queue
from gwi_celery.brokers.embedded import messages, tables
from gwi_celery.brokers.embedded.files import Files

#: From a message to its new data and attributes.
Edit: TypeAlias = "Callable[[StoredMessage], tuple[bytes, Mapping[str, str]]]"

#: Messages in one page of a look.
_PAGE = 200


class Looking:
    """What operators see of one broker. Each method as :class:`.broker.EmbeddedBroker` has it."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def state(self, queue: str) -> QueueState:
        files = self._files
        now = files.clock.time()
        with files.database.read() as c:
            found = files.find(c, queue)
            size, oldest = messages.size(c, found, now), messages.oldest(c, found, now)
            listeners = tables.listeners(c, queue)
            dead = tables.find_queue(c, dead_letter_queue(queue), now)
            died = 0 if dead is None else messages.size(c, dead, now).total
        return QueueState(
            queue,
            *(size.ready, size.delayed, size.leased),
            oldest=0.0 if oldest is None else max(now - oldest, 0.0),
            consumers=len(listeners) - len(files.dead(listeners)),
            dead=died,
            paused=found.paused,
        )

    def expiring(self, within: float) -> dict[str, int]:
        now = self._files.clock.time()
        with self._files.database.read() as c:
            return {
                queue.spec.name.removesuffix(DEAD_LETTER_SUFFIX): count
                for queue in tables.all_queues(c, now)
                if queue.takes_dead_letters and (count := messages.expiring(c, queue, now, within))
            }

    def browse(self, queue: str) -> Iterator[StoredMessage]:
        """In pages by id, so that a message that is there all the time is seen once."""
        last = 0
        while True:
            now = self._files.clock.time()
            with self._files.database.read() as c:
                found = tables.find_queue(c, queue, now)
                page = [] if found is None else messages.page(c, found, last, _PAGE, now)
            yield from page
            if len(page) < _PAGE:
                return
            last = int(page[-1].message_id)

    def discard(self, queue: str, only: Collection[str]) -> int:
        with self._files.change(durable=True) as change:
            found = tables.find_queue(change.c, queue, change.now)
            ids = messages.unleased(change.c, found, only, change.now) if found else []
            for id in ids:
                messages.delete(change.c, id)
            return len(ids)

    def hasten(self, queue: str, only: Collection[str], edit: Edit | None) -> int:
        with self._files.change(durable=True) as change:
            found = tables.find_queue(change.c, queue, change.now)
            ids = messages.unleased(change.c, found, only, change.now) if found else []
            for id in ids:
                if found is not None and edit is not None:
                    [message] = messages.page(change.c, found, id - 1, 1, 0.0)
                    messages.rewrite(change.c, id, *edit(message))
                messages.free(change.c, id, None)
            change.wake(queue)
            return len(ids)

    def set_paused(self, queue: str, paused: bool) -> None:
        with self._files.change(durable=True) as change:
            tables.set_paused(change.c, self._files.find(change.c, queue), paused)
            change.wake(queue)
