"""Measure torch's DataLoader and shmloader side by side: ``python -m shmloader bench``.

The modules, from the pure to the measuring:

- `figures`: medians, spreads, ratios;
- `compare`: whether two batches are equal bit for bit, and where not;
- `report`: the table and the JSON;
- `sweep`: those of several numbers of workers;
- `plot`: the same as a picture;
- `source`: MODULE:CALLABLE to a loader's arguments, and the dataset for when there is none;
- `verify`: one pass of each loader, compared;
- `memory`: what a loader adds to the memory of the process tree;
- `measure`: time and processor time of batches in steady state;
- `steps`: the verdict on a loop whose steps take a given time;
- `command`: the options, and all of the above in order.
"""
