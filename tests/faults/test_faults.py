"""A part of the nonsense in every run of the tests; ``python -m faults`` has all of it."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import make_folder

import fewshot_blo
from faults import commands, constructors
from fewshot_blo.commands import main as cli
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.settings import SLOTS
from fewshot_blo.studies.recipe import STUDIES

PART = 12
"""One of so many cases of the constructors."""


@pytest.mark.slow
def test_constructors_refuse_nonsense() -> None:
    result = constructors.fuzz(every=PART, first=5)
    assert result.failures == []
    assert result.tried == result.survived > 1000


@pytest.mark.slow
def test_command_lines_never_end_in_a_traceback() -> None:
    result = commands.fuzz(40, seed=1)
    assert result.failures == []
    assert result.tried == result.survived == 40


def test_every_component_is_checked() -> None:
    """Whoever adds one is told: settings that nobody checks train to the end."""
    kinds = [kind for slot in SLOTS.values() for kind in slot.choices] + list(STUDIES.values())
    unchecked = []
    for kind in kinds:
        made: Any = getattr(kind, "__init__") if isinstance(kind, type) else kind  # noqa: B009
        # A subclass without settings of its own has the constructor above.
        if made is not object.__init__ and not hasattr(made, "__wrapped__"):
            unchecked.append(kind.__name__)
    assert unchecked == []


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: fewshot_blo.Unroll(1.5), r"inner is 1\.5: .* write InnerSteps\(\.\.\.\)"),  # type: ignore[arg-type]
        (lambda: fewshot_blo.Unroll(5), r"inner is 5: .* write InnerSteps\(5\)"),  # type: ignore[arg-type]
        (lambda: fewshot_blo.SGD(-1), "step_size is -1: it must be at least 0"),
        (lambda: fewshot_blo.Momentum(momentum=-3), r"momentum is -3: .* \[0, 1\)"),
        (lambda: fewshot_blo.Adam(beta1=2), r"beta1 is 2: .* \[0, 1\)"),
        (lambda: fewshot_blo.SGD(math.nan), "step_size is nan: it must be finite"),
        (lambda: fewshot_blo.SGD(1e308), "largest number of float32"),
        (lambda: fewshot_blo.SGD(True), "step_size is True: it must be a number"),
        (
            lambda: fewshot_blo.TrainSettings(optimizer="adamw"),  # type: ignore[arg-type]
            r"optimizer is 'adamw': it must be one of adam, sgd \(did you mean adam\?\)",
        ),
        (
            lambda: fewshot_blo.TrainSettings(schedule="constnat"),  # type: ignore[arg-type]
            "did you mean constant",
        ),
        (lambda: fewshot_blo.TrainSettings(seed=10**20), "seed is 1000.* it must be at most"),
        (lambda: fewshot_blo.TrainSettings(rates={"encoder": -1}), r"rates\['encoder'\] is -1"),
        (lambda: fewshot_blo.InnerSteps(2, fewshot_blo.SGD), r"call the class, SGD\(\)"),  # type: ignore[arg-type]
        (
            lambda: fewshot_blo.SGD(torch.tensor(0.1, requires_grad=True)),  # type: ignore[arg-type]
            "no gradient reaches a setting",
        ),
    ],
)
def test_what_is_wrong_is_said(make: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        make()


def test_numbers_of_numpy_and_torch_become_plain() -> None:
    settings = fewshot_blo.TrainSettings(
        steps=np.int64(3),  # type: ignore[arg-type]
        learning_rate=np.float32(0.5),  # type: ignore[arg-type]
        ema=torch.tensor(0.25),  # type: ignore[arg-type]
        clip=1,
    )
    assert json.dumps([settings.steps, settings.learning_rate, settings.ema]) == "[3, 0.5, 0.25]"
    assert type(settings.clip) is float
    assert fewshot_blo.ValueFunction(lam_max=math.inf).lam_max == math.inf


def test_an_unexpected_error_is_one_line_and_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: Any, **settings: Any) -> None:
        raise ZeroDivisionError("nobody \x1b[2J expected this")

    monkeypatch.setattr("fewshot_blo.commands.train.load", fail)
    assert cli.main(["train", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "\x1b" not in error
    assert "ZeroDivisionError: nobody ?[2J expected this" in error
    (file,) = tmp_path.glob("fewshot-blo-error-*.txt")  # The folder of the run, as there is one.
    assert str(file) in error
    assert "Traceback" in file.read_text()
    assert cli.main(["train", str(tmp_path / "absent"), "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["inf", ".inf", "Infinity"])
def test_infinity_can_be_typed(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--strategy=ValueFunction", f"--strategy.lam_max={word}", "--strategy.lam=nan"]
    assert cli.main(["train", *words]) == 2
    assert "strategy.lam is nan" in capsys.readouterr().err


def test_images_that_fit_neither_on_the_disk_nor_into_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder(tmp_path / "images", classes=4, images=2)
    full = SimpleNamespace(free=2**28)
    monkeypatch.setattr("fewshot_blo.tasks.reading.decoded.shutil.disk_usage", lambda _: full)
    monkeypatch.setattr("fewshot_blo.tasks.reading.images.free_bytes", lambda device: 2**28)
    assert cli.main(["data", "--data=Folder", f"--data.root={root}", "--data.size=8000"]) == 1
    assert "GiB of memory, and 0.2 GiB are free: lower size" in capsys.readouterr().err
    assert cli.main(["data", "--data=Glyphs", "--data.size=1000000"]) == 2
    assert "data.size is 1000000: it must be in [12, 8192]" in capsys.readouterr().err


def documented_zeros() -> Iterator[tuple[Callable[..., Any], str]]:
    """Settings whose documentation says what 0 is for."""
    entry = re.compile(r"^( *)([\w, ]+): (.*(?:\n\1 +.*)*)", re.MULTILINE)
    for kind in constructors.public():
        for match in entry.finditer(inspect.getdoc(kind) or ""):
            text = " ".join(match[3].split())
            if re.search(r"(^|[;.,] )0 (for|or|to|takes|validates) ", text):
                names = set(match[2].split(", ")) & inspect.signature(kind).parameters.keys()
                yield from ((kind, name) for name in names)


def test_a_documented_zero_is_accepted() -> None:
    found = list(documented_zeros())
    assert len(found) > 20
    for kind, name in found:
        parameters = inspect.signature(kind).parameters.values()
        required = {p.name: None for p in parameters if p.default is p.empty}
        said = ""
        try:
            kind(**{**required, name: 0})
        except Exception as error:  # Of what is required, as it is None here.
            said = str(error)
        assert not said.startswith(f"{name} is 0"), (kind.__name__, said)
