"""Batches come out of a slot as they went in, whatever the same packer and unpacker had before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from shmloader.batches import unpacking
from shmloader.batches.packing import Packer
from shmloader.batches.tensors import Block
from shmloader.batches.unpacking import Unpacker
from shmloader.slots.pool import Pool
from shmloader.slots.writer import SlotWriter
from tests.helpers.packing import pack
from tests.helpers.samples import DTYPES, Draw, Make, schema, tensor, warn_once
from tests.helpers.support import assert_same


@pytest.fixture(autouse=True, scope="module")
def _torchs_warnings_are_over() -> None:
    warn_once()


class Way:
    """A batch's way through one slot."""

    def __init__(self) -> None:
        self._pool = pool = Pool(num_slots=3, in_flight=1, max_bytes=64 << 20)
        self._slot, self._room = pool.claim(b"")
        self._writer = SlotWriter(pool.arena, "")
        self._packer, self._unpacker = Packer(), Unpacker()

    def pack(self, batch: Any) -> tuple[Block, int, int]:
        self._writer.open(self._slot, self._room)
        made = pack(self._packer, batch, self._writer, self._slot, lambda need: self._pool.grant(self._slot, need) or 0)
        self._writer.close()
        end = made.tail_offset + made.tail_bytes
        return self._pool.arena.block(self._slot, end), made.tail_offset, made.tail_bytes

    def views(self, batch: Any) -> Any:
        return self._unpacker.views(*self.pack(batch))

    def copies(self, batch: Any) -> Any:
        return self._unpacker.copies(*self.pack(batch))


def of_any_shape(dtype: torch.dtype, axes: int) -> Make:
    return lambda draw: tensor(tuple(draw.choice([0, 1, 2, 3]) for _ in range(axes)), dtype)(draw)


def structures(draw: Draw) -> list[Callable[[list[Any]], Any]]:
    note = draw.choice(["a text", 3, None, b"bytes", (), 2.5])
    return [
        lambda parts: parts,
        tuple,
        lambda parts: parts[0],
        lambda parts: {"x": parts[0], "rest": parts[1:], "note": note},
        lambda parts: [parts[0], parts[0], *parts],  # one object in two places
        lambda parts: (parts, [(), [], {}], {1: tuple(parts), None: note}),
        lambda parts: [torch.nn.Parameter(parts[0]) if parts[0].is_floating_point() else 0, *parts[1:]],
        lambda parts: [*parts, np.arange(len(parts))],
        lambda parts: [torch.eye(len(parts)).to_sparse(), *parts],
    ]


@pytest.mark.parametrize("seed", range(10))
def test_batches_of_few_structures_and_many_shapes(seed: int) -> None:
    way, draw = Way(), Draw(seed)
    joins = [
        (draw.choice(structures(draw)), [of_any_shape(draw.choice(DTYPES), draw.randrange(4)) for _ in range(3)])
        for _ in range(4)
    ]
    for _ in range(60):
        join, parts = draw.choice(joins)
        batch = join([part(draw) for part in parts])
        assert_same(draw.choice([way.views, way.copies])(batch), batch)


@pytest.mark.parametrize("seed", range(10))
def test_batches_of_any_structure(seed: int) -> None:
    way, draw = Way(), Draw(seed)
    makers = [schema(draw, wild=False) for _ in range(6)]
    for _ in range(60):
        batch = [draw.choice(makers)(draw) for _ in range(draw.randrange(1, 4))]
        assert_same(draw.choice([way.views, way.copies])(batch), batch)


def test_batches_that_differ_in_shapes_are_unpickled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    way = Way()
    unpickled: list[bytes] = []
    plain = unpacking._plain
    monkeypatch.setattr(unpacking, "_plain", lambda skeleton: unpickled.append(skeleton) or plain(skeleton))  # type: ignore[func-returns-value]
    for length in range(1, 200):
        batch = {"ids": torch.full((4, length), length), "mask": torch.ones(4, length, dtype=torch.bool)}
        assert_same(way.views(batch), batch)
    assert len(unpickled) == 1


def test_tensors_in_the_slot_stay_there() -> None:
    way = Way()
    way._writer.open(way._slot, way._room)
    array = way._writer.array((4, 3), np.dtype(np.float32))
    assert array is not None
    array[:] = np.arange(12).reshape(4, 3)
    whole = torch.from_numpy(array)
    made = pack(way._packer, [whole, whole[1:, ::2]], way._writer, way._slot)
    offset, nbytes = made.tail_offset, made.tail_bytes
    ours = way._unpacker.views(way._pool.arena.block(way._slot, offset + nbytes), offset, nbytes)
    assert [one.data_ptr() for one in ours] == [whole.data_ptr(), whole[1:, ::2].data_ptr()]
    assert_same(ours, [whole, whole[1:, ::2]])
    way._writer.close()


@pytest.mark.parametrize("kind", ["array", "tensor"])
@pytest.mark.parametrize("dtype", ["uint8", "float64", "complex64"])
def test_nothing_is_copied_on_the_way_to_the_slot(kind: str, dtype: str) -> None:
    """What is written to an array once all is laid out comes along: no copy was made before there was room."""
    array = np.zeros((2000, 3), dtype)
    batch: dict[str, Any] = {
        "first": [array if kind == "array" else torch.from_numpy(array), "text"],
        "other": np.zeros(3),
    }
    pool = Pool(num_slots=3, in_flight=1, max_bytes=64 << 20)
    slot, room = pool.claim(b"")
    writer = SlotWriter(pool.arena, "")
    writer.open(slot, room)
    packer = Packer()
    packer.lay_out(batch, writer)
    array[:] = 1
    packed = packer.fill(writer)
    writer.close()
    block = pool.arena.block(slot, packed.tail_offset + len(packed.tail))
    got = Unpacker().copies(block, packed.tail_offset, len(packed.tail))
    assert_same(got["first"][0], batch["first"][0])
