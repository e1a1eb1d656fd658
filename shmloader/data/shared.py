"""Data that all workers read, in memory that there is once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch

from shmloader.batches.structure import take_apart
from shmloader.batches.tensors import Array, is_dense, is_plain

from .shared_arrays import SharedArray, share_arrays
from .shared_sequence import SharedSequence, share_sequences
from .shared_tensors import share_tensors

_ARRAYS = np.ndarray, torch.Tensor
_LEAVES = (*_ARRAYS, SharedSequence)
_PLAIN_ARRAYS = {np.ndarray, np.memmap, SharedArray}

# What is nested deeper is no structure.
_MAX_DEPTH = 50
_MAX_NAME = 100


@overload
def share(obj: Array, *, frozen: bool = False, as_objects: bool = False) -> Array: ...
@overload
def share(obj: torch.Tensor, *, frozen: bool = False, as_objects: bool = False) -> torch.Tensor: ...
@overload
def share(obj: Any, *, frozen: bool = False, as_objects: bool = False) -> Any: ...
def share(obj: Any, *, frozen: bool = False, as_objects: bool = False) -> Any:
    """Copies data into shared memory once, and returns the same kind of thing over it, for workers to read.

    Workers of any start method get it without a copy, alone or anywhere in a dataset; so does any process that
    multiprocessing starts, or that is sent it by a queue of multiprocessing's. The memory has no name, takes nothing of
    ``/dev/shm``, and is freed with its last user, in whatever order processes end.

    What it makes:

    - of an array (``np.ndarray``, also a memory map): an array, contiguous. Slices of it are shared as well. A row that
      an int picks is a plain array over the same memory, and sent by value.
    - of a dense CPU tensor: a tensor, contiguous.
    - of a list or tuple of Python objects: a read-only sequence, with ``len``, iteration, ints and slices as indices.
      Each item is pickled by itself, and made anew whenever it is read.
    - of a dict, or a named tuple: one of the same kind, of whose parts each is shared by these rules.
    - of a list or tuple in which all leaves, however nested in lists, tuples and dicts, are arrays and tensors: one of
      the same kind, of shared arrays and tensors. With ``as_objects`` it is a sequence of objects too, as suits one of
      very many small arrays.

    Writing to a shared array or tensor is seen by all processes that have it, forked ones included. A ``frozen`` array
    can be written to by none.

    All arrays of one call lie in one file, all objects in one, and all tensors of a dtype in one. Each file takes one
    descriptor in each process that has any part of it, and lives as long as any part of it does. The tensors of a dtype
    are views of one storage, so ``torch.save`` of one of them writes all of them.

    Pickled by other means than multiprocessing's, copied by ``copy``, or returned by a loader's worker, it goes by
    value, as a plain array, tensor or list. (``copy`` of a sequence is the sequence.)

    Args:
        obj: the data. What occurs in it twice is shared once, and one object in the result too; so is a list or dict.
        frozen: whether arrays are read-only, in every process. There are no read-only tensors. Sequences always are.
        as_objects: whether lists and tuples are sequences of Python objects whatever is in them.

    Returns:
        What shares the data. ``obj`` itself is not changed, nor referred to.

    Raises:
        TypeError: an option is no bool; or there is something in it that cannot be shared, which the message names: an
            array of objects; a
            sparse, quantized or nested tensor, one of another device, one that requires grad; an object that cannot be
            pickled; a list with arrays beside something else, of which it is not clear what it is meant to be; a dict,
            or a list of arrays, that contains itself.
        MemoryError: there is not that much memory, or a limit on file sizes is lower.
        OSError: there is no memfd on this platform (other than Linux), or no descriptor left.
        RuntimeError: there is none left for tensors, which torch says in this way.
    """
    for option, value in (("frozen", frozen), ("as_objects", as_objects)):
        if not isinstance(value, bool):
            raise TypeError(f"{option} must be a bool, and is of type {_type_name(value)}")
    found = _Found(frozen, as_objects)
    rebuild = found.plan(obj, "obj")
    return rebuild(found.share())


@dataclass(frozen=True, eq=False)
class _Shared:
    """What was shared, in the order in which it was found."""

    arrays: Sequence[Array]
    tensors: Sequence[torch.Tensor]
    sequences: Sequence[SharedSequence[Any]]


_Rebuild = Callable[[_Shared], Any]


class _Found:
    """What there is to share in a structure.

    Args:
        frozen: whether arrays become read-only.
        as_objects: whether every list and tuple is a sequence of objects.
    """

    def __init__(self, frozen: bool, as_objects: bool) -> None:
        self._frozen = frozen
        self._as_objects = as_objects
        self._arrays: list[Array] = []
        self._tensors: list[torch.Tensor] = []
        self._sequences: list[tuple[str, Sequence[Any]]] = []
        self._known: dict[int, tuple[Any, _Rebuild]] = {}  # with the object, whose identity stays its own meanwhile
        self._open: dict[int, str] = {}  # the structures that what is being looked at lies in, and their names

    def share(self) -> _Shared:
        """Shares what was found."""
        # First what may turn out not to be possible.
        sequences = share_sequences(self._sequences) if self._sequences else []
        tensors = share_tensors(self._tensors) if self._tensors else []
        arrays = share_arrays(self._arrays, self._frozen) if self._arrays else []
        return _Shared(arrays, tensors, sequences)

    def plan(self, obj: Any, name: str, depth: int = 0, in_list: bool = False) -> _Rebuild:
        """Finds what there is in ``obj``, and returns what makes one like it of what was shared.

        Args:
            obj: the structure, or a part of it.
            name: what errors call it.
            depth: how deep in the structure it is.
            in_list: whether it lies in a list or tuple of nothing but arrays.

        Raises:
            TypeError: there is something in it that cannot be shared.
        """
        if id(obj) in self._known:
            return self._known[id(obj)][1]
        if isinstance(obj, _LEAVES) or _is_items(obj, name, in_list, self._as_objects):
            rebuild = self._take(obj, name)
        else:
            # What occurs twice is looked at, and made, once.
            rebuild = functools.cache(self._plan_parts(obj, name, depth, in_list))
        self._known[id(obj)] = obj, rebuild
        return rebuild

    def _plan_parts(self, obj: Any, name: str, depth: int, in_list: bool) -> _Rebuild:
        parts = take_apart(obj) if isinstance(obj, (dict, list, tuple)) else None
        if parts is None:
            raise TypeError(
                "share() takes an array, a tensor, a list or tuple of Python objects, or a dict of such, "
                f"and {name} is of type {_type_name(obj)}"
            )
        if id(obj) in self._open:
            raise TypeError(f"share() cannot take {self._open[id(obj)]}: it contains itself, as {name[:_MAX_NAME]}")
        if depth > _MAX_DEPTH:
            raise TypeError(f"share() cannot take {name[:_MAX_NAME]}...: it is nested too deep")
        in_list = in_list or _is_plain_sequence(obj)
        self._open[id(obj)] = name[:_MAX_NAME]
        plans = [
            self.plan(part, name + path, depth + 1, in_list)
            for path, part in zip(parts.paths, parts.values, strict=True)
        ]
        del self._open[id(obj)]
        return lambda shared: parts.rebuilt([rebuild(shared) for rebuild in plans])

    def _take(self, leaf: Any, name: str) -> _Rebuild:
        if isinstance(leaf, np.ndarray):
            number = len(self._arrays)
            self._arrays.append(_checked_array(leaf, name))
            return lambda shared: shared.arrays[number]
        if isinstance(leaf, torch.Tensor):
            if self._frozen:
                raise TypeError(
                    f"share(frozen=True): {name} is a tensor, and torch has no read-only ones; share an array"
                )
            number = len(self._tensors)
            self._tensors.append(_checked_tensor(leaf, name))
            return lambda shared: shared.tensors[number]
        number = len(self._sequences)
        self._sequences.append((name, leaf))
        return lambda shared: shared.sequences[number]


def _is_items(obj: Any, name: str, in_list: bool, as_objects: bool) -> bool:
    """Whether ``obj`` is a list or tuple of Python objects, and not a structure.

    Raises:
        TypeError: it could be either.
    """
    if not _is_plain_sequence(obj) or in_list:
        return False
    if as_objects or not _has_arrays_only(obj):
        odd = next((number for number, item in enumerate(obj) if isinstance(item, _ARRAYS)), None)
        if odd is not None and not as_objects:
            raise TypeError(
                f"share(): {name}[{odd}] is an array or tensor, and there is something else in {name}. To share its "
                "parts, make it a dict or a named tuple; to have its items pickled one by one, pass as_objects=True"
            )
        return True
    return False


def _is_plain_sequence(obj: Any) -> bool:
    return isinstance(obj, (list, tuple)) and not hasattr(obj, "_fields")


def _has_arrays_only(whole: Any) -> bool:
    """Whether there are leaves, and all are arrays or tensors."""
    leaf = None
    for leaf in _leaves(whole, 0, set()):
        if not isinstance(leaf, _ARRAYS):
            return False
    return leaf is not None


def _leaves(whole: Any, depth: int, seen: set[int]) -> Iterator[Any]:
    """Yields what is no container; of one that occurs twice the parts are yielded once."""
    if depth > _MAX_DEPTH or not isinstance(whole, (dict, list, tuple)):
        yield whole
    elif id(whole) not in seen:
        seen.add(id(whole))
        for part in whole.values() if isinstance(whole, dict) else whole:
            yield from _leaves(part, depth + 1, seen)


def _checked_array(array: Array, name: str) -> Array:
    if type(array) not in _PLAIN_ARRAYS:
        raise TypeError(
            f"share() takes arrays of no class of their own, and {name} is of type {_type_name(array)}; "
            "share np.asarray() of it if its elements are all there is to it"
        )
    if array.dtype.hasobject:
        raise TypeError(f"share(): {name} is an array of Python objects (dtype {array.dtype}); share its tolist()")
    return array


def _checked_tensor(tensor: torch.Tensor, name: str) -> torch.Tensor:
    if is_plain(tensor) and not tensor.requires_grad:
        tensor = tensor.resolve_conj().resolve_neg()
    if not is_dense(tensor):
        kind = f"{_type_name(tensor)}, {tensor.layout}, {tensor.dtype}, on {tensor.device}"
        raise TypeError(
            "share() takes dense CPU tensors that do not require grad, and of no class of their own; "
            f"{name} is {kind}{', and requires grad' * tensor.requires_grad}"
        )
    return tensor


def _type_name(obj: Any) -> str:
    return type(obj).__qualname__
