"""Does a real Firestore do what the store relies on? Takes a minute, and a few thousand operations.

It needs credentials with roles/datastore.user, and for the lists this package's indexes. It writes below
a root collection of its own, ``gwi-check-...``, and deletes that at the end. A document in the collection
``gwi-check`` names it until then: what a trial that was killed has left is deleted by one that begins two
hours later.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

from gwi_celery.doctor import deployed
from gwi_celery.doctor.findings import Finding
from gwi_celery.errors import GwiError, LeaseLost, StoreUnavailable
from gwi_celery.firestore import documents
from gwi_celery.firestore.client import Client, Conflict, ServerError, Unsettled
from gwi_celery.firestore.documents import Filter, Micros, Query, Write, create
from gwi_celery.firestore.url import parse
from gwi_celery.stores.base import (
    Checkpoint,
    CheckpointKind,
    Claimed,
    ClaimRequest,
    Completed,
    Held,
    JobRef,
    JobStatus,
    LockRef,
    Outcome,
)
from gwi_celery.stores.firestore import FirestoreStore
from gwi_celery.stores.firestore.blobs import batches
from gwi_celery.stores.firestore.paths import JOBS, LOCKS, Paths
from gwi_celery.stores.firestore.queues import LETTERS
from gwi_celery.stores.firestore.records import job_of
from gwi_celery.stores.firestore.upkeep import Upkeep

THREADS = 8
#: Most commits of each size, and most jobs, that are measured: so all costs less than a cent.
_COMMITS = 100
_JOBS = 200
#: How often a check is begun that calls fail in, for now, and the pause between two of them, seconds.
_ROUNDS = 3
_PAUSE = 1.0
#: Tries of a commit that may be repeated.
_TRIES = 5
#: Root collection with a document for each trial that has not deleted what it wrote.
_ENTRIES = "gwi-check"
#: Seconds after which no trial runs any more.
_OLD = 7200.0
#: Documents that are deleted by one commit: https://cloud.google.com/firestore/quotas
_BATCH = 400
#: What to change where something doesn't hold that the store relies on: there is no option for that.
_ELSEWHERE = "keep jobs elsewhere (store_url), and report this"
_INDEXES = "celery -A APP gwi init --print gcloud has the commands that make the indexes"


class Trial:
    """A trial of one database.

    Args:
        url: ``firestore://project?database=...``
        seconds: Of each of the two measurements under load.
        report: Called with each finding as soon as it is made.

    Raises ConfigurationError if the URL is wrong.
    """

    def __init__(self, url: str, seconds: float, report: Callable[[Finding], object]) -> None:
        self.url = replace(parse(url), prefix=f"{_ENTRIES}-{os.urandom(6).hex()}")
        self.seconds = seconds
        self.codes: Counter[str] = Counter()
        #: Why something of its own is still there; "" if it isn't.
        self._kept = ""
        #: How often a check was begun: each begins with documents and jobs of its own.
        self._round = 0
        #: What the current check has found so far.
        self._found: list[Finding] = []
        self.client = Client(self.url, intercept=self.count)
        self.store = FirestoreStore(self.url, intercept=self.count)
        self._report = report

    def about(self) -> Iterator[Finding]:
        """Which database, and whether it is made as the store needs it."""
        where, change = f"{self.client.path} at {self.url.endpoint}, below {self.url.prefix}/", ""
        if self.url.database_per_tenant:
            where = f"not tried: each tenant has a database, {self.url.database}"
            change = (
                "try one that exists: "
                f"python -m gwi_celery.doctor 'firestore://{self.url.project}?database=NAME'"
            )
        elif self.url.project.isdecimal():
            change = "write the project's id: that is its number, and documents are named by the id"
        yield Finding("Firestore", None, "any project and database", where, change, twin="any")
        if self.url.database_per_tenant:
            return
        try:
            yield from deployed.firestore(self.url)
        except GwiError as exc:
            what = "Firestore's edition and mode"
            yield Finding(what, False, "can be asked for", str(exc), "as it says", "the same")

    def run(self) -> None:
        """Make all checks."""
        if self.url.database_per_tenant:
            return
        try:
            # A commit's errors don't tell a missing database from a document that has changed.
            self.client.read([self._entry(self.url.prefix)])
            self.leftovers()
            for check in (
                self.versions,
                self.preconditions,
                self.request_time,
                self.jobs,
                self.lists,
                self.latency,
                self.contention,
            ):
                self._made_anew(check)
        except (GwiError, Conflict) as exc:
            self._tell()
            self._report(_ended_early(exc))

    def _made_anew(self, check: Callable[[], None]) -> None:
        """Make a check, and report what it found. If a call failed for now, make it again from the start.

        Raises StoreError, Conflict.
        """
        for left in reversed(range(_ROUNDS)):
            self._round += 1
            self._found.clear()
            try:
                check()
            except StoreUnavailable:
                if not left:
                    raise
                time.sleep(_PAUSE)
            else:
                break
        self._tell()

    def _tell(self) -> None:
        """Report what the current check has found."""
        for finding in self._found:
            self._report(finding)
        self._found.clear()

    def count(self, method: str, request: Any, call: Callable[[Any], Any]) -> Any:
        try:
            answer = call(request)
        except ServerError as exc:
            self.codes[exc.code.name] += 1
            raise
        self.codes["OK"] += 1
        return answer

    def say(self, holds: bool, what: str, found: str = "", change: str = _ELSEWHERE) -> None:
        found = found or ("it is so" if holds else "it is not so")
        self._found.append(
            Finding(what, holds, "it is so", found, "" if holds else change, twin="it is so")
        )

    def measured(self, what: str, expected: str, found: str) -> None:
        self._found.append(Finding(what, None, expected, found, twin="its emulator's"))

    def name(self, name: str) -> str:
        return f"{self.url.prefix}/v1/things/{name}-{self._round}"

    # --- what the protocol relies on ----------------------------------------------------------

    def versions(self) -> None:
        tokens = []
        one_version = True
        names = self.name("a"), self.name("b")
        for _ in range(40):
            try:
                written = self.client.commit([create(name, {}) for name in names])
                one_version &= set(written.versions) == {written.commit_time}
                tokens.append(written.versions[0])
                self.client.commit([documents.delete(n, written.commit_time) for n in names])
            except Unsettled:
                self.client.commit_surely([documents.delete(n) for n in names], tries=_TRIES)
        grows = all(one < other for one, other in pairwise(tokens))
        self.say(grows, "tokens grow although the document is deleted and made again")
        self.say(one_version, "one commit gives all its documents one version, the commit's time")

    def preconditions(self) -> None:
        first = self.client.commit([create(self.name("c"), {"n": 1})]).versions[0]
        same = self.client.commit([documents.check(self.name("c"), first)]).versions[0]
        self.say(same == first, "a write that changes nothing leaves the version as it was")
        second = self.client.commit(
            [documents.change(self.name("c"), {"n": 2}, first, mask=["n"])]
        ).versions[0]
        refused: list[tuple[str, list[Write]]] = [
            ("creating what is there", [create(self.name("c"), {})]),
            ("a check of an older version", [documents.check(self.name("c"), first)]),
            ("deleting an older version", [documents.delete(self.name("c"), first)]),
            ("deleting what is gone", [documents.delete(self.name("gone"), first)]),
            (
                "all of a commit, for one write",
                [create(self.name("d"), {}), documents.check(self.name("c"), first)],
            ),
        ]
        for what, writes in refused:
            try:
                self.client.commit(writes)
            except Conflict:
                self.say(True, f"refused: {what}")
            else:
                self.say(False, f"refused: {what}", "it was accepted")
        read = self.client.read([self.name("c"), self.name("d")])
        found = read.documents.get(self.name("c"))
        self.say(
            list(read.documents) == [self.name("c")]
            and found is not None
            and found.update_time == second <= read.read_time,
            "a read sees the last commit, at a time that is not before it",
        )

    def request_time(self) -> None:
        written = self.client.commit([create(self.name("e"), {}, server_times=["at"])])
        late = (written.commit_time - written.server_times[0][0]) / 1000
        self.say(abs(late) < 60_000, "REQUEST_TIME is near the commit's", f"{late:.1f} ms earlier")

    # --- the store ----------------------------------------------------------------------------

    def request(self, key: str, lock: str, ttl: float = 30.0) -> ClaimRequest:
        return ClaimRequest(
            job=JobRef("check", "task", f"{key}-{self._round}"),
            lock=LockRef("check", (f"{lock}-{self._round}",)),
            run_id="run",
            fingerprint="f",
            submission=os.urandom(4).hex(),
            owner="check",
            nonce=os.urandom(8).hex(),
            lease_ttl=ttl,
            result_ttl=600.0,
        )

    def jobs(self) -> None:
        taken = self.store.claim(self.request("job", "job", ttl=1.0))
        if not isinstance(taken, Claimed):
            self.say(False, "a new job is claimed", f"answered {type(taken).__name__}")
            return
        lease = self.store.save(taken.lease, Checkpoint("s", CheckpointKind.STEP, b"x" * 2_000_000))
        self.say(
            isinstance(self.store.claim(self.request("job", "job")), Held),
            "a job that runs is held, until its lease runs out by the server's clock",
        )
        time.sleep(1.2)
        over = self.store.claim(self.request("job", "job"))
        self.say(isinstance(over, Claimed) and over.lease.fence > lease.fence, "then taken over")
        try:
            self.store.finish(lease, Outcome(JobStatus.SUCCEEDED, b"late"))
        except LeaseLost:
            self.say(True, "the former holder's finish is refused")
        else:
            self.say(False, "the former holder's finish is refused", "it was accepted")
        if isinstance(over, Claimed):
            (outline,) = self.store.load(over.lease)
            whole = self.store.fetch(over.lease, outline.name)
            self.say(
                whole is not None and whole.blob == b"x" * 2_000_000,
                "a step of 2 MB comes back whole",
            )
            self.store.finish(over.lease, Outcome(JobStatus.SUCCEEDED, b"done"))
            again = self.store.claim(self.request("job", "job"))
            self.say(isinstance(again, Completed), "a duplicate is answered from the record")

    def lists(self) -> None:
        base = Paths(self.url.prefix).base
        ended = Filter("status", "==", JobStatus.SUCCEEDED.value)
        expired = Filter("gc_at", "<=", Micros(0))
        queries: dict[str, Callable[[], object]] = {
            "by tenant": lambda: self.store.list_jobs("check"),
            "by status": lambda: self.store.list_jobs("check", status=JobStatus.SUCCEEDED),
            "by run": lambda: self.store.list_jobs("check", run_id="run"),
            "by status and run": lambda: self.store.list_jobs(
                "check", status=JobStatus.SUCCEEDED, run_id="run"
            ),
            "of locks": lambda: self.store.list_locks("check"),
            # As cleanup() asks, but for nothing: that would read whatever has ended in the database.
            "of what may have expired": lambda: self.client.query(
                Query("", JOBS, True, [ended, expired], [("gc_at", "asc")], limit=1, mask=[])
            ),
            "of dead letters that are old": lambda: self.client.query(
                Query(base, LETTERS, False, [expired], [("gc_at", "asc")], limit=1, mask=[])
            ),
        }
        for what, query in queries.items():
            try:
                query()
            except StoreUnavailable:
                raise
            except GwiError as exc:
                self.say(False, f"the list {what} is served by an index", str(exc), _INDEXES)
            else:
                self.say(True, f"the list {what} is served by an index")

    # --- measurements -------------------------------------------------------------------------

    def latency(self) -> None:
        for size in (1, 2, 3):
            times: list[float] = []
            until = time.monotonic() + self.seconds / 3
            for number in range(_COMMITS):
                if time.monotonic() > until:
                    break
                writes = [
                    create(self.name(f"l{number}-{size}-{n}"), {"data": {"x": 1}})
                    for n in range(size)
                ]
                begun = time.perf_counter()
                with contextlib.suppress(Unsettled):
                    self.client.commit(writes)
                    times.append((time.perf_counter() - begun) * 1000)
            if not times:
                raise StoreUnavailable("commits get no answer")
            times.sort()
            self.measured(
                f"commit of {size} documents",
                "not told",
                f"p50 {times[len(times) // 2]:.1f} ms, p99 {times[len(times) * 99 // 100]:.1f} ms",
            )

    def contention(self) -> None:
        before = Counter(self.codes)
        claims: list[int] = []
        until = time.monotonic() + self.seconds
        errors: list[GwiError] = []
        over = threading.Event()

        def contend(number: int) -> None:
            n = 0
            while time.monotonic() < until and len(claims) < _JOBS and not over.is_set():
                try:
                    answer = self.store.claim(self.request(f"{number}-{n}", "contended"))
                    if isinstance(answer, Claimed):
                        claims.append(answer.lease.fence)
                        self.store.finish(answer.lease, Outcome(JobStatus.SUCCEEDED, b""))
                        n += 1
                except StoreUnavailable:
                    n += 1  # such answers are counted, and the lock runs out
                except GwiError as exc:
                    errors.append(exc)
                    over.set()

        began = time.monotonic()
        threads = [threading.Thread(target=contend, args=(n,)) for n in range(THREADS)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        finally:  # nothing is written any more when this run deletes all of it
            over.set()
            for thread in threads:
                thread.join()
        if errors:
            raise errors[0]
        took = time.monotonic() - began
        codes = Counter(self.codes)
        codes.subtract(before)
        calls = sum(codes.values())
        self.say(len(set(claims)) == len(claims), f"{THREADS} threads, one lock: no token twice")
        self.measured(
            "jobs under one lock",
            "about one write a second to one document, sustained",
            f"{len(claims) / took:.0f}/s; of {calls} calls "
            + ", ".join(f"{100 * n / calls:.1f}% {code}" for code, n in codes.most_common() if n),
        )

    # --- the end ------------------------------------------------------------------------------

    def leftovers(self) -> None:
        """Delete what earlier trials have left, and note that this one has begun."""
        self._kept = "nothing was deleted"  # perhaps there is nothing, if the following fails
        self.client.commit_surely([Write(self._entry(self.url.prefix), {})], tries=_TRIES)
        found = self.client.query(Query("", _ENTRIES))
        old, young = [], 0
        for document in found.documents.values():
            prefix = document.name.split("/")[1]
            if prefix == self.url.prefix:
                continue
            if found.read_time - document.update_time > _OLD * 1_000_000:
                self._delete_below(prefix)
                old.append(prefix)
            else:
                young += 1
        measured = f"of {len(old)}, deleted now" if old else "nothing"
        if young:
            measured += f"; of {young} that began in the last {_OLD / 3600:g} hours, left alone"
        what = "leftovers of earlier runs in Firestore"
        self._report(Finding(what, None, "nothing is", measured, twin="nothing"))

    def clean_up(self) -> None:
        """Delete all that this run has written, unless :meth:`left_behind` says otherwise then."""
        if self._kept:
            try:
                self._delete_below(self.url.prefix)
                self._kept = ""
            except (GwiError, Conflict) as exc:
                self._kept = str(exc)
        self.client.close()
        self.store.close()

    def left_behind(self) -> Iterator[Finding]:
        """What :meth:`clean_up` could not delete."""
        if self._kept:
            what, where = "left behind in Firestore", f"{self.url.prefix}/ in {self.client.path}"
            mend = f"run this again in {_OLD / 3600:g} hours, which deletes it"
            yield Finding(what, None, "nothing is", f"{where} ({self._kept})", mend, "nothing")

    def _delete_below(self, prefix: str) -> None:
        """Delete what a trial has written, and its entry. Raises StoreError."""
        paths = Paths(prefix)
        tenant = paths.tenant("check")
        for document in self.client.query(Query(tenant, JOBS)).documents.values():
            Upkeep(self.client, paths).sweep(document.name, job_of(document))
        for parent, group in ((tenant, JOBS), (tenant, LOCKS), (paths.base, "things")):
            names = self.client.query(Query(parent, group, mask=[])).documents
            for some in batches(names, _BATCH):
                self.client.commit_surely([documents.delete(name) for name in some], tries=_TRIES)
        self.client.commit_surely([documents.delete(self._entry(prefix))], tries=_TRIES)

    @staticmethod
    def _entry(prefix: str) -> str:
        return f"{_ENTRIES}/{prefix}"


def _ended_early(exc: Exception) -> Finding:
    return Finding(
        "the check ended early", False, "calls succeed", str(exc), "as it says", twin="the same"
    )
