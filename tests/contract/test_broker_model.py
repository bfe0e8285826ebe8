"""Any sequence of operations leaves a broker and a small model of it with the same messages."""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from gwi_celery.brokers.base import (
    DEATH_DELIVERIES,
    Delivery,
    OutgoingMessage,
    QueueSize,
    QueueSpec,
    dead_letter_queue,
)
from tests.contract.brokers import CASES
from tests.machine import examples

LEASE = 8.0
MAX_DELIVERIES = 3
RETENTION = 64.0
DEAD = dead_letter_queue("q")

#: Seconds, all exact as floating point numbers, and few, so that moments often coincide.
SECONDS = st.sampled_from([0.0, 0.5, 1.0, 4.0, 8.0, 16.0, 100.0])


@dataclass
class Message:
    """What the model knows of one."""

    number: int
    priority: int
    #: When it becomes ready.
    due: float
    expires: float
    deliveries: int = 0
    #: The delivery whose holder may still settle it.
    holder: Delivery | None = None
    died_after: list[int] = field(default_factory=list)

    @property
    def data(self) -> bytes:
        return b"%d" % self.number

    def ready(self, now: float) -> bool:
        return self.due <= now

    def state(self, now: float) -> str:
        if self.ready(now):
            return "ready"
        return "delayed" if self.holder is None else "leased"


