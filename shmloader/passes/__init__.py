"""What the parent asks of workers: one pass over the data, or results for whoever asks; and what becomes of it."""
