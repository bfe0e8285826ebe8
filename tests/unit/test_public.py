"""What is public, and that it is typed and documented."""

from __future__ import annotations

import inspect
from pathlib import Path

import gwi_celery


def test_the_public_names() -> None:
    assert gwi_celery.__all__ == [
        "Limit",
        "Reliable",
        "ReliableTask",
        "Settings",
        "__version__",
        "broker_for",
        "carry",
        "message_lease_lost",
        "publish_batch",
        "reliable_task",
        "setup",
        "store_for",
    ]
    assert all(hasattr(gwi_celery, name) for name in gwi_celery.__all__)
    assert (Path(gwi_celery.__file__).parent / "py.typed").exists()


def test_every_public_function_is_documented() -> None:
    for name, member in vars(gwi_celery.ReliableTask).items():
        if not name.startswith("_") and (
            inspect.isfunction(member) or isinstance(member, property)
        ):
            assert inspect.getdoc(member), name
    for name in gwi_celery.__all__:
        if name != "__version__":
            assert inspect.getdoc(getattr(gwi_celery, name)), name
