"""A watch tells of every draw, and what it tells brings the generators back to where they were."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from shmloader.workers.states import generators
from shmloader.workers.states.generators import Watch

DRAWS: list[Callable[[], Any]] = [
    lambda: torch.rand(1),
    lambda: torch.randn(1),
    lambda: torch.randn(1, dtype=torch.float64),
    lambda: torch.rand(624),
    lambda: torch.randperm(5),
    lambda: torch.manual_seed(random.Random(0).randrange(1 << 40)),
    lambda: np.random.rand(),
    lambda: np.random.randn(),
    lambda: np.random.bytes(624 * 4),
    lambda: np.random.shuffle([1, 2, 3]),
    lambda: random.random(),
    lambda: random.gauss(0, 1),
    lambda: random.getrandbits(624 * 32),
    lambda: random.seed(4),
]


@pytest.fixture(autouse=True)
def _generators_stay() -> Any:
    with generators.kept():
        yield


def everything() -> tuple[Any, ...]:
    numbers = torch.randn(3).tolist(), np.random.randn(3).tolist(), random.gauss(0, 1)
    return *numbers, torch.rand(1).item(), np.random.rand(), random.random()


@pytest.mark.parametrize("seed", range(10))
def test_random_walk(seed: int) -> None:
    draw = random.Random(seed)
    watch = Watch()
    latest = watch.look()
    assert latest is not None
    for _ in range(200):
        before = generators.capture()
        if draw.randrange(3):
            draw.choice(DRAWS)()
        is_still = watch.is_still()
        told = watch.look()
        now = generators.capture()
        assert not is_still or now == latest
        assert (told is not None) == (now != before)
        latest = latest if told is None else told
        assert latest == now


@pytest.mark.parametrize("draw", DRAWS)
def test_a_quick_look_tells_of_each_draw(draw: Callable[[], Any]) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    watch = Watch()
    watch.look()
    assert watch.is_still()
    assert watch.is_still()
    draw()
    assert not watch.is_still()
    state = watch.look()
    assert state is not None
    # Where a normal number is left over, the next one may move nothing else.
    assert watch.is_still() == (not generators._has_normal(*generators._split(state)))
    assert watch.look() is None


@pytest.mark.parametrize("without", ["_torch_marks", "_python_marks"])
def test_what_has_no_known_place_is_copied(without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert getattr(generators, without)() is not None
    monkeypatch.setattr(generators, without, lambda: None)
    test_random_walk(0)


def test_the_state_brings_them_back() -> None:
    for draw in DRAWS:
        draw()
        state = generators.capture()
        first = everything()
        generators.restore(state)
        assert everything() == first


def test_of_torch_alone() -> None:
    state = generators.capture_torch()
    first = torch.rand(1).item()
    number = random.random()
    generators.restore(state)
    assert torch.rand(1).item() == first
    assert random.random() != number


def test_another_bit_generator_of_numpys() -> None:
    before = getattr(np.random, "get_bit_generator")()  # noqa: B009
    try:
        getattr(np.random, "set_bit_generator")(np.random.PCG64(3))  # noqa: B009
        watch = Watch()
        watch.look()
        assert watch.look() is None
        np.random.rand()
        state = watch.look()
        assert state is not None
        number = np.random.rand()
        generators.restore(state)
        assert np.random.rand() == number
    finally:
        getattr(np.random, "set_bit_generator")(before)  # noqa: B009


@pytest.mark.parametrize("state", [b"", b"\0" * 12 + b"x", b"\1\0\0\0" + b"\0" * 8 + b"x"])
def test_damage_is_a_value_error(state: bytes) -> None:
    with pytest.raises(ValueError, match="damaged"):
        generators.restore(state)
