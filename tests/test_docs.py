"""What is written beside the code goes with it. Links between the pages of docs/ are checked where these are built."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import shmloader

ROOT = Path(__file__).parent.parent


def test_the_api_page_has_every_public_name() -> None:
    listed = re.findall(r"^::: shmloader\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted({*shmloader.__all__} - {"__version__"})


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_to_files(page: str) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text())
    assert [target for target in targets if "://" not in target and not (ROOT / target).exists()] == []


def test_the_quick_start_is_two_commands() -> None:
    section = (ROOT / "README.md").read_text().split("\n## Quick start\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    setup, tests = block.splitlines()  # CI runs the second
    assert setup.endswith("examples/train_digits.py")
    assert tests.endswith("-m pytest")
