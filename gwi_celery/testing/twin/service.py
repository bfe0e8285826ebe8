"""The RPCs of google.pubsub.v1 on a :class:`World`, as asyncio coroutines.

``Publisher`` and ``Subscriber`` without snapshots and schemas:
https://cloud.google.com/pubsub/docs/reference/rpc/google.pubsub.v1
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc
from google.iam.v1 import iam_policy_pb2
from google.protobuf import empty_pb2
from google.pubsub_v1 import types

from gwi_celery.testing.twin import checks
from gwi_celery.testing.twin.checks import Refused
from gwi_celery.testing.twin.iam import PERMISSIONS, error_info
from gwi_celery.testing.twin.streams import Stream, check_deadline
from gwi_celery.testing.twin.world import Subscription, World

_PAGE = 100
_Empty = empty_pb2.Empty
_STALE, _INVALID_ACK_ID = "EXACTLY_ONCE_ACKID_FAILURE", "PERMANENT_FAILURE_INVALID_ACK_ID"
_FOR_NOW = "TRANSIENT_FAILURE_SERVICE_UNAVAILABLE"

_DATA = frozenset({"Publish", "Pull", "StreamingPull", "Acknowledge", "ModifyAckDeadline"})

_Handler = Callable[[Any, Any], Awaitable[Any]]


def _pb(name: str) -> Any:
    return getattr(types, name).pb()


class Service:
    """Every RPC is a method of its name; :meth:`handlers` gives them to a gRPC server.

    Over 25 methods: one for each RPC of Pub/Sub.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        #: Pulls that their clients gave up on, and that still take messages.
        self._abandoned: set[asyncio.Task[None]] = set()

    def handlers(self) -> list[Any]:
        requests = {
            "CreateTopic": _pb("Topic"),
            "CreateSubscription": _pb("Subscription"),
            **{
                rpc: _pb(f"{rpc}Request")
                for rpc in PERMISSIONS
                if rpc not in ("CreateTopic", "CreateSubscription")
            },
        }
        services: dict[str, dict[str, Any]] = {"Publisher": {}, "Subscriber": {}}
        for rpc, request in requests.items():
            ours = "Topic" in rpc or rpc in ("Publish", "DetachSubscription")
            of = "Publisher" if ours else "Subscriber"
            make = (
                grpc.stream_stream_rpc_method_handler
                if rpc == "StreamingPull"
                else grpc.unary_unary_rpc_method_handler
            )
            handler = self.StreamingPull if rpc == "StreamingPull" else self._unary(rpc)
            services[of][rpc] = make(
                handler,
                request_deserializer=request.FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
        served = {f"google.pubsub.v1.{name}": methods for name, methods in services.items()}
        served["google.iam.v1.IAMPolicy"] = {
            rpc: grpc.unary_unary_rpc_method_handler(
                self._policy(rpc, answer),
                request_deserializer=getattr(iam_policy_pb2, f"{rpc}Request").FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
            for rpc, answer in (
                ("TestIamPermissions", self._held),
                ("GetIamPolicy", self._agents_policy),
            )
        }
        return [
            grpc.method_handlers_generic_handler(name, methods) for name, methods in served.items()
        ]

    # --- around every call --------------------------------------------------------------------

    def _unary(self, rpc: str) -> _Handler:
        call = getattr(self, rpc)

        async def handle(request: Any, context: Any) -> Any:
            try:
                await self._enter(rpc, request)
                answer = await call(request)
                if rpc != "Publish" or self.world.behaviour.published_twice:
                    self._fail_now_and_then(0.5)
                await self._travel()
                return answer
            except Refused as exc:
                await _abort(context, exc)

        return handle

    async def _enter(self, rpc: str, request: Any) -> None:
        world = self.world
        world.costs.rpcs[rpc] += 1
        await self._travel()
        checks.credentials(world.behaviour)
        world.rights.check(rpc, request)
        if rpc not in _DATA:
            world.count_admin_call()
        self._fail_now_and_then(0.5)

    def _policy(self, rpc: str, answer: Callable[[Any], Any]) -> _Handler:
        async def handle(request: Any, context: Any) -> Any:
            self.world.costs.rpcs[rpc] += 1
            await self._travel()
            try:
                checks.credentials(self.world.behaviour)
                self.world.rights.check_enabled(request.resource)
                self.world.count_admin_call()
                return answer(request)
            except Refused as exc:
                await _abort(context, exc)

        return handle

    def _held(self, request: Any) -> Any:
        """Of what doesn't exist, nobody has any: TestIamPermissions never answers NOT_FOUND."""
        held = self.world.rights.held(request)
        return held if self._exists(request.resource) else type(held)()

    def _agents_policy(self, request: Any) -> Any:
        policy = self.world.rights.policy(request)
        if not self._exists(request.resource):
            raise Refused(f"Resource not found (resource={request.resource}).", "NOT_FOUND")
        return policy

    def _exists(self, resource: str) -> bool:
        return resource in self.world.topics or resource in self.world.subscriptions

    async def _travel(self) -> None:
        """One way to a region."""
        if self.world.behaviour.latency:
            await asyncio.sleep(self.world.behaviour.latency / 2)

    def _fail_now_and_then(self, share: float) -> None:
        dice = self.world.dice
        if dice.random() < self.world.behaviour.faults * share:
            status = dice.choice(["UNAVAILABLE", "INTERNAL"])
            raise Refused(
                "The service was unable to fulfill your request. Please try again.", status
            )

    # --- Publisher ----------------------------------------------------------------------------

    async def CreateTopic(self, request: Any) -> Any:
        return self.world.create_topic(request)

    async def GetTopic(self, request: Any) -> Any:
        return self.world.topic(request.topic).config

    async def UpdateTopic(self, request: Any) -> Any:
        return self.world.update_topic(request)

    async def DeleteTopic(self, request: Any) -> Any:
        self.world.delete_topic(request.topic)
        return _Empty()

    async def ListTopics(self, request: Any) -> Any:
        checks.project(request.project)
        page, token = self._page(self.world.topics, f"{request.project}/topics/", request)
        topics = [self.world.topics[name].config for name in page]
        return _pb("ListTopicsResponse")(topics=topics, next_page_token=token)

    async def ListTopicSubscriptions(self, request: Any) -> Any:
        names = [s.config.name for s in self.world.topic(request.topic).subscriptions]
        page, token = self._page(names, "projects/", request)
        return _pb("ListTopicSubscriptionsResponse")(subscriptions=page, next_page_token=token)

    async def Publish(self, request: Any) -> Any:
        world = self.world
        if world.behaviour.limits:
            checks.publish(request)
        if world.behaviour.one_ordering_key:
            checks.one_ordering_key(request)
        stored = world.publish(request.topic, request.messages)
        world.costs.publish(stored)
        return _pb("PublishResponse")(message_ids=[message.message_id for message in stored])

    async def DetachSubscription(self, request: Any) -> Any:
        found = self.world.subscription(request.subscription)
        self.world.rights.need(PERMISSIONS["DetachSubscription"], found.config.topic)
        self.world.detach(found)
        return _pb("DetachSubscriptionResponse")()

    # --- Subscriber ---------------------------------------------------------------------------

    async def CreateSubscription(self, request: Any) -> Any:
        return self.world.create_subscription(request)

    async def GetSubscription(self, request: Any) -> Any:
        return self.world.subscription(request.subscription).config

    async def UpdateSubscription(self, request: Any) -> Any:
        return self.world.update_subscription(request)

    async def DeleteSubscription(self, request: Any) -> Any:
        self.world.delete_subscription(request.subscription)
        return _Empty()

    async def ListSubscriptions(self, request: Any) -> Any:
        checks.project(request.project)
        known = self.world.subscriptions
        page, token = self._page(known, f"{request.project}/subscriptions/", request)
        configs = [known[name].config for name in page]
        return _pb("ListSubscriptionsResponse")(subscriptions=configs, next_page_token=token)

    def _page(self, found: Iterable[str], under: str, request: Any) -> tuple[list[str], str]:
        """The names under ``under`` that follow those of the page before, and the next page's token."""
        if self.world.behaviour.limits:
            checks.page_size(request.page_size)
        last = _last_of(request.page_token, under)
        left = sorted(name for name in found if name.startswith(under) and name > last)
        page = left[: min(max(request.page_size, 0) or _PAGE, checks.MAX_PAGE)]
        return page, _token(page[-1]) if len(page) < len(left) else ""

    async def ModifyPushConfig(self, request: Any) -> Any:
        self.world.modify_push_config(request)
        return _Empty()

    async def Seek(self, request: Any) -> Any:
        if request.HasField("snapshot"):
            raise checks.left_out("snapshots")
        if not request.HasField("time"):
            raise Refused("A seek needs a time or a snapshot.")
        found = self.world.subscription(request.subscription)
        found.backlog.seek(request.time.seconds + request.time.nanos / 1e9)
        return _pb("SeekResponse")()

    async def Pull(self, request: Any) -> Any:
        behaviour, dice = self.world.behaviour, self.world.dice
        found = self._pullable(request.subscription)
        most = request.max_messages
        if most <= 0:
            raise Refused("max_messages must be greater than 0.")
        if most > 1 and dice.random() < behaviour.short_pulls:
            most = dice.randint(1, most)
        if request.return_immediately:
            empty = dice.random() < behaviour.immediate_empty
            return self._pulled(found, [] if empty else self._take(found, most))
        ends = time.time() + behaviour.pull_hold
        try:
            return self._pulled(found, await self._hold(found, most, ends))
        except asyncio.CancelledError:
            if behaviour.abandoned_pulls_take:
                going_on = asyncio.ensure_future(self._lease_to_nobody(found, most, ends))
                self._abandoned.add(going_on)
                going_on.add_done_callback(self._abandoned.discard)
            raise

    async def _hold(self, found: Subscription, most: int, ends: float) -> list[Any]:
        """Messages as soon as there are any; [] at ``ends``."""
        while True:
            self.world.check_pullable(found)
            taken = self._take(found, most)
            now = time.time()
            if taken or now >= ends:
                return taken
            await found.backlog.wait(now, ends - now)

    async def _lease_to_nobody(self, found: Subscription, most: int, ends: float) -> None:
        """Go on with a pull that its client gave up on."""
        try:
            await self._hold(found, most, ends)
        except Refused:
            return

    def _take(self, found: Subscription, most: int) -> list[Any]:
        found.used = time.time()
        return found.backlog.take(time.time(), most, found.config.ack_deadline_seconds)

    def _pulled(self, found: Subscription, entries: list[Any]) -> Any:
        self.world.costs.deliver(entry.message for entry in entries)
        return _pb("PullResponse")(received_messages=[found.received(e) for e in entries])

    def _pullable(self, path: str) -> Subscription:
        found = self.world.subscription(path)
        self.world.check_pullable(found)
        if found.config.push_config.push_endpoint:
            raise Refused(
                "This method is not supported for this subscription type.", "FAILED_PRECONDITION"
            )
        return found

    async def Acknowledge(self, request: Any) -> Any:
        if self.world.behaviour.limits:
            checks.ack_request(request)
        found = self.world.subscription(request.subscription)
        self._check_ids(found, request)
        ids, refused = self.world.refused_for_now(found, request.ack_ids)
        _refuse(found, found.backlog.ack(ids, time.time()), refused)
        return _Empty()

    async def ModifyAckDeadline(self, request: Any) -> Any:
        if self.world.behaviour.limits:
            checks.ack_request(request)
        if not 0 <= request.ack_deadline_seconds <= 600:
            raise Refused("ack_deadline_seconds: 0 to 600.")
        found = self.world.subscription(request.subscription)
        seconds = request.ack_deadline_seconds
        self._check_ids(found, request)
        ids, refused = self.world.refused_for_now(found, request.ack_ids)
        _refuse(found, found.backlog.modify(ids, seconds, time.time()), refused)
        return _Empty()

    def _check_ids(self, found: Subscription, request: Any) -> None:
        if self.world.behaviour.limits:
            checks.ack_ids(request.ack_ids, exactly_once=found.backlog.exactly_once)

    async def StreamingPull(self, requests: Any, context: Any) -> None:
        try:
            first = await context.read()
            if first is grpc.aio.EOF:
                return
            await self._enter("StreamingPull", first)
            check_deadline(first)
            found = self._pullable(first.subscription)
            await Stream(self.world, found, first, context).run()
        except Refused as exc:
            await _abort(context, exc)


class _AckIdsRefused(Refused):
    """Exactly-once: ids that nothing was done with, each with its reason.

    https://cloud.google.com/pubsub/docs/exactly-once-delivery
    """

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__("Some acknowledgement ids in the request were invalid.")
        self.trailing = error_info(3, str(self), _STALE, "pubsub.googleapis.com", reasons)


def _refuse(found: Subscription, stale: list[str], for_now: list[str]) -> None:
    if (stale or for_now) and found.backlog.exactly_once:
        raise _AckIdsRefused(
            {**dict.fromkeys(stale, _INVALID_ACK_ID), **dict.fromkeys(for_now, _FOR_NOW)}
        )


async def _abort(context: Any, exc: Refused) -> None:
    await context.abort(getattr(grpc.StatusCode, exc.status), str(exc), exc.trailing)


def _token(name: str) -> str:
    """Of the page that follows the one whose last name this is."""
    return base64.urlsafe_b64encode(name.encode()).decode()


def _last_of(token: str, under: str) -> str:
    """The name in a token; "" without one. Raises Refused for what no answer of that call held."""
    try:
        name = base64.b64decode(token, b"-_", validate=True).decode()
    except ValueError:
        name = ""
    if token and not name.startswith(under):
        raise Refused(f"Invalid page token given (token={token}).")
    return name
