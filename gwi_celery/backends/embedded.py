"""Celery's results in the embedded store's file: ``result_backend = "embedded:///path/to/folder"``.

What it adds to Celery's key-value backends: a chord counts each part once however often its message
is delivered again, and its body is sent at least once; a result past its ``result_expires`` counts
as gone when read; and a SUCCESS is never overwritten, decided in the same transaction.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any

from celery import states
from celery.backends.base import KeyValueStoreBackend
from celery.canvas import maybe_signature
from celery.exceptions import BackendStoreError, ChordError, Reject, TimeoutError
from celery.result import GroupResult, allow_join_result
from kombu.exceptions import OperationalError
from kombu.utils.encoding import bytes_to_str

from gwi_celery import config
from gwi_celery.errors import StoreError, StoreUnavailable
from gwi_celery.stores.sqlite import SqliteStore, memory_store
from gwi_celery.transport.embedded import OPTIONS

logger = logging.getLogger(__name__)

#: Pauses between looks at a result that isn't there yet, seconds: short at first, then longer.
_FIRST_LOOK, _LONGEST_LOOK = 0.002, 0.05

#: Stored results between two sweeps of what has expired.
_SWEEP_EVERY = 1000


class EmbeddedBackend(KeyValueStoreBackend):
    supports_autoexpire = True
    supports_native_join = True
    persistent = True
    key_t = bytes_to_str
    always_retry: bool

    def __init__(self, app: Any, url: str | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("expires_type", int)
        super().__init__(app=app, url=url, **kwargs)
        if not self.always_retry:
            # A file that another process has locked for long is worth some more tries.
            self.always_retry, self.max_retries = True, 5
        parsed = config.parse_embedded_url(url or "embedded://", OPTIONS)
        store = memory_store(parsed.memory) if parsed.folder is None else SqliteStore(parsed.folder)
        self._db = store.database
        self._stored = 0

    def as_uri(self, include_password: bool = False) -> str:
        return self.url or "embedded://"

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        return isinstance(exc, StoreUnavailable)

    # --- the key-value verbs ------------------------------------------------------------------

    def get(self, key: str) -> Any:
        with self._db.read() as c:
            row = c.execute(
                "SELECT meta FROM results WHERE task_id = ? AND (expires IS NULL OR expires > ?)",
                (key, time.time()),
            ).fetchone()
        return None if row is None else row["meta"]

    def mget(self, keys: Iterable[str]) -> list[Any]:
        return [self.get(key) for key in keys]

    def set(self, key: str, value: Any) -> None:
        self._put(key, value, None, self.expires)

    def delete(self, key: str) -> None:
        with self._db.write() as c:
            c.execute("DELETE FROM results WHERE task_id = ?", (key,))

    def expire(self, key: str, value: Any) -> None:
        with self._db.write() as c:
            c.execute(
                "UPDATE results SET expires = ? WHERE task_id = ?",
                (time.time() + value if value else None, key),
            )

    def _put(self, key: str, value: Any, state: str | None, expires: Any) -> None:
        now = time.time()
        # Not synced: a power cut may take the result's copy, never the outcome of a reliable job,
        # which answers the next call.
        with self._db.write(durable=False) as c:
            c.execute(
                """
                INSERT INTO results (task_id, status, meta, updated, expires)
                VALUES (?, ?, ?, ?, ?)
                ON CONFLICT (task_id) DO UPDATE SET
                    status = excluded.status, meta = excluded.meta,
                    updated = excluded.updated, expires = excluded.expires
                WHERE results.status IS NOT 'SUCCESS' OR results.expires <= excluded.updated
                """,
                (key, state, value, now, now + expires if expires else None),
            )
        self._stored += 1
        if self._stored % _SWEEP_EVERY == 0:
            self.cleanup()

    # --- results ------------------------------------------------------------------------------

    def store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        try:
            return super().store_result(
                task_id, result, state, traceback=traceback, request=request, **kwargs
            )
        except (StoreError, BackendStoreError) as exc:
            if request is not None and self.app.current_worker_task is not None:
                # Acked now, the result would be lost. Delivered again, a reliable job answers
                # from its record.
                raise Reject(exc, requeue=True) from exc
            raise

    def _store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        meta = self._get_result_meta(
            result=result, state=state, traceback=traceback, request=request
        )
        meta["task_id"] = bytes_to_str(task_id)
        self._put(self.get_key_for_task(task_id), self.encode(meta), state, self.expires)
        return result

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_interval: Any = None,
        **kwargs: Any,
    ) -> Any:
        self._ensure_not_eager()
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = _FIRST_LOOK
        while True:
            meta = self.get_task_meta(task_id)
            if meta["status"] in states.READY_STATES:
                return meta
            if on_interval:
                on_interval()
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError("The operation timed out.")
            time.sleep(min(pause, interval or pause))
            pause = min(pause * 1.5, _LONGEST_LOOK)

    def get_many(self, task_ids: Any, timeout: Any = None, interval: Any = 0.5, **kw: Any) -> Any:
        return super().get_many(
            task_ids, timeout=timeout, interval=min(interval or _LONGEST_LOOK, _LONGEST_LOOK), **kw
        )

    def cleanup(self) -> None:
        """Delete what has expired."""
        now = time.time()
        with self._db.write(durable=False) as c:
            c.execute("DELETE FROM results WHERE expires <= ?", (now,))
            c.execute(
                "DELETE FROM chord_parts WHERE group_id IN "
                "(SELECT group_id FROM chords WHERE expires <= ?)",
                (now,),
            )
            c.execute("DELETE FROM chords WHERE expires <= ?", (now,))

    # --- chords -------------------------------------------------------------------------------

    def apply_chord(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:
        self.ensure_chords_allowed()
        self.app.GroupResult(*header_result_args).save(backend=self)

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        """Count the part, once; with the last one, send the body.

        It is marked as sent only afterwards: a worker killed in between leaves its message to be
        delivered again, which comes here once more and sends it.
        """
        group_id = request.group
        if not group_id:
            return
        counted, sent = self._count_part(group_id, request.id)
        if sent:
            return
        group = GroupResult.restore(group_id, backend=self)
        body = maybe_signature(request.chord, app=self.app)
        size = request.chord.get("chord_size")
        if size is None and group is not None:
            size = len(group)
        if group is None:
            self.chord_error_from_stack(body, ChordError(f"GroupResult {group_id} is gone"))
        elif counted < size:
            return
        else:
            self._send_body(group, body)
        with self._db.write() as c:
            c.execute(
                "UPDATE chords SET dispatched = ? WHERE group_id = ?", (time.time(), group_id)
            )

    def _count_part(self, group_id: str, part: str) -> tuple[int, bool]:
        now = time.time()
        expires = now + self.expires if self.expires else None
        with self._db.write() as c:
            c.execute("INSERT OR IGNORE INTO chord_parts VALUES (?, ?)", (group_id, part))
            c.execute("INSERT OR IGNORE INTO chords VALUES (?, NULL, ?)", (group_id, expires))
            row = c.execute(
                "SELECT dispatched, (SELECT count(*) FROM chord_parts WHERE group_id = ?) AS parts "
                "FROM chords WHERE group_id = ?",
                (group_id, group_id),
            ).fetchone()
        return row["parts"], row["dispatched"] is not None

    def _send_body(self, group: Any, body: Any) -> None:
        try:
            with allow_join_result():
                results = group.join_native(
                    timeout=self.app.conf.result_chord_join_timeout, propagate=True
                )
        except Exception as exc:
            culprit = next(group._failed_join_report(), None)
            reason = repr(exc) if culprit is None else f"Dependency {culprit.id} raised {exc!r}"
            logger.warning("chord %s failed: %s", group.id, reason)
            error = ChordError(reason)
            error.__cause__ = exc
            self.chord_error_from_stack(body, error)
            return
        try:
            body.delay(results)
        except OperationalError as exc:
            # Not counted as sent: this part is delivered again, and tries again.
            raise Reject(exc, requeue=True) from exc
