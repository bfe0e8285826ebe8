"""Who may what: signatures, seals, tokens of pushes, tenants."""

from tests.mutants.mutant import Mutant

TRUST = [
    Mutant(
        "a signature by another secret is accepted",
        "gwi_celery/signing.py",
        "return secret is not None and hmac.compare_digest(",
        "return secret is not None or hmac.compare_digest(",
        "unit/worker/test_policy.py::test_with_keys_only_what_is_signed_is_taken",
    ),
    Mutant(
        "a message's signature is an operator's seal",
        "gwi_celery/signing.py",
        'made.update(purpose.encode("ascii") + b"\\0")',
        'made.update(b"\\0")',
        "unit/test_signing.py::test_the_last_key_signs_and_all_verify",
    ),
    Mutant(
        "what is not signed is taken though keys are set",
        "gwi_celery/authority.py",
        "if required or (required is None and self.keys):",
        "if required:",
        "unit/worker/test_policy.py::test_with_keys_only_what_is_signed_is_taken",
    ),
    Mutant(
        "whoever publishes may redrive",
        "gwi_celery/authority.py",
        "return keys.verify(MARK, json.dumps(what).encode(), seal)",
        "return True",
        "unit/test_authority.py",
    ),
    Mutant(
        "a push for another service is taken",
        "gwi_celery/service/auth.py",
        "                audience=self._audience,",
        '                audience=jwt.decode(token, options={"verify_signature": False}).get("aud"),',
        "unit/service/test_auth.py",
    ),
    Mutant(
        "a push by another account is taken",
        "gwi_celery/service/auth.py",
        'if claims.get("email") != self._service_account:',
        "if False:",
        "unit/service/test_auth.py",
    ),
    Mutant(
        "another tenant reads the result, or writes over it",
        "gwi_celery/backends/tenants.py",
        "return tenant is not None and ours is not None and tenant != ours",
        "return False",
        "contract/test_backend.py::test_two_tenants_that_use_one_task_id_never_read_each_others_result",
    ),
    Mutant(
        "an app can't send once another with its store has ended",
        "gwi_celery/authority.py",
        "            _made.add(self)",
        "            for alike in [each for each in _made if each.id == self.id]:\n"
        "                _made.discard(alike)\n"
        "            _made.add(self)",
        "unit/test_authority.py::test_an_app_stays_able_to_send_after_another_with_its_store_has_ended",
    ),
    Mutant(
        "whoever publishes settles what is delayed",
        "gwi_celery/worker/early.py",
        "if not sealed or abs(time.time() - at) > _GOOD_FOR:",
        "if abs(time.time() - at) > _GOOD_FOR:",
        "unit/worker/test_early.py::test_a_command_that_no_operator_sealed_is_refused",
    ),
    Mutant(
        "an operator's old command is obeyed again",
        "gwi_celery/worker/early.py",
        "if not sealed or abs(time.time() - at) > _GOOD_FOR:",
        "if not sealed:",
        "unit/worker/test_early.py::test_a_command_that_no_operator_sealed_is_refused",
    ),
    Mutant(
        "a foreign publisher has Celery's own tasks run",
        "gwi_celery/worker/policy.py",
        "if foreign and name.startswith(BUILT_IN):",
        "if False:",
        "unit/worker/test_policy.py::test_a_foreign_publisher_has_no_right_to",
    ),
    Mutant(
        "a name in the broker's database has another file deleted",
        "gwi_celery/brokers/wakeups.py",
        "        if _NAME.fullmatch(name):\n",
        "        if True:\n",
        "unit/test_folder.py::test_a_name_in_the_database_reaches_no_other_file",
    ),
    Mutant(
        "a folder that an earlier release left open stays open",
        "gwi_celery/folder.py",
        "    if not found.st_mode & 0o077:\n        return\n",
        "    return\n",
        "unit/test_folder.py::test_what_an_older_release_made_is_closed",
    ),
    Mutant(
        "a message's body is logged",
        "gwi_celery/telemetry/logs.py",
        '"INVALID_TASK_ERROR": ("an invalid task message is rejected: %s", (0,)),',
        '"INVALID_TASK_ERROR": ("an invalid task message is rejected: %s: %s", (0, 1)),',
        "unit/telemetry/test_logs.py::test_message_bodies_are_taken_out_of_celerys_own_lines",
    ),
]
