"""What `patch` reaches, and that nothing is left of it when it is undone."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.utils.data
from torch.utils.data import DataLoader, dataloader

import shmloader
from shmloader import FallbackWarning, ShmDataLoader, StockLoaderWarning, WorkerDiedError, requirements, torch_private
from shmloader.passes.in_process import TrackedInProcessIterator
from shmloader.passes.iterator import ShmIterator
from shmloader.patching import patched_loader, takeover
from shmloader.patching.patched_loader import PatchedLoader
from shmloader.patching.record import MOST, On, Record
from tests.frameworks.support import Traced, indices, our_indices, readers
from tests.helpers.support import descriptors, in_threads, mappings

FUNCTIONS = [(DataLoader, "__iter__"), (DataLoader, "_get_iterator"), (dataloader._BaseDataLoaderIter, "__init__")]
EXPECTED = [list(range(begin, min(begin + 4, 18))) for begin in range(0, 18, 4)]
OURS = "shmloader.workers.processes.main"


@pytest.fixture(autouse=True)
def _torchs_functions_are_back() -> Iterator[None]:
    before = [vars(owner)[name] for owner, name in FUNCTIONS]
    yield
    assert [vars(owner)[name] for owner, name in FUNCTIONS] == before


def loader_of(kind: Any = DataLoader, **arguments: Any) -> Any:
    return kind(Traced(), batch_size=4, **{"num_workers": 2, **arguments})


def is_ours(loader: Any) -> bool:
    """Whether a pass of it has workers of ours; it is read to its end."""
    batches = list(loader)
    assert indices(batches) == EXPECTED
    found = readers(batches)
    assert len(found) == 1
    return found == {OURS}


# -- ways to a class -------------------------------------------------------------------------------------------------


class Derived(DataLoader[Any]):
    """As most that are derived: nothing of how a pass begins is its own."""

    def __init__(self, dataset: Any, **arguments: Any) -> None:
        arguments.setdefault("collate_fn", self.collate)
        super().__init__(dataset, **arguments)

    def collate(self, samples: list[Any]) -> Any:
        return torch.utils.data.default_collate(samples)


class Infinite(DataLoader[Any]):
    """As Ultralytics' loader: one iterator for ever, whose workers it ends itself."""

    class Repeated:
        def __init__(self, sampler: Any) -> None:
            self.sampler = sampler

        def __iter__(self) -> Iterator[Any]:
            while True:
                yield from iter(self.sampler)

        def __len__(self) -> int:
            return len(self.sampler)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        object.__setattr__(self, "batch_sampler", self.Repeated(self.batch_sampler))
        self.iterator = super().__iter__()

    def __len__(self) -> int:
        return len(self.batch_sampler.sampler)  # type: ignore[union-attr]

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for _ in range(len(self)):
            yield next(self.iterator)

    def __del__(self) -> None:
        for worker in self.iterator._workers:  # type: ignore[attr-defined]
            if worker.is_alive():
                worker.terminate()
        self.iterator._shutdown_workers()  # type: ignore[attr-defined]

    def reset(self) -> None:
        self.iterator = self._get_iterator()


class MultiEpochs(DataLoader[Any]):
    """As timm's loader: a batch sampler that repeats, put in by way of torch's own flag."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._DataLoader__initialized = False
        self.batch_sampler = Infinite.Repeated(self.batch_sampler)
        self._DataLoader__initialized = True
        self.iterator = super().__iter__()

    def __len__(self) -> int:
        return len(self.batch_sampler.sampler)  # type: ignore[union-attr]

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for _ in range(len(self)):
            yield next(self.iterator)


class Generating(DataLoader[Any]):
    """Does something to each batch."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()


class Wrapping(DataLoader[Any]):
    """Does something where it gets its iterator."""

    def _get_iterator(self) -> Any:
        self.times = getattr(self, "times", 0) + 1
        return super()._get_iterator()


