"""docs/testing.md does what it says: its files are written out, and its test is run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import zygote
from tests.workers import ROOT

pytestmark = pytest.mark.acceptance


@pytest.fixture(autouse=True)
def side() -> None:
    """Once is enough: the page's test chooses its broker itself."""


def test_the_example_of_the_page_on_testing_passes(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "testing.md").read_text()
    files = re.findall(r"^`(\w+\.py)`.*?\n\n```python\n(.*?)```", page, re.DOTALL | re.MULTILINE)
    assert [name for name, _ in files] == ["conftest.py", "my_tasks.py", "test_invoice.py"]
    for name, text in files:
        (tmp_path / name).write_text(text)
    done = zygote.run_pytest(tmp_path, *zygote.NODES)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
