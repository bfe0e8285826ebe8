"""Runs a pushed message exactly as a pull worker would: Celery's own strategy, request and pool.

The consumer here is Celery's too, without a connection: what it is handed comes from a request, and
an ack is an answer. So signals, revoked and expired tasks, time limits, result and ack decisions,
and what happens to messages that are no tasks, are Celery's code, not a copy of it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any

from billiard.exceptions import TimeLimitExceeded
from celery import concurrency, signals
from celery.app import trace
from celery.exceptions import TaskRevokedError
from celery.utils.nodenames import default_nodename
from celery.utils.time import maybe_iso8601
from celery.worker import state
from kombu.asynchronous import Hub
from kombu.asynchronous.timer import Timer
from kombu.serialization import prepare_accept_content

from gwi_celery import forks
from gwi_celery.brokers.base import Broker, Delivery, OutgoingMessage
from gwi_celery.errors import BrokerError, MalformedMessage
from gwi_celery.headers import PUSH_UNTIL
from gwi_celery.integration import broker_for, integration
from gwi_celery.telemetry.events import emit
from gwi_celery.transport import envelope, handover
from gwi_celery.transport.death import Death, deceased
from gwi_celery.transport.message import Message
from gwi_celery.transport.settlement import Settlement
from gwi_celery.worker.consumer import Consumer
from gwi_celery.worker.pools import pool_lives, pool_processes

logger = logging.getLogger(__name__)

#: Pool children that may die within a second before the pool gives up, as in Celery's worker.
_MAX_RESTARTS = 100
#: Seconds without a turn of its loop after which the executor counts as dead. A slow broker delays a turn
#: as well, while a message is dead-lettered.
_STUCK_AFTER = 120.0
#: An ETA nearer than this is now, seconds.
_ETA_IS_NOW = 0.05


class Executor:
    """A Celery pool that is fed by :meth:`submit`.

    The pool runs on Celery's event loop, as in a worker, in a separate thread. Celery's other prefork
    pool, with threads and locks that its children share, hangs when a child is killed while it holds one.

    Args:
        app: A Celery app that was set up.
        pool: ``prefork``, ``threads`` or ``solo``.
        size: Jobs at a time.
    """

    def __init__(self, app: Any, *, pool: str = "prefork", size: int = 1) -> None:
        self.app = app
        self.hostname = default_nodename(None)
        self.size = size
        self._pool_name = pool
        self._pool: Any = None
        self._consumer: _PushConsumer | None = None
        self._broker: Broker | None = None
        # Linux may kill a child when the thread that forked it ends: this thread outlives the pool.
        self._thread = threading.Thread(target=self._main, name="gwi-execute", daemon=True)
        self._ready: Future[None] = Future()
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake_pipe: tuple[int, int] | None = None
        #: Ack id and reason of the latest dead letters.
        self._reasons: deque[tuple[str, str]] = deque(maxlen=100)
        self._stopping = False
        self._ticked_at = time.monotonic()

    @property
    def broker(self) -> Broker:
        """For dead letters and delayed copies."""
        if self._broker is None:
            self._broker = broker_for(self.app)
        return self._broker

    def start(self) -> None:
        """Start the pool and wait until it is ready. Blocks: never call it on a web server's thread."""
        self._thread.start()
        self._ready.result()

    def submit(self, delivery: Delivery, *, hand_back_at: float) -> Future[Settlement]:
        """Run a delivery.

        Args:
            hand_back_at: Monotonic time from which a reliable job is handed back at its next
                boundary.

        Returns:
            How the message was settled, once that is done and the pool has a free place again.
        """
        submission = _Submission()
        self._inbox.append(lambda: self._run(delivery, hand_back_at, submission))
        self._wake()
        return submission.future

    # --- the thread ---------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            hub = self._start()
        except BaseException as exc:
            self._ready.set_exception(exc)
            return
        self._ready.set_result(None)
        loop = hub.create_loop()
        while not self._stopping:
            self._ticked_at = time.monotonic()
            try:
                next(loop)
            except Exception:
                logger.exception("an error on the executor's loop; it goes on")
                loop = hub.create_loop()
        self._pool.stop()
        hub.close()

    def _start(self) -> Any:
        app = self.app
        app.loader.init_worker()
        signals.worker_init.send(sender=self)
        app.finalize()
        trace.setup_worker_optimizations(app, self.hostname)
        conf = app.conf
        hub = Hub(Timer(max_interval=10.0))
        pool_class = concurrency.get_implementation(self._pool_name)
        self._pool = pool_class(
            self.size,
            initargs=(app, self.hostname),
            maxtasksperchild=conf.worker_max_tasks_per_child,
            max_memory_per_child=conf.worker_max_memory_per_child,
            timeout=conf.task_time_limit,
            soft_timeout=conf.task_soft_time_limit,
            lost_worker_timeout=conf.worker_lost_wait,
            max_restarts=_MAX_RESTARTS,
            threads=False,
            putlocks=False,
            app=app,
        )
        self._pool.start()
        self._pool.register_with_event_loop(hub)
        self._wake_pipe = read, write = os.pipe()
        for fd in (read, write):
            os.set_blocking(fd, False)
        hub.add_reader(read, self._on_wake)
        self._consumer = _PushConsumer(app, self._pool, self.hostname)
        signals.worker_ready.send(sender=self._consumer)
        return hub

    def _wake(self) -> None:
        assert self._wake_pipe is not None, "start() comes first"
        with contextlib.suppress(BlockingIOError):  # full: it is awake
            os.write(self._wake_pipe[1], b"\0")

    def _on_wake(self) -> None:
        assert self._wake_pipe is not None
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_pipe[0], 4096)
        while self._inbox:
            self._inbox.popleft()()

    def _run(self, delivery: Delivery, hand_back_at: float, submission: _Submission) -> None:
        try:
            channel = _PushChannel(self, delivery, submission)
            message = handover.decode(delivery, channel)
            message.properties[PUSH_UNTIL] = hand_back_at
            channel.message = message
            handover.hand_over(message, lambda m: self._receive(delivery, m, submission))
        except MalformedMessage as exc:
            reason = handover.why_refused(exc)
            logger.error("pushed message %s is %s", delivery.message_id, reason)
            submission.settle(self.dead_letter(deceased(delivery, Death.refused(exc)), reason))
        except Exception:
            logger.exception("pushed message %s could not be handed over", delivery.message_id)
        finally:
            submission.handed_over()

    def _receive(self, delivery: Delivery, message: Message, submission: _Submission) -> None:
        assert self._consumer is not None
        wait = self._consumer.wait(message)
        if wait:
            priority = min(max(int(message.properties["priority"] or 0), 0), 9)
            submission.settle(self.postpone(replace(delivery, priority=priority), wait))
        else:
            self._consumer.receive(message, submission)

    def dead_letter(self, delivery: Delivery, reason: str) -> Settlement:
        """Dead-letter a message; NACKED if that fails."""
        self._reasons.append((delivery.ack_id, reason))
        try:
            self.broker.bury(delivery, reason)
        except BrokerError as exc:
            logger.error("could not keep message %s: %s", delivery.message_id, exc)
            return Settlement.NACKED
        return Settlement.DEAD_LETTERED

    def why_dead(self, delivery: Delivery) -> str:
        """Why the message was dead-lettered lately; "" if it wasn't."""
        return dict(self._reasons).get(delivery.ack_id, "")

    def postpone(self, delivery: Delivery, seconds: float, ttl: float | None = None) -> Settlement:
        """Publish a delayed copy of a message that must wait; NACKED if that fails."""
        message = OutgoingMessage(
            delivery.data, delivery.attributes, delivery.priority, delay=seconds, ttl=ttl
        )
        try:
            self.broker.publish("", delivery.queue, message)
        except BrokerError as exc:
            logger.error("could not postpone message %s: %s", delivery.message_id, exc)
            return Settlement.NACKED
        return Settlement.ACKED

    # --- its end ------------------------------------------------------------------------------

    def alive(self) -> bool:
        """Whether jobs can run: the loop is alive, and the pool has its processes."""
        if not self._thread.is_alive() or self._pool is None:
            return False
        if self._pool_name != "solo" and time.monotonic() - self._ticked_at > _STUCK_AFTER:
            return False
        return pool_lives(self._pool)

    def stop(self, patience: float) -> None:
        """End the pool; after ``patience`` seconds by force. Blocks."""
        if self._wake_pipe is None:
            return
        signals.worker_shutting_down.send(
            sender=self.hostname, sig="SIGTERM", how="Warm", exitcode=0
        )
        self._stopping = True
        self._wake()
        start = time.monotonic()
        self._thread.join(patience)
        logger.debug("the pool took %.1f s to end", time.monotonic() - start)
        if self._thread.is_alive():
            logger.warning(
                "the pool has not ended: its processes are killed, and any job with them"
            )
            for process in pool_processes(self._pool):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
        signals.worker_shutdown.send(sender=self)


