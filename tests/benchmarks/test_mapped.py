"""Rows of memory maps: that all contestants load the same batches, and what is said of them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import tokens
from benchmarks.__main__ import main
from benchmarks.mapped.contestants import CONTESTANTS, STOCK, Contestant
from benchmarks.mapped.race import LIMIT, Field, MappedRace, run
from benchmarks.mapped.sources import COLUMNS, END_OF_TEXT, SEQUENCE, VOCABULARY, Map, make_table, make_tokens
from shmloader.cli.bench.measure import Round
from tests.helpers.support import children


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> list[Map]:
    return make_table(tmp_path_factory.mktemp("table"), 100)


def batches(contestant: Contestant, arrays: list[Map], count: int) -> list[list[Any]]:
    torch.manual_seed(0)
    loaded = itertools.islice(contestant.load(arrays, 8, 2), count)
    return [[part.clone() for part in batch] for batch in loaded]


@pytest.mark.parametrize("contestant", CONTESTANTS, ids=lambda one: one.name)
def test_all_load_the_same_batches(contestant: Contestant, table: list[Map]) -> None:
    found = batches(contestant, table, 30)  # two passes and a half
    expected = batches(CONTESTANTS[0], table, 30)
    for one, other in zip(found, expected, strict=True):
        assert [part.dtype for part in one] == [torch.float32, torch.int64]
        assert all(map(torch.equal, one, other))
    one_pass = torch.cat([labels for _, labels in found[:12]])
    assert len(one_pass) == 96
    rows = torch.cat([numbers for numbers, _ in found[:12]])
    assert len(torch.unique(rows, dim=0)) == 96


def test_tokens_are_the_text(tmp_path: Path) -> None:
    (sequences,) = make_tokens(tmp_path, 3 * SEQUENCE + 5)
    assert sequences.shape == (3, SEQUENCE)
    assert sequences.dtype == np.int32
    assert sequences.max() < VOCABULARY
    (longer,) = make_tokens(tmp_path / ".", 200 * SEQUENCE)
    assert END_OF_TEXT in longer
    assert np.array_equal(longer[:3], sequences)
    text = bytes(longer.reshape(-1)[: int(np.argmax(longer.reshape(-1) == END_OF_TEXT))].astype(np.uint8))
    assert b"import" in text or b"def" in text


def test_a_table_is_the_same_each_time(tmp_path: Path, table: list[Map]) -> None:
    again = make_table(tmp_path, 100)
    assert all(map(np.array_equal, again, table))
    assert [array.shape for array in again] == [(100, COLUMNS), (100,)]


def test_contestants_take_turns(table: list[Map]) -> None:
    before, steps = children(), list[None]()
    some = [one for one in CONTESTANTS if one.dataset is CONTESTANTS[0].dataset]
    field = Field("tabular", "rows", "rows", 8, 8)
    rounds = run(field, table, 1, 2, 0.02, lambda: steps.append(None), some)
    assert list(rounds) == [*(one.name for one in some), LIMIT]
    assert all(len(took) == 2 and took[0].batches > 0 for took in rounds.values())
    assert len(steps) == 3 * len(rounds)
    assert children() == before


def _found() -> MappedRace:
    def took(seconds: float) -> list[Round]:
        return [Round(100, seconds, 0.001), Round(100, 2 * seconds, 0.001)]

    walls = {one.name: 0.1 * number for number, one in enumerate(CONTESTANTS, 1)}
    return MappedRace(
        tokens.FIELD, 1000, 4_096_000, {name: took(wall) for name, wall in (walls | {LIMIT: 0.05}).items()}
    )


def test_it_says_how_they_compare() -> None:
    text = "\n".join(_found().lines())
    assert "| 1,000 rows, 4.10 MB | tokens/s | over torch's | share of the limit | CPU a batch, us |" in text
    assert "| ours | 24.6 M (16.4 M to 32.8 M) | 6.00x (6.00x to 6.00x) | 0.50 | 10.0 (10.0 to 10.0) |" in text
    assert "| no loader | 49.2 M (32.8 M to 65.5 M) | 12.0x (12.0x to 12.0x) | 1.00 |  |" in text
    found = json.loads(json.dumps(_found().as_dict()))
    assert set(found["tokens_per_second"]) >= {"ours", STOCK, LIMIT}
    assert LIMIT not in found["consumer_cpu_seconds_per_batch"]


@pytest.mark.usefixtures("_matplotlib")
def test_it_draws(tmp_path: Path) -> None:
    _found().draw(tmp_path, ["note"])
    assert (tmp_path / "tokens.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("tokens --tokens 2000", "a batch takes 32768 tokens, and there are 1024"),
        ("tabular --rows 4000", "a batch takes 4096 rows, and there are 4000"),
    ],
)
def test_too_little_for_a_batch(command: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(command.split())
    assert text in capsys.readouterr().err
