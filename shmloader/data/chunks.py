"""A dataset over chunks of rows, whose batches are cut out of the chunks by ranges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch.utils.data import IterableDataset

from .chunk import Chunk


class ChunkedDataset(IterableDataset[Any]):
    """The rows of chunks, as the samples of an iterable dataset.

    A chunk is a structure of arrays whose first axes agree: a tuple, list, named tuple or dict, however nested, of
    NumPy arrays and tensors; or one array. Row ``i`` of a chunk is the same structure with ``array[i]`` in each place,
    and is one sample. Chunks may have any number of rows, also none. The next chunk is asked for when a row of it is.

    Any loader can read it, row by row. `ShmDataLoader` with the default collate function copies ranges of rows from the
    chunks into the batch, in the workers. No Python runs for a row, and the batches are the same.

    Which worker reads what is up to ``chunks``, as with every iterable dataset: each worker iterates its own copy, and
    would give all rows. For example, each reads a share of the files:

        class Shards:
            def __init__(self, files):
                self.files = files

            def __iter__(self):
                info = torch.utils.data.get_worker_info()
                mine = self.files if info is None else self.files[info.id :: info.num_workers]
                for file in mine:
                    with np.load(file) as shard:
                        yield shard["images"], shard["labels"]

        loader = ShmDataLoader(ChunkedDataset(Shards(files)), batch_size=64, num_workers=4)

    Each pass iterates ``chunks`` again. An iterator, such as a generator, can be iterated once: a second pass in the
    same process gets what the first one left, which is nothing after a whole pass. So it is with ``num_workers=0`` and
    with persistent workers. Workers that are forked for each pass begin with the iterator as it is in the parent.

    Rows are views of their chunk: its arrays must not be changed before the batch of its last rows is made. Where
    `ShmDataLoader` copies ranges, it does so before the next chunk is asked for, so chunks may be one buffer that is
    filled again and again. Where rows are read one by one, that would change the rows before, with any loader: with
    ``num_workers=0``, ``batch_size=None`` or a ``collate_fn``, and where two chunks of a batch differ in structure,
    shape or dtype.

    It has no length: the number of rows is not known.

    Args:
        chunks: iterated in each worker, or in the process of the loop with ``num_workers=0``. What it raises comes in
            the place of the batch that was being made, and the rows of that batch are lost, as with any iterable
            dataset.

    Raises:
        TypeError: ``chunks`` is not iterable. In a batch's place: a chunk is no structure of arrays.
        ValueError: in a batch's place: the arrays of a chunk differ in length, or one has no axis of rows. The next
            chunk follows then, as after a TypeError.
    """

    def __init__(self, chunks: Iterable[Any]) -> None:
        kind = type(chunks)
        if not (hasattr(kind, "__iter__") or hasattr(kind, "__getitem__")):
            hint = "; call it, and give what it returns" if callable(chunks) else ""
            raise TypeError(
                f"ChunkedDataset takes an iterable of chunks, and not an object of type {kind.__qualname__}{hint}"
            )
        self.chunks = chunks

    def __iter__(self) -> Rows:
        """Begins with the first chunk, which is asked for with the first row."""
        return Rows(iter(self.chunks))


def rows_of(dataset: Any) -> Rows | None:
    """Begins to read a dataset. None, where nothing has begun, unless its samples certainly are rows of chunks."""
    if isinstance(dataset, ChunkedDataset) and type(dataset).__iter__ is ChunkedDataset.__iter__:
        return iter(dataset)
    return None


class Part(NamedTuple):
    """Rows of a chunk that follow each other: from ``start`` to ``stop``, without it."""

    chunk: Chunk
    start: int
    stop: int


class Rows(Iterator[Any]):
    """The rows of all chunks: one by one, or by ranges. For one thread at a time.

    Nothing follows the end of ``chunks``. An error of theirs is no end: what they give when they are asked again
    follows, which is nothing for a generator.

    Args:
        chunks: asked for the next one when there is no row left of the one before.
    """

    def __init__(self, chunks: Iterator[Any]) -> None:
        self._chunks = chunks
        self._count = 0
        self._chunk: Chunk | None = None
        self._start = self._stop = 0
        self._put_back: list[Part] = []  # the first of them is the last here

    def __next__(self) -> Any:
        chunk = self._chunk if self._start < self._stop else self.ahead()
        if chunk is None:
            raise StopIteration
        self._start += 1
        return chunk.row(self._start - 1)

    def ahead(self) -> Chunk | None:
        """Returns the chunk of the row that is next, or None at the end. Blocks while ``chunks`` makes one."""
        while self._start == self._stop:
            self._chunk = None  # a large one need not stay while the next is made
            if self._put_back:
                self._chunk, self._start, self._stop = self._put_back.pop()
            elif (chunk := self._new_chunk()) is None:
                return None
            else:
                self._chunk, self._start, self._stop = chunk, 0, chunk.length
        return self._chunk

    def _new_chunk(self) -> Chunk | None:
        try:
            whole = next(self._chunks)
        except StopIteration:
            self._chunks = iter(())  # there are iterators that begin again
            return None
        self._count += 1
        return Chunk(whole, self._count - 1)

    def take(self, count: int) -> Part:
        """Takes the next rows, ``count`` at most, of the chunk that `ahead` returned."""
        assert self._chunk is not None
        start = self._start
        self._start = min(start + count, self._stop)
        return Part(self._chunk, start, self._start)

    def put_back(self, taken: list[Part]) -> None:
        """Makes what was taken last come once more."""
        if self._chunk is not None:
            self._put_back.append(Part(self._chunk, self._start, self._stop))
        self._put_back += reversed(taken)
        self._chunk = None
        self._start = self._stop = 0
