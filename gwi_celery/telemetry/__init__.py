"""A worker's telemetry. Read in this order: events, stats, metrics, logs, tracing."""
