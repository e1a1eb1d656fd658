"""What the parent and its workers can read of each other at any time: some words at the beginning of the arena.

A token interrupts its reader's wait; a word here does not, and is still there when its writer has died. Every word has
one writer: of `stopped`, `shared_seed`, `epoch` and the gate it is the parent, of the others the worker that they are
about. Beside each slot there is room for a note, and for how many samples it has, which are its writer's as the slot
is. Each worker has room for a record of what it has done, of which `workers.recorder` says what is in it.
"""

from __future__ import annotations

import mmap
import struct
import time

from .pages import round_up

_LINE = 64  # a cache line: no two processes write to the same one
_PROGRESS = struct.Struct("<qq")  # the batch's number, and when it was begun, in nanoseconds
_SAVED = struct.Struct("<qq")  # the tag, and the bytes that follow; 0 bytes: nothing is saved here
_SAVED_BYTES = 1 << 15  # torch's, numpy's and Python's generators take some 11 KB
_NOTE = struct.Struct("I")  # how long a note is; 0: nothing is noted
_NOTE_BYTES = 1 << 15
RECORD_BYTES = 50 * 1024  # what a worker records; see `workers.recorder`
BEGIN_NOTE_BYTES = 1 << 20  # a worker's note at the beginning of a pass, with what the dataset's state is
_IDLE = -1
_SEED = struct.Struct("<Q")
_SEED_START = 8  # `stopped` is at 0
_EPOCH_START = 16
_GATE_START = 24  # a byte; and behind it the batch that may pass
# Written and read at once by two processes: native ones are copied as a whole, others byte by byte.
_LET_THROUGH = struct.Struct("@q")
_LET_THROUGH_START = 32
_NONE, _ALL = -1, -2
_LAST = 1 << 62  # a tag that is behind all others
_COUNT = struct.Struct("@Q")
_COUNT_START = 16  # in a worker's line


