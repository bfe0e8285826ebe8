"""What a message may take in memory is known before it is parsed, and while it is decompressed."""

from __future__ import annotations

import base64
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kombu import compression as kombus

from gwi_celery.errors import MalformedMessage
from gwi_celery.transport import budget, compression, depth
from tests import zygote

MB = 1_000_000


#: Items of a list.
ITEMS = {
    "empty objects": "{}",
    "empty lists": "[]",
    "objects": '{"a":1}',
    "objects in objects": '{"a":{"b":{}}}',
    "numbers": "0",
    "large numbers": "123456",
    "floats": "1.5",
    "texts": '"ab"',
    "records": '{"id": 123456, "name": "some name", "tags": ["a", "b"], "ok": true}',
    "escapes": '"\\\\\\""',
}
#: Of a size.
OTHERS: dict[str, Callable[[int], str]] = {
    "names": lambda size: "{" + ",".join(f'"{n:x}":0' for n in range(size // 9)) + "}",
    "one text": lambda size: '"' + "x" * size + '"',
    "one wide text": lambda size: '"' + "x" * size + '\U0001f600"',
    "a wide escape": lambda size: '"' + "x" * size + '\\ud83d\\ude00"',
    "a text that looks like objects": lambda size: '"' + "{}," * (size // 3) + '"',
}


def shaped(what: str, size: int) -> str:
    """JSON of about that many bytes."""
    if what in OTHERS:
        return OTHERS[what](size)
    return "[" + ",".join([ITEMS[what]] * (size // (len(ITEMS[what]) + 1))) + "]"


@pytest.mark.parametrize("what", [*ITEMS, *OTHERS])
def test_the_estimate_is_no_less_than_what_parsing_takes_and_not_far_off(what: str) -> None:
    data = shaped(what, MB // 5).encode()
    tracemalloc.start()
    parsed = json.loads(data.decode())
    taken = tracemalloc.get_traced_memory()[0] - len(data)
    tracemalloc.stop()
    estimate = depth.decoded_size(data)
    assert parsed is not None
    assert taken * 0.7 <= estimate <= 5 * (taken + len(data))
    assert depth.decoded_size(data, enough=len(data) * 120) <= len(data) * 120


def test_a_pass_over_it_takes_little_memory_whatever_it_is() -> None:
    for text in ('"' * 8, '""', '[""]', '{"":""}', '"\\"', "[]", "{},"):
        data = (text * (MB // len(text))).encode()
        tracemalloc.start()
        depth.decoded_size(data)
        depth.too_deep(data, 200)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3 * len(data) + MB, text


def test_texts_are_no_structure_wherever_a_block_ends() -> None:
    for shift in range(70):
        filler = "x" * (65_536 - 35 + shift)
        text = json.dumps([filler, '[[[{"\\', {"a": '"]}'}, "é" * 40, "[" * 300])
        assert not depth.too_deep(text, 3)
        deep = text[:-1] + "," + "[" * 300 + "]" * 300 + "]"
        assert depth.too_deep(deep, 200)
        assert not depth.too_deep(deep, 301)


def bomb(codec: str, size: int) -> bytes:
    return bytes(kombus.compress(b"[" + b" " * size + b"]", codec)[0])


@pytest.mark.parametrize("codec", kombus.encoders())
def test_every_codec_of_kombus_stops_at_the_limit(codec: str) -> None:
    body = b'{"some": "body"}' * 1000
    packed = bytes(kombus.compress(body, codec)[0])
    assert compression.decompress(packed, codec, len(body)) == body
    for limit in (len(body) - 1, 1, 0):
        with pytest.raises(MalformedMessage, match="once decompressed"):
            compression.decompress(packed, codec, limit)
    for broken in (packed[:-9], packed[:5], b"x" + packed, b"no"):
        with pytest.raises(MalformedMessage, match="can't be decompressed"):
            compression.decompress(broken, codec, MB)
    assert len(kombus._aliases) >= 6
    with pytest.raises(MalformedMessage, match="once decompressed"):
        compression.decompress(bomb(codec, 10 * MB), codec, MB)


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="unknown"):
        compression.decompress(b"x", "lz4", 10)
    kombus.register(lambda b: b, lambda b: b, "application/x-mine", ["mine"])
    try:
        with pytest.raises(MalformedMessage, match="stops at a limit"):
            compression.decompress(b"x", "mine", 10)
    finally:
        del kombus._decoders["application/x-mine"], kombus._aliases["mine"]
        del kombus._encoders["application/x-mine"]


def test_the_default_is_a_share_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 16 * MB <= budget.automatic() <= 256 * MB
    monkeypatch.setattr(budget.resource, "getrlimit", lambda which: (512_000_000, 512_000_000))
    assert budget.automatic.__wrapped__() <= 22_000_000


#: Runs with little more memory than it has by then, and decodes what it is given.
_LIMITED = """
import json, resource, sys
from types import SimpleNamespace
from gwi_celery.brokers.base import Delivery
from gwi_celery.transport import handover
from tests.unit.transport.test_budget import bombs

channel = SimpleNamespace(authority=None, no_ack_consumers=None, decode_body=_decode_body)
made = bombs()
with open("/proc/self/statm") as f:
    now = int(f.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 40_000_000, -1))
for name, data in made.items():
    try:
        message = handover.decode(Delivery("q", "a", "m", data, {}, 1, 0.0, 0, 30.0), channel)
        message.payload
    except MemoryError:
        raise
    except Exception as exc:
        print(name, "refused:", str(exc)[:70])
    else:
        print(name, "decoded")
"""


def bombs() -> dict[str, bytes]:
    def celery(body: str, **more: Any) -> bytes:
        message = {
            "body": body,
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {"task": "t", "id": "i"},
            "properties": {},
        }
        return json.dumps({**message, **more}).encode()

    objects = shaped("empty objects", 4 * MB)
    made = {
        f"plain job of {what}": f'{{"id": "i", "type": "t", "payload": {{"a": {shaped(what, 4 * MB)}}}}}'
        for what in ("empty objects", "empty lists", "records", "names")
    }
    made = {name: text.encode() for name, text in made.items()}
    made["body of objects"] = celery(f"[[{objects}], {{}}, {{}}]")
    made["headers of objects"] = celery("")[:-1] + f', "headers": {{"a": {objects}}}}}'.encode()
    for codec in kombus.encoders():
        body = base64.b64encode(bomb(codec, 50 * MB)).decode()
        headers = {"task": "t", "id": "i", "compression": codec}
        made[f"compressed by {codec}"] = celery(body, body_encoding="base64", headers=headers)
    made["a codec of Python's own"] = celery("x" * 100, **{"content-encoding": "zlib"})
    return made


def test_bombs_are_refused_in_a_process_with_little_memory(tmp_path: Path) -> None:
    run = zygote.run(_LIMITED.replace("_decode_body", "lambda b, e=None: b"), folder=tmp_path)
    assert run.returncode == 0, run.stdout[-2000:]
    lines = run.stdout.splitlines()
    assert len(lines) == 7 + len(kombus.encoders())
    assert [line for line in lines if "refused" not in line] == []
