"""What exists, as one connection knows it: declared, looked up, and recreated when it is gone."""

from __future__ import annotations

import logging

from gwi_celery import forks
from gwi_celery.background import Scheduler
from gwi_celery.brokers.base import Binding, QueueSpec, check_default_binding, dead_letter_queue
from gwi_celery.brokers.checks import bound_exchange, check_spec, no_exchange, no_queue
from gwi_celery.brokers.pubsub.admin import Admin
from gwi_celery.brokers.pubsub.client import Client
from gwi_celery.brokers.pubsub.options import PubSubOptions
from gwi_celery.brokers.pubsub.readers import Readers
from gwi_celery.brokers.pubsub.topology.bindings import Bindings
from gwi_celery.brokers.pubsub.topology.desired import Desired, spec_of
from gwi_celery.brokers.pubsub.topology.drift import Drift
from gwi_celery.brokers.pubsub.topology.exchanges import Exchanges
from gwi_celery.brokers.pubsub.topology.making import Making
from gwi_celery.brokers.pubsub.topology.paths import Paths
from gwi_celery.brokers.pubsub.topology.sources import Queue, Source, Sources
from gwi_celery.errors import ConfigurationError, NotDeleted, NotFound

logger = logging.getLogger(__name__)


class Topology:
    """What exists, for one connection: the one index from names to topics and subscriptions.

    Over 25 methods, because every admin operation of the seam has to keep this index consistent.
    """

    def __init__(
        self,
        client: Client,
        options: PubSubOptions,
        jobs: Scheduler,
    ) -> None:
        self._client = client
        self.admin = Admin(client, options)
        self._readers = Readers(self.admin, jobs)
        self._options = options
        self._lock = forks.rlock()
        self._paths = paths = Paths(options)
        self.desired = desired = Desired(options, paths)
        drift = Drift(client, self.admin, options, paths, desired)
        self.exchanges = Exchanges(client, self.admin, options, paths, drift)
        self._bindings = Bindings(self.admin, paths, self.exchanges)
        self._sources = Sources(options, paths, desired, self.exchanges.type_of)
        self._making = Making(self.admin, options, paths, desired, drift, self.dead_topic)
        self._queues: dict[str, Queue] = {}
        #: Names of dead letters that are known to exist.
        self._dead: set[str] = set()
        #: Whether the topic that temporary queues share is known to exist.
        self._shared_topic = False

    def subscription(self, queue: str) -> str:
        """Path of a queue's own subscription."""
        return self._paths.subscription(queue)

    # --- exchanges ----------------------------------------------------------------------------

    def declare_exchange(self, name: str, type: str) -> None:
        with self._lock:
            self.exchanges.declare(name, type)

    def delete_exchange(self, name: str, *, if_unused: bool = False) -> list[str]:
        """Returns the names of the queues known here that were bound to it."""
        with self._lock:
            if if_unused:
                self._refuse_if_bound(name)
            self.exchanges.forget(name)
            were_bound = [queue for queue in self._queues.values() if name in queue.bound]
            for queue in were_bound:
                queue.bound[name] = set()
                queue.noted.clear()
            if self._options.managed:
                self.exchanges.delete(name)
            return [queue.spec.name for queue in were_bound]

    def _refuse_if_bound(self, exchange: str) -> None:
        # First, because bindings are listed even while their exchange is too new to be found.
        bound = [binding.queue for binding in self.bindings() if binding.exchange == exchange]
        if bound:
            raise NotDeleted(bound_exchange(exchange, bound[0]))
        if self.exchanges.type_of(exchange) is None:
            return
        if not self._options.managed or self.has_queue(exchange):
            raise NotDeleted(
                f"nobody can say whether exchange {exchange!r} is used: a queue may be bound to it "
                "without a trace in Pub/Sub; delete it without if_unused"
            )

    # --- queues -------------------------------------------------------------------------------

    def declare_queue(self, spec: QueueSpec) -> bool:
        """Create the queue, or give it these settings. False if it is known to have them."""
        check_spec(spec)
        with self._lock:
            known = self._queues.get(spec.name)
            if known is not None and known.spec == spec:
                known.declared = True
                return False
            if not self._options.managed:
                self._refuse_temporary(spec)
                topic = self._paths.topic(spec.name)
            elif spec.temporary:
                topic = self._paths.temporary_topic()
            else:
                topic = self._paths.topic(spec.name)
            queue = Queue(spec, topic, declared=True)
            if known is not None:
                queue.bound, queue.discovered = known.bound, known.discovered
                queue.noted, queue.made = known.noted, known.made
                queue.since, queue.spared_until = known.since, known.spared_until
            if self._options.managed:
                if spec.temporary:
                    self._making.temporary(queue, first=known is None)
                else:
                    self._making.durable(queue)
            self._queues[spec.name] = queue
            return True

    def _refuse_temporary(self, spec: QueueSpec) -> None:
        if spec.temporary and spec.name not in self._options.queues:
            raise ConfigurationError(
                f"queue {spec.name!r} doesn't exist, and mode='provisioned' creates nothing: "
                "switch remote control off (worker_enable_remote_control=False, and start workers "
                "--without-gossip --without-mingle), or name its topic and subscription in the "
                "transport option 'queues'"
            )

    def dead_topic(self, queue: str) -> str:
        """Path of the topic of a queue's dead letter, made with a subscription that keeps it."""
        mapped = self._paths.mapped_dead_topic(queue)
        if mapped is not None:
            return mapped
        dead = dead_letter_queue(queue)
        if self._options.managed and dead not in self._dead:
            self.declare_queue(QueueSpec(dead))
            self._dead.add(dead)
        return self._paths.topic(dead)

    def delete_queue(self, name: str, *, if_unused: bool = False, if_empty: bool = False) -> None:
        with self._lock:
            if if_unused or if_empty:
                if not self.has_queue(name):
                    return
                # A consumer may be any process's, and messages are not counted.
                what = "is used" if if_unused else "is empty"
                raise NotDeleted(
                    f"Pub/Sub can't say whether queue {name!r} {what}: look with peek() or "
                    "depth(), and delete it without if_unused and if_empty"
                )
            queue = self._queues.pop(name, None)
            if not self._options.managed:
                return
            own = self._paths.subscription(name)
            if queue is not None and queue.spec.temporary:
                self.admin.delete_subscription(own)
                for exchange, keys in queue.bound.items():
                    for key in keys:
                        self.admin.delete_subscription(self._paths.binding(name, exchange, key))
                return
            found = self.admin.get_subscription(own)
            if found is None:
                return
            self.admin.delete_subscription(own)
            for subscription in self.admin.subscriptions():
                if subscription.name.startswith(own + "~"):
                    self.admin.delete_subscription(subscription.name)
            if found.topic == self._paths.topic(name) and self.exchanges.type_of(name) is None:
                self.admin.delete_topic(found.topic)

    def has_queue(self, name: str) -> bool:
        if not self._options.managed:
            return True  # only an admin call could tell; using it will
        return self.admin.get_subscription(self._paths.subscription(name)) is not None

    def queues(self) -> list[str]:
        """Names of all queues, sorted."""
        if not self._options.managed:
            return sorted({*self._options.queues, *self._queues})
        names = (self._paths.name_of(s.name, s.labels) for s in self.admin.subscriptions())
        return sorted(name for name in names if name is not None)

    def spec(self, name: str) -> QueueSpec:
        """What a queue was declared with, here or elsewhere. Raises NotFound."""
        return self._find(name).spec

    def first_lease(self, name: str) -> float:
        """Seconds for which a delivery of the queue is leased. Raises NotFound."""
        return self.desired.first_lease(self.spec(name))

    # --- bindings -----------------------------------------------------------------------------

    def bind(self, queue: str, exchange: str, routing_key: str) -> None:
        if exchange == "":
            check_default_binding(queue, routing_key)
            return
        with self._lock:
            type = self.exchanges.type_of(exchange)
            if type is None:
                raise no_exchange(exchange)
            found = self._find(queue)
            keys = found.bound.setdefault(exchange, set())
            if routing_key in keys:
                return
            if self._options.managed and self._paths.topic(exchange) != found.topic:
                try:
                    self._making.binding(found, exchange, type, routing_key)
                except NotFound as exc:
                    self.exchanges.look_again(exchange)
                    raise no_exchange(exchange) from exc
            keys.add(routing_key)
            if self._options.managed:
                self._bindings.note(found)

    def unbind(self, queue: str, exchange: str, routing_key: str) -> None:
        with self._lock:
            known = self._queues.get(queue)
            if known is not None:
                known.bound.setdefault(exchange, set()).discard(routing_key)
                if exchange == queue:
                    known.noted.discard(routing_key)
            if self._options.managed:
                self.admin.delete_subscription(self._paths.binding(queue, exchange, routing_key))

    def bindings(self) -> list[Binding]:
        """All bindings, other processes' as well.

        Of others' bindings of a queue to the exchange of its name, only those that have a sign.
        """
        with self._lock:
            found = {
                Binding(name, exchange, key)
                for name, queue in self._queues.items()
                for exchange, keys in queue.bound.items()
                for key in keys
            }
        if self._options.managed:
            found.update(self._bindings.all())
        return sorted(found, key=lambda b: (b.queue, b.exchange, b.routing_key))

    # --- where messages go, and come from -----------------------------------------------------

    def route(self, exchange: str, routing_key: str) -> str:
        """Path of the topic to publish to. Raises NotFound for a missing exchange."""
        if exchange:
            if self.exchanges.type_of(exchange) is None and self._options.managed:
                raise no_exchange(exchange)
            return self._paths.topic(exchange)
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

    def reply_topic(self, queue: str) -> str:
        """Path of the topic to publish a reply to; no queue is made for one that nobody waits for.

        Whoever asked made the queue just now, so Pub/Sub may not find it yet. On the topic that temporary
        queues share, the reply reaches it all the same.
        """
        try:
            return self._find(queue).topic
        except NotFound:
            topic = self._paths.temporary_topic()
            if not self._shared_topic:
                self.admin.create_topic(topic, {})
                self._shared_topic = True
            return topic

    def restore(self, exchange: str, routing_key: str) -> None:
        """Recreate what turned out to be gone, as this connection declared it.

        Somebody deleted it, or an emulator was restarted. What this connection didn't declare is
        forgotten, and looked up again.
        """
        with self._lock:
            if exchange:
                if self.exchanges.restore(exchange):
                    self._bind_again(exchange)
                return
            queue = self._queues.pop(routing_key, None)
            self._dead.discard(dead_letter_queue(routing_key))
            self._queues.pop(dead_letter_queue(routing_key), None)
            self._shared_topic = False
            if queue is None or not self._options.managed:
                return
            if not queue.declared:
                return
            try:
                self._make_again(queue)
            except BaseException:
                # It may exist in part; what it was bound to must not be forgotten.
                queue.broken = True
                self._queues[routing_key] = queue
                raise

    def recover(self, source: Source) -> None:
        """A subscription that is read from is gone: one binding, or the queue.

        If the queue still exists, somebody removed the binding or its exchange: it is forgotten.
        Otherwise the queue is recreated as this connection declared it, with its bindings.
        """
        with self._lock:
            queue = self._queues.get(source.queue)
            if not source.own and queue is not None and not queue.broken:
                if self._client.settling(source.path):
                    return  # tried again later
                if self.admin.get_subscription(source.path) is not None:
                    return
                if self.admin.get_subscription(self._paths.subscription(source.queue)) is not None:
                    unbound = {key for key, _ in source.keys}
                    queue.bound.setdefault(source.exchange or "", set()).difference_update(unbound)
                    logger.info("queue %r is no longer bound by %s", source.queue, source.path)
                    return
            self.restore("", source.queue)

    def _make_again(self, queue: Queue) -> None:
        if not queue.spec.temporary:
            self._making.renew_topic(queue)
        self.declare_queue(queue.spec)
        for name, keys in queue.bound.items():
            if self.exchanges.declared(name):
                self.exchanges.restore(name)  # it may be gone as well
            for key in keys:
                try:
                    self.bind(queue.spec.name, name, key)
                except NotFound:
                    if self.exchanges.declared(name):
                        raise
                    # Another connection's exchange is gone, and its bindings with it.

    def _bind_again(self, exchange: str) -> None:
        """Bindings on a deleted topic deliver nothing any more: recreate them."""
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
                for binding in self._bindings.of_queue(name):
                    queue.bound.setdefault(binding.exchange, set()).add(binding.routing_key)
                queue.discovered = True
            sources = list(self._sources.of(queue))
            for source in sources:
                self._client.first_seen(source.path)
            return sources

    def join(self, name: str) -> None:
        """This connection begins to read from the queue."""
        with self._lock:
            queue = self._find(name)
            if self._options.managed and queue.spec.temporary and not queue.made:
                self._readers.join(self._paths.subscription(name))

    def leave(self, name: str) -> None:
        """This connection stops reading: an auto_delete queue is deleted with its last reader."""
        with self._lock:
            queue = self._queues.get(name)
            if queue is None or not self._options.managed or not queue.spec.temporary:
                return
            made = queue.made and queue.spec.auto_delete
            queue.made = False
            if self._readers.leave(self._paths.subscription(name), made=made):
                if not made:
                    del self._queues[name]  # this connection doesn't know what others bound it to
                self.delete_queue(name)

    def rediscover(self, name: str) -> None:
        """Let :meth:`sources` look again for bindings that other connections made."""
        with self._lock:
            queue = self._queues.get(name)
            if queue is not None:
                queue.discovered = False

    def _find(self, name: str) -> Queue:
        known = self._queues.get(name)
        if known is not None:
            return known
        if not self._options.managed:
            queue = Queue(QueueSpec(name), self._paths.topic(name))
        else:
            found = self.admin.get_subscription(self._paths.subscription(name))
            if found is None:
                raise no_queue(name)
            queue = Queue(spec_of(name, found), found.topic)
        self._queues[name] = queue
        return queue
