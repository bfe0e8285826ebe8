"""Submits an analysis, and waits for it if asked to.

python -m examples.repo_insight.submit PATH --tenant acme --run r1 --wait
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from celery.exceptions import TimeoutError as ResultTimeout
from celery.result import AsyncResult
from kombu.exceptions import OperationalError

from examples.repo_insight.app import analyse, app
from examples.repo_insight.history import RepositoryError, find_git_dir
from gwi_celery import store_for
from gwi_celery.errors import GwiError
from gwi_celery.options import SECONDS, WHOLE, argument

#: Exit codes: the job failed; the call was refused; --timeout is over.
FAILED, REFUSED, TIMED_OUT = 1, 2, 3

#: Seconds between two looks at the progress, at least.
_LOOK_EVERY = 0.5


def main(argv: list[str] | None = None) -> int:
    args = _arguments(argv)
    try:
        # Here a wrong path costs nothing; the worker checks again, for it may be another machine.
        find_git_dir(args.path)
        repo = str(Path(args.path).expanduser().resolve())
        result = analyse.delay(
            tenant_id=args.tenant,
            run_id=args.run,
            repo=repo,
            ref=args.ref,
            out=str(Path(args.out).resolve()),
            batch_size=args.batch_size,
        )
    except (RepositoryError, GwiError, OperationalError) as exc:
        print(f"not submitted: {exc}", file=sys.stderr)
        return REFUSED
    print(f"submitted {repo} for tenant {args.tenant}, run {args.run}: task {result.id}")
    if not args.wait:
        return 0
    return _wait(result, args)


def _wait(result: AsyncResult, args: argparse.Namespace) -> int:
    deadline = time.monotonic() + args.timeout
    shown = -1
    while True:
        began = time.monotonic()
        walked = _walked(args.tenant, args.run, args.batch_size)
        if walked != shown:
            print(
                f"  {walked:,} commits walked" if walked else "  waiting for a worker", flush=True
            )
            shown = walked
        # A look reads the whole record, so on a long history look less often.
        pause = max(_LOOK_EVERY, 10 * (time.monotonic() - began))
        left = deadline - time.monotonic()
        if left <= 0:
            print(f"not done after {args.timeout:g} s; the job goes on", file=sys.stderr)
            return TIMED_OUT
        try:
            done = result.get(timeout=min(pause, left))
        except ResultTimeout:
            continue
        except Exception as exc:
            print(f"failed: {type(exc).__name__}: {exc}", file=sys.stderr)
            return FAILED
        print(f"{done['commits']:,} commits\n  {done['html']}\n  {done['json']}")
        return 0


def _walked(tenant: str, run: str, batch_size: int) -> int:
    """About how many commits are done (the last batch may hold fewer than the others)."""
    store = store_for(app)
    jobs = store.list_jobs(tenant, run_id=run).jobs
    return batch_size * sum(
        checkpoint.name.startswith("batch-")
        for record in jobs
        if record.job.task == analyse.name
        for checkpoint in store.get_checkpoints(record.job)
    )


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.repo_insight.submit")
    parser.add_argument(
        "path",
        nargs="?",
        default=str(Path(__file__).resolve().parent),
        help="working tree or bare repository; default: the one that this example is in",
    )
    parser.add_argument("--tenant", required=True)
    parser.add_argument("--run", required=True, help="the same run again is answered, not run")
    parser.add_argument("--ref", default="HEAD", help="branch, tag or commit (default: HEAD)")
    parser.add_argument("--out", default="insight-reports", help="folder for reports")
    parser.add_argument(
        "--batch-size",
        type=argument(WHOLE, 1, 1_000_000),
        default=200,
        help="commits per recorded step",
    )
    parser.add_argument("--wait", action="store_true", help="show progress until it is done")
    parser.add_argument(
        "--timeout",
        type=argument(SECONDS, 0, 10_000_000),
        default=3600.0,
        help="seconds to wait at most",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
