"""Say what this machine has of what the loader wants: ``python -m shmloader doctor``.

The modules, from the pure to the trying:

- `finding`: what one check has found, and what follows from all of them;
- `judge`: figures in, findings out;
- `report`: the text and the JSON;
- `trial`: runs a function in a child, with a time limit;
- `system`, `limits`, `software`: the checks;
- `command`: the options, and all checks in order.
"""
