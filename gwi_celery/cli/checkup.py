"""What ``gwi doctor`` checks of an app: each check with the command, or the change, that mends it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from typing import Any

from gwi_celery import queues
from gwi_celery.brokers.pubsub.broker import PubSubBroker
from gwi_celery.cli.plan import plan_of
from gwi_celery.config import urls
from gwi_celery.doctor import deployed
from gwi_celery.doctor.findings import Finding
from gwi_celery.errors import GwiError
from gwi_celery.firestore import indexes
from gwi_celery.firestore.url import parse
from gwi_celery.integration import broker_for, integration, settings_for, store_for
from gwi_celery.stores.base import JobFilter, JobStatus
from gwi_celery.stores.queues import LetterFilter

#: Seconds that this machine's clock may be off before it is a problem: deadlines and delays go by it.
_CLOCK = 5.0
#: A filter for each list of jobs whose index may be missing.
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
#: The same for dead letters, where they have records.
_LETTERS = (
    LetterFilter(),
    LetterFilter(queue="-"),
    LetterFilter(reason="-"),
    LetterFilter(task="-"),
    LetterFilter(tenant="-"),
    LetterFilter(error="-"),
    LetterFilter(task_id="-"),
)


def _checked(what: str, holds: bool, measured: str, change: str = "") -> Finding:
    """``change``: the command or change that mends it; "" where nothing is to be done."""
    return Finding(what, holds, measured=measured, change=change)


def checkup(app: Any) -> Iterator[Finding]:
    """The findings of all checks, each as soon as it is made. Nothing is changed."""
    yield from _dependencies()
    for check, ask in (
        ("settings", _settings),
        ("broker", _broker),
        ("queues", _queues),
        ("store", _store),
        ("limits", _limits),
        ("indexes", _indexes),
        ("clock", _clock),
        ("results", _results),
        ("tasks", _tasks),
        ("dead letters", _dead_letters),
    ):
        yield from _asked(check, ask, app)
    yield from _asked("deployment", _deployed, app)


def _asked(
    check: str, ask: Callable[[Any], Finding | Iterable[Finding]], app: Any
) -> Iterator[Finding]:
    try:
        found = ask(app)
        yield from [found] if isinstance(found, Finding) else found
    except GwiError as exc:  # its text says what to do
        yield _checked(check, False, f"{type(exc).__name__}: {exc}", "as it says")
    except Exception as exc:
        yield _checked(check, False, f"{type(exc).__name__}: {exc}", "look at that service")


def _deployed(app: Any) -> Iterator[Finding]:
    """Whether Google Cloud has what :mod:`gwi_celery.deployment` lists for this app."""
    if any(url.startswith("pubsub:") for url in urls(app.conf.broker_url)):
        yield from deployed.needs(plan_of(app))
    else:
        store = settings_for(app).effective_store_url
        if store.startswith("firestore:") and not parse(store).database_per_tenant:
            yield from deployed.firestore(parse(store))


def _dependencies() -> Iterator[Finding]:
    found = {name: metadata.version(name) for name in ("celery", "kombu", "gwi-celery")}
    yield _checked("packages", True, ", ".join(f"{n} {v}" for n, v in found.items()))


def _settings(app: Any) -> Finding:
    settings = settings_for(app)
    where = f"{app.conf.broker_url}, {settings.effective_store_url}"
    if settings.development:
        return _checked(
            "settings", False, f"{where}; environment is development", "GWI_ENVIRONMENT=production"
        )
    return _checked("settings", True, where)


def _broker(app: Any) -> Finding:
    broker = broker_for(app)
    broker.connect()
    return _checked("broker", True, type(broker).__name__)


def _queues(app: Any) -> Finding:
    broker = broker_for(app)
    missing = [name for name in app.amqp.queues if not broker.has_queue(name)]
    if missing:
        return _checked(
            "queues",
            False,
            f"not made yet: {', '.join(map(str, missing))}",
            "celery -A APP gwi init",
        )
    paused = [state.name for state in queues.queues(app) if state.paused]
    if paused:
        mend = f"celery -A APP gwi queues resume {paused[0]}"
        return _checked("queues", False, f"paused: {', '.join(paused)}", mend)
    return _checked("queues", True, ", ".join(map(str, app.amqp.queues)))


def _store(app: Any) -> Finding:
    store = store_for(app)
    store.find_jobs(JobFilter(), limit=1)  # opens it, and so checks and migrates its schema
    return _checked("store", True, type(store).__name__)


def _limits(app: Any) -> Iterator[Finding]:
    """Nothing, unless Redis counts the rates."""
    rates, unavailable = integration(app).rates, settings_for(app).limits_unavailable
    if rates is not None and rates.reachable():
        yield _checked("limits", True, "Redis counts rates")
    elif rates is not None:
        how = "jobs wait" if unavailable == "wait" else "jobs begin uncounted"
        yield _checked(
            "limits",
            False,
            f"Redis, which counts rates, is unavailable: {how}",
            "start it, or mend limits_url",
        )


def _indexes(app: Any) -> Finding:
    store = store_for(app)
    try:
        for wanted in _LISTS:
            store.find_jobs(wanted, limit=1)
        records = integration(app).authority.records
        if records is not None:
            for letter in _LETTERS:
                records.find(letter, limit=1)
    except GwiError as exc:
        url = settings_for(app).effective_store_url
        mend = "as it says"
        if url.startswith("firestore:"):
            at = parse(url)
            mend = "\n".join(indexes.commands(at.project, at.database))
        return _checked("indexes", False, str(exc), mend)
    return _checked("indexes", True, f"{len(_LISTS) + len(_LETTERS)} lists are served")


def _clock(app: Any) -> Finding:
    client = getattr(store_for(app), "client", None)
    if client is None:
        return _checked("clock", True, "this machine's own")
    off = time.time() - client.about_now() / 1_000_000
    found = f"{abs(off):.1f} s {'ahead of' if off > 0 else 'behind'} the store's"
    if abs(off) > _CLOCK:
        return _checked("clock", False, found, "set this machine's clock: timedatectl set-ntp true")
    return _checked("clock", True, found)


def _results(app: Any) -> Finding:
    app.backend.get_state("gwi-doctor")
    return _checked("results", True, type(app.backend).__name__)


def _tasks(app: Any) -> Finding:
    ours = [name for name, task in app.tasks.items() if hasattr(task, "reliable")]
    others = [name for name in app.tasks if name not in ours and not name.startswith("celery.")]
    if not ours and not others:
        return _checked(
            "tasks", False, "none is registered", "name the modules that define them: include=[...]"
        )
    return _checked("tasks", True, f"{len(ours)} reliable, {len(others)} plain")


def _dead_letters(app: Any) -> Finding:
    broker = broker_for(app)
    if isinstance(broker, PubSubBroker):
        # Looking at them would lease them: only their number is asked for.
        count = sum(state.dead or 0 for state in queues.queues(app))
    else:
        count = sum(1 for _ in queues.dead_letters(app))
    if count:
        return _checked("dead letters", False, f"{count} are there", "celery -A APP gwi dlq list")
    return _checked("dead letters", True, "none known")
