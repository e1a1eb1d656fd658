"""Accelerate's ``prepare``, with our loader inside.

Accelerate makes a `DataLoaderShard` or `DataLoaderDispatcher` of a loader: a wrapper around a loader of torch's class,
its ``base_dataloader``, that it builds from the names that it knows. Here the same is done, and then one of ours is put
in that loader's place, with the samplers, the dataset and the generator that Accelerate gave to it. All else is
Accelerate's: what each rank gets, the device, ``end_of_dataloader`` and ``remainder``.
"""

from __future__ import annotations

import contextlib
import types
import warnings
from collections.abc import Sequence
from typing import Any

from shmloader import callers, rebuilding
from shmloader.errors import FallbackWarning
from shmloader.loader import ShmDataLoader, loads_as_stock, state_to_take_up

from . import checkpoints
from .exchange import in_place_of, is_ours

try:
    from accelerate import Accelerator, data_loader
except ImportError as error:
    raise ImportError(
        f"shmloader.integrations.accelerate needs Accelerate: pip install accelerate ({error})", name="accelerate"
    ) from error

_ADAPTERS = data_loader.DataLoaderShard, data_loader.DataLoaderDispatcher


def prepare(
    accelerator: Accelerator,
    *objects: Any,
    device_placement: Sequence[bool | None] | None = None,
    use_stateful_dataloader: bool = True,
) -> Any:
    """Does what ``accelerator.prepare`` does, and keeps each `ShmDataLoader` what it is, with all of its arguments.

    Each rank gets the samples, in the batches and in the order, that ``accelerator.prepare`` gives it for torch's
    loader with the same arguments, and random generators are drawn from as there.

    Loaders of torch's class stay as Accelerate makes them; only what is a `ShmDataLoader`, or of a class that inherits
    from it, is given workers of this library. Models, optimizers, schedulers and whatever else go through Accelerate's
    method unchanged. What was prepared before comes back as it is.

    ``skip_first_batches``, Accelerate's function and its method, is changed for this process by the first call with a
    loader of ours: what it makes of one is ours again. Elsewhere it does what it did.

    Blocks as Accelerate's method does; no worker is started before the first pass.

    Args:
        accelerator: an `accelerate.Accelerator`.
        *objects: what its ``prepare`` takes.
        device_placement: as there.
        use_stateful_dataloader: whether ``accelerator.save_state`` keeps where each loader of ours is, in files named
            ``shmloader_*.json``, one for each rank, and ``load_state`` has its next pass begin there. False: as
            Accelerate without its option of that name: a loader begins a pass anew, and the script skips batches.
            What `skip_first_batches` makes skips from the pass's beginning, whatever was loaded; a loop that drops
            batches in its body needs False. Accelerate's own option needs torchdata; this does not.

    Returns:
        What ``accelerator.prepare`` returns: one object for one, else a tuple in the same order. The
        ``base_dataloader`` of what a loader of ours became is of that loader's class.

    Raises:
        TypeError: ``accelerator`` is none, or there are no objects.
        ValueError: a loader was given a state by ``load_state_dict``; give it to what this returns. Or what
            ``accelerator.prepare`` raises, as TypeError and others.

    Warns:
        FallbackWarning: this platform or torch lacks what the loader is made of, or Accelerate has made something else
            of one than those two wrappers. It stays as Accelerate has made it.
    """
    if not isinstance(accelerator, Accelerator):
        raise TypeError(f"accelerator must be an accelerate.Accelerator, got {accelerator!r}")
    if not objects:
        raise TypeError("prepare needs something to prepare behind the accelerator: loaders, models, optimizers")
    _check_no_state(objects)
    with rebuilding.expected():
        prepared = accelerator.prepare(*objects, device_placement=device_placement)
    results = prepared if len(objects) > 1 else (prepared,)
    for given, result in zip(objects, results, strict=True):
        if is_ours(given) and result is not given:
            _exchange(result, given)
            _mend_skip_first_batches()
            if use_stateful_dataloader and is_ours(getattr(result, "base_dataloader", None)):
                checkpoints.keep(accelerator, result)
    return prepared


