"""The store on Google Cloud Firestore: every write of the protocol is one commit.

The operations, and how many RPCs each takes:

=====================  ======================================================================  ====
claim, fresh           create record, create lock                                                 1
claim, otherwise       the same is refused, then a read of both decides                           2
claim, taking over     then record and lock, each at the version just read                        3
claim, other lock      also a read of the lock that the record names, while it says RUNNING       4
claim, redelivered     the read comes first: it alone answers a finished duplicate                1
put a value            record and value, each at the version just read                            3
renew                  lock at its version; record at its version, unchanged                      1
save                   lock and record at their versions, checkpoint, chunks                      1
load, fetch            a query of all, with their bytes if these are few; one checkpoint          1
finish, release        delete lock, change record: each at its version; and the task's result     1
=====================  ======================================================================  ====

A lock's document exists only while the lock is held, or has expired. So a fresh claim requires only
that no document exists, and needs no read. A holder knows the versions of its lock and its record: a
write that names both is refused as soon as anyone else has changed either. After a refusal a read shows
why, and the write is sent again if the lease still stands (another handle may have renewed it).

The same goes for a commit whose answer was lost: a read shows whether it was applied, and it may be sent
again, because its own success makes its preconditions fail, and so does any change since. A claim is
recognised by its nonce, a finish by its token, a checkpoint by its bytes. A request that arrives late,
after its sender has given up on it, fails by its preconditions in the same way.

A document has expired once the server's time of a read is past the server's time of the document's last
write plus its TTL. No worker's clock decides anything.
"""

from __future__ import annotations

from dataclasses import replace

from gwi_celery.actions import Action
from gwi_celery.errors import InvalidCall
from gwi_celery.firestore.client import Client, Intercept
from gwi_celery.firestore.documents import Micros, Write
from gwi_celery.firestore.url import FirestoreURL, parse
from gwi_celery.stores import interventions, protocol
from gwi_celery.stores.base import (
    RELEASED,
    AttemptEnd,
    Checkpoint,
    ClaimAnswer,
    ClaimRequest,
    JobFilter,
    JobRecord,
    JobRef,
    JobStatus,
    Lease,
    LockRecord,
    LockRef,
    Outcome,
    Page,
    PlaceRecord,
    Progress,
    Store,
    StoredResult,
    Wait,
)
from gwi_celery.stores.firestore import blobs, lists, operators
from gwi_celery.stores.firestore.checkpoints import checkpoints_of, steps_of
from gwi_celery.stores.firestore.claimer import Claimer
from gwi_celery.stores.firestore.holder import Holder, Holding
from gwi_celery.stores.firestore.limits import Keeper, listed
from gwi_celery.stores.firestore.paths import SECOND, Paths
from gwi_celery.stores.firestore.queues import FirestoreQueues
from gwi_celery.stores.firestore.reads import read_job, whole_record
from gwi_celery.stores.firestore.records import Job, lock_of
from gwi_celery.stores.firestore.upkeep import Upkeep
from gwi_celery.stores.firestore.values import put_value
from gwi_celery.stores.limits import LimitSetting
from gwi_celery.stores.paging import check_limit


