"""What trials left behind in a project, as they were killed: the next one deletes it.

The names of a trial's topics and subscriptions begin with PREFIX, and a label has the time at which it
began. Those of a trial that may still run are left alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

import grpc

from gwi_celery.doctor.calls import TIMEOUT
from gwi_celery.doctor.findings import Finding
from gwi_celery.doctor.sandbox import PREFIX, SINCE, CallFailed, Sandbox

#: Seconds after which no trial runs any more: its longest check takes an hour.
OLD: Final = 7200.0
#: Listed at once: Pub/Sub's most.
_PAGE: Final = 1000
_WHAT: Final = "leftovers of earlier runs"
_EXPECTED: Final = "nothing is"


def swept(sandbox: Sandbox) -> Finding:
    """Delete what is old."""
    try:
        found = dict(_listed(sandbox))
    except CallFailed as exc:
        mend = "pubsub.topics.list and pubsub.subscriptions.list, to have it deleted"
        return Finding(_WHAT, None, _EXPECTED, f"can't be listed ({exc})", mend, "nothing")
    now = time.time()
    young = [began for began in found.values() if began >= now - OLD]
    kept = []
    for (kind, path), began in found.items():
        if began < now - OLD:
            try:
                sandbox.rpc(f"Delete{kind.capitalize()}", TIMEOUT, **{kind: path})
            except CallFailed as exc:
                if exc.code() is not grpc.StatusCode.NOT_FOUND:  # another run deletes it, too
                    kept.append(path)
    measured = []
    if deleted := len(found) - len(young) - len(kept):
        measured.append(f"{deleted} topics and subscriptions, deleted now")
    if young:
        measured.append(
            f"{len(young)} of a run that began {(now - min(young)) / 60:.0f} minutes ago and may go on: "
            f"left alone, as the first run from {OLD / 3600:g} hours after that deletes them"
        )
    mend = f"not deleted, as calls failed: {', '.join(kept)}" if kept else ""
    return Finding(_WHAT, None, _EXPECTED, "; ".join(measured) or "nothing", mend, "nothing")


def _listed(sandbox: Sandbox) -> Iterator[tuple[tuple[str, str], float]]:
    """((kind, path), when its trial began) of all that other trials have made and that is there."""
    project = f"projects/{sandbox.options.project}"
    for kind in ("subscription", "topic"):
        token = ""
        while True:
            page = sandbox.patiently(
                f"List{kind.capitalize()}s", project=project, page_size=_PAGE, page_token=token
            )
            for each in getattr(page, f"{kind}s"):
                began, id = _began(each.labels), each.name.split("/")[3]
                if began and id.startswith(PREFIX) and not id.startswith(sandbox.prefix):
                    yield (kind, each.name), began
            token = page.next_page_token
            if not token:
                break


def _began(labels: Mapping[str, Any]) -> float:
    """0.0: no trial made it."""
    label = labels.get(SINCE, "")
    return float(label) if label.isdecimal() else 0.0
