"""Imports go down: between the wings of the package, and between the modules of a wing."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import shmloader

ROOT = Path(shmloader.__file__).parent

# From the top down. What stands in one line does not import each other. A wing has lines of its own below.
HOUSE = [
    "__main__",
    "cli",
    "__init__",
    "integrations",
    "patching",
    "loader producer job_queue",
    "observe",
    "passes",
    "workers",
    "device",
    "collate",
    "data",
    "slots",
    "batches",
    "rebuilding",
    "arguments callers deadlines errors interrupts libc requirements start_method torch_compile weak_members words",
    "process_exit",
    "torch_private",
    "early",
    "version run_options",
]
WINGS = {
    "integrations": ["accelerate ray", "checkpoints exchange ranks ray_blocks", "needed"],
    "cli": ["main", "bench doctor run trace", "console machine"],
    "cli.bench": ["command", "plot", "sweep", "report source", "measure steps verify", "compare memory", "figures"],
    "cli.doctor": ["command", "report system limits software", "trial judge", "finding"],
    "cli.run": ["bootstrap", "launch", "command", "births report tracing figures script stock_meter uncaught", "ranks"],
    "cli.trace": ["command", "merging picture summary", "timeline", "reading"],
    "patching": ["patch", "takeover", "patched_loader record", "seams"],
    "observe": [
        "report trace",
        "gathering sinks registry trace_file trace_log",
        "statistics stream_verdict trace_spans",
        "verdict processors trace_lines",
        "waiting",
        "case kinds",
        "table figures counts",
    ],
    "passes": [
        "iterator in_process delivery fitting",
        "dispatcher tracking lifetime take_meter",
        "diagnosis growth_requests sampling state meter briefing",
        "schedule restarts worker_progress lines progress epochs gates epoch_stream steps watching",
    ],
    "workers": [
        "kinds",
        "processes ray",
        "threads",
        "worker_loop",
        "job_loop target_loop",
        "batch_maker target_slots",
        "interface timed_gate calls",
        "states fault_packing room_requests gate recorder tracebacks",
        "brief wire jobs kernel_state logs run_queue",
    ],
    "workers.processes": ["workers", "main start", "ends parent_watch cpu_policy"],
    "workers.ray": ["workers", "courier", "proxy", "cluster landing", "actor store", "maker parcel", "messages"],
    "workers.threads": ["workers", "crews parent_queue start torch_modes"],
    "workers.states": ["snapshots seeding", "generators sample_seeds"],
    "workers.logs": ["forwarded", "handler", "records ring"],
    "device": ["transfer pinned", "fence", "cuda"],
    "collate": ["chunk_fetcher seeded", "write_into", "default", "columns checked", "templates"],
    "data": [
        "shared cached",
        "cache_keeper",
        "shared_sequence shared_tensors arrays chunks permutation cache_file sample_forms",
        "plain_forms cache_readers cache_tally",
        "shared_arrays packed_forms cache_arguments cache_statistics",
        "cache_layout chunk feistel file_maps gather shared_memory",
    ],
    "slots": [
        "pool_cache",
        "pool",
        "held_batches orphans writer",
        "arena",
        "moved_storages shared_state results",
        "fork_copies",
        "holds leases ledger limits pages",
        "kernel_files",
    ],
    "batches": [
        "unpacking item_layout",
        "packing",
        "place reducers spec unpicklable",
        "tensors structure",
        "dtypes alignment",
    ],
}  # fmt: skip

PURE = [
    "slots/ledger.py", "slots/holds.py", "passes/schedule.py", "passes/restarts.py", "passes/worker_progress.py",
    "passes/lines.py", "passes/steps.py", "passes/progress.py", "passes/epochs.py",
    "workers/states/sample_seeds.py", "workers/logs/ring.py",
    "batches/alignment.py", "batches/spec.py", "batches/structure.py", "data/feistel.py", "data/cache_layout.py",
    "observe/counts.py", "observe/figures.py", "observe/case.py", "observe/kinds.py", "observe/waiting.py",
    "observe/verdict.py", "observe/stream_verdict.py", "observe/table.py", "observe/trace_lines.py",
    "observe/trace_spans.py",
    "cli/doctor/finding.py", "cli/doctor/judge.py", "cli/doctor/report.py", "run_options.py",
]  # fmt: skip
PURE_MAY_IMPORT = {
    "__future__", "collections", "collections.abc", "copy", "dataclasses", "enum", "hashlib", "itertools", "json",
    "math", "numpy.typing", "operator", "re", "secrets", "statistics", "struct", "typing", "weakref", "zlib", "numpy",
    "torch", "shmloader.batches.alignment", "shmloader.batches.dtypes", "shmloader.batches.structure",
    "shmloader.cli.doctor.finding", "shmloader.errors",
    "shmloader.observe.case", "shmloader.observe.kinds", "shmloader.observe.waiting", "shmloader.observe.figures",
    "shmloader.observe.table", "shmloader.observe.trace_lines", "shmloader.observe.verdict",
}  # fmt: skip

MODULES = sorted(ROOT.rglob("*.py"))


def name_of(path: Path) -> str:
    """Returns a module's name below the package: ``slots.pool``; a package's own is ``slots.__init__``."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(path: Path, root: Path = ROOT) -> set[str]:
    """Returns the full names of the modules that a file imports, wherever in it; of the package, to the module."""
    package = ["shmloader", *path.relative_to(root).parts[:-1]]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) + 1 - node.level], *([node.module] if node.module else [])]
            source = ".".join(base if node.level else [node.module or ""])
            found |= {_module(source, alias.name, root) for alias in node.names}
    return found


