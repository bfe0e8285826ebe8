"""What operators do: dead letters, redrives, cancelled trees, forks."""

from tests.mutants.mutant import Mutant

OPERATORS = [
    Mutant(
        "what a cancelled job has called begins all the same",
        "gwi_celery/jobs/changing.py",
        "                store.bar_calls_of(record.job.tenant, task_id, reason)",
        "                pass",
        "unit/jobs/test_jobs.py::test_a_tree_is_cancelled_whole_and_what_has_not_begun_never_does",
    ),
    Mutant(
        "a tree's jobs go on when their root is cancelled",
        "gwi_celery/jobs/changing.py",
        "            todo += children_of(store, record)",
        "            pass",
        "unit/jobs/test_jobs.py::test_a_tree_is_cancelled_whole_and_what_has_not_begun_never_does",
    ),
    Mutant(
        "a fork does not run the step that it begins from",
        "gwi_celery/jobs/changing.py",
        "return recorded[: names.index(from_step)]",
        "return recorded[: names.index(from_step) + 1]",
        "unit/jobs/test_jobs.py::test_a_fork_begins_with_the_others_earlier_steps",
    ),
    Mutant(
        "a fork is written over the job that is there",
        "gwi_celery/jobs/changing.py",
        "if there is not None and not _is_half_forked(there):",
        "if False:",
        "unit/jobs/test_jobs.py::test_a_fork_begins_with_the_others_earlier_steps",
    ),
]
