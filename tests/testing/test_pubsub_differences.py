"""Where Google's emulator and the twin differ, each with what decided it: docs/testing.md has the list.

The other half of ``test_pubsub_conformance.py``, in which they are alike.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
from google.api_core.exceptions import GoogleAPICallError

from gwi_celery.testing.emulators import Emulator
from gwi_celery.testing.twin import (
    STRICT,
    Behaviour,
    FirestoreBehaviour,
    Twin,
    iam,
    push,
    start_twin,
)
from gwi_celery.testing.twin.behaviour import Switches
from gwi_celery.testing.twin.cloudrun import CloudRunBehaviour
from tests.machine import PATIENCE
from tests.testing.pubsub_calls import Calls, Endpoint, bodies
from tests.workers import ROOT

#: Chance is off; a difference switches on what it needs.
_QUIET: dict[str, Any] = {
    "settle": 0,
    "name_rest": 0,
    "immediate_empty": 0,
    "short_pulls": 0,
    "early_expiry": 0,
    "faults": 0,
    "transient_acks": 0,
}
#: A project that recorded what the service answers.
_RECORDED = "https://github.com/t-k/fireemu"
#: Switches without a difference: what they are off, or at 0, is what the emulator does.
_BY_CHANCE = {
    "short_pulls",
    "early_expiry",
    "faults",
    "transient_acks",
    "published_twice",
    "settle_misses",
    "measured_late",
    "revoked",
    "latency",
}


@dataclass(frozen=True)
class Difference:
    #: Of Behaviour, which has the source; "IAM" is ``iam.py``'s.
    switch: str
    what: str
    probe: Callable[[Calls], object]
    twin: object
    emulator: object
    #: Set on the twin, so that nobody waits for minutes.
    switches: dict[str, Any] = field(default_factory=dict)
    #: Address of what decided it, where that isn't the switch's.
    source: str = ""


def answer(call: Callable[[], Any]) -> str:
    """What a call comes to: OK, or the error's code."""
    try:
        call()
    except GoogleAPICallError as exc:
        return str(exc.grpc_status_code.name)
    return "OK"


def _held(calls: Calls) -> object:
    sub = calls.subscription(calls.topic())
    request = {"subscription": sub, "max_messages": 1}
    return answer(lambda: calls.subscriber.pull(request=request, retry=None, timeout=1))


def _abandoned(calls: Calls) -> object:
    topic = calls.topic()
    sub = calls.subscription(topic)
    calls.pull(sub, timeout=0.2)
    calls.publish(topic, "one")
    return bodies(calls.look(sub))


def _immediate(calls: Calls) -> object:
    topic = calls.topic()
    sub = calls.subscription(topic)
    calls.publish(topic, "one")
    return bodies(calls.look(sub))


def _flow(calls: Calls) -> object:
    topic = calls.topic()
    sub = calls.subscription(topic)
    with calls.stream(sub, max_outstanding_messages=1) as stream:
        calls.publish(topic, "a", "b")
        stream.messages(1)
        calls.publish(topic, "c")
        return "more than 1" if _arrives(lambda: stream.messages(1)) else "1"


def _heartbeat(calls: Calls) -> object:
    with calls.stream(calls.subscription(calls.topic()), protocol_version=1) as stream:
        stream.send()
        return "an answer" if _arrives(stream.answer) else "none"


def _arrives(wait_for: Callable[[], object]) -> bool:
    """Whether it is there within a second."""
    arrived = threading.Event()

    def wait() -> None:
        try:
            wait_for()
        except GoogleAPICallError:
            return
        arrived.set()

    threading.Thread(target=wait, daemon=True).start()
    return arrived.wait(1)


def _closed(calls: Calls) -> object:
    with calls.stream(calls.subscription(calls.topic())) as stream:
        ended: list[str] = []
        thread = threading.Thread(
            target=lambda: ended.append(answer(lambda: _raise(stream.end()))), daemon=True
        )
        thread.start()
        thread.join(1.5)
        return "closed" if ended else "open"


def _half_closed(calls: Calls) -> object:
    with calls.stream(calls.subscription(calls.topic())) as stream:
        stream.half_close()
        return answer(lambda: _raise(stream.end()))


def _raise(exc: Exception | None) -> None:
    if exc is not None:
        raise exc


def _filtered(calls: Calls) -> object:
    topic = calls.topic()
    sub = calls.subscription(topic, filter="attributes:colour")
    calls.publish(topic, "one")
    return bodies(calls.look(sub))


def _no_filter(calls: Calls) -> object:
    topic = calls.topic()
    return answer(lambda: calls.subscription(topic, filter="colour is red"))


def _fresh(calls: Calls) -> object:
    topic = calls.topic()
    return answer(lambda: calls.publish(topic, "one"))


def _topic(calls: Calls) -> object:
    return answer(calls.topic)


def _deleted(calls: Calls) -> object:
    calls.publisher.delete_topic(request={"topic": calls.topic()})
    return answer(calls.topic)


