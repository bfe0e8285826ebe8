"""Texts of what users make: never an error, never too long."""

from __future__ import annotations

import pytest

from gwi_celery.text import safe_error, safe_text


class Raises:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __str__(self) -> str:
        raise self.error


class NoText(Exception):
    # Python lets a class say so, and only str() finds out.
    __str__ = lambda self: None  # type: ignore[assignment,return-value]  # noqa: E731


@pytest.mark.parametrize("error", [ValueError("x"), RecursionError(), SystemExit(1)])
def test_a_value_without_a_text_is_described(error: BaseException) -> None:
    assert safe_text(Raises(error)) == f"<Raises whose text raises {type(error).__name__}>"


def test_a_text_that_is_none_is_described() -> None:
    assert safe_error(NoText()) == "NoText: <NoText whose text raises TypeError>"


def test_lone_surrogates_can_be_stored() -> None:
    assert safe_text("a\ud800b") == "a\\ud800b"


@pytest.mark.parametrize("text", ["x" * 5000, "é" * 800, "\ud800" * 900, "😀" * 400])
def test_a_long_text_is_cut_and_says_so(text: str) -> None:
    short = safe_text(text)
    assert len(short.encode()) <= 1000
    assert short.endswith(" more characters)")


def test_a_text_that_just_fits_is_whole() -> None:
    assert safe_text("x" * 1000) == "x" * 1000
    assert safe_text("abc", limit=3) == "abc"


@pytest.mark.parametrize("limit", [0, 1, 5, 30])
def test_a_small_limit_holds(limit: int) -> None:
    assert len(safe_text("é" * 100, limit).encode()) <= limit


def test_an_error_is_named() -> None:
    assert safe_error(ValueError("no")) == "ValueError: no"
