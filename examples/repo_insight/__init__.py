"""A git repository's history as a report, by a job that survives kill -9. See README.md."""
