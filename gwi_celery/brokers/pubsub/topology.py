"""Exchanges, queues and bindings as topics and subscriptions.

- Exchange ``x``: the topic ``gwi-x``, whose label says the exchange's type.
- Queue ``q``: the topic ``gwi-q`` for the default exchange, and the subscription ``gwi-q`` on it.
  A queue that comes and goes (replies, remote control) has its subscription on one topic that all
  such queues share, because topics never expire and subscriptions do.
- A binding of ``q`` to ``x``: the subscription ``gwi-q~b<digest>`` on ``gwi-x``, with the nearest
  filter; except where queue and exchange have one name, and so one topic: there the queue's own
  subscription has it all already.
- With ``priority_levels``: for each level above the lowest the subscription ``gwi-q~p<level>``.

A filter may let through more than the binding matches (the emulator lets through everything), so each
message is checked on arrival by :meth:`Source.takes`. A queue that is bound twice takes a message by
one of the bindings only.

What is known is remembered per connection: each entity is looked up or made once.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, field
from typing import Any

from gwi_celery import forks
from gwi_celery.brokers.base import DEAD_LETTER_SUFFIX, Binding, QueueSpec, dead_letter_queue
from gwi_celery.brokers.checks import check_spec, exists_to_stay
from gwi_celery.brokers.pubsub import naming, wire
from gwi_celery.brokers.pubsub.admin import Admin
from gwi_celery.brokers.pubsub.client import Client, FieldMask, pb
from gwi_celery.brokers.pubsub.options import PubSubOptions
from gwi_celery.brokers.pubsub.readers import Readers
from gwi_celery.brokers.routing import DIRECT, EXCHANGE_TYPES, matches
from gwi_celery.errors import BrokerError, ConfigurationError, NotDeleted, NotFound

logger = logging.getLogger(__name__)

#: Seconds: Pub/Sub's shortest, for subscriptions of queues that come and go.
_EXPIRATION = 86400
#: Seconds: Pub/Sub's shortest ack deadline, and the one that gcloud gives by default.
_SHORTEST_DEADLINE = 10.0
#: Seconds: Pub/Sub's default of how long a subscription keeps messages.
_RETENTION = 7 * 86400
#: Deliveries counted by Pub/Sub itself before it forwards: its most. Ours come first, with a reason.
_FORWARD_AFTER = 100
#: Times that a queue is declared while other processes delete it.
_TRIES = 4
#: Seconds after joining a queue of others' for which their messages are left to them.
_SPARED = 60.0
#: Seconds by which our clock may be ahead of Google's, when old messages are told from new ones.
_SKEW = 2.0


@dataclass(frozen=True)
class Source:
    """One subscription that a queue's messages come by."""

    #: projects/P/subscriptions/S
    path: str
    queue: str
    #: The exchange behind the topic; None: the topic that temporary queues share.
    exchange: str | None
    #: (binding key, exchange's type) of each binding that this subscription stands for.
    keys: tuple[tuple[str, str], ...] = ()
    #: Binding keys of the same exchange whose subscriptions come first.
    earlier: tuple[tuple[str, str], ...] = ()
    #: Whether the default exchange's messages for the queue come this way.
    own: bool = False
    #: On its own topic: nothing is known of bindings, so that all of the exchange's are taken.
    anything: bool = False
    #: Lowest priority, and the one below which it ends.
    priorities: range = range(10)
    #: Published before this, seconds since the epoch: not for this queue, which is younger.
    since: float = 0.0
    #: Until then, seconds since the epoch, such a message may be for another reader of the queue.
    spared_until: float = 0.0
    #: Seconds after its publish that a message is dropped.
    message_ttl: float | None = None

    def takes(self, message: wire.Received) -> bool:
        """Whether a message on this subscription is one for the queue."""
        if message.priority not in self.priorities:
            return False
        if not message.exchange:
            # On its own topic everything is the queue's, whoever published it.
            return self.own and (self.exchange is not None or message.routing_key == self.queue)
        if message.exchange != self.exchange:
            return False
        if self.anything:
            return True
        key = message.routing_key
        return _any_matches(self.keys, key) and not _any_matches(self.earlier, key)


def _any_matches(keys: tuple[tuple[str, str], ...], routing_key: str) -> bool:
    return any(matches(type, key, routing_key) for key, type in keys)


@dataclass
class _Queue:
    spec: QueueSpec
    #: Path of the topic that its own subscription is on.
    topic: str
    #: Exchange -> binding keys, as far as they are known.
    bound: dict[str, set[str]] = field(default_factory=dict)
    #: Whether bindings made by others have been looked for.
    discovered: bool = False
    since: float = 0.0
    #: Keys of bindings to the exchange of its own name that others are told of.
    noted: set[str] = field(default_factory=set)
    #: Made by this connection: others may not know of it, and it goes when this one leaves it.
    made: bool = False
    #: Until then what is older than ``since`` may be for another reader.
    spared_until: float = 0.0
    #: Declared by this connection, and so its to make again.
    declared: bool = False
    #: Making it again failed half way.
    broken: bool = False


