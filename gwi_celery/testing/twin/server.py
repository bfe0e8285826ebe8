"""The twin's gRPC server: Google's services, and one by which tests steer the twin.

The latter is ``gwi.testing.Twin/Control``: a JSON object with a ``verb`` in, a JSON object out. See
:class:`gwi_celery.testing.twin.Twin` for the verbs.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from typing import Any

import grpc

from gwi_celery.testing.twin import firestore_admin
from gwi_celery.testing.twin.behaviour import Behaviour, FirestoreBehaviour
from gwi_celery.testing.twin.firestore import FirestoreProxy
from gwi_celery.testing.twin.iam import CALLER
from gwi_celery.testing.twin.metrics import Metrics
from gwi_celery.testing.twin.push import Pusher
from gwi_celery.testing.twin.service import Service
from gwi_celery.testing.twin.world import World

CONTROL = "/gwi.testing.Twin/Control"

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Two servers on one port would share its calls.
    ("grpc.so_reuseport", 0),
]


class Server:
    """Listens on one address. Its coroutines run on one event loop, which owns all of its state."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._server: Any = None

    def handlers(self) -> list[Any]:
        """gRPC's handlers of the services behind it."""
        raise NotImplementedError  # each twin has its own

    async def start(self) -> int:
        """Listen; the port. Raises RuntimeError if it is taken."""
        self._server = grpc.aio.server(options=_OPTIONS)
        self._server.add_generic_rpc_handlers([*self.handlers(), self._control_handler()])
        try:
            port: int = self._server.add_insecure_port(self._address)
        except RuntimeError as exc:
            raise RuntimeError(f"can't listen on {self._address}") from exc
        self._address = f"{self._address.rpartition(':')[0]}:{port}"
        await self._server.start()
        return port

    async def stop(self) -> None:
        await self._server.stop(None)

    def _control_handler(self) -> Any:
        async def control(request: dict[str, Any], context: Any) -> dict[str, Any]:
            verb = getattr(self, f"_do_{request.pop('verb', '')}", None)
            answer: dict[str, Any] | None = None
            try:
                if verb is None:
                    raise ValueError("there is no such verb")
                answer = verb(**request)
            except (TypeError, ValueError) as exc:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(exc))
            return answer or {}

        service, method = CONTROL[1:].split("/")
        return grpc.method_handlers_generic_handler(
            service,
            {
                method: grpc.unary_unary_rpc_method_handler(
                    control,
                    request_deserializer=json.loads,
                    response_serializer=lambda answer: json.dumps(answer).encode(),
                )
            },
        )

    async def _cut_off(self, seconds: float, keep: bool) -> None:
        await asyncio.sleep(0.05)  # this verb's own answer gets out
        await self.stop()
        if not keep:
            self.clear()
        while True:
            await asyncio.sleep(seconds)
            with contextlib.suppress(RuntimeError):  # the port isn't free yet
                await self.start()
                return

    def clear(self) -> None:
        """Forget what it holds."""

    def _do_cut_off(self, seconds: float, keep: bool = True) -> None:
        asyncio.get_running_loop().create_task(self._cut_off(seconds, keep))


class PubSubServer(Server):
    def __init__(self, address: str, behaviour: Behaviour, seed: int) -> None:
        super().__init__(address)
        self.world = World(behaviour, seed)
        self.service = Service(self.world)
        self.pusher = Pusher(self.world)
        self.metrics = Metrics(self.world)

    def handlers(self) -> list[Any]:
        return [*self.service.handlers(), self.metrics.handler()]

    async def start(self) -> int:
        port = await super().start()
        self.pusher.start()
        self.metrics.start()
        return port

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

    def _do_disable(self, disabled: bool = True) -> None:
        self.world.rights.disabled = disabled


class FirestoreServer(Server):
    def __init__(
        self, address: str, behaviour: FirestoreBehaviour, seed: int, emulator: str
    ) -> None:
        super().__init__(address)
        self._proxy = FirestoreProxy(emulator, behaviour, seed)

    def handlers(self) -> list[Any]:
        return [firestore_admin.handler(lambda: self._proxy.behaviour.ready), self._proxy]

    def _do_switch(self, **switches: Any) -> dict[str, Any]:
        self._proxy.behaviour = self._proxy.behaviour.changed(**switches)
        return dataclasses.asdict(self._proxy.behaviour)

    def _do_cost(self) -> dict[str, Any]:
        return self._proxy.report()
