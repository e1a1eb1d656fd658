"""How the driver is called, with a library in its place whose functions are called as C functions are."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from shmloader.device import cuda

HIGH = 0x7F12_3456_7000  # no address may lose its upper half
NOT_READY, OUT_OF_MEMORY, NOT_REGISTERED, UNSUPPORTED = 600, 2, 713, 900


class Library:
    """A driver of two devices, the second of which nobody uses at first.

    Attributes:
        log: the calls that matter, with what they got, and the context and the capture mode that they came in.
        active: the devices with a context.
        answers: what a function returns instead of success.
        pending: events that have not passed.
    """

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.active = {0}
        self.answers: dict[str, int] = {}
        self.pending: set[int] = set()
        self.capturing = 0
        self.contexts: list[int] = []
        self.mode = 0  # global
        self.events = 0
        for name, arguments in cuda._FUNCTIONS.items():
            prototype = ctypes.CFUNCTYPE(ctypes.c_int, *arguments)
            setattr(self, name, prototype(self._function(name)))

    def _function(self, name: str) -> Callable[..., int]:
        act = getattr(self, "_" + name, None)

        def call(*arguments: Any) -> int:
            if name in self.answers:
                return self.answers[name]
            if act is not None:
                return act(*arguments) or 0
            self.log.append((name, *arguments, self.contexts[-1] if self.contexts else None, self.mode))
            return 0

        return call

    def _cuDeviceGetCount(self, count: int) -> None:
        ctypes.c_int.from_address(count).value = 2

    def _cuDevicePrimaryCtxGetState(self, device: int, flags: int, is_active: int) -> None:
        ctypes.c_int.from_address(is_active).value = device in self.active

    def _cuDevicePrimaryCtxRetain(self, context: int, device: int) -> None:
        self.active.add(device)
        ctypes.c_void_p.from_address(context).value = HIGH + device

    def _cuCtxPushCurrent_v2(self, context: int) -> None:
        self.contexts.append(context)

    def _cuCtxPopCurrent_v2(self, context: int) -> None:
        ctypes.c_void_p.from_address(context).value = self.contexts.pop()

    def _cuThreadExchangeStreamCaptureMode(self, mode: int) -> None:
        word = ctypes.c_int.from_address(mode)
        word.value, self.mode = self.mode, word.value

    def _cuStreamIsCapturing(self, stream: int | None, status: int) -> None:
        ctypes.c_int.from_address(status).value = self.capturing

    def _cuEventCreate(self, event: int, flags: int) -> None:
        self.events += 1
        ctypes.c_void_p.from_address(event).value = HIGH + 0x100 * self.events

    def _cuEventQuery(self, event: int) -> int:
        return NOT_READY if event in self.pending else 0

    def _cuGetErrorName(self, error: int, name: int) -> None:
        self.name = ctypes.c_char_p(b"CUDA_ERROR_%d" % error)
        ctypes.c_char_p.from_address(name).value = self.name.value


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    library = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    return library


def calls(library: Library, name: str) -> list[tuple[Any, ...]]:
    return [call[1:] for call in library.log if call[0] == name]


def test_memory_is_registered_for_all_devices_outside_of_captures(library: Library) -> None:
    driver = cuda.Driver()
    assert driver.register(HIGH, 1 << 40) == ""
    assert driver.unregister(HIGH)
    assert calls(library, "cuMemHostRegister_v2") == [(HIGH, 1 << 40, 1, HIGH, 2)]
    assert calls(library, "cuMemHostUnregister") == [(HIGH, HIGH, 2)]
    assert (library.contexts, library.mode) == ([], 0)


def test_a_context_is_made_where_there_is_none(library: Library) -> None:
    library.active.clear()
    driver = cuda.Driver()
    assert driver.mark() == []
    assert driver.has_passed([])
    assert not driver.is_capturing()
    assert driver.register(HIGH, 4096) == ""
    assert library.active == {0}


def test_what_goes_wrong_is_named(library: Library) -> None:
    driver = cuda.Driver()
    library.answers["cuMemHostRegister_v2"] = OUT_OF_MEMORY
    assert driver.register(HIGH, 4096) == "CUDA_ERROR_2"
    library.answers["cuMemHostUnregister"] = UNSUPPORTED
    assert not driver.unregister(HIGH)
    library.answers["cuMemHostUnregister"] = NOT_REGISTERED
    assert driver.unregister(HIGH)
    assert (library.contexts, library.mode) == ([], 0)


def test_a_mark_has_passed_when_all_devices_have(library: Library) -> None:
    driver = cuda.Driver()
    assert len(driver.mark() or []) == 1
    library.active.add(1)  # by somebody else in this process
    mark = driver.mark()
    assert mark is not None
    contexts = [context for context, *_ in calls(library, "cuCtxRecordEvent")]
    assert contexts == [HIGH, HIGH, HIGH + 1]
    library.pending = {mark[1][1]}
    assert not driver.has_passed(mark)
    library.pending.clear()
    assert driver.has_passed(mark)


def test_events_are_used_again_when_they_have_passed(library: Library) -> None:
    driver = cuda.Driver()
    for _ in range(10):
        one, other = driver.mark(), driver.mark()
        assert one is not None
        assert other is not None
        assert one[0][1] != other[0][1]
        assert driver.has_passed(one)
        assert driver.has_passed(other)
    assert library.events == 2


@pytest.mark.parametrize("function", ["cuCtxRecordEvent", "cuEventCreate"])
def test_no_mark_where_one_device_has_none(library: Library, function: str) -> None:
    library.active.add(1)
    driver = cuda.Driver()
    library.answers[function] = UNSUPPORTED
    assert driver.mark() is None
    del library.answers[function]
    assert driver.mark() is not None
    assert library.events <= 3


def test_a_device_that_is_lost_never_passes_a_mark(library: Library) -> None:
    driver = cuda.Driver()
    mark = driver.mark()
    library.answers["cuEventQuery"] = UNSUPPORTED
    assert mark is not None
    assert not driver.has_passed(mark)


def test_captures(library: Library) -> None:
    driver = cuda.Driver()
    assert not driver.is_capturing()
    library.capturing = 1
    assert driver.is_capturing()
    library.capturing = 0
    library.answers["cuStreamIsCapturing"] = UNSUPPORTED  # what the default stream says while another one is captured
    assert driver.is_capturing()


def test_finish_waits_for_every_device(library: Library) -> None:
    library.active.add(1)
    cuda.Driver().finish()
    assert calls(library, "cuCtxSynchronize") == [(HIGH, 0x2), (HIGH + 1, 0x2)]


@pytest.mark.parametrize("name", ["cuCtxRecordEvent", "cuMemHostRegister_v2"])
def test_an_old_driver_is_named(library: Library, name: str) -> None:
    delattr(library, name)
    with pytest.raises(cuda.MissingError, match=f"too old: it has no {name}"):
        cuda.Driver()


def test_a_driver_that_does_not_start_is_named(library: Library) -> None:
    library.answers["cuInit"] = 100
    with pytest.raises(cuda.MissingError, match="does not start: CUDA_ERROR_100"):
        cuda.Driver()


def test_no_driver() -> None:
    if not cuda.is_available():
        with pytest.raises(cuda.MissingError, match="libcuda"):
            cuda.Driver()
