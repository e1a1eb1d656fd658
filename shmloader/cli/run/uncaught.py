"""An exception that a script has not caught, shown as Python shows it: without the frames of what runs the script."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from types import TracebackType

_PACKAGE = Path(__file__).parents[2]
_OURS = f"{_PACKAGE / '__main__.py'}", f"{_PACKAGE / 'cli'}{os.sep}", runpy.__file__, "<frozen runpy>"
_BETWEEN = f"{_PACKAGE / 'cli' / 'run'}{os.sep}", f"{_PACKAGE / 'patching'}{os.sep}"
_IMPORTS = "<frozen importlib."


class ShownAsPythons:
    """A context manager around what runs a script.

    Whatever shows an exception that leaves it, Python or the user's hook, is given a traceback that begins with the
    script. While the script runs, `sys.excepthook` is its own.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None and not isinstance(error, SystemExit):
            _hide_our_frames()


def _hide_our_frames() -> None:
    show = sys.excepthook

    def shown(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        while traceback is not None and traceback.tb_frame.f_code.co_filename.startswith(_OURS):
            traceback = traceback.tb_next
        sys.last_traceback = traceback
        error = error.with_traceback(traceback)
        for one in _together(error):
            _take_out_what_only_calls(one.__traceback__)
        show(kind, error, traceback)

    sys.excepthook = shown


def _together(error: BaseException) -> list[BaseException]:
    """Returns an exception, and all that are shown with it."""
    found: dict[int, BaseException] = {}
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in found:
            found[id(one)] = one
            waiting += [one.__cause__, one.__context__, *_grouped(one)]
    return list(found.values())


def _grouped(error: BaseException) -> list[BaseException]:
    """Returns the exceptions of a group. What others call so may be anything."""
    try:
        found = getattr(error, "exceptions", ())
    except Exception:  # code of the user's
        return []
    return [one for one in found if isinstance(one, BaseException)] if isinstance(found, (tuple, list)) else []


def _take_out_what_only_calls(traceback: TracebackType | None) -> None:
    """Takes frames out of a traceback that stand in torch's place and call torch's function, or run its module.

    Those of the loader itself are left, as torch's would be there; and so are those that raise, where the error is
    ours.
    """
    while traceback is not None:
        following = _behind_what_only_calls(traceback.tb_next)
        if following is not traceback.tb_next:  # to set it looks at all that follow: of a deep recursion, very many
            traceback.tb_next = following
        traceback = following


def _behind_what_only_calls(traceback: TracebackType | None) -> TracebackType | None:
    """Returns the first frame that is to be shown. Importing frames before one of ours go with it, as Python has it."""
    at = traceback
    while at is not None and at.tb_frame.f_code.co_filename.startswith(_IMPORTS):
        at = at.tb_next
    if at is None or not at.tb_frame.f_code.co_filename.startswith(_BETWEEN):
        return traceback
    while at is not None and at.tb_frame.f_code.co_filename.startswith(_BETWEEN):
        at = at.tb_next
    return traceback if at is None else _behind_what_only_calls(at)
