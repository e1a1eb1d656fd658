"""Pictures end to end: that all contestants load the same kind of batches, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL")
pytest.importorskip("skimage")
pytest.importorskip("sklearn")

from PIL import Image

from benchmarks.__main__ import main
from benchmarks.pictures import race
from benchmarks.pictures.contestants import BATCH_SIZE, CONTESTANTS, OURS, STOCK, Contestant
from benchmarks.pictures.costs import Costs
from benchmarks.pictures.files import LabelledFile, find_files, make_files, nbytes
from benchmarks.pictures.ideas import IDEAS, SIDE, Idea
from benchmarks.pictures.race import LIMIT, Race, Turn
from benchmarks.pictures.samples import difference
from benchmarks.pictures.sheet import draw_sheet, sheet
from benchmarks.stopped import StoppedProcess

# Those that keep no thread or process of their own when their iterator is gone.
LOADERS = [each for each in CONTESTANTS if each.name.startswith(("ours", "torch's"))]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[LabelledFile]:
    return make_files(tmp_path_factory.mktemp("pictures"), 2 * BATCH_SIZE)


def test_files_are_the_same_each_time(tmp_path: Path, files: list[LabelledFile]) -> None:
    again = make_files(tmp_path, 5)
    assert [Path(path).read_bytes() for path, _ in again] == [Path(path).read_bytes() for path, _ in files[:5]]
    assert len({Path(path).read_bytes() for path, _ in files}) == len(files)
    assert 10_000 < nbytes(files) / len(files) < 100_000


def test_files_of_a_folder_are_labelled_by_the_folders_in_it(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "a/1.jpeg", "a/0.jpg", "a/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert [(Path(path).name, label) for path, label in find_files(tmp_path)] == [
        ("0.jpg", 0),
        ("1.jpeg", 0),
        ("2.JPG", 1),
    ]


@pytest.mark.parametrize("idea", IDEAS, ids=lambda idea: idea.name)
def test_each_idea_reads_the_same_part(idea: Idea, files: list[LabelledFile]) -> None:
    if not idea.is_installed:
        pytest.skip("is not installed")
    assert difference(idea.make(), IDEAS[0].make(), files[:12]) < 4


@pytest.mark.sampled(2)
@pytest.mark.parametrize("contestant", LOADERS, ids=lambda contestant: contestant.name)
def test_each_loader_gives_labelled_crops(contestant: Contestant, files: list[LabelledFile]) -> None:
    if not contestant.is_installed:
        pytest.skip("is not installed")
    batches = contestant.load(files, 2)
    seen = []
    for _ in range(3):
        pictures, labels = next(batches)
        assert pictures.shape == (BATCH_SIZE, SIDE, SIDE, 3)
        assert len(np.unique(np.asarray(pictures).reshape(BATCH_SIZE, -1)[:, :3000], axis=0)) == BATCH_SIZE
        seen += labels.tolist()
    assert set(seen) == set(range(6))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[LabelledFile]:
    """Files that take no time to read."""
    folder = tmp_path_factory.mktemp("small")
    for number in range(2 * BATCH_SIZE):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(folder / f"{number}.jpg")
    return find_files(folder)


@pytest.mark.long
@pytest.mark.usefixtures("_resource_tracker")
def test_contestants_take_turns(small: list[LabelledFile]) -> None:
    pillow = [each for each in CONTESTANTS if each.name in ("ours, Pillow", STOCK)]
    steps: list[None] = []
    found = race.race(small, pillow, 2, 1, 0.05, lambda: steps.append(None))
    assert len(steps) == race.turns(pillow, 1)
    assert list(found.turns) == ["ours, Pillow", STOCK]
    for (turn,) in found.turns.values():
        assert min(turn.wall, turn.cpu, turn.memory, turn.first or 0) > 0


@pytest.mark.usefixtures("_resource_tracker")
def test_a_turn_without_a_loader(small: list[LabelledFile]) -> None:
    process = StoppedProcess(race.prepare_limit, LIMIT, small, 2, 0.05)
    try:
        turn = process.run()
    finally:
        process.close()
    assert turn.wall > 0
    assert turn.first is None


def turns(*walls: float) -> list[Turn]:
    return [Turn(wall, 2 * wall, 10**8, 0.25) for wall in walls]


def test_it_says_how_they_compare() -> None:
    found = Race({OURS: turns(4e-4, 5e-4), "DALI": turns(8e-4, 1e-3), STOCK: turns(1e-3, 1e-3)}, 2048)
    text = "\n".join(found.lines())
    assert "| 2,048 files | pictures/s | over torch's, Pillow | CPU a picture | memory | first batch |" in text
    assert f"| {STOCK} | 1,000 (1,000 to 1,000) | 1.00x (1.00x to 1.00x) | 2.00 ms | 100 MB | 250 ms |" in text
    assert "| the best other, DALI | 2.00x (2.00x to 2.00x) | 2.00x (2.00x to 2.00x) |" in text
    assert json.loads(json.dumps(found.as_dict()))["pictures"] == 2048


def test_it_says_what_decoders_cost() -> None:
    seconds: dict[str, list[float]] = {idea.name: [] for idea in IDEAS}
    seconds |= {IDEAS[0].name: [1e-3, 1e-3], "the recipe": [5e-4, 4e-4]}
    found = Costs(seconds, {IDEAS[0].name: 0.0, "the recipe": 0.65}, 100, {})
    text = "\n".join(found.lines())
    assert "| the recipe | 450 (400 to 500) | 2.25x (2.00x to 2.50x) | 0.65 |" in text
    assert "| OpenCV: all | not installed |  |  |" in text
    assert json.loads(json.dumps(found.as_dict()))["pictures"] == 100


@pytest.mark.usefixtures("_matplotlib")
def test_it_draws(tmp_path: Path, files: list[LabelledFile]) -> None:
    draw_sheet(tmp_path / "sheet.png", sheet(files), ["note"])
    Race({OURS: turns(4e-4), STOCK: turns(1e-3)}, 2048).draw(tmp_path, ["note"])
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("sheet.png", "pictures.png"))


def test_the_command_measures_what_decoders_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pictures", "--ideas", "--length", "3", "--rounds", "1"]) == 0
    assert "3 pictures | us a picture" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [(["--data", "{folder}"], "there are no JPEG files"), (["--length", "3"], "128 pictures at least")],
)
def test_too_few_files(arguments: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["pictures", *(argument.format(folder=tmp_path) for argument in arguments)])
    assert text in capsys.readouterr().err