class SharedState:
    """The words of one arena.

    Args:
        memory: the arena's mapping.
        workers: how many workers there are words for.
        slots: how many slots there are notes beside.

    Attributes:
        samples: how many samples the batch has that was written to each slot last.
        note_lengths: how long the note beside each slot is; 0: there is none. To be looked at for every batch.
    """

    def __init__(self, memory: mmap.mmap, workers: int, slots: int = 0) -> None:
        self._memory = memory
        self._slots = slots
        self._saved_start = _LINE * (1 + workers)
        # How long each note is stands apart, close together: it is read and written for every batch.
        self._lengths_start = self._saved_start + 2 * _SAVED_BYTES * workers
        self._notes_start = round_up(self._lengths_start + _NOTE.size * (slots + workers))
        end = self._lengths_start + _NOTE.size * (slots + workers)
        self.note_lengths = memoryview(memory if slots else b"")[self._lengths_start : end].cast("I")
        self._records_start = self._notes_start + _NOTE_BYTES * slots + BEGIN_NOTE_BYTES * workers
        counts = memoryview(memory if slots else b"")[self._records_start + workers * RECORD_BYTES :]
        self.samples = counts[: _NOTE.size * slots].cast("I")

    @staticmethod
    def size(workers: int, slots: int = 0) -> int:
        """Returns how many bytes the words take, whole pages. Those that nobody writes to take no memory."""
        notes = slots + workers
        before = round_up(_LINE * (1 + workers) + 2 * _SAVED_BYTES * workers + _NOTE.size * notes)
        records = round_up(RECORD_BYTES * workers + _NOTE.size * slots)
        return before + _NOTE_BYTES * slots + BEGIN_NOTE_BYTES * workers + records

    @property
    def stopped(self) -> bool:
        """Whether jobs that were sent and not begun are to be dropped. Workers read it before each job."""
        return self._memory[0] != 0

    @stopped.setter
    def stopped(self, stopped: bool) -> None:
        self._memory[0] = stopped

    @property
    def shared_seed(self) -> int:
        """What IterDataPipes are shuffled by, in the pass that was begun last. Workers read it when it begins."""
        return int(_SEED.unpack_from(self._memory, _SEED_START)[0])

    @shared_seed.setter
    def shared_seed(self, seed: int) -> None:
        _SEED.pack_into(self._memory, _SEED_START, seed)

    @property
    def epoch(self) -> int:
        """What samples are seeded by, in the pass that was begun last. Workers read it when it begins."""
        return int(_SEED.unpack_from(self._memory, _EPOCH_START)[0])

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        _SEED.pack_into(self._memory, _EPOCH_START, epoch)

    # -- the gate: whether samples may be begun ------------------------------------------------------------------

    @property
    def gate(self) -> tuple[mmap.mmap, int]:
        """Where the byte lies that is not 0 while the gate is shut: workers look at it before each sample."""
        return self._memory, _GATE_START

    def shut_gate(self) -> None:
        """Has workers begin no sample, but for what is let through."""
        self.let_through(None)
        self._memory[_GATE_START] = 1

    def open_gate(self) -> None:
        """Has workers begin samples as they like."""
        self._memory[_GATE_START] = 0

    def let_through(self, seq: int | None) -> None:
        """Lets the samples of one batch pass a gate that is shut, and no others; None: of none."""
        _LET_THROUGH.pack_into(self._memory, _LET_THROUGH_START, _NONE if seq is None else seq)

    def let_all_through(self) -> None:
        """Lets the samples of all batches pass that were asked for."""
        _LET_THROUGH.pack_into(self._memory, _LET_THROUGH_START, _ALL)

    def may_pass(self, seq: int) -> bool:
        """Whether samples of a batch may be begun."""
        if not self._memory[_GATE_START]:
            return True
        return _LET_THROUGH.unpack_from(self._memory, _LET_THROUGH_START)[0] in (seq, _ALL)

    @property
    def gate_words(self) -> tuple[int, int]:
        """How the gate is, to be told to workers that do not see this memory, which set it in theirs."""
        return self._memory[_GATE_START], int(_LET_THROUGH.unpack_from(self._memory, _LET_THROUGH_START)[0])

    @gate_words.setter
    def gate_words(self, words: tuple[int, int]) -> None:
        _LET_THROUGH.pack_into(self._memory, _LET_THROUGH_START, words[1])
        self._memory[_GATE_START] = words[0]

    def count_call(self, worker: int) -> None:
        """Notes that ``worker`` has read one more token that says that the gate may let it pass."""
        _COUNT.pack_into(self._memory, _LINE * (1 + worker) + _COUNT_START, self.calls_read(worker) + 1)

    def calls_read(self, worker: int) -> int:
        """Returns how many such tokens ``worker`` has read."""
        return int(_COUNT.unpack_from(self._memory, _LINE * (1 + worker) + _COUNT_START)[0])

    def forget_calls(self, worker: int) -> None:
        """Begins to count anew. Called while ``worker`` is not running."""
        _COUNT.pack_into(self._memory, _LINE * (1 + worker) + _COUNT_START, 0)

    def record(self, worker: int) -> memoryview:
        """Returns where the record of a worker lies. It holds the mapping."""
        start = self._records_start + worker * RECORD_BYTES
        return memoryview(self._memory)[start : start + RECORD_BYTES]

    # -- what workers are at, and what their successors need -------------------------------------------------------

    def begin(self, worker: int, seq: int) -> int:
        """Notes that ``worker`` begins batch ``seq`` now, and returns when that is, in nanoseconds."""
        now = time.monotonic_ns()
        _PROGRESS.pack_into(self._memory, _LINE * (1 + worker), seq, now)
        return now

    def idle(self, worker: int) -> None:
        """Notes that ``worker`` has begun nothing yet."""
        _PROGRESS.pack_into(self._memory, _LINE * (1 + worker), _IDLE, 0)

    def begun(self, worker: int) -> tuple[int, float] | None:
        """Returns the batch that ``worker`` began last, and how many seconds ago; None before its first."""
        seq, since = _PROGRESS.unpack_from(self._memory, _LINE * (1 + worker))
        return None if seq == _IDLE else (seq, (time.monotonic_ns() - since) / 1e9)

    def save(self, worker: int, tag: int, data: bytes) -> None:
        """Saves ``data`` for the successor of ``worker``, beside what was saved by the call before.

        The two take turns: a worker that is killed in the middle of this has left the one before untouched.

        Args:
            worker: whose data it is.
            tag: one more than at the call before; or the same, if what it replaces will not be needed.
            data: some KB; more than there is room for is dropped.
        """
        if len(data) > _SAVED_BYTES - _SAVED.size:
            return
        place = self._place(worker, tag)
        start = place + _SAVED.size
        _SAVED.pack_into(self._memory, place, tag, 0)
        self._memory[start : start + len(data)] = data
        _SAVED.pack_into(self._memory, place, tag, len(data))

    def saved(self, worker: int, tag: int) -> bytes | None:
        """Returns what was saved last with a tag of ``tag`` at most, or None."""
        found = self.saved_last(worker, tag)
        return None if found is None else found[1]

    def saved_last(self, worker: int, tag: int = _LAST) -> tuple[int, bytes] | None:
        """Returns the same, and the tag before it."""
        found = []
        for place in (self._place(worker, 0), self._place(worker, 1)):
            its_tag, nbytes = _SAVED.unpack_from(self._memory, place)
            if nbytes and its_tag <= tag:
                found.append((its_tag, place + _SAVED.size, nbytes))
        if not found:
            return None
        its_tag, start, nbytes = max(found)
        return its_tag, self._memory[start : start + nbytes]

    def forget(self, worker: int) -> None:
        """Drops what was saved for the successor of ``worker``. Called while that worker is not running."""
        for tag in (0, 1):
            _SAVED.pack_into(self._memory, self._place(worker, tag), 0, 0)

    def note(self, slot: int, data: bytes | None) -> None:
        """Writes ``data`` beside a slot, or that there is none. By the slot's writer, before its token."""
        self._note(slot, data)

    def note_of(self, slot: int) -> bytes:
        """Returns what was noted beside a slot by the worker that the slot has come from."""
        return self._noted(slot) or b""

    def note_at_begin(self, worker: int, data: bytes | None) -> None:
        """Notes what ``worker`` begins a pass with. By that worker, before it tells that it begins."""
        self._note(self._slots + worker, data)

    def noted_at_begin(self, worker: int) -> bytes | None:
        """Returns what ``worker`` began a pass with. After it has told so, until it is told of another pass."""
        return self._noted(self._slots + worker)

    def _note(self, place: int, data: bytes | None) -> None:
        start, room = self._note_place(place)
        nbytes = 0 if data is None or len(data) > room else len(data)
        if data is not None and nbytes:
            self._memory[start : start + nbytes] = data
        self.note_lengths[place] = nbytes

    def _noted(self, place: int) -> bytes | None:
        nbytes = self.note_lengths[place]
        start, _ = self._note_place(place)
        return self._memory[start : start + nbytes] if nbytes else None

    def _note_place(self, place: int) -> tuple[int, int]:
        """Returns where a note lies, of a slot or behind them of a worker, and how much room it has."""
        behind = max(0, place - self._slots)
        room = _NOTE_BYTES if place < self._slots else BEGIN_NOTE_BYTES
        return self._notes_start + _NOTE_BYTES * min(place, self._slots) + BEGIN_NOTE_BYTES * behind, room

    def _place(self, worker: int, tag: int) -> int:
        return self._saved_start + _SAVED_BYTES * (2 * worker + tag % 2)