class FirestoreStore(Store):
    """Jobs, locks and checkpoints of one project, in one database or in one for each tenant.

    Over 25 methods, as :class:`Store` has them: most call the module that does the work.

    Args:
        url: See :class:`gwi_celery.firestore.url.FirestoreURL`.
        intercept: A hook between the client and the server, for tests.
    """

    def __init__(self, url: FirestoreURL, *, intercept: Intercept | None = None) -> None:
        self.url = url
        self._paths = Paths(url.prefix)
        self._client = Client(url, intercept=intercept)
        self._keeper = Keeper(self._paths)
        #: The clients used so far, by database.
        self._clients: dict[str, Client] = {}

    @property
    def client(self) -> Client:
        """The client of the URL's database; of no use where each tenant has a database of its own."""
        return self._client

    def client_of(self, tenant: str) -> Client:
        """The client of the tenant's database. Raises InvalidCall if the tenant can have none."""
        database = self.url.database_of(tenant)
        client = self._clients.get(database)
        if client is None:
            client = self._clients.setdefault(database, self._client.of_database(database))
        return client

    @property
    def queues(self) -> FirestoreQueues:
        if self.url.database_per_tenant:
            raise InvalidCall(
                "this store has a database for each tenant, and none that all share: it keeps no "
                "records of dead letters, and no pauses of queues"
            )
        return FirestoreQueues(self.client_of(""), self._paths)

    # --- claim --------------------------------------------------------------------------------

    def claim(self, request: ClaimRequest) -> ClaimAnswer:
        protocol.check_tenants(request)
        client = self.client_of(request.job.tenant)
        answer = Claimer(client, self._paths, request, self._keeper).claim()
        if isinstance(answer, str):
            self.cancel(request.job, answer, in_advance=True)
            return self.claim(replace(request, redelivered=True))
        return answer

    # --- the holder's writes ------------------------------------------------------------------

    def renew(self, lease: Lease) -> Lease:
        return self._holder(lease).renew()

    def save(self, lease: Lease, checkpoint: Checkpoint) -> Lease:
        return self._holder(lease).save(checkpoint)

    def load(self, lease: Lease) -> list[Checkpoint]:
        """As :meth:`Store.load`. Raises StoreUnusable when some are missing or damaged."""
        return self._holder(lease).load()

    def fetch(self, lease: Lease, name: str) -> Checkpoint | None:
        """As :meth:`Store.fetch`. Raises StoreUnusable when it is damaged."""
        return self._holder(lease).fetch(name)

    def finish(self, lease: Lease, outcome: Outcome, result: StoredResult | None = None) -> None:
        self._holder(lease).finish(outcome, result)
        self._freed(lease)

    def keeps_results_of(self, url: str) -> bool:
        if not url.startswith("firestore:") or self.url.database_per_tenant:
            return False
        return replace(parse(url), timeout=self.url.timeout) == self.url

    def release(self, lease: Lease, end: AttemptEnd = RELEASED) -> None:
        self._holder(lease).release(end)
        self._freed(lease)

    def progress(self, lease: Lease, progress: Progress) -> Lease:
        return self._holder(lease).progress(progress)

    def wait(self, request: ClaimRequest, wait: Wait) -> None:
        protocol.check_tenants(request)
        client = self.client_of(request.job.tenant)
        Claimer(client, self._paths, request, self._keeper).record_wait(wait)

    def _freed(self, lease: Lease) -> None:
        """Note that the places of limits under the lease's lock are free."""
        if isinstance(lease.version, Holding):
            self._keeper.freed(lease.version.lock.places)

    def _holder(self, lease: Lease) -> Holder:
        return Holder(self.client_of(lease.job.tenant), self._paths, lease)

    # --- operators ----------------------------------------------------------------------------

    def force_release(self, lock: LockRef, *, owner_nonce: str | None = None) -> bool:
        return operators.force_release(self.client_of(lock.tenant), self._paths, lock, owner_nonce)

    def cancel(self, job: JobRef, reason: str, *, in_advance: bool = False) -> bool:
        return operators.cancel(self.client_of(job.tenant), self._paths, job, reason, in_advance)

    def bar_calls_of(self, tenant: str, task_id: str, reason: str) -> None:
        client = self.client_of(tenant)
        gc_at = client.about_now() + round(interventions.BARRED_TTL * SECOND)
        fields = {"gc_at": Micros(gc_at), "data": {"reason": interventions.kept_reason(reason)}}
        name = self._paths.barred(tenant, task_id)
        client.commit_surely([Write(name, fields)], tries=5)

    def operator_key(self) -> bytes:
        if self.url.database_per_tenant:
            raise InvalidCall(
                "this store has a database for each tenant, and none that all share in which to keep a "
                "key: set gwi_signing_keys, the same for workers and operators"
            )
        return operators.key(self.client_of(""), self._paths)

    def record_action(self, action: Action) -> None:
        """As :meth:`Store.record_action`.

        With a database for each tenant, actions on queues are only logged.
        """
        if action.tenant is not None or not self.url.database_per_tenant:
            client = self.client_of(action.tenant or "")
            client.commit_surely([operators.keeping(client, self._paths, action)], tries=3)
        action.log()

    def list_actions(
        self, *, tenant: str | None = None, limit: int = 100, before: str | None = None
    ) -> list[Action]:
        """As :meth:`Store.list_actions`. With a database for each tenant, ``tenant`` is needed."""
        check_limit(limit)
        if tenant is None and self.url.database_per_tenant:
            raise InvalidCall("this store has a database for each tenant: name the tenant")
        return operators.listed(self.client_of(tenant or ""), self._paths, tenant, limit, before)

    def put_value(
        self, job: JobRef, name: str, blob: bytes, *, expected_version: int
    ) -> Checkpoint:
        """As :meth:`Store.put_value`.

        It also raises VersionConflict if it was applied, but its answer was lost and somebody has written
        a later version since.
        """
        client = self.client_of(job.tenant)
        return put_value(client, self._paths, job, name, blob, expected_version)

    # --- reading ------------------------------------------------------------------------------

    def get_job(self, job: JobRef) -> JobRecord | None:
        client = self.client_of(job.tenant)
        stored = read_job(client, self._paths, job)
        return None if stored is None else whole_record(client, self._paths, stored)

    def get_checkpoints(self, job: JobRef, *, outline: bool = False) -> list[Checkpoint]:
        client = self.client_of(job.tenant)
        stored = read_job(client, self._paths, job)
        if stored is None:
            return []
        steps = steps_of(client, self._paths, stored, outline=outline)
        if outline:
            return [step.checkpoint(None) for step in steps]
        return checkpoints_of(client, self._paths, stored, steps)

    def get_lock(self, lock: LockRef) -> LockRecord | None:
        name = self._paths.lock(lock)
        read = self.client_of(lock.tenant).read([name])
        document = read.documents.get(name)
        return None if document is None else lock_of(document).record(read.read_time)

    def list_jobs(
        self,
        tenant: str,
        *,
        status: JobStatus | None = None,
        run_id: str | None = None,
        limit: int = 100,
        token: str | None = None,
    ) -> Page:
        client = self.client_of(tenant)

        def records(jobs: list[Job]) -> list[JobRecord]:
            return [whole_record(client, self._paths, job) for job in jobs]

        return lists.list_jobs(client, self._paths, tenant, status, run_id, limit, token, records)

    def find_jobs(self, wanted: JobFilter, *, limit: int = 100, token: str | None = None) -> Page:
        if wanted.tenant is not None:
            client = self.client_of(wanted.tenant)
        elif self.url.database_per_tenant:
            raise InvalidCall(
                "this store has a database for each tenant, and no list covers all of them: name the "
                "tenant"
            )
        else:
            client = self.client_of("")
        return lists.find_jobs(client, self._paths, wanted, limit, token)

    def get_envelope(self, job: JobRef) -> bytes | None:
        client = self.client_of(job.tenant)
        stored = read_job(client, self._paths, job)
        if stored is None or stored.envelope is None:
            return None
        era_name = self._paths.era(self._paths.job(job), stored.era)
        return blobs.unpack(client, era_name, [stored.envelope])[0]

    def list_locks(self, tenant: str) -> list[LockRecord]:
        return lists.list_locks(self.client_of(tenant), self._paths, tenant)

    # --- limits -------------------------------------------------------------------------------

    def list_places(self, limit_id: str | None = None, *, limit: int = 1000) -> list[PlaceRecord]:
        """As :meth:`Store.list_places`.

        With a database for each tenant: places in the databases that this process has used.
        """
        if not self.url.database_per_tenant:
            self.client_of("")
        found: list[PlaceRecord] = []
        for client in list(self._clients.values()):
            found += listed(client, self._paths, limit_id, limit - len(found))
        return found

    def limit_settings(self) -> dict[str, LimitSetting]:
        if self.url.database_per_tenant:
            return {}
        return self._keeper.settings.read(self.client_of(""))

    def set_limit(self, setting: LimitSetting) -> None:
        self._change_limit(setting.id, setting)

    def clear_limit(self, id: str) -> bool:
        return self._change_limit(id, None)

    def _change_limit(self, id: str, setting: LimitSetting | None) -> bool:
        if self.url.database_per_tenant:
            raise InvalidCall(
                "this store has a database for each tenant, and none that all share in which to keep a "
                "changed limit: change it in the code"
            )
        return self._keeper.settings.change(self.client_of(""), id, setting)

    # --- upkeep -------------------------------------------------------------------------------

    def cleanup(self, limit: int = 1000) -> int:
        """As :meth:`Store.cleanup`, of jobs, locks and dead letters; the TTL policy deletes all else.

        With a database for each tenant: in the databases that this process has used.
        """
        if not self.url.database_per_tenant:
            self.client_of("")
        deleted = 0
        for client in list(self._clients.values()):
            upkeep = Upkeep(client, self._paths)
            deleted += upkeep.jobs(limit - deleted)
            deleted += upkeep.locks(limit - deleted)
        if not self.url.database_per_tenant:
            deleted += self.queues.delete_old(limit - deleted)
        return deleted

    def close(self) -> None:
        self._client.close()
