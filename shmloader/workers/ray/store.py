"""What a loader has in Ray's object store: what its workers are given, put there once."""

from __future__ import annotations

import contextlib
from typing import Any

from shmloader.errors import same_kind


class SentParts:
    """The parts of a loader that its workers are given, as they were sent last. It lives as long as the loader.

    A pass that starts workers sends them what there is then: what was changed since has to be seen, as it is by a
    process that is forked. So each pass pickles the parts and compares the bytes with those in the store, which is
    quick beside sending them. They are sent anew only where they differ.

    Memory: the store of this process's node has the parts until the loader is gone, and each node that has workers.
    """

    def __init__(self) -> None:
        self._session: object = None
        self._ref: Any = None

    def __reduce__(self) -> tuple[type[SentParts], tuple[()]]:
        return SentParts, ()

    def send(self, parts: dict[str, Any], session: object) -> Any:
        """Returns the reference of an object of Ray's that `parcel.unpack` makes the parts of.

        Blocks while they are pickled, and copied to the store.

        Args:
            parts: what of the user's goes to the workers, by the argument's name.
            session: the connection to Ray; what was sent in another one is gone.

        Raises:
            Exception: one of the parts cannot be pickled; it is named. Of the same type, or a RuntimeError.
        """
        import ray  # not before it is used

        from .parcel import pack

        try:
            parcel = pack(parts)
        except Exception as error:
            raise same_kind(error, _unpicklable(parts, error)) from error
        if session != self._session or not self._has(parcel):
            self._ref = None  # first: the store may lack room for both
            self._ref, self._session = ray.put(tuple(parcel)), session
        return self._ref

    def _has(self, parcel: Any) -> bool:
        import ray

        from .parcel import Parcel, are_equal

        with contextlib.suppress(ray.exceptions.RayError):  # it is lost, with the node that had it
            return are_equal(parcel, Parcel(*ray.get(self._ref)))
        return False


def _unpicklable(parts: dict[str, Any], error: Exception) -> str:
    from .parcel import pack

    def fails(part: Any) -> bool:
        try:
            pack(part)
        except Exception:
            return True
        return False

    found = ((name, part) for name, part in parts.items() if fails(part))
    name, part = next(found, ("dataset", parts.get("dataset")))
    return (
        f"{name} (a {type(part).__qualname__}) cannot be pickled, which worker_type='ray' needs: {error}. Open what "
        "belongs to one process in worker_init_fn, or use worker_type='process', which pickles nothing"
    )
