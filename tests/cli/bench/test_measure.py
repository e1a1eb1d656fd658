"""The timing of batches in steady state: which of them the clock runs over, never how fast they are."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
from torch.utils.data import DataLoader

from shmloader.cli.bench.measure import Round, Track, calibrate, interleave
from shmloader.cli.console import UsageError
from tests.helpers.datasets import Shards


class _Scripted:
    """A loader of which a test sees every step."""

    num_workers = 2
    prefetch_factor = 2

    def __init__(self, lengths: list[int], declared: int | None = None) -> None:
        self.lengths = lengths
        self.declared = declared
        self.taken: list[int] = []

    def __len__(self) -> int:
        if self.declared is None:
            raise TypeError
        return self.declared

    def __iter__(self) -> Iterator[int]:
        length = self.lengths.pop(0) if len(self.lengths) > 1 else self.lengths[0]
        self.taken.append(0)
        for number in range(length):
            self.taken[-1] += 1
            yield number


def _track(lengths: list[int], declared: int | None = None) -> tuple[Track, list[int]]:
    loader = _Scripted(lengths, declared)
    return Track(loader), loader.taken


def test_a_round_is_timed_in_steady_state() -> None:
    track, taken = _track([1000], 1000)
    took = track.run(30)
    assert (took.batches, len(took.first_batches), taken) == (30, 1, [16 + 30])
    took = track.run(29)
    assert (took.batches, took.first_batches, taken) == (30, [], [46 + 8 + 30])
    track.stop()
    assert track.run(2).batches == 2
    assert taken[1:] == [18]


def test_short_passes_are_halved_and_repeated() -> None:
    track, taken = _track([11], 11)
    took = track.run(10)
    assert took.batches == 10
    assert len(took.first_batches) == 2
    assert taken == [10, 8]  # 4 untimed and 6 timed, 4 untimed and 4 timed


def test_an_unexpected_end_is_not_timed() -> None:
    track, taken = _track([24])
    took = track.run(12)
    assert took.batches == 12
    assert taken[0] == 24
    assert sum(taken[1:]) == (12 + 12)
    track, _ = _track([3])
    with pytest.raises(UsageError, match="a pass has 3 batches; timing takes 4 at least"):
        track.run(4)


def test_passes_that_change_their_length_come_to_an_end() -> None:
    track, _ = _track([40, 30, 20, 8], 50)
    assert track.run(20).batches == 20


def test_real_loaders_are_tracked() -> None:
    track = Track(DataLoader(Shards((9, 9)), batch_size=2, num_workers=1))
    took = track.run(3)
    assert (took.batches, took.wall > 0, took.per_batch > 0, took.cpu_per_batch >= 0) == (3, True, True, True)
    assert calibrate(track, 0.0) >= 10
    track.stop()


def test_turns_change_their_order() -> None:
    log: list[str] = []

    def turn(name: str) -> Round:
        log.append(name)
        return Round(1)

    found = interleave([functools.partial(turn, name) for name in "abc"], 3, done=lambda: log.append("."))
    assert "".join(log) == "a.b.c.b.c.a.c.a.b."
    assert [len(rounds) for rounds in found] == [3, 3, 3]
