"""Where Accelerate's wrappers of our loaders are, in the folders that ``save_state`` writes and ``load_state`` reads.

Accelerate writes a loader's state to one file for all ranks, each of which has another one. Here each rank has files of
its own. A wrapper takes a batch ahead of the loop, and so notes our loader's state before each ``next``; what it has
noted last is where the loop is. It counts its passes, and shuffles by that number, so that is kept as well.
"""

from __future__ import annotations

import json
import warnings
import weakref
from pathlib import Path
from typing import Any

from shmloader import callers
from shmloader.errors import ResumeWarning
from shmloader.loader import state_to_take_up
from shmloader.weak_members import WeakMembers

_keepers: weakref.WeakKeyDictionary[Any, _Keeper] = weakref.WeakKeyDictionary()


def keep(accelerator: Any, adapter: Any) -> None:
    """Has an accelerator save and load where a wrapper is.

    Args:
        accelerator: an ``Accelerator``; it is not held.
        adapter: a `DataLoaderShard` or `DataLoaderDispatcher` around a loader of ours; likewise.
    """
    keeper = _keepers.get(accelerator)
    if keeper is None:
        keeper = _keepers[accelerator] = _Keeper(accelerator)
        accelerator.register_save_state_pre_hook(keeper.save)
        accelerator.register_load_state_pre_hook(keeper.load)
    keeper.adapters.add(adapter)


class _Keeper:
    """Accelerate's hooks, for one accelerator. Its loaders are numbered as Accelerate numbers them.

    Args:
        accelerator: whose.

    Attributes:
        adapters: those that are saved and loaded.
    """

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = weakref.ref(accelerator)
        self.adapters: WeakMembers[Any] = WeakMembers()

    def save(self, models: Any, weights: Any, folder: str) -> None:
        """Writes where each wrapper is. Called by ``save_state`` on each rank."""
        for adapter, path, ranks in self._files(folder):
            path.write_text(json.dumps({"ranks": ranks, **_place(adapter)}))

    def load(self, models: Any, folder: str) -> None:
        """Gives each wrapper its place again. Called by ``load_state`` on each rank, before it restores generators.

        Warns:
            ResumeWarning: a place is not taken up, since it is another loader's; or there is none for this rank. The
                next pass begins at its beginning.
        """
        for adapter, path, ranks in self._files(folder):
            if path.exists() or list(Path(folder).glob("shmloader_*.json")):
                _take_up_or_tell(adapter, path, ranks)

    def _files(self, folder: str) -> list[tuple[Any, Path, int]]:
        accelerator = self._accelerator()
        if accelerator is None:
            return []
        rank, ranks = accelerator.process_index, accelerator.num_processes
        return [
            (adapter, Path(folder, f"shmloader_{number}_rank_{rank}.json"), ranks)
            for number, adapter in enumerate(vars(accelerator)["_dataloaders"])
            if adapter in self.adapters
        ]


def _place(adapter: Any) -> dict[str, Any]:
    # At the last batch the pass is over for the loader, and not yet counted.
    is_at_end = bool(adapter.end_of_dataloader) and _is_in_pass(adapter)
    state = adapter.dl_state_dict
    dispatching = vars(adapter).get("state")  # of this process, in a dispatcher
    if dispatching is not None and dispatching.process_index != 0:
        # Only rank 0 of them reads its loader. The others begin passes of theirs, and draw seeds for that.
        state = {} if is_at_end or not _is_in_pass(adapter) else adapter.base_dataloader.state_dict()
    return {"iteration": adapter.iteration + is_at_end, "state": state}


def _is_in_pass(adapter: Any) -> bool:
    return any(one is adapter for one in adapter.gradient_state.dataloader_references)


def _take_up_or_tell(adapter: Any, path: Path, ranks: int) -> None:
    try:
        _take_up(adapter, json.loads(path.read_text()), ranks)
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(
            f"{adapter.base_dataloader!r} does not go on where {path} says, and begins its next pass at the "
            f"beginning: {error}",
            ResumeWarning,
            stacklevel=callers.stacklevel("accelerate"),
        )


def _take_up(adapter: Any, place: dict[str, Any], ranks: int) -> None:
    if place["ranks"] != ranks:
        raise ValueError(f"it is of {place['ranks']} ranks, and there are {ranks}")
    adapter.base_dataloader.load_state_dict(place["state"])
    adapter.iteration = int(place["iteration"])
    adapter.dl_state_dict = adapter.base_dataloader.state_dict()


def forget_place(adapter: Any, base: Any) -> None:
    """Has the next pass begin at its beginning, where a loader was given a place within one."""
    state = state_to_take_up(base)
    if state is not None and state.phase == "within":
        base.load_state_dict({})
        if adapter is not base:
            adapter.dl_state_dict = base.state_dict()


def align(adapter: Any) -> None:
    """Has a dispatcher that joins a batch for each rank note states between groups of them only.

    It notes one before each batch that it takes, and may have taken some of the next group when the loop has the last
    one. Accelerate mends that in what torchdata's states count, and lets others do so by this method.
    """
    ranks = adapter.state.num_processes
    if ranks > 1 and not adapter.split_batches and not adapter.submesh_tp:
        adapter.adjust_state_dict_for_prefetch = _BetweenGroups(adapter)


class _BetweenGroups:
    """Keeps a dispatcher's noted state at the beginning of the group that it takes ahead.

    Args:
        adapter: the dispatcher. It is not held: both would wait for a garbage collection, and a loader's workers too.
    """

    def __init__(self, adapter: Any) -> None:
        self._adapter = weakref.ref(adapter)
        self._kept: dict[str, Any] | None = None

    def __call__(self) -> None:
        """Called when the dispatcher has noted its loader's state."""
        adapter = self._adapter()
        assert adapter is not None
        state = adapter.dl_state_dict
        if self._kept is None or adapter.end_of_dataloader or state["given"] % adapter.state.num_processes == 0:
            self._kept = state
        else:
            adapter.dl_state_dict = self._kept

    def __reduce__(self) -> tuple[Any, ...]:
        return _BetweenGroups, (self._adapter(),)