class _Submission:
    """A pushed message being handled. Celery's ack or reject settles it; it ends with its task."""

    def __init__(self) -> None:
        self.future: Future[Settlement] = Future()
        self._lock = forks.lock()
        self._settlement: Settlement | None = None
        #: How many parts have still to end: the hand-over itself, and the pool's call.
        self._open = 1

    def settle(self, settlement: Settlement) -> None:
        self._settlement = settlement

    def enter_pool(self) -> None:
        with self._lock:
            self._open += 1

    def handed_over(self) -> None:
        self._close_one()

    def left_pool(self) -> None:
        self._close_one()

    def _close_one(self) -> None:
        with self._lock:
            self._open -= 1
            over = self._open == 0 and not self.future.done()
        if over:
            # Not acked and not rejected: Celery leaves the message to its lease.
            settlement = self._settlement or Settlement.NACKED
            emit(settlement.text, task_id="")
            self.future.set_result(settlement)


class _PushChannel:
    """The message's channel: acks and rejects settle the submission."""

    no_ack_consumers = None

    def __init__(self, executor: Executor, delivery: Delivery, submission: _Submission) -> None:
        self._executor = executor
        self._delivery = delivery
        self._submission = submission
        self.authority = integration(executor.app).authority
        self.message: Message | None = None

    def decode_body(self, body: Any, encoding: str | None = None) -> Any:
        return body

    def begin(self, delivery_tag: str) -> None:
        """Nothing to record: Pub/Sub counts the deliveries itself."""

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        self._submission.settle(Settlement.ACKED)

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        settlement = Settlement.of_reject(requeue)
        if settlement is Settlement.DEAD_LETTERED:
            assert self.message is not None
            described = envelope.described(
                self._delivery, self.message.headers, self.message.source
            )
            settlement = self._executor.dead_letter(
                deceased(described, self.message.cause), self.message.reason
            )
        self._submission.settle(settlement)


