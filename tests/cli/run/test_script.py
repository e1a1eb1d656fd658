"""A script that is run by ``python -m shmloader run`` does, prints and ends as one that Python runs itself."""

from __future__ import annotations

import os
import py_compile
import subprocess
import sys
import textwrap
import traceback
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import shmloader
from shmloader.cli.run import launch, uncaught
from shmloader.early import place_of_module
from shmloader.run_options import Options, plain, split
from tests.helpers.support import PATIENCE

ROOT = Path(shmloader.__file__).parent.parent

WHAT_IT_IS = """
    '''The docstring.'''
    import pickle, sys
    import __main__
    class Mine: pass
    number: int = 3
    print(sys.argv, sys.path[0], sys.flags.optimize)
    shown = ("__name__", "__doc__", "__package__", "__file__", "__cached__", "__annotations__")
    print([(name, str(globals()[name])) for name in shown], sorted(globals()), type(__builtins__), type(__loader__))
    print(getattr(__spec__, "name", None), getattr(__spec__, "parent", None))
    print(sys.modules["__main__"] is __main__, __main__.Mine is Mine)
    print(pickle.dumps(Mine()), type(pickle.loads(pickle.dumps(Mine()))) is Mine)
    print(input(), sys.stdin.read())
    sys.stderr.write("to stderr")
"""
PROCESSES = """
    import multiprocessing, os, sys
    print("imported as", __name__, flush=True)
    def function(number): return number + 1, "shmloader" in sys.modules, __name__
    if __name__ == "__main__":
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.map(function, range(3)))
        child = multiprocessing.get_context("fork").Process(target=print, args=("forked",))
        sys.stdout.flush(); child.start(); child.join()
        print(child.exitcode)
"""
EXIT_FUNCTIONS = """
    import atexit, sys, threading, weakref
    class Thing:
        def __del__(self): print("deleted")
    thing = Thing()
    atexit.register(print, "last")
    atexit.register(lambda: print("first", thing, file=sys.stderr))
    started = threading.Event()
    def run():
        started.wait(); print("thread")
    threading.Thread(target=run).start()
    Thing.__repr__ = lambda self: "thing"
    print("no newline", end="")
    started.set()
    sys.exit({code})
"""
FAILS = """
    def inner():
        try:
            {}["key"]
        except KeyError as error:
            raise ValueError("wrong") from error
    def outer():
        inner()
    outer()
"""
HOOK = """
    import sys, traceback
    def hook(kind, error, tb):
        print("hook", kind, error, len(traceback.extract_tb(tb)), tb is error.__traceback__, tb is sys.last_traceback)
    sys.excepthook = hook
    def fail(): raise RuntimeError("text")
    fail()
"""
RAISES = "import os, signal\nprint('before', flush=True)\n{}\nprint('not reached')\n"

SCRIPTS: dict[str, tuple[str, list[str]]] = {
    "what it is": (WHAT_IT_IS, ["a", "--report", "-m", "--", "x y"]),
    "fails": (FAILS, []),
    "Ctrl-C": (RAISES.format("raise KeyboardInterrupt"), []),
    "exit functions": (EXIT_FUNCTIONS.format(code="3"), []),
    "a syntax error": ("def f(:\n    pass\n", []),
    "SIGTERM": (RAISES.format("os.kill(os.getpid(), signal.SIGTERM)"), []),
    "exits with text": ("import sys\nprint('out')\nsys.exit('text')\n", []),
    "a hook of its own": (HOOK, []),
    "exits with None": ("import sys\nsys.exit(None)\n", []),
    "processes": (PROCESSES, []),
    "exits with a large number": ("raise SystemExit(300)\n", []),
    "is killed": (RAISES.format("os.kill(os.getpid(), signal.SIGKILL)"), []),
    "leaves at once": (RAISES.format("os._exit(7)"), []),
    "SIGINT": (RAISES.format("os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(60)"), []),
    "exit functions, and text": (EXIT_FUNCTIONS.format(code="'text'"), []),
    "a module that is not there": ("import no_such_module\n", []),
    "encoded": ("# -*- coding: latin-1 -*-\nprint(ascii('\xe4'))\n1/0\n", []),
    "empty": ("", []),
    "cannot be decoded": ("print('not reached')\nx = '\xe4'\n", ["x"]),
    "an encoding that there is not": ("# -*- coding: no-such -*-\n", []),
    "not of its encoding": ("# -*- coding: ascii -*-\nx = '\xe4'\n", []),
    "a comment that is no text": ("# \xed\xa0\x80\nprint('not reached')\n", []),
    "a null byte": ("print('a\0b')\n", []),
    "a tuple for an exit code": ("raise SystemExit((1, 2))", []),
    "what is raised has no traceback": ("error = OSError(3, 'text')\nerror.__traceback__ = None\nraise error", []),
}