class Sampled(DataLoader[Any]):
    """Has another idea of what indices come from."""

    @property
    def _index_sampler(self) -> Any:
        return EXPECTED


def defaulted(dataset: Any, kind: Any = DataLoader, **arguments: Any) -> Any:
    return kind(dataset, **arguments)


def closure() -> Callable[..., Any]:
    kind = DataLoader
    return lambda dataset, **arguments: kind(dataset, **arguments)


def initialised(dataset: Any, **arguments: Any) -> Any:
    loader: Any = DataLoader.__new__(DataLoader)
    DataLoader.__init__(loader, **{"dataset": dataset, **arguments})
    return loader


WAYS: dict[str, Any] = {
    "the class": DataLoader,
    "the class, by its module": torch.utils.data.dataloader.DataLoader,
    "a default argument": defaulted,
    "a closure": closure(),
    "its constructor, called by itself": initialised,
    "a derived class": Derived,
    "Ultralytics' way": Infinite,
    "timm's way": MultiEpochs,
    "a generator for an iterator": Generating,
    "an iterator that is looked at": Wrapping,
    "another sampler": Sampled,
    "a generic alias": DataLoader[Any],
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("made", ["before", "within"])
def test_each_way_leads_to_our_workers(way: str, made: str) -> None:
    iterates_at_once = way in ("Ultralytics' way", "timm's way")
    before = None if made == "within" or iterates_at_once else loader_of(WAYS[way])
    with shmloader.patch():
        loader = before or loader_of(WAYS[way])
        assert is_ours(loader)
        assert is_ours(loader)
        assert not isinstance(loader, ShmDataLoader)


def test_ultralytics_reset() -> None:
    with shmloader.patch():
        loader = loader_of(Infinite)
        iterator = iter(loader)
        next(iterator)
        loader.reset()
        del iterator
        assert is_ours(loader)


def test_a_class_that_is_defined_while_it_is_on_works_on() -> None:
    with shmloader.patch():

        class Later(DataLoader[Any]):
            def __iter__(self) -> Any:
                return super().__iter__()

            begin = DataLoader.__iter__

        assert is_ours(loader_of(Later))
    assert not is_ours(loader_of(Later))
    assert indices(Later.begin(loader_of(Later))) == EXPECTED


def test_a_loader_stays_what_it_is() -> None:
    with shmloader.patch():
        loader = loader_of()
        iterator = iter(loader)
        assert type(loader) is DataLoader is torch.utils.data.DataLoader
        assert isinstance(iterator, dataloader._BaseDataLoaderIter)
        assert len(iterator) == len(loader) == 5
        assert issubclass(Derived, DataLoader)
        del iterator


# -- what cannot be reached ------------------------------------------------------------------------------------------


class OwnWorkers(DataLoader[Any]):
    """Makes torch's iterator itself."""

    def _get_iterator(self) -> Any:
        if self.num_workers == 0:
            return dataloader._SingleProcessDataLoaderIter(self)
        return dataloader._MultiProcessingDataLoaderIter(self)


class OwnIterator(DataLoader[Any]):
    """Makes an iterator of its own kind."""

    class Iterator(dataloader._MultiProcessingDataLoaderIter):
        pass

    def __iter__(self) -> Any:
        return self.Iterator(self)


class NoLoader:
    """As fastai's: a class of its own, with what torch's iterator reads."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Any:
        return dataloader._MultiProcessingDataLoaderIter(self)


@pytest.fixture
def _none_was_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(takeover, "_warned", set())


@pytest.mark.usefixtures("_none_was_warned_of")
@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: loader_of(OwnWorkers), r"test_patch\.OwnWorkers loads .*: OwnWorkers\._get_iterator makes"),
        (lambda: loader_of(OwnIterator), r"test_patch\.OwnIterator loads .*: OwnIterator\.__iter__ makes"),
        (lambda: NoLoader(loader_of()), r"test_patch\.NoLoader loads .*: NoLoader\.__iter__ makes"),
    ],
)
def test_a_class_that_makes_its_own_workers_keeps_them_and_is_named_once(make: Any, text: str) -> None:
    with shmloader.patch() as patch:
        loader = make()
        with pytest.warns(StockLoaderWarning, match=text) as caught:
            found = [is_ours(one) for one in (loader, make())]
        assert found == [False, False]
        assert len(caught) == 1
        assert caught[0].filename == __file__
        assert [(ran.on, ran.passes) for ran in patch.ran[-2:]] == [(On.STOCK, 1)] * 2
        assert "makes an iterator by itself" in patch.ran[-1].reason


@pytest.mark.usefixtures("_none_was_warned_of")
def test_without_workers_it_makes_no_difference() -> None:
    with shmloader.patch() as patch:
        assert not is_ours(loader_of(OwnWorkers, num_workers=0))
        assert patch.ran[-1].on is On.IN_PROCESS


@pytest.mark.usefixtures("_none_was_warned_of")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch's, of an iterator half made
def test_where_warnings_are_errors_nothing_is_lost() -> None:
    loader = loader_of(OwnWorkers)
    with shmloader.patch(), warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(StockLoaderWarning):
            iter(loader)
        assert not is_ours(loader)


def test_a_platform_without_what_workers_are_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "lack", lambda worker_type="process": "this platform lacks os.pidfd_open")
    with pytest.warns(FallbackWarning, match="lacks os.pidfd_open, so .* changes nothing") as caught:
        patch = shmloader.patch()
    assert caught[0].filename == __file__
    with patch:
        assert not is_ours(loader_of())


@pytest.mark.parametrize("refuses", [lambda dataset: not len(dataset), lambda dataset: not isinstance(dataset, Traced)])
def test_a_constructor_that_is_not_torchs_may_refuse_what_it_likes(
    refuses: Callable[[Any], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, make = [], DataLoader.__init__

    def __init__(self: Any, dataset: Any, *args: Any, **kwargs: Any) -> None:
        if refuses(dataset):
            raise ValueError("not for this program")
        make(self, dataset, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(DataLoader, "__init__", __init__)
    for function in (torch_private.difference, patched_loader._torchs):  # as where it came before the first loader
        function.cache_clear()
    with shmloader.patch() as patch:
        loaders = [loader_of(), loader_of(MultiEpochs, persistent_workers=True), loader_of(num_workers=0)]
        assert [is_ours(loader) for loader in loaders] == [True, True, False]
        assert patch.ran[-1].on is On.IN_PROCESS
        assert not any(isinstance(one, PatchedLoader) for one in made)
    for function in (torch_private.difference, patched_loader._torchs):
        function.cache_clear()


def test_our_own_loaders_stay_as_they_are() -> None:
    with shmloader.patch() as patch:
        loader = loader_of(ShmDataLoader, num_slots=11)
        assert our_indices(loader) == EXPECTED
        assert loader.statistics().num_slots == 11
        assert "_shmloader" not in vars(loader)
        assert patch.ran[-1].kind == "shmloader.loader.ShmDataLoader"


# -- on and off ------------------------------------------------------------------------------------------------------


def test_on_until_the_last_is_undone() -> None:
    first = shmloader.patch()
    with shmloader.patch(), shmloader.patch() as third:
        first.undo()
        first.undo()
        assert is_ours(loader_of())
        third.undo()
        assert is_ours(loader_of())
    assert not is_ours(loader_of())
    with first:  # it is over
        assert not is_ours(loader_of())


def test_an_error_in_the_block_undoes_it() -> None:
    with pytest.raises(KeyError), shmloader.patch():
        raise KeyError
    assert not is_ours(loader_of())


def test_threads_patch_and_undo_as_they_like() -> None:
    def act() -> None:
        for _ in range(200):
            with shmloader.patch():
                assert len(list(DataLoader(range(2)))) == 2  # type: ignore[arg-type]

    in_threads(act, act, act)
    assert type(iter(loader_of(num_workers=0))) is dataloader._SingleProcessDataLoaderIter


def test_threads_that_begin_passes_of_one_loader() -> None:
    loader = loader_of()
    with shmloader.patch():
        in_threads(*[lambda: [is_ours(loader) for _ in range(2)]] * 3)


@pytest.mark.parametrize("persistent", [False, True])
def test_what_was_made_within_goes_on(persistent: bool) -> None:
    with shmloader.patch():
        loader = loader_of(persistent_workers=persistent)
        iterator = iter(loader)
        first = next(iterator)
    batches = [first, *iterator]
    assert our_indices(batches) == EXPECTED
    assert is_ours(loader) is persistent
    assert is_ours(loader) is persistent


@pytest.mark.parametrize("persistent", [False, True])
def test_a_loader_that_has_torchs_workers_already(persistent: bool) -> None:
    loader = loader_of(persistent_workers=persistent)
    iterator = iter(loader)
    first = next(iterator)
    with shmloader.patch():
        batches = [first, *iterator]
        assert indices(batches) == EXPECTED
        assert readers(batches) != {OURS}
        assert is_ours(loader) is not persistent


def test_others_that_replace_the_same_functions() -> None:
    calls: list[str] = []
    original = vars(DataLoader)["__iter__"]

    def replaced_by(name: str) -> Any:
        inner = vars(DataLoader)["__iter__"]

        def __iter__(self: Any) -> Any:
            calls.append(name)
            return inner(self)

        DataLoader.__iter__ = __iter__  # type: ignore[method-assign]

    try:
        replaced_by("before")
        first = shmloader.patch()
        replaced_by("within")
        assert is_ours(loader_of())
        assert calls == ["within", "before"]
        first.undo()
        calls.clear()
        assert not is_ours(loader_of())
        assert calls == ["within", "before"]
        with shmloader.patch():
            assert is_ours(loader_of())
        calls.clear()
        assert not is_ours(loader_of())
        assert calls == ["within", "before"]
    finally:
        DataLoader.__iter__ = original  # type: ignore[method-assign]


# -- a loader's life -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda loader: pickle.loads(pickle.dumps(loader))])
def test_a_copy_has_workers_and_figures_of_its_own(again: Callable[[Any], Any]) -> None:
    with shmloader.patch():
        loader = loader_of()
        assert is_ours(loader)
        other = again(loader)
        assert type(other) is DataLoader
        iterators = iter(loader), iter(other)
        first, second = shmloader.live_loaders()
        assert (first.loader, second.loader) == (loader, other)
        assert (first.statistics().batches, second.statistics().batches) == (5, 0)
        assert [our_indices(one) for one in iterators] == [EXPECTED] * 2
        del iterators, first, second


def test_a_pickle_needs_no_import_of_ours() -> None:
    with shmloader.patch():
        loader: Any = DataLoader(range(3), num_workers=1)  # type: ignore[arg-type]
        list(loader)
        assert b"shmloader." not in pickle.dumps(loader)


def test_a_loader_is_freed_with_all_that_it_had() -> None:
    before = descriptors(), mappings()
    with shmloader.patch():
        loader = loader_of()
        assert is_ours(loader)
        there = weakref.ref(loader)
        assert mappings() > before[1]
        del loader
        assert there() is None
        loader = loader_of(Derived, persistent_workers=True)  # whose collate function is its own
        assert is_ours(loader)
        there = weakref.ref(loader)
        del loader
        gc.collect()
        assert there() is None
        assert (descriptors(), mappings()) == before


def test_a_loader_that_is_dropped_at_once() -> None:
    with shmloader.patch():
        assert our_indices(iter(loader_of())) == EXPECTED
        for persistent in (False, True):
            iterator = iter(loader_of(persistent_workers=persistent))
            gc.collect()
            assert our_indices(iterator) == EXPECTED


def test_what_stands_for_a_loader() -> None:
    with shmloader.patch() as patch:
        loader = loader_of(persistent_workers=True)
        for _ in range(2):
            assert is_ours(loader)
        (stands,) = shmloader.live_loaders()
        assert isinstance(stands, PatchedLoader)
        assert stands.loader is loader
        statistics = stands.statistics()
        assert (statistics.batches, statistics.last_pass.batches, len(statistics.last_pass.workers)) == (10, 5, 2)
        assert repr(stands).startswith("<PatchedLoader 'Traced' batch_size=4 num_workers=2")
        with pytest.raises(TypeError, match="copy that loader"):
            copy.copy(stands)
        ran = patch.ran[-1]
        assert (ran.label, ran.kind, ran.passes) == ("Traced", "torch.utils.data.dataloader.DataLoader", 2)
        assert __file__.endswith(ran.place.split(":")[0])
        assert "workers of shmloader; 2 passes, begun at" in str(ran)
        shmloader.close_all()
        assert is_ours(loader)  # with new workers
        del stands


class Deadly(Traced):
    def __getitem__(self, index: int) -> Any:
        if index == 9 and os.path.exists(f"/proc/{os.getppid()}/fd"):  # noqa: PTH110
            os._exit(3)
        return super().__getitem__(index)


def test_persistent_workers_that_died_are_made_anew() -> None:
    with shmloader.patch():
        loader: Any = DataLoader(Deadly(), batch_size=4, num_workers=2, persistent_workers=True)
        for _ in range(2):
            with pytest.raises(WorkerDiedError):
                list(loader)


@pytest.mark.parametrize("is_on", [True, False])
def test_persistent_workers_that_were_killed_or_closed_are_made_anew(is_on: bool) -> None:
    with shmloader.patch():
        loader = loader_of(persistent_workers=True)
        assert is_ours(loader)
        if is_on:
            shmloader.close_all()
            assert is_ours(loader)
    if not is_on:
        shmloader.close_all()
        assert not is_ours(loader)
        assert not is_ours(loader)


def test_in_process_loaders_are_measured_too() -> None:
    with shmloader.patch():
        loader = loader_of(num_workers=0)
        iterator = iter(loader)
        assert isinstance(iterator, TrackedInProcessIterator)
        assert isinstance(iterator, dataloader._SingleProcessDataLoaderIter)
        del iterator


def test_a_forked_child_is_patched_and_has_no_record_of_its_parents() -> None:
    patch = shmloader.patch()
    with patch:
        assert is_ours(loader_of())
        child = os.fork()
        if child == 0:
            try:
                ok = not patch.ran and is_ours(loader_of())
                patch.undo()
                os._exit(0 if ok and not is_ours(loader_of()) else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert is_ours(loader_of())


def test_a_child_that_is_forked_while_another_thread_patches_is_not_locked() -> None:
    stop = threading.Event()

    def act() -> None:
        while not stop.is_set():
            shmloader.patch().undo()

    thread = threading.Thread(target=act)
    thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                shmloader.patch().undo()
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        thread.join()


def test_of_very_many_loaders_the_last_are_known() -> None:
    record = Record()
    loaders: list[Any] = [DataLoader(range(1)) for _ in range(3)]  # type: ignore[arg-type]
    for _ in range(MOST + 5):
        record.begins(DataLoader(range(1))).note(On.OURS)  # type: ignore[arg-type]
    for loader in loaders:
        for _ in range(2):
            record.begins(loader).note(On.OURS)
    assert (record.begun, len(record.all())) == (MOST + 8, MOST)
    assert [ran.passes for ran in record.all()[-4:]] == [1, 2, 2, 2]


def test_the_iterators_of_a_patched_loader_are_ours() -> None:
    with shmloader.patch():
        iterator = iter(loader_of())
        assert type(iterator) is ShmIterator
        del iterator
