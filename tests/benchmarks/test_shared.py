"""What data takes in workers: that it is measured, and what is said of it."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from benchmarks import shared
from benchmarks.shared import PLAIN, SHARED, Held, Taken, records
from shmloader import share
from shmloader.cli.bench.figures import figure
from shmloader.cli.console import UsageError


def test_both_lists_are_read_alike() -> None:
    plain = records(3000)
    found = {kind: shared.growth_in_a_pass(items, 2) for kind, items in ((PLAIN, plain), (SHARED, share(plain)))}
    assert [len(each) for each in found.values()] == [2, 2]
    assert [each.rounds[0] > 0 for each in shared.item_seconds((plain, share(plain)), 1)] == [True, True]


def test_a_shared_list_grows_no_worker() -> None:
    growth = shared.growth_in_a_pass(share(records(60_000)), 2)
    assert max(each.private for each in growth) < 2_000_000  # a plain one: ten


@pytest.mark.usefixtures("_resource_tracker")
def test_an_array_is_there_once() -> None:
    array = share(np.ones(40_000_000, np.uint8))
    total, each = shared._with_workers(array, 1)
    assert total > 40_000_000
    assert each[0].resident > each[0].private + 40_000_000  # it is mapped, and not its own


def test_a_process_that_is_gone() -> None:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(UsageError, match="the memory of a worker is not known here"):
        shared.held(pid)


def test_it_says_how_they_compare() -> None:
    growth = {PLAIN: [Held(50_000_000, 3000, 4000), Held(60_000_000, 3000, 4000)], SHARED: [Held(-4, 0, 0)] * 2}
    item = {PLAIN: figure([1e-7]), SHARED: figure([2e-6])}
    found = Taken(2, 1000, growth, item, 10**9, {PLAIN: 3 * 10**9, SHARED: 10**9}, {PLAIN: [1], SHARED: [2]})
    text = "\n".join(found.lines())
    assert "| a list of 1,000 dicts, growth of 2 forked workers | as it is | share() |" in text
    assert "| private memory, each worker | 50.0 MB to 60.0 MB | 0 B |" in text
    assert "| all processes together | 3.00 GB | 1.00 GB |" in text
    assert json.loads(json.dumps(found.as_dict()))["together"] == {PLAIN: 3 * 10**9, SHARED: 10**9}