class Topology:
    """What exists, and what is made of it, for one connection."""

    def __init__(
        self,
        client: Client,
        options: PubSubOptions,
        later: Callable[[float, Callable[[], object]], None],
    ) -> None:
        self._client = client
        self._admin = Admin(client, options)
        self._readers = Readers(self._admin, later)
        self._options = options
        self._lock = forks.rlock()
        self._exchanges: dict[str, str] = {}
        #: Exchanges that were declared here, to be made again if they go.
        self._declared: dict[str, str] = {}
        self._queues: dict[str, _Queue] = {}
        self._dead: set[str] = set()
        #: Topics that are as the options want them.
        self._compared: set[str] = set()

    # --- names --------------------------------------------------------------------------------

    def topic(self, name: str) -> str:
        """Path of an exchange's topic, or of a queue's own."""
        mapped = self._options.queues.get(name, {}).get("topic")
        return self._path("topics", mapped or naming.topic_id(self._options.prefix, name))

    def subscription(self, queue: str) -> str:
        mapped = self._options.queues.get(queue, {}).get("subscription")
        return self._path(
            "subscriptions", mapped or naming.subscription_id(self._options.prefix, queue)
        )

    def _path(self, kind: str, id: str) -> str:
        return id if id.startswith("projects/") else f"projects/{self._options.project}/{kind}/{id}"

    def _binding_path(self, queue: str, exchange: str, key: str) -> str:
        id = naming.binding_id(self._options.prefix, queue, exchange, key)
        return self._path("subscriptions", id)

    def _temporary_topic(self) -> str:
        return self._path("topics", naming.temporary_topic_id(self._options.prefix))

    # --- exchanges ----------------------------------------------------------------------------

    def declare_exchange(self, name: str, type: str) -> None:
        if type not in EXCHANGE_TYPES:
            raise ConfigurationError(
                f"exchange {name!r} has type {type!r}: use one of {', '.join(EXCHANGE_TYPES)}"
            )
        with self._lock:
            known = self.exchange_type(name)
            if known is None:
                known = self._make_exchange(name, type)
            if name not in self._declared:
                self._compare_topic(self.topic(name))
            if known != type:
                raise ConfigurationError(
                    f"exchange {name!r} exists with type {known!r}, not {type!r}: declare it with "
                    "that type, or delete it first"
                )
            self._exchanges[name] = self._declared[name] = known

    def _make_exchange(self, name: str, type: str) -> str:
        if not self._options.managed:
            return type
        labels = {naming.EXCHANGE_LABEL: type, **naming.name_labels(name)}
        path = self.topic(name)
        if self._admin.create_topic(path, labels):
            return type
        topic = self._client.call("GetTopic", pb["GetTopicRequest"](topic=path), path)
        if naming.EXCHANGE_LABEL in topic.labels:  # made by another process just now
            return str(topic.labels[naming.EXCHANGE_LABEL])
        # So far it is a queue's topic only.
        topic.labels[naming.EXCHANGE_LABEL] = type
        request = pb["UpdateTopicRequest"](topic=topic, update_mask=FieldMask(paths=["labels"]))
        try:
            self._client.call("UpdateTopic", request, path)
        except BrokerError:
            if not self._options.emulator:  # which can't update a topic's labels
                raise
        return type

    def exchange_type(self, name: str) -> str | None:
        """The type of an exchange; None if there is none."""
        if name == "":
            return DIRECT
        known = self._exchanges.get(name)
        if known is not None or not self._options.managed:
            return known
        path = self.topic(name)
        try:
            topic = self._client.call("GetTopic", pb["GetTopicRequest"](topic=path), path)
        except NotFound:
            return None
        found = topic.labels.get(naming.EXCHANGE_LABEL)
        if found:
            self._exchanges[name] = found
        return found or None

    def delete_exchange(self, name: str, *, if_unused: bool = False) -> list[str]:
        """The queues, of those known here, that were bound to it."""
        with self._lock:
            if if_unused:
                self._refuse_if_bound(name)
            self._exchanges.pop(name, None)
            self._declared.pop(name, None)
            were_bound = [queue for queue in self._queues.values() if name in queue.bound]
            for queue in were_bound:
                queue.bound[name] = set()
                queue.noted.clear()
            if self._options.managed:
                topic, own = self.topic(name), self.subscription(name)
                for subscription in self._admin.subscriptions():
                    bound = subscription.topic == topic and "~b" in subscription.name
                    noted = subscription.topic == self._admin.signs_topic
                    if bound or (noted and subscription.name.startswith(own + "~b")):
                        self._admin.delete_subscription(subscription.name)
                if self._admin.get_subscription(own) is None:
                    self._admin.delete_topic(topic)
            return [queue.spec.name for queue in were_bound]

    def _refuse_if_bound(self, exchange: str) -> None:
        if self.exchange_type(exchange) is None:
            return
        bound = [binding.queue for binding in self.bindings() if binding.exchange == exchange]
        if bound:
            raise NotDeleted(f"exchange {exchange!r} is used: queue {bound[0]!r} is bound to it")
        if not self._options.managed or self.has_queue(exchange):
            raise NotDeleted(
                f"nobody can say whether exchange {exchange!r} is used: a queue may be bound to it "
                "without a trace in Pub/Sub; delete it without if_unused"
            )

    # --- queues -------------------------------------------------------------------------------

    def declare_queue(self, spec: QueueSpec) -> bool:
        """False if that is what was known."""
        check_spec(spec)
        with self._lock:
            known = self._queues.get(spec.name)
            if known is not None and known.spec == spec:
                known.declared = True
                return False
            if not self._options.managed:
                self._refuse_temporary(spec)
                topic = self.topic(spec.name)
            elif spec.temporary:
                topic = self._temporary_topic()
            else:
                topic = self.topic(spec.name)
            queue = _Queue(spec, topic, declared=True)
            if known is not None:
                queue.bound, queue.discovered = known.bound, known.discovered
                queue.noted, queue.made = known.noted, known.made
                queue.since, queue.spared_until = known.since, known.spared_until
            if self._options.managed:
                if spec.temporary:
                    self._make_temporary(queue, first=known is None)
                else:
                    self._make_durable(queue)
            self._queues[spec.name] = queue
            return True

    def _refuse_temporary(self, spec: QueueSpec) -> None:
        if spec.temporary and spec.name not in self._options.queues:
            raise ConfigurationError(
                f"queue {spec.name!r} would have to be made, and mode='provisioned' makes nothing: "
                "switch remote control off (worker_enable_remote_control=False, and start workers "
                "--without-gossip --without-mingle), or name its topic and subscription in the "
                "transport option 'queues'"
            )

    def _make_temporary(self, queue: _Queue, *, first: bool) -> None:
        wanted = self._wanted(queue)
        made = self._create_temporary(wanted)
        if not made:
            made = self._take_over(queue, wanted)
        queue.made = queue.made or made
        if first and (self._options.emulator or not made):
            queue.since = self._now()
            queue.spared_until = 0.0 if made else time.time() + _SPARED

    def _create_temporary(self, wanted: Any) -> bool:
        """False if it was there already. The topic that such queues share is made with the first."""
        try:
            return self._admin.create_subscription(wanted)
        except NotFound:
            if wanted.topic != self._temporary_topic():
                raise  # an exchange's
            self._admin.create_topic(wanted.topic, {})
            return self._admin.create_subscription(wanted)

    def _take_over(self, queue: _Queue, wanted: Any) -> bool:
        """A subscription of that name is there; whether it had to be made anew."""
        found = self._admin.get_subscription(wanted.name)
        if found is None:  # its topic was deleted, or another process deleted it just now
            return self._create_temporary(wanted)
        if found.topic != wanted.topic:
            raise exists_to_stay(queue.spec.name)
        return False

    def _now(self) -> float:
        """What was published before now is not for a queue of which this is the beginning.

        The emulator gives a new subscription a topic's retained messages; and one that a killed
        process left behind may hold what was meant for that one.
        """
        # The emulator's own times are in whole milliseconds, and its clock is ours.
        now = int(time.time() * 1000) / 1000
        return now if self._options.emulator else now - _SKEW

    def _make_durable(self, queue: _Queue) -> None:
        for left in reversed(range(_TRIES)):
            try:
                self._try_to_make_durable(queue)
                return
            except NotFound:  # another process deleted part of it just now
                if not left:
                    raise

    def _try_to_make_durable(self, queue: _Queue) -> None:
        name = queue.spec.name
        for level, wanted in self._wanted_levels(queue):
            found = self._admin.get_subscription(wanted.name)
            if level == 0:
                if found is None:
                    self._admin.create_topic(queue.topic, naming.name_labels(name))
                self._compare_topic(queue.topic)
            if found is not None:
                self._compare(name, wanted, found)
                continue
            if level == 0 and not name.endswith(DEAD_LETTER_SUFFIX):
                self.dead_topic(name)
            if not self._admin.create_subscription(wanted):  # another process was faster
                found = self._admin.get_subscription(wanted.name)
                if found is None:
                    raise NotFound(f"queue {name!r} was deleted while it was declared: try again")
                self._compare(name, wanted, found)

    def dead_topic(self, queue: str) -> str:
        """Path of the topic of a queue's dead letter, made with a subscription that keeps it."""
        mapped = self._options.queues.get(queue, {}).get("dead_letter_topic")
        if mapped:
            return self._path("topics", mapped)
        dead = dead_letter_queue(queue)
        if self._options.managed and dead not in self._dead:
            self.declare_queue(QueueSpec(dead))
            self._dead.add(dead)
        return self.topic(dead)

    def delete_queue(self, name: str, *, if_unused: bool = False, if_empty: bool = False) -> None:
        with self._lock:
            if (if_unused or if_empty) and self.has_queue(name):
                # A consumer may be any process's, and messages are not counted.
                what = "is used" if if_unused else "is empty"
                raise NotDeleted(
                    f"Pub/Sub can't say whether queue {name!r} {what}: look with peek() or "
                    "depth(), and delete it without if_unused and if_empty"
                )
            queue = self._queues.pop(name, None)
            if not self._options.managed:
                return
            own = self.subscription(name)
            if queue is not None and queue.spec.temporary:
                self._admin.delete_subscription(own)
                for exchange, keys in queue.bound.items():
                    for key in keys:
                        self._admin.delete_subscription(self._binding_path(name, exchange, key))
                return
            found = self._admin.get_subscription(own)
            if found is None:
                return
            self._admin.delete_subscription(own)
            for subscription in self._admin.subscriptions():
                if subscription.name.startswith(own + "~"):
                    self._admin.delete_subscription(subscription.name)
            if found.topic == self.topic(name) and self.exchange_type(name) is None:
                self._admin.delete_topic(found.topic)

    def note_push(self, path: str, endpoint: str) -> None:
        """Where Pub/Sub posts a subscription's messages from now on; empty: it is pulled."""
        self._admin.note_push(path, endpoint)

    def pushed_to(self, path: str) -> str | None:
        """The endpoint of a subscription that was last seen to be a push one."""
        return self._admin.pushed.get(path)

    def has_queue(self, name: str) -> bool:
        if not self._options.managed:
            return True  # it can't be asked for without an admin call; using it will tell
        return self._admin.get_subscription(self.subscription(name)) is not None

    def queues(self) -> list[str]:
        """Names of all queues, sorted."""
        if not self._options.managed:
            return sorted({*self._options.queues, *self._queues})
        names = (self._queue_name(s) for s in self._admin.subscriptions())
        return sorted(name for name in names if name is not None)

    def spec(self, name: str) -> QueueSpec:
        """What a queue was declared with, here or elsewhere. Raises NotFound."""
        return self._find(name).spec

    def knows(self, name: str) -> bool:
        """Whether this connection has declared or used the queue."""
        return name in self._queues

    # --- bindings -----------------------------------------------------------------------------

    def bind(self, queue: str, exchange: str, routing_key: str) -> None:
        if exchange == "":
            if routing_key == queue:
                return
            raise ConfigurationError(
                f"queue {queue!r} can't be bound to the default exchange under {routing_key!r}: "
                "it has every queue under its own name; declare another exchange"
            )
        with self._lock:
            type = self.exchange_type(exchange)
            if type is None:
                raise NotFound(f"there is no exchange {exchange!r}: declare it first")
            found = self._find(queue)
            keys = found.bound.setdefault(exchange, set())
            if routing_key in keys:
                return
            if self._options.managed and self.topic(exchange) != found.topic:
                self._make_binding(found, exchange, type, routing_key)
            keys.add(routing_key)
            if self._options.managed:
                self._note(found)

    def _note(self, queue: _Queue) -> None:
        """Leave a sign of bindings to the exchange of the queue's own name.

        They share a topic and need no subscription, but other connections must know of them. Without a
        sign a queue counts as bound the way Celery does it, by its name, if it is bound to nothing else.
        """
        name = queue.spec.name
        own = queue.bound.get(name, set()) if self.topic(name) == queue.topic else set()
        elsewhere = any(keys for exchange, keys in queue.bound.items() if exchange != name)
        if own == {name} and self.exchange_type(name) == DIRECT and not elsewhere:
            return
        for key in own - queue.noted:
            labels = {**naming.name_labels(name), **naming.key_labels(key)}
            self._admin.sign(self._binding_path(name, name, key), labels)
            queue.noted.add(key)

    def _make_binding(self, queue: _Queue, exchange: str, type: str, key: str) -> None:
        name = queue.spec.name
        wanted = self._wanted(queue)
        wanted.name = self._binding_path(name, exchange, key)
        wanted.topic = self.topic(exchange)
        wanted.filter = naming.binding_filter(type, key)
        wanted.labels.update(naming.key_labels(key))
        try:
            if self._admin.create_subscription(wanted):
                return
            if queue.spec.temporary:
                if not self._take_over(queue, wanted) and not queue.since:
                    queue.since = self._now()
                return
            found = self._admin.get_subscription(wanted.name)
            if found is None:  # it was of an exchange that was deleted
                self._admin.create_subscription(wanted)
            else:
                self._compare(name, wanted, found)
        except NotFound as exc:
            self._exchanges.pop(exchange, None)
            raise NotFound(f"there is no exchange {exchange!r}: declare it first") from exc

    def unbind(self, queue: str, exchange: str, routing_key: str) -> None:
        with self._lock:
            known = self._queues.get(queue)
            if known is not None:
                known.bound.setdefault(exchange, set()).discard(routing_key)
                if exchange == queue:
                    known.noted.discard(routing_key)
            if self._options.managed:
                self._admin.delete_subscription(self._binding_path(queue, exchange, routing_key))

    def bindings(self) -> list[Binding]:
        """All bindings, other processes' as well; of one name, as far as they were made here."""
        found = {
            Binding(name, exchange, key)
            for name, queue in self._queues.items()
            for exchange, keys in queue.bound.items()
            for key in keys
        }
        if self._options.managed:
            topics = self._topic_names()
            for subscription in self._admin.subscriptions():
                binding = self._binding_of(subscription, topics)
                if binding is not None:
                    found.add(binding)
        return sorted(found, key=lambda b: (b.queue, b.exchange, b.routing_key))

    def _binding_of(self, subscription: Any, topics: dict[str, str]) -> Binding | None:
        path, parted, _ = subscription.name.rpartition("~b")
        key = naming.key_of(subscription.labels)
        queue = self._queue_name_of(path, subscription.labels)
        if not parted or key is None or queue is None:
            return None
        signed = subscription.topic == self._admin.signs_topic
        exchange = queue if signed else topics.get(subscription.topic)
        return None if exchange is None else Binding(queue, exchange, key)

    def _topic_names(self) -> dict[str, str]:
        """Path -> the name of each exchange's topic."""
        names = {}
        for topic in self._admin.topics():
            name = naming.name_of(self._options.prefix, _id(topic.name), topic.labels)
            if name is not None and naming.EXCHANGE_LABEL in topic.labels:
                names[topic.name] = name
                self._exchanges.setdefault(name, topic.labels[naming.EXCHANGE_LABEL])
        return names

    # --- where messages go, and come from -----------------------------------------------------

    def route(self, exchange: str, routing_key: str) -> str:
        """Path of the topic to publish to. Raises NotFound for a missing exchange."""
        if exchange:
            if self.exchange_type(exchange) is None and self._options.managed:
                raise NotFound(f"there is no exchange {exchange!r}: declare it first")
            return self.topic(exchange)
        if not routing_key:
            raise NotFound("the default exchange needs a queue's name as the routing key")
        known = self._queues.get(routing_key)
        if known is not None:
            return known.topic
        with self._lock:
            try:
                return self._find(routing_key).topic
            except NotFound:
                self.declare_queue(QueueSpec(routing_key))
                return self._queues[routing_key].topic

    def finds(self, queue: str) -> bool:
        """Whether the queue is known here, or is found."""
        try:
            self._find(queue)
        except NotFound:
            return False
        return True

    def restore(self, exchange: str, routing_key: str) -> None:
        """What was known turned out to be gone: make it again as it was declared here.

        Deleted by somebody, or an emulator that was started anew. What wasn't declared here is
        forgotten, to be looked up again.
        """
        with self._lock:
            if exchange:
                self._exchanges.pop(exchange, None)
                type = self._declared.get(exchange)
                if type is not None:
                    self.declare_exchange(exchange, type)
                    self._bind_again(exchange)
                return
            queue = self._queues.pop(routing_key, None)
            self._dead.discard(dead_letter_queue(routing_key))
            self._queues.pop(dead_letter_queue(routing_key), None)
            if queue is None or not self._options.managed:
                return
            if not queue.declared:
                return
            try:
                self._make_again(queue)
            except BaseException:
                # Half of it may be there; what it was bound to must not be forgotten.
                queue.broken = True
                self._queues[routing_key] = queue
                raise

    def recover(self, source: Source) -> None:
        """A subscription that is read from is gone: one binding, or the queue.

        While the queue is there, somebody undid the binding, or deleted its exchange: it is forgotten.
        Otherwise the queue is made again as it was declared here, with what it was bound to.
        """
        with self._lock:
            queue = self._queues.get(source.queue)
            if not source.own and queue is not None and not queue.broken:
                if self._client.settling(source.path):
                    return  # it is asked again, and by then it is there or it isn't
                if self._admin.get_subscription(source.path) is not None:
                    return
                if self._admin.get_subscription(self.subscription(source.queue)) is not None:
                    unbound = {key for key, _ in source.keys}
                    queue.bound.setdefault(source.exchange or "", set()).difference_update(unbound)
                    logger.info("queue %r is no longer bound by %s", source.queue, source.path)
                    return
            self.restore("", source.queue)

    def _make_again(self, queue: _Queue) -> None:
        self.declare_queue(queue.spec)
        for name, keys in queue.bound.items():
            if name in self._declared:
                self._exchanges.pop(name, None)  # it may be gone as well: look
                self.declare_exchange(name, self._declared[name])
            for key in keys:
                try:
                    self.bind(queue.spec.name, name, key)
                except NotFound:
                    if name in self._declared:
                        raise
                    # Another connection's exchange, which is gone: so is what was bound to it.

    def _bind_again(self, exchange: str) -> None:
        """What is bound to an exchange by a topic that was deleted gets nothing by it any more."""
        for queue in list(self._queues.values()):
            if queue.declared:
                queue.noted.clear()
                for key in queue.bound.pop(exchange, ()):
                    self.bind(queue.spec.name, exchange, key)

    def forget_queue(self, name: str) -> None:
        with self._lock:
            self._queues.pop(name, None)

    def sources(self, name: str) -> list[Source]:
        """The subscriptions of a queue, most urgent first. Raises NotFound."""
        with self._lock:
            queue = self._find(name)
            if not queue.discovered and self._options.managed and not queue.spec.temporary:
                self._discover(queue)
            return list(self._sources(queue))

    def join(self, name: str) -> None:
        """This connection reads from the queue."""
        with self._lock:
            queue = self._find(name)
            if self._options.managed and queue.spec.temporary and not queue.made:
                self._readers.join(self.subscription(name))

    def leave(self, name: str) -> None:
        """It reads no more: an auto_delete queue goes with its last reader."""
        with self._lock:
            queue = self._queues.get(name)
            if queue is None or not self._options.managed or not queue.spec.temporary:
                return
            made = queue.made and queue.spec.auto_delete
            queue.made = False
            if self._readers.leave(self.subscription(name), made=made):
                if not made:
                    del self._queues[name]  # what others have bound it to is not known here
                self.delete_queue(name)

    def rediscover(self, name: str) -> None:
        """Let :meth:`sources` look again for bindings that other connections made."""
        with self._lock:
            queue = self._queues.get(name)
            if queue is not None:
                queue.discovered = False

    def _sources(self, queue: _Queue) -> Iterator[Source]:
        name = queue.spec.name
        shares_topic = self.topic(name) == queue.topic
        common: dict[str, Any] = {
            "queue": name,
            "since": queue.since,
            "spared_until": queue.spared_until,
            "message_ttl": queue.spec.message_ttl,
        }
        on_own_topic = self._on_own_topic(queue) if shares_topic else ()
        for level, path, priorities in reversed(self._levels(queue)):
            del level
            yield Source(
                path=path,
                exchange=name if shares_topic else None,
                keys=on_own_topic or (),
                own=True,
                anything=on_own_topic is None,
                priorities=priorities,
                **common,
            )
        for exchange, keys in queue.bound.items():
            if shares_topic and exchange == name:
                continue
            if not self._options.managed:
                continue
            ordered = self._typed(exchange, sorted(keys))
            for n, key in enumerate(ordered):
                yield Source(
                    path=self._binding_path(name, exchange, key[0]),
                    exchange=exchange,
                    keys=(key,),
                    earlier=ordered[:n],
                    **common,
                )

    def _on_own_topic(self, queue: _Queue) -> tuple[tuple[str, str], ...] | None:
        """What a queue takes of the exchange of its own name; None: nothing is known of bindings."""
        name = queue.spec.name
        if name in queue.bound:
            return self._typed(name, sorted(queue.bound[name]))
        if queue.bound:
            return ()
        if queue.declared and self._options.managed:
            return ((name, DIRECT),)  # as Celery binds it, maybe by another connection
        return None

    def _typed(self, exchange: str, keys: Any) -> tuple[tuple[str, str], ...]:
        type = (self.exchange_type(exchange) if keys else None) or DIRECT
        return tuple((key, type) for key in keys)

    def _levels(self, queue: _Queue) -> list[tuple[int, str, range]]:
        """(lowest priority, subscription, priorities) of each level, from the lowest."""
        own = self.subscription(queue.spec.name)
        levels = self._options.priority_levels
        if len(levels) < 2 or queue.spec.temporary or queue.spec.name.endswith(DEAD_LETTER_SUFFIX):
            return [(0, own, range(10))]
        ends = [*levels[1:], 10]
        return [
            (level, own if level == 0 else f"{own}~p{level}", range(level, end))
            for level, end in zip(levels, ends, strict=True)
        ]

    def _discover(self, queue: _Queue) -> None:
        """Find the bindings that other connections made."""
        own = self.subscription(queue.spec.name)
        topics: dict[str, str] | None = None
        for subscription in self._admin.subscriptions():
            if subscription.name.startswith(own + "~b"):
                topics = self._topic_names() if topics is None else topics
                binding = self._binding_of(subscription, topics)
                if binding is not None:
                    queue.bound.setdefault(binding.exchange, set()).add(binding.routing_key)
        queue.discovered = True

    def _find(self, name: str) -> _Queue:
        known = self._queues.get(name)
        if known is not None:
            return known
        if not self._options.managed:
            queue = _Queue(QueueSpec(name), self.topic(name))
        else:
            found = self._admin.get_subscription(self.subscription(name))
            if found is None:
                raise NotFound(f"there is no queue {name!r}: declare it first")
            queue = _Queue(_spec_of(name, found), found.topic)
        self._queues[name] = queue
        return queue

    # --- subscriptions as they should be ------------------------------------------------------

    def _wanted_levels(self, queue: _Queue) -> Iterator[tuple[int, Any]]:
        levels = self._levels(queue)
        for n, (level, path, _) in enumerate(levels):
            wanted = self._wanted(queue)
            wanted.name = path
            if len(levels) > 1:
                following = levels[n + 1][0] if n + 1 < len(levels) else None
                wanted.filter = naming.priority_filter(level, following)
            yield level, wanted

    def _wanted(self, queue: _Queue) -> Any:
        """The queue's own subscription."""
        options, spec = self._options, queue.spec
        wanted = pb["Subscription"](
            name=self.subscription(spec.name),
            topic=queue.topic,
            ack_deadline_seconds=self.ack_deadline(spec),
            labels={**options.labels, **naming.name_labels(spec.name)},
            expiration_policy=pb["ExpirationPolicy"](),
        )
        if spec.message_ttl is not None:
            wanted.labels[naming.TTL_LABEL] = str(math.ceil(spec.message_ttl * 1000))
        if spec.max_deliveries is not None:
            wanted.labels[naming.MAX_DELIVERIES_LABEL] = str(spec.max_deliveries)
        if spec.temporary:
            wanted.labels[naming.TEMPORARY_LABEL] = "1"
            expiration = max(_EXPIRATION, math.ceil(spec.expires or 0))
            wanted.expiration_policy.ttl.seconds = expiration
            # Not longer than the queue itself may be idle.
            wanted.message_retention_duration.seconds = min(expiration, _RETENTION)
            wanted.filter = naming.queue_filter(spec.name)
            return wanted
        wanted.message_retention_duration.seconds = int(options.retention or _RETENTION)
        wanted.enable_exactly_once_delivery = options.exactly_once
        wanted.enable_message_ordering = options.ordering
        if options.retry_policy is not None:
            shortest, longest = options.retry_policy
            wanted.retry_policy.minimum_backoff.FromMilliseconds(round(shortest * 1000))
            wanted.retry_policy.maximum_backoff.FromMilliseconds(round(longest * 1000))
        if not spec.name.endswith(DEAD_LETTER_SUFFIX):
            # Without this policy Pub/Sub counts no deliveries.
            wanted.dead_letter_policy.dead_letter_topic = self.topic(dead_letter_queue(spec.name))
            wanted.dead_letter_policy.max_delivery_attempts = _FORWARD_AFTER
        return wanted

    def ack_deadline(self, spec: QueueSpec) -> int:
        """Seconds a delivery of the queue is leased for."""
        seconds = spec.lease_seconds or self._options.lease_seconds
        if not 10 <= seconds <= 600:
            raise ConfigurationError(
                f"queue {spec.name!r}: lease_seconds is {seconds:g}; Pub/Sub takes 10 to 600"
            )
        return round(seconds)

    def first_lease(self, spec: QueueSpec) -> float:
        """Seconds for which a delivery is leased at least, before that is extended."""
        # Without an admin call a subscription's ack deadline can't be read: take the shortest.
        deadline = float(self.ack_deadline(spec))
        return deadline if self._options.managed else min(deadline, _SHORTEST_DEADLINE)

    def max_deliveries(self, spec: QueueSpec) -> int:
        own = spec.max_deliveries
        return self._options.max_deliveries if own is None else own

    def _compare(self, queue: str, wanted: Any, found: Any) -> None:
        """Drift between configuration and what exists: repaired, or an error that names both."""
        different = {
            name: (text(found), text(wanted))
            for name, text in _COMPARED.items()
            if text(found) != text(wanted)
        }
        labels = _merged_labels(found, wanted)
        if labels != dict(found.labels):
            different["labels"] = (str(dict(found.labels)), str(labels))
        if not different:
            return
        what = f"queue {queue!r}: subscription {wanted.name}"
        if "filter" in different:
            what = self._levels_left(queue) + what
        self._refuse_or_repair(what, different, _IMMUTABLE)
        wanted.labels.clear()
        wanted.labels.update(labels)
        self._update("Subscription", wanted, different)

    def _levels_left(self, queue: str) -> str:
        """Names levels of ``priority_levels`` as it was, which nobody would read from."""
        own = self.subscription(queue)
        read = {path for _, path, _ in self._levels(_Queue(QueueSpec(queue), self.topic(queue)))}
        found = {s.name for s in self._admin.subscriptions() if s.name.startswith(f"{own}~p")}
        left = sorted(_id(path) for path in found - read)
        if not left:
            return ""
        return (
            f"priority_levels was another: once they are drained, delete {', '.join(left)}, which "
            "nobody reads from any more. "
        )

    def _compare_topic(self, path: str) -> None:
        """The same for a topic, as far as the options say anything of topics."""
        options = self._options
        if not (options.managed and (options.kms_key or options.storage_regions or options.labels)):
            return
        if path in self._compared:
            return
        topic = self._client.call("GetTopic", pb["GetTopicRequest"](topic=path), path)
        regions = topic.message_storage_policy.allowed_persistence_regions
        labels = {**topic.labels, **options.labels}
        different: dict[str, tuple[str, str]] = {}
        if options.kms_key and topic.kms_key_name != options.kms_key:
            different["kms_key_name"] = (topic.kms_key_name or "none", options.kms_key)
        if options.storage_regions and set(regions) != set(options.storage_regions):
            found, wanted = sorted(regions), sorted(options.storage_regions)
            different["message_storage_policy"] = (", ".join(found) or "any", ", ".join(wanted))
        if labels != dict(topic.labels):
            different["labels"] = (str(dict(topic.labels)), str(labels))
        if different:
            self._refuse_or_repair(f"topic {path}", different, {"kms_key_name"})
            topic.labels.update(options.labels)
            topic.message_storage_policy.allowed_persistence_regions[:] = options.storage_regions
            self._update("Topic", topic, different)
        self._compared.add(path)

    def _refuse_or_repair(
        self, what: str, different: dict[str, tuple[str, str]], immutable: Set[str]
    ) -> None:
        """Raises ConfigurationError unless it may be, and can be, repaired."""

        def said(names: Iterable[str]) -> str:
            return "; ".join(
                f"{n} is {different[n][0]}, should be {different[n][1]}" for n in names
            )

        if not self._options.repair:
            raise ConfigurationError(
                f"{what} differs from the configuration: {said(different)}. Change the "
                "configuration, or set repair=True in broker_transport_options"
            )
        fixed = [name for name in different if name in immutable]
        if fixed:
            kind, path = what.split(" ")[-2:]
            raise ConfigurationError(
                f"{what} differs in what Pub/Sub can't change: {said(fixed)}. Drain it, `gcloud "
                f"pubsub {kind}s delete {_id(path)} --project={path.split('/')[1]}`, and start "
                "again, or use another queue"
            )

    def _update(self, kind: str, resource: Any, different: Iterable[str]) -> None:
        repaired = []
        for name in sorted(different):
            request = pb[f"Update{kind}Request"](
                **{kind.lower(): resource}, update_mask=FieldMask(paths=[name])
            )
            try:
                self._client.call(f"Update{kind}", request, resource.name)
                repaired.append(name)
            except BrokerError:
                if not (self._options.emulator and name in _NOT_UPDATED_BY_EMULATOR):
                    raise
        logger.warning("repaired %s of %s", ", ".join(repaired) or "nothing", resource.name)

    def _queue_name(self, subscription: Any) -> str | None:
        return self._queue_name_of(subscription.name, subscription.labels)

    def _queue_name_of(self, path: str, labels: Any) -> str | None:
        return naming.name_of(self._options.prefix, _id(path), labels)


