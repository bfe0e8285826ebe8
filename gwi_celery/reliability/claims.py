"""Claims a job, and waits a moment if the attempt before it is just ending."""

from __future__ import annotations

import time
from typing import Any, Final

from gwi_celery.headers import HOLDS_HEADER
from gwi_celery.stores.base import Store
from gwi_celery.stores.values import ClaimAnswer, ClaimRequest, Held

#: Seconds before each further claim.
_PAUSES: Final = (0.02, 0.05, 0.1, 0.2)


def claim(store: Store, wanted: ClaimRequest, request: Any) -> ClaimAnswer:
    """The store's answer to a claim.

    A retry's message may arrive before the attempt that sent it has ended, because it is sent while the
    lock is held: so an error of ``retry()`` is raised in the job, and a kill in between loses neither
    the retry's number nor its time. That lock is free in a moment, so the claim is repeated.
    """
    answer = store.claim(wanted)
    just_sent = request.retries and not (request.headers or {}).get(HOLDS_HEADER)
    for pause in _PAUSES if just_sent else ():
        if not isinstance(answer, Held) or answer.job != wanted.job:
            break
        time.sleep(pause)
        answer = store.claim(wanted)
    return answer
