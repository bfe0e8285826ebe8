"""The Pub/Sub twin: its server, and the verbs that tests control it by."""

from __future__ import annotations

import dataclasses
from typing import Any

from gwi_celery.testing.twin.behaviour import Behaviour
from gwi_celery.testing.twin.iam import CALLER
from gwi_celery.testing.twin.metrics import Metrics
from gwi_celery.testing.twin.projects import handler as projects
from gwi_celery.testing.twin.push import Pusher
from gwi_celery.testing.twin.server import Server
from gwi_celery.testing.twin.service import Service
from gwi_celery.testing.twin.world import World


class PubSubServer(Server):
    def __init__(self, address: str, behaviour: Behaviour, seed: int) -> None:
        super().__init__(address)
        self.world = World(behaviour, seed)
        self.service = Service(self.world)
        self.pusher = Pusher(self.world)
        self.metrics = Metrics(self.world)

    def handlers(self) -> list[Any]:
        return [*self.service.handlers(), self.metrics.handler(), projects(self.world)]

    async def start(self) -> None:
        await super().start()
        self.pusher.start()
        self.metrics.start()

    async def stop(self) -> None:
        self.pusher.stop()
        self.metrics.stop()
        await super().stop()

    def clear(self) -> None:
        for name in list(self.world.subscriptions):
            self.world.delete_subscription(name)  # wakes those that wait for its messages
        self.world.clear()
        self.metrics.clear()

    def _do_switch(self, **switches: Any) -> dict[str, Any]:
        self.world.behaviour = behaviour = self.world.behaviour.changed(**switches)
        for subscription in self.world.subscriptions.values():
            subscription.backlog.behaviour = behaviour
        return dataclasses.asdict(behaviour)

    def _do_reset(self) -> None:
        self.clear()
        self.world.rights.clear()

    def _do_cost(self) -> dict[str, Any]:
        expired = sum(s.backlog.counts.expired for s in self.world.subscriptions.values())
        return {**self.world.costs.report(), "expired": expired}

    def _do_counts(self, subscription: str) -> dict[str, Any]:
        found = self.world.subscriptions.get(subscription)
        if found is None:
            raise ValueError(f"there is no {subscription}")
        backlog = found.backlog
        leased = sum(entry.ack_id is not None for entry in backlog.entries.values())
        waiting = sum(not entry.done for entry in backlog.entries.values()) - leased
        state = {"leased": leased, "waiting": waiting, "readers": backlog.readers}
        return {**dataclasses.asdict(backlog.counts), **state}

    def _do_certificates(self) -> dict[str, str]:
        return self.pusher.certificates

    def _do_deny(self, permission: str, resource: str = "*", who: str = CALLER) -> None:
        self.world.rights.deny(permission, resource, who)

    def _do_allow(self, permission: str, resource: str = "*", who: str = CALLER) -> None:
        self.world.rights.allow(permission, resource, who)

    def _do_grant(self, role: str, member: str, condition: str) -> None:
        self.world.rights.granted.append((role, member, condition))

    def _do_disable(self, disabled: bool = True) -> None:
        self.world.rights.disabled = disabled

    def _do_without_project(self, without: bool = True) -> None:
        self.world.rights.no_project = without
