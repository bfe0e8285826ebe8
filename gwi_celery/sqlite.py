"""One SQLite file, used safely by many processes and threads.

Both embedded backends (broker and store) use it. It handles what is easy to get wrong:

- Connections are pooled per process. One that was inherited through a fork is put aside unused and
  never closed: its locks and its WAL belong to the parent.
- Writes start with BEGIN IMMEDIATE, so that a transaction never fails half-way because of a lock.
- A lock is waited for in short slices, so that a worker can be told to stop meanwhile.
- WAL mode lets readers go on beside a writer. ``synchronous=FULL`` makes a commit survive a power
  cut, at the price of an fsync; ``NORMAL`` survives the death of any process, not of the machine.
- A file that is deleted or replaced while in use is noticed before anything is read or written: SQLite
  still has the old file open, while the path leads to another database or to none.
- SQLite's errors are mapped to the caller's, each with what to do next.

See https://www.sqlite.org/howtocorrupt.html#_carrying_an_open_database_across_a_fork_ and
https://www.sqlite.org/wal.html.
"""

from __future__ import annotations

import os
import sqlite3
import time
import weakref
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NoReturn
from urllib.parse import quote

from gwi_celery import folder, forks, shield

#: Seconds to wait for another process's write transaction before giving up.
BUSY_TIMEOUT = 10.0
#: Seconds of that for one statement inside SQLite, where neither a signal's handler nor another greenlet
#: can run; and seconds between two statements, when they can.
_SLICE, _BETWEEN = 0.1, 0.005

#: Bytes to which a larger write-ahead log is cut once it was written back.
_WAL_LIMIT = 4 * 1024 * 1024
#: Free pages (of 4 KB) that a file keeps, and those given back in one go.
_KEPT_PAGES, _VACUUMED = 256, 500
#: Statements that begin a transaction, after which none of its statements can meet another's lock. A
#: deferred BEGIN takes its snapshot only when something is read.
_READ = ("BEGIN", "SELECT 1 FROM sqlite_master LIMIT 1")
_WRITE = ("BEGIN IMMEDIATE",)
#: PRAGMA auto_vacuum: only on request.
_INCREMENTAL = 2

#: Connections of a parent process. Kept for ever: closing them here would be wrong.
_inherited: list[sqlite3.Connection] = []
_databases: weakref.WeakSet[Database] = weakref.WeakSet()


