"""Workers that are threads of the loop's process. Other threads of it start, and tell of tokens, in the same way."""
