"""Dead letters on Pub/Sub: keeping a message with the reason, and taking it back out.

A death adds four attributes, and a message may already be as large as Pub/Sub allows, or have as many
attributes. Attributes that don't fit are packed into one (:mod:`.wire`). Where the message leaves no
room at all it is kept unchanged and followed by a *note*: a message without data that carries these
attributes and names, in :data:`NOTE_OF`, the message it is about.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gwi_celery.brokers.base import (
    DEATH_DELIVERIES,
    DEATH_QUEUE,
    DEATH_REASON,
    DEATH_TIME,
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

_DEATH = frozenset({DEATH_REASON, DEATH_QUEUE, DEATH_DELIVERIES, DEATH_TIME, NOTE_OF})
#: Characters of a reason that are kept, where there is room.
_REASON = 10_000
#: Messages in one pull.
_LOOK = 1000


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
            DEATH_TIME: f"{time.time():.6f}",
        }
        message = OutgoingMessage(delivery.data, delivery.attributes, delivery.priority)
        short = {**death, DEATH_REASON: cut(reason, REASON_BYTES)}
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

    def redrive(self, queue: str, limit: int | None) -> int:
        broker = self._broker
        redrive = redriving(broker.operators, queue)
        bare: set[bytes] = set()
        moved = 0
        while limit is None or moved < limit:
            left = _LOOK if limit is None else min(_LOOK, limit - moved)
            deliveries = broker.look(dead_letter_queue(queue), left)
            # One that was dead-lettered again meanwhile is not taken twice.
            fresh = [
                d
                for d in deliveries
                if NOTE_OF not in d.attributes
                and d.attributes.get(REDRIVE) != redrive
                and _digest(d) not in bare
            ]
            for delivery in fresh:
                if not self._put_back(queue, delivery, redrive):
                    bare.add(_digest(delivery))
                broker.ack([delivery])
            done = {d.message_id for d in fresh}
            for delivery in deliveries:
                if delivery.attributes.get(NOTE_OF) in done:
                    broker.ack([delivery])
                elif delivery.message_id not in done:
                    broker.give_back(delivery)
            moved += len(fresh)
            if not fresh:
                break
        return moved

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
