"""The benchmarks: ``python -m benchmarks``, from the top of the repository.

The suite, which runs where no other command is named, loads datasets whose samples cost next to nothing to make, so
that what is measured is the loader. Three ways of making their batches are timed in turn: torch's DataLoader,
ShmDataLoader, and the limit, which is as many processes that fill memory with the same batches and do nothing else.
Other libraries can be timed beside them. See `cells`, `limit`, `peers`, `contest` and `suite`.

The other commands, ``python -m benchmarks NAME``:

- `edges`: how passes begin, follow each other and end, and what memory a loader takes;
- `bars`: what some of its figures are up against, each beside a control that has no loader;
- `growth`: how the cost of a batch grows;
- `scale`: many workers, and many ranks, on one machine;
- `hidden`: a training step with a loader behind it;
- `threads`: worker threads, and how they scale;
- `calls`: what the results of calls in background processes take, beside other pools of processes;
- `samplers`: samplers that shuffle;
- `tokens`, `tabular`: rows of memory maps, as sequences of tokens and as rows of a table;
- `producers`: what items of a producer take, beside queues;
- `gpu`: what a CUDA device gets.

A command is a module with two functions, ``add_options`` and ``measure``; what all share is in `output` and in
`__main__`.
"""
