"""Workers that are processes of this machine: the parent's side, their start, what runs in them first, their ends."""
