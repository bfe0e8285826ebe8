"""Page tokens: a position in a list that is ordered by (time, job id), and which list that is."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from typing import Final

from gwi_celery.errors import InvalidCall
from gwi_celery.ids import digest
from gwi_celery.stores.base import JobFilter, JobStatus


def list_id(tenant: str, status: JobStatus | None, run_id: str | None) -> str:
    """Names one list, so that a token of another is noticed."""
    run = () if run_id is None else (run_id,)
    return digest("list", tenant, "" if status is None else status.value, *run)


def filter_id(wanted: JobFilter) -> str:
    """Names the list that :meth:`Store.find_jobs` returns for a filter."""
    return digest("find", json.dumps(dataclasses.astuple(wanted)))


#: Most entries of one page: a query asks for one more, in 31 bits on Firestore.
_MOST: Final = 2**31 - 2


def check_limit(limit: int) -> None:
    """Raises InvalidCall for a limit below 1, or above what every database takes."""
    if not 1 <= limit <= _MOST:
        raise InvalidCall(f"a list of at most {limit} entries: ask for 1 to {_MOST}")


def no_such_action(id: str) -> InvalidCall:
    """The error for what should be the id of an operator's action."""
    return InvalidCall(f"{id!r} is no id of an action: pass the id of one that was listed")


def token_after(moment: float, job_id: str, listed: str) -> str:
    """The token of the page after the job ``job_id``; ``listed`` names the list."""
    text = ":".join((float(moment).hex(), job_id, listed))
    return base64.urlsafe_b64encode(text.encode("ascii")).decode("ascii")


def place_of(token: str, listed: str) -> tuple[float, str]:
    """(time, job id) of the last job shown. Raises InvalidCall for a token of another list."""
    try:
        text = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
        at, job_id, of = text.decode("ascii").split(":")
        moment = float.fromhex(at)
    except (ValueError, OverflowError) as exc:
        raise InvalidCall(
            "that is no page token: pass the next_token of the page before, unchanged"
        ) from exc
    if of != listed or not math.isfinite(moment):
        raise InvalidCall(
            "that page token is of another list: ask with the same tenant, status, run_id and other "
            "filters as for the page before"
        )
    return moment, job_id
