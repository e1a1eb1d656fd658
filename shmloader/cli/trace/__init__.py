"""The ``trace`` command: what stands in a file that ``loader.trace(path)`` has written.

- `command`: its options;
- `reading`: files of trace events, whole or not;
- `timeline`: whose tracks they are, and what is on them;
- `summary`: figures;
- `picture`: the tracks drawn;
- `merging`: one file of ours and one of torch's profiler.
"""
