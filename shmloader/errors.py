"""What can go wrong, and who was wrong: every exception and warning of the library.

Errors that a user's dataset or collate function raises are not here: they arrive with their own type, as torch's
loader delivers them.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
from typing import Any

from .torch_private import ExceptionWrapper

# A small part of what any slot holds, so that a fault can always be told. Names are part of it, and may be anything.
_MAX_FAULT_BYTES = 8192
_MAX_NAME_BYTES = 1024


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
    """A worker ended while it was still needed."""


class WorkerTimeoutError(RuntimeError):
    """No batch arrived within ``timeout`` seconds."""


class ProducerEndedError(RuntimeError):
    """There are no more items of a `Producer`: its targets have returned and all was taken, or it was stopped."""


class HeldBatchesWarning(UserWarning):
    """More batches, items or results are held than the pool has slots for; further ones are private copies."""


class WorkerRestartWarning(UserWarning):
    """A worker ended, and another one takes its place; see ``worker_restarts``."""


class StuckWorkerWarning(UserWarning):
    """A worker thread has not ended in time when it was told to, and goes on; a thread cannot be killed."""


class ResumeWarning(UserWarning):
    """A loader takes up a pass from a state, and something in it will differ, or takes long; see `load_state_dict`."""


class ClusterBusyWarning(UserWarning):
    """The loop waits for workers that are Ray actors and have not begun: no node has room for them, perhaps."""


class IdleWorkersWarning(UserWarning):
    """A `JobQueue` has fewer jobs under way than workers, so that some have nothing to do."""


class CacheFullWarning(UserWarning):
    """Less than half of the samples fit into a `CachedDataset`, or its file cannot be written to."""


class TraceWarning(UserWarning):
    """A trace lacks what has happened from some point on: it is full, or cannot be written to; see `trace`."""


class RebuiltWarning(UserWarning):
    """A framework builds a loader of torch's class from one of this library's; the text has what to call instead."""


class FallbackWarning(UserWarning):
    """This platform or torch lacks what the library is made of; what torch's loader does is done instead."""


class StockLoaderWarning(UserWarning):
    """A class of loaders makes its workers itself, so that `patch` does not reach them; torch's own are used."""


def same_kind(error: Exception, text: str) -> Exception:
    """Returns an error of the same type with another text; a RuntimeError where that type takes no text."""
    try:
        return type(error)(text)
    except Exception:
        return RuntimeError(text)


class WorkerFault(ExceptionWrapper):
    """An exception on its way from a worker to the loop.

    torch's wrapper makes the text and picks the type, so that both equal stock's; it reduces the exception to its
    text. One that is more than that (`KeyError`, `OSError`, one with several arguments or fields of its own) comes
    along itself, where it can be pickled, as the ``__cause__`` of what is raised.
    """

    def __init__(self, where: str) -> None:
        super().__init__(where=where)  # type: ignore[no-untyped-call]
        self._original = _pickled(sys.exc_info()[1])

    def reraise(self) -> None:
        """Raises the exception again, in the process that calls this.

        Raises:
            Exception: the worker's exception type, its message followed by the worker's traceback; RuntimeError where
                that type cannot be built from a message.
        """
        cause = _unpickled(self._original)
        try:
            super().reraise()  # type: ignore[no-untyped-call]
        except SpecMismatchError as error:
            vars(error).update(vars(cause) if cause is not None else {})
            raise error.with_traceback(None) from None
        except Exception as error:
            # Without the frame that made it, which holds it: such a cycle would hold the iterator.
            raise error.with_traceback(None) from cause

    def as_text(self) -> None:
        """Becomes a RuntimeError that says what it was, for a class or a size that does not travel."""
        name = self.exc_type.__name__ if self.exc_type is not None else ""
        text = _cut(self.exc_msg, _MAX_FAULT_BYTES)
        self.exc_msg = f"{text}\n({_cut(name, _MAX_NAME_BYTES)} itself cannot be sent)"
        self.where = _cut(self.where, _MAX_NAME_BYTES)
        self.exc_type, self._original = RuntimeError, None


def _cut(text: str, nbytes: int) -> str:
    return text.encode("utf-8", "backslashreplace")[:nbytes].decode("utf-8", "ignore")


def _pickled(error: BaseException | None) -> bytes | None:
    # Apart from the rest of the fault, since code of the user's may fail in it, here and on arrival.
    with contextlib.suppress(Exception):
        if error is not None and (error.args != (str(error),) or vars(error)):
            data = pickle.dumps(error, 5)
            return data if len(data) <= _MAX_FAULT_BYTES else None
    return None


def _unpickled(data: bytes | None) -> BaseException | None:
    with contextlib.suppress(Exception):
        error = pickle.loads(data) if data is not None else None
        if isinstance(error, BaseException):
            return error
    return None
