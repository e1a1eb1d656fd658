"""One pass over the data, in the parent: who makes which batch, and what becomes of it."""
