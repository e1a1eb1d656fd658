"""A set that does not hold its members, and runs no Python code when one of them is dropped.

`weakref.WeakSet` has a callback in Python. A Ctrl-C that comes while a callback runs is printed and forgotten, so a
loop would go on that drops an iterator then.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

Member = TypeVar("Member")


class WeakMembers(Generic[Member]):
    """Objects that are hashable, each as long as somebody else holds it. Safe from several threads.

    Args:
        members: those to begin with.
    """

    def __init__(self, members: Iterable[Member] = ()) -> None:
        self._members: set[weakref.ref[Member]] = set()
        for member in members:
            self.add(member)

    def add(self, member: Member) -> None:
        """Adds a member, where it is none yet."""
        self._members.add(weakref.ref(member, self._members.discard))

    def clear(self) -> None:
        """Forgets all members."""
        self._members.clear()

    def __contains__(self, member: object) -> bool:
        return weakref.ref(member) in self._members

    def __iter__(self) -> Iterator[Member]:
        """Yields those that are members now."""
        for one in list(self._members):
            if (member := one()) is not None:
                yield member
