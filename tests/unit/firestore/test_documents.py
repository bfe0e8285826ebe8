"""Values of documents, as messages and back."""

from __future__ import annotations

from typing import Any

import pytest
from google.cloud.firestore_v1 import types

from gwi_celery.firestore import documents
from gwi_celery.firestore.documents import Micros


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        0,
        -1,
        2**62,
        1.5,
        "",
        "ü\x00",
        b"",
        b"\x00\xff",
        Micros(1_700_000_000_123_456),
        [1, "a", [b"x"]],
        {"a": {"b": [1]}},
    ],
)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    message = types.Value.pb()()
    documents.set_value(message, value)
    back = documents.get_value(message)
    assert back == value
    assert type(back) is type(value)


def test_a_value_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="set"):
        documents.set_value(types.Value.pb()(), {1, 2})
