"""Names of the headers that our messages carry beside Celery's own (docs/wire.md)."""

from __future__ import annotations

TENANT_HEADER = "gwi_tenant"
RUN_HEADER = "gwi_run"
#: The idempotency key given with the call.
KEY_HEADER = "gwi_key"
#: Seconds since the epoch.
DEADLINE_HEADER = "gwi_deadline"
#: Retries this one job may take, whatever its task says.
MAX_RETRIES_HEADER = "gwi_max_retries"
#: Times this message has waited for a lock.
HOLDS_HEADER = "gwi_holds"
#: {"generation": int, "from_step": str | None}
REPLAY_HEADER = "gwi_replay"
#: Set on arrival from the broker's attribute: the message was taken back out of a dead letter.
REDRIVE_HEADER = "gwi_redrive"

#: A property, not a header, so that no copy carries it: the message came by push, and its job is to
#: be handed back from this monotonic time (of this machine) on. Set by the push endpoint only.
PUSH_UNTIL = "gwi_push_until"

#: Likewise: names the attempt that a worker makes of a message, so that it can free its lock. Set by
#: the worker for each message it starts.
ATTEMPT_PROPERTY = "gwi_attempt"
