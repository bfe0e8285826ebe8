"""The embedded broker and result backend: a folder, no process at all."""
