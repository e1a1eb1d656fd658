"""Batches on their way to a device, ahead of the loop.

A batch that the workers have made is copied on a stream of its own while the loop computes with those before it. It is
handed out with the loop's current stream made to wait for the copy, if it is not over by then; the host never waits.

What moves when:

- dense tensors, in whatever lists, tuples, mappings and dataclasses: ahead;
- anything else with a method ``to``, tensors of other templates and classes among it: when it is handed out, on the
  loop's own stream, since nobody can tell what memory such an object has, and it belongs to the stream it is made on;
- the rest stays as it is.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping, MutableSequence, Sequence
from typing import Any

import torch
from torch.utils.data.dataloader import _BaseDataLoaderIter

from shmloader.passes.iterator import ShmIterator

from . import cuda

_Change = Callable[[Any], Any]

# Sequences of nothing that could move.
_FLAT = (str, bytes, bytearray, memoryview, range)
# What holds no tensor, and containers that hold nothing but their items.
_VALUES = (type(None), bool, int, float, complex, str, bytes)
_CONTAINERS = (list, tuple, dict)


class DeviceIterator(_BaseDataLoaderIter):
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

    def __init__(self, host: _BaseDataLoaderIter, device: torch.device, depth: int) -> None:
        self.host = host
        self.device = device
        self.depth = depth
        self._lane = cuda.Lane(cuda.resolve(device))
        self._ahead: deque[_Parcel | Exception] = deque()
        self._under_way: deque[_Parcel] = deque()

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
        first = self._ahead.popleft() if self._ahead else self._take()
        try:
            if isinstance(first, Exception):
                raise first
            self._look_ahead()
            return first.hand_over()
        finally:  # an exception would hold this frame, and the frame it
            del first

    def _take(self) -> _Parcel:
        """Takes the host's next batch and begins to copy it."""
        parcel = _Parcel(next(self.host), self._lane)
        self._under_way.append(parcel)
        return parcel

    def _look_ahead(self) -> None:
        """Takes what is made already. What goes wrong, or that there is no more, is told when it is its turn."""
        while len(self._ahead) < self.depth and isinstance(self.host, ShmIterator) and self.host.is_ready():
            self._ahead.append(self._taken())

    def _taken(self) -> _Parcel | Exception:
        try:
            return self._take()
        except Exception as error:
            # Without the frames, which hold the iterator, and that its workers, should nobody ask for more.
            return error.with_traceback(None)

    def _drop_what_is_copied(self) -> None:
        while self._under_way and self._lane.has_passed(self._under_way[0].mark):
            parcel = self._under_way.popleft()
            if parcel.is_alone and isinstance(self.host, ShmIterator):
                self.host.settle(tensor.data_ptr() for tensor in parcel.sources)
            parcel.sources.clear()


class _Parcel:
    """A batch on its way.

    Args:
        batch: what is moved.
        lane: on which stream.

    Attributes:
        sources: the tensors that are copied; to be held until ``mark`` has passed.
        mark: behind the copies.
        is_alone: whether nothing of the batch's slot can be in anybody else's hands.
    """

    def __init__(self, batch: Any, lane: cuda.Lane) -> None:
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
        except TypeError:  # a class that knows nothing of that
            return part.to(self._lane.device)

    def _rebuilt(self, data: Any, change: _Change) -> Any:
        """Returns ``data`` with its parts changed; a container of which nothing changes stays itself.

        How containers are made anew is torch's way (torch/utils/data/_utils/pin_memory.py).
        """
        if _can_move(data) or isinstance(data, (type, *_FLAT)):
            return change(data)
        if isinstance(data, Mapping):
            keys, parts, make = list(data), list(data.values()), _as_mapping
        elif isinstance(data, Sequence):
            keys, parts, make = [], list(data), _as_sequence
        elif dataclasses.is_dataclass(data):
            keys = [field.name for field in dataclasses.fields(data) if hasattr(data, field.name)]
            parts, make = [getattr(data, name) for name in keys], _as_dataclass
        else:
            return change(data)
        is_bare = type(data) in _CONTAINERS or (hasattr(data, "_fields") and not hasattr(data, "__dict__"))
        self.is_alone &= is_bare and all(type(key) in _VALUES for key in keys)
        changed = [self._rebuilt(part, change) for part in parts]
        if all(new is old for new, old in zip(changed, parts, strict=True)):
            return data
        return make(data, keys, changed)


def _is_dense(part: Any) -> bool:
    return type(part) is torch.Tensor and part.layout is torch.strided and not (part.is_nested or part.is_quantized)


def _can_move(part: Any) -> bool:
    return isinstance(part, torch.Tensor) or (callable(getattr(part, "to", None)) and not isinstance(part, type))


def _as_mapping(data: Any, keys: list[Any], parts: list[Any]) -> Any:
    items = dict(zip(keys, parts, strict=True))
    try:
        if not isinstance(data, MutableMapping):
            return type(data)(items)
        clone = copy.copy(data)  # it may have more than its items
        clone.update(items)
    except TypeError:
        return items
    return clone


def _as_sequence(data: Any, keys: list[Any], parts: list[Any]) -> Any:
    if isinstance(data, tuple):
        return type(data)(*parts) if hasattr(data, "_fields") else type(data)(parts)
    try:
        if not isinstance(data, MutableSequence):
            return type(data)(parts)
        clone = copy.copy(data)
        for place, part in enumerate(parts):
            clone[place] = part
    except TypeError:
        return parts
    return clone


def _as_dataclass(data: Any, keys: list[Any], parts: list[Any]) -> Any:
    clone = copy.copy(data)
    for name, part in zip(keys, parts, strict=True):
        object.__setattr__(clone, name, part)  # frozen ones too
    return clone
