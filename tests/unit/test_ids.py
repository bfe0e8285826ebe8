"""Digests of ids: no two ids have one. Those of payloads: reliability/test_payload.py."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gwi_celery.ids import digest

texts = st.text(min_size=1, max_size=30)


def test_parts_of_an_id_are_kept_apart() -> None:
    assert digest("job", "ab", "c") != digest("job", "a", "bc")
    assert digest("job", "a", "") != digest("job", "a")


@given(st.lists(texts, max_size=4), st.lists(texts, max_size=4))
def test_two_different_ids_never_meet(one: list[str], other: list[str]) -> None:
    assert (digest("job", *one) == digest("job", *other)) == (one == other)
