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


def run(page: str, number: int, changed: tuple[str, str] = ("", "")) -> dict[str, Any]:
    """The names that one of a page's programs leaves, with a change of its text."""
    program = programs(page)[number]
    assert changed[0] in program
    names: dict[str, Any] = {}
    exec(compile(program.replace(*changed), f"docs/migrating/{page}.md", "exec"), names)
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


def test_first_order_is_that_of_learn2learn() -> None:
    need("learn2learn")
    theirs = run("learn2learn", 0, ("first_order=False", "first_order=True"))["gradient"]
    ours = run("learn2learn", 1, ("SGD(0.1))", "SGD(0.1)), first_order=True"))["gradient"]
    assert_same(ours, theirs, 1e-10)


@pytest.mark.parametrize("option", ["copy_initial_weights=True", "track_higher_grads=False"])
def test_these_options_of_higher_leave_no_gradient(option: str) -> None:
    need("higher")
    asked = f"copy_initial_weights=False, {option}" if option.startswith("track") else option
    gradient = run("higher", 0, ("copy_initial_weights=False", asked))["gradient"]
    assert all(p is None for p in gradient.values())


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
