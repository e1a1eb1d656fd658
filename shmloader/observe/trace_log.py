"""What a watched pass tells, noted in some hundred nanoseconds each, and written to a trace when there is time.

To write an event takes microseconds in Python, and fast loops take tens of them for a batch. So what happens is noted
as four numbers in a list, and thousands of such rows are made lines of at once (`trace_lines`). Even that is a few
microseconds for a batch. So a log takes a fiftieth of the loop's time for it, and what is not written by then stays in
memory until the loop is slower, or the trace ends. There is a limit to what may stay; where that is reached, writing
takes the time that it needs.

What workers do they record themselves, in a ring of some hundred rows each (`workers.recorder`), which is copied often
enough for fast loops. What is written at once is a window: all that the loop and its workers have done up to some time.
The file has it as a whole or not at all, so that tracks of a trace that became full end at one time.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable

import numpy as np

from shmloader import interrupts
from shmloader.passes.watching import NO_BATCH, Team
from shmloader.slots.pool import Pool
from shmloader.workers.recorder import KINDS, ROW_WORDS

from .trace_spans import COLUMNS, FLUSH, FREE, HELD, NEXT, READY, RETAINED, WAIT, WRITING, Lines, Spans, joined

_now = time.monotonic_ns  # looked up for each row

# A wait that is shorter is only a look whether there is anything.
_BRIEF_NANOSECONDS = 5_000

# How many rows are made lines of at once, some milliseconds' work; and how many may stay, at 64 bytes each.
_ROWS = 1 << 14
_MOST_ROWS = 1 << 20

# Where the file is nearly full, windows are small, so that little is left out: so much does a row take at most, with
# what workers did for the same batch; and fewer rows than these are none.
_BYTES_A_ROW = 1024
_FEWEST_ROWS = 16

_ENDED = 5  # of the words of a worker's row; see `Record.raw_rows`
_ALL = 1 << 62  # later than any time

# How soon all is written again, and how many times longer than writing the loop goes on in between.
_INTERVAL_NANOSECONDS = 500_000_000
_PAUSE_PER_WRITE = 50

# Workers' records are copied behind each batch whose number has none of these bits: before a worker can have made as
# many batches as its record has rows, also where one worker makes all.
_COPY_MASK = 127


class TraceLog:
    """Watches one pool and the workers that write to it, or a loader without workers. See `passes.watching.Watcher`.

    Used in the thread that iterates; `close` in any.

    Args:
        pool: the pool; None: there are no workers.
        spans: makes lines of rows.
        write: writes lines, all or none. It does not raise.
        room: says how many bytes of lines may still be written.
        announce: raises warnings that are due.
        lock: of all logs of a file. Passes may be iterated in several threads, and a trace may end in another one.

    Attributes:
        lost: batches of which a worker's record was written over before it was copied.
    """

    def __init__(
        self,
        pool: Pool | None,
        spans: Spans,
        write: Callable[[Lines], object],
        room: Callable[[], int],
        announce: Callable[[], None],
        lock: threading.Lock,
    ) -> None:
        self.announce = announce
        self.lost = 0
        self._pool = None if pool is None else weakref.ref(pool)
        self._spans = spans
        self._write = write
        self._room = room
        self._lock = lock
        self._rows: list[int] = []
        self._add = self._rows.extend
        self._copied: deque[tuple[int, int, bytes]] = deque()  # workers' rows, and since when they are looked at
        self._since = 0
        self._copied_up_to: list[int] = []
        self._due = _now() + _INTERVAL_NANOSECONDS
        self._notes = [spans.name_groups(pool is not None)]
        self._team: Team | None = None

    def follow(self, team: Team | None) -> None:
        """A pass begins, or is under way, with other workers perhaps."""
        self._team, self._since = team, _now()
        if team is not None:
            self._copied_up_to = [record.count for record in team.records]
            self._notes += [self._spans.name_worker(number) for number in range(len(team.records))]
        self.note("a pass begins")

    # -- what is told: see `Watcher` -----------------------------------------------------------------------------

    def is_assigned(self, seq: int, worker: int, slot: int) -> None:
        """A worker was asked for a batch."""
        self._add((_now(), WRITING, slot, seq))

    def is_ready(self, slot: int) -> None:
        """A batch is in its slot."""
        self._add((_now(), READY, slot, NO_BATCH))

    def is_lent(self, slot: int) -> None:
        """The loop has it."""
        self._add((_now(), HELD, slot, NO_BATCH))

    def is_retained(self, slot: int) -> None:
        """Code in a worker has it, and nobody else."""
        self._add((_now(), RETAINED, slot, NO_BATCH))

    def is_free(self, slot: int) -> None:
        """Nobody has it."""
        self._add((_now(), FREE, slot, NO_BATCH))

    def has_waited(self, began: int) -> None:
        """The loop has waited for workers."""
        ended = _now()
        if ended - began >= _BRIEF_NANOSECONDS:
            self._add((began, WAIT, ended, NO_BATCH))

    def has_stepped(self, began: int, seq: int) -> None:
        """The loop has its batch, or an exception."""
        ended = _now()
        self._add((began, NEXT, ended, seq))
        if not seq & _COPY_MASK:
            self._copy_records()
        if ended >= self._due or len(self._rows) >= COLUMNS * _MOST_ROWS:
            self.flush()

    def is_over(self) -> None:
        """The workers have ended."""
        self._copy_records()
        self._team = None

    def note(self, what: str, worker: int | None = None, seq: int | None = None) -> None:
        """Something rare has happened."""
        args: dict[str, object] = {} if seq is None else {"batch": seq}
        if worker is not None and self._team is not None:
            args["who"] = self._team.workers.name(worker)
        self._notes.append(self._spans.instant(_now(), what, worker, **args))

    def _copy_records(self) -> None:
        for worker, record in enumerate(self._team.records if self._team is not None else ()):
            first, data = record.raw_rows(self._copied_up_to[worker])
            self.lost += first - self._copied_up_to[worker]
            self._copied_up_to[worker] = first + len(data) // (8 * ROW_WORDS)
            if data:
                self._copied.append((worker, self._since, data))

    # -- what is written -----------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Writes some of what was noted, and says when to be called again. Takes milliseconds.

        No signal's handler runs meanwhile: one that raises would leave half a line.
        """
        with interrupts.AllDeferred(), self._lock:
            began = _now()
            self._copy_records()
            self._flush()
            ended = _now()
            self._add((began, FLUSH, ended, NO_BATCH))
            pause = _PAUSE_PER_WRITE * (ended - began)
            self._due = ended + (pause if len(self._rows) > COLUMNS * _ROWS else max(pause, _INTERVAL_NANOSECONDS))

    def close(self) -> None:
        """Writes all there is, slots' states up to now included, and watches no more."""
        pool = None if self._pool is None else self._pool()
        if pool is not None:
            pool.watch(None)
        with interrupts.AllDeferred(), self._lock:
            self._copy_records()
            self._team = None
            while self._rows or self._notes or self._copied:
                self._flush()
            self._write(self._spans.close(_now()))

    def _flush(self) -> None:
        """Writes a window, or several small ones."""
        left = _ROWS
        while left > 0 and (self._rows or self._notes or self._copied):
            left -= self._write_window(min(left, self._most_rows()))

    def _most_rows(self) -> int:
        rows = self._room() // _BYTES_A_ROW
        return rows if rows >= _FEWEST_ROWS else _ROWS  # in the latter case, to be counted

    def _write_window(self, most_rows: int) -> int:
        """Writes what was done up to the time of one of the next rows, and returns how many rows of the loop's."""
        notes, self._notes = self._notes, []
        rows = np.array(self._rows[: COLUMNS * most_rows], np.int64).reshape(-1, COLUMNS)
        del self._rows[: rows.size]
        until = _ALL
        if self._rows:
            at, kind, ended, _ = rows[-1].tolist()
            until = ended if kind >= NEXT else at
        self._write(joined([*notes, *self._of_workers(until), self._spans.of_parent(rows)]))
        return len(rows) or most_rows

    def _of_workers(self, until: int) -> list[Lines]:
        """Returns what workers had done by then; the rest stays."""
        copied, self._copied = self._copied, deque()
        found: list[Lines] = []
        for worker, since, data in copied:
            words = np.frombuffer(data, np.int64).reshape(-1, ROW_WORDS)
            count = int(np.searchsorted(words[:, _ENDED], until, "right"))
            if count:
                found.append(self._spans.of_worker(worker, words[:count], KINDS, since))
            if count < len(words):
                self._copied.append((worker, since, data[count * 8 * ROW_WORDS :]))
        return found
