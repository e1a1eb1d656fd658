"""Nested structures: what containers consist of, how the way to a part is written, and how they are made again."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping, MutableSequence, Sequence
from itertools import islice
from typing import Any, NamedTuple

# Sequences that are no containers.
_FLAT = (str, bytes, bytearray, memoryview, range)

_CONSTANTS = {type(None), bool, int, float, str, bytes}
_KEYS = _CONSTANTS - {type(None)}

# What is nested deeper is not compiled: a loop may have few Python frames left.
_MAX_DEPTH = 16

Join = Callable[[Iterator[Any]], Any]


class Parts(NamedTuple):
    """A container and what it consists of.

    Attributes:
        whole: the container.
        keys: by what it has them: a mapping's keys, positions, the names of fields.
        values: the parts.
    """

    whole: Any
    keys: Sequence[Any]
    values: list[Any]

    @property
    def paths(self) -> list[str]:
        """How one writes each part behind the container's name: ``['image']``, ``[0]``, ``.label``."""
        is_indexed = isinstance(self.whole, (Mapping, Sequence))
        return [f"[{key!r}]" if is_indexed else f".{key}" for key in self.keys]

    @property
    def is_bare(self) -> bool:
        """Whether there is certainly nothing to the container but its parts, but perhaps to its keys."""
        whole = self.whole
        return type(whole) in (list, tuple, dict) or (hasattr(whole, "_fields") and not hasattr(whole, "__dict__"))

    def rebuilt(self, values: list[Any]) -> Any:
        """Returns a container of the same kind with other parts, and with whatever else it has.

        These are parts already, and not what such a container is made of. So no class is called that might make
        something of them once more: a named tuple with a ``__new__`` of its own would, and a Counter adds what it is
        given. torch calls both (torch/utils/data/_utils/pin_memory.py). As there, one that does not take its parts
        becomes a plain one.
        """
        if isinstance(self.whole, Mapping):
            return _as_mapping(self, values)
        return _as_sequence(self.whole, values) if isinstance(self.whole, Sequence) else _as_dataclass(self, values)


def take_apart(whole: Any, with_dataclasses: bool = False) -> Parts | None:
    """Returns the parts of a mapping or a sequence, or None for anything else.

    Args:
        whole: of text and bytes the items are no parts.
        with_dataclasses: whether the fields of a dataclass are parts too.
    """
    if isinstance(whole, Mapping):
        return Parts(whole, list(whole), list(whole.values()))
    if isinstance(whole, Sequence):
        return None if isinstance(whole, _FLAT) else Parts(whole, range(len(whole)), list(whole))
    if with_dataclasses and dataclasses.is_dataclass(whole) and not isinstance(whole, type):
        names = [field.name for field in dataclasses.fields(whole) if hasattr(whole, field.name)]
        return Parts(whole, names, [getattr(whole, name) for name in names])
    return None


def leaves(whole: Any) -> Iterator[Any]:
    """Yields what is no container, in order."""
    found = [whole]
    while found:  # and not by calling itself: a batch may be nested deeper than calls can be
        part = found.pop()
        parts = take_apart(part)
        if parts is None:
            yield part
        else:
            found.extend(reversed(parts.values))


class NotPlainError(Exception):
    """A structure has more in it than lists, tuples, named tuples and dicts of leaves and constants.

    So it has where the class of a named tuple makes something of its parts, see `is_named`.
    """


def joiner(whole: Any, is_leaf: Callable[[Any], bool]) -> Join:
    """Returns a function that makes a structure like ``whole`` of its leaves, taken in order from an iterator.

    Args:
        whole: the structure.
        is_leaf: whether an object is a leaf. What is none, and no container, has to be a constant.

    Raises:
        NotPlainError: an object is of another type, is nested too deep, or occurs twice: then it would have to be one
            object in all that are made.
    """
    return _compiled(whole, is_leaf, set(), 0)


