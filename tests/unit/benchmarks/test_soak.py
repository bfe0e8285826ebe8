"""The judgement of ``python -m benchmarks soak``: what counts as a plateau."""

from __future__ import annotations

import argparse

import pytest

from benchmarks import soak


def curve(memory) -> list[dict[str, float]]:
    """An hour, a line each half minute, with ``memory`` as a function of the seconds."""
    rows = []
    for n in range(121):
        row = dict.fromkeys(soak.COLUMNS, 0.0) | {"seconds": n * 30.0, "parent MB": 100.0}
        row |= {"children MB": memory(n * 30.0), "descriptors": 150.0 + n % 3, "threads": 9.0}
        rows.append(row)
    return rows


def test_a_curve_that_has_levelled_off_is_a_plateau() -> None:
    """Growth in the first third is warming up, and noise is no growth."""
    assert soak.verdict(curve(lambda s: min(s, 1000) * 0.1 + (s // 30) % 2))


@pytest.mark.parametrize(
    "given",
    [
        *("--minutes=0", "--minutes=nan", "--rate=0", "--rate=-1", "--rate=inf", "--workers=0"),
        *("--concurrency=-1", "--concurrency=1.5", "--every=0", "--mix=steps,step"),
    ],
)
def test_an_argument_that_can_not_be_is_told_before_anything_starts(given: str, capsys) -> None:
    parser = argparse.ArgumentParser()
    soak.arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args([given])
    assert f"argument {given.partition('=')[0]}: " in capsys.readouterr().err
    assert parser.parse_args([]).mix == list(soak.MIX)


def test_steady_growth_is_no_plateau(capsys) -> None:
    """40 MB an hour on 300 MB: each child some 10."""
    assert not soak.verdict(curve(lambda s: 200 + s / 3600 * 40))
    assert "GROWS    memory MB" in capsys.readouterr().out


def test_too_short_a_run_proves_nothing() -> None:
    assert not soak.verdict(curve(lambda s: 100.0)[:5])
