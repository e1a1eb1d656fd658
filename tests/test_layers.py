"""Imports go down: a module imports from those below it in this list only."""

from __future__ import annotations

import ast
from pathlib import Path

import shmloader

# From the top down. Modules of one line do not import each other.
LAYERS = [
    "__main__",
    "bench",
    "__init__",
    "loader",
    "transfer",
    "epoch inprocess",
    "production",
    "diagnosis",
    "shelf workers",
    "room worker",
    "direct pool",
    "unpacking collation departed",
    "columns packing checking pinned jobs",
    "layouts",
    "writer",
    "placed arena stacks fence sharing starting",
    "forks",
    "arrays spec leases ledger schedule succession wire limits control streams scheduling lifeline interrupts cuda",
    "dtypes file_maps culprits reducers",
    "errors version untraced",
]
PURE = {"ledger", "schedule", "spec", "succession"}
PURE_MAY_IMPORT = {
    "__future__", "collections", "collections.abc", "dataclasses", "enum", "math", "operator", "typing",
    "numpy", "torch", "dtypes", "errors",
}  # fmt: skip

ROOT = Path(shmloader.__file__).parent


def depth(module: str) -> int:
    return next(level for level, names in enumerate(LAYERS) if module in names.split())


def imports(path: Path) -> list[tuple[int, str]]:
    """Returns the modules that a file imports, with the number of leading dots."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.module is None:
                found += [(node.level, alias.name) for alias in node.names]
            else:
                found.append((node.level, node.module.split(".")[0] if node.level else node.module))
        elif isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
    return found


def test_every_module_has_its_place() -> None:
    modules = {path.stem for path in ROOT.glob("*.py")} | {path.name for path in ROOT.iterdir() if path.is_dir()}
    modules.discard("__pycache__")
    assert modules == {name for names in LAYERS for name in names.split()}


def test_imports_go_down() -> None:
    for path in ROOT.glob("*.py"):
        for dots, module in imports(path):
            assert dots or not module.startswith("shmloader"), f"{path.stem} imports {module} by its full name"
            if dots:
                assert depth(module) > depth(path.stem), f"{path.stem} imports {module}, which is not below it"


def test_the_bench_uses_what_users_can_use() -> None:
    public = set(shmloader.__all__) | {"__all__"}
    for path in (ROOT / "bench").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 2:
                assert {alias.name for alias in node.names} <= public, path


def test_pure_modules_import_nothing_that_does_io() -> None:
    for name in PURE:
        assert {module for _, module in imports(ROOT / f"{name}.py")} <= PURE_MAY_IMPORT, name
