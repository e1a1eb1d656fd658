"""Whether the program has chosen a start method for its processes, or has only been given Python's default.

From Python 3.14 the default is forkserver, and the first queue, lock or process of multiprocessing settles on it: from
then on it looks as if it had been chosen. Workers would be forked or not for what another library did before. So the
default is made another object of the same kind here, which a choice never gives. Where multiprocessing has settled
before this module is imported, that counts as a choice: then workers start as they do in torch's loader.
"""

from __future__ import annotations

import copy
import multiprocessing
import multiprocessing.context
from typing import Any


def is_chosen() -> bool:
    """Whether `multiprocessing.set_start_method` was called, so far as that can be told."""
    if multiprocessing.get_start_method(allow_none=True) is None:
        return False
    return _default is None or multiprocessing.get_context() is not _default


def _told_apart() -> Any:
    """Returns the object that stands for the default from now on, or None where a choice needs no telling apart."""
    owner: Any = getattr(multiprocessing.context, "_default_context", None)
    has_settled = getattr(owner, "_actual_context", owner) is not None
    if has_settled or multiprocessing.get_all_start_methods()[0] != "forkserver" or not hasattr(owner, _HOLDS):
        return None
    context = copy.copy(getattr(owner, _HOLDS))
    setattr(owner, _HOLDS, context)
    return context


_HOLDS = "_default_context"
_default = _told_apart()
