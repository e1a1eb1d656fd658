"""The benchmark suite: ``python -m benchmarks``, from the top of the repository.

Each cell is a dataset whose samples cost next to nothing to make, so that what is measured is the loader. Three ways
of making its batches are timed in turn: torch's DataLoader, ShmDataLoader, and the limit, which is as many processes
that fill memory with the same batches and do nothing else. Other libraries can be timed beside them. See `cells`,
`limit`, `peers`, `suite` and `bars`. `suite_charts` draws what was found.

Commands beside it:

- `growth`: how the cost of a batch grows;
- `hidden`: a training step with a loader behind it;
- `edges`: how passes begin, follow each other and end;
- `soak`: a long run with faults.
"""
