"""What is said of CUDA, with a simulated device and without one, and of start methods."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shmloader import start_method
from shmloader.cli.doctor import software
from shmloader.device import cuda
from tests.helpers import simulated


def test_a_slot_is_page_locked_where_that_works(driver: simulated.Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert software._page_lock() == {"devices": 2, "failure": ""}
    assert driver.ranges == {}


def test_a_driver_that_cannot_is_called_so(driver: simulated.Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "register", lambda address, nbytes: "CUDA_ERROR_304")
    assert "CUDA_ERROR_304" in software._page_lock()["failure"]

    def missing() -> None:
        raise cuda.MissingError("the CUDA driver is too old")

    monkeypatch.setattr(cuda, "driver", missing)
    assert "too old" in software._page_lock()["failure"]


@pytest.mark.parametrize(
    ("tried", "state", "words"),
    [
        (lambda: {"devices": 0, "failure": ""}, "ok", "no CUDA device"),
        (lambda: {"devices": 2, "failure": ""}, "ok", "2 devices, and a slot was page-locked"),
        (lambda: {"devices": 2, "failure": "it is too old"}, "advice", "2 devices, but it is too old"),
        (lambda: threading.Event().wait(), "unknown", "nothing happened within 1 s"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "unknown", "was ended by signal 9"),
    ],
)
def test_what_follows(
    tried: Callable[[], Any], state: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(software, "_page_lock", tried)
    monkeypatch.setattr(software, "_NVIDIA_DRIVER", tmp_path / "none")
    found = software.page_locking(1 if state == "unknown" else 60)
    assert (found.state, found.facts["page_locked"]) == (
        state,
        None if state == "unknown" else words.endswith("was page-locked"),
    )
    assert words in found.found


def test_a_driver_that_torch_does_not_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "version").touch()
    monkeypatch.setattr(software, "_page_lock", lambda: {"devices": 0, "failure": ""})
    monkeypatch.setattr(software, "_NVIDIA_DRIVER", tmp_path / "version")
    found = software.page_locking(60)
    assert found.state == "advice"
    assert "CUDA_VISIBLE_DEVICES" in found.advice


@pytest.mark.parametrize(("method", "state"), [("fork", "ok"), ("spawn", "advice")])
def test_start_methods(method: str, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "context_for", lambda context: torch.multiprocessing.get_context(method))
    monkeypatch.setattr(start_method, "is_chosen", lambda: True)
    found = software.start(60)
    assert (found.state, found.facts["method"]) == (state, method)
