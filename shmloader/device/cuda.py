"""All that the library asks of CUDA. Used in the parent only; a worker never comes here.

Nothing else in the library touches a device, so that tests can put doubles in the place of `driver` and `Lane`.

What has to do with the pool's memory goes to the driver's own interface, through ctypes:

- torch has no event that follows the work of *all* streams. The driver has one since CUDA 12.5 (``cuCtxRecordEvent``).
- A registration that fails must leave nothing behind. Through ``torch.cuda.cudart()`` it would leave its error in the
  runtime, where the next kernel launch finds it and raises it as its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import torch

_LIBRARY = "libcuda.so.1"

_PORTABLE = 0x01  # page-locked for the contexts of all devices
_DISABLE_TIMING = 0x02
_RELAXED = 2  # a capture mode: what this thread does now is no part of any capture

_SUCCESS = 0
_NOT_READY = 600
_NOT_REGISTERED = 713
_NOT_CAPTURING = 0

# What there is to call, by what it takes.
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuInit": (ctypes.c_uint,),
    "cuDeviceGetCount": (ctypes.c_void_p,),
    "cuDevicePrimaryCtxGetState": (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
    "cuDevicePrimaryCtxRetain": (ctypes.c_void_p, ctypes.c_int),
    "cuCtxPushCurrent_v2": (ctypes.c_void_p,),
    "cuCtxPopCurrent_v2": (ctypes.c_void_p,),
    "cuCtxSynchronize": (),
    "cuCtxRecordEvent": (ctypes.c_void_p, ctypes.c_void_p),
    "cuEventCreate": (ctypes.c_void_p, ctypes.c_uint),
    "cuEventQuery": (ctypes.c_void_p,),
    "cuStreamIsCapturing": (ctypes.c_void_p, ctypes.c_void_p),
    "cuThreadExchangeStreamCaptureMode": (ctypes.c_void_p,),
    "cuMemHostRegister_v2": (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint),
    "cuMemHostUnregister": (ctypes.c_void_p,),
    "cuGetErrorName": (ctypes.c_int, ctypes.c_void_p),
}

# An event for each device that this process uses.
Mark = list[tuple["_Context", int]]


class MissingError(RuntimeError):
    """The driver lacks something without which slots cannot be page-locked."""


def is_available() -> bool:
    """Whether there is a CUDA device. One of ROCm, which torch calls by the same name, has another driver."""
    return torch.cuda.is_available() and torch.version.hip is None


def resolve(device: torch.device) -> torch.device:
    """Returns ``device`` with its number; where it has none, the current one.

    Raises:
        RuntimeError: there is no such device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count <= (device.index or 0):
        found = f"{count} CUDA devices" if count else "no CUDA device"
        raise RuntimeError(f"device={str(device)!r} cannot be had: torch finds {found}")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


class _Context:
    """A device's primary context, which all of torch's work on the device belongs to."""

    def __init__(self, device: int, handle: int) -> None:
        self.device = device
        self.handle = handle
        self.spare_events: list[int] = []


