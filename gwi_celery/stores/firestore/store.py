"""The store on Google Cloud Firestore: every write of the protocol is one commit.

=====================  ======================================================================  ====
claim, fresh           create record, create lock                                                 1
claim, otherwise       the same refused, then a read of both decides                              2
claim, taking over     then record and lock, each at the version just read                        3
claim, other lock      also a read of the lock that the record names, while it says RUNNING       4
claim, redelivered     the read first: a finished duplicate is answered by it alone               1
put a value            record and value, each at the version just read                            3
renew                  lock at its version; record at its version, unchanged                      1
save                   lock and record at their versions, checkpoint, chunks                      1
load, fetch            a query of all while they are small, else of their names; one checkpoint     1
finish, release        delete lock, change record: each at its version; and the task's result     1
=====================  ======================================================================  ====

A lock's document is there only while it is held or has expired. So "not there" is all that a fresh
claim asks for, and it needs no read. A holder knows the versions of its lock and its record: a write
that names both is refused as soon as anyone else has changed either, whoever it was. What is refused
is looked at by a read, and sent again if the lease still stands (another handle renewed it, say).

The same goes for a commit whose answer was lost: it is looked for by a read, and may be sent again,
because its own success makes its preconditions fail, and so does any change since. A claim is known
by its nonce, a finish by its token, a checkpoint by its bytes. A request that arrives late, after
its sender has given up on it, finds its preconditions gone in the same way.

Expired is what the server's time of a read says is past the server's time of the last write plus the
TTL. No clock of a worker decides anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gwi_celery.actions import Action
from gwi_celery.errors import InvalidCall, StoreError, StoreUnavailable
from gwi_celery.firestore import documents
from gwi_celery.firestore.client import Client, Conflict, Intercept, Unsettled
from gwi_celery.firestore.documents import Micros, Write
from gwi_celery.firestore.url import FirestoreURL, parse
from gwi_celery.stores import protocol
from gwi_celery.stores.base import (
    RELEASED,
    AttemptEnd,
    Checkpoint,
    ClaimAnswer,
    Claimed,
    ClaimRequest,
    Held,
    JobFilter,
    JobRecord,
    JobRef,
    JobStatus,
    Lease,
    LockRecord,
    LockRef,
    Outcome,
    Page,
    Progress,
    Store,
    StoredResult,
    Wait,
)
from gwi_celery.stores.firestore import blobs, lists, operators
from gwi_celery.stores.firestore import claim as claims
from gwi_celery.stores.firestore.holder import (
    Holder,
    Holding,
    Seen,
    Tries,
    checkpoints_of,
    job_gc_at,
    lock_gc_at,
    renewal,
    see,
    step_gc_at,
    steps_of,
)
from gwi_celery.stores.firestore.queues import FirestoreQueues
from gwi_celery.stores.firestore.records import (
    CREATED,
    SECOND,
    UPDATED,
    Job,
    Lock,
    Places,
    Step,
    get_text,
    job_of,
    lock_of,
    put_text,
)
from gwi_celery.stores.firestore.upkeep import Upkeep
from gwi_celery.stores.firestore.values import put_value
from gwi_celery.stores.protocol import ANY_PAYLOAD, CANCELLED_TTL
from gwi_celery.text import safe_text


class FirestoreStore(Store):
    """Jobs, locks and checkpoints of one project, in one database or in one for each tenant.

    Args:
        url: See :class:`gwi_celery.firestore.url.FirestoreURL`.
        intercept: Between the client and the server, for tests.
    """

    def __init__(self, url: FirestoreURL, *, intercept: Intercept | None = None) -> None:
        self.url = url
        self._places = Places(url.prefix)
        self._client = Client(url, intercept=intercept)
        #: By database: those used so far.
        self._clients: dict[str, Client] = {}

    @property
    def client(self) -> Client:
        """Of the database that the URL names; where that is one for each tenant, of none."""
        return self._client

    def client_of(self, tenant: str) -> Client:
        """The client of the tenant's database. Raises InvalidCall if it can have none."""
        database = self.url.database_of(tenant)
        client = self._clients.get(database)
        if client is None:
            client = self._clients.setdefault(database, self._client.of_database(database))
        return client

    @property
    def queues(self) -> FirestoreQueues:
        if self.url.database_per_tenant:
            raise InvalidCall(
                "this store has a database for each tenant, and no place for what is of all: it keeps "
                "no records of dead letters, and no pauses of queues"
            )
        return FirestoreQueues(self.client_of(""), self._places)

    # --- claim --------------------------------------------------------------------------------

    def claim(self, request: ClaimRequest) -> ClaimAnswer:
        """As :meth:`Store.claim`.

        Raises InvalidCall, and changes nothing, when ``replay.from_step`` names no checkpoint of
        the job, or when the job and the lock are of different tenants.
        """
        protocol.check_tenants(request)
        client = self.client_of(request.job.tenant)
        tries = Tries("claim a job")
        bar = protocol.may_be_barred(request, None)
        bars = [] if bar is None else [self._places.barred(request.job.tenant, bar)]
        if not request.redelivered:
            with tries.once():
                new = claims.first_generation(request)
                return self._take(client, request, new, unless=bars)
        for _ in tries:
            seen = see(client, self._places, request.job, request.lock, bars)
            job, lock = seen.live_job, seen.lock
            answer = protocol.settled(request, job)
            if answer is not None:
                assert job is not None
                return answer(self._record(client, job))
            if protocol.may_be_barred(request, job) is None:
                bars = []
            elif seen.others:
                wait, reason = protocol.barred(get_text(seen.others[0].fields["data"]["reason"]))
                self._record_wait(client, request, wait, seen)  # its record says whose it is
                self.cancel(request.job, reason, in_advance=True)
                return self.claim(replace(request, redelivered=True))
            forgotten = self._forgotten(client, request, job)
            other = self._other_lock(client, request, job)
            known = [None if each is None else each.known(seen.now) for each in (lock, other)]
            decision = protocol.decide(request, job, *known)
            if isinstance(decision, Held):
                if request.origin is not None:
                    wait = protocol.waits_for_lock(request, decision, seen.now / SECOND)
                    self._record_wait(client, request, wait, seen)
                return decision
            with tries.once():
                if isinstance(decision, protocol.SameClaim):
                    assert job is not None
                    assert lock is not None
                    return self._same_claim(client, request, job, lock)
                assert isinstance(decision, protocol.Granted)
                new = claims.granted_to(request, decision, seen.job, seen.now, forgotten)
                return self._take(client, request, new, seen.job, lock, forgotten, other, bars)
        raise AssertionError

    def _take(
        self,
        client: Client,
        request: ClaimRequest,
        new: Job,
        old: Job | None = None,
        lock: Lock | None = None,
        forgotten: Sequence[Step] = (),
        own: Lock | None = None,
        unless: Sequence[str] = (),
    ) -> Claimed:
        """Write the claim over what was read; None stands for nothing there.

        It is refused if any document of ``unless`` is there.
        """
        job_name, lock_name = self._places.job(request.job), self._places.lock(request.lock)
        taken = Lock(request.lock, request.owner, request.nonce, request.job, request.lease_ttl)
        begins = not new.created
        new, pieces = self._with_envelope(client, request, new, old)
        writes = [
            documents.replace(
                job_name,
                new.fields(),
                None if old is None else old.version,
                server_times=[UPDATED, CREATED] if begins else [UPDATED],
            ),
            documents.replace(
                lock_name,
                taken.fields(lock_gc_at(client, request.lease_ttl)),
                None if lock is None else lock.version,
            ),
        ]
        if own is not None:  # at its version: a holder that has renewed it meanwhile keeps the job
            own_name = self._places.lock(own.ref)
            writes.append(documents.delete(own_name, own.version))
        # To delete what isn't there changes nothing: it only asks for that.
        writes += [*pieces, *(Write(name, None, exists=False) for name in unless)]
        if old is not None and old.era == new.era:
            era_name = self._places.era(job_name, old.era)
            writes += blobs.deletions(old.outcome, era_name)
            if new.envelope != old.envelope:
                writes += blobs.deletions(old.envelope, era_name)
            for step in forgotten:
                writes.append(documents.delete(self._places.step(era_name, step.name)))
                writes += blobs.deletions(step.blob, era_name)
        written = client.commit(writes)
        job_version, fence = written.versions[:2]
        updated = written.server_times[0][0]
        created = written.server_times[0][1] if begins else new.created
        job = replace(new, fence=fence, version=job_version, updated=updated, created=created)
        if old is not None and old.era != new.era:
            self._sweep(client, job_name, old)
        elif old is not None:
            gone = [old.envelope] if new.envelope != old.envelope else []
            blobs.drop(client, [old.outcome, *gone, *(step.blob for step in forgotten)])
        return _claimed(request, job, replace(taken, fence=fence, version=fence))

    def _with_envelope(
        self, client: Client, request: ClaimRequest, new: Job, old: Job | None
    ) -> tuple[Job, list[Write]]:
        """The record with the call that it is to keep, and the writes that are to go with it."""
        begins = old is None or old.era != new.era
        if not (begins or claims.is_another(request, old)):
            return new, []
        envelope = None if request.origin is None else request.origin.envelope
        if envelope is None:
            return replace(new, envelope=None), []
        era_name = self._places.era(self._places.job(request.job), new.era)
        gc_at = step_gc_at(client, request.result_ttl)
        packed, pieces = blobs.pack(client, envelope, era_name, gc_at, inline=blobs.ENVELOPE_INLINE)
        return replace(new, envelope=packed), pieces

    def _record_wait(self, client: Client, request: ClaimRequest, wait: Wait, seen: Seen) -> None:
        """One commit, unless it says so already. What fails is for the next time it is asked."""
        job, stored = seen.live_job, seen.job
        if not protocol.may_wait(job):
            return
        if job is not None and job.history.waits_for(wait, request.lock):
            return
        new = claims.waiting(request, wait, stored, job, seen.now)
        try:
            new, pieces = self._with_envelope(client, request, new, stored)
            fields = new.fields()
            if not new.attempt:
                fields["gc_at"] = Micros(job_gc_at(client, new.result_ttl))
            write = documents.replace(
                self._places.job(request.job),
                fields,
                None if stored is None else stored.version,
                server_times=[UPDATED] if new.created else [UPDATED, CREATED],
            )
            client.commit([write, *pieces])
        except (Conflict, Unsettled, StoreUnavailable):
            return

    def _same_claim(
        self, client: Client, request: ClaimRequest, job: Job, lock: Lock
    ) -> ClaimAnswer:
        """As it was answered; renewed, for its sender counts the lease's time from this sending."""
        assert lock.fence is not None
        written = client.commit(
            [
                renewal(
                    client,
                    self._places.lock(request.lock),
                    lock.version,
                    request.lease_ttl,
                    lock.fence,
                ),
                documents.check(self._places.job(request.job), job.version),
            ]
        )
        renewed = replace(lock, ttl=request.lease_ttl, version=written.versions[0])
        return _claimed(request, job, renewed)

    def _forgotten(self, client: Client, request: ClaimRequest, job: Job | None) -> list[Step]:
        """The checkpoints from a replay's step on: to be made anew, beside those that are kept."""
        recorded: list[Step] = []

        def names() -> list[str]:
            assert job is not None
            recorded.extend(steps_of(client, self._places, job, outline=True))
            return [step.name for step in recorded]

        forgotten = {*protocol.forgotten(request, job, names)}
        return [step for step in recorded if step.name in forgotten]

    def _other_lock(self, client: Client, request: ClaimRequest, job: Job | None) -> Lock | None:
        """The other lock of the job's last attempt, held or expired; None if that is free."""
        lock_id = protocol.other_lock(request, job)
        if job is None or lock_id is None:
            return None
        name = self._places.lock_by_id(job.ref.tenant, lock_id)
        document = client.read([name]).documents.get(name)
        own = None if document is None else lock_of(document)
        return own if own is not None and own.fence == job.fence else None

    def _sweep(self, client: Client, job_name: str, old: Job) -> None:
        try:
            Upkeep(client, self._places).sweep(job_name, old)
        except StoreError:
            return  # the claim is done, and the TTL policy makes up for this

    # --- the holder's writes ------------------------------------------------------------------

    def renew(self, lease: Lease) -> Lease:
        return self._holder(lease).renew()

    def save(self, lease: Lease, checkpoint: Checkpoint) -> Lease:
        """As :meth:`Store.save`.

        Raises StepNameReused too when the name is taken by a checkpoint of another kind, and
        CursorWentBack when a cursor or value comes with other bytes under a version that is not
        above the stored one. Neither renews the lease.
        """
        return self._holder(lease).save(checkpoint)

    def load(self, lease: Lease) -> list[Checkpoint]:
        """As :meth:`Store.load`. Raises StoreUnusable when some are gone or not what they were."""
        return self._holder(lease).load()

    def fetch(self, lease: Lease, name: str) -> Checkpoint | None:
        """As :meth:`Store.fetch`. Raises StoreUnusable when it is not what it was."""
        return self._holder(lease).fetch(name)

    def finish(self, lease: Lease, outcome: Outcome, result: StoredResult | None = None) -> None:
        self._holder(lease).finish(outcome, result)

    def keeps_results_of(self, url: str) -> bool:
        if not url.startswith("firestore:") or self.url.database_per_tenant:
            return False
        return replace(parse(url), timeout=self.url.timeout) == self.url

    def release(self, lease: Lease, end: AttemptEnd = RELEASED) -> None:
        self._holder(lease).release(end)

    def progress(self, lease: Lease, progress: Progress) -> Lease:
        return self._holder(lease).progress(progress)

    def wait(self, request: ClaimRequest, wait: Wait) -> None:
        protocol.check_tenants(request)
        client = self.client_of(request.job.tenant)
        self._record_wait(
            client, request, wait, see(client, self._places, request.job, request.lock)
        )

    def _holder(self, lease: Lease) -> Holder:
        return Holder(self.client_of(lease.job.tenant), self._places, lease)

    # --- operators ----------------------------------------------------------------------------

    def force_release(self, lock: LockRef, *, owner_nonce: str | None = None) -> bool:
        client, name = self.client_of(lock.tenant), self._places.lock(lock)
        #: (token, whether it was live) of the lock that a commit without an answer may have freed.
        sent: tuple[int | None, bool] | None = None
        done = protocol.releasing(lock)
        kept = operators.keeping(client, self._places, done)
        for _ in Tries("free a lock"):
            read = client.read([name])
            document = read.documents.get(name)
            stored = None if document is None else lock_of(document)
            if sent is not None and (stored is None or stored.fence != sent[0]):
                return sent[1]
            if stored is None or owner_nonce not in (None, stored.nonce):
                return False
            live = not stored.expired(read.read_time)
            writes = [documents.delete(name, stored.version)]
            if owner_nonce is None:
                writes.append(kept)
            try:
                client.commit(writes)
            except Conflict:
                continue
            except Unsettled:
                sent = stored.fence, live
                continue
            if owner_nonce is None:
                done.log()
            return live
        raise AssertionError

    def cancel(self, job: JobRef, reason: str, *, in_advance: bool = False) -> bool:
        """As :meth:`Store.cancel`. The outcome is ``reason`` in UTF-8."""
        client, name = self.client_of(job.tenant), self._places.job(job)
        by = claims.new_era()  # names this very cancellation
        done = protocol.cancelling(job, reason)
        kept = operators.keeping(client, self._places, done)
        tries = Tries("cancel a job")
        for _ in tries:
            read = client.read([name])
            document = read.documents.get(name)
            stored = None if document is None else job_of(document)
            known = None if stored is None or stored.expired(read.read_time) else stored
            if known is not None and known.status.terminal:
                return known.cancelled_by == by
            if known is None and not in_advance:
                return False
            with tries.once():
                if known is None:
                    self._cancel_unknown(client, job, stored, reason, by, kept)
                else:
                    self._cancel(client, known, reason, by, kept, read.read_time)
                done.log()
                return True
        raise AssertionError

    def _cancel_unknown(
        self, client: Client, job: JobRef, expired: Job | None, reason: str, by: str, kept: Write
    ) -> None:
        name = self._places.job(job)
        record = replace(
            claims.unclaimed(job, expired),
            status=JobStatus.CANCELLED,
            fingerprint=ANY_PAYLOAD,
            result_ttl=CANCELLED_TTL,
            cancelled_by=by,
        )
        era_name = self._places.era(name, record.era)
        outcome, pieces = blobs.pack(
            client, _raw(reason), era_name, step_gc_at(client, CANCELLED_TTL)
        )
        fields = replace(record, outcome=outcome).fields()
        fields["gc_at"] = Micros(job_gc_at(client, CANCELLED_TTL))
        version = None if expired is None else expired.version
        write = documents.replace(name, fields, version, server_times=[UPDATED, CREATED])
        client.commit([write, *pieces, kept])
        if expired is not None:
            self._sweep(client, name, expired)

    def _cancel(
        self, client: Client, job: Job, reason: str, by: str, kept: Write, now: int
    ) -> None:
        """Write the outcome over the record as it was read, and free its lock if it holds it."""
        name, lock_name = (
            self._places.job(job.ref),
            self._places.lock_by_id(job.ref.tenant, job.lock_id),
        )
        era_name = self._places.era(name, job.era)
        outcome, pieces = blobs.pack(
            client, _raw(reason), era_name, step_gc_at(client, job.result_ttl)
        )
        told = job.history.over(job.running, AttemptEnd("cancelled"), now / SECOND)
        data = {
            "outcome": outcome.fields(),
            "fence": job.fence,
            "cancelled_by": by,
            "history": told.dumps(),
        }
        writes = [
            documents.change(
                name,
                {
                    "status": JobStatus.CANCELLED.value,
                    "gc_at": Micros(job_gc_at(client, job.result_ttl)),
                    "data": data,
                },
                job.version,
                mask=["status", "gc_at", *(f"data.{key}" for key in data)],
                server_times=[UPDATED],
            )
        ]
        lock_document = client.read([lock_name]).documents.get(lock_name)
        if lock_document is not None and lock_of(lock_document).fence == job.fence:
            writes.append(documents.delete(lock_name, lock_document.update_time))
        client.commit([*writes, *pieces, kept])

    def bar_calls_of(self, tenant: str, task_id: str, reason: str) -> None:
        client = self.client_of(tenant)
        gc_at = client.about_now() + round(protocol.BARRED_TTL * SECOND)
        fields = {"gc_at": Micros(gc_at), "data": {"reason": put_text(safe_text(reason))}}
        name = self._places.barred(tenant, task_id)
        client.commit_surely([Write(name, fields)], tries=5)

    def operator_key(self) -> bytes:
        if self.url.database_per_tenant:
            raise InvalidCall(
                "this store has a database for each tenant, and no place for a key of all: set "
                "gwi_signing_keys, the same for workers and operators"
            )
        return operators.key(self.client_of(""), self._places)

    def record_action(self, action: Action) -> None:
        """As :meth:`Store.record_action`. With a database for each tenant, a queue's are only logged."""
        if action.tenant is not None or not self.url.database_per_tenant:
            client = self.client_of(action.tenant or "")
            client.commit_surely([operators.keeping(client, self._places, action)], tries=3)
        action.log()

    def list_actions(
        self, *, tenant: str | None = None, limit: int = 100, before: str | None = None
    ) -> list[Action]:
        """As :meth:`Store.list_actions`. With a database for each tenant, ``tenant`` is needed."""
        if tenant is None and self.url.database_per_tenant:
            raise InvalidCall("this store has a database for each tenant: say whose actions")
        return operators.listed(self.client_of(tenant or ""), self._places, tenant, limit, before)

    def put_value(
        self, job: JobRef, name: str, blob: bytes, *, expected_version: int
    ) -> Checkpoint:
        """As :meth:`Store.put_value`.

        When an answer was lost and another has already written on top, that is a VersionConflict.
        """
        client = self.client_of(job.tenant)
        return put_value(client, self._places, job, name, blob, expected_version)

    # --- reading ------------------------------------------------------------------------------

    def get_job(self, job: JobRef) -> JobRecord | None:
        client = self.client_of(job.tenant)
        stored = self._stored(client, job)
        return None if stored is None else self._record(client, stored)

    def get_checkpoints(self, job: JobRef, *, outline: bool = False) -> list[Checkpoint]:
        client = self.client_of(job.tenant)
        stored = self._stored(client, job)
        if stored is None:
            return []
        steps = steps_of(client, self._places, stored, outline=outline)
        if outline:
            return [step.checkpoint(None) for step in steps]
        return checkpoints_of(client, self._places, stored, steps)

    def get_lock(self, lock: LockRef) -> LockRecord | None:
        name = self._places.lock(lock)
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
        """As :meth:`Store.list_jobs`.

        A job that changes between two pages moves to the front, where later pages don't come by;
        every other job is listed once. Raises InvalidCall for a ``limit`` below 1, and for a
        ``token`` that isn't one of this very list's.
        """
        client = self.client_of(tenant)

        def records(jobs: list[Job]) -> list[JobRecord]:
            return [self._record(client, job) for job in jobs]

        return lists.list_jobs(client, self._places, tenant, status, run_id, limit, token, records)

    def find_jobs(self, wanted: JobFilter, *, limit: int = 100, token: str | None = None) -> Page:
        if wanted.tenant is not None:
            client = self.client_of(wanted.tenant)
        elif self.url.database_per_tenant:
            raise InvalidCall(
                "each tenant has a database of its own here, and no list goes over all of them: "
                "name a tenant"
            )
        else:
            client = self.client_of("")
        return lists.find_jobs(client, self._places, wanted, limit, token)

    def get_envelope(self, job: JobRef) -> bytes | None:
        client = self.client_of(job.tenant)
        stored = self._stored(client, job)
        if stored is None or stored.envelope is None:
            return None
        era_name = self._places.era(self._places.job(job), stored.era)
        return blobs.unpack(client, era_name, [stored.envelope])[0]

    def list_locks(self, tenant: str) -> list[LockRecord]:
        """The tenant's locks, held or expired, oldest claim first."""
        return lists.list_locks(self.client_of(tenant), self._places, tenant)

    def _stored(self, client: Client, job: JobRef) -> Job | None:
        name = self._places.job(job)
        read = client.read([name])
        document = read.documents.get(name)
        if document is None:
            return None
        stored = job_of(document)
        return None if stored.expired(read.read_time) else stored

    def _record(self, client: Client, job: Job) -> JobRecord:
        """The record with its outcome, which may be in chunks."""
        if job.outcome is None:
            return job.record(None)
        era_name = self._places.era(self._places.job(job.ref), job.era)
        return job.record(blobs.unpack(client, era_name, [job.outcome])[0])

    # --- upkeep -------------------------------------------------------------------------------

    def cleanup(self, limit: int = 1000) -> int:
        """As :meth:`Store.cleanup`. Expired locks under which nobody can write any more count.

        With a database for each tenant: in those that this process has used.
        """
        if not self.url.database_per_tenant:
            self.client_of("")
        deleted = 0
        for client in list(self._clients.values()):
            upkeep = Upkeep(client, self._places)
            deleted += upkeep.jobs(limit - deleted)
            deleted += upkeep.locks(limit - deleted)
        if not self.url.database_per_tenant:
            deleted += self.queues.delete_old(limit - deleted)
        return deleted

    def close(self) -> None:
        self._client.close()


def _claimed(request: ClaimRequest, job: Job, lock: Lock) -> Claimed:
    assert lock.fence is not None
    lease = Lease(
        job=request.job,
        lock=request.lock,
        fence=lock.fence,
        nonce=request.nonce,
        ttl=request.lease_ttl,
        result_ttl=request.result_ttl,
        generation=job.generation,
        version=Holding(job, lock, complete=job.steps == 0),
    )
    return Claimed(lease, job.record(None), has_checkpoints=job.steps > 0)


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
