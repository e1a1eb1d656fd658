"""The commands of ``python -m shmloader``: one module or package for each, and what they share.

- `main`: finds the command that was named, and runs it;
- `run`: a training script, unchanged, on our workers;
- `bench`: torch's DataLoader and shmloader side by side;
- `trace`: a loader's trace, summed up or drawn;
- `doctor`: what this machine has of what the loader wants;
- `console`: parsing with errors of one line, and progress on a terminal;
- `machine`: what a figure was measured on.
"""
