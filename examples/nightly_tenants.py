"""Celery beat: one job for each tenant and night, though two schedulers run, and nights may overlap.

    python -m examples.nightly_tenants

In production: `celery -A examples.nightly_tenants worker` and `celery -A examples.nightly_tenants beat`.
Here the clock of the two schedulers is set forward, so that three nights take a second.
"""

from __future__ import annotations

import os
import tempfile
from datetime import datetime, timedelta, timezone
from typing import Any

from celery import Celery, beat, signals
from celery.schedules import crontab

from examples.local import worker
from gwi_celery import Reliable, ReliableTask, setup

os.environ.setdefault("GWI_FOLDER", tempfile.mkdtemp(prefix="nightly-tenants-"))
app = Celery("nightly")
setup(app)

TENANTS = ["acme", "globex", "initech"]
#: (tenant, night) of each report that was written.
written: list[tuple[str, str]] = []
clock = datetime(2026, 7, 1, 2, 30, tzinfo=timezone.utc)


def now() -> datetime:
    """Leave it out in production: `crontab(hour=3, minute=0)`."""
    return clock


app.conf.beat_schedule = {
    f"nightly {tenant}": {
        "task": "nightly.report",
        "schedule": crontab(hour=3, minute=0, nowfun=now),
        "kwargs": {"tenant_id": tenant, "run_id": "nightly"},
    }
    for tenant in TENANTS
}


@app.task(base=ReliableTask, bind=True, name="nightly.report", reliable=Reliable(deadline=3600))
def report(self: Any, *, tenant_id: str, run_id: str) -> str:
    """The lock is the tenant's run: a report that takes long delays only this tenant's next one."""
    night = self.request.headers["gwi_due"]  # when it was due: this names the job
    self.step("write", lambda: written.append((tenant_id, night)))
    return f"{tenant_id} {night}"


def schedulers() -> list[Any]:
    """Two, as during a rolling deploy."""
    services = [beat.Service(app, scheduler_cls=beat.Scheduler) for _ in range(2)]
    for service in services:
        signals.beat_init.send(sender=service)  # as `celery beat` does when it starts
    return [service.scheduler for service in services]


def send_what_is_due(scheduler: Any) -> list[Any]:
    sent = []
    for entry in list(scheduler.schedule.values()):
        if entry.task == "nightly.report" and entry.is_due().is_due:
            sent.append(scheduler.apply_async(entry, advance=False))
            scheduler.reserve(entry)
    return sent


def main() -> None:
    global clock  # noqa: PLW0603 the clock of this demonstration
    both = schedulers()
    with worker(app):
        results = []
        for night in range(3):
            clock = datetime(2026, 7, 1, 3, 0, 5, tzinfo=timezone.utc) + timedelta(days=night)
            sent = [result for scheduler in both for result in send_what_is_due(scheduler)]
            assert len(sent) == 6, "two schedulers, three tenants"
            results += [result.get(timeout=60) for result in sent]
    for line in sorted(set(results)):
        print(line)
    assert len(written) == len(set(written)) == 9, "each tenant's night once"


if __name__ == "__main__":
    main()
