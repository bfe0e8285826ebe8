"""Push: deliveries by HTTP, with an OIDC token where the subscription asks for one.

https://cloud.google.com/pubsub/docs/push: success is 102, 200, 201, 202 or 204; a request may take as
long as the ack deadline; failures are sent again after 0.1 to 60 seconds.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from gwi_celery.testing.twin.backlog import Entry
from gwi_celery.testing.twin.tokens import Tokens
from gwi_celery.testing.twin.world import Subscription, World

_SUCCESS = frozenset({102, 200, 201, 202, 204})
_PAUSE = (0.1, 60.0)
#: Requests at a time, for one subscription.
_WINDOW = 10
_LOOK = 0.2


class Pusher:
    def __init__(self, world: World) -> None:
        self._world = world
        self._tokens = Tokens()
        self._threads = ThreadPoolExecutor(64, thread_name_prefix="twin-push")
        self._task: asyncio.Task[None] | None = None
        self._under_way: set[asyncio.Task[None]] = set()
        #: Subscription -> (open requests, no request before this time, the pause after the next failure).
        self._state: dict[str, list[float]] = {}

    @property
    def certificates(self) -> dict[str, str]:
        """Key id -> PEM, as Google publishes its own."""
        return self._tokens.certificates

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        for task in (self._task, *self._under_way):
            if task is not None:
                task.cancel()

    async def _run(self) -> None:
        while True:
            busy = False
            for subscription in list(self._world.subscriptions.values()):
                if subscription.config.push_config.push_endpoint:
                    busy |= self._push_ready(subscription)
            await asyncio.sleep(0.01 if busy else 0.05)

    def _push_ready(self, subscription: Subscription) -> bool:
        state = self._state.setdefault(subscription.config.name, [0, 0.0, _PAUSE[0]])
        now = time.time()
        if now < state[1] or state[0] >= _WINDOW:
            return False
        lease = subscription.config.ack_deadline_seconds
        subscription.used = now
        taken = subscription.backlog.take(now, int(_WINDOW - state[0]), lease)
        for entry in taken:
            state[0] += 1
            task = asyncio.get_running_loop().create_task(self._push(subscription, entry, state))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        return bool(taken)

    async def _push(self, subscription: Subscription, entry: Entry, state: list[float]) -> None:
        ack_id = entry.ack_id or ""
        try:
            loop = asyncio.get_running_loop()
            status = await loop.run_in_executor(
                self._threads, self._post, loop, subscription, entry
            )
        except (OSError, http.client.HTTPException, ValueError):
            status = 0  # no answer, or no URL that can be asked
        finally:
            state[0] -= 1
        now = time.time()
        if status in _SUCCESS:
            state[2] = _PAUSE[0]
            subscription.backlog.ack([ack_id], now)
            return
        if now >= state[1]:  # else it failed beside the one that the pause is for
            state[1], state[2] = now + state[2], min(state[2] * 2, _PAUSE[1])
        subscription.backlog.modify([ack_id], 0, now)

    def _post(
        self, loop: asyncio.AbstractEventLoop, subscription: Subscription, entry: Entry
    ) -> int:
        """The answer's status. In a thread."""
        config = subscription.config
        endpoint = urlsplit(config.push_config.push_endpoint)
        kind = (
            http.client.HTTPSConnection
            if endpoint.scheme == "https"
            else http.client.HTTPConnection
        )
        connection = kind(endpoint.netloc, timeout=config.ack_deadline_seconds)
        path = endpoint.path or "/"
        body, headers = self._request(subscription, entry)
        loop.call_soon_threadsafe(self._world.costs.deliver, [entry.message])
        try:
            connection.request(
                "POST", f"{path}?{endpoint.query}" if endpoint.query else path, body, headers
            )
            return connection.getresponse().status
        finally:
            connection.close()

    def _request(self, subscription: Subscription, entry: Entry) -> tuple[bytes, dict[str, str]]:
        config, message = subscription.config, entry.message
        push = config.push_config
        headers: dict[str, str] = {"User-Agent": "CloudPubSub-Google"}
        if push.oidc_token.service_account_email:
            audience = push.oidc_token.audience or push.push_endpoint
            account = push.oidc_token.service_account_email
            headers["Authorization"] = f"Bearer {self._tokens.make(account, audience)}"
        if push.HasField("no_wrapper"):
            if push.no_wrapper.write_metadata:
                headers["x-goog-pubsub-subscription-name"] = config.name
                headers["x-goog-pubsub-message-id"] = message.message_id
                headers["x-goog-pubsub-publish-time"] = message.publish_time.ToJsonString()
                if message.ordering_key:
                    headers["x-goog-pubsub-ordering-key"] = message.ordering_key
                headers.update(message.attributes)
            return bytes(message.data), headers
        published = message.publish_time.ToJsonString()
        wrapped: dict[str, Any] = {
            "data": base64.b64encode(message.data).decode(),
            "messageId": message.message_id,
            "message_id": message.message_id,
            "publishTime": published,
            "publish_time": published,
        }
        if message.attributes:
            wrapped["attributes"] = dict(message.attributes)
        if message.ordering_key:
            wrapped["orderingKey"] = message.ordering_key
        body: dict[str, Any] = {"message": wrapped, "subscription": config.name}
        if subscription.backlog.attempts_counted:
            body["deliveryAttempt"] = entry.deliveries
        headers["Content-Type"] = "application/json"
        return json.dumps(body).encode(), headers
