"""shmloader: torch's DataLoader, with batches that workers write straight into reused shared memory."""

from . import untraced
from .arrays import ArrayDataset
from .errors import (
    FallbackWarning,
    HeldBatchesWarning,
    PoolMemoryError,
    SpecMismatchError,
    WorkerDiedError,
    WorkerRestartWarning,
    WorkerTimeoutError,
)
from .loader import ShmDataLoader
from .shelf import LoaderStatistics
from .spec import TensorSpec
from .version import __version__

__all__ = [
    "ArrayDataset",
    "FallbackWarning",
    "HeldBatchesWarning",
    "LoaderStatistics",
    "PoolMemoryError",
    "ShmDataLoader",
    "SpecMismatchError",
    "TensorSpec",
    "WorkerDiedError",
    "WorkerRestartWarning",
    "WorkerTimeoutError",
    "__version__",
]

untraced.mark(__name__)
