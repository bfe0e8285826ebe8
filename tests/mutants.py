"""Mutations that must turn the suite red: ``python -m tests.mutants [sqlite|service|broker|...]``.

Each is put into a copy of the tree, and the store's contract, its state machine and the tests of keys
run there; those of Firestore on one emulator for all; those of the worker with real ones. Exits with 1
if the suite stays green under any of them: then a promise is untested.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from gwi_celery.gcp.emulators import FIRESTORE_HOST
from gwi_celery.testing.emulators import start_firestore

ROOT = Path(__file__).resolve().parent.parent
STORE, WRITES, RULES, ROWS, IDS = (
    "gwi_celery/stores/sqlite/store.py",
    "gwi_celery/stores/sqlite/writes.py",
    "gwi_celery/stores/protocol.py",
    "gwi_celery/stores/sqlite/rows.py",
    "gwi_celery/ids.py",
)
DOCUMENTS, WIRE = "gwi_celery/stores/firestore/records.py", "gwi_celery/firestore/documents.py"
HOLDER, CLAIMER, CHECKPOINTS, OPERATORS, PLACES, READS, TRIES, VALUES, CLAIM, UPKEEP, BLOBS = (
    "gwi_celery/stores/firestore/holder.py",
    "gwi_celery/stores/firestore/claimer.py",
    "gwi_celery/stores/firestore/checkpoints.py",
    "gwi_celery/stores/firestore/operators.py",
    "gwi_celery/stores/firestore/places.py",
    "gwi_celery/stores/firestore/reads.py",
    "gwi_celery/stores/firestore/tries.py",
    "gwi_celery/stores/firestore/values.py",
    "gwi_celery/stores/firestore/claim.py",
    "gwi_celery/stores/firestore/upkeep.py",
    "gwi_celery/stores/firestore/blobs.py",
)
SUITE = [
    "-m",
    "not emulator",
    "tests/unit/test_call.py",
    "tests/unit/reliability/test_payload.py",
    "tests/unit/reliability/test_carried.py",
    "tests/unit/reliability/test_promises.py",
    "tests/unit/reliability/test_known_bugs.py",
    "tests/unit/stores/test_protocol.py",
    "tests/contract/test_store.py",
    "tests/contract/test_store_loading.py",
    "tests/contract/test_store_values.py",
    "tests/contract/test_store_records.py",
    "tests/contract/test_store_limits.py",
    "tests/contract/test_store_machine.py",  # last: it takes its time to shrink what it finds
]
FIRESTORE_SUITE = [
    "-m",
    "emulator",
    "tests/unit/reliability/test_known_bugs.py",
    "tests/firestore/test_store.py",
    "tests/contract/test_store_limits.py",
    "tests/contract/test_store.py",
    "tests/contract/test_store_loading.py",
    "tests/contract/test_store_values.py",
    "tests/contract/test_store_lists.py",
    "tests/contract/test_firestore_faults.py",
]

#: A kill, and two jobs of one run: both on the embedded broker, under prefork.
TASK, ATTEMPT = "gwi_celery/reliability/task.py", "gwi_celery/reliability/attempt.py"
WORKER_SUITE = [
    "-k",
    "embedded and (inside-step-prefork or wait_for_each_other)",
    "tests/acceptance/test_kill.py",
    "tests/acceptance/test_worker.py",
]

RESULTS, BACKEND, CHORDS, COMMON, RESULT_BASE, TRACER = (
    "gwi_celery/stores/firestore/results.py",
    "gwi_celery/backends/firestore/values.py",
    "gwi_celery/backends/firestore/chords.py",
    "gwi_celery/backends/base.py",
    "gwi_celery/backends/results.py",
    "gwi_celery/worker/tracer.py",
)
RESULT_SUITE = [
    "-m",
    "emulator",
    "tests/contract/test_backend.py",
    "tests/contract/test_unstorable.py",
    "tests/firestore/test_backend.py",
]


#: The way from a broker to its user and back: on the embedded broker, and on one Pub/Sub emulator.
CHANNEL, LEASES, EXITS = (
    "gwi_celery/transport/channel.py",
    "gwi_celery/transport/leases.py",
    "gwi_celery/exits.py",
)
ACKS, DELIVERIES, ARRIVALS, TOPOLOGY = (
    "gwi_celery/brokers/pubsub/acks.py",
    "gwi_celery/brokers/pubsub/deliveries.py",
    "gwi_celery/brokers/pubsub/arrivals.py",
    "gwi_celery/brokers/pubsub/topology/memory.py",
)
BROKER_SUITE = [
    "-k",
    "test_turns or test_leases or test_acks or (test_background and not closes_nothing) or made_again",
    "tests/unit/brokers/pubsub/test_acks.py",
    "tests/unit/transport/test_turns.py",
    "tests/unit/transport/test_leases.py",
    "tests/pubsub/test_leases.py",
    "tests/pubsub/test_background.py",
    "tests/pubsub/features/test_topology.py",
]


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    before: str
    after: str


SQLITE_MUTANTS = [
    Mutant(
        "one more than a limit allows runs",
        "gwi_celery/stores/sqlite/limits.py",
        "if len(live) >= limit.places:",
        "if len(live) > limit.places:",
    ),
    Mutant(
        "who fell silent keeps its lock, though its place is another's",
        "gwi_celery/stores/sqlite/limits.py",
        'writes.free_lock(c, row["lock_id"], row["token"])',
        "pass",
    ),
    Mutant(
        "a second outcome of a generation is accepted in silence",
        RULES,
        "if job.fence != lease.fence or (job.status is outcome.status and same_bytes):",
        "if True:",
    ),
    Mutant(
        "tokens start again with each lock",
        WRITES,
        "token = max(last + 1, int(now * 1_000_000))",
        "token = 1 + 0 * last",
    ),
    Mutant(
        "the lock's token is not checked on a write",
        RULES,
        "if not (owns_record and owns_lock):",
        "if not owns_record:",
    ),
    Mutant(
        "the record's token is not checked on a write",
        RULES,
        "if not (owns_record and owns_lock):",
        "if not owns_lock:",
    ),
    Mutant(
        "no token is checked on a write",
        RULES,
        "if not (owns_record and owns_lock):",
        "if not (owns_record or owns_lock or lock is None or lock is not None):",
    ),
    Mutant(
        "an outcome is not looked at when the lock is free",
        RULES,
        "if job.status.terminal and not _opens_next_generation(job, request):",
        "if False:",
    ),
    Mutant(
        "a lock that is held is taken",
        RULES,
        "if holder is not None and holder.left > 0:",
        "if holder is not None and holder.left > 1e9:",
    ),
    Mutant(
        "a lock is never taken over",
        RULES,
        "if holder is not None and holder.left > 0:",
        "if holder is not None and holder.left > -1e9:",
    ),
    Mutant(
        "another payload runs",
        RULES,
        "if not (same or _corrects(job, request)):",
        "if False:",
    ),
    *(
        Mutant(f"{name} ({file.rpartition('/')[2]})", file, before, after)
        for file, name, before, after in [
            (
                RULES,
                "another payload runs after a success",
                "return _failed_otherwise(job, request) and (",
                "return True and (",
            ),
            (
                RULES,
                "a corrected payload never runs",
                "return _failed_otherwise(job, request) and (",
                "return False and (",
            ),
            (
                RULES,
                "a redelivery undoes the correction",
                "return _failed_otherwise(job, request) and (",
                "return job.status is JobStatus.FAILED and (",
            ),
            (
                RULES,
                "a corrected payload keeps the old steps",
                "return not same_payload(job.fingerprint, request.fingerprint)",
                "return False",
            ),
            (
                RULES,
                "a job is taken from a live holder under another lock",
                "for holder in (lock, other):",
                "for holder in (lock,):",
            ),
            (
                RULES,
                "progress forgives no crash",
                "return checkpoint.kind is not CheckpointKind.VALUE",
                "return False",
            ),
            (
                RULES,
                "any value forgives crashes",
                "return checkpoint.kind is not CheckpointKind.VALUE",
                "return True",
            ),
            (
                "gwi_celery/reliability/payload.py",
                "a default that is spelt out is another payload",
                "and _equal(named[name], parameter.default)",
                "and False",
            ),
            (
                "gwi_celery/reliability/carried.py",
                "a stranger's step is a plain call's",
                "if job is None and task in _running:",
                "if False:",
            ),
            (
                "gwi_celery/reliability/call.py",
                "a sending of beat has the run's key",
                "if due is None:",
                "if True:",
            ),
        ]
    ),
    Mutant(
        "a failure answers a fresh call",
        RULES,
        "        return True\n    return _failed_otherwise(job, request)\n",
        "        return True\n    return False\n",
    ),
    Mutant(
        "a redrive from a step is replayed by each redelivery",
        RULES,
        "what it failed with is not replayed\n        return _failed_otherwise(job, request)",
        "\n        return True",
    ),
    Mutant(
        "a step may be overwritten",
        "gwi_celery/stores/protocol.py",
        "if kind is CheckpointKind.STEP:\n        raise StepNameReused(",
        "if False:\n        raise StepNameReused(",
    ),
    Mutant(
        "a value is put whatever its version",
        "gwi_celery/stores/protocol.py",
        "    if there == expected:",
        "    if there >= 0:",
    ),
    Mutant(
        "a value is put over a step",
        "gwi_celery/stores/protocol.py",
        "    if stored is not None and stored.kind is not CheckpointKind.VALUE:",
        "    if False:",
    ),
    Mutant(
        "a value is put to a job that has ended",
        RULES,
        "    if known.status.terminal:\n        raise InvalidCall(",
        "    if False:\n        raise InvalidCall(",
    ),
    Mutant(
        "what has expired is still answered",
        ROWS,
        'if row is None or (row["expires_at"] is not None and row["expires_at"] <= now):',
        "if row is None:",
    ),
    Mutant(
        "cleanup deletes what is live",
        STORE,
        '"SELECT job_id FROM jobs WHERE expires_at <= ? ORDER BY expires_at LIMIT ?",',
        '"SELECT job_id FROM jobs WHERE expires_at > 0 OR ? ORDER BY expires_at LIMIT ?",',
    ),
    Mutant(
        "expiry is by another clock",
        STORE,
        "answer = claims.claim(c, request, self._clock.time())",
        "answer = claims.claim(c, request, __import__('time').time())",
    ),
    Mutant(
        "the tenant is left out of ids",
        "gwi_celery/stores/values.py",
        'return digest("lock", self.tenant, *self.scope)',
        'return digest("lock", *self.scope)',
    ),
    Mutant(
        "parts of an id are joined, not length-prefixed",
        IDS,
        'h.update(b"%d:" % len(raw))',
        "pass",
    ),
    Mutant(
        "nested keys are left out of the payload's fingerprint",
        IDS,
        "text = _CANONICAL.encode(payload)",
        "text = repr(sorted(payload) if isinstance(payload, dict) else payload)",
    ),
]

FIRESTORE_MUTANTS = [
    Mutant(
        "who fell silent keeps its lock, though its place is another's",
        "gwi_celery/stores/firestore/limits.py",
        "writes.append(documents.delete(self._places.lock(lock.ref), lock.version))",
        "pass",
    ),
    Mutant(
        "a freed lock's places stay",
        "gwi_celery/stores/firestore/limits.py",
        "return [documents.delete(places.place(place)) for place in lock.places]",
        "return []",
    ),
    Mutant(
        "a holder that renews loses its place after its first lease",
        "gwi_celery/stores/firestore/limits.py",
        "elif lock.expired(read.read_time):",
        "elif True:",
    ),
    Mutant(
        "tokens start again with each record",
        CLAIMER,
        "job_version, fence = written.versions[:2]",
        "job_version, fence = written.versions[0], new.generation * 100 + new.attempt",
    ),
    Mutant(
        "a fresh claim does not ask for nothing to be there",
        WIRE,
        "        return create(name, fields, server_times)",
        "        return Write(name, fields, server_times=server_times)",
    ),
    Mutant(
        "a takeover does not name the versions it has read",
        WIRE,
        "    return Write(name, fields, server_times=server_times, version=version)",
        "    return Write(name, fields, server_times=server_times)",
    ),
    Mutant(
        "a renewal does not name the lock's version",
        HOLDER,
        "return documents.change(lock_name, fields, version, mask=mask)",
        "return Write(lock_name, fields, mask=mask, exists=True)",
    ),
    Mutant(
        "a renewal does not name the record's version",
        HOLDER,
        "                documents.check(self._job_name, hold.job.version),\n",
        "",
    ),
    Mutant(
        "a save does not name the record's version",
        CHECKPOINTS,
        """            {"data": data},
            job.version,""",
        """            {"data": data},
            None,""",
    ),
    Mutant(
        "a save does not ask for the step not to be there",
        CHECKPOINTS,
        "            None if stored is None else stored.version,\n",
        "            None if stored is None else stored.version,\n        )\n"
        "        if stored is not None\n        else Write(\n"
        "            places.step(era_name, checkpoint.name),\n"
        "            step.fields(),\n",
    ),
    Mutant(
        "a finish does not name the lock's version",
        HOLDER,
        "documents.delete(self._lock_name, hold.lock.version)",
        "documents.delete(self._lock_name)",
    ),
    Mutant(
        "a finish does not name the record's version",
        HOLDER,
        "self._job_name, fields, hold.job.version, mask=mask",
        "self._job_name, fields, None, mask=mask",
    ),
    Mutant(
        "a finish leaves the lock",
        HOLDER,
        "documents.delete(self._lock_name, hold.lock.version),",
        "documents.check(self._lock_name, hold.lock.version),",
    ),
    Mutant(
        "a finish whose answer was lost is not known again",
        HOLDER,
        "                if self._is_finished(hold.job, outcome):",
        "                if False:",
    ),
    Mutant(
        "a finish of a life that has expired is not known again",
        CLAIM,
        "finished=None if expired is None else expired.finished,",
        "finished=None,",
    ),
    Mutant(
        "a commit without an answer is taken for one that was not applied",
        TRIES,
        "except (Conflict, Unsettled) as exc:",
        "except Conflict as exc:",
    ),
    Mutant(
        "a claim whose answer was lost is not known again",
        RULES,
        "if same and job is not None and job.fence == lock.fence:",
        "if False:",
    ),
    Mutant(
        "expiry is by the worker's clock",
        READS,
        "        read.read_time,\n        list(found.values()),",
        "        round(time.time() * 1_000_000),\n        list(found.values()),",
    ),
    Mutant(
        "a lock that is held is taken",
        RULES,
        "if holder is not None and holder.left > 0:",
        "if holder is not None and holder.left > 1e9:",
    ),
    Mutant(
        "a lock is never taken over",
        RULES,
        "if holder is not None and holder.left > 0:",
        "if holder is not None and holder.left > -1e9:",
    ),
    Mutant(
        "what has expired is still answered",
        DOCUMENTS,
        "return expires is not None and expires <= now",
        "return expires is not None and expires <= 0 * now",
    ),
    Mutant(
        "cleanup deletes without a condition",
        UPKEEP,
        "documents.delete(document.name, document.update_time)",
        "documents.delete(document.name)",
    ),
    Mutant(
        "cleanup believes gc_at",
        UPKEEP,
        "if deleted < limit and job.expired(now):",
        "if deleted < limit and (job.expired(now) or True):",
    ),
    Mutant(
        "cleanup deletes a lock that its holder may renew",
        UPKEEP,
        "(lock.job.id, lock.fence) not in running",
        "((lock.job.id, lock.fence) not in running or True)",
    ),
    Mutant(
        "a cancelled job's lock stays",
        OPERATORS,
        "        writes += [documents.delete(lock_name, lock.version), *freeing(places, lock)]",
        "        pass",
    ),
    Mutant(
        "a cancelled job's lock is freed though it is another's",
        OPERATORS,
        "if lock_document is not None and (lock := lock_of(lock_document)).fence == job.fence:",
        "if lock_document is not None and (lock := lock_of(lock_document)):",
    ),
    Mutant(
        "the tenant is left out of paths",
        PLACES,
        "{digest('tenant', tenant)}",
        "{digest('tenant', '')}",
    ),
    Mutant(
        "a value is put without naming the record's version or its own",
        VALUES,
        "_, step, writes = recording(places, job, value, stored, field, gc_at)",
        "_, step, writes = recording(places, job, value, stored, field, gc_at)\n"
        "        writes = [replace(write, version=None, exists=None) for write in writes]",
    ),
    Mutant(
        "a value that was put leaves the claim's token for its own time",
        CHECKPOINTS,
        '"fence": job.fence,\n    }',
        "}",
    ),
    Mutant(
        "a job is taken from a live holder under another lock",
        RULES,
        "for holder in (lock, other):",
        "for holder in (lock,):",
    ),
    Mutant(
        "a holder that renews while its job is taken over under another lock is robbed",
        CLAIMER,
        "writes.append(documents.delete(own_name, own.version))",
        "writes.append(documents.delete(own_name))",
    ),
    Mutant(
        "a corrected payload keeps the old steps",
        RULES,
        "return not same_payload(job.fingerprint, request.fingerprint)",
        "return False",
    ),
    Mutant(
        "what was replaced goes on counting as large",
        CHECKPOINTS,
        "size -= stored.blob.size",
        "size -= 0",
    ),
    Mutant(
        "a blob's checksum is not looked at",
        BLOBS,
        "if checksum(whole) != blob.sha:",
        "if checksum(whole) != blob.sha and False:",
    ),
]


WORKER_MUTANTS = [
    Mutant(
        "a message is acked before its job",
        TASK,
        "            if value != needed:\n",
        "            cls.acks_late = False\n            if False:\n",
    ),
    Mutant(
        "a job that waits for its lock is acked without a copy",
        ATTEMPT,
        "            signature.apply_async(add_to_parent=False)",
        "            pass",
    ),
]

SHIELD_SUITE = ["-m", "not emulator", "tests/unit/test_shield.py"]

SHIELD_MUTANTS = [
    Mutant(
        "between claim and end a signal is raised at once",
        ATTEMPT,
        "        with shield.section():\n            return self._run(",
        "        with shield.window():\n            return self._run(",
    ),
    Mutant(
        "a transaction that was left stays open",
        "gwi_celery/sqlite.py",
        "        _rollback(c)\n        self._database._give_back(c)",
        "        self._database._give_back(c)",
    ),
    Mutant(
        "a limit that comes after the outcome is raised",
        "gwi_celery/shield.py",
        "        finally:\n            state.idle = True",
        "        finally:\n            state.idle = False",
    ),
    Mutant(
        "under gevent a wait of the library's own is held back as well",
        "gwi_celery/shield.py",
        "        if self._gwi_within:",
        "        if False:",
    ),
]

ENDS_SUITE = [
    *("-m", "not emulator", "-k", "sqlite-prefork or unit"),
    "tests/unit/reliability/test_ends.py",
    "tests/ends",
]

ENDS_MUTANTS = [
    Mutant(
        "a killed attempt's lock is freed whoever holds it",
        "gwi_celery/worker/request.py",
        "nonce=self._attempt,",
        "nonce=None,",
    ),
    Mutant(
        "what was replaced answers None",
        "gwi_celery/reliability/outcome.py",
        "return blobs.load(blob[1:]) if blob[:1] == _REPLACED else None",
        "return None",
    ),
    Mutant(
        "a job whose success can't be recorded has failed",
        ATTEMPT,
        "unrecorded = finishing and isinstance(exc, StoreError)",
        "unrecorded = False",
    ),
    Mutant(
        "what can't be recorded is acked without a copy",
        ATTEMPT,
        "                self._store_unavailable(exc)\n            case End.STOPPING",
        "                raise Ignore\n            case End.STOPPING",
    ),
]


BROKER_MUTANTS = [
    Mutant(
        "what needs no ack is never acked",
        CHANNEL,
        "lost = {d.ack_id for d in self._broker.ack([delivery for delivery, _ in ours])}",
        "lost: set[str] = set()",
    ),
    Mutant(
        "what may be another's is handed over",
        CHANNEL,
        "if self.connection.leases.holds(delivery):",
        "if True:",
    ),
    Mutant(
        "one more is held than fits",
        CHANNEL,
        "max(self.prefetch_count - len(self._channel.held), 0)",
        "max(self.prefetch_count + 1 - len(self._channel.held), 0)",
    ),
    Mutant(
        "the first queue is served first each time",
        CHANNEL,
        "self._consuming[tag] = self._consuming.pop(tag)",
        "pass",
    ),
    Mutant(
        "leases are not extended",
        LEASES,
        "lost = {d.ack_id for d in self._broker.extend([k.delivery for k in group], seconds)}",
        "lost: set[str] = set()",
    ),
    Mutant(
        "a message that waited past its lease is given out",
        ARRIVALS,
        "(taken if now < delivery.held_until() else lapsed).append(delivery)",
        "taken.append(delivery)",
    ),
    Mutant(
        "a busy user keeps what it doesn't poll",
        ARRIVALS,
        "old = self._drop(lambda d: waits_for_long(d) and d.ack_id not in early)",
        "old: list[Delivery] = []",
    ),
    Mutant(
        "one holds all that is delayed",
        ARRIVALS,
        "delayed, deferred = delayed[:room], delayed[room:]",
        "deferred = []",
    ),
    Mutant(
        "a message that is redelivered waits twice",
        ARRIVALS,
        "replaced = self._drop(lambda d: (_path(d), d.message_id) in again)",
        "pass",
    ),
    Mutant(
        "acks wait for other work",
        DELIVERIES,
        "            self._acks.ack(subscription, ack_id, until, last=not self.leases)",
        "            self._jobs.run(functools.partial(self._acks.ack, subscription, ack_id, until))",
    ),
    Mutant(
        "the ack of the last message waits for more",
        DELIVERIES,
        "self._acks.ack(subscription, ack_id, until, last=not self.leases)",
        "self._acks.ack(subscription, ack_id, until)",
    ),
    Mutant(
        "an ack waits for the answer to another",
        ACKS,
        "soon = last or not self._requests",
        "soon = not self._requests",
    ),
    Mutant(
        "a busy worker's acks do not gather",
        ACKS,
        "soon = last or not self._requests",
        "soon = True",
    ),
    Mutant(
        "a pool's child ends without what it has to send",
        EXITS,
        "signals.worker_process_shutdown.connect(_flush, weak=False)",
        "pass",
    ),
    Mutant(
        "a queue that is made again is not bound again",
        TOPOLOGY,
        "        self.declare_queue(queue.spec)\n        for name, keys in queue.bound.items():",
        "        self.declare_queue(queue.spec)\n        for name, keys in {}.items():",
    ),
]


RESULT_MUTANTS = [
    Mutant(
        "a SUCCESS is overwritten",
        RESULTS,
        "self.settled = stays or self.taken or stored.nonce == self._nonce",
        "self.settled = stored.nonce == self._nonce",
    ),
    Mutant(
        "a result is written over whatever is there",
        RESULTS,
        "documents.replace(self.name, self.fields, self._version)",
        "Write(self.name, self.fields)",
    ),
    Mutant(
        "a result that has expired is answered",
        BACKEND,
        "if result.expired(now):",
        "if result.expired(0):",
    ),
    Mutant(
        "a chord's part counts each time it returns",
        CHORDS,
        "create = documents.create(part_name(name, part), self._chord_fields(id=part))",
        "create = Write(part_name(name, part), self._chord_fields(id=part))",
    ),
    Mutant(
        "the size of a chord is forgotten",
        CHORDS,
        """"data.size"])
        self.client.commit_surely([write], tries=TRIES)""",
        '"data.size"])',
    ),
    Mutant(
        "a chord's parts are not renewed",
        CHORDS,
        "                self._renew(group_id, name)",
        "                pass",
    ),
    Mutant(
        "an end is overwritten by what is none",
        RESULTS,
        "over = stored.state == _SUCCESS or (stored.state in _ENDS and self._state not in _ENDS)",
        "over = stored.state == _SUCCESS",
    ),
    Mutant(
        "a body that can't be called is no failure",
        COMMON,
        """        except Exception as exc:
            self._fail_body(body, f"Callback error""",
        """        except Exception as exc:
            return
            self._fail_body(body, f"Callback error""",
    ),
    Mutant(
        "a body's failure is not stored",
        COMMON,
        "            self.chord_error_from_stack(body, exc)",
        "            pass",
    ),
    Mutant(
        "what can't be stored is swallowed",
        RESULT_BASE,
        "                raise Reject(why, requeue=True) from exc",
        "                return None",
    ),
    Mutant(
        "what can't be stored ends a solo worker",
        TRACER,
        """        except Reject as exc:
            reason, requeue""",
        """        except Reject as exc:
            raise
            reason, requeue""",
    ),
    Mutant(
        "a result that went with its outcome is written once more",
        HOLDER,
        'data["result_of"] = put_text(stored_result.task_id)',
        "pass",
    ),
]

