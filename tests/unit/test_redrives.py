"""The mark of a redriven message."""

from __future__ import annotations

import pytest

from gwi_celery import redrives
from gwi_celery.errors import InvalidCall


def test_a_mark_says_from_where_and_fits_into_an_attribute() -> None:
    for step in ("", None, "pay", "~.\ud800 é", "x" * 500):
        made = redrives.mark("death", step)
        assert redrives.step_of(redrives.sealed(made, "seal~x")) == step
        assert redrives.parts(redrives.sealed(made, "seal~x")) == (made, "seal~x")
        assert len(made) < 800
    assert len({redrives.mark("death", step) for step in ("", None, "pay", "start")}) == 4
    for odd in ("x.step-@@@@", "x.other", "x.step-gA==~y"):
        assert isinstance(redrives.step_of(odd), str)
    with pytest.raises(InvalidCall, match="gwi jobs replay"):
        redrives.mark("death", "é" * 251)
