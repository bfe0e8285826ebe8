"""A message that would end Celery's worker is told from one that wouldn't."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.message import Message

from gwi_celery.reliability.consumer import oddity

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
        Message(body=b"\xff", content_type="application/json", headers={"task": "t"}),
    ],
)
def test_what_celery_makes_or_answers_itself_is_left_to_it(fine: Message) -> None:
    assert oddity(fine) is None


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (message(task="t"), "no id"),
        (message(task="t", id=5), "no id"),
        (message(task=["t"], id="1"), "no text"),
        (message(task="t", id="1", timelimit=5), "time limits"),
        (message(task="t", id="1", timelimit=[1]), "time limits"),
        (message(task="t", id="1", timelimit=["a", None]), "time limits"),
        (message(task="t", id="1", retries="many"), "retries"),
        (message(task="t", id="1", stamped_headers=5), "stamps"),
        (message({"x": 1}, task="t", id="1"), "list of three"),
        (message([[], {}], task="t", id="1"), "list of three"),
        (message([1, {}, {}], task="t", id="1"), "arguments"),
        (message([[], [], {}], task="t", id="1"), "arguments"),
        (message([[], {}, 5], task="t", id="1"), "callbacks"),
        (message({"task": "t"}), "no id"),
        (message({"task": {}, "id": "1"}), "no text"),
        (message({"task": "t", "id": "1", "args": 5}), "arguments"),
    ],
)
def test_what_would_end_the_worker_is_not(odd: Message, reason: str) -> None:
    assert reason in (oddity(odd) or "")


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(_json, st.dictionaries(st.sampled_from(["task", "id", "timelimit", "retries"]), _json))
def test_any_message_gets_an_answer(body: Any, headers: dict[str, Any]) -> None:
    assert isinstance(oddity(message(body, **headers)), (str, type(None)))
