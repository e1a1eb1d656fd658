"""The benchmark for devices: it says where there is none, and all of it but the device's own calls runs on the CPU."""

from __future__ import annotations

from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu
from shmloader.cli.bench.figures import figure
from shmloader.cli.console import UsageError


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device() -> None:
    with pytest.raises(UsageError, match="this needs a CUDA device, and torch finds none"):
        gpu.measure(Namespace())


@pytest.mark.filterwarnings("ignore:.*no accelerator is found")
def test_the_rest_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_LARGE_COPY", 1 << 20)
    device = torch.device("cpu")
    rounds: dict[str, Any] = {"count": 2, "num_rounds": 2, "ahead": 1}
    makes = [gpu.contestants(device, side=32, batch_size=4, num_workers=1) for _ in range(2)]
    found = gpu.OnDevice(
        "none",
        {"num_workers": 1, "batch_size": 4},
        gpu.large_copy(device),
        gpu.compare(device, makes[0], lambda images, labels: None, **rounds),
        gpu.compare(device, gpu.with_resident(makes[1]), gpu.training_step(device, (1, 1)), **rounds),
        {1 << 20: figure([0.001])},
    )
    assert list(found.step.rounds) == ["ours", "ours, device=", "stock", "on the device already"]
    assert (found.step.images, found.step.nbytes) == (4, 4 * (3 * 32 * 32 + 8))
    text = "\n".join(found.lines())
    assert text.startswith("none; num workers 1, batch size 4\n")
    assert text.count("| ours, device= |") == 2
    assert "Page-locking: 1.05 MB 1.00 ms." in text
    assert set(found.as_dict()["step"]) == {"images", "nbytes", "batch_s", "cpu_s", "slow_wait_s"}


def test_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    ranges: set[int] = set()

    def register(address: int, nbytes: int, flags: int) -> int:
        assert (address % 4096, nbytes, flags) == (0, 1 << 20, 1)
        ranges.add(address)
        return 0

    def unregister(address: int) -> int:
        ranges.remove(address)
        return 0

    runtime = SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=unregister)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    assert len(gpu.registration(1 << 20).rounds) == 7
    assert not ranges
    runtime.cudaHostRegister = lambda *_: 2
    with pytest.raises(RuntimeError, match="1048576 bytes cannot be page-locked: 2"):
        gpu.registration(1 << 20)


def test_the_network_has_resnet_50s_size() -> None:
    assert sum(parameter.numel() for parameter in gpu.network().parameters()) == 25_557_032
