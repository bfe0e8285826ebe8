"""What a worker tells of itself. Read in this order: events, stats, metrics, logs, tracing."""
