"""How the kernel schedules a worker: by a policy that does not interrupt the loop, if batches cost next to nothing.

A job that wakes a worker would interrupt the process that has sent it, the training loop, where all processors are in
use: at every batch, which for batches of some microseconds costs more than the batch. `SCHED_BATCH` prevents that. But
a worker with that policy does not interrupt other programs either, and where one of those uses the processor, it waits
some 2 ms for it and not 50 us. So the policy is for workers whose batches are made in no time, whose look-ahead hides
that; others have the ordinary one.
"""

from __future__ import annotations

import contextlib
import os
import time

_FIRST_BATCHES = 8  # which take longer: shapes are learned, memory is touched
_TRIAL_BATCHES = 32
_QUICK_SECONDS = 250e-6


class PolicyTrial:
    """Finds out how long batches take, and then chooses. Used in a worker."""

    def __init__(self) -> None:
        self._made = 0
        self._began = 0.0

    def count(self) -> None:
        """Counts a batch that was made; after some tens, chooses the policy for good.

        What the user has set up in another way stays, and so it does where a sandbox forbids this.
        """
        self._made += 1
        if self._made == _FIRST_BATCHES:
            self._began = time.process_time()
        elif self._made == _FIRST_BATCHES + _TRIAL_BATCHES:
            seconds = (time.process_time() - self._began) / _TRIAL_BATCHES
            if seconds < _QUICK_SECONDS:
                _run_as_batch()


def _run_as_batch() -> None:
    with contextlib.suppress(OSError):
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
