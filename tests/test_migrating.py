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
    """The names that one of a page's programs leaves; it ends with an assertion."""
    program = programs(page)[number]
    assert program.splitlines()[-1].startswith("assert ")
    return executed(page, program)


def unasserted(page: str, number: int, changed: tuple[str, str]) -> Any:
    """The gradient of a program with a change, and without the assertion at its end."""
    program, _, _ = programs(page)[number].rpartition("assert ")
    assert changed[0] in program
    return executed(page, program.replace(*changed))["gradient"]


def executed(page: str, program: str) -> dict[str, Any]:
    """The names that a program leaves."""
    names: dict[str, Any] = {}
    exec(compile(program, f"docs/migrating/{page}.md", "exec"), names)
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


@pytest.mark.filterwarnings("ignore:We've integrated functorch:FutureWarning")  # TorchOpt's own.
def test_the_implicit_gradients_of_torchopt_are_the_same() -> None:
    need("torchopt")
    assert_same(run("torchopt", 3)["gradient"], run("torchopt", 2)["gradient"], 1e-8)


def test_first_order_is_that_of_learn2learn() -> None:
    need("learn2learn")
    theirs = unasserted("learn2learn", 0, ("first_order=False", "first_order=True"))
    ours = unasserted("learn2learn", 1, ("SGD(0.1))", "SGD(0.1)), first_order=True"))
    assert_same(ours, theirs, 1e-10)


@pytest.mark.parametrize("option", ["copy_initial_weights=True", "track_higher_grads=False"])
def test_these_options_of_higher_leave_no_gradient(option: str) -> None:
    need("higher")
    asked = f"copy_initial_weights=False, {option}" if option.startswith("track") else option
    assert unasserted("higher", 0, ("copy_initial_weights=False", asked)) == {}


OURS = [(p, 1) for p in ("higher", "learn2learn", "torchopt", "easyfsl")]


@pytest.mark.parametrize(("page", "number"), [*OURS, ("torchopt", 3), ("torchmeta", 0)])
def test_our_programs_find_what_is_asserted(page: str, number: int) -> None:
    """Without the other library, too."""
    run(page, number)


@pytest.mark.slow
def test_the_training_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (program,) = programs("index")
    executed("index", program)
    assert (tmp_path / "runs" / "maml" / "best.pt").exists()


def test_the_labels_of_a_protonet_are_the_same() -> None:
    need("easyfsl")
    assert torch.equal(run("easyfsl", 0)["labels"], run("easyfsl", 1)["labels"])
