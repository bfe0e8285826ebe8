"""Dead letters on Pub/Sub: keeping a message with the reason, and taking it back out.

A death adds four attributes, and a message may already be as large as Pub/Sub allows, or have as many
attributes. Attributes that don't fit are packed into one (:mod:`.wire`). Where the message leaves no
room at all it is kept unchanged and followed by a *note*: a message without data that carries these
attributes and names, in :data:`NOTE_OF`, the message it is about.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gwi_celery.brokers.base import (
    DEATH,
    DEATH_ATTEMPTS,
    DEATH_DELIVERIES,
    DEATH_QUEUE,
    DEATH_REASON,
    DEATH_TIME,
    DEATH_TRACEBACK,
    REDRIVE,
    Delivery,
    OutgoingMessage,
    dead_letter_queue,
    redriving,
)
from gwi_celery.brokers.pubsub import wire
from gwi_celery.errors import TooLarge
from gwi_celery.text import REASON_BYTES, cut

if TYPE_CHECKING:
    from gwi_celery.brokers.pubsub.broker import PubSubBroker

#: Attribute of a note: Pub/Sub's id of the message that it is about.
NOTE_OF = "gwi-death-of"

_DEATH = DEATH | {NOTE_OF}
#: Characters of a reason that are kept, where there is room.
_REASON = 10_000
#: Messages in one pull.
_LOOK = 1000
#: Seconds that giving back waits to be sent.
_FLUSH = 2.0


class DeadLetters:
    """Those of one broker."""

    def __init__(self, broker: PubSubBroker) -> None:
        self._broker = broker

    def keep(self, delivery: Delivery, reason: str, deliveries: int) -> None:
        """Publish the message to its queue's dead letter. It is not acked."""
        death = {
            DEATH_REASON: _shortened(reason),
            DEATH_QUEUE: delivery.queue,
            DEATH_DELIVERIES: str(deliveries),
            DEATH_ATTEMPTS: str(max(delivery.attempts, deliveries)),
            DEATH_TIME: f"{time.time():.6f}",
        }
        # What its worker says of the death is ours as well, and no part of the message.
        said = {k: v for k, v in delivery.attributes.items() if k in _DEATH}
        kept = {k: v for k, v in delivery.attributes.items() if k not in _DEATH}
        message = OutgoingMessage(delivery.data, kept, delivery.priority)
        death = {**said, **death}
        short = {**death, DEATH_REASON: cut(reason, REASON_BYTES)}
        short.pop(DEATH_TRACEBACK, None)
        for added in (death, short):
            try:
                self._publish(delivery.queue, _with(message, added))
                return
            except TooLarge:
                pass
        as_it_came = wire.as_it_came(message)
        if as_it_came is None:
            raise TooLarge("it has no room for the reason, and is not as it came")
        id = self._broker.publisher.send_dead(delivery.queue, as_it_came)
        self._publish(delivery.queue, OutgoingMessage(b"", {**short, NOTE_OF: id}))

    def _publish(self, queue: str, message: OutgoingMessage) -> None:
        publisher = self._broker.publisher
        made = publisher.made("", dead_letter_queue(queue), message, merge=True)
        publisher.send_dead(queue, made)

    def redrive(self, queue: str, limit: int | None, only: Collection[str] | None = None) -> int:
        broker = self._broker
        mark = redriving(broker.operators, queue)
        marks: set[str] = set()
        bare: set[bytes] = set()
        looked = Looked(broker, dead_letter_queue(queue))
        moved = 0
        try:
            for delivery in looked if limit != 0 else ():
                # One that died again meanwhile is not taken twice.
                again = delivery.attributes.get(REDRIVE) in marks or _digest(delivery) in bare
                wanted = only is None or delivery.message_id in only
                if NOTE_OF in delivery.attributes or again or not wanted:
                    continue
                redrive = mark(delivery.message_id)
                marks.add(redrive)
                if not self._put_back(queue, delivery, redrive):
                    bare.add(_digest(delivery))
                looked.done_with(delivery)
                moved += 1
                if moved == (len(only) if limit is None and only is not None else limit):
                    break
        finally:
            looked.give_back()
        return moved

    def discard(self, queue: str, only: Collection[str]) -> int:
        """Take these messages out of ``queue`` itself."""
        looked = Looked(self._broker, queue)
        gone = 0
        try:
            for delivery in looked:
                if delivery.message_id in only and NOTE_OF not in delivery.attributes:
                    looked.done_with(delivery)
                    gone += 1
                    if gone == len(only):
                        break
        finally:
            looked.give_back()
        return gone

    def _put_back(self, queue: str, delivery: Delivery, redrive: str) -> bool:
        """Publish it as it was before it died; False if there was no room for the REDRIVE attribute."""
        kept = {k: v for k, v in delivery.attributes.items() if k not in _DEATH}
        kept = {k: v for k, v in kept.items() if not k.startswith("CloudPubSubDeadLetter")}
        message = OutgoingMessage(delivery.data, kept, delivery.priority)
        try:
            self._broker.publish("", queue, _with(message, {REDRIVE: redrive}), merge=True)
        except TooLarge:
            as_it_came = wire.as_it_came(message)
            if as_it_came is None:
                raise
            self._broker.publisher.send(self._broker.topology.route("", queue), [as_it_came])
            return False
        return True


class Looked:
    """Goes through what is ready in a queue, each message once. It is held until it is given back."""

    def __init__(self, broker: PubSubBroker, queue: str) -> None:
        self._broker = broker
        self._queue = queue
        self._seen: dict[str, Delivery] = {}
        self._done: set[str] = set()

    @property
    def held(self) -> list[Delivery]:
        return [d for id, d in self._seen.items() if id not in self._done]

    def __iter__(self) -> Iterator[Delivery]:
        while True:
            deliveries = self._broker.look(self._queue, _LOOK)
            # What is there for the second time is what we held for longer than its lease.
            fresh = [d for d in deliveries if d.message_id not in self._seen]
            self._seen.update((d.message_id, d) for d in deliveries)
            self._broker.ack([d for d in deliveries if d.message_id in self._done])
            yield from fresh
            if not fresh:
                return

    def done_with(self, delivery: Delivery) -> None:
        self._broker.ack([delivery])
        self._done.add(delivery.message_id)

    def give_back(self) -> None:
        """All but what is done with; the notes of that go with it."""
        kept = []
        for delivery in self.held:
            if delivery.attributes.get(NOTE_OF) in self._done:
                self._broker.ack([delivery])
            else:
                kept.append(delivery)
        self._broker.give_back_all(kept)
        self._broker.flush(_FLUSH)


def joined(deliveries: Iterable[Delivery]) -> list[Delivery]:
    """The messages, each with the attributes of its note."""
    deliveries = list(deliveries)
    notes = {d.attributes[NOTE_OF]: d.attributes for d in deliveries if NOTE_OF in d.attributes}
    return [
        replace(d, attributes={**d.attributes, **_of(notes[d.message_id])})
        if d.message_id in notes
        else d
        for d in deliveries
        if NOTE_OF not in d.attributes
    ]


def _with(message: OutgoingMessage, attributes: dict[str, str]) -> OutgoingMessage:
    return replace(message, attributes={**message.attributes, **attributes})


def _shortened(reason: str) -> str:
    if len(reason) <= _REASON:
        return reason
    return f"{reason[:_REASON]} ({len(reason) - _REASON} more characters)"


def _of(note: Any) -> dict[str, str]:
    return {k: v for k, v in note.items() if k in _DEATH and k != NOTE_OF}


def _digest(delivery: Delivery) -> bytes:
    return hashlib.sha256(delivery.data).digest()
