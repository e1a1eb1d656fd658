"""Counts by name that nobody can change, and that are a dict all the same. Pure."""

from __future__ import annotations

from typing import Any, NoReturn


class Counts(dict[str, int]):
    """A dict that is filled when it is made.

    A dict, since `dataclasses.asdict`, `copy`, `pickle` and `json` know what to do with one; `types.MappingProxyType`
    is refused by all of them.
    """

    __slots__ = ()

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("figures cannot be changed")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return Counts, (dict(self),)
