"""Dead letters on Pub/Sub: keeping a message with the reason, and taking it back out.

A message in a subscription can't be found without leasing it. So each dead letter also has a record
elsewhere (``Operators``), under the same id: made after the message is published, ended before it is
acked.

A death adds some attributes, and a message may already be as large as Pub/Sub allows, or have as many
attributes. Attributes that don't fit are packed into one (:mod:`.wire`). Where the message leaves no
room at all it is kept unchanged and followed by a *note*: a message without data that carries these
attributes and names, in :data:`NOTE_OF`, the message it is about.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gwi_celery.brokers.base import (
    DEAD_LETTER_SUFFIX,
    DEATH,
    DEATH_ATTEMPTS,
    DEATH_DELIVERIES,
    DEATH_ID,
    DEATH_QUEUE,
    DEATH_REASON,
    DEATH_TIME,
    DEATH_TRACEBACK,
    REDRIVE,
    Delivery,
    OutgoingMessage,
    StoredMessage,
    dead_letter_queue,
    redriving,
)
from gwi_celery.brokers.letters import letter_of
from gwi_celery.brokers.pubsub import wire
from gwi_celery.errors import BrokerUnusable, TooLarge
from gwi_celery.ids import digest
from gwi_celery.text import REASON_BYTES, cut

if TYPE_CHECKING:
    from gwi_celery.brokers.pubsub.broker import PubSubBroker

logger = logging.getLogger(__name__)

#: Attribute of a note: Pub/Sub's id of the message that it is about.
NOTE_OF = "gwi-death-of"

_DEATH = DEATH | {NOTE_OF}
#: An id as it is given to a death here, and to one that is imported.
_ID = re.compile("[0-9a-f]{32}")
#: Characters of a reason that are kept, where there is room.
_REASON = 10_000
#: Messages in one pull.
_LOOK = 1000
#: Seconds until an emulator that answered with nothing is asked again.
_AGAIN = 0.1


class DeadLetters:
    """The dead letters of one broker."""

    def __init__(self, broker: PubSubBroker) -> None:
        self._broker = broker

    def keep(self, delivery: Delivery, reason: str, deliveries: int) -> None:
        """Publish the message to its queue's dead letter, and record that. It is not acked."""
        id = _id(delivery.queue, delivery.message_id)
        death = {
            DEATH_ID: id,
            DEATH_REASON: _shortened(reason),
            DEATH_QUEUE: delivery.queue,
            DEATH_DELIVERIES: str(deliveries),
            DEATH_ATTEMPTS: str(max(delivery.attempts, deliveries)),
            DEATH_TIME: f"{time.time():.6f}",
        }
        # What its worker says of the death isn't part of the message either.
        reported = {k: v for k, v in delivery.attributes.items() if k in _DEATH}
        kept = {k: v for k, v in delivery.attributes.items() if k not in _DEATH}
        message = OutgoingMessage(delivery.data, kept, delivery.priority)
        death = {**reported, **death}
        short = {**death, DEATH_REASON: cut(reason, REASON_BYTES)}
        short.pop(DEATH_TRACEBACK, None)
        for added in (death, short):
            try:
                self._publish(delivery.queue, _with(message, added))
                self._record(delivery, added, id)
                return
            except TooLarge:
                pass
        as_it_came = wire.as_it_came(message)
        if as_it_came is None:
            raise TooLarge("it has no room for the reason, and can't be kept unchanged")
        kept_as = self._broker.publisher.send_dead(delivery.queue, as_it_came)
        del short[DEATH_ID]  # it can't carry one
        self._publish(delivery.queue, OutgoingMessage(b"", {**short, NOTE_OF: kept_as}))
        self._record(delivery, short, _id(delivery.queue, kept_as))

    def bury(self, delivery: Delivery, reason: str, deliveries: int) -> None:
        """Keep the message and ack it; one that can't be kept stays in its queue.

        Raises every other BrokerError, with the message still leased.
        """
        try:
            self.keep(delivery, reason, deliveries)
        except (BrokerUnusable, TooLarge) as exc:
            logger.error(
                "message %s of queue %r could not be moved to the dead letter (%s) and stays in "
                "its queue: %s",
                delivery.message_id,
                delivery.queue,
                cut(reason, REASON_BYTES),
                exc,
            )
            self._broker.deliveries.release(delivery, delivery.lease_seconds)
            return
        self._broker.deliveries.ack([delivery])

    def _record(self, delivery: Delivery, death: dict[str, str], id: str) -> None:
        """Record the death of a published message. A missing record can be made from the dead letter."""
        operators = self._broker.operators
        if operators is not None:
            died = replace(delivery, attributes={**delivery.attributes, **death})
            letter = letter_of(delivery.queue, self.stored(died, id))
            operators.died(replace(letter, expires_at=letter.died_at + self._broker.dead_kept))

    def stored(self, delivery: Delivery, id: str | None = None) -> StoredMessage:
        """The message as operators see it. ``id``: that of a death that is just being recorded."""
        dead = delivery.queue.endswith(DEAD_LETTER_SUFFIX) or id is not None
        return StoredMessage(
            queue=delivery.queue,
            message_id=id or (id_of(delivery) if dead else delivery.message_id),
            data=delivery.data,
            attributes=delivery.attributes,
            deliveries=delivery.attempts,
            published_at=delivery.published_at,
            priority=delivery.priority,
            state="ready",
            expires_at=delivery.published_at + self._broker.dead_kept if dead else None,
        )

    def _publish(self, queue: str, message: OutgoingMessage) -> None:
        publisher = self._broker.publisher
        made = publisher.made("", dead_letter_queue(queue), message, merge=True)
        publisher.send_dead(queue, made)

    def redrive(
        self,
        queue: str,
        limit: int | None,
        only: Collection[str] | None,
        from_step: str | None,
        moved: Callable[[int], object],
    ) -> int:
        broker = self._broker
        mark = redriving(broker.operators, queue, from_step)
        marks: set[str] = set()
        bare: set[bytes] = set()
        walk = Walk(broker, dead_letter_queue(queue))
        total = 0
        try:
            for delivery in walk if limit != 0 else ():
                # One that died again meanwhile is not taken twice.
                again = delivery.attributes.get(REDRIVE) in marks or _digest(delivery) in bare
                id = id_of(delivery)
                wanted = only is None or id in only
                if NOTE_OF in delivery.attributes or again or not wanted:
                    continue
                redrive = mark(id)
                if redrive in marks:  # a copy of one that was published twice
                    walk.done_with(delivery)
                    continue
                marks.add(redrive)
                if not self._put_back(queue, delivery, redrive):
                    bare.add(_digest(delivery))
                # The record ends first: a message that stays behind is then known to be done with.
                if broker.operators is not None:
                    broker.operators.ended([id])
                walk.done_with(delivery)
                total += 1
                moved(1)
                if total == (len(only) if limit is None and only is not None else limit):
                    break
        finally:
            walk.give_back()
        return total

    def discard(self, queue: str, only: Collection[str]) -> int:
        """Delete these messages from ``queue``; if that is a dead letter, end their records first."""
        dead = queue.endswith(DEAD_LETTER_SUFFIX)
        if dead and self._broker.operators is not None:
            self._broker.operators.ended(only)
        walk = Walk(self._broker, queue)
        gone = 0
        try:
            for delivery in walk:
                id = id_of(delivery) if dead else delivery.message_id
                if id in only and NOTE_OF not in delivery.attributes:
                    walk.done_with(delivery)
                    gone += 1
                    if gone == len(only):
                        break
        finally:
            walk.give_back()
        return gone

    def end(self, queue: str, received: Iterable[Any]) -> None:
        """If ``queue`` is a dead letter, end the records of these messages, which are acked next."""
        operators = self._broker.operators
        if operators is not None and queue.endswith(DEAD_LETTER_SUFFIX):
            named = [(wire.parse(item.message), item.message.message_id) for item in received]
            operators.ended([_named(queue, parsed.attributes, id) for parsed, id in named])

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