class _WatchedPool:
    """The pool as requests see it; notices when a submission's call has ended."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        #: The submission that is being handed over; only one thread does so.
        self.current: _Submission | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def apply_async(self, *args: Any, **options: Any) -> Any:
        submission = self.current
        assert submission is not None
        submission.enter_pool()
        once = _once(submission.left_pool)
        options["callback"] = _then(options["callback"], lambda *_, **__: once())
        # A hard time limit is announced twice, and the job is only settled by the second.
        options["error_callback"] = _then(
            options["error_callback"], lambda info, **_: None if _timed_out(info) else once()
        )
        options["timeout_callback"] = _then(
            options["timeout_callback"], lambda soft, **_: None if soft else once()
        )
        try:
            result = self._pool.apply_async(*args, **options)
        except BaseException:
            once()
            raise
        if result is None and not self._pool.active:
            once()  # it is closing, and took nothing
        return result


class _PushConsumer(Consumer):
    """Celery's consumer without a connection: its strategies, and its handling of invalid messages."""

    def __init__(self, app: Any, pool: Any, hostname: str) -> None:
        # Not super(): that would prepare to connect and to consume.
        self.app = app
        self.hostname = hostname
        self.pool = _WatchedPool(pool)
        self.hub = None
        self.controller = SimpleNamespace(app=app, state=state, hostname=hostname, consumer=self)
        self.connection_errors = self.channel_errors = ()
        self.event_dispatcher = _dispatcher(app, hostname)
        self.on_task_request = self._execute
        self.on_task_message: set[Any] = set()
        self.timer = _NoTimer()
        self.qos = SimpleNamespace(
            increment_eventually=lambda *_: None, decrement_eventually=lambda *_: None
        )
        self._maximum_prefetch_restored = True
        self.disable_rate_limits = True  # wait() applies them, before a place in the pool is taken
        self.task_buckets: Any = defaultdict(lambda: None)
        self.reset_rate_limits()
        self._accept = prepare_accept_content(app.conf.accept_content)
        self.strategies = self.Strategies()
        self.update_strategies()
        self._handle = self.create_task_handler()

    def wait(self, message: Message) -> float:
        """Seconds until the message may run: its ETA is ahead, or its rate limit is used up."""
        eta = message.headers.get("eta")
        if isinstance(eta, str):
            left = _seconds_until(eta)
            if left > _ETA_IS_NOW:
                return left
        name = message.headers.get("task")
        bucket = self.task_buckets[name] if isinstance(name, str) else None
        if bucket is not None and not bucket.can_consume(1):
            return float(bucket.expected_time(1))
        return 0.0

    def receive(self, message: Message, submission: _Submission) -> None:
        # As Kombu's consumer does before it calls its callbacks.
        message.accept = self._accept
        if message.errors:
            message.ack()  # undecodable, so it goes to the dead letter
            return
        self.pool.current = submission
        self._handle(message)

    def call_soon(self, p: Any, *args: Any, **kwargs: Any) -> Any:
        """Call it at once: acks are answers, and any thread may give them."""
        return p(*args, **kwargs)

    call_soon_ack = call_soon

    def _execute(self, request: Any) -> None:
        with contextlib.suppress(TaskRevokedError):  # announced and acked already
            request.execute_using_pool(self.pool)


