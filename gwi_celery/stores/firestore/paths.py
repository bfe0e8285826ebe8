"""Where the store's documents are, and when the TTL policy may delete them.

::

    {prefix}/v1/gwi_tenants/{digest of tenant}/
        gwi_locks/{lock id}                      only while the lock is held, or has expired
        gwi_barred/{digest of task id}           a cancelled task, whose calls may not begin
        gwi_jobs/{job id}                        the record: idempotency, status, outcome
            gwi_eras/{era}/                      an era is one life of the record, until it expires
                gwi_steps/{digest of name}       checkpoints
                gwi_chunks/{id}-{n}              pieces of what is too large for one document
    {prefix}/v1/gwi_actions/{time to go}-{id}    what operators did
    {prefix}/v1/gwi_limits/settings              limits that operators have changed
    {prefix}/v1/gwi_limits/{limit id}/
        gwi_places/{number}                      only while the place is taken, or its time is over
    {prefix}/v1/gwi_keys/operator                the key that proves who is an operator
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gwi_celery.firestore.client import Client
from gwi_celery.ids import digest
from gwi_celery.stores.base import JobRef, LockRef

TENANTS: Final = "gwi_tenants"
JOBS: Final = "gwi_jobs"
LOCKS: Final = "gwi_locks"
BARRED: Final = "gwi_barred"
ERAS: Final = "gwi_eras"
STEPS: Final = "gwi_steps"
CHUNKS: Final = "gwi_chunks"
LIMITS: Final = "gwi_limits"
LIMIT_PLACES: Final = "gwi_places"

SECOND: Final = 1_000_000
DAY: Final = 86_400 * SECOND

#: Microseconds after a lock's expiry from which Google may delete its document. Until then its
#: holder may renew it, unless somebody has taken over.
LOCK_KEPT: Final = 7 * DAY
#: The same after a record's expiry, as workers' clocks may be wrong.
JOB_KEPT: Final = 1 * DAY
#: The same for a checkpoint, from its last save; an attempt that loads it later than half of that
#: extends it.
STEP_KEPT: Final = 90 * DAY


@dataclass(frozen=True)
class Paths:
    """The documents' names: their paths below the database's root."""

    prefix: str

    @property
    def base(self) -> str:
        return f"{self.prefix}/v1"

    def tenant(self, tenant: str) -> str:
        return f"{self.base}/{TENANTS}/{digest('tenant', tenant)}"

    def job(self, job: JobRef) -> str:
        return f"{self.tenant(job.tenant)}/{JOBS}/{job.id}"

    def lock(self, lock: LockRef) -> str:
        return self.lock_by_id(lock.tenant, lock.id)

    def lock_by_id(self, tenant: str, lock_id: str) -> str:
        return f"{self.tenant(tenant)}/{LOCKS}/{lock_id}"

    def barred(self, tenant: str, task_id: str) -> str:
        return f"{self.tenant(tenant)}/{BARRED}/{digest('call', task_id)}"

    @property
    def limit_settings(self) -> str:
        return f"{self.base}/{LIMITS}/settings"

    def limit(self, limit_id: str) -> str:
        return f"{self.base}/{LIMITS}/{limit_id}"

    def place(self, place: str) -> str:
        """A place's document; ``place`` is the limit's id and a number, as in locks' documents."""
        limit_id, _, number = place.partition("/")
        return f"{self.limit(limit_id)}/{LIMIT_PLACES}/{number}"

    @staticmethod
    def era(job_name: str, era: str) -> str:
        return f"{job_name}/{ERAS}/{era}"

    @staticmethod
    def step(era_name: str, name: str) -> str:
        return f"{era_name}/{STEPS}/{digest('step', name)}"


# --- when the TTL policy may delete them: microseconds by the server's clock, as far as it is known --


def lock_gc_at(client: Client, ttl: float) -> int:
    return client.about_now() + round(ttl * SECOND) + LOCK_KEPT


def job_gc_at(client: Client, result_ttl: float) -> int:
    return client.about_now() + round(result_ttl * SECOND) + JOB_KEPT


def step_gc_at(client: Client, result_ttl: float) -> int:
    return client.about_now() + round(result_ttl * SECOND) + STEP_KEPT
