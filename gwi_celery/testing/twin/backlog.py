"""One subscription's messages: ready, leased or waiting. It knows nothing of gRPC.

Everything happens in the one thread of the server's event loop. Times are seconds since the epoch.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from gwi_celery.testing.twin.behaviour import Behaviour
from gwi_celery.testing.twin.checks import seconds as seconds_of

_NEVER = float("inf")
#: Characters of an ack id: https://github.com/googleapis/google-cloud-go/issues/20391
_ACK_ID = 220


@dataclass(eq=False)
class Entry:
    """One message in one subscription."""

    number: int
    #: google.pubsub.v1.PubsubMessage
    message: Any
    published: float
    deliveries: int = 0
    #: Names its lease; None: it isn't leased.
    ack_id: str | None = None
    #: Acked, and kept only because an earlier message of its ordering key isn't.
    done: bool = False
    #: Notified when it is settled or its lease has run out.
    holder: Callable[[Entry], None] | None = None
    #: Grows with each change of state, so that outdated entries of the heaps are recognized.
    turn: int = 0


@dataclass
class Counts:
    """Counts of what happened to messages, for tests."""

    delivered: int = 0
    acked: int = 0
    nacked: int = 0
    expired: int = 0
    forwarded: int = 0
    filtered: int = 0


@dataclass
class Backlog:
    behaviour: Behaviour
    #: google.pubsub.v1.Subscription, with its defaults filled in.
    config: Any
    #: Gives a message to the dead letter topic; False if that can't be done.
    forward: Callable[[Entry], bool]
    dice: random.Random
    entries: dict[int, Entry] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)
        self._ready: list[tuple[float, int, int]] = []
        self._leases: list[tuple[float, int, int]] = []
        self._by_ack_id: dict[str, Entry] = {}
        #: Ordering key -> its messages, in order.
        self._keys: dict[str, deque[Entry]] = {}
        #: One for each pull and stream that waits for messages, abandoned ones too; in order of age.
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def readers(self) -> int:
        """How many wait for messages."""
        return len(self._waiting)

    @property
    def exactly_once(self) -> bool:
        return bool(self.config.enable_exactly_once_delivery)

    @property
    def attempts_counted(self) -> bool:
        return bool(self.config.dead_letter_policy.dead_letter_topic)

    # --- in -----------------------------------------------------------------------------------

    def add(self, message: Any, now: float) -> None:
        entry = Entry(next(self._numbers), message, now)
        self.entries[entry.number] = entry
        key = self._key(entry)
        if key:
            self._keys.setdefault(key, deque()).append(entry)
        self._make_ready(entry, 0.0)
        self.wake()

    def wake(self) -> None:
        for waiting in self._waiting:
            _end(waiting)

    # --- out ----------------------------------------------------------------------------------

    async def wait(self, now: float, at_most: float) -> None:
        """Wait until more may be ready than at the last :meth:`take`, ``at_most`` seconds."""
        # One that is due already waits for an earlier one of its key, whose settling wakes us.
        due = min((d for d, _, _ in self._ready if d > now), default=_NEVER)
        leases_end = self._leases[0][0] if self._leases else _NEVER
        seconds = max(min(due - now, leases_end - now, at_most), 0.001)
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        self._waiting.append(woken)
        timer = loop.call_later(seconds, _end, woken)
        try:
            await woken
        finally:
            timer.cancel()
            self._waiting.remove(woken)

    def take(
        self,
        now: float,
        most: int,
        lease: float,
        most_bytes: float = _NEVER,
        holder: Callable[[Entry], None] | None = None,
    ) -> list[Entry]:
        """Lease up to ``most`` ready messages, for ``lease`` seconds."""
        self.expire(now)
        taken: list[Entry] = []
        busy = self._busy_keys()
        later: list[tuple[float, int, int]] = []
        size = 0
        while self._ready and len(taken) < most and self._ready[0][0] <= now:
            place = heapq.heappop(self._ready)
            entry = self.entries.get(place[1])
            if entry is None or entry.turn != place[2]:
                continue
            if self._too_old(entry, now):
                self._remove(entry)
                continue
            key = self._key(entry)
            if key and (key in busy or not self._next_of_key(entry, taken)):
                later.append(place)
                continue
            if self._given_up(entry):
                continue
            if taken and size + entry.message.ByteSize() > most_bytes:
                later.append(place)
                break
            size += entry.message.ByteSize()
            self._lease(entry, now, lease, holder)
            taken.append(entry)
        for place in later:
            heapq.heappush(self._ready, place)
        self.counts.delivered += len(taken)
        return taken

    def _lease(
        self, entry: Entry, now: float, seconds: float, holder: Callable[[Entry], None] | None
    ) -> None:
        entry.turn += 1
        entry.deliveries += 1
        ack_id = f"{entry.number}-{entry.turn}-{self.dice.getrandbits(64):016x}"
        entry.ack_id = ack_id.ljust(_ACK_ID, "-")
        entry.holder = holder
        self._by_ack_id[entry.ack_id] = entry
        early = self.dice.random() < self.behaviour.early_expiry and not self.exactly_once
        self._set_lease(entry, now + (seconds / 3 if early else seconds))

    def _given_up(self, entry: Entry) -> bool:
        """Whether it was delivered as often as the dead letter policy allows, and is forwarded."""
        if not self.attempts_counted:
            return False
        most = self.config.dead_letter_policy.max_delivery_attempts
        if entry.deliveries < most or not self.forward(entry):
            return False
        self.counts.forwarded += 1
        self._remove(entry)
        return True

    def _too_old(self, entry: Entry, now: float) -> bool:
        return now - entry.published > seconds_of(self.config.message_retention_duration)

    # --- acks ---------------------------------------------------------------------------------

    def ack(self, ack_ids: Iterable[str], now: float) -> list[str]:
        """Ack them. Returns the ids whose lease had run out."""
        self.expire(now)
        stale = []
        for ack_id in ack_ids:
            entry = self._by_ack_id.get(ack_id)
            if entry is None:
                stale.append(ack_id)
                continue
            self.counts.acked += 1
            self._unlease(entry)
            entry.done = True
            self._forget_done(entry)
        return stale

    def modify(self, ack_ids: Iterable[str], seconds: int, now: float) -> list[str]:
        """Let leases end ``seconds`` from now; 0 is a nack. Returns the ids whose lease had run out."""
        self.expire(now)
        stale = []
        for ack_id in ack_ids:
            entry = self._by_ack_id.get(ack_id)
            if entry is None:
                stale.append(ack_id)
            elif seconds == 0:
                self.counts.nacked += 1
                self._redeliver(entry, now, backoff=True)
            else:
                self._set_lease(entry, now + seconds)
        return stale

    def expire(self, now: float) -> None:
        """End the leases that have run out."""
        while self._leases and self._leases[0][0] <= now:
            _, number, turn = heapq.heappop(self._leases)
            entry = self.entries.get(number)
            if entry is not None and entry.turn == turn and entry.ack_id is not None:
                self.counts.expired += 1
                self._redeliver(entry, now, backoff=self.behaviour.retry_on_expiry)

    # --- seek ---------------------------------------------------------------------------------

    def seek(self, moment: float) -> None:
        """Ack everything published before."""
        for entry in [e for e in self.entries.values() if e.published < moment]:
            self._unlease(entry)
            self._remove(entry)

    # --- internals ----------------------------------------------------------------------------

    def _key(self, entry: Entry) -> str:
        return str(entry.message.ordering_key) if self.config.enable_message_ordering else ""

    def _busy_keys(self) -> set[str]:
        """Ordering keys of which messages are leased already."""
        if not self._keys:
            return set()
        return {self._key(entry) for entry in self._by_ack_id.values()}

    def _next_of_key(self, entry: Entry, taken: list[Entry]) -> bool:
        """Whether all earlier messages of its ordering key are done or in the same batch."""
        for other in self._keys[self._key(entry)]:
            if other is entry:
                return True
            if not other.done and other not in taken:
                return False
        return True

    def _make_ready(self, entry: Entry, due: float) -> None:
        entry.turn += 1
        heapq.heappush(self._ready, (due, entry.number, entry.turn))

    def _set_lease(self, entry: Entry, ends: float) -> None:
        # The ack id stays: it names the delivery, and the turn only the place in the heap.
        entry.turn += 1
        heapq.heappush(self._leases, (ends, entry.number, entry.turn))

    def _unlease(self, entry: Entry) -> None:
        if entry.ack_id is None:
            return
        del self._by_ack_id[entry.ack_id]
        entry.ack_id = None
        entry.turn += 1
        holder, entry.holder = entry.holder, None
        if holder is not None:
            holder(entry)

    def _redeliver(self, entry: Entry, now: float, *, backoff: bool) -> None:
        again = [entry]
        key = self._key(entry)
        if key and self.behaviour.ordered_redelivery:
            again = [e for e in self._keys[key] if e.number >= entry.number]
        if self.exactly_once:  # what was acked stays so
            again = [e for e in again if not e.done]
        for each in again:
            self._unlease(each)
            each.done = False
            if each is entry and self._given_up(each):
                continue
            wait = self._backoff(each) if backoff and each is entry else 0.0
            self._make_ready(each, now + wait if wait else 0.0)
        self.wake()

    def _backoff(self, entry: Entry) -> float:
        if not self.config.HasField("retry_policy"):
            return 0.0
        shortest = seconds_of(self.config.retry_policy.minimum_backoff)
        longest = seconds_of(self.config.retry_policy.maximum_backoff)
        return float(min(shortest * 2 ** min(entry.deliveries - 1, 30), longest))

    def _forget_done(self, entry: Entry) -> None:
        key = self._key(entry)
        if not key:
            self._remove(entry)
            return
        line = self._keys[key]
        while line and line[0].done:
            self.entries.pop(line.popleft().number)
        if not line:
            del self._keys[key]
        self.wake()

    def _remove(self, entry: Entry) -> None:
        self.entries.pop(entry.number, None)
        key = self._key(entry)
        if key and key in self._keys:
            self._keys[key].remove(entry)
            if not self._keys[key]:
                del self._keys[key]


def _end(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
