"""What each worker did, and when: a ring of rows with running sums, in memory that is shared anyway.

The worker alone writes: a row for each job that is done, before the token that says so. The parent reads when somebody
asks, so that a batch costs it nothing; and what a worker has written is there when the worker has died. Times are
`time.monotonic_ns`, of which all processes of a machine have the same.

A row has the job's own times and sums up to and including it. They are written in one call, so sums fit together, and
two rows give what happened between them. How many rows there are is written last: a reader trusts no row that may have
been written over since.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from shmloader.slots.shared_state import RECORD_BYTES

from . import run_queue

# In words of eight bytes; each is copied as a whole.
_COUNT, _ORIGIN, _NO_BATCH, _ROOM, _PAUSED, _ASKS, _LATE, _LATES, _CPU, _CPU_WORK, _LOCK, _LOCKS = range(12)
_QUEUED, _QUEUED_WORK = 12, 13
_WORD = 8
_SLOW_START = 16 * _WORD
SLOW_BYTES = 1024 - _SLOW_START  # the text about the slowest
_ROWS_START = 1024  # of RECORD_BYTES
_ROW = struct.Struct("@11q")
_ROW_BYTES = 96
_ROW_TIMES = 3  # words behind the kind: began, fetched, ended
_ENDED = 5
ROW_WORDS = _ROW_BYTES // _WORD
MADE = 0  # contents of a slot that are a batch, or an item
KINDS = 4  # contents of a slot, beside the generation in one word
ROWS = (RECORD_BYTES - _ROWS_START) // _ROW_BYTES

# A batch is late that takes so many times the mean of those before. The mean is looked at from time to time only.
_LATE_FACTOR = 3
_LEAST_ROWS = 4
_EVERY = 16
_LEAST_LATE_NS = 1_000_000  # below, it is the system's scheduling that makes batches late
_NEVER = 1 << 62

# The processor's time is asked of the kernel, which takes half a microsecond: only behind batches that take longer.
_LONG_NS = 500_000

# What takes microseconds is looked at this often, by the times that the processor's time is: how long a worker waits
# for a processor, and how long a worker thread does for the interpreter lock.
_EVERY_WAIT = 4

_MAX_SLOW = 4
_TEXT_CHARS = 100


class Row(NamedTuple):
    """One job that a worker has done.

    Attributes:
        seq: the batch's number in its pass.
        slot: where it was written.
        generation: the pass.
        contents: as `batch_maker.Contents`: a batch, an exception, or nothing.
        began: when the worker took up the job, in nanoseconds of `time.monotonic_ns`; all samples are fetched after.
        fetched: when the samples were there, and the collate function began. As ``ended`` where samples were written
            into the slot directly.
        ended: when the batch was in its slot, right before its token was sent.
        waited: nanoseconds between ``began`` and ``ended`` in which the worker waited, for room or at the gate.
        fetch_sum: nanoseconds between ``began`` and ``fetched``, of all rows.
        work_sum: nanoseconds between ``began`` and ``ended``, of all rows.
        samples_sum: samples of batches, of all rows.
        bytes_sum: bytes of batches in their slots, of all rows.
    """

    seq: int
    slot: int
    generation: int
    contents: int
    began: int
    fetched: int
    ended: int
    waited: int
    fetch_sum: int
    work_sum: int
    samples_sum: int
    bytes_sum: int


class Extract(NamedTuple):
    """What a record has, as it travels to a machine that does not see it.

    Attributes:
        head: what there is but once.
        first: the number of the first of the rows.
        rows: rows, oldest first, ROW_WORDS words each.
    """

    head: bytes
    first: int
    rows: bytes

    @property
    def ended(self) -> int:
        """When the last of the rows ended, by its writer's clock; 0: there is none."""
        words = memoryview(self.rows).cast("q")
        return words[len(words) - ROW_WORDS + _ENDED] if len(words) else 0


class Slow(NamedTuple):
    """One of a worker's slowest samples, or batches where samples are too quick to be timed one by one.

    Attributes:
        seconds: how long it took.
        what: its index, or those of the batch, as text.
    """

    seconds: float
    what: str


