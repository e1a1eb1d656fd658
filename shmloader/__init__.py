"""shmloader: torch's DataLoader, with batches that workers write straight into reused shared memory."""

from .errors import (
    FallbackWarning,
    HeldBatchesWarning,
    PoolMemoryError,
    SpecMismatchError,
    WorkerDiedError,
    WorkerTimeoutError,
)
from .loader import ShmDataLoader
from .pool import PoolStatistics
from .spec import TensorSpec
from .version import __version__

__all__ = [
    "FallbackWarning",
    "HeldBatchesWarning",
    "PoolMemoryError",
    "PoolStatistics",
    "ShmDataLoader",
    "SpecMismatchError",
    "TensorSpec",
    "WorkerDiedError",
    "WorkerTimeoutError",
    "__version__",
]
