"""``num_workers=0`` with declared sample shapes: stock's iterator, with every sample checked."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from shmloader.collate.checked import CheckedCollate
from shmloader.torch_private import InProcessIterator


class CheckedInProcessIterator(InProcessIterator):
    """Loads in the process of the loop, as stock does, and compares samples with their declaration.

    Args:
        loader: whose data to load.
        sample_spec: what `spec.declare` returned.
    """

    def __init__(self, loader: DataLoader[Any], sample_spec: Any) -> None:
        super().__init__(loader)
        self._check = CheckedCollate(self._collate_fn, sample_spec, self._auto_collation)
        self._dataset_fetcher.collate_fn = self._check

    def _next_index(self) -> Any:
        self._check.indices = super()._next_index()  # type: ignore[no-untyped-call]
        return self._check.indices
