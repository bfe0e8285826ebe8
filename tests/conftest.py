"""Fixtures of all suites: the emulators, as the package gives them to its users."""

import gc
import logging
import os
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import ExitStack, suppress

import pytest
from celery import _state
from celery.worker import state as worker_state
from hypothesis import HealthCheck, settings

from gwi_celery import shield
from gwi_celery.gcp.emulators import FIRESTORE_HOST, PUBSUB_HOST
from gwi_celery.reliability.stopping import lower_flag
from gwi_celery.testing.emulator_fixtures import firestore_emulator, pubsub_emulator
from gwi_celery.testing.emulators import EmulatorMissing, start_firestore, start_pubsub
from tests import nodes, order, slow, zygote
from tests.machine import PATIENCE

__all__ = ["firestore_emulator", "pubsub_emulator"]

# Containers often have it: each process of pytest-xdist would rewrite every test module anew, and each
# worker that a test starts compile the package.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Emulators live for minutes: Java's second compiler and its parallel collector cost more than they give,
# and so does a small place for what is new.
os.environ.setdefault(
    "JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xms256m -Xmn192m"
)

# How long an example takes measures the machine, and what else it does.
for name, examples in (("whole", 100), ("quick", 20)):
    settings.register_profile(
        name, max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )


def pytest_configure(config: pytest.Config) -> None:
    """Under pytest-xdist one emulator of each kind serves all processes, which get its address."""
    config.pluginmanager.register(slow)
    config.pluginmanager.register(order)
    quick = "not slow" in config.option.markexpr
    settings.load_profile("quick" if quick else "whole")
    if quick and sys.platform == "linux":
        zygote.set_up()
    if not getattr(config.option, "numprocesses", None) or hasattr(config, "workerinput"):
        return
    if sys.platform == "linux":
        nodes.fork_them(config)
    if "not emulator" in config.option.markexpr:
        return
    stack = ExitStack()
    config.add_cleanup(stack.close)
    for variable, start in ((PUBSUB_HOST, start_pubsub), (FIRESTORE_HOST, start_firestore)):
        with suppress(EmulatorMissing):  # the tests that need it say so
            os.environ[variable] = stack.enter_context(start()).endpoint


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected stays to the end: the garbage collector need not go through it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_runtest_setup() -> None:
    """What an earlier test may have left in this process, as it is in a new one."""
    lower_flag()
    shield._after_fork()
    # Celery's workers set them for their process: those that tests run in a thread, for this one.
    logging.getLogger().setLevel(logging.WARNING)
    _state._set_task_join_will_block(False)
    # With one of these set the next worker in a thread would end as it starts, and its test wait for it.
    worker_state.should_stop = worker_state.should_terminate = None


@pytest.fixture(autouse=True)
def _no_emulator_of_others(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """An emulator that an earlier test started is in the environment only of tests that need one."""
    if request.node.get_closest_marker("emulator") is None:
        monkeypatch.delenv(PUBSUB_HOST, raising=False)
        monkeypatch.delenv(FIRESTORE_HOST, raising=False)


@pytest.fixture(autouse=True)
def _no_thread_that_fetches_keys_is_left() -> Iterator[None]:
    """It would go on asking, and log what it doesn't get among the lines of tests that come later."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        if thread.name == "gwi-keys":
            thread.join(PATIENCE)
            assert not thread.is_alive(), "the service or gate that this test made was not closed"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A lone surrogate in what a test printed would end the whole run: pytest-xdist can't send it."""
    report = yield
    report.sections = [(name, _sendable(text)) for name, text in report.sections]
    if report.longrepr is not None and _sendable(str(report.longrepr)) != str(report.longrepr):
        report.longrepr = _sendable(str(report.longrepr))
    return report


def _sendable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
