"""Seeds of single samples, made of a base seed, an epoch and the sample's index, and of nothing else.

Pure: no generator is touched here. A seed is a hash, and not the sum of its parts: neighbouring indices and epochs have
nothing in common, and no two combinations meet because their sums do. It is the same on every machine and with every
release, since a pass may be resumed elsewhere.
"""

from __future__ import annotations

import operator
import struct
from hashlib import blake2b
from typing import Any

import numpy as np
import torch

_SEEDS = struct.Struct("<qIQ")

_PLAIN: tuple[type, ...] = (str, bytes, float)

# What no sample's index is taken for: samples are keyed by bytes that begin otherwise.
BEGINNING = b"begin"


class SampleSeeds:
    """The seeds of one pass.

    Args:
        base_seed: of the loader's life.
        epoch: the number of the pass.
    """

    def __init__(self, base_seed: int, epoch: int) -> None:
        # usedforsecurity: systems that allow certified hashes only would refuse this one.
        self._begun = blake2b(
            b"%d,%d;" % (base_seed, epoch), digest_size=_SEEDS.size, person=b"shmloader sample", usedforsecurity=False
        )

    def of(self, index: Any) -> tuple[int, int, int]:
        """Returns the seeds of one sample, for torch's, numpy's and Python's generator.

        Args:
            index: what the sampler gave: an int of any kind, a str, bytes, float or None, a slice, or a list, tuple,
                array or tensor of these. Equal ones have equal seeds, whatever kind of int or sequence they are.

        Raises:
            TypeError: it is something else, for which no bytes are certain to be the same in every process.
        """
        digest = self._begun.copy()
        digest.update(b"%d" % index if type(index) is int else _key(index))
        return _unpacked(digest.digest())

    def of_the_beginning(self) -> tuple[int, int, int]:
        """Returns those for what comes before the first sample: an iterable dataset's ``__iter__``."""
        digest = self._begun.copy()
        digest.update(BEGINNING)
        return _unpacked(digest.digest())


def _unpacked(digest: bytes) -> tuple[int, int, int]:
    of_torch, of_numpy, of_python = _SEEDS.unpack(digest)
    return of_torch, of_numpy, of_python


def _key(index: Any) -> bytes:
    if isinstance(index, (np.ndarray, np.generic, torch.Tensor)):
        index = index.tolist()  # first: torch takes a sequence of one int for an int
    try:
        return b"%d" % operator.index(index)
    except TypeError:
        pass
    for kind in _PLAIN:
        if isinstance(index, kind):
            return repr(kind(index)).encode()  # as the plain type has it: subclasses have texts of their own
    if index is None:
        return b"None"
    if isinstance(index, slice):
        return b"slice" + _key((index.start, index.stop, index.step))
    if isinstance(index, (list, tuple, range)):
        return b"(%b)" % b",".join(map(_key, index))
    raise TypeError(
        f"seeding='sample' makes a sample's seeds of its index, and cannot of a {type(index).__qualname__}: indices "
        "must be ints, str, bytes, floats, None, slices, or sequences of these"
    )
