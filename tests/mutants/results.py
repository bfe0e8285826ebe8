"""Results and chords on Firestore, and what both backends share."""

from tests.mutants.mutant import Mutant

RESULTS = [
    Mutant(
        "a SUCCESS is overwritten",
        "gwi_celery/stores/firestore/results.py",
        "self.settled = stays or self.taken or stored.nonce == self._nonce",
        "self.settled = stored.nonce == self._nonce",
        "contract/test_backend.py::test_a_success_is_never_overwritten",
    ),
    Mutant(
        "a result is written over whatever is there",
        "gwi_celery/stores/firestore/results.py",
        "documents.replace(self.name, self.fields, self._version)",
        "Write(self.name, self.fields)",
        "contract/test_backend.py::test_a_success_is_never_overwritten",
    ),
    Mutant(
        "a result that has expired is answered",
        "gwi_celery/backends/firestore/values.py",
        "if result.expired(now):",
        "if result.expired(0):",
        "contract/test_backend.py::test_what_has_expired_is_gone",
    ),
    Mutant(
        "a chord's part counts each time it returns",
        "gwi_celery/backends/firestore/chords.py",
        "create = documents.create(part_name(name, part), self._chord_fields(id=part))",
        "create = Write(part_name(name, part), self._chord_fields(id=part))",
        "contract/test_backend.py::test_a_part_counts_once_and_the_body_is_sent_once",
    ),
    Mutant(
        "the size of a chord is forgotten",
        "gwi_celery/backends/firestore/chords.py",
        '"data.size"])\n        self.client.commit_surely([write], tries=TRIES)',
        '"data.size"])',
        "contract/test_backend.py::test_a_header_is_sent_while_a_generator_makes_it",
    ),
    Mutant(
        "a chord's parts are not renewed",
        "gwi_celery/backends/firestore/chords.py",
        "                self._renew(group_id, name)",
        "                pass",
        "contract/test_backend.py::test_a_chord_lives_as_long_as_its_parts_return",
    ),
    Mutant(
        "an end is overwritten by what is none",
        "gwi_celery/stores/firestore/results.py",
        "over = stored.state == _SUCCESS or (stored.state in _ENDS and self._state not in _ENDS)",
        "over = stored.state == _SUCCESS",
        "contract/test_backend.py::test_an_end_is_overwritten_by_an_end_only",
    ),
    Mutant(
        "a body that can't be called is no failure",
        "gwi_celery/backends/base.py",
        '        except Exception as exc:\n            self._fail_body(body, f"Callback error',
        '        except Exception as exc:\n            return\n            self._fail_body(body, f"Callback error',
        "contract/test_backend.py::test_a_body_that_can_not_be_called_fails",
    ),
    Mutant(
        "a body's failure is not stored",
        "gwi_celery/backends/base.py",
        "            self.chord_error_from_stack(body, exc)",
        "            pass",
        "contract/test_backend.py::test_a_body_that_can_not_be_called_fails",
    ),
    Mutant(
        "what can't be stored is swallowed",
        "gwi_celery/backends/results.py",
        "                raise Reject(why, requeue=True) from exc",
        "                return None",
        "contract/test_unstorable.py::test_whatever_the_backend_raises_the_message_is_redelivered",
    ),
    Mutant(
        "what can't be stored ends a solo worker",
        "gwi_celery/worker/tracer.py",
        "        except Reject as exc:\n            reason, requeue",
        "        except Reject as exc:\n            raise\n            reason, requeue",
        "contract/test_unstorable.py",
    ),
    Mutant(
        "a result that went with its outcome is written once more",
        "gwi_celery/stores/firestore/holder.py",
        'data["result_of"] = put_text(stored_result.task_id)',
        "pass",
        "firestore/test_backend.py::test_what_duplicates_cost",
    ),
    Mutant(
        "the object of a result that stays is deleted",
        "gwi_celery/stores/firestore/results.py",
        "        if not self.settled:\n            self._replaced = stored.blob",
        "        self._replaced = stored.blob",
        "firestore/test_objects.py::test_a_result_that_stays_keeps_its_object",
    ),
]