def skip_first_batches(dataloader: Any, num_batches: int = 0) -> Any:
    """Does what Accelerate's function of this name does, and keeps a `ShmDataLoader` what it is.

    Args:
        dataloader: what `prepare` returned, or any other loader.
        num_batches: how many batches the result's first pass leaves out. Of an iterable dataset they are made, and
            dropped. They count from the pass's beginning: a place within it that ``dataloader`` was given, by
            ``accelerator.load_state`` say, is forgotten.

    Returns:
        A loader of the kind that Accelerate makes, of this library if ``dataloader`` is.
    """
    base = getattr(dataloader, "base_dataloader", dataloader)
    if not is_ours(base):
        return _theirs(dataloader, num_batches)
    checkpoints.forget_place(dataloader, base)
    with rebuilding.expected():
        skipped = _theirs(dataloader, num_batches)
    if hasattr(skipped, "base_dataloader"):
        _exchange(skipped, base)
        return skipped
    return in_place_of(skipped, base)


def _check_no_state(objects: Sequence[Any]) -> None:
    """Raises before anything is prepared, which Accelerate would note."""
    for one in objects:
        if is_ours(one) and state_to_take_up(one) is not None:
            raise ValueError(
                f"{one!r} was given a state by load_state_dict before it was prepared; call load_state_dict of what "
                "prepare returns, whose samplers are those of this rank"
            )


def _exchange(adapter: Any, original: ShmDataLoader[Any]) -> None:
    """Puts a loader of ours in the place of Accelerate's.

    Args:
        adapter: what Accelerate has made of ``original``.
        original: a loader of ours.
    """
    if not hasattr(adapter, "base_dataloader"):  # for XLA there is a wrapper around it
        adapter = getattr(adapter, "dataloader", adapter)
    if not hasattr(adapter, "base_dataloader"):
        return _warn(
            f"Accelerate has made a {type(adapter).__qualname__} of {original!r}, which has no base_dataloader"
        )
    if loads_as_stock(original):
        return _warn(f"ShmDataLoader loads as torch's does here, so {original!r} stays as Accelerate has made it")
    ours = in_place_of(adapter.base_dataloader, original)
    adapter.base_dataloader = ours
    adapter.dl_state_dict = ours.state_dict()
    adapter.use_stateful_dataloader = False  # of torchdata, whose files are one for all ranks
    if ours.epoch_size is not None and isinstance(adapter, data_loader.DataLoaderShard):
        vars(adapter)["_drop_last"] = True  # the dataset's length says nothing of a pass's last batch
    if isinstance(adapter, data_loader.DataLoaderDispatcher):
        checkpoints.align(adapter)
    return None


def _warn(text: str) -> None:
    warnings.warn(text, FallbackWarning, stacklevel=callers.stacklevel())


# Accelerate's own function, whatever has become of its name.
_theirs = getattr(
    data_loader.skip_first_batches,
    "__wrapped__",
    types.FunctionType(
        data_loader.skip_first_batches.__code__,
        data_loader.skip_first_batches.__globals__,
        "skip_first_batches",
        data_loader.skip_first_batches.__defaults__,
    ),
)


def _mend_skip_first_batches() -> None:
    """Has Accelerate's function be ours, under each name that it has.

    Scripts bind it at import, and so do Accelerate's own modules and transformers: no name can be set that all of them
    look up. So it is the function's code that is exchanged. Rejected: to change the class that it makes, which is not
    told from which loader.
    """
    function = data_loader.skip_first_batches
    if not hasattr(function, "__wrapped__"):
        with contextlib.suppress(ValueError):  # it has a closure: RebuiltWarning says what to call then
            function.__code__ = _of_ours.__code__
            function.__wrapped__ = _theirs


def _of_ours(dataloader: Any, num_batches: int = 0) -> Any:
    from shmloader.integrations.accelerate import skip_first_batches  # it runs with Accelerate's globals

    return skip_first_batches(dataloader, num_batches)