def any_joiner(whole: Any, is_leaf: Callable[[Any], bool]) -> Join:
    """Does the same for every structure of leaves; what `joiner` does not know is taken apart each time."""
    try:
        return joiner(whole, is_leaf)
    except NotPlainError:
        return lambda found: _rebuilt(whole, is_leaf, found)


def _rebuilt(node: Any, is_leaf: Callable[[Any], bool], found: Iterator[Any]) -> Any:
    if is_leaf(node):
        return next(found)
    parts = take_apart(node)
    assert parts is not None
    return parts.rebuilt([_rebuilt(part, is_leaf, found) for part in parts.values])


def _compiled(node: Any, is_leaf: Callable[[Any], bool], seen: set[int], depth: int) -> Join:
    if is_leaf(node):
        return next
    kind = type(node)
    if kind in _CONSTANTS:
        return lambda leaves: node
    if depth > _MAX_DEPTH or (id(node) in seen and node != ()):
        raise NotPlainError
    seen.add(id(node))
    if kind is dict:
        if not set(map(type, node)) <= _KEYS:
            raise NotPlainError
        keys = list(node)
        join = _joined([_compiled(value, is_leaf, seen, depth + 1) for value in node.values()])
        return lambda leaves: dict(zip(keys, join(leaves), strict=True))
    if not (kind is list or kind is tuple or is_named(node)):
        raise NotPlainError
    join = _joined([_compiled(child, is_leaf, seen, depth + 1) for child in node])
    if kind is list:
        return join
    make = tuple if kind is tuple else kind._make
    return lambda leaves: make(join(leaves))


def is_named(node: Any) -> bool:
    """Whether it is a named tuple of a class that makes nothing else of its parts than that.

    A class derived from one may have methods of its own by which it is made, or its parts are read, and so may its
    metaclass. torch iterates over a sample and calls the class with the parts, and ``_make`` calls nothing.
    """
    kind = type(node)
    if not isinstance(node, tuple) or type(kind).__call__ is not type.__call__:
        return False
    makers = [base for base in kind.__mro__ if "_make" in vars(base)]
    if len(makers) != 1:  # the one that was generated; another's may do anything
        return False
    is_tuples = kind.__init__ is tuple.__init__ and kind.__iter__ is tuple.__iter__
    return is_tuples and kind.__new__ is makers[0].__new__


def _joined(parts: list[Join]) -> Callable[[Iterator[Any]], list[Any]]:
    if all(part is next for part in parts):
        return lambda leaves: list(islice(leaves, len(parts)))
    return lambda leaves: [part(leaves) for part in parts]


def _as_mapping(parts: Parts, values: list[Any]) -> Any:
    whole, items = parts.whole, dict(zip(parts.keys, values, strict=True))
    try:
        if not isinstance(whole, MutableMapping):
            return type(whole)(items)
        clone = copy.copy(whole)  # it may have more than its items
        if isinstance(clone, Counter):
            dict.update(clone, items)
        else:
            clone.update(items)
    except TypeError:
        return items
    if getattr(whole, "__dict__", None) is whole:  # whose items are its attributes too
        object.__setattr__(clone, "__dict__", clone)
    return clone


def _as_tuple(whole: Any, values: list[Any]) -> Any:
    kind = type(whole)
    try:
        made = tuple.__new__(kind, values)
    except TypeError:  # a class of C's, as functions of torch return
        return kind(*values) if hasattr(whole, "_fields") else kind(values)
    if hasattr(whole, "__dict__"):
        made.__dict__.update(whole.__dict__)
    return made


def _as_sequence(whole: Any, values: list[Any]) -> Any:
    if isinstance(whole, tuple):
        return _as_tuple(whole, values)
    try:
        if not isinstance(whole, MutableSequence):
            return type(whole)(values)
        clone = copy.copy(whole)
        for place, value in enumerate(values):
            clone[place] = value
    except TypeError:
        return values
    return clone


def _as_dataclass(parts: Parts, values: list[Any]) -> Any:
    clone = copy.copy(parts.whole)
    for name, value in zip(parts.keys, values, strict=True):
        object.__setattr__(clone, name, value)  # frozen ones too
    return clone