# --- what drift is ------------------------------------------------------------------------------


def _seconds(duration: Any) -> str:
    return f"{duration.seconds + duration.nanos / 1e9:g} s"


#: Field -> how it reads.
_COMPARED: dict[str, Any] = {
    "topic": lambda s: s.topic,
    "filter": lambda s: s.filter,
    "ack_deadline_seconds": lambda s: str(s.ack_deadline_seconds),
    "enable_message_ordering": lambda s: str(s.enable_message_ordering),
    "enable_exactly_once_delivery": lambda s: str(s.enable_exactly_once_delivery),
    "retry_policy": lambda s: (
        f"{_seconds(s.retry_policy.minimum_backoff)} to {_seconds(s.retry_policy.maximum_backoff)}"
        if s.HasField("retry_policy")
        else "none"
    ),
    "dead_letter_policy": lambda s: (
        f"{s.dead_letter_policy.dead_letter_topic} after "
        f"{s.dead_letter_policy.max_delivery_attempts} deliveries"
        if s.HasField("dead_letter_policy")
        else "none"
    ),
    "expiration_policy": lambda s: (
        f"after {_seconds(s.expiration_policy.ttl)}"
        if s.expiration_policy.HasField("ttl")
        else "never"
    ),
    "message_retention_duration": lambda s: (
        _seconds(s.message_retention_duration)
        if s.HasField("message_retention_duration")
        else f"{_RETENTION} s"
    ),
}
_IMMUTABLE = frozenset({"topic", "filter", "enable_message_ordering"})
_NOT_UPDATED_BY_EMULATOR = frozenset({"labels", "expiration_policy", "message_storage_policy"})


def _merged_labels(found: Any, wanted: Any) -> dict[str, str]:
    """As they should be: what others have set stays, and of ours nothing that isn't wanted."""
    kept = {k: v for k, v in found.labels.items() if not k.startswith("gwi-")}
    return {**kept, **wanted.labels}


def _spec_of(name: str, subscription: Any) -> QueueSpec:
    labels = subscription.labels
    ttl = labels.get(naming.TTL_LABEL)
    limit = labels.get(naming.MAX_DELIVERIES_LABEL)
    temporary = naming.TEMPORARY_LABEL in labels
    return QueueSpec(
        name,
        durable=not temporary,
        expires=float(_EXPIRATION) if temporary else None,
        message_ttl=int(ttl) / 1000 if ttl else None,
        lease_seconds=float(subscription.ack_deadline_seconds),
        max_deliveries=int(limit) if limit else None,
    )


def _id(path: str) -> str:
    return path.rpartition("/")[2]
