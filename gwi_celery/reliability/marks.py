"""Only an operator may ask for a replay or redrive: its mark carries a seal, which workers check.

A seal is made with the app's signing keys, or with a key that is in the store: whoever may only publish
to a queue has neither. It names the submission, so it holds for the submission's copies and retries, and
for no other message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gwi_celery import redrives
from gwi_celery.errors import NotAllowed
from gwi_celery.headers import REDRIVE_HEADER, REPLAY_HEADER
from gwi_celery.integration import integration
from gwi_celery.stores.base import NEXT, Replay

SEAL = "seal"


def sealed(app: Any, task: str, task_id: str, headers: Mapping[str, Any]) -> dict[str, Any]:
    """The headers with their replay sealed. Raises StoreError."""
    replay = headers[REPLAY_HEADER]
    seal = integration(app).authority.seal(*_what(task, task_id, replay))
    return {**headers, REPLAY_HEADER: {**replay, SEAL: seal}}


def check(app: Any, task: str, task_id: str, headers: Mapping[str, Any]) -> None:
    """Raises NotAllowed if the headers ask for a replay or redrive that no operator asked for.

    Raises StoreError if the store's key is needed and can't be read.
    """
    replay, redrive = headers.get(REPLAY_HEADER), headers.get(REDRIVE_HEADER)
    if not (replay or redrive) or app.conf.task_always_eager:
        return
    authority = integration(app).authority
    if replay and not authority.is_sealed(replay.get(SEAL), *_what(task, task_id, replay)):
        raise NotAllowed(
            f"{task}: its header {REPLAY_HEADER} was not set by an operator: replay it by "
            f"{task.rpartition('.')[2]}.replay(...), with the app's store or signing keys"
        )
    if redrive and not authority.is_redrive_mark(redrive):
        raise NotAllowed(
            f"{task}: its redrive mark was not set by an operator: redrive it by "
            "broker_for(app).redrive(...), with the app's store or signing keys"
        )


def replay_of(headers: Mapping[str, Any]) -> Replay | None:
    """The replay that the headers ask for, if any; :func:`check` tells whether an operator set them."""
    redrive, replay = headers.get(REDRIVE_HEADER), headers.get(REPLAY_HEADER)
    step = redrives.step_of(redrive) if redrive else ""
    if step != "":  # a redrive that names a place to start at is later than the replay, if any
        return Replay(NEXT, step)
    return Replay(replay["generation"], replay["from_step"]) if replay else None


def _what(task: str, task_id: str, replay: Mapping[str, Any]) -> tuple[Any, ...]:
    return "replay", task, task_id, replay["generation"], replay["from_step"], replay.get("task_id")
