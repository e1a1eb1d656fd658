"""How errors and warnings call what a user of one of the front doors knows: things, and knobs that exist there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Words(NamedTuple):
    """The words of one front door.

    Attributes:
        owner: what workers belong to.
        made: what they are asked for.
        job: what they make it of; empty where nothing is sent.
        maker: the argument that returns it, or fills slots with it.
        one: what lies in a slot and is held by the consumer, with its article.
        many: the same, more than one.
        fewer: the knobs that the number of slots follows from.
        less: those that lower what is in memory at a time; ``max_pool_bytes`` and ``num_workers`` are there always.
        smaller: how what lies in a slot becomes smaller.
        is_named: whether ``owner`` has a name that tells it from others of its kind.
    """

    owner: str
    made: str
    job: str
    maker: str
    one: str
    many: str
    fewer: tuple[str, ...]
    less: tuple[str, ...]
    smaller: str
    is_named: bool = False


LOADER = Words(
    owner="DataLoader",
    made="batch",
    job="indices",
    maker="collate_fn",
    one="a batch",
    many="batches",
    fewer=("num_slots", "prefetch_factor", "num_workers"),
    less=("prefetch_factor", "batch_size"),
    smaller="make batches smaller",
)
PRODUCER = Words(
    owner="Producer",
    made="item",
    job="",
    maker="target",
    one="an item",
    many="items",
    fewer=("num_slots", "num_workers"),
    less=("num_slots",),
    smaller="make items smaller",
)
QUEUE = Words(
    owner="JobQueue",
    made="job",
    job="arguments",
    maker="function",
    one="a result",
    many="results",
    fewer=("num_slots", "prefetch_factor", "num_workers"),
    less=("prefetch_factor",),
    smaller="return smaller results",
)


def named(words: Words, name: str | None) -> Words:
    """Returns the words of one that its user has given a name: DataLoader 'train'."""
    return words if name is None else words._replace(owner=f"{words.owner} {name!r}", is_named=True)


def alternatives(knobs: Sequence[str]) -> str:
    """Returns knobs as text: ``a, b or c``."""
    *others, last = knobs
    return f"{', '.join(others)} or {last}" if others else last
