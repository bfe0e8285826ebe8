"""How a claim is made: see :meth:`gwi_celery.stores.base.Store.claim`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gwi_celery.errors import StoreUnavailable
from gwi_celery.firestore import documents
from gwi_celery.firestore.client import Client, Conflict
from gwi_celery.firestore.documents import Micros, Write
from gwi_celery.stores import interventions, protocol
from gwi_celery.stores.base import (
    ClaimAnswer,
    Claimed,
    ClaimRequest,
    Held,
    Lease,
    Limited,
    Wait,
)
from gwi_celery.stores.firestore import blobs, upkeep
from gwi_celery.stores.firestore import claim as claims
from gwi_celery.stores.firestore.checkpoints import steps_of
from gwi_celery.stores.firestore.holder import Holding, renewal
from gwi_celery.stores.firestore.limits import NOTHING, Keeper, Taking
from gwi_celery.stores.firestore.paths import SECOND, Paths, job_gc_at, lock_gc_at, step_gc_at
from gwi_celery.stores.firestore.places import Pick
from gwi_celery.stores.firestore.reads import Seen, see, whole_record
from gwi_celery.stores.firestore.records import CREATED, UPDATED, Job, Lock, Step, get_text, lock_of
from gwi_celery.stores.firestore.tries import Tries
from gwi_celery.stores.limits import LimitRef


class Claimer:
    """One claim."""

    def __init__(self, client: Client, paths: Paths, request: ClaimRequest, keeper: Keeper) -> None:
        self._client = client
        self._paths = paths
        self._request = request
        self._keeper = keeper
        #: Limits that are counted elsewhere; empty once the claim has taken its places there.
        self._elsewhere: Sequence[LimitRef] = ()

    def claim(self) -> ClaimAnswer | str:
        """The answer; or, for a job whose caller was cancelled, the reason to cancel it with."""
        client, request = self._client, self._request
        tries = Tries("claim a job")
        bar = interventions.may_be_barred(request, None)
        bars = [] if bar is None else [self._paths.barred(request.job.tenant, bar)]
        settings = self._keeper.settings
        limits, self._elsewhere = protocol.kept_by(request, lambda: settings.recent(client))
        self._keeper.begin(client, limits)
        guess = None if request.redelivered else self._keeper.guess(client, limits)
        # A place that is counted elsewhere can't be given back, so it is taken after all else is read.
        if guess is not None and not self._elsewhere:
            with tries.once():
                new = claims.first_generation(request)
                return self._take(new, unless=bars, taking=guess)
        for _ in tries:
            sample = self._keeper.sample(client, limits)
            seen = see(client, self._paths, request.job, request.lock, [*bars, *sample])
            job, lock = seen.live_job, seen.lock
            answer = protocol.settled(request, job)
            if answer is not None:
                assert job is not None
                return answer(whole_record(client, self._paths, job))
            if interventions.may_be_barred(request, job) is None:
                bars = []
            elif barred := [each for each in seen.others if each.name in bars]:
                caller, reason = interventions.barred(get_text(barred[0].fields["data"]["reason"]))
                self._record_wait(caller, seen)  # so that the record says which call it is of
                return reason
            forgotten = self._forgotten(job)
            other = self._other_lock(job)
            known = [None if each is None else each.known(seen.now) for each in (lock, other)]
            decision = protocol.decide(request, job, *known)
            if isinstance(decision, Held):
                wait = protocol.wait_to_record(request, decision, seen.now / SECOND)
                self._record_wait(wait, seen)
                return decision
            with tries.once():
                if isinstance(decision, protocol.SameClaim):
                    assert job is not None
                    assert lock is not None
                    return self._same_claim(job, lock)
                assert isinstance(decision, protocol.Granted)
                taking = self._choose(limits, sample, seen, other)
                if isinstance(taking, Limited):
                    wait = protocol.wait_to_record(request, taking, seen.now / SECOND)
                    self._record_wait(wait, seen)
                    return taking
                new = claims.granted_to(request, decision, seen.job, seen.now, forgotten)
                return self._take(new, seen.job, lock, forgotten, other, bars, taking)
        raise AssertionError

    def record_wait(self, wait: Wait) -> None:
        """As :meth:`gwi_celery.stores.base.Store.wait`."""
        self._record_wait(
            wait, see(self._client, self._paths, self._request.job, self._request.lock)
        )

    def _choose(
        self,
        limits: Sequence[LimitRef],
        sample: Mapping[str, Pick],
        seen: Seen,
        other: Lock | None,
    ) -> Taking | Limited:
        taking = self._keeper.choose(self._client, self._request, limits, sample, seen, other)
        if isinstance(taking, Limited) or not self._elsewhere:
            return taking
        assert self._request.rates is not None
        limited = self._request.rates(self._elsewhere)
        if limited is not None:
            return limited
        self._elsewhere = ()  # taken once, however often this commit has to be tried
        return taking

    def _take(
        self,
        new: Job,
        old: Job | None = None,
        lock: Lock | None = None,
        forgotten: Sequence[Step] = (),
        other: Lock | None = None,
        unless: Sequence[str] = (),
        taking: Taking = NOTHING,
    ) -> Claimed:
        """Write the claim over the record and the lock that were read; None: there was none.

        The commit is refused if any document of ``unless`` exists.

        Args:
            forgotten: Checkpoints to delete.
            other: The other lock of the job's last attempt, which has expired.
        """
        job_name, lock_name = (
            self._paths.job(self._request.job),
            self._paths.lock(self._request.lock),
        )
        taken = Lock(
            self._request.lock,
            self._request.owner,
            self._request.nonce,
            self._request.job,
            self._request.lease_ttl,
            places=[pick.place for pick in taking.picks if pick.limit.period is None],
        )
        begins = not new.created
        new, pieces = self._with_envelope(new, old)
        writes = [
            documents.replace(
                job_name,
                new.fields(),
                None if old is None else old.version,
                server_times=[UPDATED, CREATED] if begins else [UPDATED],
            ),
            documents.replace(
                lock_name,
                taken.fields(lock_gc_at(self._client, self._request.lease_ttl)),
                None if lock is None else lock.version,
            ),
        ]
        placed = len(writes)
        replaced = [each for each in (lock, other) if each is not None]
        writes += self._keeper.writes(self._client, self._request, taking, replaced)
        if other is not None:
            # At its version: a holder that has renewed it meanwhile keeps the job.
            other_name = self._paths.lock(other.ref)
            writes.append(documents.delete(other_name, other.version))
        # Deleting a document that must not exist changes nothing: it only checks that.
        writes += [*pieces, *(Write(name, None, exists=False) for name in unless)]
        if old is not None and old.era == new.era:
            era_name = self._paths.era(job_name, old.era)
            writes += blobs.deletions(old.outcome, era_name)
            if new.envelope != old.envelope:
                writes += blobs.deletions(old.envelope, era_name)
            for step in forgotten:
                writes.append(documents.delete(self._paths.step(era_name, step.name)))
                writes += blobs.deletions(step.blob, era_name)
        written = self._client.commit(writes)
        self._keeper.taken(taking, written.versions[placed:])
        job_version, fence = written.versions[:2]
        updated = written.server_times[0][0]
        created = written.server_times[0][1] if begins else new.created
        job = replace(new, fence=fence, version=job_version, updated=updated, created=created)
        if old is not None and old.era != new.era:
            upkeep.sweep(self._client, self._paths, job_name, old)
        elif old is not None:
            gone = [old.envelope] if new.envelope != old.envelope else []
            blobs.drop(self._client, [old.outcome, *gone, *(step.blob for step in forgotten)])
        return self._claimed(job, replace(taken, fence=fence, version=fence))

    def _with_envelope(self, new: Job, old: Job | None) -> tuple[Job, list[Write]]:
        """The record with its call's envelope, and the writes that belong in the same commit."""
        begins = old is None or old.era != new.era
        if not (begins or claims.is_another_call(self._request, old)):
            return new, []
        envelope = None if self._request.origin is None else self._request.origin.envelope
        if envelope is None:
            return replace(new, envelope=None), []
        era_name = self._paths.era(self._paths.job(self._request.job), new.era)
        gc_at = step_gc_at(self._client, self._request.result_ttl)
        packed, pieces = blobs.pack(
            self._client, envelope, era_name, gc_at, inline=blobs.ENVELOPE_INLINE
        )
        return replace(new, envelope=packed), pieces

    def _record_wait(self, wait: Wait | None, seen: Seen) -> None:
        """One commit, unless the record says so already. If it fails, the next claim tries again."""
        job, stored = seen.live_job, seen.job
        if wait is None or not protocol.may_wait(job):
            return
        if job is not None and job.history.waits_for(wait, self._request.lock):
            return
        new = claims.waiting(self._request, wait, stored, job, seen.now)
        try:
            new, pieces = self._with_envelope(new, stored)
            fields = new.fields()
            if protocol.never_begun(new):
                fields["gc_at"] = Micros(job_gc_at(self._client, new.result_ttl))
            write = documents.replace(
                self._paths.job(self._request.job),
                fields,
                None if stored is None else stored.version,
                server_times=[UPDATED] if new.created else [UPDATED, CREATED],
            )
            self._client.commit([write, *pieces])
        except (Conflict, StoreUnavailable):
            return
        if stored is not None and stored.era != new.era:
            upkeep.sweep(self._client, self._paths, self._paths.job(self._request.job), stored)

    def _same_claim(self, job: Job, lock: Lock) -> ClaimAnswer:
        """The same answer, with the lease renewed, because the sender counts from this sending."""
        assert lock.fence is not None
        written = self._client.commit(
            [
                renewal(
                    self._client,
                    self._paths.lock(self._request.lock),
                    lock.version,
                    self._request.lease_ttl,
                    lock.fence,
                ),
                documents.check(self._paths.job(self._request.job), job.version),
            ]
        )
        renewed = replace(lock, ttl=self._request.lease_ttl, version=written.versions[0])
        return self._claimed(job, renewed)

    def _forgotten(self, job: Job | None) -> list[Step]:
        """The checkpoints that a replay forgets: those from its step on."""
        recorded: list[Step] = []

        def names() -> list[str]:
            assert job is not None
            recorded.extend(steps_of(self._client, self._paths, job, outline=True))
            return [step.name for step in recorded]

        forgotten = {*protocol.forgotten(self._request, job, names)}
        return [step for step in recorded if step.name in forgotten]

    def _other_lock(self, job: Job | None) -> Lock | None:
        """The other lock of the job's last attempt, held or expired; None if there is none."""
        lock_id = protocol.other_lock(self._request, job)
        if job is None or lock_id is None:
            return None
        name = self._paths.lock_by_id(job.ref.tenant, lock_id)
        document = self._client.read([name]).documents.get(name)
        other = None if document is None else lock_of(document)
        return other if other is not None and other.fence == job.fence else None

    def _claimed(self, job: Job, lock: Lock) -> Claimed:
        assert lock.fence is not None
        lease = Lease(
            job=self._request.job,
            lock=self._request.lock,
            fence=lock.fence,
            nonce=self._request.nonce,
            ttl=self._request.lease_ttl,
            result_ttl=self._request.result_ttl,
            generation=job.generation,
            version=Holding(job, lock, complete=job.steps == 0),
        )
        return Claimed(lease, job.record(None), has_checkpoints=job.steps > 0)
