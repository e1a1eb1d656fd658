"""What torch does not promise is named in one module, and where torch has it not, the loader is torch's own."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import shmloader
from shmloader import FallbackWarning, ShmDataLoader, torch_private
from shmloader.device.transfer import DeviceIterator
from shmloader.errors import WorkerFault
from shmloader.passes.in_process import TrackedInProcessIterator
from shmloader.passes.iterator import ShmIterator
from tests.helpers import renamed_torch
from tests.helpers.datasets import Images
from tests.helpers.support import assert_same, stream

ROOT = Path(shmloader.__file__).parent
OTHERS = sorted(path for path in ROOT.rglob("*.py") if path.name != "torch_private.py")

# Not underscored, and nowhere in torch's documentation.
UNDOCUMENTED = {"torch.utils.data.dataloader", "torch.utils.data.graph_settings", "torch.multiprocessing.reductions"}
OF_NAMEDTUPLES = {"_replace", "_make", "_fields"}

PATHS = [name.path for name in torch_private.NAMES]
NEEDED = [name.path for name in torch_private.NAMES if name.without == torch_private._STOCK]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def is_of_torch(module: str) -> bool:
    return module.split(".")[0] == "torch"


def private_uses(source: str) -> set[str]:
    """Returns what a module names of torch's that is not public, as `torch.` or on something that torch has made."""
    tree = ast.parse(source)
    own = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_self(node.value)}
    own |= {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    others = _imported_from_elsewhere(tree)
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if is_of_torch(alias.name) and _is_private_path(alias.name)}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and is_of_torch(node.module):
            paths = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {path for path in paths if _is_private_path(path)}
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and not _is_self(node.value):
            is_others = isinstance(node.value, ast.Name) and node.value.id in others
            if not (is_others or node.attr in own | OF_NAMEDTUPLES or node.attr.startswith("_shmloader")):
                found.add(ast.unparse(node))
        elif isinstance(node, ast.keyword) and node.arg is not None and is_private(node.arg):
            found.add(f"{node.arg}=")
    return found


