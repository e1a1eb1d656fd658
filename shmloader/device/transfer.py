"""Batches on their way to a device, ahead of the loop.

A batch that the workers have made is copied on a stream of its own while the loop computes with those before it. It is
handed out with the loop's current stream made to wait for the copy, if it is not over by then; the host never waits.

What moves when:

- dense tensors, in whatever lists, tuples, mappings and dataclasses: ahead;
- anything else with a method ``to``, tensors of other layouts and classes among it: when it is handed out, on the
  loop's own stream, since such an object's memory cannot be found out, and it belongs to the stream it is made on;
- the rest stays as it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch

from shmloader.batches.structure import take_apart
from shmloader.slots.leases import Lease
from shmloader.torch_private import BaseIterator

from . import cuda

_Change = Callable[[Any], Any]

# What holds no tensor.
_VALUES = (type(None), bool, int, float, complex, str, bytes)


@runtime_checkable
class LookAhead(Protocol):
    """What an iterator has that may be asked for batches ahead of the loop."""

    @property
    def last_lease(self) -> Lease | None:
        """The lease of the batch that `next` returned last; None where it lies in no slot."""

    def is_ready(self) -> bool:
        """Whether `next` would have a batch without waiting. Does not block."""

    def settle(self, lease: Lease) -> None:
        """Notes that when ``lease`` ends no copy from its slot is in flight."""

    def hand_out_ahead(self) -> None:
        """From now on the loop has what `next` returns not before `hand_on`."""

    def hand_on(self) -> None:
        """Notes that the loop is told what `next` has told first."""


class DeviceIterator(BaseIterator):
    """Iterates as another iterator does, with its batches on a device.

    It is a torch iterator in name; what it does not have itself it has from the other one.

    Args:
        host: whose batches are moved.
        device: where to.
        depth: how many batches may be under way beside the one that is handed out. Of iterators other than ours none
            are: they would have to be waited for, or, where they load in the loop's process, would draw from its random
            streams at other moments than stock does.

    Raises:
        RuntimeError: there is no such device.
    """

    def __init__(self, host: BaseIterator, device: torch.device, depth: int) -> None:
        self.host = host
        self.device = device
        self.depth = depth
        self._source = host if isinstance(host, LookAhead) else None
        if self._source is not None:
            self._source.hand_out_ahead()
        self._lane = cuda.Lane(cuda.resolve(device))
        self._ahead: deque[_Transfer | Exception] = deque()
        self._under_way: deque[_Transfer] = deque()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.host, name)

    def __len__(self) -> int:
        return len(self.host)

    def restart(self) -> None:
        """Begins another pass, which ``host`` has begun."""
        self._ahead.clear()

    def __next__(self) -> Any:
        """Returns the next batch.

        Blocks until the workers have made it, where it is not under way already; what wakes it, see `ShmIterator`.

        Raises:
            RuntimeError: a graph is being captured. No copy that was begun before can be waited for in it.
            Exception: what the host raises, in its turn.
        """
        if self._lane.is_capturing():
            raise RuntimeError(
                "a batch cannot be moved to its device while a CUDA graph is captured; take it before, and copy it to "
                "the graph's input"
            )
        self._drop_what_is_copied()
        try:
            first = self._ahead.popleft() if self._ahead else self._take()
        finally:
            if self._source is not None:
                self._source.hand_on()
        try:
            if isinstance(first, Exception):
                raise first
            self._look_ahead()
            return first.hand_over()
        finally:  # an exception would hold this frame, and the frame it
            del first

    def _take(self) -> _Transfer:
        """Takes the host's next batch and begins to copy it."""
        batch = next(self.host)
        transfer = _Transfer(batch, self._lane, None if self._source is None else self._source.last_lease)
        self._under_way.append(transfer)
        return transfer

    def _look_ahead(self) -> None:
        """Takes what is made already. What goes wrong, or that there is no more, is told when it is its turn."""
        while self._source is not None and len(self._ahead) < self.depth and self._source.is_ready():
            self._ahead.append(self._taken())

    def _taken(self) -> _Transfer | Exception:
        try:
            return self._take()
        except Exception as error:
            # Without the frames, which hold the iterator, and that its workers, should nobody ask for more.
            return error.with_traceback(None)

    def _drop_what_is_copied(self) -> None:
        while self._under_way and self._lane.has_passed(self._under_way[0].mark):
            transfer = self._under_way.popleft()
            if self._source is not None and transfer.lease is not None and transfer.is_alone:
                self._source.settle(transfer.lease)
            transfer.sources.clear()


class _Transfer:
    """A batch on its way.

    Args:
        batch: what is moved.
        lane: on which stream.
        lease: of the slot that the batch lies in, if it does.

    Attributes:
        sources: the tensors that are copied; to be held until ``mark`` has passed.
        mark: behind the copies.
        is_alone: whether nothing of the batch's slot can be held elsewhere.
    """

    def __init__(self, batch: Any, lane: cuda.Lane, lease: Lease | None) -> None:
        self.lease = lease
        self.sources: list[torch.Tensor] = []
        self.is_alone = True
        self._lane = lane
        self._sent: list[torch.Tensor] = []
        self._has_others = False
        with lane.open():
            self._data: Any = self._rebuilt(batch, self._send)
            self.mark = lane.mark()

    def hand_over(self) -> Any:
        """Returns the batch, safe to use on this thread's current stream."""
        self._lane.receive(self._sent, self.mark)
        data, self._data, self._sent = self._data, None, []  # from now on it is the loop's alone
        return self._rebuilt(data, self._move) if self._has_others else data

    def _send(self, part: Any) -> Any:
        if _is_dense(part):
            self.sources.append(part)
            self._sent.append(self._lane.send(part))
            return self._sent[-1]
        self._has_others |= _can_move(part)
        self.is_alone &= type(part) in _VALUES
        return part

    def _move(self, part: Any) -> Any:
        if _is_dense(part) or not _can_move(part):
            return part
        try:
            return part.to(self._lane.device, non_blocking=True)
        except TypeError:  # a class whose method has no such argument
            return part.to(self._lane.device)

    def _rebuilt(self, data: Any, change: _Change) -> Any:
        """Returns ``data`` with its parts changed; a container of which nothing changes stays itself."""
        parts = None if _can_move(data) else take_apart(data, with_dataclasses=True)
        if parts is None:
            return change(data)
        self.is_alone &= parts.is_bare and all(type(key) in _VALUES for key in parts.keys)
        changed = [self._rebuilt(part, change) for part in parts.values]
        if all(new is old for new, old in zip(changed, parts.values, strict=True)):
            return data
        return parts.rebuilt(changed)


def _is_dense(part: Any) -> bool:
    return type(part) is torch.Tensor and part.layout is torch.strided and not (part.is_nested or part.is_quantized)


def _can_move(part: Any) -> bool:
    return isinstance(part, torch.Tensor) or (callable(getattr(part, "to", None)) and not isinstance(part, type))
