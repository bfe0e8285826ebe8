"""Exchanges, queues and bindings of an embedded broker."""

from __future__ import annotations

import sqlite3

from gwi_celery.brokers.base import Binding, QueueSpec, check_default_binding
from gwi_celery.brokers.checks import (
    bound_exchange,
    check_exchange_type,
    check_same_type,
    check_spec,
    exists_to_stay,
    no_exchange,
)
from gwi_celery.brokers.embedded import messages, tables
from gwi_celery.brokers.embedded.files import Change, Files
from gwi_celery.brokers.embedded.tables import Queue
from gwi_celery.brokers.routing import DIRECT
from gwi_celery.errors import NotDeleted, NotFound


class Entities:
    """Each method as :class:`~gwi_celery.brokers.base.Broker` has it."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def declare_exchange(self, name: str, type: str) -> None:
        check_exchange_type(name, type)
        with self._files.database.read() as c:
            found = DIRECT if name == "" else tables.exchange_type(c, name)
        if found is None:
            with self._files.database.write() as c:
                tables.put_exchange(c, name, type)
                found = tables.exchange_type(c, name)
        check_same_type(name, found, type)

    def delete_exchange(self, name: str, *, if_unused: bool = False) -> None:
        with self._files.database.write() as c:
            bound = tables.bound_to(c, name, self._files.clock.time()) if if_unused else []
            if bound:
                raise NotDeleted(bound_exchange(name, bound[0]))
            tables.drop_exchange(c, name)

    def has_exchange(self, name: str) -> bool:
        with self._files.database.read() as c:
            return name == "" or tables.exchange_type(c, name) is not None

    def declare_queue(self, spec: QueueSpec) -> None:
        check_spec(spec)
        with self._files.database.read() as c:
            found = tables.find_queue(c, spec.name, self._files.clock.time())
            listeners = tables.listeners(c, spec.name) if spec.temporary else []
        if found is not None and found.spec == spec and spec.expires is None and not listeners:
            return
        dead = self._files.dead(listeners)
        with self._files.database.write(durable=not spec.temporary) as c:
            now = self._files.clock.time()
            # First: an auto_delete queue of a killed process is deleted, with its messages.
            for bell in dead:
                tables.drop_bell(c, bell, now)
            found = tables.find_queue(c, spec.name, now)
            if found is not None and spec.temporary and not found.spec.temporary:
                raise exists_to_stay(spec.name)
            tables.put_queue(c, spec, now)

    def delete_queue(self, name: str, *, if_unused: bool = False, if_empty: bool = False) -> None:
        with self._files.database.read() as c:
            found = tables.find_queue(c, name, self._files.clock.time())
            listeners = tables.listeners(c, name) if if_unused else []
        if found is None:
            return
        dead = self._files.dead(listeners)
        with self._files.database.write(durable=not found.spec.temporary) as c:
            now = self._files.clock.time()
            for bell in dead:
                tables.drop_bell(c, bell, now)
            found = tables.find_queue(c, name, now)
            if found is None:
                return
            if if_unused and tables.listeners(c, name):
                raise NotDeleted(
                    f"queue {name!r} is used: somebody consumes from it; stop that first, or delete it "
                    "without if_unused"
                )
            if if_empty and (size := messages.size(c, found, now)).total:
                raise NotDeleted(
                    f"queue {name!r} is not empty: {size.ready} messages are ready, "
                    f"{size.delayed} delayed and {size.leased} leased; purge it first, or delete it "
                    "without if_empty"
                )
            tables.drop_queue(c, name)

    def has_queue(self, name: str) -> bool:
        with self._files.database.read() as c:
            return tables.find_queue(c, name, self._files.clock.time()) is not None

    def bind(self, queue: str, exchange: str, routing_key: str) -> None:
        if exchange == "":
            check_default_binding(queue, routing_key)
            return
        with self._files.database.read() as c:
            found = self._bindable(c, queue, exchange)
            if tables.has_binding(c, found, exchange, routing_key):
                return
        with self._files.database.write(durable=not found.spec.temporary) as c:
            tables.put_binding(c, self._bindable(c, queue, exchange), exchange, routing_key)

    def unbind(self, queue: str, exchange: str, routing_key: str) -> None:
        with self._files.database.write() as c:
            found = tables.find_queue(c, queue, self._files.clock.time())
            if found is not None:
                tables.drop_binding(c, found, exchange, routing_key)

    def bindings(self) -> list[Binding]:
        with self._files.database.read() as c:
            return tables.all_bindings(c, self._files.clock.time())

    def queues(self) -> list[str]:
        with self._files.database.read() as c:
            return [queue.spec.name for queue in tables.all_queues(c, self._files.clock.time())]

    def _bindable(self, c: sqlite3.Connection, queue: str, exchange: str) -> Queue:
        if tables.exchange_type(c, exchange) is None:
            raise no_exchange(exchange)
        return self._files.find(c, queue)

    def route(self, change: Change, exchange: str, routing_key: str) -> list[Queue]:
        """The queues that a message reaches. Raises NotFound for a missing exchange."""
        if exchange:
            type = tables.exchange_type(change.c, exchange)
            if type is None:
                raise no_exchange(exchange)
            return tables.route(change.c, exchange, type, routing_key, change.now)
        if not routing_key:
            raise NotFound("the default exchange needs a queue's name as the routing key")
        found = tables.find_queue(change.c, routing_key, change.now)
        return [] if found is None else [found]
