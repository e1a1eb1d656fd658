"""How samples get into a cache, and what is said where they do not."""

from __future__ import annotations

import errno
import warnings

from shmloader import interrupts
from shmloader.errors import CacheFullWarning

from .cache_file import CacheFile
from .cache_tally import Mark, Tally
from .sample_forms import Taken

# After these no further sample of this process is written.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Keeper:
    """Writes samples, for one process.

    Args:
        length: how many samples the dataset has.
        file: where they go.
        tally: what is known of them.
    """

    def __init__(self, length: int, file: CacheFile, tally: Tally) -> None:
        self._length = length
        self._file = file
        self._tally = tally
        self._is_full = self._has_warned = False
        self._refused = 0

    def keep(self, number: int, taken: Taken) -> bool:
        """Writes a sample; returns False where there is no room for it, which is noted, and said if it is so for most.

        Warns:
            CacheFullWarning: less than half of the samples fit, or the file cannot be written to. Of all processes one
                warns, once.
        """
        is_kept = self._is_written(number, taken)
        if not is_kept:
            self._tally.mark(number, Mark.NO_ROOM)
        elif self._file.path is not None:
            self._tally.mark(number, Mark.SOUND)
        return is_kept

    def _is_written(self, number: int, taken: Taken) -> bool:
        if self._is_full:
            return False
        # Handlers are not to leave a descriptor. What they raise comes behind the block: it may look as if the disk
        # were full.
        with interrupts.AllDeferred():
            try:
                is_kept = self._file.keep(number, taken.form, taken.parts)
            except OSError as error:
                self._is_full = error.errno in _FULL
                self._warn_of_the_file(error)
                return False
        if is_kept:
            return True
        self._refused += 1
        if self._refused & (self._refused - 1) == 0:  # looking takes time: at the 1st, 2nd, 4th, 8th and so on
            self._warn_if_most_do_not_fit(sum(part.nbytes for part in taken.parts))
        return False

    def _warn_if_most_do_not_fit(self, nbytes: int) -> None:
        samples, most = self._file.count(), self._file.max_bytes
        expected = (self._file.nbytes + nbytes) / (samples + 1) * self._length
        if 2 * most < expected:
            self._warn_once(
                f"about {most / expected:.0%} of the {self._length} samples of a CachedDataset fit into "
                f"max_bytes={most}: all would take {expected:.3g} bytes. The others are read anew each time; "
                "raise max_bytes, give a path on a larger disk, or cache less of each sample"
            )

    def _warn_of_the_file(self, error: OSError) -> None:
        self._warn_once(
            f"a CachedDataset cannot write to {self._file.path or 'its shared memory'}: {error}. What is kept stays; "
            "other samples are read anew each time"
        )

    def _warn_once(self, text: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            if self._tally.is_first_to_claim():
                warnings.warn(text, CacheFullWarning, stacklevel=2)