class Driver:
    """Page-locks memory, and knows when all copies that were begun are over.

    Nothing here waits for a device but `finish`. Calls may come from any thread.

    Raises:
        MissingError: there is no driver, or it is older than CUDA 12.5.
    """

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise MissingError(str(error)) from error
        for name, arguments in _FUNCTIONS.items():
            function = getattr(library, name, None)
            if function is None:
                raise MissingError(f"the CUDA driver is too old: it has no {name}")
            function.argtypes, function.restype = arguments, ctypes.c_int
        self._call = library
        count = ctypes.c_int()
        if code := library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count)):
            raise MissingError(f"the CUDA driver does not start: {self._name(code)}")
        self._unused = list(range(count.value))
        self._contexts: list[_Context] = []

    # -- memory --------------------------------------------------------------------------------------------------

    def register(self, address: int, nbytes: int) -> str:
        """Page-locks whole pages for all devices.

        Takes a tenth of a millisecond and more: the kernel looks up every page. Makes a context on the current device
        where this process has none yet.

        Returns:
            What was wrong; empty where all went well.
        """
        if not self._find_contexts():
            self._retain(torch.cuda.current_device())
        with self._inside(self._contexts[0]):
            error = self._call.cuMemHostRegister_v2(address, nbytes, _PORTABLE)
        return self._name(error) if error else ""

    def unregister(self, address: int) -> bool:
        """Undoes `register`; no copy from there may be in flight. Returns whether the memory is not registered now."""
        with self._inside(self._contexts[0]):
            return self._call.cuMemHostUnregister(address) in (_SUCCESS, _NOT_REGISTERED)

    # -- copies --------------------------------------------------------------------------------------------------

    def is_capturing(self) -> bool:
        """Whether this thread's current stream on any device is being captured into a graph."""
        return any(map(self._captures, self._find_contexts()))

    def _captures(self, context: _Context) -> bool:
        status = ctypes.c_int()
        stream = torch.cuda.current_stream(context.device).cuda_stream
        with self._inside(context):
            # An error says that another stream is, or that the context is lost; neither is a time to ask for more.
            return bool(self._call.cuStreamIsCapturing(stream, ctypes.byref(status))) or status.value != _NOT_CAPTURING

    def mark(self) -> Mark | None:
        """Returns a mark behind all work that this process has given its devices so far, on whatever streams.

        Not to be called while `is_capturing`: it would spoil the capture.

        Returns:
            The mark, or None where none can be had now.
        """
        mark: Mark = []
        for context in self._find_contexts():
            event = self._record(context)
            if event is None:
                self._recycle(mark)
                return None
            mark.append((context, event))
        return mark

    def _record(self, context: _Context) -> int | None:
        with self._inside(context):
            event = context.spare_events.pop() if context.spare_events else self._new_event()
            if event is None:
                return None
            if self._call.cuCtxRecordEvent(context.handle, event):
                context.spare_events.append(event)
                return None
            return event

    def _new_event(self) -> int | None:
        event = ctypes.c_void_p()
        return None if self._call.cuEventCreate(ctypes.byref(event), _DISABLE_TIMING) else event.value

    def has_passed(self, mark: Mark) -> bool:
        """Whether all work before ``mark`` is done. If so, the mark is used up.

        Where a device is lost, nothing on it ever is.
        """
        for context, event in mark:
            with self._inside(context):
                if self._call.cuEventQuery(event) != _SUCCESS:
                    return False
        self._recycle(mark)
        return True

    @staticmethod
    def _recycle(mark: Mark) -> None:
        for context, event in mark:
            context.spare_events.append(event)

    def finish(self) -> None:
        """Blocks until all devices have done all work that they were given."""
        for context in self._find_contexts():
            with self._inside(context):
                self._call.cuCtxSynchronize()

    # -- contexts ------------------------------------------------------------------------------------------------

    def _find_contexts(self) -> list[_Context]:
        """Returns the contexts that there are. Others in this process may make one at any time; none goes away."""
        flags, is_active = ctypes.c_uint(), ctypes.c_int()
        for device in self._unused[:]:
            error = self._call.cuDevicePrimaryCtxGetState(device, ctypes.byref(flags), ctypes.byref(is_active))
            if not error and is_active.value:
                self._retain(device)
        return self._contexts

    def _retain(self, device: int) -> None:
        handle = ctypes.c_void_p()
        error = self._call.cuDevicePrimaryCtxRetain(ctypes.byref(handle), device)
        if error or not handle.value:
            raise RuntimeError(f"cuda:{device} cannot be used: {self._name(error)}")
        if device in self._unused:  # else another thread came first
            self._unused.remove(device)
            self._contexts.append(_Context(device, handle.value))

    @contextlib.contextmanager
    def _inside(self, context: _Context) -> Iterator[None]:
        """Makes a context the current one, and what is called is no part of captures that other threads have begun."""
        mode, popped = ctypes.c_int(_RELAXED), ctypes.c_void_p()
        self._call.cuCtxPushCurrent_v2(context.handle)
        self._call.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
        try:
            yield
        finally:
            self._call.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
            self._call.cuCtxPopCurrent_v2(ctypes.byref(popped))

    def _name(self, error: int) -> str:
        name = ctypes.c_char_p()
        self._call.cuGetErrorName(error, ctypes.byref(name))
        return (name.value or b"error %d" % error).decode()


@functools.cache
def driver() -> Driver:
    """Returns this process's driver.

    Raises:
        MissingError: see `Driver`.
    """
    return Driver()


class Lane:
    """A stream of its own on which batches travel to a device, beside what the training loop computes there.

    Args:
        device: where to.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)

    def is_capturing(self) -> bool:
        """Whether this thread's current stream is being captured into a graph."""
        with torch.cuda.device(self.device):
            return torch.cuda.is_current_stream_capturing()

    def open(self) -> contextlib.AbstractContextManager[Any]:
        """Returns a context in which what torch is asked to do, `send` above all, is done on this stream."""
        return torch.cuda.stream(self._stream)

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        """Begins to copy a dense tensor, and returns it as it will be.

        One that is not in a slot, and so perhaps not in page-locked memory, is copied there first: from any other the
        host would have to wait for the device. torch holds that copy until the device has read it.
        """
        source = tensor.pin_memory() if tensor.is_cpu else tensor
        return source.to(self.device, non_blocking=True)

    def mark(self) -> Any:
        """Returns a mark behind all that was sent so far."""
        return self._stream.record_event()

    def has_passed(self, mark: Any) -> bool:
        """Whether the copies before ``mark`` are done. Does not wait for them."""
        return bool(mark.query())

    def receive(self, tensors: Iterable[torch.Tensor], mark: Any) -> None:
        """Makes tensors that were sent safe to use on this thread's current stream, which waits for ``mark``.

        The host does not. Without `record_stream`, memory that the loop lets go of would be used for the next copy
        while the loop's kernels still read it: it was allocated on our stream, which does not wait for theirs.
        """
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(mark)
        for tensor in tensors:
            tensor.record_stream(stream)
