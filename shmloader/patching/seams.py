"""Functions of torch's classes, replaced and put back. Knows nothing of what they are replaced by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from shmloader.torch_private import COMPILER_MARK

# Makes a function that takes another one's place, of that one, and of a question: whether it is to do so.
Maker = Callable[[Callable[..., Any], Callable[[], bool]], Callable[..., Any]]


class Seam(NamedTuple):
    """What is replaced.

    Attributes:
        owner: a class.
        name: of its function.
        make: makes what takes its place.
    """

    owner: type
    name: str
    make: Maker


class Seams:
    """Replaced functions. Made, they are in place.

    Others may replace the same functions: before, then theirs are called by ours; or afterwards, so that theirs call
    ours. Then ours cannot be taken out, and from the end on they do nothing but call what was there before. So each
    installation has functions of its own: one that was left in such a chain is never put in front of it again.

    Args:
        seams: what is replaced.
    """

    def __init__(self, *seams: Seam) -> None:
        self._is_on = True
        self._placed: list[tuple[Seam, Any, Any]] = []
        for seam in seams:
            original = vars(seam.owner)[seam.name]
            ours = seam.make(original, lambda: self._is_on)
            setattr(ours, COMPILER_MARK, True)  # torch.compile follows no call of ours; see `torch_compile`
            setattr(seam.owner, seam.name, ours)
            self._placed.append((seam, original, ours))

    def remove(self) -> None:
        """Puts back what was there. Safe to call again."""
        self._is_on = False
        while self._placed:
            seam, original, ours = self._placed.pop()
            if vars(seam.owner)[seam.name] is ours:
                setattr(seam.owner, seam.name, original)
