"""A sampler that shuffles in constant memory, and goes on from any position at once."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any, SupportsIndex, overload

import numpy as np
from torch.utils.data import Sampler

from .feistel import LONGEST, permutation

# Of the order as well as of the fields: whoever changes what a seed and an epoch give must count up.
_VERSION = 1

# Indices are made so many at a time, the first few soon. More would be no faster.
_FIRST_BLOCK, _LAST_BLOCK, _GROWTH = 256, 8192, 4


class PermutationSampler(Sampler[int]):
    """Every index once an epoch, in an order that is computed as it goes and stored nowhere.

    The order depends on the seed, the epoch and the length alone. An iterator takes less than a megabyte at any length,
    and reaches any position in the same time. Iterators are independent of each other. Each begins at the start of the
    epoch, unless `seek` or `load_state_dict` came before it. It runs in the process that iterates; nothing blocks.

    With several ranks, all have the same order and take turns: rank r has the positions r, r + num_replicas,
    r + 2 num_replicas, and so on, as with torch's ``DistributedSampler``. All ranks get equally many: the last ones
    wrap round to the order's beginning, or with ``drop_last`` the rest is left out. No process group is asked: pass
    ``dist.get_world_size()`` and ``dist.get_rank()``.

    Positions are global: they count what all ranks together were given, each as many as this one. A state is therefore
    the same on every rank, and can be loaded with any number of them.

    Every argument is an attribute of the same name.

    Args:
        data_source: a dataset or anything else that has a length, which is read anew for each iterator; or an int, the
            length itself. From 1 to 2^62.
        seed: any int; all ranks must have the same.
        num_replicas: how many ranks there are; 1 to 2^62.
        rank: which of them this is.
        drop_last: whether to leave out what the ranks could not share equally.

    Raises:
        TypeError: an argument is of another type.
        ValueError: an argument is outside of its range.
    """

    def __init__(
        self,
        data_source: Sized | SupportsIndex,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        drop_last: bool = False,
    ) -> None:
        self.data_source = data_source
        self.seed = _whole("seed", seed)
        self.num_replicas = _within("num_replicas", num_replicas, 1, LONGEST)
        self.rank = _within("rank", rank, 0, self.num_replicas - 1)
        if not isinstance(drop_last, bool):
            raise TypeError(f"drop_last must be a bool, and is {_kind(drop_last)}")
        self.drop_last = drop_last
        self._epoch = 0
        self._last: _Place | None = None  # what the state says; None: the start of the epoch
        self._sought: _Place | None = None  # where the next iterator is to begin; None: at the start
        self._length()

    @property
    def epoch(self) -> int:
        """The epoch that the next iterator is of; 0 until `set_epoch`, `seek` or `load_state_dict` says otherwise."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the iterators that follow, which begin at its start. Without it, all have the same order.

        The epoch that it is already changes nothing: a position that was sought or loaded stays.

        Args:
            epoch: any int.

        Raises:
            TypeError: it is none.
        """
        epoch = _whole("epoch", epoch)
        if epoch != self._epoch:
            self._epoch, self._last, self._sought = epoch, None, None

    def seek(self, position: int, epoch: int | None = None) -> None:
        """Lets the next iterator begin at a position, and it alone. Takes the same time at any length.

        Args:
            position: how many indices all ranks together have been given; at the length of the data, the next iterator
                yields nothing.
            epoch: to set as well; None: stays as it is.

        Raises:
            TypeError: one is no int.
            ValueError: the position is below 0 or above the length.
        """
        length = self._length()
        place = _Place(
            self._epoch if epoch is None else _whole("epoch", epoch), length, _within("position", position, 0, length)
        )
        self._epoch, self._last, self._sought = place.epoch, place, place

    def state_dict(self) -> dict[str, int]:
        """Returns where the iterator is whose first index was taken last: a dict of ints, which JSON keeps.

        It counts what that iterator has yielded; a loader may have asked for more than it has delivered. Where nothing
        was taken since `set_epoch`, `seek` or `load_state_dict`, it is what that said.
        """
        return self._state(self._last or _Place(self._epoch, self._length(), 0))

    def state_at_start(self) -> dict[str, int]:
        """Returns the state of an iterator that begins now, before it has yielded an index."""
        return self._state(self._sought or _Place(self._epoch, self._length(), 0))

    def _state(self, place: _Place) -> dict[str, int]:
        return {
            "version": _VERSION,
            "length": place.length,
            "seed": self.seed,
            "epoch": place.epoch,
            "position": place.position,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lets the next iterator begin where a state says, and sets the epoch.

        The state may come from any rank, of any number of ranks. One of the end of an epoch lets the next iterator
        yield nothing. Where the state is refused, the sampler stays as it was.

        Args:
            state: what `state_dict` returned.

        Raises:
            TypeError: it is no such dict, or a value is no int.
            ValueError: it lacks a value, is of another version, length or seed, or its position is beyond the length.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"the state must be a dict, and is {_kind(state)}")
        missing = [name for name in ("version", "length", "seed", "epoch", "position") if name not in state]
        if missing:
            raise ValueError(f"the state is of no PermutationSampler: it has no {', '.join(missing)}")
        for name, ours in (("version", _VERSION), ("length", self._length()), ("seed", self.seed)):
            if _whole(f"the state's {name}", state[name]) != ours:
                raise ValueError(f"the state is of {name} {state[name]}, and this sampler's is {ours}")
        self.seek(state["position"], state["epoch"])

    @overload
    def at(self, positions: int | np.integer[Any]) -> int: ...
    @overload
    def at(self, positions: Sequence[int] | np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.int64]]: ...
    def at(self, positions: Any) -> Any:
        """Returns what is at global positions of the epoch: the rank does not matter.

        Args:
            positions: an int, or ints as a sequence or an array of any shape; from 0 up to the length.

        Returns:
            For an int, an int; otherwise an array of the same shape, int64.

        Raises:
            TypeError: they are something else.
            IndexError: one is below 0, or not below the length.
        """
        try:
            wanted = np.asarray(positions)
        except ValueError as error:
            raise TypeError(f"positions must be an int, or ints of one shape: {error}") from error
        if wanted.size and wanted.dtype.kind not in "iu":
            raise TypeError(f"positions must be ints of 64 bits, and are of dtype {wanted.dtype}")
        length = self._length()
        if wanted.size and not 0 <= int(wanted.min()) <= int(wanted.max()) < length:
            raise IndexError(f"positions must be from 0 to {length - 1}, and are from {wanted.min()} to {wanted.max()}")
        found = permutation(length, self.seed, self._epoch)(wanted.astype(np.uint64).reshape(-1)).astype(np.int64)
        return found.reshape(wanted.shape) if wanted.ndim else int(found[0])

    def __len__(self) -> int:
        """Returns how many indices this rank has in a whole epoch, wherever its iterators begin."""
        return self._share(self._length())

    def __iter__(self) -> Iterator[int]:
        """Yields this rank's indices, from where it was told to begin to the end of the epoch.

        Raises:
            ValueError: the length has changed since a position in it was sought or loaded.
        """
        length = self._length()
        sought = self._sought
        if sought is not None and sought.length != length:
            raise ValueError(
                f"data_source has length {length}, and had {sought.length} when position {sought.position} was sought"
            )
        return itertools.chain.from_iterable(self._blocks(_Place(self._epoch, length, 0), sought))

    def _blocks(self, place: _Place, sought: _Place | None) -> Iterator[Iterator[int]]:
        """Yields the iterators of blocks, one after another; runs from the first index on.

        Only then is a position that was sought used up: torch's loader makes two iterators, and reads the second.
        """
        start = 0
        if sought is not None and sought is self._sought:
            start, self._sought = sought.position, None
        self._last = place
        place.reach(start)
        order = permutation(place.length, self.seed, place.epoch)
        share, step = self._share(place.length - start), self.num_replicas
        length, first = np.uint64(place.length), np.uint64(start + self.rank)
        begin, size = 0, _FIRST_BLOCK
        while begin < share:
            end = min(begin + size, share)
            positions = np.arange(begin, end, dtype=np.uint64) * np.uint64(step) + first
            yield place.hand_out(order(positions % length).tolist(), start + end * step, step)
            begin, size = end, min(size * _GROWTH, _LAST_BLOCK)

    def _share(self, count: int) -> int:
        """Returns how many of so many positions are one rank's."""
        return count // self.num_replicas if self.drop_last else -(-count // self.num_replicas)

    def _length(self) -> int:
        source = self.data_source
        # Arrays and tensors without an axis have the method, and no length.
        if hasattr(type(source), "__len__") and getattr(source, "ndim", None) != 0:
            return _within("the length of data_source", len(source), 1, LONGEST)  # type: ignore[arg-type]
        if not hasattr(type(source), "__index__"):
            raise TypeError(f"data_source must have a length or be an int, and is {_kind(source)}")
        return _within("data_source", source, 1, LONGEST)

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a copy begins with; the iterators remain those of the original."""
        return {**self.__dict__, "_last": self._last and self._last.copy()}


class _Place:
    """A global position in an epoch: where an iterator is, or where one is to begin.

    An iterator does not say how far it is each time that it yields. It says where its block ends, and what is left of
    the block is asked of the block's own iterator.
    """

    def __init__(self, epoch: int, length: int, position: int) -> None:
        self.epoch = epoch
        self.length = length
        self.reach(position)

    @property
    def position(self) -> int:
        """The position, 0 to the length: what wraps round counts no further."""
        end, step, block = self._state
        return min(self.length, end - step * operator.length_hint(block))

    def reach(self, position: int) -> None:
        """Sets the position."""
        self.hand_out([], position, 1)

    def hand_out(self, block: list[int], end: int, step: int) -> Iterator[int]:
        """Returns a block's iterator; the position is ``end`` at its end, and ``step`` less for each index left."""
        iterator = iter(block)
        self._state = (end, step, iterator)  # as one, since another thread may ask for the position
        return iterator

    def copy(self) -> _Place:
        """Returns the place that it is now."""
        return _Place(self.epoch, self.length, self.position)

    def __reduce__(self) -> tuple[type[_Place], tuple[int, int, int]]:
        return _Place, (self.epoch, self.length, self.position)


def _within(name: str, value: object, low: int, high: int) -> int:
    number = _whole(name, value)
    if not low <= number <= high:
        raise ValueError(f"{name} must be from {low} to {high}, and is {number}")
    return number


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an int, and is a bool")
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an int, and is {_kind(value)}") from None


def _kind(value: object) -> str:
    return f"of type {type(value).__qualname__}"
