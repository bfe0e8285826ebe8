"""Which cases of a matrix ``make test`` runs: of a test that starts processes one, the others are slow.

Not the same for each test, so that every pool, broker and store is met; always the same for one test.
A plugin of pytest's, which tests/conftest.py registers.
"""

from __future__ import annotations

import zlib
from collections import defaultdict

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    matrices: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        # What shares a group shares the processes, too: one case more costs little.
        if "acceptance" in marks and not marks & {"slow", "xdist_group"}:
            matrices[item.nodeid.partition("[")[0]].append(item)
    for name, cases in matrices.items():
        cases.sort(key=_place)  # they may have been shuffled
        chosen = cases[zlib.crc32(name.encode()) % len(cases)]
        for case in cases:
            if case is not chosen:
                case.add_marker("slow")


def _place(item: pytest.Item) -> tuple[int, ...]:
    """The case's place in the test's matrix."""
    spec = getattr(item, "callspec", None)
    return () if spec is None else tuple(spec.indices.values())