class Database:
    """One SQLite database: a file, or memory when ``path`` is None.

    Args:
        path: The file; its folder is created if needed. None: private memory of this process.
        kind: For messages, "broker" or "store".
        schema: Statements that create the tables, run once in an empty database.
        application_id: Marks a file as ours (SQLite's PRAGMA application_id).
        version: The schema's version (PRAGMA user_version).
        migrations: Version -> statements that upgrade it to the next, in place. A file of an older
            version is upgraded when it is opened.
        unavailable: Error class for temporary failures (locked, disk full).
        unusable: Error class for permanent ones (not a database, read-only, other version).
    """

    def __init__(
        self,
        path: Path | None,
        *,
        kind: str,
        schema: str,
        application_id: int,
        version: int,
        unavailable: type[Exception],
        unusable: type[Exception],
        migrations: Mapping[int, str] | None = None,
    ) -> None:
        self.path = path
        self._kind = kind
        self._schema = schema
        self._application_id = application_id
        self._version = version
        self._migrations = migrations or {}
        self._unavailable = unavailable
        self._unusable = unusable
        self._pool: list[sqlite3.Connection] = []
        #: Every open connection of this process, so that a fork can put all of them aside.
        self._open_connections: list[sqlite3.Connection] = []
        self._lock = forks.lock()
        #: Memory has one connection for all threads: it *is* the database.
        self._memory: sqlite3.Connection | None = None
        self._memory_lock = forks.rlock()
        self._orphaned = False
        self._closed = False
        #: Device and inode of the file since its first opening, for this process and its forks.
        self._identity: tuple[int, int] | None = None
        self._finalizer = weakref.finalize(self, _close_all, self._open_connections, os.getpid())
        _databases.add(self)

    @property
    def where(self) -> str:
        return str(self.path) if self.path is not None else "memory"

    def read(self) -> Transaction:
        """A connection in one consistent read snapshot."""
        return Transaction(self, _READ, None)

    def write(self, *, durable: bool = True) -> Transaction:
        """A connection in one write transaction: committed at the end, rolled back on any error.

        ``durable=False`` is for what may be lost in a power cut without breaking a promise.
        """
        return Transaction(self, _WRITE, "FULL" if durable else "NORMAL")

    def check_place(self) -> None:
        """Raise the ``unusable`` error if the file is gone or was replaced.

        Each transaction calls it at its beginning; it costs a microsecond. There is nothing to check
        before the first one, or in memory.
        """
        if self.path is None or self._identity is None:
            return
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            raise self._displaced("was deleted") from None
        except OSError as exc:
            raise self._unavailable(
                f"the {self._kind} at {self.where} can't be looked at ({exc.strerror}): try again"
            ) from exc
        if (found.st_dev, found.st_ino) != self._identity:
            raise self._displaced("was replaced by another file")

    def _displaced(self, how: str) -> Exception:
        return self._unusable(
            f"the {self._kind} at {self.where} {how} while process {os.getpid()} was using it; nothing "
            "more is read from or written to it. Restart every process that uses this folder: they "
            "begin with what is there then"
        )

    def close(self) -> None:
        """Close this process's connections. Safe to call twice; a later use opens anew."""
        with self._lock:
            self._identity = None
            pool, self._pool = self._pool, []
            for c in pool:
                self._open_connections.remove(c)
        for c in pool:
            c.close()
        with self._memory_lock:
            if self._memory is not None:
                with self._lock:
                    self._open_connections.remove(self._memory)
                self._memory.close()
                self._memory = None
                self._closed = True

    def shrink(self) -> bool:
        """Return some free pages to the file system; whether there may be more.

        Some are kept for later writes. A file created by 0.1 keeps its size, and its free pages are
        reused.
        """
        if self.path is None:
            return False
        with Transaction(self, (), None) as c:
            free, pages, mode = (
                int(_patiently(c.execute, f"PRAGMA {of}").fetchone()[0])
                for of in ("freelist_count", "page_count", "auto_vacuum")
            )
            surplus = free - max(_KEPT_PAGES, (pages - free) // 4)
            if mode != _INCREMENTAL or surplus <= 0:
                return False
            c.execute("PRAGMA synchronous=NORMAL")
            # execute() would take the first step only, which is one page.
            _patiently(c.executescript, f"PRAGMA incremental_vacuum({min(surplus, _VACUUMED)})")
            return surplus > _VACUUMED

    # --- connections --------------------------------------------------------------------------

    def _take(self) -> sqlite3.Connection:
        """A connection for the caller alone, until it is given back."""
        if self.path is None:
            self._memory_lock.acquire()
            try:
                return self._memory_connection()
            except BaseException:
                self._memory_lock.release()
                raise
        with self._lock:
            c = self._pool.pop() if self._pool else None
        return self._open() if c is None else c

    def _give_back(self, c: sqlite3.Connection) -> None:
        """Safe to call twice, as an exception from outside may come before the caller's next line."""
        if self.path is None:
            with suppress(RuntimeError):  # released already
                self._memory_lock.release()
            return
        with self._lock:
            if not c.in_transaction:
                if c not in self._pool:
                    self._pool.append(c)
                return
            self._open_connections.remove(c)
        c.close()  # it would lock out everyone else

    def _memory_connection(self) -> sqlite3.Connection:
        if self._orphaned:
            raise self._unusable(
                f"the memory {self._kind} lives in one process, and this is a fork of it: "
                "use a file (embedded:///path/to/folder), or a worker pool of threads (-P threads) "
                "or solo"
            )
        if self._closed:
            raise self._unusable(
                f"the memory {self._kind} was closed, and its contents are gone: open another one"
            )
        if self._memory is None:
            self._memory = self._open()
        return self._memory

    def _open(self) -> sqlite3.Connection:
        self.check_place()
        if self.path is not None and self._identity is None:
            self._make(self.path)
        with self._translated():
            c = sqlite3.connect(
                self._uri(),
                uri=True,
                timeout=_SLICE,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=256,
            )
            try:
                self._prepare(c)
            except BaseException:
                c.close()
                raise
            with self._lock:
                self._open_connections.append(c)
                if self.path is not None and self._identity is None:
                    found = os.lstat(self.path)
                    self._identity = found.st_dev, found.st_ino
            return c

    def _make(self, path: Path) -> None:
        try:
            folder.make(path.parent)
        except OSError as exc:
            raise self._unusable(
                f"can't make the folder {path.parent} for the {self._kind}: {exc.strerror}; "
                "name another one, or make it writable"
            ) from exc
        except folder.Refused as exc:
            raise self._unusable(f"the {self._kind} can't be used: {exc}") from exc
        try:
            folder.make_file(path)
        except OSError as exc:
            raise self._unusable(
                f"can't make the {self._kind} at {path} ({exc.strerror}): check that this user may "
                "write there"
            ) from exc
        except folder.Refused as exc:
            raise self._unusable(f"the {self._kind} can't be used: {exc}") from exc

    def _uri(self) -> str:
        """The file is created, if needed, at the first opening only: later it would be another one."""
        if self.path is None:
            return ":memory:"
        mode = "rwc" if self._identity is None else "rw"
        return f"file:{quote(os.fsencode(self.path))}?mode={mode}"

    def _prepare(self, c: sqlite3.Connection) -> None:
        c.row_factory = sqlite3.Row
        run = partial(_patiently, c.execute)
        if self.path is not None:
            run(f"PRAGMA auto_vacuum={_INCREMENTAL}")  # takes effect in an empty file only
            run("PRAGMA journal_mode=WAL").fetchone()
            run(f"PRAGMA journal_size_limit={_WAL_LIMIT}")
        run("PRAGMA temp_store=MEMORY")
        version = run("PRAGMA user_version").fetchone()[0]
        application = run("PRAGMA application_id").fetchone()[0]
        if version == self._version and application == self._application_id:
            return
        run("BEGIN IMMEDIATE")
        try:
            version = c.execute("PRAGMA user_version").fetchone()[0]
            application = c.execute("PRAGMA application_id").fetchone()[0]
            tables = c.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if application != self._application_id and tables:
                raise self._unusable(
                    f"{self.where} is a SQLite database, but not a gwi_celery {self._kind}: "
                    "name another folder, or move that file away"
                )
            older = range(version, self._version)
            if (
                tables
                and version != self._version
                and not (older and {*older} <= {*self._migrations})
            ):
                raise self._unusable(
                    f"{self.where} has {self._kind} schema version {version}, and this release "
                    f"reads version {self._version}: use the release that wrote it, or another folder"
                )
            steps = [self._migrations[n] for n in older] if tables else [self._schema]
            for statement in filter(str.strip, ";".join(steps).split(";")):
                c.execute(statement)
            c.execute(f"PRAGMA application_id={self._application_id}")
            c.execute(f"PRAGMA user_version={self._version}")
            c.execute("COMMIT")
        except BaseException:
            _rollback(c)
            raise

    # --- errors -------------------------------------------------------------------------------

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            self._raise(exc)

    def _raise(self, exc: sqlite3.Error) -> NoReturn:
        text = str(exc)
        place = f"the {self._kind} at {self.where}"
        if "not a database" in text or "malformed" in text:
            raise self._unusable(
                f"{place} is not a SQLite database, or is damaged ({text}): "
                "move the file away, or name another folder"
            ) from exc
        if "readonly" in text or "read-only" in text:
            raise self._unusable(
                f"{place} is read-only ({text}): make the file and its folder writable for this user"
            ) from exc
        if "unable to open" in text:
            raise self._unusable(
                f"can't open {place} ({text}): check that its folder exists and that this user may "
                "write there"
            ) from exc
        if "full" in text:
            raise self._unavailable(
                f"no space left for {place} ({text}): nothing was written; free some space and "
                "try again"
            ) from exc
        if "locked" in text or "busy" in text:
            raise self._unavailable(
                f"{place} was locked by another process for {BUSY_TIMEOUT:g} s: try again"
            ) from exc
        if isinstance(exc, sqlite3.OperationalError) and not text.startswith(("no such", "near ")):
            raise self._unavailable(f"{place} failed ({text}): try again") from exc
        raise exc

    # --- fork ---------------------------------------------------------------------------------

    def _after_fork_in_child(self) -> None:
        _inherited.extend(self._open_connections)
        self._open_connections = []
        self._finalizer.detach()
        self._finalizer = weakref.finalize(self, _close_all, self._open_connections, os.getpid())
        self._pool = []
        if self._memory is not None:
            self._memory = None
            self._orphaned = True


def displaced(folders: Container[Path]) -> str | None:
    """Says which of this process's databases in these folders was deleted or replaced; None if none."""
    for database in list(_databases):
        if database.path is None or database.path.parent not in folders:
            continue
        try:
            database.check_place()
        except database._unusable as exc:
            return str(exc)
        except database._unavailable:
            continue
    return None


class Transaction:
    """Context manager: the connection, in a transaction that ends with the block, whatever happens.

    A class rather than a generator: an exception from outside can't get between its two halves.
    """

    _c: sqlite3.Connection | None = None

    def __init__(self, database: Database, begin: tuple[str, ...], synchronous: str | None) -> None:
        self._database = database
        #: Empty: each statement is a transaction of its own.
        self._begin = begin
        #: SQLite's ``synchronous`` for a write; None: a read, which is rolled back.
        self._synchronous = synchronous
        self._pid = os.getpid()
        self._section = shield.section()

    def __enter__(self) -> sqlite3.Connection:
        self._section.__enter__()
        try:
            self._c = c = self._database._take()
            if self._synchronous is not None:
                c.execute(f"PRAGMA synchronous={self._synchronous}")
            for statement in self._begin:
                _patiently(c.execute, statement)
            self._database.check_place()
            return c
        except BaseException as exc:
            self._leave(exc)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            if exc is None and self._synchronous is not None and self._c is not None:
                self._c.execute("COMMIT")
        except BaseException as failed:
            exc = failed
            raise
        finally:
            self._leave(exc)

    def __del__(self) -> None:
        self._end()  # if it was interrupted between the methods above

    def _leave(self, exc: BaseException | None) -> None:
        """End the transaction and translate SQLite's errors. An interrupted part is done again."""
        try:
            try:
                self._end()
            finally:
                self._end()
        finally:
            self._section.__exit__(None, None, None)
        if isinstance(exc, sqlite3.Error):
            self._database._raise(exc)

    def _end(self) -> None:
        c = self._c
        if c is None or self._pid != os.getpid():  # forked inside: it is the parent's
            return
        _rollback(c)
        self._database._give_back(c)
        self._c = None


def _close_all(connections: list[sqlite3.Connection], pid: int) -> None:
    """Close an abandoned database's connections, in the process that opened them."""
    if os.getpid() == pid:
        while connections:
            connections.pop().close()


def _rollback(c: sqlite3.Connection) -> None:
    if c.in_transaction:
        with suppress(sqlite3.Error):  # a full disk rolls back by itself
            c.execute("ROLLBACK")


def _patiently(execute: Callable[[str], sqlite3.Cursor], statement: str) -> sqlite3.Cursor:
    """Wait up to ``BUSY_TIMEOUT`` for another process's lock, in slices."""
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            return execute(statement)
        except sqlite3.OperationalError as exc:
            if "locked" not in str(exc) or time.monotonic() > deadline:
                raise
            time.sleep(_BETWEEN)


def _reset_databases() -> None:
    for database in list(_databases):
        database._after_fork_in_child()


os.register_at_fork(after_in_child=_reset_databases)
