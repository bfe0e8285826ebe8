"""OpenTelemetry: one trace from ``.delay()`` through the queue to each attempt and step.

The community's Celery instrumentation carries the trace through the message's headers and makes a
span of each publish and each attempt. Here attempts get the job's attributes, and each step a
span of its own. The exporter is configured by the application (``opentelemetry-instrument``,
or a tracer provider of its own).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gwi_celery.config import Settings
from gwi_celery.errors import ConfigurationError

#: The tracer, where tracing is on.
_tracer: Any = None


def configure(settings: Settings) -> None:
    """Switch tracing on if the settings say so. Raises ConfigurationError without the extra."""
    global _tracer  # noqa: PLW0603 one for the process, as OpenTelemetry's own
    if not settings.tracing or _tracer is not None:
        return
    try:
        from opentelemetry import trace
        from opentelemetry.instrumentation.celery import CeleryInstrumentor
    except ImportError as exc:
        raise ConfigurationError(
            f"tracing is on, and needs more ({exc}): pip install 'gwi-celery[otel]'"
        ) from exc
    CeleryInstrumentor().instrument()
    _tracer = trace.get_tracer("gwi_celery")


def describe(**facts: Any) -> None:
    """Add attributes to the current attempt's span."""
    if _tracer is not None:
        from opentelemetry import trace

        span = trace.get_current_span()
        span.set_attributes({f"gwi.{k}": v for k, v in facts.items() if v is not None})


@contextmanager
def span(name: str) -> Iterator[None]:
    """A step's span. An Interrupt stops the job and is not recorded as an error."""
    if _tracer is None:
        yield
        return
    with _tracer.start_as_current_span(name):
        yield
