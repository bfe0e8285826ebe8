"""Calls to Google Cloud are counted."""

from __future__ import annotations

import json
import os

from gwi_celery.gcp import rpcs


def test_calls_to_google_cloud_are_counted_in_each_process() -> None:
    before = rpcs.total().get("Commit", 0)
    rpcs.news()
    rpcs.count("Commit")
    assert rpcs.news() == {"Commit": 1}
    assert rpcs.news() == {}
    assert rpcs.total()["Commit"] == before + 1
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        rpcs.count("Pull")
        os.write(write, json.dumps(rpcs.news()).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert json.loads(os.read(read, 100)) == {"Pull": 1}
