"""The documentation's site: it builds without a warning, and each link leads somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gwi_celery
from gwi_celery.stores.base import JobStatus
from tests.workers import ROOT

DOCS = ROOT / "docs"


@pytest.mark.slow
def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    """MkDocs checks links and their anchors, and that each page is in the navigation."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "api" / "index.html").read_text()
    for name in gwi_celery.__all__:
        if name != "__version__":
            assert f'id="gwi_celery.{name}"' in reference, f"{name} is missing from docs/api.md"


def test_links_of_pages_outside_the_site_lead_somewhere() -> None:
    for page in ROOT.glob("*.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text()):
            assert (ROOT / target).exists(), f"{page.name}: {target}"


def test_the_picture_of_a_job_has_each_state() -> None:
    picture = re.search(r"```mermaid\n(.*?)```", (DOCS / "design.md").read_text(), re.DOTALL)
    assert picture is not None
    assert {status.name for status in JobStatus} <= set(re.findall(r"[A-Z]{4,}", picture[1]))
