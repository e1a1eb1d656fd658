"""What is in the files: the text of Python's standard library as tokens, and a table."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Map = NDArray[Any]

SEQUENCE = 1024  # tokens
COLUMNS = 40

END_OF_TEXT = 256  # behind the 256 bytes
VOCABULARY = END_OF_TEXT + 1

_TABLE_CHUNK = 1 << 16  # rows that are made at a time


def make_tokens(folder: Path, most_tokens: int) -> list[Map]:
    """Writes Python's standard library as tokens, maps the file, and returns that.

    A token is a byte, or `END_OF_TEXT` behind a file. Files are joined, and cut into sequences; what is left at the end
    is dropped. The same Python gives the same tokens.

    Args:
        folder: for the file.
        most_tokens: after so many no further file is read.

    Returns:
        One array of shape (sequence, token), int32: the narrowest that ``torch.nn.Embedding`` takes.
    """
    path = folder / "tokens.bin"
    with path.open("wb") as file:
        count = 0
        for text in _texts():
            count += len(text) + 1
            file.write(np.frombuffer(text, np.uint8).astype(np.int32).tobytes())
            file.write(np.int32(END_OF_TEXT).tobytes())
            if count >= most_tokens:
                break
    sequences = min(count, most_tokens) // SEQUENCE
    return [_mapped(path, np.dtype(np.int32), (sequences, SEQUENCE))]


def _texts() -> Iterator[bytes]:
    """Yields the library's files in the order of their names, without packages that were installed beside it."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if "site-packages" not in path.parts and "dist-packages" not in path.parts and path.is_file():
            yield path.read_bytes()


def make_table(folder: Path, rows: int) -> list[Map]:
    """Writes a table of random numbers, maps its files, and returns that.

    Args:
        folder: for the files.
        rows: how many.

    Returns:
        The columns of shape (row, column), float32, and a label for each row, int64.
    """
    rng = np.random.default_rng(0)
    numbers, labels = folder / "numbers.bin", folder / "labels.bin"
    with numbers.open("wb") as file:
        for start in range(0, rows, _TABLE_CHUNK):
            file.write(rng.random((min(_TABLE_CHUNK, rows - start), COLUMNS), dtype=np.float32).tobytes())
    labels.write_bytes(rng.integers(0, 10, rows).tobytes())
    return [_mapped(numbers, np.dtype(np.float32), (rows, COLUMNS)), _mapped(labels, np.dtype(np.int64), (rows,))]


def _mapped(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Map:
    # To be written, since torch warns of arrays that are not; and a plain array, since a memory map's rows are maps
    # themselves, which take several times as long to make.
    return np.asarray(np.memmap(path, dtype, "r+", shape=shape))
