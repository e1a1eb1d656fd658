"""A dataset that keeps what another one returned, for all processes that read it."""

from __future__ import annotations

import errno
import hashlib
import operator
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Dataset, IterableDataset, Subset

from shmloader.arguments import checked_optional_count
from shmloader.errors import CacheFullWarning
from shmloader.slots.limits import available_memory, file_size_limit, memory_limit

from .cache_file import at_path, in_memory
from .cache_layout import Record
from .cache_readers import Reader
from .cache_tally import Mark, Tally
from .gather import row_numbers
from .sample_forms import PlainForm, Taken, form_of, take

_MISSING = object()

# After these no further sample of this process is written.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

# What a sample in a file may raise that an earlier version of the user's code has written: a class is not there now.
_UNREADABLE = (AttributeError, ImportError, ValueError)

_MAX_WRAPPED = 20


@dataclass(frozen=True)
class CacheStatistics:
    """What a `CachedDataset` has done. It is immutable, and true of the moment it was asked for.

    Hits, misses and samples that did not fit are summed over all processes and threads that share the object: workers,
    and whatever else was forked, or was sent it by multiprocessing. Samples and bytes are of all that use the file.

    Attributes:
        length: how many samples the dataset has.
        samples: how many of them are kept.
        bytes: what their records take, those included that were written in vain.
        max_bytes: what they may take.
        hits: how often a sample was read from the cache.
        misses: how often one was read from the dataset.
        did_not_fit: how many samples were read and found no room, and are not kept now.
    """

    length: int
    samples: int
    bytes: int
    max_bytes: int
    hits: int
    misses: int
    did_not_fit: int


