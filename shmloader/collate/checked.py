"""Samples against their declaration, just before they are collated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shmloader.batches.spec import check
from shmloader.errors import SpecMismatchError


class CheckedCollate:
    """A collate function that first compares every sample with the declared spec.

    Used wherever samples are fetched: in workers, and in the parent with ``num_workers=0``.

    Args:
        collate_fn: the loader's collate function.
        spec: what `spec.declare` returned.
        batched: whether ``collate_fn`` takes a list of samples, or one sample (``batch_size=None``).

    Attributes:
        indices: what the sampler gave for the next call; None or Nones for an iterable dataset, whose samples are
            counted instead.
    """

    def __init__(self, collate_fn: Callable[[Any], Any], spec: Any, batched: bool) -> None:
        self._collate_fn = collate_fn
        self._spec = spec
        self._batched = batched
        self._seen = 0
        self.indices: Any = None

    def __call__(self, data: Any) -> Any:
        """Collates ``data`` if it is as declared.

        Raises:
            SpecMismatchError: a sample is not.
        """
        samples = data if self._batched else [data]
        check(self._spec, samples, self._names(len(samples)))
        self._seen += len(samples)
        return self._collate_fn(data)

    def accepts(self, sample: Any) -> bool:
        """Whether a sample is as declared. It does not count."""
        try:
            check(self._spec, [sample], [None])
        except SpecMismatchError:
            return False
        return True

    def pass_over(self, count: int) -> None:
        """Counts samples that are like one that was accepted."""
        self._seen += count

    def _names(self, count: int) -> list[Any]:
        names = [self.indices]
        if self._batched:
            try:
                names = list(self.indices)
            except TypeError:  # a slice, say, for a `__getitems__` that takes one
                names = []
        if names and len(names) == count and names[0] is not None:
            return names
        return list(range(self._seen, self._seen + count))
