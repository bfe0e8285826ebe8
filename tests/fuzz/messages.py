"""Messages of which one thing is odd: every header, property, attribute and field of the body, with
values of every JSON type. The same seed makes the same messages."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gwi_celery.reliability.fields import CALLBACKS, DELIVERY_INFO, HEADERS, PROPERTIES

#: JSON can't nest as deep in Python's own encoder: this text is put in as it is.
DEEP = "<500 lists>"
GONE = "<left out>"

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 10**30, -(10**400), 6_000_000_000, 0.5, 1e308),
    *(float("nan"), float("inf"), "", " ", "x<number>", "\ud800", "\x00<number>"),
    *("é" * 400 + "<number>", "9" * 5000 + "<number>"),
    *([], [5], [None], [[]], ["x", "y"], {}, {"a": 1}, {"task": 5}, {"": None}),
    *([{"task": "no.such.task"}], {"__type__": "datetime", "__value__": 5}, DEEP, GONE),
]

#: Beside those that the table of ours knows.
HEADER_NAMES = [
    *HEADERS,
    *("content_type", "headers", "meth", "loglevel", "logfile", "is_eager", "delivery_info"),
    *("properties", "called_directly", "update", "args", "kwargs", "x-death", "errbacks", "chord"),
    *(
        "hostname",
        "callbacks",
        "chain",
        "tenant_id",
        "run_id",
        "traceparent",
        "timestamp",
        "groups",
    ),
]
PROPERTY_NAMES = [
    *PROPERTIES,
    *("delivery_info", "delivery_tag", "delivery_count", "delivery_mode", "body_encoding"),
    *("expiration", "timestamp", "content_encoding", "type", "app_id", "gwi_lease", "x-death"),
]
ENVELOPE = ["body", "body_encoding", "content-type", "content-encoding", "headers", "properties"]
JOB_FIELDS = ["id", "type", "tenantId", "runId", "payload", "metadata"]
METADATA = ["maxRetries", "retryCount", "priority", "deadline"]
#: Fields of protocol 1, whose body is the whole call.
PROTOCOL_1 = [*HEADERS, "args", "kwargs", "callbacks", "errbacks", "chord"]

ATTRIBUTES: list[dict[str, str]] = [
    {"gwi-redrive": "x"},
    {"gwi-death-reason": "x", "gwi-death-queue": "other", "gwi-death-deliveries": "many"},
    {"gwi-death-time": "never", "gwi-not-before": "nan", "gwi-expires": "nan"},
    {"gwi-more-0": "[" * 1000},
    {"gwi-more-0": '{"attributes": {"a": 1, "exchange": []}}'},
    {"gwi-attempts": "many"},
    {"priority": "high", "exchange": "", "routing_key": ""},
    {f"foreign-{n:02}": "v" for n in range(98)},
    {f"foreign-{n:02}": "v" * 1024 for n in range(98)},
    {"k" * 256: "v" * 1024},
    {"task": "x" * 1024, "tenant": "", "task_id": ""},
]


@dataclass(frozen=True)
class Odd:
    number: int
    #: Says what is odd about it.
    what: str
    data: bytes
    attributes: dict[str, str]


def messages(examples: int, *, seed: int = 1, first: int = 0) -> list[Odd]:
    """As many, drawn at random from all there are; all of them if ``examples`` is 0."""
    made = list(_all())
    chooser = random.Random(seed)
    if examples:
        made = chooser.sample(made, min(examples, len(made)))
    return [_numbered(first + n, *one) for n, one in enumerate(made)]


def _numbered(n: int, what: str, message: Any, attributes: dict[str, str]) -> Odd:
    text = message if isinstance(message, str) else json.dumps(message)
    text = text.replace("<number>", str(n)).replace(json.dumps(DEEP), "[" * 500 + "]" * 500)
    data = text.encode("utf-8", "surrogatepass").replace(b"<bytes>", b"\xff")
    return Odd(n, what, data, {**attributes, "fuzz": str(n)})


def _all() -> Iterator[tuple[str, Any, dict[str, str]]]:
    for task in ("odd", "odd_reliable"):
        name = f"tests.acceptance.jobs.{task}"
        for value in VALUES:
            shown = f"{task}: {json.dumps(value):.30}"
            for header in HEADER_NAMES:
                yield f"header {header} {shown}", _message(name, {header: value}), {}
            for field in PROPERTY_NAMES:
                yield f"property {field} {shown}", _message(name, properties={field: value}), {}
            for field in DELIVERY_INFO:
                info = {"delivery_info": {field: value}}
                yield f"delivery_info {field} {shown}", _message(name, properties=info), {}
            for field in CALLBACKS:
                yield f"body {field} {shown}", _message(name, embed={field: value}), {}
                listed = _message(name, embed={field: [value]})
                yield f"body {field} [{shown}]", listed, {}
            for field in ENVELOPE:
                yield f"envelope {field} {shown}", _with(_message(name), field, value), {}
            for place in range(3):
                body = [[], {}, {}]
                body[place] = value
                yield f"body[{place}] {shown}", _message(name, body=body), {}
            yield f"body {shown}", _message(name, body=value), {}
            yield f"argument {shown}", _message(name, body=[[value], {"a": value}, {}]), {}
            for field in JOB_FIELDS:
                yield f"job {field} {shown}", _with(_job(name), field, value), {}
            for field in METADATA:
                yield f"metadata {field} {shown}", {**_job(name), "metadata": {field: value}}, {}
            for field in PROTOCOL_1:
                old = _with(_protocol_1(name), field, value)
                yield f"protocol 1 {field} {shown}", _enveloped(old, {"fuzz": "<number>"}), {}
            yield f"message {shown}", value, {}
        for attributes in ATTRIBUTES:
            yield f"attributes {json.dumps(attributes):.40}", _message(name), attributes
            yield f"attributes of junk {json.dumps(attributes):.40}", "junk", attributes
    for junk in ("", "{", "<bytes>", "\x00", "[" * 100_000, '"' + "x" * 100_000, "{" * 250):
        yield f"junk {junk:.10}", junk, {}
    zipped = _with(_message("tests.acceptance.jobs.odd", {"compression": "zlib"}), "body", "eA==")
    yield "compressed, but not", _with(zipped, "body_encoding", "base64"), {}
    yield "10 MB of nothing", "x" * 9_900_000, {}


def _with(message: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    if isinstance(value, str) and value == GONE:
        return {k: v for k, v in message.items() if k != field}
    return {**message, field: value}


def _message(
    task: str,
    headers: dict[str, Any] | None = None,
    properties: dict[str, Any] | None = None,
    embed: dict[str, Any] | None = None,
    body: Any = GONE,
) -> dict[str, Any]:
    own: dict[str, Any] = {"task": task, "id": "fuzz-<number>", "fuzz": "<number>"}
    own["gwi_tenant"] = "acme"
    for name, value in (headers or {}).items():
        own = _with(own, name, value)
    if isinstance(body, str) and body == GONE:
        body = [[], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
        body[2].update(embed or {})
    return _enveloped(body, own, properties)


def _enveloped(
    body: Any, headers: dict[str, Any], properties: dict[str, Any] | None = None
) -> dict[str, Any]:
    text = json.dumps(body).replace(json.dumps(DEEP), "[" * 500 + "]" * 500)
    return {
        "body": text,
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": headers,
        "properties": properties or {},
    }


def _job(task: str) -> dict[str, Any]:
    payload = {"fuzz": "<number>"}
    return {"id": "fuzz-<number>", "type": task, "tenantId": "acme", "payload": payload}


def _protocol_1(task: str) -> dict[str, Any]:
    return {"task": task, "id": "fuzz-<number>", "args": [], "kwargs": {}, "retries": 0}


def wrapped(message: Odd) -> dict[str, Any]:
    """As Pub/Sub pushes it."""
    return {
        "message": {
            "data": base64.b64encode(message.data).decode(),
            "attributes": message.attributes,
            "messageId": str(message.number),
        },
        "subscription": "projects/p/subscriptions/s",
        "deliveryAttempt": 1,
    }
