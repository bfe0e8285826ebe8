"""Which keys a topic pattern matches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwi_celery.brokers.routing import topic_matches


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("", [""], ["a", "."]),
        ("#", ["", "a", "a.b", ".", "a..b"], []),
        ("*", ["a", "*", "#"], ["", "a.b", "."]),
        ("*.*", ["a.b", ".", "a."], ["a", "", "a.b.c"]),
        ("a.#.b", ["a.b", "a.x.b", "a.x.y.b", "a.b.b"], ["a", "b", "a.b.c", "ab", "x.a.b"]),
        ("#.a.#", ["a", "x.a", "a.x", "x.a.x"], ["", "x", "aa"]),
        ("a.*.#", ["a.b", "a.b.c"], ["a", "b.a"]),
        ("#.#", ["", "a", "a.b"], []),
        ("#.*", ["a", "a.b"], [""]),
        ("a.b", ["a.b"], ["a", "a.b.", "A.b", "a..b"]),
        ("a..b", ["a..b"], ["a.b"]),
        ("a*.b", ["a*.b"], ["aa.b"]),
    ],
)
def test_topic_patterns(pattern, matching, others):
    assert [key for key in matching if not topic_matches(pattern, key)] == []
    assert [key for key in others if topic_matches(pattern, key)] == []


def _matches(pattern: list[str], words: list[str]) -> bool:
    """The definition, word by word."""
    if not pattern:
        return not words
    head, *rest = pattern
    if head == "#":
        return any(_matches(rest, words[n:]) for n in range(len(words) + 1))
    return bool(words) and head in ("*", words[0]) and _matches(rest, words[1:])


_WORDS = st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=6)


@given(_WORDS, _WORDS)
def test_topic_patterns_by_definition(pattern, words):
    assert topic_matches(".".join(pattern), ".".join(words)) == _matches(pattern, words)


def test_a_hostile_pattern_takes_no_time():
    assert not topic_matches(".".join(["#", "a"] * 100), ".".join(["a"] * 199 + ["b"]))
