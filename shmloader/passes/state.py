"""A loader's state as a dict of what JSON has: made, read, and compared with the loader that it is given to. Pure.

Bytes are written in base64. What a user's ``state_dict`` has returned stays as it is, if JSON gives it back as it was;
else it is pickled, and written so.
"""

from __future__ import annotations

import base64
import binascii
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .progress import Place, WorkerPlace

VERSION = 1
_VERSION_NAME = "shmloader"
_PICKLED = "pickled"
_MOST_BATCHES = 1 << 62
_MOST_SEEDS = 1 << 63  # torch draws them as int64, and takes no larger ones
_MOST_BITS = 1 << 10  # of an int as JSON: Python reads none of many thousand digits


@dataclass
class State:
    """What a loader's state says.

    Attributes:
        loader: what the loader has to be, by the names of its arguments.
        num_workers: how many workers there were.
        worker_type: what they were.
        phase: "before" a pass, "within" one, or "after" its end.
        is_first: whether the pass was its iterator's first, which is so but for persistent workers.
        base_seed: the workers' base seed; None where there were none.
        shared_seed: what an IterDataPipe was shuffled by.
        place: where the loop was when all that this holds was so.
        since: how many batches it was given since.
        sampler: what `Sampling.state` returned.
        data: the states of a dataset that is read in the loop's process, pickled.
        epoch: the number of the pass.
        sample_seed: what samples are seeded by in all passes; None: it is not drawn.
        given: how many batches a pass of ``epoch_size`` has given; None where none is under way.
    """

    loader: dict[str, Any]
    num_workers: int
    worker_type: str
    phase: str = "before"
    is_first: bool = True
    base_seed: int | None = None
    shared_seed: int | None = None
    place: Place = None  # type: ignore[assignment]
    since: int = 0
    sampler: dict[str, Any] | None = None
    data: bytes | None = None
    epoch: int = 0
    sample_seed: int | None = None
    given: int | None = None


def to_dict(state: State) -> dict[str, Any]:
    """Returns a state as dicts, lists, strings, numbers and None."""
    place = state.place
    return {
        _VERSION_NAME: VERSION,
        "loader": dict(state.loader),
        "num_workers": state.num_workers,
        "worker_type": state.worker_type,
        "phase": state.phase,
        "is_first": state.is_first,
        "base_seed": state.base_seed,
        "shared_seed": state.shared_seed,
        "epoch": state.epoch,
        "sample_seed": state.sample_seed,
        "given_of_epoch_size": state.given,
        "batches": place.batches,
        "beyond": sorted(place.beyond),
        "given": place.given,
        "since": state.since,
        "turn": place.turn,
        "sampler": _sampler_to(state.sampler),
        "data": _states_to(state.data),
        "workers": [_worker_to(worker) for worker in place.workers],
    }


