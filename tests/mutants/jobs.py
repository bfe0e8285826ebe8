"""The way of a job through its worker: handover, attempt, signals, ends."""

from tests.mutants.mutant import Mutant

HANDOVER = [
    Mutant(
        "what a message makes its handler raise ends the worker",
        "gwi_celery/transport/handover.py",
        "        settle_error(message, exc)\n\n",
        "        raise\n\n",
        "unit/transport/test_handover.py::test_what_is_raised_before_a_task_begins_is_the_messages_fault",
    ),
    Mutant(
        "a started message is given back uncounted",
        "gwi_celery/transport/channel.py",
        "if held.message.begun:",
        "if False:",
        "unit/transport/test_handover.py::test_a_channel_that_closes_counts_what_was_begun",
    ),
    Mutant(
        "a begun attempt isn't stated",
        "gwi_celery/brokers/embedded/deliveries.py",
        "messages.set_attempts(c, *_lease_of(delivery), delivery.attempts + 1)",
        "pass",
        "contract/test_attempts.py::test_a_lease_that_runs_out_counts_if_the_message_was_begun",
    ),
    Mutant(
        "an untouched message counts",
        "gwi_celery/brokers/embedded/deliveries.py",
        "messages.set_attempts(change.c, id, lease, delivery.attempts)",
        "pass",
        "contract/test_attempts.py::test_what_is_given_back_untouched_never_dies",
    ),
    Mutant(
        "a dead letter drops attributes",
        "gwi_celery/brokers/pubsub/wire.py",
        'more.setdefault("attributes", {})[key] = attributes.pop(key)',
        "attributes.pop(key)",
        "unit/brokers/pubsub/test_wire.py::test_too_many_attributes_of_somebody_else_are_merged",
    ),
    Mutant(
        "a call nested too deep is sent",
        "gwi_celery/transport/envelope.py",
        "and depth.too_deep(_uncompressed(body, headers)):",
        "and False:",
        "unit/transport/test_handover.py::test_a_call_that_is_nested_too_deep_is_refused",
    ),
    Mutant(
        "times may be anything",
        "gwi_celery/reliability/fields.py",
        "return isinstance(when, datetime) and 1 < when.year < 2200",
        "return True",
        "unit/worker/test_consumer.py::test_a_header_of_another_type_or_out_of_range_is_named",
    ),
]

WORKER = [
    Mutant(
        "a message is acked before its job",
        "gwi_celery/reliability/task.py",
        "            value = getattr(cls, attribute, needed)\n",
        "            value, cls.acks_late = needed, False\n",
        "unit/worker/test_request.py::test_a_message_is_acked_when_its_job_ends_and_not_when_it_begins",
    ),
    Mutant(
        "a task may switch the promise off",
        "gwi_celery/reliability/task.py",
        "            if value != needed:\n",
        "            if False:\n",
        "unit/reliability/test_task.py::test_a_task_that_switches_the_promise_off_is_refused_at_start",
    ),
    Mutant(
        "a job that waits for its lock is acked without a copy",
        "gwi_celery/reliability/settling.py",
        "            signature.apply_async(add_to_parent=False)",
        "            pass",
        "unit/reliability/test_waiting.py::test_while_it_waits_for_its_lock_it_is_pending",
    ),
    Mutant(
        "between claim and end a signal is raised at once",
        "gwi_celery/reliability/attempt.py",
        "        with shield.section():\n            return self._run(",
        "        with shield.window():\n            return self._run(",
        "unit/test_shield.py::test_a_soft_time_limit_at_any_line_leaves_one_outcome_and_no_lock[9]",
    ),
    Mutant(
        "a transaction that was left stays open",
        "gwi_celery/sqlite.py",
        "        _rollback(c)\n        self._database._give_back(c)",
        "        self._database._give_back(c)",
        "unit/test_shield.py::test_an_operation_of_the_store_may_be_left_at_any_line[claim-memory]",
    ),
    Mutant(
        "a limit that comes after the outcome is raised",
        "gwi_celery/shield.py",
        "        finally:\n            state.idle = True",
        "        finally:\n            state.idle = False",
        "unit/test_shield.py::test_a_soft_time_limit_at_any_line_leaves_one_outcome_and_no_lock[9]",
    ),
    Mutant(
        "under gevent a wait of the library's own is held back as well",
        "gwi_celery/shield.py",
        "        if self._gwi_within:",
        "        if False:",
        "unit/test_shield.py::test_a_sections_own_waits_end_in_time_under_gevent",
    ),
    Mutant(
        "a job past its hard time limit is left to its lease",
        "gwi_celery/worker/request.py",
        "            nonce=self._attempt,",
        "            nonce=None,",
        "unit/worker/test_request.py::test_a_job_past_its_hard_time_limit_has_failed",
    ),
    Mutant(
        "a killed attempt's lock is freed whoever holds it",
        "gwi_celery/worker/request.py",
        "owner_nonce=self._attempt",
        "owner_nonce=None",
        "unit/worker/test_request.py::test_a_lost_process_frees_the_lock_that_its_attempt_held",
    ),
    Mutant(
        "what was replaced answers None",
        "gwi_celery/reliability/outcome.py",
        "return blobs.load(blob[1:]) if blob[:1] == _REPLACED else None",
        "return None",
        "unit/reliability/test_ends.py::test_what_can_not_be_published_is_redelivered[replaces-None-1-ran3]",
    ),
    Mutant(
        "a job whose success can't be recorded has failed",
        "gwi_celery/reliability/attempt.py",
        "unrecorded = finishing and isinstance(exc, StoreError)",
        "unrecorded = False",
        "unit/reliability/test_ends.py::test_a_store_that_fails[returns-finish-unusable]",
    ),
    Mutant(
        "what can't be recorded is acked without a copy",
        "gwi_celery/reliability/attempt.py",
        "                self._settling.store_unavailable(exc)\n            case End.STOPPING",
        "                raise Ignore\n            case End.STOPPING",
        "unit/reliability/test_ends.py::test_a_store_that_fails[returns-finish-unusable]",
    ),
]

SERVICE = [
    Mutant(
        "one more runs than there are places",
        "gwi_celery/service/admission.py",
        "if self._free and not self._waiting:",
        "if not self._waiting:",
        "unit/service/test_push.py::test_who_waits_gets_the_place_in_turn",
    ),
    Mutant(
        "a place is never free again",
        "gwi_celery/service/admission.py",
        "loop.call_soon_threadsafe(self._give_place)",
        "None",
        "unit/service/test_push.py::test_who_waits_gets_the_place_in_turn",
    ),
    Mutant(
        "a service that stops takes more",
        "gwi_celery/service/admission.py",
        "        if self.draining:\n            raise _stopping()\n        await self._take_place()",
        "        await self._take_place()",
        "unit/service/test_push.py::test_at_the_end_who_waits_and_who_runs_too_long_are_told_to_come_again",
    ),
    Mutant(
        "a push is answered as acked while its job runs",
        "gwi_celery/service/admission.py",
        'raise Refused(503, "the job is still running: its message has to be redelivered")',
        "return Settlement.ACKED",
        "unit/service/test_push.py::test_a_job_that_outlives_its_request_keeps_its_place",
    ),
]
