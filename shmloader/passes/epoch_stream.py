"""Passes of a fixed number of batches, over a source that goes on from pass to pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shmloader.torch_private import BaseIterator

# Begins an ordinary pass over the source.
Begin = Callable[[], BaseIterator]


class SourceStream:
    """One ordinary pass over the source after another; it holds the one that is under way, and so what is prefetched.

    Used in the process and the thread that iterate. It does not hold the loader, which holds it.

    Args:
        epoch_size: for texts.
    """

    def __init__(self, epoch_size: int) -> None:
        self._epoch_size = epoch_size
        self._current: BaseIterator | None = None
        self._has_given = False

    @property
    def current(self) -> BaseIterator | None:
        """The pass over the source that is under way."""
        return self._current

    def begin(self, begin: Begin) -> None:
        """Begins a pass over the source if none is under way, or if an error has closed the one that was."""
        if getattr(self._current, "has_failed", False):
            self._current = None
        if self._current is None:
            self._has_given = False
            self._current = begin()

    def take(self, start_over: Begin) -> Any:
        """Returns the next batch. Where the source has ended, it starts over.

        Blocks as the source does, and for as long as it takes to begin a pass.

        Raises:
            RuntimeError: the source has no batches, so that this would never end.
            Exception: what the source raises.
        """
        while True:
            if self._current is None:
                self.begin(start_over)
            try:
                batch = next(self._current)  # type: ignore[arg-type]
            except StopIteration:
                self._current = None
                if not self._has_given:
                    raise RuntimeError(
                        f"epoch_size={self._epoch_size} asks for batches, and the source has none: the dataset or the "
                        "sampler is empty, or drop_last drops all there is"
                    ) from None
            except BaseException:
                self._has_given = True
                raise
            else:
                self._has_given = True
                return batch


class EpochIterator(BaseIterator):
    """A pass of a fixed number of batches.

    It is a torch iterator in name; what it does not have itself it has from the pass over the source. It holds the
    loader, which may have no other name when the source has to start over.

    Args:
        stream: where batches come from; other passes may take from it too.
        begin: begins a pass over the source, where none is under way.
        start_over: does so where one has ended.
        length: how many batches.
    """

    def __init__(self, stream: SourceStream, begin: Begin, start_over: Begin, length: int) -> None:
        self._stream = stream
        self._start_over = start_over
        self._length = self._left = length
        stream.begin(begin)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream.current, name)

    def __len__(self) -> int:
        return self._length

    def __next__(self) -> Any:
        """Returns the next batch. An error in a batch's place does not count as one.

        Raises:
            Exception: as `SourceStream.take`.
        """
        if not self._left:
            raise StopIteration
        batch = self._stream.take(self._start_over)
        self._left -= 1
        return batch
