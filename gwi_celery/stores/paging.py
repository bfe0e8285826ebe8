"""Page tokens: a place in a list ordered by (time, job id), and which list it is."""

from __future__ import annotations

import base64
import dataclasses
import json
import math

from gwi_celery.errors import InvalidCall
from gwi_celery.ids import digest
from gwi_celery.stores.base import JobFilter, JobStatus


def list_id(tenant: str, status: JobStatus | None, run_id: str | None) -> str:
    """Names one list, so that a token of another is noticed."""
    run = () if run_id is None else (run_id,)
    return digest("list", tenant, "" if status is None else status.value, *run)


def filter_id(wanted: JobFilter) -> str:
    """The same for what :meth:`Store.find_jobs` finds."""
    return digest("find", json.dumps(dataclasses.astuple(wanted)))


def check_limit(limit: int) -> None:
    if limit < 1:
        raise InvalidCall(f"a page of {limit} jobs: ask for 1 or more")


def token_after(moment: float, job_id: str, listed: str) -> str:
    """The token of the page after the job ``job_id``; ``listed`` is from :func:`list_id`."""
    text = ":".join((float(moment).hex(), job_id, listed))
    return base64.urlsafe_b64encode(text.encode("ascii")).decode("ascii")


def place_of(token: str, listed: str) -> tuple[float, str]:
    """(time, job id) of the last job shown. InvalidCall for a token not of ``listed``."""
    try:
        text = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
        at, job_id, of = text.decode("ascii").split(":")
        moment = float.fromhex(at)
    except (ValueError, OverflowError) as exc:
        raise InvalidCall(
            "that is no page token: hand back next_token of the page before, unchanged"
        ) from exc
    if of != listed or not math.isfinite(moment):
        raise InvalidCall(
            "that page token is of another list: ask with the same tenant, status, run_id and other "
            "filters as for the page before"
        )
    return moment, job_id
