"""How far a loop is in a pass: what a loader's state says of the batches, whoever made them. Pure.

The sampler is read ahead of what is handed out, and workers are ahead of the loop. What counts here is what the loop
was given: batches, and exceptions in a batch's place.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass
class WorkerPlace:
    """Where a worker is, as the loop sees it.

    Attributes:
        batches: how many of the worker's batches the loop was given in this pass.
        at_begin: the state of the random generators at the pass's beginning; None: what the seed gives.
        generators: and behind the last of those batches; None: as at the beginning.
        data: the states of dataset and iterator, as they were told last; None: they were not.
        data_at: behind how many batches that was.
        is_over: whether there is no more data in this pass.
        has_lost: whether states that the pass was begun with could not be told.
    """

    batches: int = 0
    at_begin: bytes | None = None
    generators: bytes | None = None
    data: bytes | None = None
    data_at: int = 0
    is_over: bool = False
    has_lost: bool = False


@dataclass
class Place:
    """A place in a pass.

    Attributes:
        batches: how many of the sampler's batches the loop was given, from the first on without a gap.
        beyond: the numbers of those behind the gap; without order there may be one.
        given: how many the loop was given in all.
        turn: the worker whose turn it is.
        workers: where each of them is; none where there are no workers.
    """

    batches: int = 0
    beyond: set[int] = field(default_factory=set)
    given: int = 0
    turn: int = 0
    workers: list[WorkerPlace] = field(default_factory=list)

    def copy(self) -> Place:
        """Returns a copy, of the workers' places too."""
        return dataclasses.replace(
            self, beyond=set(self.beyond), workers=[dataclasses.replace(worker) for worker in self.workers]
        )


# A batch that was taken: its number, its worker, what that has noted of its generators, and the states of its data.
_Taken = tuple[int, int, bytes | None, bytes | None, Collection[int]]

# What workers have noted at the end of a pass: of their generators, and of their dataset.
StatesAtEnd = Mapping[int, tuple[bytes | None, bool]]
_Ends = tuple[dict[int, bytes], StatesAtEnd]


