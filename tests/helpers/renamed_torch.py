"""A program that says what the library does with a torch in which one private name is not there.

It reads lines of JSON: `path` as `torch_private.NAMES` has it, and `entry`, a key that torch's map of collate functions
has more. For each it forks a child that has no such name, imports the library anew, and answers with a line of JSON.

Names of torch.utils.data are renamed in its source, and that of all its users in there, as a release of torch would do
it: torch's own loader works on. Others are hidden from the library's look.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import operator
import os
import re
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

import numpy as np
import torch
import torch.utils.data

_TREE = "torch.utils.data"
_NOT_BY_WORD = {
    "fetch": (r"(\.|def )fetch\(", r"\1fetch_renamed("),
    "collate_fn": (r"self\.collate_fn(?=\(| = collate_fn$)", "self.collate_fn_renamed"),
}
# Names of modules, of arguments, and of what is taken from elsewhere.
_HIDDEN = {"worker", "pin_memory", "Iterable", "IterDataPipe", "MapDataPipe", "graph_settings"}
_HIDDEN.add("_set_worker_signal_handlers")


class _Renaming(MetaPathFinder):
    """Imports torch.utils.data with a name replaced wherever it is used, and a line more where it collates."""

    def __init__(self, name: str, line: str = "") -> None:
        self._pattern, self._new = _NOT_BY_WORD.get(name, (rf"\b{name}\b", f"{name}_renamed"))
        self._files = "fetch.py" if name == "collate_fn" else ".py"
        self._line = line

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if f"{fullname}.".startswith(f"{_TREE}.") else None
        if spec is not None and spec.origin is not None:
            spec.loader = _Source(fullname, spec.origin, self.changed)
        return spec

    def changed(self, path: str, source: str) -> str:
        """Returns a module's source with the name replaced."""
        if path.endswith(self._files):
            source = re.sub(self._pattern, self._new, source, flags=re.MULTILINE)
        return f"{source}\n{self._line}\n" if path.endswith("collate.py") else source


class _Source(SourceFileLoader):
    def __init__(self, fullname: str, path: str, change: Callable[[str, str], str]) -> None:
        super().__init__(fullname, path)
        self._change = change

    def get_code(self, fullname: str) -> CodeType:
        source = self._change(self.path, self.get_data(self.path).decode())
        return compile(source, self.path, "exec", dont_inherit=True)


def _import_anew(finder: _Renaming) -> None:
    for name in [name for name in sys.modules if f"{name}.".startswith(f"{_TREE}.")]:
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    importlib.import_module(_TREE)
    sys.meta_path.remove(finder)


def _hide(path: str) -> None:
    look_up = operator.attrgetter

    def hiding(*names: str) -> Any:
        if f"torch.{names[0]}" == path:
            raise AttributeError(path)
        return look_up(*names)

    operator.attrgetter = hiding  # type: ignore[assignment, misc]


def _rename_in_wrapper(name: str) -> None:
    """Gives torch's loader another wrapper of errors, with another name for something in it."""
    source = textwrap.dedent(inspect.getsource(torch._utils.ExceptionWrapper))
    scope = vars(torch._utils)
    exec(re.sub(rf"\b{name}\b", f"{name}_renamed", source), scope)
    _import_anew(_Renaming(name))


def _take_away(path: str) -> None:
    name = path.split(".")[-1].strip("{}")
    if path.startswith("torch._utils.ExceptionWrapper."):
        _rename_in_wrapper(name)
    elif path.startswith(_TREE) and name not in _HIDDEN:
        _import_anew(_Renaming(name))
    else:
        _hide(path)


def _samples() -> list[Any]:
    return [(torch.arange(3) + index, np.full(2, index), float(index), index) for index in range(8)]


def _stream(kind: Any, **arguments: Any) -> list[Any]:
    torch.manual_seed(7)
    loader = kind(_samples(), batch_size=3, shuffle=True, **arguments)
    return [[[part.tolist() for part in batch] for batch in loader] for _ in range(2)]


def _answer(case: dict[str, str]) -> dict[str, Any]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        if "entry" in case:
            _import_anew(_Renaming("no such name", line=case["entry"]))
        else:
            _take_away(case["path"])
        import shmloader

        equal = [
            _stream(shmloader.ShmDataLoader, num_workers=num_workers, sample_shapes=shapes)
            == _stream(torch.utils.data.DataLoader, num_workers=num_workers)
            for num_workers, shapes in ((1, None), (0, ((3,), (2,), (), ())))
        ]
    return {
        "equal": equal,
        "warnings": [(type(one.message).__name__, str(one.message), one.filename == __file__) for one in caught],
    }


def _answer_in_a_child(case: dict[str, str]) -> None:
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    try:
        text = json.dumps(_answer(case))
    except BaseException:
        text = json.dumps({"error": traceback.format_exc()})
    print(text, flush=True)
    os._exit(0)


if __name__ == "__main__":
    for line in sys.stdin:
        _answer_in_a_child(json.loads(line))
