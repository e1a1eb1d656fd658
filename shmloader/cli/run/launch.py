"""Runs a script in a process that has imported nothing of ours but four modules by their paths: this one, and what it
loads.

When the script has imported torch, our package is imported, and does what was asked for.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _AfterTorch(importlib.abc.MetaPathFinder):
    """Calls a function once torch is imported.

    It stays until then: a program may ask where torch is, as many libraries do to know whether it is there, or fail to
    import it, long before it does so.

    Args:
        act: the function.
    """

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finds torch where others find it."""
        if fullname != "torch":
            return None
        spec = self._others_find(fullname, path, target)
        if spec is not None and spec.loader is not None:
            self._follow(spec.loader)
        return spec

    def _others_find(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        finds = [getattr(finder, "find_spec", None) for finder in sys.meta_path if finder is not self]
        found = (find(fullname, path, target) for find in finds if find is not None)
        return next((spec for spec in found if spec is not None), None)

    def _follow(self, loader: Any) -> None:
        """Has a loader tell when it has loaded torch; that of an archive loads other modules too."""
        if "exec_module" in vars(loader):
            return
        run = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            if module.__name__ == "torch":
                del loader.exec_module
            run(module)
            if module.__name__ == "torch" and self in sys.meta_path:
                sys.meta_path.remove(self)
                self._act()

        loader.exec_module = exec_module


def load(name: str) -> Any:
    """Returns a module, imported by its path from here."""
    path = os.path.join(os.path.dirname(__file__), f"{name}.py")  # noqa: PTH118, PTH120 - pathlib is not imported yet
    spec = importlib.util.spec_from_file_location(f"_shmloader_{os.path.basename(name)}", path)  # noqa: PTH119
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not there")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _begin(script: Any, options: Any) -> None:
    """Has our package do what was asked for, now or when torch is imported."""
    begin = functools.partial(_begin_now, script, options)
    if "torch" in sys.modules:  # by what Python itself was told to import
        begin()
    else:
        sys.meta_path.insert(0, _AfterTorch(begin))


def _begin_now(script: Any, options: Any) -> None:
    script.stay_importable()
    from shmloader.cli.console import UsageError
    from shmloader.cli.run import command

    try:
        command.begin(options)
    except UsageError as error:
        print(f"python -m shmloader run: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _become(command: list[str]) -> None:
    """Begins again as a program that has nothing of ours; returns where that is not possible."""
    with contextlib.suppress(OSError):
        os.execv(sys.executable, command)


def run(arguments: Sequence[str]) -> int:
    """Runs what a command line says, without the program and the command's name, and returns the exit code.

    Raises:
        BaseException: see `script.run`.
    """
    is_safe = bool(getattr(sys.flags, "safe_path", sys.flags.isolated))
    if not is_safe:
        sys.path[0] = os.getcwd()  # noqa: PTH109 - as for ``python -m``
    options, script, uncaught = load("../../run_options"), load("script"), load("uncaught")
    own, target = options.split(arguments)
    found = options.plain(own, target)
    program = sys.orig_argv[: len(sys.orig_argv) - len(arguments) - 1]  # and its flags, without a file of ours
    try:
        with uncaught.ShownAsPythons():
            script.run(
                target, functools.partial(_begin, script, found), functools.partial(_become, [*program, *target])
            )
    finally:
        if found.report and "torch" not in sys.modules and sys.stderr is not None:
            print(f"shmloader, process {os.getpid()}: torch was not imported", file=sys.stderr)
    return 0


def end(code: int) -> None:
    """Ends the process, where there is an exit code; ``python -i`` takes any exit for an error."""
    if code:
        sys.exit(code)
