"""Names of this package's message headers, besides Celery's own (docs/wire.md)."""

from __future__ import annotations

#: Prefix of all of them.
PREFIX = "gwi_"

TENANT_HEADER = "gwi_tenant"
RUN_HEADER = "gwi_run"
#: The idempotency key given with the call.
KEY_HEADER = "gwi_key"
#: The nominal time at which beat sends this call, in UTC as ISO 8601 has it.
DUE_HEADER = "gwi_due"
#: Seconds since the epoch.
DEADLINE_HEADER = "gwi_deadline"
#: Most retries of this one job, whatever its task says.
MAX_RETRIES_HEADER = "gwi_max_retries"
#: Times this message has waited for a lock or a limit.
HOLDS_HEADER = "gwi_holds"
#: {"generation": int, "from_step": str | None, "task_id": str | None}; task_id names a job that has
#: neither a run nor a key.
REPLAY_HEADER = "gwi_replay"
#: The message was redriven from a dead letter. Set on arrival, from the broker's attribute.
REDRIVE_HEADER = "gwi_redrive"

#: {name: value}, both texts: labels by which the job can be found.
LABELS_HEADER = "gwi_labels"
#: Digest of the payload that the job began with, where a retry has changed its arguments.
PAYLOAD_HEADER = "gwi_payload"

#: A property, not a header, so that no copy carries it: the message was pushed, and its job is handed
#: back from this monotonic time (of this machine) on. Set by the push endpoint only.
PUSH_UNTIL = "gwi_push_until"

#: Likewise: names the attempt that a worker makes of a message, so that it can free its lock. Set by
#: the worker for each message it starts.
ATTEMPT_PROPERTY = "gwi_attempt"

#: Not a header: the remote control command that asks workers what they handed back until it is due.
DELAYED_COMMAND = "gwi_delayed"
#: Likewise: the command by which an operator has such a message delivered now, or dropped.
SETTLE_COMMAND = "gwi_settle_delayed"
#: The first part of what an operator's seal of that command covers.
SEALED_AS = "delayed"
