"""What a loop may keep of a batch, and what it may do to the batch before and after."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import random
from collections import deque
from collections.abc import Callable
from multiprocessing import resource_sharer
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch

from shmloader import ShmDataLoader
from shmloader.slots.arena import Arena
from tests.helpers.support import bits, mappings, tensors_in


class Echo:
    """A process that is sent things, and sends them back. It is there from the first thing on."""

    def __init__(self) -> None:
        self._context = torch.multiprocessing.get_context("fork")
        self._process: Any = None
        self._outbox: Any = None
        self._inbox: Any = None

    def start(self) -> None:
        """Starts the process, at a time at which no thread is in the middle of something."""
        self._outbox, self._inbox = self._context.SimpleQueue(), self._context.SimpleQueue()
        self._process = self._context.Process(target=_send_back, args=(self._outbox, self._inbox))
        self._process.start()

    def __call__(self, thing: Any) -> Any:
        self._outbox.put(ForkingPickler.dumps(thing).tobytes())
        return ForkingPickler.loads(self._inbox.get())

    def close(self) -> None:
        if self._process is not None:
            self._outbox.put(None)
            self._process.join()
            self._process.close()
            for each in (self._outbox, self._inbox):
                each.close()
        resource_sharer.stop()  # the thread that passes descriptors on


def _send_back(inbox: Any, outbox: Any) -> None:
    # So that the other side's end, whatever it is, ends this.
    inbox._writer.close()
    outbox._reader.close()
    kept = None
    while (data := _next(inbox)) is not None:
        try:
            kept = ForkingPickler.loads(data)  # until the next one, since the other side has to fetch it
            answer = ForkingPickler.dumps(kept).tobytes()
        except Exception as error:
            answer = ForkingPickler.dumps(repr(error)).tobytes()
        outbox.put(answer)
    resource_sharer.stop()


def _next(inbox: Any) -> Any:
    try:
        return inbox.get()
    except EOFError:
        return None


# -- what is kept ------------------------------------------------------------------------------------------------------

CHOICES: dict[str, Callable[[list[torch.Tensor]], list[torch.Tensor]]] = {
    "all": lambda tensors: tensors,
    "the smallest": lambda tensors: sorted(tensors, key=_size)[:1],
    "the largest": lambda tensors: sorted(tensors, key=_size)[-1:],
}
PARTS: dict[str, Callable[[torch.Tensor], Any]] = {
    "all": lambda tensor: tensor,
    "a slice": lambda tensor: tensor[1:],
    "a row": lambda tensor: tensor[-1],
    "every other": lambda tensor: tensor[::2],
    "as bytes": lambda tensor: tensor.view(torch.uint8),
}
FORMS: dict[str, Callable[[Any], Any]] = {
    "a tensor": lambda part: part,
    "data": lambda part: part.data,
    "detached": lambda part: part.detach(),
    "an array": lambda part: part.numpy(),
    "a slice of an array": lambda part: part.numpy()[1:],
    "a memoryview": lambda part: part.numpy().data,
    "torch's DLPack": lambda part: torch.utils.dlpack.from_dlpack(part),
    "numpy's DLPack": lambda part: np.from_dlpack(part),
    "an array of DLPack's": lambda part: torch.utils.dlpack.from_dlpack(part).numpy(),
}
_Move = Callable[[Any, list[torch.Tensor], Echo], Any]
# What is done to a batch or to its tensors. They move where they are, and what was made of them before stays.
MOVES: dict[str, _Move] = {
    "nothing": lambda batch, tensors, echo: None,
    "shared": lambda batch, tensors, echo: [tensor.share_memory_() for tensor in tensors] and None,
    "a slice shared": lambda batch, tensors, echo: [tensor[1:].share_memory_() for tensor in tensors] and None,
    "pickled": lambda batch, tensors, echo: ForkingPickler.dumps(batch) and None,
    "pickled and loaded": lambda batch, tensors, echo: ForkingPickler.loads(ForkingPickler.dumps(batch)),
    "sent and back": lambda batch, tensors, echo: echo(batch),
}


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size() if tensor.layout is torch.strided and not tensor.is_nested else 0


@dataclasses.dataclass(frozen=True)
class Habit:
    """What is kept: names of the above, and whether it is made before the batch is moved."""

    choice: str
    part: str
    form: str
    move: str
    before: bool

    def keep(self, batch: Any, echo: Echo) -> Kept:
        """Returns what this keeps of a batch, which nothing else in it holds."""
        tensors = list(tensors_in(batch))
        kept: list[Any] = []
        if self.before:
            kept += [self._of(tensor) for tensor in CHOICES[self.choice](tensors)]
        moved = None
        with contextlib.suppress(Exception):  # of a sparse tensor, say
            moved = MOVES[self.move](batch, tensors, echo)
        if not self.before:
            kept += [self._of(tensor) for tensor in CHOICES[self.choice](tensors)]
        kept += [self._of(tensor) for tensor in CHOICES[self.choice](list(tensors_in(moved)))]
        return Kept(kept)

    def _of(self, tensor: torch.Tensor) -> Any:
        try:
            return FORMS[self.form](PARTS[self.part](tensor))
        except Exception as error:
            return type(error).__name__


class Kept:
    """Things that a loop keeps of a batch."""

    def __init__(self, things: list[Any]) -> None:
        self._things = things

    def contents(self) -> list[Any]:
        """Returns what they hold now."""
        return [_content(thing) for thing in self._things]


def _content(thing: Any) -> Any:
    if isinstance(thing, torch.Tensor):
        if thing.layout is not torch.strided or thing.is_nested or thing.is_meta:
            return str(thing.layout)
        # A copy, since a tensor of one element may have a stride with which it cannot be seen as bytes.
        return tuple(thing.shape), thing.dtype, bits(thing.detach().clone(memory_format=torch.contiguous_format))
    if isinstance(thing, (np.ndarray, memoryview)):
        return tuple(thing.shape or ()), thing.tobytes()
    return thing


def random_habit(draw: random.Random, is_shared: bool) -> Habit:
    """Returns one at random.

    Args:
        draw: a scenario's choices.
        is_shared: whether stock's batches are shared memory. Else torch moves them too, and frees where they were.
    """
    choice, part, form, move = (draw.choice(list(table)) for table in (CHOICES, PARTS, FORMS, MOVES))
    return Habit(choice, part, form, move, before=draw.random() < 0.5 and is_shared)


def all_habits() -> list[Habit]:
    """Returns all of them, but for those that only a batch of several tensors tells apart."""
    return [Habit("all", *names) for names in itertools.product(PARTS, FORMS, MOVES, (False, True))]


# -- what a loop of one shape of batch keeps ---------------------------------------------------------------------------


def _in_a_cycle(batch: Any) -> list[Any]:
    box = [batch]
    box.append(box)
    return box


KEEPERS: dict[str, Callable[[list[torch.Tensor]], Any]] = {
    "the batch": lambda batch: batch,
    "one tensor": lambda batch: batch[0],
    "a slice": lambda batch: batch[0][1:, 2:],
    "a row": lambda batch: batch[0][3],
    "an array": lambda batch: batch[0].numpy(),
    "a slice of an array": lambda batch: batch[0].numpy()[2:, ::2],
    "a memoryview": lambda batch: batch[0].numpy().data,
    "a dlpack capsule's tensor": lambda batch: torch.utils.dlpack.from_dlpack(batch[0]),
    "an array by dlpack": lambda batch: np.from_dlpack(batch[0]),
    "detached": lambda batch: batch[0].detach(),
    "data": lambda batch: batch[0].data,
    "storage": lambda batch: batch[0].untyped_storage(),
    "other dtype's view": lambda batch: batch[1].view(torch.uint8),
    "a graph": lambda batch: (batch[0].float() * torch.ones(5, 7, requires_grad=True)).sum(),
    "expanded": lambda batch: batch[1].expand(3, 4),
    "in a cycle": lambda batch: _in_a_cycle(batch),
    "unsqueezed under inference": lambda batch: torch.inference_mode()(lambda: batch[0][None])(),
}


def _bytes_of(kept: Any) -> bytes:
    if isinstance(kept, list):
        return _bytes_of(kept[0])
    if isinstance(kept, torch.UntypedStorage):
        return bytes(kept.tolist())
    if isinstance(kept, torch.Tensor):
        return kept.detach().contiguous().numpy().tobytes()
    return bytes(kept) if isinstance(kept, memoryview) else bytes(kept.tobytes())


def expect_to_stay(keep: Callable[[list[torch.Tensor]], Any], make_loader: Callable[[], ShmDataLoader[Any]]) -> None:
    """Makes sure that what is kept of the last batches stays as it was, also when the loader is gone, and no longer.

    Args:
        keep: one of `KEEPERS`.
        make_loader: makes a loader of batches of images of 5 x 7, and labels. Made here, since a caller's argument is
            held by the caller.
    """
    kept: deque[tuple[Any, bytes]] = deque(maxlen=5)
    loader = make_loader()
    for batch in loader:
        kept.append((thing := keep(batch), _bytes_of(thing)))
        del batch, thing
        for held, before in kept:
            assert _bytes_of(held) == before
    held_at_the_end = list(kept)
    del loader
    gc.collect()
    for held, before in held_at_the_end:
        assert _bytes_of(held) == before
    del held, held_at_the_end
    kept.clear()
    gc.collect()
    assert mappings() == 0


def lies_in_a_slot(tensor: torch.Tensor, iterator: Any) -> bool:
    """Whether a tensor's elements are in the arena of a loader's iterator."""
    arena: Arena = iterator._pool.arena
    return arena.address <= tensor.data_ptr() < arena.address + arena.start(arena.slots)


def expect_views_of_few_slots(loader: ShmDataLoader[Any]) -> None:
    """Makes sure that a plain loop is lent all batches, in slots that are used again and again.

    Args:
        loader: of 100 batches of images and labels, with two workers.
    """
    iterator = iter(loader)
    addresses = set()
    for images, labels in iterator:
        assert lies_in_a_slot(images, iterator)
        assert lies_in_a_slot(labels, iterator)
        addresses.add(images.data_ptr())
    statistics = loader.statistics()
    assert statistics is not None
    assert (statistics.batches, statistics.copies) == (100, 0)
    # Four in flight, the loop's own, and the one before it while the next is taken.
    assert len(addresses) <= 6
