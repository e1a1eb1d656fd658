"""The page "Is it the data?" says what the loader says: each case of the example is run, and its verdict compared."""

from __future__ import annotations

import importlib.util
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest

from shmloader.observe.verdict import Kind
from tests.helpers.verdicts import told

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "is-it-the-data.md").read_text()

# The verdict of each case, as the page has it: the third column and the last.
ON_THE_PAGE = {
    row[4].strip("` "): row[2].strip()
    for line in PAGE.splitlines()
    if line.startswith("| ") and len(row := line.strip("|").split("|")) == 5 and "`--case`" not in line
}


def _symptoms() -> ModuleType:
    spec = importlib.util.spec_from_file_location("symptoms", ROOT / "examples" / "symptoms.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["symptoms"] = module  # where its dataclasses look for it
    spec.loader.exec_module(module)
    return module


SYMPTOMS = _symptoms()


def test_the_page_has_each_case() -> None:
    assert sorted(ON_THE_PAGE) == sorted(SYMPTOMS.CASES)
    headings = " ".join(re.findall(r"^## .*$", PAGE, re.MULTILINE))
    assert all(f"`{name}`" in headings for name in SYMPTOMS.CASES)


def test_the_page_has_each_kind_of_verdict() -> None:
    assert {kind.value for kind in Kind} <= {*ON_THE_PAGE.values(), *re.findall(r"\*([^*\n]+)\*", PAGE)}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", sorted(SYMPTOMS.CASES))
def test_the_verdict_is_that_of_the_page(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        told(Kind(ON_THE_PAGE[name]), lambda: SYMPTOMS.run(SYMPTOMS.CASES[name]))
