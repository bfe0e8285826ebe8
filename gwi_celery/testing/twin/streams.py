"""One StreamingPull: https://cloud.google.com/pubsub/docs/reference/rpc/google.pubsub.v1#streamingpullrequest"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
from google.pubsub_v1 import types

from gwi_celery.testing.twin import checks
from gwi_celery.testing.twin.backlog import Entry
from gwi_celery.testing.twin.checks import Refused
from gwi_celery.testing.twin.world import Subscription, World

_NEVER = float("inf")
#: Most messages in one answer.
_BATCH = 100
#: Seconds between two checks for what no event signals: silence, age, a deletion.
_LOOK = 0.25
_FIRST_ONLY = (
    "subscription",
    "max_outstanding_messages",
    "max_outstanding_bytes",
    "protocol_version",
)

_Response: Any = types.StreamingPullResponse.pb()


class Stream:
    def __init__(self, world: World, subscription: Subscription, first: Any, context: Any) -> None:
        self._world = world
        self._subscription = subscription
        self._context = context
        self._lease = first.stream_ack_deadline_seconds
        controlled = world.behaviour.flow_control
        self._most = _limit(controlled, first.max_outstanding_messages)
        self._most_bytes = _limit(controlled, first.max_outstanding_bytes)
        self._outstanding: dict[Entry, int] = {}
        #: Answers without messages, which are written first.
        self._replies: list[Any] = []
        self._answers: asyncio.Queue[tuple[float, Any]] = asyncio.Queue()
        self._opened = self._heard = time.time()
        self._first = first

    async def run(self) -> None:
        """Serve it until it ends. Raises Refused, unless its client closed it and that is no error."""
        reader = asyncio.ensure_future(self._read())
        reader.add_done_callback(lambda _: self._subscription.backlog.wake())
        writer = asyncio.ensure_future(self._write())
        try:
            while self._goes_on(reader):
                answer = self._answer()
                if answer is not None:
                    if answer.received_messages:  # confirmations are free
                        self._world.costs.deliver(r.message for r in answer.received_messages)
                    self._answers.put_nowait((time.time(), answer))
                    await asyncio.sleep(0)
                else:
                    await self._subscription.backlog.wait(time.time(), _LOOK)
        finally:
            reader.cancel()
            # The client gets what was sent before the end, unless it has stopped reading.
            written = asyncio.ensure_future(self._answers.join())
            await asyncio.wait({written, writer}, return_when=asyncio.FIRST_COMPLETED)
            written.cancel()
            writer.cancel()

    async def _write(self) -> None:
        """Delay each answer by the way from a region; several may be on their way."""
        while True:
            at, answer = await self._answers.get()
            try:
                left = at + self._world.behaviour.latency / 2 - time.time()
                if left > 0:
                    await asyncio.sleep(left)
                await self._context.write(answer)
            finally:
                self._answers.task_done()

    def _goes_on(self, reader: asyncio.Future[None]) -> bool:
        behaviour, now = self._world.behaviour, time.time()
        self._world.check_pullable(self._subscription)
        if reader.done():
            reader.result()  # a bad request
            if behaviour.stream_error:
                raise Refused("The stream was closed by its client.", "UNAVAILABLE")
            return False
        silent = behaviour.stream_silence and now - self._heard > behaviour.stream_silence
        old = behaviour.stream_life and now - self._opened > behaviour.stream_life
        if silent or old:
            raise Refused(
                "The service was unable to fulfill your request. Please try again. [code=8a75]",
                "UNAVAILABLE",
            )
        return True

    def _answer(self) -> Any:
        """The next answer to write; None if there is none."""
        if self._replies:
            return self._replies.pop(0)
        room = min(self._most - len(self._outstanding), _BATCH)
        room_bytes = self._most_bytes - sum(self._outstanding.values())
        if room <= 0 or room_bytes <= 0:
            return None
        backlog = self._subscription.backlog
        now = self._subscription.used = time.time()
        taken = backlog.take(now, int(room), self._lease, room_bytes, self._settled)
        if not taken:
            return None
        for entry in taken:
            self._outstanding[entry] = entry.message.ByteSize()
        config = self._subscription.config
        return _Response(
            received_messages=[self._subscription.received(entry) for entry in taken],
            subscription_properties={
                "exactly_once_delivery_enabled": config.enable_exactly_once_delivery,
                "message_ordering_enabled": config.enable_message_ordering,
            },
        )

    def _settled(self, entry: Entry) -> None:
        self._outstanding.pop(entry, None)
        self._subscription.backlog.wake()

    async def _read(self) -> None:
        """Handle acks and deadlines until the client closes its side."""
        request = self._first
        while request is not grpc.aio.EOF:
            self._heard = time.time()
            self._take_in(request)
            if self._is_heartbeat(request) and self._world.behaviour.stream_pongs:
                self._replies.append(_Response())
                self._subscription.backlog.wake()
            request = await self._context.read()
            # The oldest google-cloud-pubsub that we take doesn't know the version.
            if request is not grpc.aio.EOF and any(getattr(request, n, 0) for n in _FIRST_ONLY):
                raise Refused(f"Of the first request only: {', '.join(_FIRST_ONLY)}.")

    def _is_heartbeat(self, request: Any) -> bool:
        """Whether the client expects an answer to it."""
        asks = request is not self._first and getattr(self._first, "protocol_version", 0) > 0
        return asks and not (request.ack_ids or request.modify_deadline_ack_ids)

    def _take_in(self, request: Any) -> None:
        if len(request.modify_deadline_seconds) != len(request.modify_deadline_ack_ids):
            raise Refused("modify_deadline_seconds: one for each of modify_deadline_ack_ids.")
        if not all(0 <= seconds <= 600 for seconds in request.modify_deadline_seconds):
            raise Refused("modify_deadline_seconds: 0 to 600.")
        backlog, now = self._subscription.backlog, time.time()
        if self._world.behaviour.limits:
            for ids in (request.ack_ids, request.modify_deadline_ack_ids):
                checks.ack_ids(ids, exactly_once=backlog.exactly_once)
        if request.stream_ack_deadline_seconds:
            check_deadline(request)
            self._lease = request.stream_ack_deadline_seconds
        acked, acks_for_now = self._world.refused_for_now(self._subscription, request.ack_ids)
        stale = backlog.ack(acked, now)
        changes = dict(
            zip(request.modify_deadline_ack_ids, request.modify_deadline_seconds, strict=True)
        )
        changed, changes_for_now = self._world.refused_for_now(self._subscription, changes)
        late = [id for id in changed if backlog.modify([id], changes[id], now)]
        if not backlog.exactly_once:
            return
        if request.ack_ids:
            self._confirm("acknowledge_confirmation", acked, stale, acks_for_now)
        if changes:
            self._confirm("modify_ack_deadline_confirmation", changed, late, changes_for_now)
        backlog.wake()

    def _confirm(self, name: str, ids: list[str], bad: list[str], for_now: list[str]) -> None:
        answer = {
            "ack_ids": [id for id in ids if id not in bad],
            "invalid_ack_ids": bad,
            "temporary_failed_ack_ids": for_now,
        }
        self._replies.append(_Response(**{name: answer}))


def check_deadline(request: Any) -> None:
    if not 10 <= request.stream_ack_deadline_seconds <= 600:
        raise Refused("stream_ack_deadline_seconds: 10 to 600.")


def _limit(controlled: bool, stated: int) -> float:
    """As the request states it: none, if it isn't above 0."""
    return stated if controlled and stated > 0 else _NEVER
