"""Passes of a fixed number of batches, over a source that goes on from pass to pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shmloader.torch_private import BaseIterator

# Begins an ordinary pass over the source.
Begin = Callable[[], BaseIterator]


@dataclass
class PassCount:
    """How far a pass is.

    Attributes:
        given: how many batches it has given; None: it has ended.
    """

    given: int | None = None


class SourceStream:
    """One ordinary pass over the source after another; it holds the one that is under way, and so what is prefetched.

    Used in the process and the thread that iterate. It does not hold the loader, which holds it.

    Args:
        epoch_size: for texts.
        is_resumed: whether the first pass over the source is taken up, where it may have nothing left.

    Attributes:
        last: how far the pass is that was begun last, which may be gone.
    """

    def __init__(self, epoch_size: int, is_resumed: bool = False) -> None:
        self.last = PassCount()
        self._epoch_size = epoch_size
        self._may_be_over = is_resumed
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
            self._current = begin()  # first: where it fails, the next one is the first
            self._has_given, self._may_be_over = self._may_be_over, False

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
        given: how many of them were given before the pass was interrupted that is taken up.
    """

    def __init__(self, stream: SourceStream, begin: Begin, start_over: Begin, length: int, given: int = 0) -> None:
        self._stream = stream
        self._start_over = start_over
        self._length = length
        self._count = PassCount(given)
        stream.begin(begin)
        stream.last = self._count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream.current, name)

    def __len__(self) -> int:
        return self._length

    def __next__(self) -> Any:
        """Returns the next batch. An error in a batch's place does not count as one.

        Raises:
            Exception: as `SourceStream.take`.
        """
        count = self._count
        if count.given is None or count.given >= self._length:
            count.given = None
            raise StopIteration
        batch = self._stream.take(self._start_over)
        count.given += 1
        return batch
