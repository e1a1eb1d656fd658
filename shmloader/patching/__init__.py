"""torch's own class of loaders with our workers: what `patch` does."""