def _expired(calls: Calls) -> object:
    topic = calls.topic()
    policy = {"minimum_backoff": {"seconds": 600}, "maximum_backoff": {"seconds": 600}}
    sub = calls.subscription(topic, retry_policy=policy)
    calls.publish(topic, "one")
    calls.modify(sub, 1, *calls.pull(sub))
    return bodies(calls.pull(sub, timeout=2))


def _ordered(calls: Calls) -> object:
    topic = calls.topic()
    sub = calls.subscription(topic, enable_message_ordering=True)
    calls.publish(topic, *"abc", key="k")
    received = []
    while len(received) < 3:
        received += calls.pull(sub, 3)
    calls.ack(sub, *received[1:])
    calls.modify(sub, 0, received[0])
    again = bodies(calls.pull(sub, 3, timeout=2))
    return "acked ones too" if {"b", "c"} <= set(again) else "not the acked ones"


def _two_keys(calls: Calls) -> object:
    messages = [{"data": b"x", "ordering_key": key} for key in "ab"]
    request = {"topic": calls.topic(), "messages": messages}
    return answer(lambda: calls.publisher.publish(request=request, retry=None, timeout=10))


def _too_much(calls: Calls) -> object:
    topic = calls.topic()
    return answer(lambda: calls.publish(topic, "x", **{f"a{n}": "x" for n in range(101)}))


def _unknown_page(calls: Calls) -> object:
    request = {"project": calls.project, "page_token": "x"}
    return answer(lambda: calls.publisher.list_topics(request=request, retry=None, timeout=10))


def _busy(calls: Calls) -> object:
    return answer(lambda: [calls.topic(f"topic-{n}") for n in range(10)])


def _pushed(calls: Calls) -> object:
    endpoint = Endpoint()
    try:
        topic = calls.topic()
        token = {"service_account_email": "pusher@p.iam", "audience": "https://audience"}
        push = {"push_endpoint": endpoint.url, "oidc_token": token}
        calls.subscription(topic, push_config=push)
        calls.publish(topic, "one")
        [(headers, _)] = endpoint.wait_for(1)
        return "a signed token" if "Authorization" in headers else "no token"
    finally:
        endpoint.close()


def _depth(calls: Calls) -> object:
    """Whether Cloud Monitoring gets a measurement."""
    from google.cloud.monitoring_v3 import MetricServiceClient
    from google.cloud.monitoring_v3.services.metric_service.transports import (
        MetricServiceGrpcTransport,
    )

    topic = calls.topic()
    name = calls.subscription(topic).rpartition("/")[2]
    calls.publish(topic, "a", "b")
    client = MetricServiceClient(transport=MetricServiceGrpcTransport(channel=calls.channel))
    metric = "pubsub.googleapis.com/subscription/num_undelivered_messages"
    request = {
        "name": calls.project,
        "filter": f'metric.type = "{metric}" AND resource.labels.subscription_id = "{name}"',
        "interval": {"start_time": {"seconds": 1}, "end_time": {"seconds": int(time.time()) + 1}},
    }
    until = time.monotonic() + PATIENCE
    while True:
        try:
            found = list(client.list_time_series(request=request, retry=None, timeout=10))
        except GoogleAPICallError as exc:
            return str(exc.grpc_status_code.name)
        if found and found[0].points[0].value.int64_value == 2:
            return "measured"
        assert time.monotonic() < until
        time.sleep(0.05)


def _permissions(calls: Calls) -> object:
    request = {"resource": calls.topic(), "permissions": [iam.PERMISSIONS["Publish"]]}
    call = calls.publisher.test_iam_permissions
    return answer(lambda: call(request=request, retry=None, timeout=10))


