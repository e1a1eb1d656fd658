"""From MODULE:CALLABLE to the arguments of a DataLoader."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from shmloader.cli.console import UsageError

_DEFAULTS: dict[str, Any] = {"batch_size": 32, "num_workers": 2}

# Arguments of ShmDataLoader that torch's loader does not have.
_OURS = ("sample_shapes", "sample_dtypes", "max_pool_bytes", "num_slots")

LoaderClass = Callable[..., "DataLoader[Any]"]


class SyntheticImages(Dataset[Any]):
    """What is measured when the user names nothing: small colour images, 3x64x64 bytes, each with an int.

    A sample costs next to nothing to make, so that what is measured is the loader.

    Args:
        length: how many samples there are; they repeat.
    """

    _DISTINCT = 256

    def __init__(self, length: int = 1_000_000) -> None:
        rng = np.random.default_rng(0)
        self._images = rng.integers(0, 256, (self._DISTINCT, 3, 64, 64), dtype=np.uint8)
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self._images[index % self._DISTINCT], index % 10


def loader_arguments(name: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keyword arguments, dataset included, that both loaders are made with.

    Args:
        name: MODULE:CALLABLE, or None for the synthetic dataset.
        options: what the command line says of DataLoader's arguments; None: nothing.

    Raises:
        UsageError: there is no such callable, it returns something else, or it and the command line disagree.
        Exception: what the user's module or callable raises.
    """
    arguments = _as_arguments(name, _find(name)()) if name is not None else {"dataset": SyntheticImages()}
    for option, value in options.items():
        if value is None:
            continue
        if option in arguments:
            raise UsageError(f"{name} sets {option} itself, so --{option.replace('_', '-')} cannot be given")
        arguments[option] = value
    if "batch_sampler" not in arguments:
        arguments.setdefault("batch_size", _DEFAULTS["batch_size"])
    arguments.setdefault("num_workers", _DEFAULTS["num_workers"])
    return arguments


def build(loader_class: LoaderClass, arguments: Mapping[str, Any]) -> DataLoader[Any]:
    """Makes a loader; torch's own does not get the arguments that only ours has.

    Raises:
        UsageError: the loader refuses its arguments.
    """
    if loader_class is DataLoader:
        arguments = {name: value for name, value in arguments.items() if name not in _OURS}
    try:
        return loader_class(**arguments)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the loader refuses its arguments: {error}") from error


def _find(name: str) -> Callable[[], Any]:
    module_name, colon, path = name.partition(":")
    if not (module_name and colon and path) or module_name.startswith("."):
        raise UsageError(f"{name!r} is not MODULE:CALLABLE")
    found: Any = _import(module_name)
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            raise UsageError(f"module {module_name} has no {path}")
        found = getattr(found, attribute)
    if not callable(found):
        raise UsageError(f"{name} is not callable, it is of type {type(found).__qualname__}")
    _check_no_arguments(name, found)
    return found  # type: ignore[no-any-return]


def _import(module_name: str) -> Any:
    here = os.getcwd()  # noqa: PTH109
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that the user's own one imports in vain is the user's error, with its traceback.
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise UsageError(f"there is no module {module_name}") from None
        raise


def _check_no_arguments(name: str, found: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(found)
    except ValueError:
        return
    try:
        signature.bind()
    except TypeError as error:
        raise UsageError(f"{name} is called without arguments, but: {error}") from None


def _as_arguments(name: str, made: Any) -> dict[str, Any]:
    if isinstance(made, dict):
        if "dataset" not in made:
            raise UsageError(f"{name} returned a dict without 'dataset'")
        return dict(made)
    is_sequence = hasattr(made, "__getitem__") and hasattr(made, "__len__") and not isinstance(made, str | bytes)
    if isinstance(made, Dataset) or is_sequence:
        return {"dataset": made}
    raise UsageError(
        f"{name} returned neither a Dataset nor a dict of DataLoader's arguments, but {type(made).__qualname__}"
    )
