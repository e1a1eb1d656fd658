"""Run a training script, unchanged, on our workers: ``python -m shmloader run script.py``.

- `bootstrap`, `launch`: the program that the command becomes, so that the script is the first to import torch;
- `command`: the parser, and what is done at the beginning;
- `script`: finds and runs a script or a module as Python itself does;
- `uncaught`: what is shown of an exception that the script has not caught;
- `report`: what is printed at the end;
- `figures`: what loaders have taken, also those that are gone;
- `births`: where loaders were made, and which a framework has made of another one;
- `stock_meter`: what torch's own iterators take;
- `tracing`: one trace of all loaders;
- `ranks`: which one of several processes this is.
"""
