"""torch.compile leaves the library alone, as it does torch's own loader.

Where a compiled function steps a loader, Dynamo would go on into whatever frames that runs, as it does with any code
that is not torch's or a known package's: it would make graphs of slots and tokens, with guards on numbers that are
others for each batch, and forked workers would inherit it. torch's loader is left out by the place of its files. Here
every function is marked, in two ways, since Dynamo asks two questions:

- whether to look at a frame that begins. A mark on its code answers in C, and covers what it calls;
- whether to follow a call in a function that it traces. It goes by an attribute of the function that is called, which
  is what ``torch.compiler.disable`` sets.

That decorator itself would import the compiler, which takes seconds, and wrap each function, which costs at each call.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from .torch_private import COMPILER_MARK, compiler_skip


def mark(package: str) -> None:
    """Marks all functions of the modules of ``package`` that are imported by now. Takes a millisecond.

    Does nothing where this torch has no such marks; then compiled code that steps a loader is right, and slower.
    """
    skip = compiler_skip()
    folder = os.path.dirname(sys.modules[package].__file__ or "") + os.sep  # noqa: PTH120 - code names files by text
    modules = [module for name, module in sys.modules.items() if name.startswith(f"{package}.")]
    for function in (function for module in modules for function in _functions(module)):
        if function.__code__.co_filename.startswith(folder):
            setattr(function, COMPILER_MARK, True)
            for code in _codes(function.__code__):
                skip(code)


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    """Yields the functions and methods that a module defines."""
    for value in vars(module).values():
        if getattr(value, "__module__", None) != module.__name__:
            continue
        for member in vars(value).values() if isinstance(value, type) else (value,):
            accessors: tuple[Any, ...] = (member.fget, member.fset) if isinstance(member, property) else (member,)
            for function in accessors:
                # As it was before its decorators: they may be of functions that others use too.
                innermost: Any = inspect.unwrap(getattr(function, "__func__", function))
                if isinstance(innermost, FunctionType):
                    yield innermost


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yields a function's code, and that of all functions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
