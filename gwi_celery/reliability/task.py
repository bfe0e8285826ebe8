"""ReliableTask: how a job is called.

``reliability/inside.py`` has what a job can call while it runs; ``reliability/attempt.py`` handles its
message.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NoReturn
from uuid import uuid4

from celery.exceptions import Reject
from celery.result import AsyncResult, EagerResult, allow_join_result
from kombu.exceptions import EncodeError
from kombu.utils import json

from gwi_celery import shield
from gwi_celery.actions import action
from gwi_celery.backends import tenants
from gwi_celery.errors import (
    ConfigurationError,
    InvalidCall,
    NotSerializable,
)
from gwi_celery.headers import (
    HOLDS_HEADER,
    MAX_RETRIES_HEADER,
    PAYLOAD_HEADER,
    REPLAY_HEADER,
    RUN_HEADER,
    TENANT_HEADER,
)
from gwi_celery.integration import integration, settings_for, store_for
from gwi_celery.reliability import (
    call,
    compensation,
    declared,
    marks,
    verbs,
)
from gwi_celery.reliability.attempt import Attempt
from gwi_celery.reliability.call import Call
from gwi_celery.reliability.ends import Replaced
from gwi_celery.reliability.inside import InsideJob
from gwi_celery.reliability.options import Reliable, first
from gwi_celery.reliability.outcome import PERMANENT, dump_replaced
from gwi_celery.reliability.wording import check_step
from gwi_celery.shield import shielded
from gwi_celery.stores.base import (
    ClaimRequest,
    Store,
)


class ReliableTask(InsideJob):
    """Base of a reliable task: ``@app.task(base=ReliableTask, bind=True)``.

    Run by a worker, the job has one terminal outcome per generation, which answers every later
    duplicate; recorded steps are never run again. Called directly, it is a plain call.
    """

    abstract = True
    Request = "gwi_celery.worker.request:ReliableRequest"

    #: This package's options.
    reliable: Reliable = Reliable()

    acks_late = True
    reject_on_worker_lost = True
    acks_on_failure = False
    acks_on_timeout = True
    serializer = "json"

    @classmethod
    def on_bound(cls, app: Any) -> None:
        try:
            declared.check_reliable(cls, app)
        except ConfigurationError:
            # Celery has registered it: the next use would find it there, and bind it no more.
            app._tasks.pop(cls.name, None)
            raise
        verbs.add_django_verbs(cls, app)
        verbs.keep_inside(cls, ReliableTask.__call__)

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
        labels: Mapping[str, str] | None = None,
        **options: Any,
    ) -> AsyncResult:
        """Celery's own, with three more options. A call that can't be right is refused here.

        Args:
            idempotency_key: Calls with the same key, task and tenant are the same job.
            deadline: Seconds from now after which the job fails with DeadlineExceeded.
            labels: A few short texts, by name, by which the job's record can be found.

        Raises:
            MissingTenant, ConflictingIds, InvalidCall, NotSerializable: nothing was published.
            ConfigurationError: ``setup(app)`` was not called, or the app's configuration was changed
                since to one that can't work.
            kombu.exceptions.OperationalError: the broker could not be reached.
        """
        integration(
            self.app
        )  # raises if setup() was not called: Celery would use its default broker
        task_id = task_id or str(uuid4())
        headers, resolved = self.addressed(
            args, kwargs, options.pop("headers", None), task_id, idempotency_key, deadline, labels
        )
        # Also for a copy or retry of a call by headers alone: Celery checks the arguments here.
        kwargs = call.with_ids(self.run, self.reliable, args or (), kwargs or {}, headers)
        try:
            result = super().apply_async(
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
        except (EncodeError, ValueError) as exc:
            # Not every codec error is Kombu's: Python raises ValueError for a number of too many digits.
            culprit = _culprit(resolved.arguments)
            if isinstance(exc, InvalidCall) or not (culprit or isinstance(exc, EncodeError)):
                raise
            raise NotSerializable(
                f"{self.name}: {culprit or 'an argument'} has no JSON form ({exc}): pass "
                "plain values (text, numbers, lists, dicts), or an id to load it by"
            ) from exc
        return tenants.owned(result, resolved.tenant)

    def addressed(
        self,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        headers: Mapping[str, Any] | None,
        task_id: str,
        idempotency_key: str | None = None,
        deadline: float | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> tuple[dict[str, Any], Call]:
        """The headers that carry the caller's options to the worker, and the resolved call.

        Raises MissingTenant, ConflictingIds, InvalidCall.
        """
        sent = call.headers_of(self.name, headers, idempotency_key, deadline, self.reliable, labels)
        resolved = self.resolve_call(args or (), kwargs or {}, sent, task_id)
        sent[TENANT_HEADER] = resolved.tenant
        if resolved.run is not None:
            sent[RUN_HEADER] = resolved.run
        return sent, resolved

    def apply(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *rest: Any,
        headers: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        deadline: float | None = None,
        labels: Mapping[str, str] | None = None,
        **options: Any,
    ) -> EagerResult:
        """Celery's own: run here and now, as a job of this process. Takes ``apply_async``'s options."""
        sent = call.headers_of(self.name, headers, idempotency_key, deadline, self.reliable, labels)
        return super().apply(args, kwargs, *rest, headers=sent, **options)

    def on_cancel(self, function: Callable[..., Any]) -> Any:
        """Decorator: ``function(self, ...)`` undoes a job of this task that was cancelled.

        It gets the job's arguments. It is a reliable task itself, and runs once, as a separate job, if
        the cancelled job had begun. The cancelled attempt may not have reached its next boundary yet.
        """
        return compensation.register(self, function)

    def map(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused, as ``starmap`` and ``chunks`` are: they would call the task as a function."""
        raise verbs.mapped(self)

    starmap = chunks = map

    def replay(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        from_step: str | None = None,
        task_id: str | None = None,
        **options: Any,
    ) -> AsyncResult:
        """Run a job again although it has an outcome.

        Opens a new generation. The payload must be the one the job had. Takes ``apply_async``'s options;
        returns its AsyncResult.

        Args:
            from_step: What was recorded before this step is kept. None: nothing is kept; "": all is.
            task_id: Task id of the call to replay, if that had neither a run nor a key: then it names
                the job. The replay gets a new task id.

        Raises:
            InvalidCall: the job has recorded no such step, or the call doesn't name a job.
        """
        asked = {**(options.pop("headers", None) or {})}
        asked[REPLAY_HEADER] = {"generation": 1, "from_step": from_step, "task_id": task_id}
        headers, resolved = self.addressed(
            args, kwargs, asked, "", options.pop("idempotency_key", None), options.get("deadline")
        )
        if resolved.job.key == "task:":
            raise InvalidCall(
                f"{self.name}.replay(): a call without a run or a key is named by its task id: pass "
                "task_id=..., as result.id had it"
            )
        # A job that its task id names is replayed under a new one: a replay is a new submission.
        named = resolved.job.key.startswith("task:") or task_id is None
        options["task_id"] = str(uuid4()) if named else task_id
        record = self._store.get_job(resolved.job)
        if from_step:
            found = self._store.get_checkpoints(resolved.job, outline=True)
            check_step("replay", self.name, from_step, [c.name for c in found])
        if record is not None:
            headers[REPLAY_HEADER]["generation"] = record.generation + 1
        if not self.app.conf.task_always_eager:
            self._store.record_action(
                action("replay", f"{self.name} {resolved.job.key}", resolved.tenant, step=from_step)
            )
            headers = marks.sealed(self.app, self.name, options["task_id"], headers)
        return self.apply_async(args, kwargs, headers=headers, **options)

    @shielded
    def retry(
        self,
        args: Any = None,
        kwargs: Any = None,
        exc: Any = None,
        throw: bool = True,
        eta: Any = None,
        countdown: Any = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Any:
        """Celery's own, except that a permanent ``exc`` is not retried and no message is lost."""
        if isinstance(exc, PERMANENT):
            raise exc
        if options.get("idempotency_key") is not None:
            raise InvalidCall(
                f"{self.name}: a retry is the same job, so it can't have another idempotency_key: "
                "leave it out, or make another call with apply_async()"
            )
        limit = (self.request.headers or {}).get(MAX_RETRIES_HEADER)
        if isinstance(limit, int):
            max_retries = limit
        try:
            return super().retry(args, kwargs, exc, throw, eta, countdown, max_retries, **options)
        except Reject as reject:
            if isinstance(reject.reason, PERMANENT):
                raise reject.reason from None  # no later attempt could publish it either
            # The copy could not be published. Celery would drop the message: keep it instead.
            raise Reject(reject.reason, requeue=True) from reject
        finally:
            # Celery stores the limit on the task, where other jobs' autoretry would read it.
            self.__dict__.pop("override_max_retries", None)

    def signature_from_request(
        self,
        request: Any = None,
        args: Any = None,
        kwargs: Any = None,
        *more: Any,
        headers: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Celery's own, which also keeps the request's headers.

        A retry is the same job, whatever its arguments. Raises InvalidCall if its ids would change.
        """
        request = self.request if request is None else request
        headers = {**(request.headers or {}), **(headers or {})}
        if not (args is None and kwargs is None):
            args = request.args if args is None else args
            kwargs = request.kwargs if kwargs is None else kwargs
            headers = self._same_job(request, args, kwargs, headers)
        return super().signature_from_request(
            request, args, kwargs, *more, headers=headers, **options
        )

    def _same_job(
        self, request: Any, args: Any, kwargs: Any, headers: dict[str, Any]
    ) -> dict[str, Any]:
        job = self._running_job
        if job is None:
            return headers
        with call.for_logs():
            resolved = self.resolve_call(args, kwargs, headers, request.id)
        if resolved.job != job.record.job:
            raise InvalidCall(
                f"{self.name}: a retry is the same job, so its tenant, run and idempotency key can't "
                "change: call .delay() for another job"
            )
        if resolved.fingerprint() == job.record.fingerprint:
            return headers
        return {**headers, PAYLOAD_HEADER: job.record.fingerprint}

    @shielded
    def replace(self, sig: Any) -> Any:
        """Celery's own. The replacement is recorded, so that a duplicate is replaced as well.

        Raises NotSerializable, TooLarge.
        """
        before = json.loads(json.dumps(sig))
        try:
            return super().replace(sig)
        except Replaced as replaced:
            dump_replaced(before)  # raises here, in the job's code, what recording it would raise
            # As it was given: whichever message sends it adds its own id and callbacks.
            replaced.signature = before
            raise

    def on_replace(self, sig: Any) -> Any:
        """Celery's own; within an attempt the record is written first."""
        if self._running_job is None or "_gwi_replaced" in vars(self.request):
            # An eager replacement runs in this process, so waiting for its result can't block a worker.
            with allow_join_result() if self.request.is_eager else nullcontext():
                return super().on_replace(sig)
        raise Replaced(sig)

    # --- the way of a job ---------------------------------------------------------------------

    @property
    def __trace__(self) -> Any:
        """Celery's tracer for this task, with exceptions from outside held back."""
        return self.__dict__.get("_gwi_trace")

    @__trace__.setter
    def __trace__(self, trace: Any) -> None:
        self.__dict__["_gwi_trace"] = trace and shield.task()(trace)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if verbs.is_inside(self):  # called by a custom __call__ through super()
            return self.run(*args, **kwargs)
        if self.starts_an_attempt():
            return self.begin_attempt(self.run, args, kwargs)
        verbs.refuse_mapped(self)
        return super().__call__(*args, **kwargs)

    def starts_an_attempt(self) -> bool:
        """Whether a call now is the worker's, to handle a message."""
        request = self.request
        return not (request.called_directly or "_gwi_entered" in vars(request))

    def begin_attempt(
        self, body: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Handle the message; ``body`` is the job's code."""
        request = self.request
        request._gwi_entered = True
        # Celery gives the message's request to the first call of Task.__call__. That is this call,
        # so a nested one must get its own.
        request._protected = 1
        return Attempt(self).run(body, args, kwargs)

    # --- what its attempts need ---------------------------------------------------------------

    @property
    def _store(self) -> Store:
        return store_for(self.app)

    @property
    def _settings(self) -> Any:
        return settings_for(self.app)

    def resolve_call(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        headers: Mapping[str, Any],
        task_id: str,
    ) -> Call:
        """Tenant, run, job and lock of a call. Raises InvalidCall and its subclasses."""
        return call.resolve_call(self.run, self.name, self.reliable, args, kwargs, headers, task_id)

    def claim_request(
        self,
        resolved: Call,
        headers: Mapping[str, Any],
        task_id: str,
        pid: int,
        *,
        redelivered: bool,
        nonce: str | None = None,
    ) -> ClaimRequest:
        """The claim to make for an attempt of process ``pid``.

        Raises NotAllowed for a replay or redrive that no operator asked for.
        """
        replay = marks.replay_of(headers)
        marks.check(self.app, self.name, task_id, headers)
        return ClaimRequest(
            job=resolved.job,
            lock=resolved.lock,
            run_id=resolved.run,
            fingerprint=_text_or_none(headers.get(PAYLOAD_HEADER)) or resolved.fingerprint(),
            submission=call.submission(task_id, headers),
            owner=owner(pid, task_id),
            nonce=nonce or uuid4().hex,
            lease_ttl=first(self.reliable.lock_ttl, self._settings.lock_ttl),
            result_ttl=first(self.reliable.result_ttl, self._settings.result_ttl),
            replay=replay,
            redelivered=redelivered or bool(replay) or bool(headers.get(HOLDS_HEADER)),
            limits=resolved.limits,
        )


def owner(pid: int, task_id: str) -> str:
    """The name of a lock's holder, for people: an attempt's process and message."""
    return f"{socket.gethostname()}:{pid} {task_id}"


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _culprit(arguments: Mapping[str, Any]) -> str | None:
    """The first argument that can't be written as JSON."""
    for name, value in arguments.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError, RecursionError):
            return f"argument {name!r} (a {type(value).__name__})"
    return None
