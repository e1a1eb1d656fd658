"""The benchmark for devices: it says where there is none, and all of it but the device's own calls runs on the CPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu
from shmloader.cli.bench.figures import figure
from shmloader.device import cuda
from tests.helpers import simulated


@pytest.mark.skipif(cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 1
    assert capsys.readouterr().err == "benchmarks.gpu needs a CUDA device, and torch finds none\n"


@pytest.mark.filterwarnings("ignore:.*no accelerator is found")
def test_the_rest_of_it() -> None:
    device, args = torch.device("cpu"), SimpleNamespace(rounds=2, batches=4)
    shared: dict[str, Any] = {"side": 32, "batch_size": 4, "num_workers": 1, "args": args}
    found: dict[str, Any] = {
        "machine": {"device": "none", "cuda": "none"},
        "arguments": {"num_workers": 1, "batch_size": 4, "rounds": 2},
        "large_copy_bytes_per_s": gpu.large_copy(device),
        "bandwidth": gpu.compare(device, lambda images, labels: None, **shared),
        "step": gpu.compare(device, gpu.training_step(device, (1, 1)), **shared, with_limit=True),
        "registration_s": {1 << 20: figure([0.001]).as_dict()},
    }
    assert list(found["step"]["contestants"]) == ["stock", "ours", "ours, device=", "on the device already"]
    text = "\n".join(gpu.report(found))
    assert text.count("| ours, device= |") == 2
    assert "Page-locking: 1.05 MB 1.00 ms." in text


def test_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = simulated.install(monkeypatch)
    assert len(gpu.registration(1 << 20).rounds) == 7
    assert driver.ranges == {}


def test_the_network_has_resnet_50s_size() -> None:
    assert sum(parameter.numel() for parameter in gpu.network().parameters()) == 25_557_032
