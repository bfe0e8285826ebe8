"""Kombu's message <-> the bytes and attributes a broker carries. Pure functions.

The data is one JSON object::

    {"body": ..., "body_encoding": "utf-8" | "base64", "content-type": ..., "content-encoding": ...,
     "headers": {...}, "properties": {...}}

with Celery's message protocol 2 inside (https://docs.celeryq.dev/en/stable/internals/protocol.html).
The attributes repeat what a broker may filter or order by, and are never read back. A plain job
(jobformat.py) is read as well, and never written.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kombu.utils import json

from gwi_celery.brokers.base import REDRIVE, Delivery
from gwi_celery.errors import MalformedMessage, NotSerializable
from gwi_celery.headers import PUSH_UNTIL, REDRIVE_HEADER, RUN_HEADER, TENANT_HEADER
from gwi_celery.text import public_error, raw
from gwi_celery.transport import compression, depth, jobformat
from gwi_celery.transport.source import FOREIGN, Source

#: Pub/Sub's limit on an attribute's value, bytes. Longer ones are omitted, never cut.
MAX_ATTRIBUTE_BYTES = 1024

#: Names of queues that Kombu and Celery create for replies, remote control and events.
_OF_ONE_READER = re.compile(
    r"amq\.gen-.*|celeryev\..*|.*\.pidbox|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.DOTALL
)

_JSON = "application/json"
#: AMQP's delivery mode of a message that may be lost.
_TRANSIENT = 1
#: Limit of a body that is being sent, bytes: the sender has had all of it in memory.
_ANY_SIZE = 2**31
#: Most bytes of a parser's error in a reason.
_SHORT = 200
_TOO_DEEP = (
    f"the message was not sent: {{}} nested deeper than {depth.MAX_DEPTH} levels, which every "
    "worker refuses; send a flatter value, or a text that the task parses"
)


def encode(message: Mapping[str, Any]) -> tuple[bytes, dict[str, str]]:
    """(data, attributes) of a message as Channel.prepare_message made it.

    Raises NotSerializable if a header or property has no JSON form, or if a part of the message is nested
    too deep for its receivers.
    """
    body = message["body"]
    headers = message.get("headers") or {}
    if message.get("content-type") == _JSON and depth.too_deep(_uncompressed(body, headers)):
        raise NotSerializable(_TOO_DEEP.format("its arguments or callbacks are"))
    if isinstance(body, str):
        text, encoding = body, "utf-8"
    else:
        try:
            text, encoding = bytes(body).decode("utf-8"), "utf-8"
        except UnicodeDecodeError:
            text, encoding = base64.b64encode(body).decode("ascii"), "base64"
    try:
        data = json.dumps(
            {
                "body": text,
                "body_encoding": encoding,
                "content-type": message.get("content-type"),
                "content-encoding": message.get("content-encoding"),
                "headers": headers,
                "properties": message.get("properties") or {},
            }
        )
    except (TypeError, RecursionError) as exc:
        raise NotSerializable(
            f"a header or property of the message has no JSON form: {exc}; send plain values"
        ) from exc
    if depth.too_deep(data):
        raise NotSerializable(_TOO_DEEP.format("a header or property is"))
    return data.encode("utf-8"), _attributes(headers)


def _uncompressed(body: str | bytes, headers: Mapping[str, Any]) -> str | bytes:
    """The body before Kombu compressed it; empty if that can't be found out here."""
    codec = headers.get("compression")
    if not isinstance(codec, str) or isinstance(body, str):
        return body
    try:
        return compression.decompress(body, codec, _ANY_SIZE)
    except MalformedMessage:
        return b""


def described(
    delivery: Delivery, headers: Mapping[str, Any], source: Source | None = None
) -> Delivery:
    """The delivery with the attributes that it lacks, from its headers.

    A plain job has no attributes, and people look for the tenant in the dead letter.
    """
    foreign = source is not None and not (source.plain or source.marked)
    given = {**_attributes(headers), **({FOREIGN: "1"} if foreign else {})}
    return replace(delivery, attributes={**given, **delivery.attributes})


