"""The programs of docs/migrating, run as they stand: theirs and ours compute the same."""

from __future__ import annotations

import importlib
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import assert_same

from fewshot_blo.tasks.reading.torchvision_import import torchvision_module

PAGES = Path(__file__).resolve().parents[1] / "docs" / "migrating"


def programs(page: str) -> list[str]:
    """The Python blocks of a page."""
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def run(page: str, number: int) -> dict[str, Any]:
    """The names that one of a page's programs leaves."""
    names: dict[str, Any] = {}
    exec(compile(programs(page)[number], f"docs/migrating/{page}.md", "exec"), names)
    return names


def need(library: str) -> None:
    """Skips the test if a library is not installed."""
    torchvision_module()  # learn2learn imports torchvision, whose extension may be unable to load
    with warnings.catch_warnings():
        # Of what the libraries import; they are no concern of ours.
        warnings.simplefilter("ignore")
        try:
            importlib.import_module(library)
        except ModuleNotFoundError as error:
            pytest.skip(f"{library} cannot be imported: {error}")


@pytest.mark.parametrize("library", ["higher", "learn2learn", "torchopt"])
def test_the_gradients_of_maml_are_the_same(library: str) -> None:
    need(library)
    theirs, ours = run(library, 0)["gradient"], run(library, 1)["gradient"]
    assert_same(ours, theirs, 1e-10)


@pytest.mark.parametrize("page", ["higher", "learn2learn", "torchopt", "easyfsl"])
def test_our_programs_run(page: str) -> None:
    """Without the other library, too."""
    names = run(page, 1)
    found = names["gradient"].values() if "gradient" in names else [names["labels"]]
    assert all(bool(x.isfinite().all()) for x in found)


def test_the_labels_of_a_protonet_are_the_same() -> None:
    need("easyfsl")
    assert torch.equal(run("easyfsl", 0)["labels"], run("easyfsl", 1)["labels"])


def test_the_batches_have_torchmeta_s_shapes() -> None:
    names = run("torchmeta", 0)
    assert list(names["support_x"].shape) == [8, 5, 1, 28, 28]
    assert list(names["query_y"].shape) == [8, 25]
