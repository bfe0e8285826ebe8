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
]