class Progress:
    """The place of one iterator's loop, counted on as batches are handed out.

    Args:
        place: where the pass is taken up.
        has_states: whether the dataset is known to have a state of its own.
        in_order: whether batches are given by number.
        may_repeat: whether batches that came since the last states can be made again, as the first that come then.

    Attributes:
        has_states: that, or it was told by a worker. A place is then complete only where the states of all workers are
            known; those who take it up later make again what came since.
        has_ended: whether the loop was told that there is no more.
        is_plain: whether it is enough to count a batch with which a worker told nothing, in `counts` and `last`.
            Whoever takes it does so: a call would cost more than all the rest.
        counts: how many batches of each worker are not counted in the place yet.
        last: by which worker the last of them is.
    """

    def __init__(self, place: Place, has_states: bool = False, in_order: bool = True, may_repeat: bool = True) -> None:
        self.has_states = has_states
        self._may_repeat = may_repeat
        self.has_ended = False
        self.is_plain = in_order and not has_states
        self.counts = [0] * max(1, len(place.workers))
        self.last = 0
        self._is_ahead = False
        self._first = place.given
        self._place = place
        self._complete = place.copy()
        self._ahead: deque[_Taken | _Ends] = deque()
        # The numbers of the first batches that are asked for, where some behind them were given before.
        last = max(place.beyond, default=place.batches - 1)
        self._gap = [number for number in range(place.batches, last) if number not in place.beyond]
        self._behind_gap = last + 1 - len(self._gap)

    @property
    def taken(self) -> int:
        """How many batches were given since the pass was begun or taken up."""
        return self._place.given - self._first + sum(self.counts)

    def take(
        self,
        seq: int,
        worker: int,
        note: bytes | None = None,
        data: bytes | None = None,
        over: Collection[int] = (),
    ) -> None:
        """Notes that a batch was taken.

        Args:
            seq: its number, counted from the first one that was asked for.
            worker: which has made it.
            note: what the worker has noted of its generators.
            data: the states that have come with it.
            over: the workers that have no more.
        """
        if self.is_plain and note is None and data is None:
            self.counts[worker] += 1
            self.last = worker
            return
        self._fold()
        if self._is_ahead:
            self._ahead.append((seq, worker, note, data, over))
        else:
            self._give(seq, worker, note, data, over)

    def end(self, notes: dict[int, bytes], states: StatesAtEnd | None = None) -> None:
        """Notes that there is no more.

        Args:
            notes: what workers have noted of their generators when they found that.
            states: and the states that their datasets were in then, with whether they could not be told.
        """
        self._fold()
        ends = dict(notes), dict(states or {})
        if self._is_ahead:
            self._ahead.append(ends)
        else:
            self._end(*ends)

    def hand_on(self) -> None:
        """Tells the loop what was taken first."""
        if self._ahead:
            first = self._ahead.popleft()
            if len(first) == 2:
                self._end(*first)
            else:
                self._give(*first)

    def begin_worker(self, worker: int, generators: bytes | None, data: bytes | None, has_lost: bool) -> None:
        """Notes what a worker has begun the pass with, of which nothing was taken yet."""
        for place in (self._place, self._complete):
            place.workers[worker].at_begin = generators
            place.workers[worker].data = data
            place.workers[worker].has_lost = has_lost

    @property
    def is_ahead(self) -> bool:
        """Whether batches are taken ahead of the loop, which is given one at each `hand_on`."""
        return self._is_ahead

    @is_ahead.setter
    def is_ahead(self, is_ahead: bool) -> None:
        self._fold()
        self._is_ahead = is_ahead
        self.is_plain = self.is_plain and not is_ahead

    def _fold(self) -> None:
        """Counts what is not counted in the place yet."""
        count = sum(self.counts)
        if not count:
            return
        place = self._place
        place.batches += count
        place.given += count
        for worker, batches in zip(place.workers, self.counts, strict=False):
            worker.batches += batches
        if place.workers:
            place.turn = (self.last + 1) % len(place.workers)
        self.counts = [0] * len(self.counts)

    def number_of(self, seq: int) -> int:
        """Returns which of the sampler's batches was asked for as number ``seq``."""
        return self._gap[seq] if seq < len(self._gap) else self._behind_gap + seq

    def state(self) -> tuple[Place, int]:
        """Returns the last place that is complete, and how many batches were given since.

        At the end of a pass it is that: nothing of the pass is made again.
        """
        self._fold()
        place = self._complete if self.has_states and not self.has_ended else self._place
        return place, self._place.given - place.given

    def _end(self, notes: dict[int, bytes], states: StatesAtEnd) -> None:
        self.has_ended = True
        for worker, (data, has_lost) in states.items():
            for place in (self._place, self._complete):
                place.workers[worker].data = data
                place.workers[worker].has_lost = has_lost
        for worker, note in notes.items():
            for place in (self._place, self._complete):
                place.workers[worker].generators = note

    def _give(self, seq: int, worker: int, note: bytes | None, data: bytes | None, over: Collection[int]) -> None:
        place = self._place
        place.given += 1
        number = self.number_of(seq)
        if number == place.batches:
            place.batches += 1
            while place.batches in place.beyond:
                place.beyond.discard(place.batches)
                place.batches += 1
        else:
            place.beyond.add(number)
        if not place.workers:
            return
        place.turn = (worker + 1) % len(place.workers)
        maker = place.workers[worker]
        maker.batches += 1
        if note is not None:
            maker.generators = note
        if data is not None:
            self.has_states, self.is_plain = True, False
            maker.data, maker.data_at, maker.has_lost = data, maker.batches, False
        elif not self._may_repeat:  # an exception, which has come without: others would be dropped in its place
            maker.data_at = maker.batches
        if self.has_states:
            for number in over:
                place.workers[number].is_over = True
            if all(one.is_over or one.data_at == one.batches for one in place.workers):
                self._complete = place.copy()