class Sums(NamedTuple):
    """What one worker has done so far. Times are in nanoseconds, and do not overlap.

    Attributes:
        batches: batches made.
        samples: samples in them.
        nbytes: bytes of them in slots.
        fetch: reading samples.
        collate: collating and packing them.
        idle: between jobs, when there was none; not between passes.
        room: waiting for room in a slot.
        paused: waiting at the gate, while the loader was paused.
        asks: how often it had to ask for room.
        late: by how much batches that took several times the mean took longer than it.
        lates: how many these were.
        cpu: the processor's time that the worker's thread took for `cpu_work`.
        cpu_work: nanoseconds of work in which ``cpu`` was measured.
        queued: waiting for a processor in `queued_work`, while it could have gone on.
        queued_work: nanoseconds of work in which ``queued`` was measured.
        lock: waiting for the interpreter lock, where a worker thread has given it away to see how long that takes.
        locks: how often it has.
    """

    batches: int = 0
    samples: int = 0
    nbytes: int = 0
    fetch: int = 0
    collate: int = 0
    idle: int = 0
    room: int = 0
    paused: int = 0
    asks: int = 0
    late: int = 0
    lates: int = 0
    cpu: int = 0
    cpu_work: int = 0
    lock: int = 0
    locks: int = 0
    queued: int = 0
    queued_work: int = 0

    def __sub__(self, other: Sums) -> Sums:
        """Returns what was done between the two."""
        return Sums(*(now - then for now, then in zip(self, other, strict=True)))

    def plus(self, other: Sums) -> Sums:
        """Returns what both have done together."""
        return Sums(*(one + two for one, two in zip(self, other, strict=True)))