DIFFERENCES = (
    Difference(
        "pull_hold",
        "an empty pull that its client waits a second for",
        _held,
        "DEADLINE_EXCEEDED",
        "OK",
    ),
    Difference(
        "abandoned_pulls_take",
        "what is published after a pull was given up",
        _abandoned,
        [],
        ["one"],
    ),
    Difference(
        "immediate_empty",
        "a pull with return_immediately from a backlog of one, at times",
        _immediate,
        [],
        ["one"],
        {"immediate_empty": 1},
    ),
    Difference(
        "flow_control",
        "messages on a stream with max_outstanding_messages=1",
        _flow,
        "1",
        "more than 1",
    ),
    Difference(
        "stream_silence",
        "a stream without heartbeats for 60 s",
        _closed,
        "closed",
        "open",
        {"stream_silence": 0.5},
    ),
    Difference(
        "stream_pongs",
        "a heartbeat on a stream of protocol version 1 gets",
        _heartbeat,
        "an answer",
        "none",
    ),
    Difference(
        "stream_life", "a stream of 10 minutes", _closed, "closed", "open", {"stream_life": 0.5}
    ),
    Difference(
        "stream_error",
        "a stream that its client half-closed ends",
        _half_closed,
        "UNAVAILABLE",
        "OK",
    ),
    Difference("filters", "a message that the filter keeps back", _filtered, [], ["one"]),
    Difference("filters", "a filter that can't be parsed", _no_filter, "INVALID_ARGUMENT", "OK"),
    Difference(
        "settle",
        "publishing to a topic that was just created, at times",
        _fresh,
        "NOT_FOUND",
        "OK",
        {"settle": 60, "settle_misses": 1, "projects_settle": False},
    ),
    Difference(
        "projects_settle",
        "making a topic in a new project, at times",
        _topic,
        "INVALID_ARGUMENT",
        "OK",
        {"settle": 60, "settle_misses": 1},
    ),
    Difference(
        "name_rest",
        "creating a topic that was just deleted",
        _deleted,
        "ALREADY_EXISTS",
        "OK",
        {"name_rest": 60},
    ),
    Difference(
        "retry_on_expiry",
        "pulled after a lease expired, with a retry policy of 600 s",
        _expired,
        [],
        ["one"],
    ),
    Difference(
        "ordered_redelivery",
        "redelivered when the first message of a key is nacked and later ones are acked",
        _ordered,
        "acked ones too",
        "not the acked ones",
    ),
    Difference(
        "one_ordering_key",
        "two ordering keys in a publish request",
        _two_keys,
        "FAILED_PRECONDITION",
        "OK",
    ),
    Difference("limits", "a message with 101 attributes", _too_much, "INVALID_ARGUMENT", "OK"),
    Difference(
        "limits",
        "a page token that no list gave",
        _unknown_page,
        "INVALID_ARGUMENT",
        "OK",
        source=_RECORDED,
    ),
    Difference(
        "admin_quota",
        "more admin calls than the quota",
        _busy,
        "RESOURCE_EXHAUSTED",
        "OK",
        {"admin_quota": 5},
    ),
    Difference(
        "measured_every",
        "what waits in a subscription, of Cloud Monitoring",
        _depth,
        "measured",
        "UNIMPLEMENTED",
        {"measured_every": 0.1, "measured_late": 0},
    ),
    Difference("IAM", "TestIamPermissions", _permissions, "OK", "UNIMPLEMENTED"),
    Difference("push", "a push with an OIDC account has", _pushed, "a signed token", "no token"),
)


@pytest.fixture(scope="module")
def twin() -> Iterator[Twin]:
    with start_twin(**_QUIET) as started:
        yield started


@pytest.mark.parametrize("different", DIFFERENCES, ids=lambda different: different.what)
def test_on_the_twin(twin: Twin, different: Difference) -> None:
    twin.switch(**dataclasses.asdict(STRICT.changed(**{**_QUIET, **different.switches})))
    twin.reset()
    calls = Calls(twin.endpoint)
    assert different.probe(calls) == different.twin
    calls.close()


@pytest.mark.emulator
@pytest.mark.parametrize("different", DIFFERENCES, ids=lambda different: different.what)
def test_on_the_emulator(pubsub_emulator: Emulator, different: Difference) -> None:
    calls = Calls(pubsub_emulator.endpoint)
    assert different.probe(calls) == different.emulator
    calls.close()


def sources(behaviour: type[Switches]) -> dict[str, str]:
    """Switch -> the address that its comment names."""
    found = re.findall(r"((?:    #: .*\n)+)    (\w+): ", inspect.getsource(behaviour))
    return {name: " ".join(re.findall(r"https://\S+", comment)) for comment, name in found}


def test_each_switch_has_its_source_and_its_difference() -> None:
    for behaviour in (Behaviour, FirestoreBehaviour, CloudRunBehaviour):
        known = sources(behaviour)
        assert set(known) == {each.name for each in dataclasses.fields(behaviour)}
        assert {n for n, url in known.items() if not url} <= {"latency"}
    assert {d.switch for d in DIFFERENCES} - {"IAM", "push"} == set(sources(Behaviour)) - _BY_CHANCE


def table() -> str:
    """Of docs/testing.md; ``python -m tests.testing.test_pubsub_differences`` prints it."""
    known = {**sources(Behaviour), "IAM": _url(iam), "push": _url(push)}
    rows = [
        f"| {d.what} | {_told(d.twin)} | {_told(d.emulator)} | "
        f"[`{d.switch}`]({d.source or known[d.switch]}) |"
        for d in DIFFERENCES
    ]
    return "\n".join(["| | Twin | Emulator | Source |", "|---|---|---|---|", *rows])


def _told(found: object) -> str:
    if isinstance(found, list):
        return "delivered" if found else "not delivered"
    return f"`{found}`" if str(found).isupper() else str(found)


def _url(module: ModuleType) -> str:
    return re.findall(r"https://[^\s:#]+", str(module.__doc__))[0]


def test_the_page_lists_them() -> None:
    assert table() in (ROOT / "docs" / "testing.md").read_text()


if __name__ == "__main__":
    print(table())
