"""A message that would end Celery's worker is told from one that wouldn't."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery.canvas import Signature
from hypothesis import given
from hypothesis import strategies as st
from kombu.message import Message

from gwi_celery.reliability.fields import HEADERS
from gwi_celery.worker.consumer import _named, why_malformed

GOOD: list[Any] = [[1, 2], {}, {"callbacks": None}]


def message(body: Any = None, **headers: Any) -> Message:
    return Message(
        body=json.dumps(GOOD if body is None else body),
        content_type="application/json",
        content_encoding="utf-8",
        headers=headers,
    )


@pytest.mark.parametrize(
    "fine",
    [
        message(task="t", id="1"),
        message([[], {}, None], task="t", id="1", timelimit=[None, 5], retries=2),
        message(task="t", id="1", stamped_headers=["a"], stamps={"a": ["b"]}),
        message({"no": "task"}),
        message([1, 2]),
        message({"task": "t", "id": "1", "args": [1], "kwargs": {}}),
        message({"args": [], "kwargs": {}}, task="t", id="1"),
        Message(body=b"\xff", content_type="application/json", headers={"task": "t", "id": "1"}),
    ],
)
def test_what_celery_makes_or_answers_itself_is_left_to_it(fine: Message) -> None:
    assert why_malformed(fine) is None


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (message(task="t"), "no id"),
        (message(task="t", id=5), "'id' is not a text"),
        (message(task=["t"], id="1"), "'task' is not a text"),
        (message(task="t", id="1", timelimit=5), "timelimit"),
        (message(task="t", id="1", timelimit=[1]), "timelimit"),
        (message(task="t", id="1", timelimit=["a", None]), "timelimit"),
        (message(task="t", id="1", retries="many"), "retries"),
        (message(task="t", id="1", stamped_headers=5), "stamped_headers"),
        (message(task="t", id="1", get=5), "'get' is not absent"),
        (message(task="t", id="1", update=None), "'update' is not absent"),
        (message({"x": 1}, task="t", id="1"), "list of three"),
        (message([[], {}], task="t", id="1"), "list of three"),
        (message([1, {}, {}], task="t", id="1"), "arguments"),
        (message([[], [], {}], task="t", id="1"), "arguments"),
        (message([[], {}, 5], task="t", id="1"), "callbacks"),
        (message({"args": [], "kwargs": {}, "timelimit": "x"}, task="t", id="1"), "timelimit"),
        (message({"args": [], "kwargs": {}, "expires": "x"}, task="t", id="1"), "expires"),
        (message({"task": "t"}), "no id"),
        (message({"task": {}, "id": "1"}), "'task' is not a text"),
        (message({"task": "t", "id": "1", "args": 5}), "arguments"),
    ],
)
def test_what_would_end_the_worker_is_not(odd: Message, reason: str) -> None:
    assert reason in (why_malformed(odd) or "")


def test_what_the_headers_tell_needs_no_body() -> None:
    def undecodable(**headers: Any) -> Message:
        return Message(body=b"x", content_type="text/plain", accept=["json"], headers=headers)

    assert "no task" in (why_malformed(undecodable(task=None)) or "")
    assert "no id" in (why_malformed(undecodable(task="t")) or "")
    assert "retries" in (why_malformed(undecodable(task="t", id="1", retries="x")) or "")
    assert why_malformed(undecodable(task="t", id="1")) is None
    assert _named(undecodable(task="unknown", id="1")) == ("unknown", {})


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eta", ""),
        ("eta", 0),
        ("eta", []),
        ("eta", {}),
        ("eta", "9999-12-31T23:59:59Z"),
        ("expires", ""),
        ("expires", 0),
        ("expires", "tomorrow"),
        ("retries", -1),
        ("retries", 6_000_000_000),
        ("retries", 10**400),
        ("retries", True),
        ("timelimit", [-1, None]),
        ("timelimit", [float("nan"), None]),
        ("timelimit", [10**400, None]),
        ("group", {}),
        ("group_index", "1"),
        ("root_id", 5),
        ("parent_id", []),
        ("stamps", []),
        ("stamped_headers", [5]),
        ("replaced_task_nesting", -1),
        ("gwi_holds", -1),
        ("gwi_holds", "many"),
        ("gwi_deadline", "tomorrow"),
        ("gwi_deadline", float("inf")),
        ("gwi_max_retries", 6e9),
        ("gwi_replay", {}),
        ("gwi_replay", {"generation": -1, "from_step": None}),
        ("gwi_replay", {"generation": 1, "from_step": 5}),
        ("gwi_replay", {"generation": 1}),
        ("gwi_redrive", 5),
        ("gwi_tenant", 5),
    ],
)
def test_a_header_of_another_type_or_out_of_range_is_named(name: str, value: Any) -> None:
    reason = why_malformed(message(task="t", **{"id": "1", name: value}))
    assert reason is not None
    assert reason.startswith(f"its header {name!r} is not ")


@pytest.mark.parametrize("name", ["callbacks", "errbacks", "chain", "chord"])
@pytest.mark.parametrize("value", [5, "t", [5], {"no": "task"}, [{"task": 5}], {"task": ["t"]}])
def test_callbacks_that_are_no_signatures_are_named(name: str, value: Any) -> None:
    reason = why_malformed(message([[], {}, {name: value}], task="t", id="1"))
    assert reason is not None
    assert reason.startswith(f"its field {name!r} is not ")


def test_what_celery_makes_of_a_canvas_is_fine() -> None:
    call = json.loads(json.dumps(Signature("t", args=(1,), kwargs={"a": 1})))
    body = [[], {}, {"callbacks": [call], "errbacks": None, "chain": [call], "chord": call}]
    assert why_malformed(message(body, task="t", id="1", group="g", group_index=0)) is None


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        ("properties", "reply_to", 5),
        ("properties", "correlation_id", {}),
        ("properties", "priority", float("nan")),
        ("delivery_info", "exchange", []),
        ("delivery_info", "routing_key", 5),
    ],
)
def test_a_property_of_another_type_is_named(where: str, name: str, value: Any) -> None:
    odd = message(task="t", id="1")
    setattr(odd, where, {name: value})
    reason = why_malformed(odd)
    assert reason is not None
    assert repr(name) in reason


@given(_json, st.dictionaries(st.sampled_from([*HEADERS]), _json))
def test_any_message_gets_an_answer(body: Any, headers: dict[str, Any]) -> None:
    assert isinstance(why_malformed(message(body, **headers)), (str, type(None)))