ORDER_SUITE = ["-m", "not emulator", "tests/contract/test_broker.py"]
ORDER_MUTANTS = [
    Mutant(
        "of one priority the latest comes first",
        "gwi_celery/brokers/embedded/messages.py",
        'key=lambda row: (-row["priority"], row["id"])',
        'key=lambda row: (-row["priority"], -row["id"])',
    ),
]

ADMISSION = "gwi_celery/service/admission.py"
SERVICE_SUITE = [
    *("-m", "not emulator"),
    "tests/unit/service/test_push.py",
    "tests/unit/service/test_execute.py",
]
SERVICE_MUTANTS = [
    Mutant(
        "one more runs than there are places",
        ADMISSION,
        "if self._free and not self._waiting:",
        "if not self._waiting:",
    ),
    Mutant(
        "a place is never free again",
        ADMISSION,
        "loop.call_soon_threadsafe(self._give_place)",
        "None",
    ),
    Mutant(
        "a service that stops takes more",
        ADMISSION,
        "        if self.draining:\n            raise _stopping()\n        await self._take_place()",
        "        await self._take_place()",
    ),
    Mutant(
        "a push is answered as acked while its job runs",
        ADMISSION,
        'raise Refused(503, "the job is still running: its message has to be redelivered")',
        "return Settlement.ACKED",
    ),
]

