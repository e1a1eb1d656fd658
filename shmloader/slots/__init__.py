"""Shared memory, and who owns it."""