def from_dict(state: Mapping[str, Any]) -> State:
    """Reads what `to_dict` has returned.

    Raises:
        TypeError: it is no dict.
        ValueError: it is no state of this loader's, of another version, or something in it cannot be; the text says
            what.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"the state must be a dict, and is of type {type(state).__qualname__}")
    if _VERSION_NAME not in state:
        raise ValueError(f"the state is of no ShmDataLoader: it has no {_VERSION_NAME!r}")
    if state[_VERSION_NAME] != VERSION:
        raise ValueError(f"the state is of version {state[_VERSION_NAME]!r}, and this ShmDataLoader's are {VERSION}")
    try:
        return _read(state)
    except KeyError as error:
        raise ValueError(f"the state has no {error}") from None
    except (AttributeError, EOFError, TypeError, binascii.Error, pickle.UnpicklingError) as error:
        raise ValueError(f"the state is damaged: {error}") from error


def _read(state: Mapping[str, Any]) -> State:
    workers = [_worker_from(worker) for worker in state["workers"]]
    place = Place(
        _count(state, "batches"),
        {int(number) for number in state["beyond"]},
        _count(state, "given"),
        _count(state, "turn"),
        workers,
    )
    if state["phase"] not in ("before", "within", "after"):
        raise ValueError(f"the state's phase is {state['phase']!r}")
    if workers and len(workers) != state["num_workers"]:
        raise ValueError(f"the state is of {state['num_workers']} workers, and has {len(workers)}")
    return State(
        loader=dict(state["loader"]),
        num_workers=_count(state, "num_workers"),
        worker_type=str(state["worker_type"]),
        phase=state["phase"],
        is_first=bool(state["is_first"]),
        base_seed=_seed_or_none(state, "base_seed"),
        shared_seed=_seed_or_none(state, "shared_seed"),
        place=place,
        since=_count(state, "since"),
        sampler=_sampler_from(state["sampler"]),
        data=_states_from(state["data"]),
        epoch=_count(state, "epoch"),
        sample_seed=_seed_or_none(state, "sample_seed"),
        given=None if state["given_of_epoch_size"] is None else _count(state, "given_of_epoch_size"),
    )


def check_loader(state: State, loader: Mapping[str, Any]) -> None:
    """Compares what a state is of with a loader.

    Raises:
        ValueError: something differs that decides which samples come in which batch.
    """
    for name, ours in loader.items():
        theirs = state.loader.get(name)
        if theirs != ours:
            raise ValueError(f"the state does not fit: its {name} is {theirs!r}, and this loader's is {ours!r}")


def _count(state: Mapping[str, Any], name: str) -> int:
    value = state[name]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST_BATCHES:
        raise ValueError(f"the state's {name} is {value!r}")
    return value


def _seed_or_none(state: Mapping[str, Any], name: str) -> int | None:
    value = state[name]
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MOST_SEEDS):
        raise ValueError(f"the state's {name} is {value!r}")
    return value


def _worker_to(worker: WorkerPlace) -> dict[str, Any]:
    return {
        "batches": worker.batches,
        "at_begin": _text(worker.at_begin),
        "generators": _text(worker.generators),
        "data": _states_to(worker.data),
        "is_over": worker.is_over,
        "has_lost": worker.has_lost,
    }


def _worker_from(worker: Mapping[str, Any]) -> WorkerPlace:
    batches = _count(worker, "batches")
    return WorkerPlace(
        batches,
        _bytes(worker["at_begin"]),
        _bytes(worker["generators"]),
        _states_from(worker["data"]),
        batches,
        bool(worker["is_over"]),
        bool(worker["has_lost"]),
    )


def _sampler_to(sampler: dict[str, Any] | None) -> dict[str, Any] | None:
    if sampler is None:
        return None
    start = dict(sampler["start"])
    start["generators"] = {name: _text(state) for name, state in start["generators"].items()}
    if "global" in start:
        start["global"] = _text(start["global"])
    return {"start": start, "drawn": sampler["drawn"], "states": _states_to(sampler["states"])}


def _sampler_from(sampler: Mapping[str, Any]) -> dict[str, Any]:
    start = dict(sampler["start"])
    start["generators"] = {name: _bytes(state) for name, state in start["generators"].items()}
    if "global" in start:
        start["global"] = _bytes(start["global"])
    return {"start": start, "drawn": _count(sampler, "drawn"), "states": _states_from(sampler["states"])}


def _text(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text, validate=True)


def _states_to(data: bytes | None) -> list[Any] | None:
    """Returns pickled states of a user's, each as it is or pickled."""
    if data is None:
        return None
    return [one if _survives(one) else {_PICKLED: _text(pickle.dumps(one, 5))} for one in pickle.loads(data)]


def _states_from(states: list[Any] | None) -> bytes | None:
    if states is None:
        return None
    return pickle.dumps(tuple(map(_state_from, states)), 5)


def _state_from(one: Any) -> Any:
    if isinstance(one, dict) and one.keys() == {_PICKLED}:
        return pickle.loads(_bytes(one[_PICKLED]) or b"")
    return one


def _survives(value: Any) -> bool:
    try:
        return _is_plain(value)
    except RecursionError:  # a part of it is the whole
        return False


def _is_plain(value: Any) -> bool:
    """Whether JSON gives back just this."""
    if type(value) is dict:
        is_marked = value.keys() == {_PICKLED}
        return not is_marked and all(type(key) is str and _is_plain(one) for key, one in value.items())
    if type(value) is list:
        return all(map(_is_plain, value))
    if type(value) is int:
        return value.bit_length() <= _MOST_BITS
    return value is None or type(value) in (str, bool) or (type(value) is float and value - value == 0)