def _imported_from_elsewhere(tree: ast.Module) -> set[str]:
    """Returns the names that are imported from what is neither torch nor this library."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None) or ""
            is_ours = getattr(node, "level", 0) or module.startswith("shmloader")
            found |= {
                alias.asname or alias.name for alias in node.names if not (is_ours or is_of_torch(module or alias.name))
            }
    return found


def _is_private_path(path: str) -> bool:
    return any(map(is_private, path.split("."))) or any(f"{path}.".startswith(f"{known}.") for known in UNDOCUMENTED)


def _is_self(node: ast.expr) -> bool:
    is_super = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
    return is_super or (isinstance(node, ast.Name) and node.id in ("self", "cls"))


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_module_names_what_is_private(path: Path) -> None:
    assert private_uses(path.read_text()) == set()


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch._utils",
        "import torch\nlambda: torch.autograd._profiler_enabled()",
        "import torch._utils",
        "import torch.utils.data.dataloader as loader",
        "from torch._utils import ExceptionWrapper",
        "from torch.utils.data import _DatasetKind as Kind",
        "from torch.utils.data import dataloader",
        "from torch.multiprocessing.reductions import reduce_tensor",
        "def parts(tensor):\n    return tensor._indices()",
        "make(1, _internal=True)",
    ],
)
def test_such_a_name_is_found(source: str) -> None:
    assert len(private_uses(source)) == 1


def inherited_uses(kind: type) -> set[str]:
    """Returns what a class of ours uses, or overrides, of the class of torch's that it is derived from."""
    (node,) = [
        node
        for node in ast.parse(Path(typing.cast(str, sys.modules[kind.__module__].__file__)).read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == kind.__name__
    ]
    defined = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
    used: set[str] = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and _is_self(part.value):
            (defined if isinstance(part.ctx, ast.Store) and is_private(part.attr) else used).add(part.attr)
    of_torch = {name for base in kind.__mro__[1:] if is_of_torch(base.__module__) for name in vars(base)}
    return {name for name in (used - defined) | (defined & of_torch) if is_private(name)}


@pytest.mark.parametrize(
    ("kind", "tables"),
    [
        (ShmDataLoader, [torch_private._LOADER]),
        (ShmIterator, [torch_private._BASE_ITERATOR]),
        (DeviceIterator, [torch_private._BASE_ITERATOR]),
        (TrackedInProcessIterator, [torch_private._BASE_ITERATOR, torch_private._IN_PROCESS_ITERATOR]),
        (WorkerFault, [torch_private._WRAPPER]),
    ],
)
def test_what_is_inherited_is_listed(kind: type, tables: list[dict[str, str]]) -> None:
    assert inherited_uses(kind) <= {name for table in tables for name in table}


def test_nothing_is_listed_twice_and_all_is_explained() -> None:
    assert len(set(PATHS)) == len(PATHS)
    assert all(name.purpose and name.without for name in torch_private.NAMES)


def test_this_torch_has_it_all() -> None:
    assert torch_private.difference() == ""


def test_what_is_made_without_torchs_constructor_is_what_it_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    def __init__(self: Any, dataset: Any, **arguments: Any) -> None:
        raise ValueError("not for this program")

    expected = vars(torch_private.a_loader(DataLoader))
    monkeypatch.setattr(DataLoader, "__init__", __init__)
    found = vars(torch_private.a_loader(DataLoader))
    assert {name: type(one) for name, one in found.items()} == {name: type(one) for name, one in expected.items()}
    plain = {name for name, one in expected.items() if one is None or isinstance(one, (int, float, str, range))}
    assert {name: found[name] for name in plain} == {name: expected[name] for name in plain}
    assert found["collate_fn"] is expected["collate_fn"]
    assert torch_private._missing_attributes() == []


Ask = Callable[[dict[str, str]], Any]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """Asks a process that has imported torch what becomes of the library, in a child of it, without a name."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT.parent), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(
        [sys.executable, renamed_torch.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None

        def answer_to(case: dict[str, str]) -> Any:
            print(json.dumps(case), file=program.stdin, flush=True)
            answer = json.loads(program.stdout.readline())  # type: ignore[union-attr]
            assert "error" not in answer, answer["error"]
            return answer

        yield answer_to
        program.stdin.close()


# Of these there is no torch without it that could be made in a test.
NOT_TAKEN_AWAY = {
    "torch.storage.TypedStorage.{_untyped_storage}",
    "torch.storage.TypedStorage(_internal=True)",
    "(function).{_torchdynamo_disable}",
    "torch.utils.data.get_worker_info.{__code__}",
}


@pytest.mark.sampled(48)
@pytest.mark.parametrize("path", [path for path in NEEDED if path not in NOT_TAKEN_AWAY])
def test_without_a_name_that_is_needed_the_loader_is_torchs_and_says_so(path: str, ask: Ask) -> None:
    answer = ask({"path": path})
    assert answer["equal"] == [True, True]
    ours = [text for kind, text, _ in answer["warnings"] if kind == "FallbackWarning"]
    assert len(ours) == len(answer["warnings"]) == 2  # one for each loader
    name = path.split(".")[-1].strip("{}")
    assert all(name in text for text in ours), ours
    assert all(is_here for _, _, is_here in answer["warnings"])


@pytest.mark.sampled(4)
@pytest.mark.parametrize("path", sorted(set(PATHS) - set(NEEDED) - NOT_TAKEN_AWAY))
def test_without_one_that_is_not_the_loader_is_ours(path: str, ask: Ask) -> None:
    assert ask({"path": path}) == {"equal": [True, True], "warnings": []}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ("default_collate_fn_map[complex] = lambda batch, *, collate_fn_map=None: list(batch)", "complex"),
        ("default_collate_fn_map[torch.nn.Parameter] = collate_tensor_fn", "Parameter"),
        ("default_collate_fn_map[float] = lambda batch, *, collate_fn_map=None: torch.tensor(batch).double()", "float"),
        ("del default_collate_fn_map[bytes]", "no bytes"),
    ],
)
def test_torch_collates_by_another_map(entry: str, name: str, ask: Ask) -> None:
    answer = ask({"entry": entry})
    assert answer["equal"] == [True, True]
    assert [kind for kind, *_ in answer["warnings"]] == ["FallbackWarning"] * 2
    assert all(f"default_collate_fn_map has {name}" in text for _, text, _ in answer["warnings"])


def test_a_users_entry_is_no_difference(ask: Ask) -> None:
    entry = "exec('class Mine: ...', mine := {'__name__': 'mine'}); "
    entry += "default_collate_fn_map[mine['Mine']] = collate_tensor_fn"
    assert ask({"entry": entry}) == {"equal": [True, True], "warnings": []}


def test_what_cannot_be_made_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(untyped: torch.UntypedStorage, dtype: torch.dtype) -> torch.storage.TypedStorage:
        raise TypeError("unexpected keyword argument '_internal'")

    expected = stream(torch.utils.data.DataLoader(Images(), batch_size=4, num_workers=1))[0]
    monkeypatch.setattr(torch_private, "typed_storage", refuse)
    torch_private.difference.cache_clear()
    try:
        with pytest.warns(FallbackWarning, match="_internal"):
            assert_same(stream(ShmDataLoader(Images(), batch_size=4, num_workers=1))[0], expected)
    finally:
        torch_private.difference.cache_clear()
