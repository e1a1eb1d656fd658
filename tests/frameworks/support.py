"""What the tests of frameworks share: a dataset that tells who reads it, scripts run by one rank or more."""

from __future__ import annotations

import hashlib
import inspect
import json
import multiprocessing
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from shmloader import ShmDataLoader
from tests.helpers.keeping import lies_in_a_slot
from tests.helpers.support import OWN_ARGUMENTS, PATIENCE, assert_same, seed_everything


class Traced(Dataset[Any]):
    """Each index, with the name of the module whose function the process runs that reads it."""

    def __len__(self) -> int:
        return 18

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        target = getattr(multiprocessing.current_process(), "_target", None)
        return torch.tensor(index), getattr(target, "__module__", "no worker")


def readers(batches: Iterable[Any]) -> set[str]:
    """Returns who read the samples."""
    return {reader for _, names in batches for reader in names}


def indices(batches: Iterable[Any]) -> list[list[int]]:
    """Returns the indices of each batch."""
    return [numbers.tolist() for numbers, _ in batches]


def our_indices(batches: Iterable[Any]) -> list[list[int]]:
    """Returns the indices of each batch, and asserts that our workers read the samples."""
    batches = list(batches)
    assert readers(batches) == {"shmloader.workers.processes.main"}
    return indices(batches)


def share(rank: int, epoch: int, ranks: int = 2) -> list[list[int]]:
    """Returns the batches of indices that a rank gets from torch's loader."""
    sampler: DistributedSampler[Any] = DistributedSampler(Traced(), ranks, rank)
    sampler.set_epoch(epoch)
    return indices(DataLoader(Traced(), batch_size=4, sampler=sampler))


def flat(batches: Iterable[list[int]]) -> list[int]:
    return [index for batch in batches for index in batch]


OURS: dict[str, Any] = {
    "sample_shapes": ((), None),
    "sample_dtypes": (torch.int64, None),
    "max_pool_bytes": 1 << 25,
    "num_slots": 11,
    "worker_restarts": 2,
    "device": "cpu",
    "device_prefetch": 3,
    "worker_type": "process",
    "seeding": "sample",
    "epoch_size": None,
}


def given_or_default(given: dict[str, Any]) -> dict[str, Any]:
    defaults = inspect.signature(ShmDataLoader.__init__).parameters
    return {name: given.get(name, defaults[name].default) for name in OWN_ARGUMENTS}


def own_arguments(loader: Any) -> dict[str, Any]:
    return {name: getattr(loader, name) for name in OWN_ARGUMENTS}


# Said in time, before the script is ended.
WHERE_IT_HANGS = "import faulthandler\nfaulthandler.dump_traceback_later({})\n"


TORCHRUN = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"