class Recorder:
    """Writes the record of one worker. Used in the process and the thread that make its batches.

    Args:
        record: RECORD_BYTES bytes; what a predecessor has written there is gone on from.
        samples: where the number of samples goes that each slot has.

    Attributes:
        seq: the job's number.
        fetched: when the samples of the job were there; 0: not yet.
        samples: samples of the job; 0: not known.
        indices: of the job; for texts.
        times_samples: whether samples of the job are timed one by one.
        shares_lock: whether the worker is a thread, which has to wait for the interpreter lock of the program.
    """

    shares_lock = False

    def __init__(self, record: memoryview, samples: memoryview | None = None) -> None:
        self._record = record
        self._words = record.cast("q")
        self._of_slots = samples
        self._count = self._words[_COUNT]
        last = _row(record, self._count - 1) if self._count else None
        self._fetch_sum, self._work_sum = (last.fetch_sum, last.work_sum) if last else (0, 0)
        self._samples_sum, self._bytes_sum = (last.samples_sum, last.bytes_sum) if last else (0, 0)
        self._ended = last.ended if last else 0
        self.seq = self._slot = -1
        self._began = self._waited = self._room = self._rested = 0
        self._late_limit = _NEVER
        self._cpu_at = self._queued_at = (0, 0)
        self._slow: list[tuple[int, str]] = []
        self._is_first = True
        self._looks = 0
        self.fetched = self.samples = 0
        self.indices: Any = None
        self.times_samples = False

    @property
    def ended(self) -> int:
        """When the last job was done, or `rest` was called."""
        return self._ended

    @property
    def fetch_sum(self) -> int:
        """Nanoseconds in which samples were fetched, of all jobs that are done."""
        return self._fetch_sum

    def rest(self) -> None:
        """Notes that nothing was to be done until now: jobs are waited for from here on."""
        now = time.monotonic_ns()
        if self._count:
            self._rested += now - self._ended
        else:
            self._words[_ORIGIN] = now
        self._ended = now
        self._is_first = True

    def begin_pass(self) -> None:
        """Forgets the slowest of the pass before."""
        self._slow.clear()
        self._write_slow()

    def begin(self, seq: int, slot: int, began: int) -> None:
        """Notes that a job was taken up."""
        self.seq = seq
        self._slot = slot
        self._began = began
        self.fetched = self.samples = self._waited = 0
        self.times_samples = False

    def collating(self, collate_fn: Callable[[Any], Any], counts: bool) -> Callable[[Any], Any]:
        """Returns a function that does what ``collate_fn`` does, and notes before that samples are there.

        Args:
            collate_fn: of batches.
            counts: whether it is given a list of samples, and not one.
        """
        now = time.monotonic_ns

        def collate(samples: Any) -> Any:
            self.fetched = now()
            if counts:
                try:
                    self.samples = len(samples)
                except TypeError:  # what the dataset's __getitems__ returned may be anything
                    self.samples = 0
            return collate_fn(samples)

        return collate

    def wait_for_room(self, began: int) -> None:
        """Notes that the worker has waited for room in its slot, since ``began``."""
        self.fetched = self.fetched or began
        waited = time.monotonic_ns() - began
        self._waited += waited
        self._room += waited
        self._words[_ASKS] += 1

    def wait_at_gate(self, began: int) -> None:
        """Notes that the worker has waited at the gate, since ``began``."""
        self._waited += time.monotonic_ns() - began

    def end(self, generation: int, contents: int, nbytes: int) -> None:
        """Notes that the job is done. Called before its token is sent.

        Args:
            generation: the pass.
            contents: what is in the slot.
            nbytes: how many bytes of it are used.
        """
        ended = time.monotonic_ns()
        fetched = self.fetched or ended
        took = ended - self._began
        self._fetch_sum += fetched - self._began
        self._work_sum += took
        samples = self.samples
        if contents:  # no batch
            samples = 0
        else:
            self._samples_sum += samples
            self._bytes_sum += nbytes
        if self._of_slots is not None:
            self._of_slots[self._slot] = samples
        count = self._count
        _ROW.pack_into(
            self._record,
            _ROWS_START + count % ROWS * _ROW_BYTES,
            self.seq,
            self._slot,
            generation * KINDS + contents,
            self._began,
            fetched,
            ended,
            self._waited,
            self._fetch_sum,
            self._work_sum,
            self._samples_sum,
            self._bytes_sum,
        )
        self._ended = ended
        self._count = self._words[_COUNT] = count = count + 1
        # What is a part of the sums comes behind these: for whoever reads in between, no rest is less than nothing.
        if self._rested:
            # What is left of the time since the origin is idle. So it moves by what is not, and not before there is a
            # row: the last one's end is from before the rest, and a worker that dies without one has not rested.
            self._words[_ORIGIN] += self._rested
            self._rested = 0
        if contents or self._waited:
            self._note_waits(contents)
        if took > self._late_limit and not self._waited:
            self._note_late(took)
        if took > _LONG_NS or not count % _EVERY:
            self._look_up(count)

    def _note_waits(self, contents: int) -> None:
        self._words[_NO_BATCH] += bool(contents)
        self._words[_ROOM] += self._room
        self._words[_PAUSED] += self._waited - self._room
        self._room = 0

    def _note_late(self, took: int) -> None:
        self._words[_LATE] += took - self._late_limit // _LATE_FACTOR
        self._words[_LATES] += 1
        if not self.times_samples and self.is_slow(took):
            self.note_slow(took, "the batch of", self.indices)

    def _look_up(self, count: int) -> None:
        """Does what is done for long batches, and for a few of the others."""
        if self._is_first:  # which is late wherever something has to be loaded first
            self._is_first = False
            self._cpu_at = time.thread_time_ns(), self._work_sum
            self._queued_at = run_queue.waited(), self._work_sum
            return
        self._note_processor()
        if not self._looks % _EVERY_WAIT:
            self._look_at_queue()
            if self.shares_lock:
                self._look_at_lock()
        self._looks += 1
        if count >= _LEAST_ROWS:
            net = self._work_sum - self._words[_ROOM] - self._words[_PAUSED] - self._words[_LATE]
            self._late_limit = max(_LATE_FACTOR * net // count, _LEAST_LATE_NS)

    def _note_processor(self) -> None:
        cpu, work = time.thread_time_ns(), self._work_sum
        self._words[_CPU] += cpu - self._cpu_at[0]
        self._words[_CPU_WORK] += work - self._cpu_at[1]
        self._cpu_at = cpu, work

    def _look_at_queue(self) -> None:
        queued, work = run_queue.waited(), self._work_sum
        # A worker that is given a job waits for a processor too, before it works.
        self._words[_QUEUED] += min(queued - self._queued_at[0], work - self._queued_at[1])
        self._words[_QUEUED_WORK] += work - self._queued_at[1]
        self._queued_at = queued, work

    def _look_at_lock(self) -> None:
        """Gives the interpreter lock away and takes it again, which is quick where no other thread computes.

        Where one does, it takes some milliseconds, as do all the waits of samples and of the loop that give it away.
        """
        began = time.monotonic_ns()
        time.sleep(0)
        waited = time.monotonic_ns() - began
        self._rested += waited  # it is neither work nor a wait for the loop,
        self._ended += waited  # nor a part of a rest that follows
        self._words[_LOCK] += waited
        self._words[_LOCKS] += 1

    def is_slow(self, nanoseconds: int) -> bool:
        """Whether something that took so long is among the slowest of the pass."""
        return len(self._slow) < _MAX_SLOW or nanoseconds > self._slow[-1][0]

    def note_slow(self, nanoseconds: int, what: str, index: Any) -> None:
        """Notes one of the slowest. Called rarely, since the slowest so far is seldom slower than all before.

        Args:
            nanoseconds: how long it took.
            what: what it is.
            index: and of what index.
        """
        try:
            text = f"{what} {index!r}"
        except Exception:  # an index may be of any class
            text = f"{what} a {type(index).__qualname__}"
        text = text if len(text) <= _TEXT_CHARS else f"{text[: _TEXT_CHARS - 3]}..."
        self._slow.append((nanoseconds, text.replace("\n", " ")))
        self._slow.sort(key=lambda one: -one[0])
        del self._slow[_MAX_SLOW:]
        self._write_slow()

    def _write_slow(self) -> None:
        lines = "\n".join(f"{took} {text}" for took, text in self._slow)
        data = lines.encode(errors="backslashreplace")[:SLOW_BYTES]  # a file's name may have what has no code
        self._record[_SLOW_START : _SLOW_START + SLOW_BYTES] = data.ljust(SLOW_BYTES, b"\0")


class LoopRecorder(Recorder):
    """The same for the loop's process, which makes batches itself, and whose thread takes the loop's steps in between.

    What these use of a processor is no batch's. So the times of a batch are looked up at its begin too, where it is
    likely that they will be at its end: where they were at the end of the one before. How long the thread waits for a
    processor is not known of batches alone.
    """

    _looked_at = _marked_at = -1

    def begin(self, seq: int, slot: int, began: int) -> None:
        """Notes that a job was taken up."""
        super().begin(seq, slot, began)
        if self._looked_at == self._count or not (self._count + 1) % _EVERY:
            self._cpu_at = time.thread_time_ns(), self._work_sum
            self._marked_at = self._count

    def _note_processor(self) -> None:
        if self._marked_at == self._count - 1:
            super()._note_processor()
        self._looked_at = self._count

    def _look_at_queue(self) -> None:
        """Does nothing."""


class Record:
    """Reads what a worker's `Recorder` has written. Used in the parent, while the worker goes on.

    Args:
        record: RECORD_BYTES bytes.
    """

    def __init__(self, record: memoryview) -> None:
        self._record = record
        self._words = record.cast("q")

    @property
    def count(self) -> int:
        """How many rows were written so far."""
        return int(self._words[_COUNT])

    def rows(self, first: int = 0) -> list[Row]:
        """Returns rows, oldest first: from the one of number ``first`` on, as far as they are there still.

        The last `ROWS` less one are. The number of the last one that is returned is `count` less one, as it was.
        """
        count = self.count
        numbers = range(max(first, count - ROWS + 1, 0), count)
        rows = [_row(self._record, number) for number in numbers]
        gone = self.count - ROWS + 1 - numbers.start  # written over meanwhile, or about to be
        return rows[max(0, gone) :]

    def raw_rows(self, first: int) -> tuple[int, bytes]:
        """Returns the same rows as `rows`, ROW_WORDS words each, for those who read many.

        The words are the batch, the slot, generation and contents, and the times from ``began`` to ``waited``.

        Returns:
            The number of the first one that is there, and these rows.
        """
        count = self.count
        start = max(first, count - ROWS + 1, 0)
        begin, end = start % ROWS, count % ROWS
        ring = self._record[_ROWS_START : _ROWS_START + ROWS * _ROW_BYTES]
        parts = [(begin, end)] if begin <= end else [(begin, ROWS), (0, end)]
        data = b"".join(ring[one * _ROW_BYTES : other * _ROW_BYTES] for one, other in parts)
        gone = max(0, min(self.count - ROWS + 1, count) - start)
        return start + gone, data[gone * _ROW_BYTES :]

    def sums(self) -> Sums:
        """Returns what was done so far."""
        words = self._words[: _QUEUED_WORK + 1].tolist()  # first: written last, what is a part is never larger
        count = self.count
        if not count:
            return Sums()
        last = _row(self._record, count - 1)
        return Sums(
            batches=count - words[_NO_BATCH],
            samples=last.samples_sum,
            nbytes=last.bytes_sum,
            fetch=last.fetch_sum - words[_PAUSED],
            collate=last.work_sum - last.fetch_sum - words[_ROOM],
            idle=last.ended - words[_ORIGIN] - last.work_sum,
            room=words[_ROOM],
            paused=words[_PAUSED],
            asks=words[_ASKS],
            late=words[_LATE],
            lates=words[_LATES],
            cpu=words[_CPU],
            cpu_work=words[_CPU_WORK],
            lock=words[_LOCK],
            locks=words[_LOCKS],
            queued=words[_QUEUED],
            queued_work=words[_QUEUED_WORK],
        )

    def slowest(self) -> list[Slow]:
        """Returns the slowest of this pass, the slowest first."""
        text = bytes(self._record[_SLOW_START : _SLOW_START + SLOW_BYTES]).rstrip(b"\0").decode(errors="replace")
        parts = (line.partition(" ") for line in text.split("\n") if line)
        return [Slow(int(took) / 1e9, what) for took, _, what in parts if took.isdigit()]

    def extract(self, first: int) -> Extract:
        """Returns what was written since there were ``first`` rows, and what there is but once."""
        number, rows = self.raw_rows(first)
        return Extract(bytes(self._record[:_ROWS_START]), number, rows)

    def insert(self, extract: Extract, slot: int | None, shift: int) -> None:
        """Writes what another record has, in the place of its writer.

        Args:
            extract: of that record.
            slot: where the parent has the batches of these rows; None: where they were.
            shift: nanoseconds that this machine's clock is ahead of the other's.
        """
        head = memoryview(extract.head).cast("q")
        rows = memoryview(extract.rows).cast("q")
        for at in range(0, len(rows), ROW_WORDS):
            seq, its_slot, kind, *others = rows[at : at + _ROW_BYTES // _WORD].tolist()
            place = (extract.first + at // ROW_WORDS) % ROWS * ROW_WORDS + _ROWS_START // _WORD
            times = [one + shift for one in others[:_ROW_TIMES]]
            row = [seq, its_slot if slot is None else slot, kind, *times, *others[_ROW_TIMES:]]
            self._words[place : place + ROW_WORDS] = memoryview(struct.pack(f"@{ROW_WORDS}q", *row)).cast("q")
        self._record[_SLOW_START:_ROWS_START] = extract.head[_SLOW_START:]
        self._words[_COUNT + 1 : _SLOW_START // _WORD] = head[_COUNT + 1 : _SLOW_START // _WORD]
        self._words[_ORIGIN] = head[_ORIGIN] + shift if head[_ORIGIN] else 0
        self._words[_COUNT] = head[_COUNT]

    def forget(self) -> None:
        """Begins anew. Called while no worker writes."""
        self._record[:_ROWS_START] = bytes(_ROWS_START)


def _row(record: memoryview, number: int) -> Row:
    seq, slot, kind, *others = _ROW.unpack_from(record, _ROWS_START + number % ROWS * _ROW_BYTES)
    return Row(seq, slot, *divmod(kind, KINDS), *others)
