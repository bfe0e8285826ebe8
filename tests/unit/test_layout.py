"""The bounds that keep the package easy to enter, and what names its files and their text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import mutants

ROOT = Path(__file__).resolve().parent.parent.parent

PAGES = [page for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")) if page.stem != "CHANGELOG"]
#: Where pages' paths may begin.
BASES = (ROOT, ROOT / "gwi_celery", ROOT / "tests")
#: A path that begins with one of these is one of this repository's, wherever a page has it.
TOPS = {path.name for base in BASES for path in base.iterdir() if path.is_dir()}


def test_each_mutant_changes_one_place() -> None:
    known = [each for name, each in vars(mutants).items() if name.endswith("_MUTANTS")]
    assert known
    stale = [
        f"{mutant.name}: {found} times in {mutant.file}"
        for mutant in (mutant for some in known for mutant in some)
        if (found := (ROOT / mutant.file).read_text().count(mutant.before)) != 1
    ]
    assert stale == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    named = {*re.findall(r"(?<![\w/.:@-])((?:[\w.-]+/)+[\w.-]*\w\b)(?![*{])", page.read_text())}
    ours = {path for path in named if path.partition("/")[0] in TOPS}
    missing = {path for path in ours if not any((base / path).exists() for base in BASES)}
    assert missing == set()
