"""The group ``gwi`` itself."""

from __future__ import annotations

import click


@click.group()
def gwi() -> None:
    """Reliable jobs on Google Cloud.

    \b
    Exit codes: 0 done; 1 failed; 2 usage or settings; 3 nothing matches;
    4 not confirmed; 5 broker or store unavailable, try again; 6 doctor found problems.
    """
