"""Where batches are made: the workers, and all that the parent says to them."""
