"""When a look into a subscription ends, and that several are looked into at the same time."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from gwi_celery.brokers.pubsub import looks
from gwi_celery.brokers.pubsub.looks import Looks, look
from gwi_celery.errors import BrokerUnavailable
from tests.machine import PATIENCE


class Broken(grpc.RpcError):
    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.INTERNAL


class Service:
    """Opens streams: each brings its part of the script at once, and stays open unless that ends it."""

    def __init__(self, *script: list[Any]) -> None:
        self.script = list(script)
        #: Messages that each stream was allowed.
        self.allowed: list[int] = []

    def open_stream(
        self, client: Any, path: str, allowance: int, lease: float, on_response: Any, on_end: Any
    ) -> Any:
        self.allowed.append(allowance)
        for part in self.script.pop(0):
            if isinstance(part, Exception):
                on_end(part)
            else:
                on_response(SimpleNamespace(received_messages=[part]))
        return SimpleNamespace(half_close=lambda: on_end(None), cancel=lambda: None)

    def error(self, exc: Exception, rpc: str, resource: str) -> Exception:
        return BrokerUnavailable("for now")


def looked(service: Any, limit: int = 10, lease: float = 60.0) -> tuple[list[Any], bool]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(looks, "_QUIET", 0.1)
        patched.setattr(looks, "_PAUSE", 0.0)
        patched.setattr(looks, "open_stream", service.open_stream)
        return look(service, "subscription", limit, lease)


def test_silence_means_that_there_is_no_more() -> None:
    service = Service(["a", "b"])
    assert looked(service) == (["a", "b"], False)
    assert service.allowed == [10], "asking once is enough"


def test_at_its_limit_there_may_be_more() -> None:
    assert looked(Service(["a", "b"]), limit=2) == (["a", "b"], True)


def test_after_a_stream_that_broke_the_next_one_brings_the_rest() -> None:
    service = Service(["a", Broken()], [Broken()], ["b"])
    assert looked(service, limit=3) == (["a", "b"], False)
    assert service.allowed == [3, 2, 2]


def test_what_was_found_is_told_although_the_rest_is_unavailable() -> None:
    assert looked(Service(["a", Broken()], *[[Broken()]] * 3)) == (["a"], True)
    with pytest.raises(BrokerUnavailable):
        looked(Service(*[[Broken()]] * 4))


class Trickle(Service):
    """Brings a message now and then, without end."""

    def open_stream(self, *given: Any, on_response: Any, on_end: Any) -> Any:
        closed = threading.Event()

        def go_on() -> None:
            while not closed.wait(0.02):
                on_response(SimpleNamespace(received_messages=["m"]))
            on_end(None)

        thread = threading.Thread(target=go_on)
        thread.start()
        return SimpleNamespace(half_close=closed.set, cancel=thread.join)


def test_messages_that_go_on_arriving_keep_it_for_half_a_lease_at_most() -> None:
    found, more = looked(Trickle(), limit=1_000_000, lease=1.0)
    assert (set(found), more) == ({"m"}, True)


def test_subscriptions_are_looked_into_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    all_at_once = threading.Barrier(3)

    def waiting(client: Any, path: str, limit: int, lease: float) -> tuple[list[str], bool]:
        all_at_once.wait(PATIENCE)
        return [path], False

    monkeypatch.setattr(looks, "look", waiting)
    topology = SimpleNamespace(first_lease=lambda queue: 10.0)
    options = SimpleNamespace(lax=False)
    broker: Any = SimpleNamespace(client=None, topology=topology, options=options)
    sources: Any = [SimpleNamespace(path=path, queue="q") for path in "abc"]
    pulled = Looks(broker).pull_all(sources, 10)
    assert [found for _, found, _ in pulled] == [["a"], ["b"], ["c"]]
    assert Looks(broker).pull_all([], 10) == []
