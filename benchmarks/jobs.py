"""``jobs.find()`` among 100,000 jobs of 500 tenants on SQLite: the slowest of each filter's pages."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

from gwi_celery.stores.base import JobFilter, JobRef, JobStatus, LockRef, Origin
from gwi_celery.stores.history import History, dump_origin
from gwi_celery.stores.history import terms as found_by
from gwi_celery.stores.sqlite import SqliteStore

JOBS, TENANTS = 100_000, 500
#: Milliseconds that a page may take.
MARK = 300.0
_STATUSES = ["succeeded"] * 90 + ["failed"] * 5 + ["running"] * 3 + ["waiting", "pending"]

FILTERS = {
    "all": JobFilter(),
    "tenant": JobFilter(tenant="tenant-7"),
    "task": JobFilter(task="task-3"),
    "status": JobFilter(status=JobStatus.FAILED),
    "status and tenant": JobFilter(tenant="tenant-7", status=JobStatus.WAITING),
    "status and task": JobFilter(task="task-3", status=JobStatus.WAITING),
    "run": JobFilter(run_id="run-77"),
    "label": JobFilter(label=("customer", "7")),
    "label and status": JobFilter(label=("customer", "7"), status=JobStatus.PENDING),
    "error": JobFilter(error_type="ValueError"),
    "error and tenant": JobFilter(tenant="tenant-7", error_type="ValueError"),
    "call": JobFilter(task_id="id-4321"),
    "children": JobFilter(parent_id="id-10"),
    "a minute": JobFilter(since=50_000.0, before=50_060.0),
    "nothing fits": JobFilter(task="task-3", status=JobStatus.CANCELLED),
}


def seed(store: SqliteStore, jobs: int) -> None:
    """Write them as rows: by claims it would take minutes."""
    rows, terms = [], []
    for n in range(jobs):
        tenant, task = f"tenant-{n % TENANTS}", f"task-{n % 20}"
        job = JobRef(tenant, task, f"run:run-{n // 10}")
        status = _STATUSES[n % 100]
        failed = status == "failed"
        labels = {"customer": str(n % 1000)}
        origin = Origin(f"id-{n}", f"id-{n // 10}", f"id-{n // 100}", "celery", labels)
        lock = LockRef(tenant, ("run", f"run-{n // 10}"))
        rows.append(
            (
                *(
                    job.id,
                    tenant.encode(),
                    task.encode(),
                    job.key.encode(),
                    f"run-{n // 10}".encode(),
                ),
                *(status, "f", f"id-{n}".encode(), "", 1, 1, 0, n, None, lock.id),
                *(86400.0, float(n), float(n), None, f"id-{n // 10}".encode()),
                *("ValueError" if failed else None, "bad" if failed else ""),
                *(dump_origin(origin), History(worker="host:1").dumps(), b"x" * 2000),
            )
        )
        terms += [(term, float(n), job.id) for term in found_by(origin, ())]
    with store.database.write() as c:
        c.executemany(
            "INSERT INTO jobs (job_id, tenant, task, key, run_id, status, fingerprint, submission,"
            " failed, generation, attempt, crashes, fence, finished_fence, lock_id, result_ttl,"
            " created_at, updated_at, expires_at, parent_id, error_type, error, origin, history, outcome)"
            f" VALUES ({', '.join('?' * len(rows[0]))})",
            rows,
        )
        c.executemany("INSERT INTO terms (term, created_at, job_id) VALUES (?, ?, ?)", terms)


def main(quick: bool) -> int:
    jobs = JOBS // 10 if quick else JOBS
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder))
        seed(store, jobs)
        print(f"{jobs:,} jobs of {TENANTS} tenants, pages of 100, in {store.database.where!r}")
        slowest = 0.0
        for name, wanted in FILTERS.items():
            took, found, token = [], 0, None
            for _ in range(5):
                began = time.perf_counter()
                page = store.find_jobs(wanted, token=token)
                took.append((time.perf_counter() - began) * 1000)
                found += len(page.jobs)
                token = page.next_token
                if token is None:
                    break
            slowest = max(slowest, *took)
            print(
                f"  {name:20} {found:4} found   median {median(took):7.2f} ms"
                f"   slowest {max(took):7.2f} ms"
            )
        store.close()
    met = "met" if slowest < MARK else "MISSED"
    print(f"mark: each page under {MARK:g} ms: {met} (slowest {slowest:.1f} ms)")
    return 0
