"""FastAPI: start a report, follow its progress, get its result. A second click starts no second report.

Needs FastAPI and httpx (`pip install fastapi httpx`). Run it:

    python -m examples.fastapi_progress

To serve it: `uvicorn examples.fastapi_progress:web`, and `celery -A examples.fastapi_progress worker`.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from typing import Any

import httpx
from celery import Celery
from celery.result import AsyncResult
from fastapi import FastAPI, HTTPException

from examples.local import worker
from gwi_celery import ReliableTask, setup, store_for
from gwi_celery.jobs import JobRef, JobStatus

os.environ.setdefault("GWI_FOLDER", tempfile.mkdtemp(prefix="fastapi-progress-"))
app = Celery("reports")
setup(app)
web = FastAPI()
PAGES = 5


@app.task(base=ReliableTask, bind=True)
def report(self: Any, *, tenant_id: str, run_id: str) -> dict[str, Any]:
    with self.cursor("pages", start=0) as cursor:
        for page in range(cursor.value, PAGES):
            render(page)
            cursor.advance(page + 1)
            self.progress(page + 1, PAGES)  # written at most once a second
    return {"pages": PAGES}


def render(page: int) -> None:
    time.sleep(0.5)


@web.post("/reports/{tenant}/{run}", status_code=202)
def start(tenant: str, run: str) -> dict[str, str]:
    """The browser chooses the run: a second click, or a retried request, names the same one."""
    return {"id": report.delay(tenant_id=tenant, run_id=run).id}


@web.get("/reports/{tenant}/{run}")
def progress(tenant: str, run: str) -> dict[str, Any]:
    record = store_for(app).get_job(JobRef(tenant, report.name, f"run:{run}"))
    if record is None:
        raise HTTPException(404, "not started yet, or unknown")
    done = record.progress.done if record.progress else 0
    if record.status is JobStatus.SUCCEEDED:
        done = PAGES
    return {"status": record.status.value, "done": int(done), "of": PAGES}


@web.get("/results/{id}")
def result(id: str) -> dict[str, Any]:
    found: AsyncResult[Any] = app.AsyncResult(id)
    return {"state": found.state, "result": found.result if found.successful() else None}


async def click_and_wait() -> None:
    transport = httpx.ASGITransport(app=web)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as browser:
        first, second = [(await browser.post("/reports/acme/july")).json()["id"] for _ in range(2)]
        seen: list[int] = []
        while True:
            answer = await browser.get("/reports/acme/july")
            if answer.status_code == 200:
                now = answer.json()
                if now["done"] not in seen:
                    seen.append(now["done"])
                    print(f"{now['status']}: {now['done']} of {now['of']}")
                if now["status"] == "succeeded":
                    break
            await asyncio.sleep(0.05)
        assert seen == sorted(seen), "progress goes forward"
        for id in (first, second):
            while (found := (await browser.get(f"/results/{id}")).json())["state"] != "SUCCESS":
                await asyncio.sleep(0.05)
            assert found["result"] == {"pages": PAGES}, "both clicks get the one report"


def main() -> None:
    with worker(app):
        asyncio.run(click_and_wait())


if __name__ == "__main__":
    main()
