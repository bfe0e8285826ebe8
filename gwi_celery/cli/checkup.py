"""What ``gwi doctor`` asks of an app: each check with the command, or the change, that mends it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from gwi_celery import queues
from gwi_celery.brokers.pubsub.broker import PubSubBroker
from gwi_celery.errors import GwiError
from gwi_celery.firestore import indexes
from gwi_celery.firestore.url import parse
from gwi_celery.integration import broker_for, settings_for, store_for
from gwi_celery.stores.base import JobFilter, JobStatus

#: Seconds that this machine's clock may be off before it is a problem: deadlines and delays go by it.
_CLOCK = 5.0
#: What each filter of a list is asked by, where an index may be missing.
_LISTS = (
    JobFilter(),
    JobFilter(tenant="-"),
    JobFilter(task="-"),
    JobFilter(status=JobStatus.FAILED),
    JobFilter(tenant="-", status=JobStatus.FAILED),
    JobFilter(tenant="-", run_id="-"),
    JobFilter(label=("-", "-")),
    JobFilter(error_type="-"),
    JobFilter(task_id="-"),
    JobFilter(tenant="-", parent_id="-"),
)


@dataclass(frozen=True)
class Checked:
    """``change``: the command or change that mends it; "" where nothing is to be done."""

    what: str
    holds: bool
    measured: str
    change: str = ""
    expected: str = ""


def checkup(app: Any) -> Iterator[Checked]:
    """All checks, each as soon as it is done. Nothing is made or changed."""
    yield from _dependencies()
    for check, ask in (
        ("settings", _settings),
        ("broker", _broker),
        ("queues", _queues),
        ("store", _store),
        ("indexes", _indexes),
        ("clock", _clock),
        ("results", _results),
        ("tasks", _tasks),
        ("dead letters", _dead_letters),
    ):
        yield _asked(check, ask, app)


def _asked(check: str, ask: Callable[[Any], Checked], app: Any) -> Checked:
    try:
        return ask(app)
    except GwiError as exc:  # its text says what to do
        return Checked(check, False, f"{type(exc).__name__}: {exc}", "as it says")
    except Exception as exc:
        return Checked(check, False, f"{type(exc).__name__}: {exc}", "look at that service")


def _dependencies() -> Iterator[Checked]:
    found = {name: metadata.version(name) for name in ("celery", "kombu", "gwi-celery")}
    yield Checked("packages", True, ", ".join(f"{n} {v}" for n, v in found.items()))


def _settings(app: Any) -> Checked:
    settings = settings_for(app)
    where = f"{app.conf.broker_url}, {settings.effective_store_url}"
    if settings.development:
        return Checked(
            "settings", False, f"{where}; environment is development", "GWI_ENVIRONMENT=production"
        )
    return Checked("settings", True, where)


def _broker(app: Any) -> Checked:
    broker = broker_for(app)
    broker.connect()
    return Checked("broker", True, type(broker).__name__)


def _queues(app: Any) -> Checked:
    broker = broker_for(app)
    missing = [name for name in app.amqp.queues if not broker.has_queue(name)]
    if missing:
        return Checked(
            "queues",
            False,
            f"not made yet: {', '.join(map(str, missing))}",
            "celery -A APP gwi init",
        )
    paused = [state.name for state in queues.queues(app) if state.paused]
    if paused:
        mend = f"celery -A APP gwi queues resume {paused[0]}"
        return Checked("queues", False, f"paused: {', '.join(paused)}", mend)
    return Checked("queues", True, ", ".join(map(str, app.amqp.queues)))


def _store(app: Any) -> Checked:
    store = store_for(app)
    store.find_jobs(JobFilter(), limit=1)  # opens it, and so checks and migrates its schema
    return Checked("store", True, type(store).__name__)


def _indexes(app: Any) -> Checked:
    store = store_for(app)
    try:
        for wanted in _LISTS:
            store.find_jobs(wanted, limit=1)
    except GwiError as exc:
        url = settings_for(app).effective_store_url
        mend = "as it says"
        if url.startswith("firestore:"):
            at = parse(url)
            mend = "\n".join(indexes.commands(at.project, at.database))
        return Checked("indexes", False, str(exc), mend)
    return Checked("indexes", True, f"{len(_LISTS)} lists are served")


def _clock(app: Any) -> Checked:
    client = getattr(store_for(app), "client", None)
    if client is None:
        return Checked("clock", True, "this machine's own")
    off = time.time() - client.about_now() / 1_000_000
    found = f"{abs(off):.1f} s {'ahead of' if off > 0 else 'behind'} the store's"
    if abs(off) > _CLOCK:
        return Checked("clock", False, found, "set this machine's clock: timedatectl set-ntp true")
    return Checked("clock", True, found)


def _results(app: Any) -> Checked:
    app.backend.get_state("gwi-doctor")
    return Checked("results", True, type(app.backend).__name__)


def _tasks(app: Any) -> Checked:
    ours = [name for name, task in app.tasks.items() if hasattr(task, "reliable")]
    others = [name for name in app.tasks if name not in ours and not name.startswith("celery.")]
    if not ours and not others:
        return Checked(
            "tasks", False, "none is registered", "name the modules that define them: include=[...]"
        )
    return Checked("tasks", True, f"{len(ours)} reliable, {len(others)} plain")


def _dead_letters(app: Any) -> Checked:
    broker = broker_for(app)
    if isinstance(broker, PubSubBroker):
        # To look is to lease them: only their number, where Cloud Monitoring can be asked.
        count = sum(state.dead or 0 for state in queues.queues(app))
    else:
        count = sum(1 for _ in queues.dead_letters(app))
    if count:
        return Checked("dead letters", False, f"{count} are there", "celery -A APP gwi dlq list")
    return Checked("dead letters", True, "none is known of")