HANDOVER_SUITE = [
    *("-m", "not emulator", "-k", "not pool and not push"),
    "tests/unit/transport/test_handover.py",
    "tests/unit/worker/test_consumer.py",
    "tests/unit/transport/test_depth.py",
    "tests/unit/brokers/pubsub/test_wire.py",
    "tests/contract/test_attempts.py",
]
HANDOVER_MUTANTS = [
    Mutant(
        "what a message makes its handler raise ends the worker",
        "gwi_celery/transport/handover.py",
        "        settle_error(message, exc)\n\n",
        "        raise\n\n",
    ),
    Mutant(
        "a started message is given back uncounted",
        "gwi_celery/transport/channel.py",
        "if held.message.begun:",
        "if False:",
    ),
    Mutant(
        "a begun attempt isn't stated",
        "gwi_celery/brokers/embedded/deliveries.py",
        "messages.set_attempts(c, *_lease_of(delivery), delivery.attempts + 1)",
        "pass",
    ),
    Mutant(
        "an untouched message counts",
        "gwi_celery/brokers/embedded/deliveries.py",
        "messages.set_attempts(change.c, id, lease, delivery.attempts)",
        "pass",
    ),
    Mutant(
        "a dead letter drops attributes",
        "gwi_celery/brokers/pubsub/wire.py",
        'more.setdefault("attributes", {})[key] = attributes.pop(key)',
        "attributes.pop(key)",
    ),
    Mutant(
        "a call nested too deep is sent",
        "gwi_celery/transport/envelope.py",
        'if message.get("content-type") == _JSON and depth.too_deep(body):',
        "if False:",
    ),
    Mutant(
        "times may be anything",
        "gwi_celery/reliability/fields.py",
        "return isinstance(when, datetime) and 1 < when.year < 2200",
        "return True",
    ),
]