class CachedDataset(Dataset[Any]):
    """The samples of a dataset, each read once, by whichever process comes to it first, and kept for all.

    What the first read of a sample returned is kept in shared memory, or in a file. All workers of any kind and start
    method, and all passes, get it from there; with ``path`` so do other programs on this machine, such as the ranks of
    a job, and later runs. Any loader can read it. `ShmDataLoader` with the default collate function reads samples of
    arrays, tensors and numbers straight into the batch.

    What is random belongs behind the cache, for it would be random once: decode, cache, augment:

        class Augmented(Dataset):
            def __init__(self, pictures):
                self.pictures = pictures

            def __len__(self):
                return len(self.pictures)

            def __getitem__(self, index):
                picture, label = self.pictures[index]
                return random_crop(picture), label

        loader = ShmDataLoader(Augmented(CachedDataset(Decoded(files))), batch_size=64, num_workers=4)

    A sample that is returned is the caller's own: writing to it changes nothing in the cache. It is what the dataset
    returned, but for the layout of arrays that are neither C- nor Fortran-contiguous, which are made C-contiguous. This
    holds for the first read too. Read-only arrays come as ones that may be written to.

    No process waits for another one. Two that read the same sample at the same time both read it from the dataset. One
    that is killed, at any instruction, leaves a sample whole or absent. An error of the dataset is raised and not kept.

    A sample that does not fit is read anew each time. `CacheFullWarning` says so once where it is so for more than half
    of them, and where the file cannot be written to any more.

    *The file* is recognised by the number of samples and by the fingerprint. The class of the dataset, and of those
    that it wraps as ``.dataset``, is part of that; what it was made with is not. So give a ``fingerprint`` of whatever
    the samples depend on: a size, a list of files, a version. A file that was cut short or damaged costs the samples
    that it has lost. Each record of a file that was there is checked once before it is used. A file has pickles in it:
    open only your own. It is for the processes of one machine at a time, and must not be cut while it is used, or
    samples are lost.

    Sent by multiprocessing, or forked, it is the same cache. Pickled by other means it is the file at ``path``, or a
    new and empty cache; ``copy`` and ``copy.deepcopy`` share the cache.

    Args:
        dataset: map-style, with a length. Whatever a batch may hold, a sample may hold.
        max_bytes: what the kept samples may take. By default, in memory: half of the memory that this process may use,
            as for ``max_pool_bytes``, or what is available now if that is less; with ``path``: what the file has, and
            half of what is free on its disk. The index takes 9 bytes a sample beside that.
        path: the name of a file, which is made where there is none. None: shared memory, which has no name, and is
            gone with its last process.
        fingerprint: tells apart files of datasets that are of one class and length. Not used without ``path``.

    Raises:
        TypeError: ``dataset`` has no length or cannot be indexed, or an argument is of another type.
        ValueError: ``max_bytes`` is not positive; or the file is something else: the cache of another dataset, or of
            another format. It is left as it is.
        OSError: the file cannot be opened, made or written to, or no descriptor is left.

    Attributes:
        dataset: as above.
        max_bytes: what the kept samples may take.
        path: as above, absolute, and without symbolic links.
    """

    def __init__(
        self,
        dataset: Any,
        max_bytes: int | None = None,
        path: str | os.PathLike[str] | None = None,
        *,
        fingerprint: str = "",
    ) -> None:
        self.dataset = dataset
        self._length = _checked_length(dataset)
        checked_optional_count("max_bytes", max_bytes, 1)
        if not isinstance(fingerprint, str):
            raise TypeError(f"fingerprint must be a str, got {fingerprint!r}")
        self._tally = Tally(self._length)
        if path is None:
            self._file = in_memory(self._length, max_bytes or _memory_for_a_cache())
        else:
            name = _checked_path(path)
            self._file = at_path(name, self._length, _fingerprint_of(dataset, fingerprint), max_bytes or 1)
            self._file.max_bytes = max_bytes or self._file.nbytes + _disk_for_a_cache(name)
        # Of this process:
        self._is_full = self._has_warned = False
        self._refused = 0

    @property
    def max_bytes(self) -> int:
        """What the kept samples may take."""
        return self._file.max_bytes

    @property
    def path(self) -> str | None:
        """The file's name, absolute; None for shared memory."""
        return self._file.path

    @property
    def _reader(self) -> Reader:
        return self._file.reader

    def __len__(self) -> int:
        return self._length

    def statistics(self) -> CacheStatistics:
        """Returns what was counted so far. Reads the index, 9 bytes a sample."""
        counts = self._tally.counts()
        refused = self._tally.marked(Mark.NO_ROOM)
        return CacheStatistics(
            length=self._length,
            samples=self._file.count(),
            bytes=self._file.nbytes,
            max_bytes=self.max_bytes,
            hits=counts.hits,
            misses=counts.misses,
            did_not_fit=int(np.count_nonzero(refused)) - self._file.count(refused),
        )

    # -- reading -------------------------------------------------------------------------------------------------

    def __getitem__(self, index: Any) -> Any:
        """Returns a sample, which is the caller's own.

        Args:
            index: an int, of any type that is one. Negative ones count from the end.

        Raises:
            IndexError: there is no such sample.
            TypeError: ``index`` is no int, or the sample cannot be kept: something in it cannot be pickled.
        """
        number = self._number(index)
        sample = self._kept(number)
        if sample is not _MISSING:
            self._tally.add(1, 0)
            return sample
        self._tally.add(0, 1)
        return self._keep(number, self.dataset[number])

    def __getitems__(self, indices: Sequence[Any]) -> list[Any]:
        """Returns the samples of a batch; those that are not kept are asked for together, if the dataset can do so."""
        numbers = [self._number(index) for index in indices]
        samples = [self._kept(number) for number in numbers]
        missing = [number for number, sample in zip(numbers, samples, strict=True) if sample is _MISSING]
        absent = list(dict.fromkeys(missing))
        self._tally.add(len(numbers) - len(absent), len(absent))
        if not absent:
            return samples
        read = self._read(absent)
        return [
            sample if sample is not _MISSING else read[number].own()
            for number, sample in zip(numbers, samples, strict=True)
        ]

    def __getitems_into__(self, indices: Sequence[Any], out: Any) -> Any:
        """Reads kept samples straight into a batch: ``out`` has their structure, and arrays of shape (batch, ...).

        Returns:
            None, or NotImplemented where a sample is not kept, or is not like ``out``. Then ``out`` has no meaning.
        """
        where = row_numbers(indices, self._length)
        if where is None or not len(where):
            return NotImplemented
        numbers, offsets = where.tolist(), self._reader.offsets_of(where)
        first = self._record(numbers[0])
        if first is None or not all(offsets) or not self._are_checked(numbers):
            return NotImplemented
        form = form_of(first.form)
        columns = form.rows(out, len(numbers)) if isinstance(form, PlainForm) else None
        if columns is None:
            return NotImplemented
        read = self._reader.read_like
        for number, offset, parts in zip(numbers, offsets, zip(*columns, strict=True), strict=True):
            if not read(number, offset, first, parts):
                return NotImplemented
        self._tally.add(len(numbers), 0)
        return None

    def _number(self, index: Any) -> int:
        try:
            number = operator.index(index)
        except TypeError:
            raise TypeError(f"CachedDataset takes ints as indices, and got {type(index).__name__}") from None
        if not -self._length <= number < self._length:
            raise IndexError(f"index {number} is out of range: the dataset has {self._length} samples")
        return number % self._length

    def _are_checked(self, numbers: list[int]) -> bool:
        """Whether no check of a record is owed."""
        return self._file.path is None or all(map(self._tally.is_sound, numbers))

    def _record(self, number: int) -> Record | None:
        """Returns the record of a sample, checked, or None."""
        record = self._reader.find(number)
        # Memory is gone when the machine goes down. A file may have lost some of its pages.
        if record is None or self._file.path is None or self._tally.is_sound(number):
            return record
        if not self._file.is_sound(record):
            return None
        self._tally.mark(number, Mark.SOUND)
        return record

    def _kept(self, number: int) -> Any:
        record = self._record(number)
        if record is None:
            return _MISSING
        try:
            form = form_of(record.form)
            parts = form.parts(record.nbytes)
            return form.sample(parts) if self._reader.read(record, parts) else _MISSING
        except _UNREADABLE:
            if self._file.path is None:
                raise
            return _MISSING

    # -- keeping -------------------------------------------------------------------------------------------------

    def _read(self, numbers: list[int]) -> dict[int, _Read]:
        """Reads samples from the dataset and keeps them."""
        read_all = getattr(self.dataset, "__getitems__", None)  # as torch's fetcher looks for it
        if not read_all:
            return {number: _Read(self._store(number, self.dataset[number])) for number in numbers}
        samples = read_all(numbers)
        if len(samples) != len(numbers):
            raise ValueError(f"__getitems__ of the dataset returned {len(samples)} samples for {len(numbers)} indices")
        return {number: _Read(self._store(number, sample)) for number, sample in zip(numbers, samples, strict=True)}

    def _keep(self, number: int, sample: Any) -> Any:
        return self._store(number, sample).sample()

    def _store(self, number: int, sample: Any) -> Taken:
        """Copies a sample, and writes the copy unless it is there by now or there is no room."""
        try:
            taken = take(sample)
        except TypeError as error:
            raise TypeError(f"CachedDataset cannot keep sample {number}: {error}") from error.__cause__
        if self._record(number) is not None:
            return taken
        if self._is_written(number, taken):
            if self._file.path is not None:
                self._tally.mark(number, Mark.SOUND)
        else:
            self._tally.mark(number, Mark.NO_ROOM)
        return taken

    def _is_written(self, number: int, taken: Taken) -> bool:
        if self._is_full:
            return False
        try:
            if self._file.keep(number, taken.form, taken.parts):
                return True
        except OSError as error:
            self._is_full = error.errno in _FULL
            self._warn_of_the_file(error)
            return False
        self._refused += 1
        if self._refused & (self._refused - 1) == 0:  # looking takes time: at the 1st, 2nd, 4th, 8th and so on
            self._warn_if_most_do_not_fit(sum(part.nbytes for part in taken.parts))
        return False

    def _warn_if_most_do_not_fit(self, nbytes: int) -> None:
        samples = self._file.count()
        expected = (self._file.nbytes + nbytes) / (samples + 1) * self._length
        if 2 * self.max_bytes < expected:
            self._warn_once(
                f"about {self.max_bytes / expected:.0%} of the {self._length} samples of a CachedDataset fit into "
                f"max_bytes={self.max_bytes}: all would take {expected:.3g} bytes. The others are read anew each time; "
                "raise max_bytes, give a path on a larger disk, or cache less of each sample"
            )

    def _warn_of_the_file(self, error: OSError) -> None:
        self._warn_once(
            f"a CachedDataset cannot write to {self._file.path or 'its shared memory'}: {error}. What is kept stays; "
            "other samples are read anew each time"
        )

    def _warn_once(self, text: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            if self._tally.is_first_to_claim():
                warnings.warn(text, CacheFullWarning, stacklevel=2)


class _Read:
    """A sample that was read, for each place of a batch where it is wanted."""

    def __init__(self, taken: Taken) -> None:
        self._taken = taken
        self._is_given = False

    def own(self) -> Any:
        """Returns the sample in memory that nobody else has."""
        taken = Taken(self._taken.form, [part.copy() for part in self._taken.parts]) if self._is_given else self._taken
        self._is_given = True
        return taken.sample()


# -- arguments -------------------------------------------------------------------------------------------------------


def _checked_length(dataset: Any) -> int:
    kind = type(dataset).__qualname__
    if isinstance(dataset, IterableDataset) or not hasattr(type(dataset), "__getitem__"):
        raise TypeError(f"CachedDataset takes a map-style dataset, and {kind} is none: it has no samples by index")
    try:
        return len(dataset)
    except (TypeError, NotImplementedError) as error:
        raise TypeError(f"CachedDataset takes a dataset with a length, and {kind} has none: {error}") from error


def _checked_path(path: Any) -> str:
    try:
        name = os.fspath(path)
    except TypeError:
        raise TypeError(f"path must be a str or a path, got {path!r}") from None
    if not isinstance(name, str):
        raise TypeError(f"path must be a str or a path, got {path!r}")
    return os.path.realpath(name)  # of a link that leads nowhere, where it leads to


def _memory_for_a_cache() -> int:
    nbytes = min(memory_limit() // 2, available_memory())
    return max(1, min(nbytes, file_size_limit() or nbytes))


def _disk_for_a_cache(name: str) -> int:
    disk = os.statvfs(name)
    return max(1, disk.f_bavail * disk.f_frsize // 2)


def _fingerprint_of(dataset: Any, given: str) -> bytes:
    """Returns 32 bytes of what is known of a dataset in every run: classes, and what a subset chooses."""
    found = hashlib.sha256(repr(given).encode())
    for _ in range(_MAX_WRAPPED):
        found.update(repr(type(dataset).__qualname__).encode())
        if type(dataset) is Subset:
            found.update(repr([str(index) for index in dataset.indices]).encode())
        inner = getattr(dataset, "dataset", None)
        if inner is None:
            break
        dataset = inner
    return found.digest()
