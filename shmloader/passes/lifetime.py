"""What a loader has for as long as it lives. Each of its passes is given it, and may be gone before it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from shmloader.slots.pool_cache import PoolCache
from shmloader.workers.ray.store import SentParts

from .epochs import Epochs
from .gates import Gate
from .meter import Meters
from .steps import Steps
from .watching import Watch


@dataclass
class Lifetime:
    """What one loader's passes share, in the process that iterates. A state that is loaded brings its own `epochs`.

    Attributes:
        epochs: which pass is next.
        pool_cache: where a pass takes its pool from, and leaves it to the next.
        gate: whether passes load ahead.
        meters: what passes have taken, and how many of their workers were replaced.
        steps: who is told of each step.
        watch: who is told of all that happens.
        sent: what was sent to workers on other machines.
    """

    epochs: Epochs = field(default_factory=Epochs)
    pool_cache: PoolCache = field(default_factory=PoolCache)
    gate: Gate = field(default_factory=Gate)
    meters: Meters = field(default_factory=Meters)
    steps: Steps = field(default_factory=Steps)
    watch: Watch = field(default_factory=Watch)
    sent: SentParts = field(default_factory=SentParts)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy has made no pass itself, in whatever process. Its passes are counted on from here.
        return Lifetime, (dataclasses.replace(self.epochs),)


def is_of(loader: Any) -> bool:
    """Whether a loader is one of ours, and so has a lifetime."""
    return isinstance(getattr(loader, "__dict__", {}).get("_lifetime"), Lifetime)


def of(loader: Any) -> Lifetime:
    """Returns a loader's."""
    found: Lifetime = vars(loader)["_lifetime"]
    return found
