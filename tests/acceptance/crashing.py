"""The result backend on Firestore, for workers that are told to crash; few tests need it."""

from __future__ import annotations

from gwi_celery.backends.firestore import FirestoreBackend
from tests.acceptance.jobs import crash


class CrashingBackend(FirestoreBackend):
    """The real results, with a crash point after a chord's part was counted, and its body sent."""

    def count_part(self, group_id: str, part: str) -> tuple[int, bool]:
        answer = super().count_part(group_id, part)
        crash("after-part")
        return answer

    def mark_sent(self, group_id: str) -> None:
        crash("after-body")
        super().mark_sent(group_id)
