"""The commands of ``python -m shmloader``."""
