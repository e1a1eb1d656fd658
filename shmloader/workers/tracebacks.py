"""Where a worker is in its code, asked from outside while it is there.

In a worker process faulthandler answers: its C code answers a signal even while Python code hangs or a C function does
not return. The answer comes over a pipe, since a worker that hangs has nothing else to say. The frames of a worker
thread are this process's, and are read.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import os
import select
import signal
import sys
from collections.abc import Iterable

from shmloader import deadlines

from .wire import PipeEnd

# An answer takes microseconds; a worker that has been silent for so long does not answer.
_SILENCE_SECONDS = 0.1
_LIMIT_SECONDS = 1.0
_FRAMES = 12
# What calls the user's code, and what calls that; parts of paths, as text.
_OWN_MODULES = (
    ("batch_maker.py",),
    ("job_loop.py",),
    ("processes", "main.py"),
    ("ray", "maker.py"),
    ("target_loop.py",),
    ("target_slots.py",),
    ("threads", "workers.py"),
)
_OWN_FRAMES = [os.path.join("shmloader", "workers", *names) for names in _OWN_MODULES]  # noqa: PTH118


def answer(outlet: PipeEnd) -> None:
    """Makes this process write its main thread's stack to ``outlet`` whenever it is asked. Used in the worker.

    The signal is SIGURG, which hardly anybody uses, and which is ignored where nothing has been set up for it yet.
    """
    faulthandler.register(signal.SIGURG, outlet.fd, all_threads=False, chain=False)


def of_thread(ident: int | None) -> list[str]:
    """Returns the frames of a thread of this process, the innermost first, as far as they are the user's."""
    frame = sys._current_frames().get(ident or 0)
    frames = []
    while frame is not None:
        frames.append(f'File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_name}')
        frame = frame.f_back
    return _of_the_user(frames)


def _of_the_user(frames: Iterable[str]) -> list[str]:
    """Returns the frames that are the user's, or called by theirs; the first few of them."""
    users = itertools.takewhile(lambda frame: not any(own in frame for own in _OWN_FRAMES), frames)
    return list(itertools.islice(users, _FRAMES))


class TracebackPipe:
    """The pipe that the workers of one iterator answer on. Used in the parent."""

    def __init__(self) -> None:
        self.fd, outlet = os.pipe()
        # No process ever waits for this pipe: a worker drops what does not fit.
        os.set_blocking(self.fd, False)
        os.set_blocking(outlet, False)
        self.outlet = PipeEnd(outlet)

    def ask(self, pidfd: int) -> list[str]:
        """Returns the frames of a worker, the innermost first, as far as they are the user's or called by theirs.

        Blocks until the worker has answered, or for a tenth of a second if it does not, as one that is stopped.
        """
        self._read(0)  # what came too late for an earlier question
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGURG)
        frames = [line.strip() for line in self._read(_SILENCE_SECONDS).splitlines() if line.startswith("  File ")]
        return _of_the_user(frames)

    def _read(self, silence: float) -> str:
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        deadline = deadlines.after(_LIMIT_SECONDS)
        data = b""
        while not deadlines.is_over(deadline) and poll.poll(silence * 1000):
            data += os.read(self.fd, 1 << 16)
        return data.decode(errors="replace")

    def close(self) -> None:
        """Closes both ends, once."""
        self.outlet.close()
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
