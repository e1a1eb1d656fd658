"""Measure stock and shmloader side by side."""