class _NoTimer:
    """An ETA that gets here has passed: run at once."""

    def call_at(self, eta: float, function: Any, args: Any = (), **kwargs: Any) -> None:
        function(*args)

    def cancel(self, entry: Any) -> None: ...


def _dispatcher(app: Any, hostname: str) -> Any:
    """Sends worker events, where the app wants them."""
    if not app.conf.worker_send_task_events:
        return None
    return app.events.Dispatcher(app.connection_for_write(), hostname=hostname)


def _seconds_until(eta: str) -> float:
    try:
        when = maybe_iso8601(eta)
    except ValueError:
        return 0.0  # Celery refuses the task, with its own message
    if when is None:
        return 0.0
    if when.tzinfo is None:
        when = when.replace(tzinfo=timezone.utc)
    return float((when - datetime.now(timezone.utc)).total_seconds())


def _timed_out(info: Any) -> bool:
    exc = info.exception
    return isinstance(getattr(exc, "exc", exc), TimeLimitExceeded)


def _then(first: Callable[..., Any], then: Callable[..., None]) -> Callable[..., Any]:
    def both(*args: Any, **kwargs: Any) -> Any:
        try:
            return first(*args, **kwargs)
        finally:
            then(*args, **kwargs)

    return both


def _once(function: Callable[[], None]) -> Callable[[], None]:
    left = [function]

    def call() -> None:
        try:
            last = left.pop()
        except IndexError:
            return  # called before, maybe by another thread
        last()

    return call
