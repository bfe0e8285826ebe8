"""Nesting is known before anything is parsed."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwi_celery.transport.depth import MAX_DEPTH, too_deep


def depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(map(depth, inner), default=0) if isinstance(value, (dict, list)) else 0


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('\\"[]{}a', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('\\"[{', max_size=4), inner)
    ),
    max_leaves=25,
)


@given(_json, st.integers(0, 6))
def test_it_is_what_the_parsed_value_has(value: Any, limit: int) -> None:
    assert too_deep(json.dumps(value), limit) is (depth(value) > limit)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
        b'{"a":' * (MAX_DEPTH + 1),
        b"[" * 1_000_000,
        '{"a": "\\\\"}' + "[" * 300,
    ],
)
def test_too_deep(data: bytes | str) -> None:
    assert too_deep(data)


@pytest.mark.parametrize(
    "data",
    [b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, b"[]" * 1000, b'"' + b"[" * 1000 + b'"', b"", b"]" * 999],
)
def test_not_too_deep(data: bytes) -> None:
    assert not too_deep(data)


@pytest.mark.parametrize("unit", [b"[]", b'\\"', b'"', b"\\", b'"\\', b"{", b"]["])
def test_megabytes_of_anything_take_a_moment(unit: bytes) -> None:
    data = unit * (2_000_000 // len(unit))
    began = time.process_time()
    too_deep(data)
    assert time.process_time() - began < 5
