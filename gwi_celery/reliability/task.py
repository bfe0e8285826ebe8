"""ReliableTask: how a job is called, and what it can call while it runs.

What becomes of its message is in ``reliability/attempt.py``.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any
from uuid import uuid4

from celery import Task
from celery.exceptions import Reject
from kombu.exceptions import EncodeError
from kombu.utils import json

from gwi_celery import shield
from gwi_celery.app import settings_for, store_for
from gwi_celery.errors import (
    ConfigurationError,
    InvalidCall,
    NotSerializable,
)
from gwi_celery.reliability import blobs, call
from gwi_celery.reliability.attempt import Attempt
from gwi_celery.reliability.call import Call
from gwi_celery.reliability.ends import Replaced
from gwi_celery.reliability.options import Reliable, first
from gwi_celery.reliability.outcome import PERMANENT
from gwi_celery.reliability.run import Cursor, Run, plain_cursor
from gwi_celery.shield import shielded
from gwi_celery.stores.base import (
    ClaimRequest,
    Replay,
    Store,
)
from gwi_celery.transport.headers import (
    DEADLINE_HEADER,
    HOLDS_HEADER,
    KEY_HEADER,
    MAX_RETRIES_HEADER,
    REPLAY_HEADER,
    RUN_HEADER,
    TENANT_HEADER,
)

#: What keeps the promise: attribute -> (its value, what would happen otherwise).
_REQUIRED: dict[str, tuple[Any, str]] = {
    "acks_late": (True, "a worker that is killed would lose the job"),
    "reject_on_worker_lost": (True, "a pool process that is killed would lose the job"),
    "acks_on_failure": (False, "a failed job would not be kept in the dead letter"),
    "acks_on_timeout": (True, "a job past its hard time limit would run again, although it failed"),
    "retry_on_worker_lost": (False, "a killed job's retry would be another submission of it"),
    "serializer": ("json", "duplicates could not be recognised by their payload"),
}


class ReliableTask(Task):
    """Base of a reliable task: ``@app.task(base=ReliableTask, bind=True)``.

    Run by a worker, the job has one terminal outcome per generation, which answers every later
    duplicate; what it recorded as steps is never run again. Called directly, it is a plain call.
    """

    abstract = True
    Request = "gwi_celery.reliability.request:ReliableRequest"

    #: Options of ours.
    reliable: Reliable = Reliable()

    acks_late = True
    reject_on_worker_lost = True
    acks_on_failure = False
    acks_on_timeout = True
    serializer = "json"

    @classmethod
    def on_bound(cls, app: Any) -> None:
        if not isinstance(cls.reliable, Reliable):
            raise ConfigurationError(
                f"{cls.name}: reliable={cls.reliable!r} is not a Reliable(...) object"
            )
        for attribute, (needed, otherwise) in _REQUIRED.items():
            value = getattr(cls, attribute, needed)
            if value != needed:
                raise ConfigurationError(
                    f"{cls.name}: {attribute}={value!r} breaks the promise of a reliable task: "
                    f"{otherwise}. Leave it out ({needed!r} is set for you), or use a plain task"
                )

    # --- calling ------------------------------------------------------------------------------

    @shielded
    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        *,
        idempotency_key: str | None = None,
        deadline: float | None = None,
        **options: Any,
    ) -> Any:
        """Celery's own, with two options more, and refused early if the call can't be right.

        Args:
            idempotency_key: Makes calls with the same one (and task and tenant) the same job.
            deadline: Seconds from now after which the job fails with DeadlineExceeded.

        Raises:
            MissingTenant, ConflictingIds, InvalidCall, NotSerializable: nothing was published.
            kombu.exceptions.OperationalError: the broker could not be reached.
        """
        task_id = task_id or str(uuid4())
        headers = dict(options.pop("headers", None) or {})
        if idempotency_key is not None:
            headers[KEY_HEADER] = idempotency_key
        if deadline is None:
            deadline = self.reliable.deadline
        if deadline is not None:
            headers.setdefault(DEADLINE_HEADER, time.time() + deadline)
        understood = self.understand(args or (), kwargs or {}, headers, task_id)
        headers[TENANT_HEADER] = understood.tenant
        if understood.run is not None:
            headers[RUN_HEADER] = understood.run
        # A copy or retry of a call by headers alone too: Celery checks the arguments here.
        kwargs = call.filled(self.run, self.reliable, args or (), kwargs or {}, headers)
        try:
            return super().apply_async(
                args,
                kwargs,
                task_id=task_id,
                producer=producer,
                link=link,
                link_error=link_error,
                shadow=shadow,
                headers=headers,
                **options,
            )
        except EncodeError as exc:
            raise NotSerializable(
                f"{self.name}: {_culprit(understood.arguments)} has no JSON form ({exc}): pass "
                "plain values (text, numbers, lists, dicts), or an id to load it by"
            ) from exc

    def replay(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        from_step: str | None = None,
        **options: Any,
    ) -> Any:
        """Run a job anew although it has an outcome: all of it, or ``from_step`` on.

        Opens a new generation. What was recorded before ``from_step`` is kept. The payload must be
        the one the job had. Takes ``apply_async``'s options; returns its AsyncResult.

        Raises:
            InvalidCall: the job has recorded no such step.
        """
        headers = dict(options.pop("headers", None) or {})
        if options.get("idempotency_key") is not None:
            headers[KEY_HEADER] = options["idempotency_key"]
        understood = self.understand(args or (), kwargs or {}, headers, "replay")
        record = self._store.get_job(understood.job)
        if from_step is not None:
            names = [c.name for c in self._store.get_checkpoints(understood.job)]
            if from_step not in names:
                raise InvalidCall(
                    f"can't replay {self.name} from {from_step!r}: its recorded steps are "
                    + (", ".join(map(repr, names)) or "none")
                )
        headers[REPLAY_HEADER] = {
            "generation": record.generation + 1 if record is not None else 1,
            "from_step": from_step,
        }
        return self.apply_async(args, kwargs, headers=headers, **options)

    @shielded
    def retry(self, *args: Any, **kwargs: Any) -> Any:
        """Celery's own; but what can't get better is not tried again, and nothing gets lost."""
        exc = kwargs.get("exc")
        if isinstance(exc, PERMANENT):
            raise exc
        limit = (self.request.headers or {}).get(MAX_RETRIES_HEADER)
        if isinstance(limit, int):
            kwargs["max_retries"] = limit
        try:
            return super().retry(*args, **kwargs)
        except Reject as reject:
            # The copy could not be published. Celery would drop the message: keep it instead.
            raise Reject(reject.reason, requeue=True) from reject
        finally:
            # Celery keeps the limit on the task, where autoretry of other jobs would find it.
            self.__dict__.pop("override_max_retries", None)

    @shielded
    def replace(self, sig: Any) -> Any:
        """Celery's own. The record says what the job was replaced by: a duplicate is as well."""
        before = json.loads(json.dumps(sig))
        try:
            return super().replace(sig)
        except Replaced as replaced:
            # As it was given: each message adds its own id and callbacks to it.
            replaced.signature = before
            raise

    def on_replace(self, sig: Any) -> Any:
        """Celery's own; within an attempt the record is written first."""
        if self._current_run is None or "_gwi_replaced" in vars(self.request):
            return super().on_replace(sig)
        raise Replaced(sig)

    # --- inside a job -------------------------------------------------------------------------

    def step(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call ``function`` once in the job's life and record its JSON result under ``name``.

        Raises StepNameReused, TooLarge, NotSerializable, and all that :meth:`check` does.
        """
        run = self._current_run
        if run is None:
            return blobs.load(
                blobs.dump(function(*args, **kwargs), what=f"{name!r}", limit=2**63 - 1)
            )
        return run.step(name, function, *args, **kwargs)

    def cursor(
        self, name: str, start: Any = 0, *, save_every: float = 1.0
    ) -> AbstractContextManager[Cursor]:
        """Progress inside a long loop; saved every ``save_every`` seconds (0: at each advance)."""
        run = self._current_run
        return plain_cursor(name, start) if run is None else run.cursor(name, start, save_every)

    def checkpoint(self, name: str, value: Any) -> None:
        """Record a JSON value that may be overwritten. Raises TooLarge, NotSerializable."""
        run = self._current_run
        if run is not None:
            run.checkpoint(name, value)

    def restore(self, name: str, default: Any = None) -> Any:
        """What :meth:`checkpoint` recorded last, at this attempt or an earlier one."""
        run = self._current_run
        return default if run is None else run.restore(name, default)

    def check(self) -> None:
        """Stop here if the job should: LeaseLost, JobCancelled, DeadlinePassed, WorkerStopping."""
        run = self._current_run
        if run is not None:
            run.check()

    def derive_key(self, *parts: object) -> str:
        """A key for a sink outside: the same at every attempt of this job, for these ``parts``."""
        run = self._current_run
        return uuid4().hex if run is None else run.derive_key(*parts)

    @property
    def fence(self) -> int:
        """The fencing token: larger at each later attempt. 0 in a plain call."""
        run = self._current_run
        return 0 if run is None else run.lease.fence

    @property
    def attempt(self) -> int:
        """1 at the first attempt of this generation."""
        run = self._current_run
        return 1 if run is None else run.record.attempt

    @property
    def generation(self) -> int:
        """1, and one more with each re-run after a failure, redrive or replay."""
        run = self._current_run
        return 1 if run is None else run.record.generation

    @property
    def lease_lost(self) -> bool:
        """Whether another worker may hold this job by now. Cheap; look as often as you like."""
        run = self._current_run
        return False if run is None else run.lease_lost

    # --- the way of a job ---------------------------------------------------------------------

    @property
    def __trace__(self) -> Any:
        """How a pool runs a message of this task: Celery's, with what is from outside held back."""
        return self.__dict__.get("_gwi_trace")

    @__trace__.setter
    def __trace__(self, trace: Any) -> None:
        self.__dict__["_gwi_trace"] = trace and shield.task()(trace)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        request = self.request
        if request.called_directly or "_gwi_entered" in vars(request):
            return super().__call__(*args, **kwargs)
        request._gwi_entered = True
        # Celery's worker takes the first call of Task.__call__ for the message's own, and gives it
        # the message's request. That call is this one, so a nested one must get its own.
        request._protected = 1
        return Attempt(self).run(args, kwargs)

    # --- what it stands on --------------------------------------------------------------------

    @property
    def _current_run(self) -> Run | None:
        request = self.request
        # A plain call inside a job gets a copy of the job's request: the run is not its own.
        owner, run = vars(request).get("_gwi_run") or (None, None)
        return run if owner is not None and owner() is request else None

    @property
    def _store(self) -> Store:
        return store_for(self.app)

    @property
    def _settings(self) -> Any:
        return settings_for(self.app)

    def understand(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        headers: Mapping[str, Any],
        task_id: str,
    ) -> Call:
        """Whose call this is and which job it names. Raises InvalidCall and its kin."""
        return call.understand(self.run, self.name, self.reliable, args, kwargs, headers, task_id)

    def claim_request(
        self,
        understood: Call,
        headers: Mapping[str, Any],
        task_id: str,
        pid: int,
        *,
        redelivered: bool,
        nonce: str | None = None,
    ) -> ClaimRequest:
        """What to ask the store for, for the attempt of process ``pid``."""
        replay = headers.get(REPLAY_HEADER)
        return ClaimRequest(
            job=understood.job,
            lock=understood.lock,
            run_id=understood.run,
            fingerprint=understood.fingerprint(),
            submission=call.submission(task_id, headers),
            owner=owner(pid, task_id),
            nonce=nonce or uuid4().hex,
            lease_ttl=first(self.reliable.lock_ttl, self._settings.lock_ttl),
            result_ttl=first(self.reliable.result_ttl, self._settings.result_ttl),
            replay=Replay(replay["generation"], replay["from_step"]) if replay else None,
            redelivered=redelivered or bool(replay) or bool(headers.get(HOLDS_HEADER)),
        )


def owner(pid: int, task_id: str) -> str:
    """Names an attempt's process and message: who holds a lock, for people and for the parent."""
    return f"{socket.gethostname()}:{pid} {task_id}"


def _culprit(arguments: Mapping[str, Any]) -> str:
    for name, value in arguments.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError, RecursionError):
            return f"argument {name!r} (a {type(value).__name__})"
    return "an argument"
