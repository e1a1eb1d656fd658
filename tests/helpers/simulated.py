"""A device that is not there: it copies when it is told to, and every call to its driver is noted and checked."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import struct
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from shmloader.device import cuda
from shmloader.slots.pages import PAGE

Position = dict[str, int]


class Device:
    """Streams of work that is done later: nothing happens before `advance`."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[Callable[[], bool]]] = {}
        self._given: Position = {}
        self._done: Position = {}

    def submit(self, stream: str, work: Callable[[], bool]) -> None:
        """Puts work at the end of a stream; it returns whether it is done, or has to wait for other streams."""
        self._queues.setdefault(stream, deque()).append(work)
        self._given[stream] = self._given.get(stream, 0) + 1

    def advance(self, stream: str, count: int = 1) -> None:
        """Does the next ``count`` pieces of work of a stream, or as many as need not wait."""
        queue = self._queues.get(stream, deque())
        while count and queue and queue[0]():
            queue.popleft()
            self._done[stream] = self._done.get(stream, 0) + 1
            count -= 1

    def finish(self) -> None:
        """Does all work."""
        while not self.has_reached(self.position()):
            for stream in list(self._queues):
                self.advance(stream, len(self._queues[stream]))

    def drop(self) -> None:
        """Takes all work to be done."""
        self._queues.clear()
        self._done = self._given.copy()

    def position(self, *streams: str) -> Position:
        """Returns where the ends of streams are now; of all by default."""
        return {stream: self._given.get(stream, 0) for stream in streams or list(self._queues)}

    def has_reached(self, position: Position) -> bool:
        return all(self._done.get(stream, 0) >= count for stream, count in position.items())


class Driver:
    """Notes what it is asked for, and checks that it may be: the double of `cuda.Driver`.

    Attributes:
        log: every call that changes something, in order.
        ranges: what is registered: sizes by address.
        refuses: whether registration fails.
        capturing: whether a graph is being captured.
        in_flight: the copies that are not done: from where, and how many bytes.
        pinned_by_torch: how many tensors torch has copied to page-locked memory of its own.
    """

    def __init__(self) -> None:
        self.device = Device()
        self.log: list[tuple[Any, ...]] = []
        self.ranges: dict[int, int] = {}
        self.refuses = self.capturing = False
        self.in_flight: dict[int, tuple[int, int]] = {}
        self.pinned_by_torch = 0
        self._copies = 0
        self._pid = os.getpid()
        self._elsewhere = mmap.mmap(-1, PAGE)

    @property
    def calls_elsewhere(self) -> int:
        """How many calls came from other processes than the one that made this."""
        return int(struct.unpack_from("<q", self._elsewhere)[0])

    def _note(self, *call: Any) -> None:
        if os.getpid() != self._pid:
            struct.pack_into("<q", self._elsewhere, 0, self.calls_elsewhere + 1)
        self.log.append(call)

    def register(self, address: int, nbytes: int) -> str:
        self._note("register", address, nbytes)
        assert address % PAGE == 0
        assert nbytes % PAGE == 0
        assert nbytes > 0
        for start, size in self.ranges.items():
            assert address + nbytes <= start or start + size <= address, "registered twice"
        if self.refuses:
            return "CUDA_ERROR_OUT_OF_MEMORY"
        self.ranges[address] = nbytes
        return ""

    def unregister(self, address: int) -> bool:
        self._note("unregister", address)
        nbytes = self.ranges[address]
        for start, size in self.in_flight.values():
            assert start + size <= address or address + nbytes <= start, "unregistered under a copy"
        del self.ranges[address]
        return True

    def is_capturing(self) -> bool:
        return self.capturing

    def mark(self) -> Any:
        self._note("mark")
        assert not self.capturing, "the capture is spoilt"
        return self.device.position()

    def has_passed(self, mark: Any) -> bool:
        assert not self.capturing
        return self.device.has_reached(mark)

    def finish(self) -> None:
        self._note("finish")
        self.device.finish()

    def forget(self) -> None:
        """Drops all work that is not done."""
        self.device.drop()
        self.in_flight.clear()

    def covers(self, tensor: torch.Tensor) -> bool:
        """Whether all of a tensor lies in one range that is registered, as a copy needs it."""
        storage = tensor.untyped_storage()
        return self._covers(storage.data_ptr(), storage.nbytes())

    def _covers(self, address: int, nbytes: int) -> bool:
        return any(start <= address and address + nbytes <= start + size for start, size in self.ranges.items())

    def pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        """The double of ``tensor.pin_memory()``."""
        if self.covers(tensor) or not tensor.numel():
            return tensor
        self.pinned_by_torch += 1
        return tensor.clone()

    def copy(self, stream: str, tensor: torch.Tensor) -> torch.Tensor:
        """Copies a contiguous tensor, of which it keeps the address only. Pageable memory is read at once."""
        address, nbytes = tensor.data_ptr(), tensor.nbytes
        copied = torch.zeros_like(tensor)

        def read() -> bool:
            ctypes.memmove(copied.data_ptr(), address, nbytes)
            return True

        if not any(start <= address < start + size for start, size in self.ranges.items()):
            read()
            return copied
        number = self._copies = self._copies + 1
        self.in_flight[number] = address, nbytes

        def read_later() -> bool:
            assert self._covers(address, nbytes), "a copy from memory that is not registered, or not in one piece"
            del self.in_flight[number]
            return read()

        self.device.submit(stream, read_later)
        return copied


class Lane:
    """The double of `cuda.Lane`: copies travel on the stream ``side``, and the loop computes on ``main``."""

    driver: Driver

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.received: list[tuple[int, Any]] = []

    def is_capturing(self) -> bool:
        return self.driver.capturing

    def open(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.driver.copy("side", self.driver.pinned(tensor))

    def mark(self) -> Any:
        return self.driver.device.position("side")

    def has_passed(self, mark: Any) -> bool:
        return self.driver.device.has_reached(mark)

    def receive(self, tensors: Iterable[torch.Tensor], mark: Any) -> None:
        self.received += [(tensor.data_ptr(), mark) for tensor in tensors]
        self.driver.device.submit("main", lambda: self.driver.device.has_reached(mark))


def install(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Puts a simulated device in CUDA's place, and returns its driver."""
    driver = Driver()
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # which loaders ask before torch 2.7
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: torch.device("cuda"))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: driver.pinned(tensor))
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "driver", lambda: driver)
    monkeypatch.setattr(cuda, "resolve", lambda device: device)
    monkeypatch.setattr(cuda, "Lane", type("SimulatedLane", (Lane,), {"driver": driver}))
    return driver
