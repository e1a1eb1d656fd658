"""What is said to a loop that holds so many batches that it gets copies.

Further batches are private copies then, so that slots are left to load into. That costs time, so it is said once, with
the knob that would help.
"""

from __future__ import annotations

import warnings

from shmloader import callers
from shmloader.errors import HeldBatchesWarning
from shmloader.words import Words

from .ledger import Ledger


class CopyNotice:
    """The warning of one pool that batches are copied.

    Args:
        ledger: of the pool.
        num_slots: slots in the pool.
        cap_text: how errors call what limits the pool.
        other_holders: see `Leases`.
        words: for the text.
    """

    def __init__(self, ledger: Ledger, num_slots: int, cap_text: str, other_holders: str, words: Words) -> None:
        self._ledger = ledger
        self._num_slots = num_slots
        self._cap_text = cap_text
        self._other_holders = other_holders
        self._words = words
        self._text = ""
        self._is_announced = False

    def note(self, nbytes: int) -> None:
        """Notes that a batch of so many bytes cannot be lent; why the first one cannot is what is announced."""
        if self._text:
            return
        held, many = self._ledger.leased, self._words.many
        holds = f"you hold {held} {many}, or tensors of them{self._other_holders}"
        if self._ledger.is_leased_out:
            self._text = (
                f"{holds}, and a pool of {self._num_slots} slots has no more to lend beside those for workers; further "
                f"{many} are private copies. Clone what you hold, drop {many} sooner, or raise num_slots"
            )
        elif held > 1:  # any loop holds one when it takes the next
            self._text = (
                f"{holds}, and {self._cap_text} leaves no room to lend more beside those for workers; further {many} "
                f"are private copies. Clone what you hold, drop {many} sooner, or raise max_pool_bytes"
            )
        else:
            self._text = (
                f"{self._words.one} takes {nbytes} bytes, and {self._cap_text} has no room to lend it beside the one "
                f"before and those for workers; such {many} are private copies. Raise max_pool_bytes, or "
                f"{self._words.smaller}"
            )

    def announce(self) -> None:
        """Warns of what was noted, once. Not when the copy is made: were warnings errors, the batch would be lost.

        Warns:
            HeldBatchesWarning: a batch was noted.
        """
        if self._text and not self._is_announced:
            self._is_announced = True
            text = f"{self._words.owner}: {self._text}" if self._words.is_named else self._text
            warnings.warn(text, HeldBatchesWarning, stacklevel=callers.stacklevel())
