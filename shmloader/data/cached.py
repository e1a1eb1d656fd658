"""A dataset that keeps what another one returned, for all processes that read it."""

from __future__ import annotations

import operator
import os
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from shmloader import interrupts
from shmloader.arguments import checked_optional_count

from .cache_arguments import checked_length, checked_path, disk_for_a_cache, fingerprint_of, memory_for_a_cache
from .cache_file import at_path, in_memory
from .cache_keeper import Keeper
from .cache_layout import Record
from .cache_readers import Reader
from .cache_statistics import CacheStatistics
from .cache_tally import Mark, Tally
from .gather import row_numbers
from .plain_forms import PlainForm
from .sample_forms import Taken, form_of, take

_MISSING = object()

# What a sample in a file may raise that another version of the user's code has written: a class is not there now, or
# takes other arguments.
_UNREADABLE = (AttributeError, ImportError, LookupError, TypeError, ValueError, EOFError, pickle.UnpicklingError)


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
    holds for the first read too. Read-only arrays come as ones that may be written to, and views of one memory have
    memory of their own.

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
        self._length = checked_length(dataset)
        checked_optional_count("max_bytes", max_bytes, 1)
        if not isinstance(fingerprint, str):
            raise TypeError(f"fingerprint must be a str, got {fingerprint!r}")
        name = None if path is None else checked_path(path)
        known_by = b"" if name is None else fingerprint_of(dataset, fingerprint)
        with interrupts.AllDeferred():  # until descriptors have owners, and a new file its name
            self._tally = Tally(self._length)
            if name is None:
                self._file = in_memory(self._length, max_bytes or memory_for_a_cache())
            else:
                self._file = at_path(name, self._length, known_by, max_bytes or 1)
                self._file.max_bytes = max_bytes or self._file.nbytes + disk_for_a_cache(name)
        # Of this process:
        self._keeper = Keeper(self._length, self._file, self._tally)
        self._unreadable: set[int] = set()

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
            TypeError: ``index`` is no int, or the sample cannot be kept: something in it cannot be pickled, or cannot
                be unpickled.
        """
        number = self._number(index)
        sample = self._kept(number)
        if sample is not _MISSING:
            self._tally.add(1, 0)
            return sample
        self._tally.add(0, 1)
        return self._store(number, self.dataset[number]).own()

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
            return self._sample(record)
        except _UNREADABLE:
            if self._file.path is None or self._is_readable(record):
                raise  # in the second case a signal's handler raised it, and the record is not to blame
            self._unreadable.add(number)
            return _MISSING

    def _sample(self, record: Record) -> Any:
        form = form_of(record.form)
        parts = form.parts(record.nbytes)
        return form.sample(parts) if self._reader.read(record, parts) else _MISSING

    def _is_readable(self, record: Record) -> bool:
        try:
            self._sample(record)
        except _UNREADABLE:
            return False
        return True

    # -- keeping -------------------------------------------------------------------------------------------------

    def _read(self, numbers: list[int]) -> dict[int, _Read]:
        """Reads samples from the dataset and keeps them."""
        read_all = getattr(self.dataset, "__getitems__", None)  # as torch's fetcher looks for it
        if not read_all:
            return {number: self._store(number, self.dataset[number]) for number in numbers}
        samples = list(read_all(list(numbers)))
        if len(samples) != len(numbers):
            raise ValueError(f"__getitems__ of the dataset returned {len(samples)} samples for {len(numbers)} indices")
        return {number: self._store(number, sample) for number, sample in zip(numbers, samples, strict=True)}

    def _store(self, number: int, sample: Any) -> _Read:
        """Copies a sample, and keeps the copy unless it is there by now or there is no room."""
        try:
            taken = take(sample)
        except TypeError as error:
            raise TypeError(f"CachedDataset cannot keep sample {number}: {error}") from error.__cause__
        read = _Read(number, taken)
        if number in self._unreadable or self._record(number) is None:
            self._keeper.keep(number, taken)
            self._unreadable.discard(number)
        return read


class _Read:
    """A sample that was read, for each place of a batch where it is wanted.

    Args:
        number: the sample's.
        taken: what it was taken apart into.

    Raises:
        TypeError: it cannot be made anew.
    """

    def __init__(self, number: int, taken: Taken) -> None:
        self._taken = taken
        try:
            self._first = taken.sample()  # before it is kept, for all who read it would fail
        except MemoryError:
            raise
        except Exception as error:
            if _can_be_made(taken):
                raise  # a signal's handler raised it, and the sample is not to blame
            raise TypeError(
                f"CachedDataset cannot keep sample {number}: it was pickled, and to unpickle it raises {error!r}"
            ) from error

    def own(self) -> Any:
        """Returns the sample in memory that nobody else has."""
        first, self._first = self._first, _MISSING
        if first is not _MISSING:
            return first
        return Taken(self._taken.form, [part.copy() for part in self._taken.parts]).sample()


def _can_be_made(taken: Taken) -> bool:
    try:
        taken.sample()
    except Exception:
        return False
    return True
