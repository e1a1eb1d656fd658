"""What torch keeps for each thread, and a forked worker inherits: grad mode, inference mode and autocast."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch

_DEVICES = ("cpu", "cuda")


class TorchModes(NamedTuple):
    """The modes of one thread.

    Attributes:
        with_grad: whether operations are recorded.
        in_inference: whether tensors are made that never can be.
        autocast: by type of device, the dtype that operations are computed in, where there is one.
    """

    with_grad: bool
    in_inference: bool
    autocast: dict[str, torch.dtype]


def of_this_thread() -> TorchModes:
    """Returns the modes of the thread that asks."""
    autocast = {kind: torch.get_autocast_dtype(kind) for kind in _DEVICES if torch.is_autocast_enabled(kind)}
    return TorchModes(torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast)


@contextlib.contextmanager
def entered(modes: TorchModes) -> Iterator[None]:
    """Has them in this thread too, within the block."""
    with contextlib.ExitStack() as stack:
        if modes.in_inference:
            stack.enter_context(torch.inference_mode())
        for kind, dtype in modes.autocast.items():
            # Without the cache, which would keep cast weights as long as the worker lives, also when they have changed.
            stack.enter_context(torch.autocast(kind, dtype, cache_enabled=False))
        stack.enter_context(torch.set_grad_enabled(modes.with_grad))  # last, since inference mode sets it too
        yield
