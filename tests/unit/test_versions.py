"""What of Celery is relied on, and which releases are tested."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery

from gwi_celery import setup, versions


@pytest.mark.parametrize("module", versions.INTERNALS)
def test_what_is_relied_on_is_there(module: str) -> None:
    missing = []
    for path in versions.INTERNALS[module]:
        found: Any = importlib.import_module(module)
        for name in path.split("."):
            if isinstance(found, type) and not hasattr(found, name):
                source = "".join(
                    inspect.getsource(c) for c in found.__mro__ if c.__module__ != "builtins"
                )
                if not re.search(rf"self\.{name}\b[^=\n]*=[^=]", source):  # set in __init__
                    missing.append(path)
                break
            if not hasattr(found, name):
                missing.append(path)
                break
            found = getattr(found, name)
    assert missing == []


@pytest.mark.parametrize("version", ["5.3.6", "5.8.0", "6.0.0rc1"])
def test_a_release_that_is_not_tested_is_told(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"embedded://:memory:/{uuid4().hex}"
    monkeypatch.setattr("celery.__version__", version)
    with pytest.warns(UserWarning, match=f"tested with celery 5.4 .*this is {version}"):
        setup(Celery(f"unit-{uuid4().hex}", set_as_current=False), broker_url=url, store_url=url)
