"""The bounds that keep the package easy to enter; what names its files, their text and their tests."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.mutants import GROUPS

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = sorted((ROOT / "gwi_celery").rglob("*.py"))
PAGES = [page for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")) if page.stem != "CHANGELOG"]
#: Where pages' paths may begin.
BASES = (ROOT, ROOT / "gwi_celery", ROOT / "tests")
#: A path that begins with one of these is one of this repository's, wherever a page has it.
TOPS = {path.name for base in BASES for path in base.iterdir() if path.is_dir()}
UNIT = ROOT / "tests" / "unit"
#: Of the package as a whole.
OF_ALL = {Path("test_layout.py"), Path("test_public.py")}


def test_no_module_or_class_is_too_large_to_read() -> None:
    """At most 500 lines, and 25 methods, unless its docstring says why: "Over 500 lines ..."."""
    large = []
    for path in PACKAGE:
        text = path.read_text()
        tree = ast.parse(text)
        lines = text.count("\n")
        if lines > 500 and "Over 500 lines" not in (ast.get_docstring(tree) or ""):
            large.append(f"{path.relative_to(ROOT)} has {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                methods = sum(
                    isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) for each in node.body
                )
                if methods > 25 and "Over 25 methods" not in (ast.get_docstring(node) or ""):
                    large.append(f"{path.relative_to(ROOT)}: {node.name} has {methods} methods")
    assert large == []


def test_a_unit_test_is_named_after_its_module_and_in_its_place() -> None:
    """Or after a package, and in that one's place."""
    lost = set()
    for path in UNIT.rglob("test_*.py"):
        tested = path.relative_to(UNIT).with_name(path.stem.removeprefix("test_"))
        places = [base / tested for base in (ROOT / "gwi_celery", ROOT)]
        if not any(each.is_dir() or each.with_suffix(".py").exists() for each in places):
            lost.add(path.relative_to(UNIT))
    assert lost == OF_ALL


def test_no_unit_test_starts_a_worker_or_another_server() -> None:
    starts = re.compile(
        r"mark\.(acceptance|emulator)|from tests\.workers import .*\bWorker\b"
        r"|from tests\.service\.pushing|start_twin\(|redis_server\(|(pubsub|firestore)_emulator\b"
    )
    assert [path for path in UNIT.rglob("*.py") if starts.search(path.read_text())] == []


def test_imports_for_types_alone_go_to_lower_layers_as_well() -> None:
    """import-linter checks all others; these it leaves out, as within a package they may lead back."""
    layers = re.search(
        r"^layers = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.S | re.M
    )
    assert layers is not None
    lines = [line.split(" | ") for line in re.findall(r'"([^"]+)"', layers[1])]
    depth = {name: n for n, names in enumerate(lines) for name in names}
    upwards = []
    for path in PACKAGE:
        own = path.relative_to(ROOT / "gwi_celery").parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                for each in node.body:
                    module = getattr(each, "module", None) or ""
                    other = module.removeprefix("gwi_celery.").partition(".")[0]
                    if (
                        module.startswith("gwi_celery.")
                        and other != own
                        and depth[other] <= depth[own]
                    ):
                        upwards.append(f"{path.relative_to(ROOT)}: {module}")
    assert depth.keys() >= {"app", "stores", "errors"}
    assert upwards == []


def test_each_mutant_changes_one_place_and_names_tests_that_are_there() -> None:
    stale = []
    for mutant in (mutant for mutants in GROUPS.values() for mutant in mutants):
        if (found := (ROOT / mutant.file).read_text().count(mutant.before)) != 1:
            stale.append(f"{mutant.name}: {found} times in {mutant.file}")
        for test in mutant.selection:
            path, _, name = test.partition("[")[0].partition("::")
            if f"def {name}" not in (ROOT / path).read_text():
                stale.append(f"{mutant.name}: there is no {test}")
    assert GROUPS
    assert stale == []


def test_files_that_pages_and_docstrings_name_are_there() -> None:
    missing = []
    for page in (*PAGES, *PACKAGE):
        for path in re.findall(
            r"(?<![\w/.:@-])((?:[\w.-]+/)+[\w.-]*\w\b)(?![*{])", page.read_text()
        ):
            ours = path.partition("/")[0] in TOPS
            if ours and not any((base / path).exists() for base in BASES):
                missing.append(f"{page.relative_to(ROOT)}: {path}")
    assert missing == []


def test_the_map_has_every_package() -> None:
    named = {*re.findall(r"`(\w+)`", (ROOT / "ARCHITECTURE.md").read_text())}
    there = {path.parent.name for path in (ROOT / "gwi_celery").glob("*/__init__.py")}
    assert there - named == set()


def test_sql_numbers_no_placeholder() -> None:
    """Python 3.12 warns of ``?1`` beside a sequence, and 3.14 refuses it."""
    numbered = [str(p) for p in PACKAGE if re.search(r"\?[1-9]\b", p.read_text())]
    assert not numbered
