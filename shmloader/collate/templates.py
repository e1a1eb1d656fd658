"""Templates: where the parts of a batch will lie in its slot, known before the batch is made. Runs in a worker.

Batches that the default collate function makes of alike samples differ in nothing but their elements: their tensors lie
at the same places, and their skeleton is the same. So the first of them is made and packed as any batch is, and
whatever made it can then write the elements of all others to where they belong. No tensor is made for them, and nothing
is pickled.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch

from shmloader.batches.packing import Packed
from shmloader.batches.place import Place, arrays_over
from shmloader.batches.structure import leaves
from shmloader.batches.tensors import Array, is_dense
from shmloader.slots.writer import SlotWriter

# Where batches are alike, there are few templates; where they are not, a few are as good as many.
_MAX_KNOWN = 64

# A plain loop uses the slots of batches under way, and two more.
_MAX_SLOTS = 64


@dataclass(slots=True, eq=False)
class Template:
    """A batch but for its elements. It stands for the batch, once these are written.

    Attributes:
        places: of its tensors, in the order of the batch.
        end: where the last of them ends.
        tail_offset: where the tail lies.
        tail: what `packing` puts there.
        arrays: the places as arrays, in the slots that batches were written to so far.
    """

    places: list[Place]
    end: int
    tail_offset: int
    tail: bytes
    arrays: dict[int, list[Array]] = field(default_factory=dict)

    @property
    def room(self) -> int:
        """Bytes of a slot that the batch takes."""
        return self.tail_offset + len(self.tail)


class Templates:
    """The templates of batches that were made so far, by what is known of a batch before it is made.

    Args:
        writer: where batches go.
    """

    def __init__(self, writer: SlotWriter) -> None:
        self._writer = writer
        self._known: dict[Hashable, Template] = {}
        self._wanted: Hashable = None

    def find(self, key: Hashable) -> Template | None:
        """Returns the template of batches with this key. If there is none yet, the next batch that is learned has it.

        Args:
            key: determines structure, shapes and dtypes of a batch; None: nothing does.
        """
        found = self._known.get(key)
        self._wanted = key if found is None else None
        return found

    def lend(self, template: Template) -> list[Array] | None:
        """Returns the places of a batch's tensors in the slot that is open, for user code to fill, which may hold them.

        None where that has no room for the batch, or is not lent.
        """
        block = self._writer.lend(template.end, template.room)
        return None if block is None else arrays_over(template.places, block)

    def arrays(self, template: Template) -> list[Array] | None:
        """Returns the places of a batch's tensors in the slot that is open, to be filled and not to be held.

        They are the same arrays for each batch in that slot: making new ones for many small tensors takes as long as
        filling them. None where the slot has no room for the batch.
        """
        slot = self._writer.lay_out(template.end, template.room)
        if slot is None:
            return None
        found = template.arrays.get(slot)
        if found is None:
            if len(template.arrays) >= _MAX_SLOTS:
                template.arrays.clear()
            found = template.arrays[slot] = arrays_over(template.places, self._writer.view(0, template.end))
        return found

    def forget(self) -> None:
        """Forgets all of them: samples of another pass may be others."""
        self._known.clear()
        self._wanted = None

    @property
    def is_wanted(self) -> bool:
        """Whether the batch that is being made should be learned."""
        return self._wanted is not None

    def learn(self, batch: Any, packed: Packed) -> None:
        """Learns the template of a batch that was packed, if all that there is to it are dense tensors.

        What they are follows from the key only if our own functions made them, in the slot: of samples that are not
        alike torch's function makes other tensors.
        """
        if not packed.is_in_place:
            return
        tensors = list(leaves(batch))
        places = packed.places
        if len(tensors) != len(places) or not all(isinstance(one, torch.Tensor) and is_dense(one) for one in tensors):
            return
        if not places or any(place.stride is not None or not place.nbytes for place in places):
            return
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        end = max(place.offset + place.nbytes for place in places)
        self._known[self._wanted] = Template(places, end, packed.tail_offset, packed.tail)