class BrokerMachine(RuleBasedStateMachine):
    """Two connections to one service, and the model."""

    backend: str

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self._service = CASES[self.backend][1](Path(self._folder.name))
        self.factory = self._service.__enter__()
        options: dict[str, Any] = {
            "lease_seconds": LEASE,
            "max_deliveries": MAX_DELIVERIES,
            "retention": RETENTION,
        }
        self.brokers = [self.factory(**options), self.factory(**options)]
        self.receivers = [broker.receiver() for broker in self.brokers]
        for receiver in self.receivers:
            receiver.subscribe(self._declared())
        self.numbers = itertools.count()
        self.model: dict[str, list[Message]] = {"q": [], DEAD: []}
        self.deliveries: list[Delivery] = []

    def _declared(self) -> str:
        self.brokers[0].declare_queue(QueueSpec("q"))
        return "q"

    def teardown(self) -> None:
        self._service.__exit__(None, None, None)
        self._folder.cleanup()

    @property
    def now(self) -> float:
        return self.factory.time()

    def holding(self, delivery: Delivery) -> Message | None:
        """The message whose lease this delivery has; it may have run out, untaken by others."""
        for message in self.model["q"]:
            if message.holder is delivery:
                return message
        return None

    def forget_expired(self) -> None:
        for queue, messages in self.model.items():
            self.model[queue] = [
                m for m in messages if m.expires > self.now or m.state(self.now) == "leased"
            ]

    def bury(self, message: Message) -> None:
        self.model["q"].remove(message)
        self.model[DEAD].append(message)
        message.died_after.append(message.deliveries)
        message.deliveries, message.holder = 0, None
        message.due, message.expires = self.now, self.now + RETENTION

    # --- rules --------------------------------------------------------------------------------

    @initialize()
    def start_empty(self) -> None:
        assert self.brokers[1].peek("q") == []

    @rule(
        messages=st.lists(
            st.tuples(st.sampled_from([0, 0, 5, 9]), SECONDS, st.none() | SECONDS),
            min_size=1,
            max_size=4,
        )
    )
    def publish(self, messages: list[tuple[int, float, float | None]]) -> None:
        outgoing = []
        for priority, delay, ttl in messages:
            expires = self.now + (delay + RETENTION if ttl is None else ttl)
            message = Message(next(self.numbers), priority, self.now + delay, expires)
            self.model["q"].append(message)
            outgoing.append(
                ("", "q", OutgoingMessage(message.data, priority=priority, delay=delay, ttl=ttl))
            )
        assert self.brokers[0].publish_many(outgoing) == [1] * len(messages)

    @rule(which=st.integers(0, 1), limit=st.integers(1, 3))
    def poll(self, which: int, limit: int) -> None:
        self.forget_expired()
        expected = []
        candidates = [m for m in self.model["q"] if m.ready(self.now)]
        for message in sorted(candidates, key=lambda m: (-m.priority, m.number)):
            if len(expected) == limit:
                break
            if message.deliveries == MAX_DELIVERIES:
                self.bury(message)
            else:
                expected.append(message)

        deliveries = self.receivers[which].poll("q", limit)

        assert [d.data for d in deliveries] == [m.data for m in expected]
        for message, delivery in zip(expected, deliveries, strict=True):
            message.deliveries += 1
            message.holder, message.due = delivery, self.now + LEASE
            assert delivery.deliveries == message.deliveries
            assert delivery.priority == message.priority
        self.deliveries += deliveries

    @rule(data=st.data(), which=st.integers(0, 1))
    def ack(self, data: st.DataObject, which: int) -> None:
        deliveries = self.some(data)
        self.forget_expired()
        self.brokers[which].ack(deliveries)
        for delivery in deliveries:
            message = self.holding(delivery)
            if message is not None:
                self.model["q"].remove(message)

    @rule(data=st.data(), seconds=SECONDS)
    def extend(self, data: st.DataObject, seconds: float) -> None:
        deliveries = self.some(data)
        self.forget_expired()
        lost = self.brokers[0].extend(deliveries, seconds)
        assert lost == [d for d in deliveries if self.holding(d) is None]
        for delivery in deliveries:
            message = self.holding(delivery)
            if message is not None:
                message.due = self.now + seconds

    @rule(data=st.data(), delay=SECONDS)
    def nack(self, data: st.DataObject, delay: float) -> None:
        for delivery in self.some(data, 1):
            self.forget_expired()
            self.brokers[0].nack(delivery, delay)
            message = self.holding(delivery)
            if message is not None:
                message.holder, message.due = None, self.now + delay

    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        for delivery in self.some(data, 1):
            self.forget_expired()
            self.brokers[0].give_back(delivery)
            message = self.holding(delivery)
            if message is not None:
                message.holder, message.due = None, self.now
                message.deliveries -= 1

    @rule(data=st.data())
    def dead_letter(self, data: st.DataObject) -> None:
        for delivery in self.some(data, 1):
            self.forget_expired()
            self.brokers[0].dead_letter(delivery, "told so")
            message = self.holding(delivery)
            if message is not None:
                self.bury(message)

    @rule(limit=st.none() | st.integers(0, 2))
    def redrive(self, limit: int | None) -> None:
        self.forget_expired()
        dead = sorted(self.model[DEAD], key=lambda m: (-m.priority, m.number))[:limit]
        assert self.brokers[0].redrive("q", limit) == len(dead)
        for message in dead:
            self.model[DEAD].remove(message)
            self.model["q"].append(message)
            message.due, message.expires = self.now, self.now + RETENTION

    @rule()
    def purge(self) -> None:
        self.forget_expired()
        kept = [m for m in self.model["q"] if m.state(self.now) == "leased"]
        assert self.brokers[0].purge("q") == len(self.model["q"]) - len(kept)
        self.model["q"] = kept

    @rule(seconds=SECONDS)
    def advance(self, seconds: float) -> None:
        self.factory.advance(seconds)

    def some(self, data: st.DataObject, most: int = 3) -> list[Delivery]:
        """Deliveries, the late and the settled ones too."""
        if not self.deliveries:
            return []
        picked = st.lists(st.sampled_from(self.deliveries), max_size=most, unique_by=id)
        return data.draw(picked)

    # --- what always holds --------------------------------------------------------------------

    @invariant()
    def holds_the_same(self) -> None:
        self.forget_expired()
        for queue, messages in self.model.items():
            states = [m.state(self.now) for m in messages]
            if self.brokers[1].has_queue(queue):
                assert self.brokers[1].size(queue) == QueueSize(
                    *(states.count(state) for state in ("ready", "delayed", "leased"))
                )
            else:
                assert messages == []
            stored = self.brokers[1].peek(queue)
            assert {(m.data, m.state, m.deliveries) for m in stored} == {
                (m.data, m.state(self.now), m.deliveries) for m in messages
            }
            ready = [m for m in messages if m.ready(self.now)]
            assert [m.data for m in stored[: len(ready)]] == [
                m.data for m in sorted(ready, key=lambda m: (-m.priority, m.number))
            ]
        for message in self.brokers[1].peek(DEAD):
            [known] = [m for m in self.model[DEAD] if m.data == message.data]
            assert message.attributes[DEATH_DELIVERIES] == str(known.died_after[-1])

    @invariant()
    def nothing_ready_goes_unnoticed(self) -> None:
        """A receiver that has looked, and sleeps as long as it is told, misses nothing."""
        due = self.receivers[0].next_due()
        waiting = [m.due - self.now for m in self.model["q"] if m.due > self.now]
        if waiting:
            assert due is not None
            assert due <= min(waiting)


@pytest.mark.parametrize("backend", [name for name, (kind, _) in CASES.items() if kind.held_clock])
def test_any_sequence_of_operations(backend):
    machine = type("Machine", (BrokerMachine,), {"backend": backend})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples(40),
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
