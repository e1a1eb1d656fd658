"""Seeds of samples: the same for equal indices, others for all else, and never others than they were."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch

from shmloader.workers.states import generators, seeding
from shmloader.workers.states.sample_seeds import SampleSeeds
from tests.helpers.support import random_states


def test_they_are_what_they_were() -> None:
    """A pass may be resumed with another release."""
    assert SampleSeeds(1, 0).of(0) == (8054809403662000670, 962446272, 5469714012408392045)
    assert SampleSeeds(-5, 3).of(("a", 7)) == (-954336321436205643, 456734983, 5844333730734382376)
    assert SampleSeeds(1, 0).of_the_beginning() == (438615763242359429, 3202005657, 15424929609803161730)


def test_they_fit_what_they_are_for() -> None:
    for index in range(1000):
        of_torch, of_numpy, of_python = SampleSeeds(11, 2).of(index)
        assert -(1 << 63) <= of_torch < 1 << 63
        assert 0 <= of_numpy < 1 << 32
        assert 0 <= of_python < 1 << 64


@pytest.mark.parametrize(
    "equal",
    [
        [3, np.int64(3), np.uint8(3), torch.tensor(3), torch.tensor(3, dtype=torch.int16), np.array(3)],
        [1, True, np.bool_(True)],
        [-2, np.int8(-2)],
        [1 << 100, int("1" + "0" * 100, 2)],
        ["a", np.str_("a")],
        [0.5, np.float64(0.5), np.float32(0.5), torch.tensor(0.5)],
        [[1, 2], (1, 2), range(1, 3), np.array([1, 2]), torch.tensor([1, 2]), (np.int64(1), torch.tensor(2))],
        [(1, ("a", b"a")), [np.int32(1), ["a", b"a"]]],
        [[5], np.array([5]), torch.tensor([5])],
    ],
    ids=repr,
)
def test_equal_indices_have_equal_seeds(equal: list[Any]) -> None:
    seeds = SampleSeeds(5, 1)
    assert {seeds.of(index) for index in equal} == {seeds.of(equal[0])}
    assert SampleSeeds(5, 1).of(pickle.loads(pickle.dumps(equal[0]))) == seeds.of(equal[0])


def test_all_others_differ_and_so_do_their_parts() -> None:
    indices = [
        *range(-50, 200), 1 << 64, None, "1", b"1", "", "1,2", "None", 1.0, (1,), (1, 2), ("1,2",), ("1", "2"),
        ((1,), 2), (1, (2,)), slice(1, 2), slice(None), (), ((),), "begin", b"begin", "\udc80",
    ]  # fmt: skip
    found = [
        (index_seeds, part, one)
        for base, epoch in itertools.product((0, 1, -1, 12), (0, 1, 12))
        for index_seeds in [SampleSeeds(base, epoch)]
        for index in indices
        for part, one in enumerate(index_seeds.of(index))
    ]
    for part in (0, 2):  # of numpy's 32 bits two may be alike
        values = [one for _, its_part, one in found if its_part == part]
        assert len(set(values)) == len(values)
    numpys = [one for _, part, one in found if part == 1]
    assert len(set(numpys)) > len(numpys) - 10
    assert SampleSeeds(0, 0).of_the_beginning() not in {SampleSeeds(0, 0).of(index) for index in indices}


@pytest.mark.parametrize("index", [object(), {"a": 1}, {1}, [object()], 1j, torch.Generator()], ids=repr)
def test_what_has_no_certain_bytes_is_refused(index: Any) -> None:
    with pytest.raises(TypeError, match=r"seeding='sample'.*index.*indices must be ints"):
        SampleSeeds(0, 0).of(index)


def test_generators_are_as_if_they_had_been_seeded_by_hand() -> None:
    seeder = seeding.SampleSeeder(3, 4)
    of_torch, of_numpy, of_python = SampleSeeds(3, 4).of(17)
    with generators.kept():
        torch.randn(1), random.gauss(0, 1), np.random.randn()  # of which a second half is kept
        seeder(17)
        drawn = torch.randn(3).tolist(), random.gauss(0, 1), np.random.randn(3).tolist()
        torch.manual_seed(of_torch)
        random.seed(of_python)
        np.random.seed(of_numpy)
        assert drawn == (torch.randn(3).tolist(), random.gauss(0, 1), np.random.randn(3).tolist())


def test_what_is_kept_is_put_back_after_an_error_too() -> None:
    torch.randn(1), random.gauss(0, 1), np.random.randn()
    before = random_states()
    with contextlib.suppress(KeyError), generators.kept():
        seeding.SampleSeeder(0, 0)(1)
        raise KeyError
    assert random_states() == before
