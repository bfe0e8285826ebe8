"""OpenTelemetry's spans, where tracing is on."""

from __future__ import annotations

import json
from pathlib import Path

from gwi_celery.telemetry import tracing
from tests import zygote


def test_one_trace_from_the_call_through_a_worker_to_each_step(tmp_path: Path) -> None:
    """In a process of its own: OpenTelemetry's provider is one for a process, and stays."""
    done = zygote.run(_TRACED, folder=tmp_path, env={"GWI_TRACING": "true"})
    assert done.returncode == 0, done.stdout
    spans = json.loads(done.stdout.splitlines()[-1])
    names = {s["name"] for s in spans}
    assert {"apply_async/traced", "run/traced", "step one", "step two"} <= names
    assert len({s["trace"] for s in spans}) == 1, "one trace"
    by_name = {s["name"]: s for s in spans}
    attempts = [s for s in spans if s["name"] == "run/traced"]
    assert len(attempts) == 2, "a span for each attempt"
    assert [s["attributes"]["gwi.attempt"] for s in attempts] == [1, 2]
    assert {s["attributes"]["gwi.tenant"] for s in attempts} == {"acme"}
    assert by_name["step one"]["parent"] == attempts[0]["span"]
    assert by_name["step two"]["parent"] == attempts[1]["span"]
    assert "s3cret" not in done.stdout


_TRACED = """
import json
import os
import time
from celery import Celery
from celery.contrib.testing.worker import start_worker
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from gwi_celery import ReliableTask, setup

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
app = Celery("traced")
setup(app, broker_url="embedded://:memory:/traced", store_url="embedded://:memory:/traced")

@app.task(base=ReliableTask, bind=True, name="traced", max_retries=1)
def traced(self, *, tenant_id, run_id, secret):
    self.step("one", lambda: 1)
    if self.attempt == 1:
        raise self.retry(countdown=0)
    self.step("two", lambda: 2)

with start_worker(app, pool="solo", perform_ping_check=False):
    result = traced.delay(tenant_id="acme", run_id="r1", secret="s3cret")
    result.get(timeout=60)
    while len([s for s in exporter.get_finished_spans() if s.name == "run/traced"]) < 2:
        time.sleep(0.01)
    print(json.dumps([
        {
            "name": s.name,
            "trace": f"{s.context.trace_id:x}",
            "span": s.context.span_id,
            "parent": s.parent and s.parent.span_id,
            "attributes": {k: v for k, v in s.attributes.items() if k.startswith("gwi.")},
        }
        for s in sorted(exporter.get_finished_spans(), key=lambda s: s.start_time)
    ]), flush=True)
    os._exit(0)
"""


def test_without_tracing_a_span_costs_nothing_and_says_nothing() -> None:
    assert tracing._tracer is None
    with tracing.span("step x"):
        tracing.describe(tenant="acme")
