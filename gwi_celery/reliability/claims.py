"""Asks for a job's lock, with patience for the one who is just about to free it."""

from __future__ import annotations

import time
from typing import Any, Final

from gwi_celery.headers import HOLDS_HEADER
from gwi_celery.stores.base import Store
from gwi_celery.stores.values import ClaimAnswer, ClaimRequest, Held

#: Seconds before each further question.
_PAUSES: Final = (0.02, 0.05, 0.1, 0.2)


def claim(store: Store, wanted: ClaimRequest, request: Any) -> ClaimAnswer:
    """The store's answer. A retry's message may be here before the attempt that sent it is over.

    It is sent while the lock is held: so ``retry()`` raises in the job what makes it impossible, and
    a kill in between loses neither its number nor its time. The lock is free in a moment.
    """
    answer = store.claim(wanted)
    just_sent = request.retries and not (request.headers or {}).get(HOLDS_HEADER)
    for pause in _PAUSES if just_sent else ():
        if not isinstance(answer, Held) or answer.job != wanted.job:
            break
        time.sleep(pause)
        answer = store.claim(wanted)
    return answer
