"""What can go wrong, and who was wrong: every exception and warning of the library.

Errors that a user's dataset or collate function raises are not here: they arrive with their own type, as torch's
loader delivers them.
"""

from __future__ import annotations

import sys
from typing import Any

from torch._utils import ExceptionWrapper


class SpecMismatchError(ValueError):
    """A sample does not have the shape, dtype or structure that ``sample_shapes`` and ``sample_dtypes`` declare.

    Attributes:
        index: the sample's index in a map-style dataset; in an iterable one its ordinal within its worker.
        path: the field, as one would write it behind the sample: ``[0]``, ``['image']``, ``.label``; empty for a
            sample that is one tensor.
        expected: what was declared for the field.
        got: what the sample holds there.
    """

    def __init__(self, message: str, *, index: Any = None, path: str = "", expected: str = "", got: str = "") -> None:
        super().__init__(message)
        self.index = index
        self.path = path
        self.expected = expected
        self.got = got


class PoolMemoryError(MemoryError):
    """The pool cannot hold what it is asked to hold within ``max_pool_bytes``."""


class WorkerDiedError(RuntimeError):
    """A worker process ended while the loop still needed it."""


class WorkerTimeoutError(RuntimeError):
    """No batch arrived within ``timeout`` seconds."""


class HeldBatchesWarning(UserWarning):
    """The loop holds more batches than the pool has slots to spare; further ones are private copies."""


class FallbackWarning(UserWarning):
    """This platform lacks what the pool is made of; torch's own multiprocessing iterator is used."""


class WorkerFault(ExceptionWrapper):
    """An exception on its way from a worker to the loop.

    torch's wrapper makes the text and picks the type, so that both equal stock's. This one keeps the fields of a
    `SpecMismatchError` too, which torch would reduce to its message.
    """

    def __init__(self, where: str) -> None:
        super().__init__(where=where)  # type: ignore[no-untyped-call]
        error = sys.exc_info()[1]
        self.fields = dict(vars(error)) if type(error) is SpecMismatchError else None

    def reraise(self) -> None:
        """Raises the exception again, in the process that calls this.

        Raises:
            Exception: the worker's exception type, its message followed by the worker's traceback; RuntimeError where
                that type cannot be built from a message.
        """
        try:
            super().reraise()  # type: ignore[no-untyped-call]
        except SpecMismatchError as error:
            vars(error).update(self.fields or {})
            raise