def _module(source: str, name: str, root: Path) -> str:
    """Returns ``source``, or the module ``name`` in it where it is a package that has one."""
    inside = Path(root, *source.split(".")[1:], name)
    if source.split(".")[0] == "shmloader" and (inside.with_suffix(".py").exists() or inside.is_dir()):
        return f"{source}.{name}"
    return source


def violations(importer: str, imported: str) -> str | None:
    """Says how an import breaks the order; names are below the package."""
    here, there = importer.split("."), imported.split(".")
    wing = ""
    order = HOUSE
    while here[0] == there[0] and len(here) > 1 and len(there) > 1:
        wing = f"{wing}.{here[0]}".lstrip(".")
        order, here, there = WINGS[wing], here[1:], there[1:]
    if here[0] == there[0]:
        return None if here == there else f"{importer} imports from its own package {imported}"
    depths = [
        next((level for level, names in enumerate(order) if one in names.split()), None) for one in (here[0], there[0])
    ]
    if None in depths:
        return f"{importer} or {imported} has no place in the order"
    above, below = depths
    return None if above < below else f"{importer} imports {imported}, which is not below it"  # type: ignore[operator]


def test_every_module_has_its_place() -> None:
    names = {name_of(path) for path in MODULES}
    placed = {name for line in HOUSE for name in line.split() if name not in WINGS}
    for wing, order in WINGS.items():
        placed |= {f"{wing}.{name}" for line in order for name in line.split() if f"{wing}.{name}" not in WINGS}
        placed.add(f"{wing}.__init__")
    assert names == placed


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down(path: Path) -> None:
    ours = {name[len("shmloader.") :] or "__init__" for name in imports(path) if f"{name}.".startswith("shmloader.")}
    found = [text for name in ours if (text := violations(name_of(path), name)) is not None]
    assert not found


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("slots.pool", "passes.schedule"),  # up between wings
        ("batches.packing", "batches.unpacking"),  # beside each other
        ("slots.arena", "slots.pool"),  # up within a wing
        ("errors", "loader"),
        ("slots.pool", "slots"),  # the package itself
        ("slots.pool", "slots.unheard_of"),
        ("cli.bench.figures", "cli.bench.report"),
    ],
)
def test_an_import_that_does_not_go_down_is_found(importer: str, imported: str) -> None:
    assert violations(importer, imported) is not None


def test_imports_are_found_wherever_they_are(tmp_path: Path) -> None:
    (tmp_path / "low").mkdir()
    (tmp_path / "high.py").touch()
    (tmp_path / "low" / "other.py").touch()
    module = tmp_path / "low" / "module.py"
    module.write_text(
        "import os\nfrom . import other\nfrom .other import thing\nfrom .. import high\n"
        "def late():\n    from shmloader import high\n    import shmloader.high\n    from shmloader import Name\n"
    )
    assert imports(module, tmp_path) == {"os", "shmloader.low.other", "shmloader.high", "shmloader"}


@pytest.mark.parametrize("path", sorted((ROOT / "cli" / "bench").glob("*.py")), ids=lambda path: path.stem)
def test_the_bench_uses_what_users_can_use(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("shmloader.") and not node.level:
            if f"{node.module}.".startswith("shmloader.cli.") or node.module == "shmloader.observe.table":
                continue  # the latter only writes numbers
            assert node.module == "shmloader", f"{path.name} imports from {node.module}"
            assert {alias.name for alias in node.names} <= {*shmloader.__all__, "__all__"}


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_import_nothing_that_does_io(name: str) -> None:
    assert imports(ROOT / name) <= PURE_MAY_IMPORT
