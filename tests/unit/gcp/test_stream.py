"""A stream that can't be opened leaves no call behind, for which every fork would wait."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from gwi_celery.gcp import fork_gate
from gwi_celery.gcp.stream import BidiStream


class Call:
    cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


def test_without_a_thread_to_read_it_the_call_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    call, before = Call(), fork_gate.in_flight()

    def nothing(*args: Any) -> None: ...

    with pytest.raises(RuntimeError, match="can't start new thread"):
        BidiStream.open(
            lambda requests: call, [], on_response=nothing, on_end=nothing, thread_name="reader"
        )
    assert call.cancelled
    assert fork_gate.in_flight() == before
