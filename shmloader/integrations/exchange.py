"""One of our loaders in place of torch's, which a framework has built from it."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch.utils.data import DataLoader, TensorDataset

from shmloader.loader import ShmDataLoader, state_to_take_up

T = TypeVar("T", bound="ShmDataLoader[Any]")


def in_place_of(rebuilt: DataLoader[Any], original: T) -> T:
    """Returns a loader that reads what another one reads, and is as one of ours in all else.

    It is a copy of ``original``: of its class, with what a class that inherits from ours has set, and with workers and
    memory of its own. What torch's loader has made of its arguments comes from ``rebuilt``. No constructor is called:
    one of a class that inherits from ours may have any arguments.

    Args:
        rebuilt: a loader of torch's class, or of another with the same attributes.
        original: from which it was built.

    Raises:
        ValueError: ``original`` was given a state to go on from, which is of other samplers than those of ``rebuilt``.
    """
    if state_to_take_up(original) is not None:
        raise ValueError(
            f"{original!r} was given a state by load_state_dict, which would be lost where another loader takes its "
            "place; call load_state_dict on that one"
        )
    ours = copy.copy(original)
    taken = vars(DataLoader(TensorDataset())).keys() - {"_iterator"}
    vars(ours).update({name: value for name, value in vars(rebuilt).items() if name in taken})
    return ours


def is_ours(loader: Any) -> bool:
    """Whether an object is a loader of ours, and not only says so of its class, as Accelerate's do."""
    return issubclass(type(loader), ShmDataLoader)