def survives(mutant: Mutant, suite: list[str]) -> bool:
    """Whether the suite stays green. Raises LookupError if the code to mutate is gone."""
    with tempfile.TemporaryDirectory(prefix="gwi-mutant-") as name:
        copy = Path(name)
        for part in ("gwi_celery", "tests"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        target = copy / mutant.file
        source = target.read_text()
        if source.count(mutant.before) != 1:
            raise LookupError(f"{mutant.name}: not found once in {mutant.file}: {mutant.before!r}")
        target.write_text(source.replace(mutant.before, mutant.after))
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *suite],
                cwd=copy,
                env={
                    **os.environ,
                    "PYTHONPATH": name,
                    "STORE_MACHINE_EXAMPLES": "40",
                    "FIRESTORE_EXAMPLES": "30",
                },
                capture_output=True,
                timeout=300,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False  # a suite that hangs is red, too
        if done.returncode not in (0, 1):
            raise RuntimeError(f"{mutant.name}: pytest itself failed:\n{done.stdout.decode()}")
        return done.returncode == 0


def run(mutants: list[Mutant], suite: list[str]) -> int:
    """How many survive."""
    survivors = 0
    for mutant in mutants:
        alive = survives(mutant, suite)
        survivors += alive
        print(f"{'SURVIVED' if alive else 'killed  '}  {mutant.name}", flush=True)
    print(f"{len(mutants) - survivors} of {len(mutants)} mutants killed", flush=True)
    return survivors


def main(which: list[str]) -> int:
    survivors = 0
    if not which or "sqlite" in which:
        survivors += run(SQLITE_MUTANTS, SUITE)
    if not which or "handover" in which:
        survivors += run(HANDOVER_MUTANTS, HANDOVER_SUITE)
    if not which or "worker" in which:
        survivors += run(WORKER_MUTANTS, WORKER_SUITE)
        survivors += run(SHIELD_MUTANTS, SHIELD_SUITE)
        survivors += run(ENDS_MUTANTS, ENDS_SUITE)
    if not which or "service" in which:
        survivors += run(SERVICE_MUTANTS, SERVICE_SUITE)
    if not which or "broker" in which:
        survivors += run(ORDER_MUTANTS, ORDER_SUITE)
        survivors += run(BROKER_MUTANTS, BROKER_SUITE)
    if not which or {"firestore", "results"} & set(which):
        with start_firestore() as emulator:
            os.environ[FIRESTORE_HOST] = emulator.endpoint
            if not which or "firestore" in which:
                survivors += run(FIRESTORE_MUTANTS, FIRESTORE_SUITE)
            survivors += run(RESULT_MUTANTS, RESULT_SUITE)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
