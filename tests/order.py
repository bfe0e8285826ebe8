"""Which tests share a process of pytest-xdist, and in which order they run. A plugin of pytest's.

Tests with a fixture for their whole module stay together: each process would make one of its own. All
others are spread: with tests of one module in every process, all may be waiting at the same time.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import pytest

_TESTS = Path(__file__).resolve().parent
#: Where tests wait for processes and servers. They, and those on emulators, end before the others do: the
#: last ones would leave all other processes idle.
_WAITING = (
    *("acceptance", "cli", "docs", "doctor", "ends", "integration", "pubsub", "service", "suite"),
    "testing",
)
_SHARE = 0.75
_SEPARATOR = "@"  # pytest-xdist's own, between a test's name and its group


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not getattr(config.option, "loadgroup", False):
        return
    # With pytest-randomly another order for each of its seeds, or else always the same.
    seed = str(getattr(config.option, "randomly_seed", ""))
    places: dict[pytest.Item, float] = {}
    for item in items:
        name = item.nodeid
        # pytest-xdist 3.8 marks groups in an attribute that pytest 9.2 doesn't read any more.
        grouped = getattr(item, "_nodeid", name)
        if grouped == name and _has_fixture_of_module(item):
            grouped = f"{name}{_SEPARATOR}{name.partition('::')[0]}"
        if grouped == name:
            places[item] = _place(item, seed)
            continue
        places[item] = 0.0  # as collected; pytest-xdist runs the largest group first
        item._nodeid = grouped
        if hasattr(item, "_id"):
            item._id = type(item._id).parse(grouped)
    items.sort(key=places.__getitem__)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """pytest-xdist's own, which forgets what has ended, and outlives a process that crashes."""
    from xdist.scheduler import LoadGroupScheduling

    class Scheduling(LoadGroupScheduling):
        def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
            # It counts through all that is here after each test.
            super().mark_test_complete(node, item_index, duration)
            scope = self._split_scope(self.registered_collections[node][item_index])
            if all(self.assigned_work[node][scope].values()):
                del self.assigned_work[node][scope]

        def remove_node(self, node: Any) -> str | None:
            """The test in which it crashed, if it did: run again it would end the next process, too."""
            for scope, tests in list(self.assigned_work[node].items()):
                for name, ended in tests.items():
                    if not ended:
                        tests[name] = True
                        if all(tests.values()):
                            del self.assigned_work[node][scope]
                        super().remove_node(node)
                        return name
            return super().remove_node(node)

        def _reschedule(self, node: Any) -> None:
            if node not in self.registered_collections:
                return  # it takes a crashed one's place, and is collecting
            super()._reschedule(node)
            # A process runs a test once it knows the next, or that there is none (its issue 1327).
            while self._pending_of(self.assigned_work[node]) < 2 and not node.shutting_down:
                super()._reschedule(node)

    return Scheduling(config, log) if config.option.dist == "loadgroup" else None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """In the process that reports: ``--last-failed`` finds a test by its name without a group."""
    name, separator, _ = report.nodeid.rpartition(_SEPARATOR)
    if hasattr(report, "node") and separator and report.nodeid.rfind("]") < len(name):
        report.nodeid = name


def _place(item: pytest.Item, seed: str) -> float:
    spread = zlib.crc32((seed + item.nodeid).encode("utf-8", "backslashreplace")) / 2**32
    folder = item.path.relative_to(_TESTS).parts[0]
    waits = folder in _WAITING or item.get_closest_marker("emulator") is not None
    return spread * _SHARE if waits else spread


def _has_fixture_of_module(item: pytest.Item) -> bool:
    info = getattr(item, "_fixtureinfo", None)
    return info is not None and any(
        made.scope == "module" for found in info.name2fixturedefs.values() for made in found
    )
