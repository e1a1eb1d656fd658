"""Samples into a slot, inside a worker."""