class Walk:
    """A walk through what is ready in a queue, each message once. All stay leased until given back."""

    def __init__(self, broker: PubSubBroker, queue: str) -> None:
        self._broker = broker
        self._queue = queue
        self._seen: dict[str, Delivery] = {}
        self._done: set[str] = set()

    @property
    def held(self) -> list[Delivery]:
        return [d for id, d in self._seen.items() if id not in self._done]

    def __iter__(self) -> Iterator[Delivery]:
        # Google's emulator answers at once, sometimes before it sees what was just published.
        empty_looks = 2 if self._broker.options.lax else 1
        while True:
            deliveries = self._broker.looks.at_once(self._queue, _LOOK)
            # A message seen twice was held here for longer than its lease.
            fresh = [d for d in deliveries if d.message_id not in self._seen]
            self._seen.update((d.message_id, d) for d in deliveries)
            self._broker.ack([d for d in deliveries if d.message_id in self._done])
            yield from fresh
            if not fresh:
                empty_looks -= 1
                if not empty_looks:
                    return
                time.sleep(_AGAIN)

    def done_with(self, delivery: Delivery) -> None:
        self._broker.ack([delivery])
        self._done.add(delivery.message_id)

    def give_back(self) -> None:
        """Give back the messages that are not done with yet, and drop the notes of the others."""
        kept = []
        for delivery in self.held:
            if delivery.attributes.get(NOTE_OF) in self._done:
                self._broker.ack([delivery])
            else:
                kept.append(delivery)
        self._broker.deliveries.give_back(kept)
        self._broker.flush()


def id_of(delivery: Delivery) -> str:
    """The id of a message in a dead letter: that of its death, or one derived from its own id."""
    return _named(delivery.queue, delivery.attributes, delivery.message_id)


def _named(queue: str, attributes: Mapping[str, str], message_id: str) -> str:
    id = attributes.get(DEATH_ID, "")
    if _ID.fullmatch(id):  # a message that Pub/Sub itself forwarded has what its publisher has set
        return id
    return _id(queue.removesuffix(DEAD_LETTER_SUFFIX), message_id)


def _id(queue: str, message_id: str) -> str:
    return digest("death", queue, message_id)[:32]


def joined(deliveries: Iterable[Delivery]) -> list[Delivery]:
    """The messages without the notes, each with the attributes of its note."""
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
