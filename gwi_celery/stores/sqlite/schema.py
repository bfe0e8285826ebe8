"""The tables of a store's file: this store's, and the result backend's beside them."""

from __future__ import annotations

from typing import Final

#: Marks the file as a store of this package: "gwis" in ASCII.
APPLICATION_ID: Final = 0x67776973
VERSION: Final = 7

#: How many parts a chord has, if Celery has told, and how many joined it later.
_CHORD_SIZES: Final = """
CREATE TABLE chord_sizes (group_id TEXT PRIMARY KEY, size INTEGER, extra INTEGER NOT NULL);
"""

#: Actions of operators, and the key that proves who is an operator.
_OPERATORS: Final = """
CREATE TABLE operator_key (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), secret BLOB NOT NULL);
CREATE TABLE actions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, tenant BLOB, entry TEXT NOT NULL
);
"""

# Ids that users choose are BLOBs, because UTF-8 text can't encode a lone surrogate.
# The last four tables of _FIRST, and _CHORD_SIZES, are the result backend's; all others are the store's.
#: The tables that are unchanged since version 1.
_FIRST: Final = """
CREATE TABLE fence (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), last INTEGER NOT NULL);
INSERT INTO fence VALUES (1, 0);

CREATE TABLE locks (
    lock_id TEXT PRIMARY KEY,
    tenant BLOB NOT NULL,
    scope BLOB NOT NULL,
    owner BLOB NOT NULL,
    nonce TEXT NOT NULL,
    token INTEGER NOT NULL,
    job_id TEXT NOT NULL,
    task BLOB NOT NULL,
    key BLOB NOT NULL,
    expires_at REAL NOT NULL
);
CREATE INDEX locks_by_tenant ON locks (tenant, token);
CREATE INDEX locks_by_expiry ON locks (expires_at);

CREATE TABLE checkpoints (
    job_id TEXT NOT NULL,
    name BLOB NOT NULL,
    kind TEXT NOT NULL,
    blob BLOB NOT NULL,
    version INTEGER NOT NULL,
    saved_at REAL NOT NULL,
    ordinal INTEGER NOT NULL,
    PRIMARY KEY (job_id, name)
);
CREATE UNIQUE INDEX checkpoints_in_order ON checkpoints (job_id, ordinal);

CREATE TABLE results (
    task_id TEXT PRIMARY KEY, status TEXT, meta BLOB, updated REAL, expires REAL
);
CREATE INDEX results_by_expiry ON results (expires);
CREATE TABLE groups (group_id TEXT PRIMARY KEY, meta BLOB, expires REAL);
CREATE INDEX groups_by_expiry ON groups (expires);
CREATE TABLE chord_parts (group_id TEXT, part TEXT, PRIMARY KEY (group_id, part));
CREATE TABLE chords (group_id TEXT PRIMARY KEY, dispatched REAL, expires REAL);
CREATE INDEX chords_by_expiry ON chords (expires);
"""

#: The columns that version 0.1 had, in its order. The outcome, which may be large, is the last one now.
_FORMER: Final = (
    "job_id, tenant, task, key, run_id, status, fingerprint, submission, failed, generation, attempt,"
    " crashes, fence, finished_fence, lock_id, result_ttl, created_at, updated_at, expires_at, outcome"
)
#: The indexes named ``newest`` are ordered by when a job was first recorded, which never changes, so that
#: a step writes to none of them. Those by ``updated_at`` serve :meth:`Store.list_jobs`.
_JOBS: Final = """
CREATE TABLE jobs (
    job_id TEXT PRIMARY KEY,
    tenant BLOB NOT NULL,
    task BLOB NOT NULL,
    key BLOB NOT NULL,
    run_id BLOB,
    status TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    submission BLOB NOT NULL,
    failed TEXT NOT NULL,
    generation INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    crashes INTEGER NOT NULL,
    fence INTEGER NOT NULL,
    finished_fence INTEGER,
    lock_id TEXT,
    lock_scope BLOB,
    result_ttl REAL NOT NULL,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    expires_at REAL,
    parent_id BLOB,
    error_type TEXT,
    error TEXT NOT NULL DEFAULT '',
    origin TEXT,
    history TEXT,
    outcome BLOB
);
CREATE INDEX jobs_by_tenant ON jobs (tenant, updated_at, job_id);
CREATE INDEX jobs_by_status ON jobs (tenant, status, updated_at, job_id);
CREATE INDEX jobs_by_run ON jobs (tenant, run_id, updated_at, job_id);
CREATE INDEX jobs_by_expiry ON jobs (expires_at) WHERE expires_at IS NOT NULL;

CREATE INDEX jobs_newest ON jobs (created_at, job_id);
CREATE INDEX jobs_newest_of_tenant ON jobs (tenant, created_at, job_id);
CREATE INDEX jobs_newest_of_task ON jobs (task, created_at, job_id);
CREATE INDEX jobs_newest_of_status ON jobs (status, created_at, job_id);
CREATE INDEX jobs_newest_of_run ON jobs (run_id, created_at, job_id) WHERE run_id IS NOT NULL;
CREATE INDEX jobs_newest_of_error ON jobs (error_type, created_at, job_id)
    WHERE error_type IS NOT NULL;
CREATE INDEX jobs_of_parent ON jobs (parent_id, created_at, job_id) WHERE parent_id IS NOT NULL;

CREATE TABLE terms (
    term TEXT NOT NULL,
    created_at REAL NOT NULL,
    job_id TEXT NOT NULL,
    PRIMARY KEY (term, created_at, job_id)
) WITHOUT ROWID;
CREATE INDEX terms_of_job ON terms (job_id);

CREATE TABLE envelopes (job_id TEXT PRIMARY KEY, blob BLOB NOT NULL);
"""

