"""Memory limits, read from folders that look like /proc and /sys."""

from __future__ import annotations

import mmap
import resource
from pathlib import Path

import pytest

from shmloader.slots.limits import (
    address_space_left,
    addresses_left,
    available_memory,
    cgroup_memory_limit,
    memory,
    memory_limit,
    oom_kills,
    physical_memory,
)

GIB = 1 << 30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n"}, None),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n"}, None),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": f"{GIB}\n"}, GIB),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": f"{GIB}\n"}, GIB),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/memory.max": f"{GIB}\n",
                "sys/fs/cgroup/a/b/memory.max": f"{2 * GIB}\n",
            },
            GIB,
        ),
        ({"proc/self/cgroup": "0::/not/mounted\n", "sys/fs/cgroup/memory.max": f"{3 * GIB}\n"}, 3 * GIB),
        (
            {
                "proc/self/cgroup": "5:cpu:/x\n4:memory:/x\n",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": f"{GIB}\n",
                "sys/fs/cgroup/cpu/x/memory.limit_in_bytes": "1\n",
            },
            GIB,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "9223372036854771712\n",
            },
            None,
        ),
    ],
)
def test_cgroups(tmp_path: Path, files: dict[str, str], limit: int | None) -> None:
    root = write(tmp_path, files)
    assert cgroup_memory_limit(root) == limit
    assert memory_limit(root) == min(limit or physical_memory(), physical_memory())
    assert memory(root) == (memory_limit(root), available_memory(root))


def test_what_changes_is_seen_by_the_next_that_asks(tmp_path: Path) -> None:
    """Limits are set, lifted and used up while a program runs, and a process is moved to another group."""
    group = "sys/fs/cgroup/a/"
    files = {"proc/self/cgroup": "0::/a\n", "proc/meminfo": f"MemTotal: 1 kB\nMemAvailable: {GIB >> 10} kB\n"}
    root = write(tmp_path, files)
    assert memory(root) == (physical_memory(), GIB)
    write(root, {group + "memory.max": f"{GIB >> 1}\n", group + "memory.current": f"{GIB >> 2}\n"})
    assert memory(root) == (GIB >> 1, GIB >> 2)
    write(root, {group + "memory.stat": f"anon 1\ninactive_file {GIB >> 3}\n"})
    assert memory(root) == (GIB >> 1, (GIB >> 2) + (GIB >> 3))
    write(root, {group + "memory.max": "max\n"})
    assert memory(root) == (physical_memory(), GIB)
    write(root, {"proc/self/cgroup": "0::/b\n", "sys/fs/cgroup/b/memory.max": f"{GIB >> 4}\n"})
    assert memory(root) == (GIB >> 4, GIB >> 4)


def test_a_file_is_read_to_its_end(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/a\n",
        "sys/fs/cgroup/a/memory.max": f"{GIB >> 1}\n",
        "sys/fs/cgroup/a/memory.current": f"{GIB >> 1}\n",
        "sys/fs/cgroup/a/memory.stat": "anon 1\n" * (1 << 15) + f"inactive_file {GIB >> 2}\n",
    }
    assert available_memory(write(tmp_path, files)) == GIB >> 2


def test_addresses_that_are_mapped_are_not_left() -> None:
    before = addresses_left()
    mapped = mmap.mmap(-1, GIB)
    assert before - addresses_left() >= GIB
    mapped.close()
    assert addresses_left() > before - GIB


EVENTS = "low 0\nhigh 2\nmax 9\noom 4\noom_kill {}\noom_group_kill 0\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/a\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.events": EVENTS.format(7)}, 7),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.events": EVENTS.format(0)}, 0),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/memory.events": EVENTS.format(5),
                "sys/fs/cgroup/a/b/memory.events": EVENTS.format(3),
            },
            3,
        ),
        ({"proc/self/cgroup": "0::/not/mounted\n", "sys/fs/cgroup/memory.events": EVENTS.format(2)}, 2),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.events": "low 0\noom 4\n"}, None),
        (
            {
                "proc/self/cgroup": "5:cpu:/x\n4:memory:/x\n",
                "sys/fs/cgroup/memory/x/memory.oom_control": CONTROL.format(6),
                "sys/fs/cgroup/cpu/x/memory.oom_control": CONTROL.format(1),
            },
            6,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,memory:/x\n0::/\n",
                "sys/fs/cgroup/memory/x/memory.oom_control": CONTROL.format(8),
            },
            8,
        ),
        # Before Linux 4.13 it was not counted.
        (
            {
                "proc/self/cgroup": "4:memory:/x\n",
                "sys/fs/cgroup/memory/x/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n",
            },
            None,
        ),
    ],
)
def test_how_many_the_kernel_has_ended(tmp_path: Path, files: dict[str, str], count: int | None) -> None:
    assert oom_kills(write(tmp_path, files)) == count


def test_a_path_that_leads_outside_is_not_followed(tmp_path: Path) -> None:
    root = write(tmp_path, {"proc/self/cgroup": "0::/a\n", "sys/memory.max": "1\n", "memory.max": "1\n"})
    assert cgroup_memory_limit(root) is None


def test_address_space(monkeypatch: pytest.MonkeyPatch) -> None:
    assert address_space_left() is None or resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1 << 60, 1 << 60))
    left = address_space_left()
    assert left is not None
    assert 0 < left < 1 << 60
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1, 1))
    assert address_space_left() == 0
