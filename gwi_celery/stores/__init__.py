"""Stores: where jobs keep their locks, outcomes and checkpoints. See :mod:`.base`."""
