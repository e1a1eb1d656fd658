"""Runs a script or a module as ``python script.py`` and ``python -m module`` do.

It gets the process's ``__main__`` module, emptied: what pickles its classes, or starts processes that import it, finds
there what it finds without us. What it raises leaves this process by the interpreter's own way, with its exit codes,
its order of exit functions and its death by a signal after a Ctrl-C. What is printed of it is `uncaught`'s.
"""

from __future__ import annotations

import functools
import importlib.machinery
import io
import os
import pkgutil
import runpy
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

_PACKAGE = Path(__file__).parents[2]


class _Found(NamedTuple):
    """What is to be run.

    Attributes:
        code: the module's.
        attributes: what `__main__` begins with.
    """

    code: CodeType
    attributes: dict[str, Any]


# Has Python itself run the target, in this process's place. It is called where what is to be run is no text, and
# returns only where that is not possible. Python reads a file in another way than it compiles what was read, and has
# other words for what is wrong with it, which depend on its version.
GiveWay = Callable[[], object]


class _NotFoundError(Exception):
    """There is no such module; in Python's own words."""


def run(target: Sequence[str], begin: Callable[[], object], give_way: GiveWay | None = None) -> None:
    """Runs a script, a folder or an archive with a ``__main__`` module, what stands on stdin ("-"), or a module.

    Args:
        target: its name and its arguments; of a module with ``-m`` before it.
        begin: called when it was found, before it is run.
        give_way: for what cannot be decoded; see `GiveWay`. None: the error is that of compiling it.

    Raises:
        SystemExit: it has asked for that, or was not found; codes and texts are Python's.
        BaseException: what it raises.
    """
    found = _module(*target[1:]) if target[0] == "-m" else _file(target, give_way)
    begin()
    _run(found)


def _file(target: Sequence[str], give_way: GiveWay | None) -> _Found:
    sys.argv[:] = target
    name = target[0]
    if name == "-":
        _place_first("")
        data = sys.stdin.buffer.read()
        again = give_way and functools.partial(_read_again, data, give_way)
        return _Found(_compiled(data, "<stdin>", again), _attributes(None, None))
    if pkgutil.get_importer(name) is not None:
        sys.path.insert(0, _absolute(name)) if _is_safe() else _place_first(_absolute(name))
        return _found(runpy._get_main_module_details)  # type: ignore[attr-defined]
    found = _read(_absolute(name), give_way)
    _place_first(str(Path(name).resolve().parent))
    return found


def _module(name: str, *arguments: str) -> _Found:
    sys.argv[:] = ["-m", *arguments]
    found = _found(lambda error: runpy._get_module_details(name, error))  # type: ignore[attr-defined]
    sys.argv[0] = found.attributes["__file__"]
    return found


def _absolute(name: str) -> str:
    try:
        return os.path.join(os.getcwd(), name)  # noqa: PTH109, PTH118 - as Python does it: not normalised
    except OSError:  # the folder has been removed
        return name


def _is_safe() -> bool:
    """Whether Python was told to put no folder of the script's before all others."""
    return bool(getattr(sys.flags, "safe_path", sys.flags.isolated))


def _place_first(folder: str) -> None:
    """Puts the script's folder where Python has put the current one, since we were run as a module."""
    if not _is_safe():
        sys.path[0] = folder


def _read(path: str, give_way: GiveWay | None) -> _Found:
    """Returns a file's code, compiled or not.

    Raises:
        SystemExit: it cannot be read.
    """
    try:
        with io.open_code(path) as file:
            data = file.read()  # once: it may be a pipe
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                give_way = None
    except OSError as error:
        print(f"{sys.orig_argv[0]}: can't open file {path!r}: [Errno {error.errno}] {error.strerror}", file=sys.stderr)
        raise SystemExit(2) from None
    code: Any = pkgutil.read_code(io.BytesIO(data))
    loader: Any = importlib.machinery.SourcelessFileLoader("__main__", path)
    if code is None:
        if path.endswith(".pyc") and give_way is not None:
            give_way()
        code = _compiled(data, path, give_way)
        loader = importlib.machinery.SourceFileLoader("__main__", path)
    return _Found(code, {**_attributes(loader, None), "__file__": path, "__cached__": None})


def _compiled(data: bytes, path: str, give_way: GiveWay | None) -> CodeType:
    if give_way is not None and not _is_text(data):
        give_way()
    return compile(data, path, "exec", dont_inherit=True)


def _is_text(data: bytes) -> bool:
    """Whether Python can read what a file holds as text. What it means is not looked at."""
    encoding = "utf-8"
    try:
        if any(b"coding" in line for line in data.split(b"\n", 2)[:2]):
            import tokenize  # not for each script: it is the script's to decide what is imported

            encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        data.decode(encoding)
    except (SyntaxError, UnicodeError, LookupError):
        return False
    return b"\0" not in data


def _read_again(data: bytes, give_way: GiveWay) -> None:
    """Gives way with a stdin that begins with what was read from it."""
    import tempfile  # as above

    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        os.dup2(file.fileno(), 0)
    give_way()


def _found(details: Callable[[type[Exception]], Any]) -> _Found:
    """Returns what Python finds of a module.

    Raises:
        SystemExit: there is none.
    """
    try:
        _, spec, code = details(_NotFoundError)
    except _NotFoundError as error:
        raise SystemExit(f"{sys.executable}: {error}") from None
    attributes = {**_attributes(spec.loader, spec), "__package__": spec.parent}
    return _Found(code, {**attributes, "__file__": spec.origin, "__cached__": spec.cached})


def _attributes(loader: Any, spec: Any) -> dict[str, Any]:
    loader = loader or importlib.machinery.BuiltinImporter
    return {"__name__": "__main__", "__doc__": None, "__package__": None, "__loader__": loader, "__spec__": spec}


def _run(found: _Found) -> None:
    main = sys.modules["__main__"]
    kept: dict[str, Any] = {
        name: vars(main)[name] for name in ("__builtins__", "__annotations__") if name in vars(main)
    }
    vars(main).clear()
    vars(main).update(kept, **found.attributes)
    exec(found.code, vars(main))


def stay_importable() -> None:
    """Lets this process, and workers that are spawned, find this package, though it was found in the current folder.

    Where another one is installed, this one comes first, but for the script's own folder.
    """
    found = (finder.find_spec(_PACKAGE.name, None) for finder in sys.meta_path)
    spec = next((one for one in found if one is not None), None)
    if spec is None:
        sys.path.append(str(_PACKAGE.parent))
    elif Path(spec.origin or "").parent != _PACKAGE:
        sys.path.insert(1, str(_PACKAGE.parent))
