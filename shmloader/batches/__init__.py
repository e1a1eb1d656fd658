"""A batch as bytes: what it consists of, written to memory and read back."""