#: Cancelled tasks, whose calls may not begin.
_BARRED: Final = """
CREATE TABLE barred (
    tenant BLOB NOT NULL,
    task_id BLOB NOT NULL,
    reason BLOB NOT NULL,
    expires_at REAL NOT NULL,
    PRIMARY KEY (tenant, task_id)
) WITHOUT ROWID;
"""

#: Places of limits that are taken: by the lock with that token, or until ``free_at``; and what operators
#: have set.
_LIMITS: Final = """
CREATE TABLE places (
    limit_id TEXT NOT NULL,
    lock_id TEXT,
    token INTEGER NOT NULL,
    taken_at REAL NOT NULL,
    free_at REAL,
    about TEXT NOT NULL
);
CREATE INDEX places_of_limit ON places (limit_id, free_at);
CREATE TABLE limit_settings (limit_id TEXT PRIMARY KEY, setting TEXT NOT NULL);
"""

#: Dead letters of a broker that can't be searched, and the queues that are paused.
_QUEUES: Final = """
CREATE TABLE letters (
    id TEXT PRIMARY KEY,
    queue BLOB NOT NULL,
    reason BLOB NOT NULL,
    task BLOB NOT NULL,
    tenant BLOB NOT NULL,
    error BLOB NOT NULL,
    call BLOB NOT NULL,
    died_at REAL NOT NULL,
    expires_at REAL NOT NULL,
    kept_until REAL NOT NULL,
    ended INTEGER NOT NULL,
    entry TEXT NOT NULL
);
CREATE INDEX letters_newest ON letters (died_at, id) WHERE NOT ended;
CREATE INDEX letters_of_queue ON letters (queue, died_at, id) WHERE NOT ended;
CREATE INDEX letters_of_reason ON letters (reason, died_at, id) WHERE NOT ended;
CREATE INDEX letters_of_task ON letters (task, died_at, id) WHERE NOT ended;
CREATE INDEX letters_of_tenant ON letters (tenant, died_at, id) WHERE NOT ended;
CREATE INDEX letters_of_error ON letters (error, died_at, id) WHERE NOT ended;
CREATE INDEX letters_of_call ON letters (call, died_at, id) WHERE NOT ended;
CREATE INDEX letters_by_expiry ON letters (expires_at) WHERE NOT ended;
CREATE INDEX letters_kept ON letters (kept_until);
CREATE TABLE paused_queues (queue BLOB PRIMARY KEY) WITHOUT ROWID;
"""

#: Version -> the statements that make the next version of it.
MIGRATIONS: Final = {
    1: _CHORD_SIZES,
    2: _OPERATORS,
    3: f"""
ALTER TABLE jobs RENAME TO former_jobs;
DROP INDEX jobs_by_tenant;
DROP INDEX jobs_by_status;
DROP INDEX jobs_by_run;
DROP INDEX jobs_by_expiry;
{_JOBS};
INSERT INTO jobs ({_FORMER}, lock_scope)
    SELECT {_FORMER}, (SELECT scope FROM locks WHERE locks.lock_id = former_jobs.lock_id)
    FROM former_jobs;
DROP TABLE former_jobs;
INSERT INTO terms (term, created_at, job_id)
    SELECT '=' || CAST(submission AS TEXT), created_at, job_id FROM jobs
    WHERE length(submission) > 0 AND NOT instr(submission, x'2f');
""",  # noqa: S608 - constants
    4: _BARRED,
    5: _QUEUES,
    6: _LIMITS,
}
SCHEMA: Final = _FIRST + _CHORD_SIZES + _OPERATORS + _JOBS + _BARRED + _QUEUES + _LIMITS
