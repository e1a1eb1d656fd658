"""shmloader: torch's DataLoader, with batches that workers write straight into reused shared memory."""

from . import early

early.restart()  # before torch is imported

from . import integrations as integrations
from . import torch_compile
from .batches.spec import TensorSpec
from .data.arrays import ArrayDataset
from .data.cache_statistics import CacheStatistics
from .data.cached import CachedDataset
from .data.chunks import ChunkedDataset
from .data.permutation import PermutationSampler
from .data.shared import share
from .errors import (
    CacheFullWarning,
    ClusterBusyWarning,
    FallbackWarning,
    HeldBatchesWarning,
    IdleWorkersWarning,
    PoolMemoryError,
    ProducerEndedError,
    RebuiltWarning,
    ResumeWarning,
    SpecMismatchError,
    StockLoaderWarning,
    StuckWorkerWarning,
    TraceWarning,
    WorkerDiedError,
    WorkerRestartWarning,
    WorkerTimeoutError,
)
from .job_queue import JobQueue
from .loader import ShmDataLoader
from .observe.figures import PassStatistics, SlowSample, WorkerStatistics
from .observe.registry import close_all, live_loaders
from .observe.report import report
from .observe.sinks import CsvSink, LogSink, TensorBoardSink, TqdmSink
from .observe.statistics import LoaderStatistics, StreamStatistics
from .observe.verdict import Verdict
from .patching.patch import Patch, patch
from .producer import Producer
from .version import __version__

__all__ = [
    "ArrayDataset",
    "CacheFullWarning",
    "CacheStatistics",
    "CachedDataset",
    "ChunkedDataset",
    "ClusterBusyWarning",
    "CsvSink",
    "FallbackWarning",
    "HeldBatchesWarning",
    "IdleWorkersWarning",
    "JobQueue",
    "LoaderStatistics",
    "LogSink",
    "PassStatistics",
    "Patch",
    "PermutationSampler",
    "PoolMemoryError",
    "Producer",
    "ProducerEndedError",
    "RebuiltWarning",
    "ResumeWarning",
    "ShmDataLoader",
    "SlowSample",
    "SpecMismatchError",
    "StockLoaderWarning",
    "StreamStatistics",
    "StuckWorkerWarning",
    "TensorBoardSink",
    "TensorSpec",
    "TqdmSink",
    "TraceWarning",
    "Verdict",
    "WorkerDiedError",
    "WorkerRestartWarning",
    "WorkerStatistics",
    "WorkerTimeoutError",
    "__version__",
    "close_all",
    "live_loaders",
    "patch",
    "report",
    "share",
]

torch_compile.mark(__name__)
