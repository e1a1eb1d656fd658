"""Workers that are Ray actors: the parent's side, the messages, and what an actor runs."""