def run_ranks(
    code: str,
    folder: Path,
    ranks: int,
    patience: float = PATIENCE,
    launcher: Sequence[str] | None = None,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> list[Any]:
    """Runs a script, and returns what each rank told.

    Args:
        code: the script's; its first argument is the folder.
        folder: where it is written, and tells.
        ranks: how many of them tell something.
        patience: seconds, after which it is ended.
        launcher: Python's arguments before the script; None: torchrun's if there is more than one rank.
        variables: of the environment, beside those of this process.
    """
    script = folder / "script.py"
    script.write_text(WHERE_IT_HANGS.format(0.8 * patience) + textwrap.dedent(code))
    if launcher is None:
        launcher = [*TORCHRUN, str(ranks)] if ranks > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    with subprocess.Popen(
        [sys.executable, *launcher, script, folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    ) as process:
        try:
            output, _ = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun then ends its ranks; killed, it would leave them
            output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "Exception ignored" not in output, output
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


def tell(result: Any) -> None:
    """Called in a script: leaves a result for the test that runs it."""
    Path(sys.argv[1], f"{os.environ.get('RANK', 0)}.json").write_text(json.dumps(result))


def needs(module: str, what: str = "of the extra named frameworks") -> pytest.MarkDecorator:
    """Skips a test whose framework, which only its scripts import, is not installed."""
    return pytest.mark.skipif(find_spec(module) is None, reason=f"needs {module}, {what}")


def imports(module: str, variables: Mapping[str, str] = MappingProxyType({})) -> None:
    """Skips the test that is running if a module cannot be imported, whatever the reason: it may not fit to torch.

    Args:
        module: its name.
        variables: of the environment, beside those of this process.
    """
    command, environment = [sys.executable, "-c", f"import {module}"], {**os.environ, **variables}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, env=environment)
    if ended.returncode:
        pytest.skip(f"{module} cannot be imported: {ended.stderr.strip().splitlines()[-1:]}")


def digest(tensor: torch.Tensor) -> str:
    """Called in a script: returns what differs where a tensor's bytes do."""
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def by_either(library: str, code: str) -> str:
    """Makes a script that loads with a library's loader and with a class that inherits from that and from ours.

    Args:
        library: the module whose ``DataLoader`` it is.
        code: defines ``make_loader(kind)`` and ``assert_usable(batch)``.
    """
    main = f"""
        from {library} import DataLoader
        from shmloader import ShmDataLoader
        from tests.helpers.keeping import lies_in_a_slot
        from tests.helpers.support import assert_same
        from tests.frameworks.support import tell, tensors_of

        class Loader(DataLoader, ShmDataLoader):
            pass

        def load(kind):
            seed(5)
            iterator = iter(make_loader(kind))
            return iterator, type(iterator).__module__.split(".")[0], list(iterator)

        def main():
            (_, stock_module, expected), (iterator, module, got) = load(DataLoader), load(Loader)
            for batch in got:
                assert lies_in_a_slot(max(tensors_of(comparable(batch)), key=lambda tensor: tensor.nbytes), iterator)
                assert_usable(batch)
            for one, other in zip(got, expected, strict=True):
                assert_same(comparable(one), comparable(other))
            restarts = Loader(range(8), num_workers=1, worker_restarts=3).worker_restarts
            tell([stock_module, module, len(got), restarts])

        main()
    """
    return textwrap.dedent(code) + textwrap.dedent(main)


# Parts that are smaller may have memory of their own.
_LARGE_BYTES = 1 << 14


def tensors_of(part: Any) -> list[torch.Tensor]:
    """Returns the tensors in a batch: in lists, tuples, mappings, and what has ``to_dict``."""
    if isinstance(part, torch.Tensor):
        return [part]
    if isinstance(part, Mapping):
        part = list(part.values())
    elif hasattr(part, "to_dict"):
        return tensors_of(part.to_dict())
    return [tensor for one in part for tensor in tensors_of(one)] if isinstance(part, (list, tuple)) else []


def compared(make_loader: Callable[[Any], Any], comparable: Callable[[Any], Any], passes: int = 1) -> list[int]:
    """Called in a script: loads with torch's loader and with ours, compares the batches, and where they lie.

    Args:
        make_loader: makes a loader of the class that it is given, in one state of the random generators.
        comparable: returns what is compared of a batch.
        passes: how many passes are compared, over the loaders that were made first.

    Returns:
        How many batches of ours there were, and how many large tensors in them, all of which lay in a slot.
    """
    seed_everything(5)
    stock = make_loader(DataLoader)
    expected = [[comparable(batch) for batch in stock] for _ in range(passes)]
    del stock
    seed_everything(5)
    ours, batches, large = make_loader(ShmDataLoader), 0, 0
    for each in expected:
        iterator = iter(ours)
        assert type(iterator).__module__.startswith("shmloader.")
        wanted = iter(each)
        for batch in iterator:
            assert_same(comparable(batch), next(wanted))
            found = [one for one in tensors_of(batch) if one.untyped_storage().nbytes() >= _LARGE_BYTES]
            assert all(lies_in_a_slot(one, iterator) for one in found)
            batches, large = batches + 1, large + len(found)
        assert next(wanted, None) is None
    assert ours.statistics().copies == 0
    return [batches, large]


# Behind a script that defines ``main`` and knows nothing of this library: runs it as it is, and once more under patch.
PATCHED = """
    if __name__ == "__main__":
        import shmloader
        from tests.frameworks.support import tell

        plain = main()
        with shmloader.patch():
            tell([plain, main()])
"""
STOCKS, OUR = 1, 2


class Numbers(Dataset[Any]):
    """Dicts of numbers: an index, what was drawn for it, a label, and who read it: `STOCKS` or `OUR` workers, or 0."""

    def __init__(self, length: int = 22) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        module = getattr(getattr(multiprocessing.current_process(), "_target", None), "__module__", "")
        reader = {"torch": STOCKS, "shmloader": OUR}.get(module.partition(".")[0], 0)
        drawn = torch.rand(2)
        return {"x": drawn, "index": torch.tensor(index), "labels": drawn.sum(), "reader": torch.tensor(reader)}


class Seeing(torch.nn.Module):
    """A network of one layer that notes what it is given.

    Attributes:
        seen: the indices of each batch, and what was drawn for them.
        readers: who has read the samples.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.seen: list[Any] = []
        self.readers: set[int] = set()

    def forward(self, x: Any, index: Any, labels: Any, reader: Any) -> dict[str, Any]:
        self.seen.append([index.tolist(), x.tolist()])
        self.readers |= set(reader.tolist())
        out = self.layer(x.float()).squeeze(-1)
        return {"loss": ((out - labels) ** 2).mean(), "logits": out}

    def told(self) -> list[Any]:
        """Returns who has read, and what was seen and learned."""
        return [sorted(self.readers), self.seen, [one.tolist() for one in self.parameters()]]


class Pairs(Numbers):
    """The same with the label beside each dict, as skorch wants it."""

    def __getitem__(self, index: int) -> Any:
        sample = super().__getitem__(index)
        return sample, sample["labels"]


class Logits(Seeing):
    """The same network, of which only the logits are returned."""

    def forward(self, x: Any, index: Any, labels: Any, reader: Any) -> Any:
        return super().forward(x, index, labels, reader)["logits"]


def assert_patched(told: list[Any]) -> None:
    """Asserts that a script saw and learned the same both times, from stock's workers and then from ours."""
    (plain_readers, *plain), (patched_readers, *patched) = told
    assert (plain_readers, patched_readers) == ([STOCKS], [OUR])
    assert patched == plain
    assert plain[0]
