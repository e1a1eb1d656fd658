"""The command line as a whole: which command runs, and what is said where none does."""

from __future__ import annotations

import pytest

from shmloader import __version__
from shmloader.cli.main import main


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert (caught.value.code, capsys.readouterr().out) == (0, f"shmloader {__version__}\n")


@pytest.mark.parametrize(
    ("argv", "message"),
    [([], "the following arguments are required: COMMAND"), (["frobnicate"], "invalid choice: 'frobnicate'")],
)
def test_a_command_has_to_be_named(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    printed = capsys.readouterr()
    assert (caught.value.code, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert message in printed.err
