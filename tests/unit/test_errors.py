"""The tree of errors: drawn as it is, and with interrupts that no job swallows."""

from __future__ import annotations

import inspect

from gwi_celery import errors


def test_the_error_tree_is_drawn_as_it_is() -> None:
    drawing = errors.__doc__ or ""
    for name in errors.__all__:
        assert name in drawing, f"{name} is missing from the drawing"
        assert inspect.getdoc(getattr(errors, name)), name


def test_interrupts_can_not_be_swallowed_by_accident() -> None:
    assert not issubclass(errors.Interrupt, Exception)
    for name in ("LeaseLost", "JobCancelled", "DeadlinePassed", "WorkerStopping"):
        assert issubclass(getattr(errors, name), errors.Interrupt)