def outcome(folder: Path, command: list[str], text: str = "one\ntwo\n") -> tuple[str, str, int]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    ended = subprocess.run(
        [sys.executable, *command],
        input=text,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=PATIENCE,
        check=False,
        cwd=folder,
        env=environment,
    )
    return ended.stdout, ended.stderr, ended.returncode


def assert_as_python(folder: Path, arguments: list[str], flags: tuple[str, ...] = (), **given: Any) -> None:
    with ThreadPoolExecutor(2) as threads:
        expected, found = (
            task.result()
            for task in [
                threads.submit(outcome, folder, [*flags, *run, *arguments], **given)
                for run in ((), ("-m", "shmloader", "run"))
            ]
        )
    lines = [line for line in expected[1].splitlines() if "runpy>" not in line]  # of ``python -m`` itself
    assert (found[0], found[1].splitlines(), found[2]) == (expected[0], lines, expected[2])


# Each starts two processes. By default: those of which all others are a part.
def some(names: dict[str, Any], *chosen: str) -> list[Any]:
    return [name if name in chosen else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", some(SCRIPTS, "what it is", "fails", "Ctrl-C", "exit functions", "cannot be decoded"))
def test_a_script(name: str, tmp_path: Path) -> None:
    code, arguments = SCRIPTS[name]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "script.py").write_text(textwrap.dedent(code), encoding="latin-1")
    assert_as_python(tmp_path, ["./in/script.py", *arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with modules, packages, an archive, and what is none of these."""
    folder = tmp_path_factory.mktemp("modules")
    shown = textwrap.dedent(WHAT_IT_IS)
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").write_text("print('package', __name__)\nvalue = 3\n")
    (folder / "package" / "__main__.py").write_text(f"from . import value\n{shown}\nprint(value)\n")
    (folder / "package" / "module.py").write_text("from . import value\n" + textwrap.dedent(FAILS))
    (folder / "bare").mkdir()
    (folder / "bare" / "__init__.py").touch()
    (folder / "broken").mkdir()
    (folder / "broken" / "__init__.py").write_text("1 / 0\n")
    (folder / "with_main").mkdir()
    (folder / "with_main" / "__main__.py").write_text(shown)
    (folder / "nothing").mkdir()
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        archive.writestr("__main__.py", "import other\n" + shown)
        archive.writestr("other.py", "print('other')\n")
    (folder / "plain.py").write_text(shown)
    py_compile.compile(str(folder / "plain.py"), str(folder / "compiled.pyc"))
    (folder / "broken.pyc").write_bytes(b"\0\1\2")
    (folder / "link.py").symlink_to(folder / "package" / "module.py")
    return folder


TARGETS: dict[str, list[str]] = {
    "a package": ["-m", "package", "-m", "x"],
    "a module of one": ["-m", "package.module"],
    "a folder": ["with_main", "x"],
    "no such file": ["no_such_file.py", "x"],
    "an archive": ["archive.zip"],
    "no such module": ["-m", "no_such_module"],
    "a compiled file": ["compiled.pyc", "x"],
    "a compiled file that is none": ["broken.pyc"],
    "a package without a main module": ["-m", "bare"],
    "a package that fails": ["-m", "broken"],
    "a folder without a main module": ["nothing"],
    "a module, all in one": ["-mplain", "x"],
    "a link": ["link.py"],
    "a module of something that is no package": ["-m", "plain.other"],
    "no such folder": ["no/such/file.py"],
}


@pytest.mark.parametrize("name", some(TARGETS, "a package"))
def test_what_is_named(name: str, folder: Path) -> None:
    assert_as_python(folder, TARGETS[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "import sys\nprint(sys.argv, sys.path[0], __name__, ascii('\xe4'))\n1/0\n",
        "print('not reached')\nx = '\udce4'\n",
    ],
)
def test_what_stands_on_stdin(text: str, folder: Path) -> None:
    assert_as_python(folder, ["-", "x"], text=text)


# With the frames of what is asked for a report: they stand in the place of torch's functions.
CALLS_TORCH = """
    from torch.utils.data import DataLoader
    class Sampler:
        def __iter__(self):
            raise KeyError("order")
    def make():
        try:
            next(iter(DataLoader(range(3), sampler=Sampler())))
        except KeyError as error:
            DataLoader([], num_workers=-1)
    make()
"""


def test_an_error_is_shown_without_what_stands_in_torchs_place(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(textwrap.dedent(CALLS_TORCH))
    with ThreadPoolExecutor(2) as threads:
        stock, ours = threads.map(
            lambda run: outcome(tmp_path, [*run, "script.py"])[1].splitlines(),
            [(), ("-m", "shmloader", "run", "--report")],
        )
    found = next(place for place, line in enumerate(ours) if line.startswith("shmloader, process"))
    cut = [
        lines.index("During handling of the above exception, another exception occurred:") for lines in (stock, ours)
    ]
    assert ours[cut[1] : found] == stock[cut[0] :]
    assert ours[:3] == stock[:3]  # then comes the loader
    assert not [line for line in ours if str(ROOT / "shmloader" / "cli") in line or "patching" in line]


@pytest.mark.slow
def test_torch_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import torch\n")
    (tmp_path / "torch.py").write_text("def fail(): raise RuntimeError('not here')\nfail()\n")
    assert_as_python(tmp_path, ["script.py"])


@pytest.mark.parametrize(
    ("called", "shown"),
    [
        (["cli/run/a", "cli/b", "script", "patching/c", "patching/d", "passes/e"], ["script", "passes/e"]),
        (["cli/run/a", "script", "cli/run/b", "script", "patching/c", "torch"], ["script", "script", "torch"]),
        (["cli/run/a", "script", "patching/b", "patching/c"], ["script", "patching/b", "patching/c"]),
        (["cli/run/a"], []),
    ],
)
def test_which_frames_are_shown(called: list[str], shown: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    package, found = ROOT / "shmloader", []
    call: Any = None
    for name in reversed(called):
        space: dict[str, Any] = {"then": call}
        text = "def call():\n    then()" if call else "def call():\n    raise KeyError('text')"
        path = str(package / f"{name}.py") if "/" in name else f"/{name}.py"
        exec(compile(text, path, "exec"), space)
        call = space["call"]
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, at: found.append((error, at)))
    monkeypatch.setattr(sys, "last_traceback", None, raising=False)
    with pytest.raises(KeyError) as caught, uncaught.ShownAsPythons():
        call()
    at = caught.value.__traceback__
    assert at is not None
    sys.excepthook(KeyError, caught.value, at.tb_next)  # without this test's own frame
    ((error, first),) = found
    assert error.__traceback__ is first is sys.last_traceback
    names = [Path(frame.filename).with_suffix("") for frame in traceback.extract_tb(first)]
    assert [str(one.relative_to(package) if package in one.parents else one.name) for one in names] == shown


class _NoGroupError(Exception):
    def __init__(self, exceptions: Any) -> None:
        self.found = exceptions

    @property
    def exceptions(self) -> Any:
        return self.found() if callable(self.found) else self.found


@pytest.mark.parametrize("exceptions", [5, ["text"], None, lambda: 1 / 0])
def test_an_error_whose_exceptions_are_something_else(exceptions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[BaseException] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, at: shown.append(error))
    monkeypatch.setattr(sys, "last_traceback", None, raising=False)
    raised = _NoGroupError(exceptions)
    with pytest.raises(_NoGroupError), uncaught.ShownAsPythons():
        raise raised
    sys.excepthook(_NoGroupError, raised, raised.__traceback__)
    assert shown == [raised]


def test_frames_are_taken_out_of_a_long_traceback_in_one_go() -> None:
    class Frame:
        sets = 0

        def __init__(self, name: str, following: Frame | None) -> None:
            self.tb_frame = SimpleNamespace(f_code=SimpleNamespace(co_filename=name))
            self._following = following

        @property
        def tb_next(self) -> Frame | None:
            return self._following

        @tb_next.setter
        def tb_next(self, following: Frame | None) -> None:
            Frame.sets += 1
            self._following = following

    last: Any = None
    for name in ["script.py", f"{ROOT}/shmloader/patching/a.py", *["script.py"] * 1000]:
        last = Frame(name, last)
    uncaught._take_out_what_only_calls(last)
    assert Frame.sets == 1  # each looks at all that follow


IMPORTS = """
    import importlib.util, os, sys
    importlib.util.find_spec("torch")  # as libraries do to know whether it is there
    print("torch" in sys.modules, "shmloader" in sys.modules, "numpy" in sys.modules)
    os.environ["OMP_NUM_THREADS"] = "1"
    from torch.utils.data import DataLoader
    import torch
    print(torch.get_num_threads(), "shmloader" in sys.modules, sorted(vars(torch.__loader__)))
    print(type(iter(DataLoader(range(3)))).__module__, [type(one).__name__ for one in sys.meta_path])
    print([path for path in sys.path if path.endswith("run")])
"""


def test_the_script_is_the_first_to_import_torch(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(textwrap.dedent(IMPORTS))
    with ThreadPoolExecutor(2) as threads:
        stock, ours = threads.map(
            lambda run: outcome(tmp_path, [*run, "script.py"])[0].splitlines(), [(), ("-m", "shmloader", "run")]
        )
    assert stock[0] == ours[0] == "False False False"
    assert ours[1] == stock[1].replace("False", "True")
    assert ours[1].startswith("1 True")
    assert ours[2] == stock[2].replace("torch.utils.data.dataloader", "shmloader.passes.in_process")
    assert ours[3] == stock[3] == "[]"


def test_torch_is_waited_for_where_it_fails_and_its_loader_loads_other_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    class Archive:
        def exec_module(self, module: ModuleType) -> None:
            loaded.append(module.__name__)
            if len(loaded) == 1:
                raise ImportError("once")

        def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec:
            return ModuleSpec(name, self)  # type: ignore[arg-type]

    archive: Any = Archive()
    after = launch._AfterTorch(lambda: loaded.append("begun"))
    monkeypatch.setattr(sys, "meta_path", [after, archive])
    assert after.find_spec("numpy", None) is None
    for _ in range(2):
        found = after.find_spec("torch", None)
        assert found is not None
        assert found.loader is archive
    with pytest.raises(ImportError):
        archive.exec_module(ModuleType("torch"))
    assert sys.meta_path == [after, archive]
    after.find_spec("torch", None)
    for name in ("other", "torch", "torch"):
        archive.exec_module(ModuleType(name))
    assert loaded == ["torch", "other", "torch", "begun", "torch"]
    assert sys.meta_path == [archive]
    assert not vars(archive)


@pytest.mark.parametrize(
    ("command", "place"),
    [
        (["python", "-m", "shmloader", "run"], 1),
        (["python", "-u", "-W", "error", "-Xdev", "-m", "shmloader"], 5),
        (["python", "-W", "-m", "script.py", "-m", "shmloader"], 0),
        (["python", "script.py", "-m", "shmloader", "run"], 0),
        (["python", "-c", "pass", "-m", "shmloader"], 0),
        (["python"], 0),
        ([], 0),
    ],
)
def test_where_the_interpreters_own_module_is(command: list[str], place: int) -> None:
    assert place_of_module(command) == place


@pytest.mark.parametrize(
    ("own", "target", "found"),
    [
        (["--report", "--trace", "a"], ["b.py"], Options(report=True, trace="a")),
        (["--stock", "--trace="], ["-m", "b"], None),
        (["--trace=a=b"], ["-m", "b"], Options(trace="a=b")),
        (["--trace"], ["b.py"], None),
        (["-h"], [], None),
        (["--rep"], ["b.py"], None),
        ([], ["-m"], None),
        ([], ["-"], Options()),
    ],
)
def test_options_that_need_no_parser(own: list[str], target: list[str], found: Options | None) -> None:
    assert plain(own, target) == found


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("-O",), ("-W", "error", "-P") if sys.version_info >= (3, 11) else ("-W", "error")])
def test_python_has_been_given_flags(flags: tuple[str, ...], folder: Path) -> None:
    assert_as_python(folder, ["plain.py"], flags)


@pytest.mark.parametrize(
    ("given", "own", "target"),
    [
        (["a.py", "--report"], [], ["a.py", "--report"]),
        (["--report", "--trace", "a.json", "a.py"], ["--report", "--trace", "a.json"], ["a.py"]),
        (["--trace=a.json", "-m", "a", "-m"], ["--trace=a.json"], ["-m", "a", "-m"]),
        (["--stock", "--", "a.py", "--"], ["--stock"], ["a.py", "--"]),
        (["-ma.b", "x"], [], ["-m", "a.b", "x"]),
        (["-"], [], ["-"]),
        (["--report"], ["--report"], []),
        (["--", "--report"], [], ["--report"]),
    ],
)
def test_whose_arguments_are_whose(given: list[str], own: list[str], target: list[str]) -> None:
    assert split(given) == (own, target)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "name a script, or -m and a module"),
        (["-m"], "name a script, or -m and a module"),
        (["--report"], "name a script"),
        (["--unheard-of", "a.py"], "unrecognized arguments: --unheard-of"),
        (["--stock", "--trace", "a.json", "a.py"], "there is no trace of torch's own workers"),
    ],
)
def test_what_cannot_be_run(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    from shmloader.cli.main import main

    with pytest.raises(SystemExit) as caught:
        main(["run", *arguments])
    printed = capsys.readouterr()
    assert (caught.value.code, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert text in printed.err
