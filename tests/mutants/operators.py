"""What operators do: dead letters, redrives, cancelled trees, forks."""

from tests.mutants.mutant import Mutant

OPERATORS = [
    Mutant(
        "what a cancelled job has called begins all the same",
        "gwi_celery/jobs/changing.py",
        "                store.bar_calls_of(record.job.tenant, task_id, reason)",
        "                pass",
        "unit/test_jobs.py::test_a_tree_is_cancelled_whole_and_what_has_not_begun_never_does",
    ),
    Mutant(
        "a tree's jobs go on when their root is cancelled",
        "gwi_celery/jobs/changing.py",
        "            todo += [each for each in children_of(store, record) if not undoes(each.job.task)]",
        "            pass",
        "unit/test_jobs.py::test_a_tree_is_cancelled_whole_and_what_has_not_begun_never_does",
    ),
    Mutant(
        "what undoes a cancelled job is cancelled with its tree",
        "gwi_celery/jobs/changing.py",
        " if not undoes(each.job.task)]",
        "]",
        "unit/test_jobs.py::test_a_tree_s_cancellation_leaves_alone_what_undoes_its_jobs",
    ),
    Mutant(
        "what undoes a cancelled job is kept from beginning, as the job's calls are",
        "gwi_celery/stores/interventions.py",
        " or undoes(request.job.task):",
        ":",
        "unit/test_jobs.py::test_a_tree_s_cancellation_leaves_alone_what_undoes_its_jobs",
    ),
    Mutant(
        "a fork does not run the step that it begins from",
        "gwi_celery/jobs/changing.py",
        "return recorded[: names.index(from_step)]",
        "return recorded[: names.index(from_step) + 1]",
        "unit/test_jobs.py::test_a_fork_begins_with_the_others_earlier_steps",
    ),
    Mutant(
        "a fork is written over the job that is there",
        "gwi_celery/jobs/changing.py",
        "if existing is not None and not _is_half_forked(existing):",
        "if False:",
        "unit/test_jobs.py::test_a_fork_begins_with_the_others_earlier_steps",
    ),
    Mutant(
        "a delayed call that is to run now keeps its ETA",
        "gwi_celery/transport/delayed.py",
        '"headers": {**headers, "eta": None}',
        '"headers": {**headers}',
        "unit/transport/test_delayed.py::test_it_is_signed_anew_only_if_it_was_signed",
    ),
    Mutant(
        "a delayed call that is cancelled leaves its job waiting",
        "gwi_celery/queues/settling.py",
        "ended = {w for w, job in jobs.items() if job is not None and _end(store, job, w.task_id)}",
        "ended: set[Waiting] = set()",
        "cli/test_queues.py::test_what_is_delayed_can_be_had_now_or_cancelled",
    ),
    Mutant(
        "a message that dies again while it is redriven is redriven twice",
        "gwi_celery/brokers/embedded/broker.py",
        "only = frozenset(only) - frozenset(batch)",
        "pass",
        "contract/test_broker_operators.py::test_one_that_dies_again_meanwhile_is_redriven_once",
    ),
]
