"""Deliveries of an embedded broker: leases, acks, dead letters."""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType

from gwi_celery.brokers.base import (
    DEATH,
    DEATH_ATTEMPTS,
    DEATH_DELIVERIES,
    DEATH_KIND,
    DEATH_QUEUE,
    DEATH_REASON,
    DEATH_TIME,
    REDRIVE,
    Delivery,
    dead_letter_queue,
)
from gwi_celery.brokers.embedded import messages, tables
from gwi_celery.brokers.embedded.files import Change, Files
from gwi_celery.brokers.embedded.tables import Queue
from gwi_celery.text import REASON_BYTES, cut


class Deliveries:
    """Each method as :class:`~gwi_celery.brokers.base.Broker` or its receiver has it."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def poll(self, name: str, limit: int, *, busy: bool, begun: bool = True) -> list[Delivery]:
        """``busy``: messages are likely, so that a read before taking the write lock isn't worth it."""
        self._files.sweep_if_due()
        if not busy:
            now = self._files.clock.time()
            with self._files.database.read() as c:
                found = tables.find_queue(c, name, now)
                if found is None or found.paused or not messages.has_ready(c, found, now):
                    return []
        deliveries: list[Delivery] = []
        with self._files.change() as change:
            queue = tables.find_queue(change.c, name, change.now)
            if queue is None or queue.paused:
                return []
            promoted = messages.promote(change.c, queue, change.now)
            while len(deliveries) < limit:
                rows = messages.ready(change.c, queue, limit - len(deliveries))
                if not rows:
                    break
                for row in rows:
                    if row["expires_at"] <= change.now:
                        messages.delete(change.c, row["id"])
                    elif 0 < self._files.max_deliveries(queue) <= row["attempts"]:
                        reason = f"delivered {row['attempts']} times without an ack"
                        self._bury(change, queue, row, reason, {DEATH_KIND: "deliveries"})
                    else:
                        deliveries.append(self._deliver(change, queue, row, begun))
            if promoted > len(deliveries):
                # Another receiver may be about to wait for a message that has just become ready.
                change.wake(name)
        return deliveries

    def _deliver(self, change: Change, queue: Queue, row: sqlite3.Row, begun: bool) -> Delivery:
        seconds = self._files.lease_seconds(queue)
        # Not from a counter: no lease may be given twice, even if the file is replaced under a worker.
        lease = int.from_bytes(os.urandom(8), "big") >> 1
        messages.take(change.c, row["id"], lease, change.now + seconds, begun=begun)
        return Delivery(
            queue=queue.spec.name,
            ack_id=f"{row['id']}.{lease}",
            message_id=str(row["id"]),
            data=row["data"],
            attributes=messages.read_attributes(row["attributes"]),
            deliveries=row["deliveries"] + 1,
            attempts=row["attempts"],
            published_at=row["published_at"],
            priority=row["priority"],
            lease_seconds=seconds,
        )

    def ack(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        if not deliveries:
            return []
        with self._files.database.write(durable=False) as c:
            return [d for d in deliveries if not messages.delete_leased(c, *_lease_of(d))]

    def begin(self, delivery: Delivery) -> None:
        with self._files.database.write(durable=False) as c:
            messages.set_attempts(c, *_lease_of(delivery), delivery.attempts + 1)

    def nack(self, delivery: Delivery, delay: float = 0.0) -> None:
        with self._files.change() as change:
            id, lease = _lease_of(delivery)
            if messages.leased(change.c, id, lease, change.now) is not None:
                messages.set_attempts(change.c, id, lease, delivery.attempts + 1)
                messages.free(change.c, id, change.now + delay if delay > 0 else None)
                change.wake(delivery.queue)

    def give_back(self, delivery: Delivery) -> None:
        with self._files.change() as change:
            id, lease = _lease_of(delivery)
            if messages.leased(change.c, id, lease, change.now) is not None:
                messages.set_attempts(change.c, id, lease, delivery.attempts)
                messages.take_back(change.c, id)
                change.wake(delivery.queue)

    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> list[Delivery]:
        if not deliveries:
            return []
        lost = []
        with self._files.change() as change:
            until = change.now + seconds
            for delivery in deliveries:
                id, lease = _lease_of(delivery)
                row = messages.leased(change.c, id, lease, change.now)
                if row is None:
                    lost.append(delivery)
                    continue
                messages.set_due(change.c, id, until)
                if row["due"] is not None and until < row["due"]:
                    change.wake(delivery.queue)
        return lost

    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        with self._files.change() as change:
            row = messages.leased(change.c, *_lease_of(delivery), change.now)
            queue = tables.find_queue(change.c, delivery.queue, change.now)
            if row is not None and queue is not None:
                self._bury(change, queue, row, reason, delivery.attributes)

    def _bury(
        self,
        change: Change,
        queue: Queue,
        row: sqlite3.Row,
        reason: str,
        more: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Move it to the dead letter; ``more``: attributes that its consumer added."""
        if queue.spec.temporary:
            messages.delete(change.c, row["id"])
            return
        if queue.takes_dead_letters:
            # Redelivered at once, it would keep busy a consumer that rejects it.
            messages.free(change.c, row["id"], change.now + self._files.lease_seconds(queue))
            change.wake(queue.spec.name)
            return
        own = messages.read_attributes(row["attributes"])
        attributes = {
            **more,
            **{k: v for k, v in own.items() if k not in DEATH},
            DEATH_REASON: cut(reason, REASON_BYTES),
            DEATH_QUEUE: queue.spec.name,
            DEATH_DELIVERIES: str(row["deliveries"]),
            DEATH_ATTEMPTS: str(row["attempts"]),
            DEATH_TIME: f"{change.now:.6f}",
        }
        dead = self._files.ensure(change, dead_letter_queue(queue.spec.name))
        messages.move(change.c, row["id"], dead, attributes, change.now + self._files.retention)
        change.wake(dead.spec.name)

    def redrive(
        self,
        queue: str,
        dead: str,
        limit: int,
        mark: Callable[[str], str],
        only: Collection[str] | None,
    ) -> list[str]:
        """Move up to ``limit`` messages; returns their ids, which they keep."""
        with self._files.change(durable=True) as change:
            source = tables.find_queue(change.c, dead, change.now)
            if source is None:
                return []
            messages.delete_expired(change.c, change.now, source)
            messages.promote(change.c, source, change.now)
            target = self._files.ensure(change, queue)
            expires_at = change.now + messages.time_to_live(target, self._files.retention)
            rows = messages.ready(change.c, source, limit, only)
            for row in rows:
                attributes = messages.read_attributes(row["attributes"])
                kept = {k: v for k, v in attributes.items() if k not in DEATH}
                redrive = mark(uuid.uuid4().hex)  # it is moved once, so that any id will do
                messages.move(change.c, row["id"], target, {**kept, REDRIVE: redrive}, expires_at)
            change.wake(queue)
            return [str(row["id"]) for row in rows]


def _lease_of(delivery: Delivery) -> tuple[int, int]:
    id, _, lease = delivery.ack_id.partition(".")
    return int(id), int(lease)