def _attributes(headers: Mapping[str, Any]) -> dict[str, str]:
    named = {
        "task": headers.get("task"),
        "task_id": headers.get("id"),
        "tenant": headers.get(TENANT_HEADER),
        "run": headers.get(RUN_HEADER),
    }
    return {
        key: value
        for key, value in named.items()
        if isinstance(value, str) and value and len(raw(value)) <= MAX_ATTRIBUTE_BYTES
    }


def is_reply(message: Mapping[str, Any], queue: str) -> bool:
    """Whether it is a reply, which is of use only while its reader exists.

    By AMQP's convention a reply repeats the request's correlation id and has no ``reply_to``. A message
    to a queue with a generated name counts as a reply, too. A task is never a reply.
    """
    if "task" in (message.get("headers") or {}):
        return False
    properties = message["properties"]
    answers = bool(properties.get("correlation_id")) and "reply_to" not in properties
    return answers or is_of_one_reader(queue)


def is_event(message: Mapping[str, Any], exchange: str) -> bool:
    """Whether it is one of Celery's events: transient, and neither a task nor of remote control."""
    transient = message["properties"].get("delivery_mode") == _TRANSIENT
    return transient and "task" not in (message.get("headers") or {}) and ".pidbox" not in exchange


def is_of_one_reader(queue: str) -> bool:
    """Whether the queue has a name like those that belong to one connection."""
    return _OF_ONE_READER.fullmatch(queue) is not None


def decode(delivery: Delivery) -> dict[str, Any]:
    """The message in the form of Kombu's virtual Message, with this delivery's properties.

    ``delivery_info["redelivered"]`` is where Celery looks; ``properties["delivery_count"]`` is the
    broker's own count. Raises MalformedMessage with the reason.
    """
    if depth.too_deep(delivery.data):
        raise MalformedMessage(depth.reason())
    try:
        message = json.loads(delivery.data)
    except Exception as exc:  # Kombu's decoders of its JSON types may raise anything
        raise MalformedMessage(f"not JSON ({public_error(exc, _SHORT)})") from exc
    plain = jobformat.is_job(message)
    if plain:
        message = jobformat.to_message(message, delivery.queue)
    if not isinstance(message, dict) or not {"body", "properties", "headers"} <= message.keys():
        raise MalformedMessage(
            "JSON, but without the body, headers and properties of a message, or a plain job's type"
        )
    properties, headers, body = message["properties"], message["headers"], message["body"]
    if not isinstance(properties, dict) or not isinstance(headers, dict):
        raise MalformedMessage("its headers or properties are not objects")
    for name in ("content-type", "content-encoding"):
        if not isinstance(message.get(name), (str, type(None))):
            raise MalformedMessage(f"its {name} is not a text")
    encoding = message.get("body_encoding", "utf-8")
    if encoding == "base64":
        try:
            body = base64.b64decode(body, validate=True)
        except (TypeError, ValueError, binascii.Error) as exc:
            raise MalformedMessage(f"its body is not base64 ({exc})") from exc
    elif not isinstance(body, str):
        raise MalformedMessage("its body is not a text")
    info = properties.get("delivery_info")
    properties["delivery_info"] = {
        **(info if isinstance(info, dict) else {}),
        "redelivered": delivery.deliveries > 1,
    }
    # Not for publishers to set: Kombu's codecs and ReliableTask would believe them.
    for name in ("body_encoding", PUSH_UNTIL):
        properties.pop(name, None)
    # A worker's copy has the mark as a header. The claim checks whether an operator set it.
    redrive = delivery.attributes.get(REDRIVE)
    if redrive:
        headers[REDRIVE_HEADER] = redrive
    properties["delivery_tag"] = delivery.ack_id
    properties["delivery_count"] = delivery.deliveries
    properties["priority"] = properties.get("priority", delivery.priority)
    return {
        "plain": plain,
        "body": body,
        "content-type": message.get("content-type"),
        "content-encoding": message.get("content-encoding"),
        "headers": headers,
        "properties": properties,
    }
