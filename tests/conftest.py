"""After every test nothing may be left: no child, no descriptor, no thread, no mapping."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from multiprocessing import forkserver, resource_sharer, resource_tracker

import pytest
import torch

from shmloader.slots import orphans
from tests.helpers import simulated
from tests.helpers.support import holdings, let_stock_end

# A shell starts what runs in the background with Ctrl-C ignored, and Python leaves it at that: nothing here, and no
# script that tests start, would ever see a KeyboardInterrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Both loaders are compared with forked workers. From Python 3.14 stock's own would be a fork server's.
if sys.version_info >= (3, 14):
    multiprocessing.set_start_method("fork")

# Stock starts feeder threads and torch a pool of them; one thread each keeps the tests comparable and quick.
torch.set_num_threads(1)

_LEFT_OUT = pytest.StashKey[int]()
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's


@pytest.fixture(autouse=True, scope="module")
def _spare_what_stays_from_being_searched() -> None:
    """Modules and tests are never garbage, and searching them before and after each test took most of the time."""
    gc.collect()
    gc.freeze()
    if _trim is not None:  # what a few long lists took would be copied, as page tables, by each later fork
        _trim(0)


@pytest.fixture(autouse=True)
def _leaves_nothing_behind() -> Iterator[None]:
    before = holdings()
    yield
    forget_the_last_failure()
    let_stock_end()
    assert holdings() == before


def forget_the_last_failure() -> None:
    """Lets go of the frames of a test that failed: pytest keeps them for debuggers, and they hold loaders alive.

    Every later test that looks for children would fail because of that one.
    """
    for name in ("last_exc", "last_type", "last_value", "last_traceback"):
        if hasattr(sys, name):
            delattr(sys, name)


@pytest.fixture
def _resource_tracker() -> Iterator[None]:
    """The processes that multiprocessing starts with the first spawned one or fork server's, and keeps."""
    resource_tracker.ensure_running()
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def _resource_sharer() -> Iterator[None]:
    """The thread that multiprocessing starts with the first tensor that stock is to send to a worker, and keeps."""
    resource_sharer.DupFd(0).detach()
    yield
    resource_sharer.stop()


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[simulated.Driver]:
    """A driver of which nothing may be left registered when the test is over, and that is called here only."""
    driver = simulated.install(monkeypatch)
    yield driver
    gc.collect()
    driver.device.finish()
    orphans.tidy()
    assert driver.ranges == {}
    assert driver.calls_elsewhere == 0


@pytest.fixture(scope="session")
def _matplotlib(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Matplotlib, which keeps the files of its fonts open once it has drawn."""
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    axes = (figure := Figure()).subplots()
    axes.set_title("Title", fontweight="bold")
    figure.savefig(tmp_path_factory.mktemp("chart") / "first.png")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    seen: Counter[str] = Counter()
    for item in items:
        sampled = item.get_closest_marker("sampled")
        if sampled is not None:
            name = item.nodeid.split("[")[0]
            if seen[name] % sampled.args[0]:
                item.add_marker(pytest.mark.slow)
            seen[name] += 1
    config.stash[_LEFT_OUT] = 0
    if config.getoption("-m"):
        return
    # Each fork copies the page tables of all memory. So tests are not skipped or deselected, which pytest keeps to the
    # end, and those come last that import most.
    chosen = [item for item in items if not (item.get_closest_marker("slow") or item.get_closest_marker("long"))]
    config.stash[_LEFT_OUT] = len(items) - len(chosen)
    items[:] = sorted(chosen, key=lambda item: item.nodeid.startswith("tests/benchmarks"))


def pytest_report_collectionfinish(config: pytest.Config) -> str:
    return f"{config.stash.get(_LEFT_OUT, 0)} long and slow tests are left out; -m long or -m slow runs them"
