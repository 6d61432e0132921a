"""Learning rates by name, and the moving average that validation takes."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import SETTINGS, SignallingSampler, checkpoint_data, make_problem, run

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.evaluation.evaluate import evaluate
from fewshot_blo.evaluation.result import Evaluation
from fewshot_blo.training import validation
from fewshot_blo.training.outer_updates import MovingAverage, make_optimizer
from fewshot_blo.training.run import BEST, LAST


def outer() -> dict[str, torch.Tensor]:
    names = ("body.a", "body.b.c", "bodyguard", "head/w")
    return {name: torch.ones(2, requires_grad=True) for name in names}


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_factors_by_group_and_by_the_longest_part(name: Any) -> None:
    variables = outer()
    rates = {"encoder": 0.1, "encoder/body": 0.5, "encoder/body.b": 0.0}
    optimizer = make_optimizer(variables, name, momentum=0.0, weight_decay=0.0, rates=rates)
    factors = {
        known: group["factor"]
        for group in optimizer.param_groups
        for known, leaf in variables.items()
        if any(leaf is p for p in group["params"])
    }
    assert factors == {"body.a": 0.5, "body.b.c": 0.0, "bodyguard": 0.1, "head/w": 1.0}


@pytest.mark.parametrize("rates", [{"tail": 1.0}, {"encoder": -1.0}, {"enc": 1.0}])
def test_rates_that_make_no_sense(rates: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=r"rates has .* one of encoder, head, or a part"):
        make_optimizer(outer(), "adam", momentum=0.9, weight_decay=0.0, rates=rates)


def test_a_factor_of_zero_leaves_variables_as_they_are(tmp_path: Path) -> None:
    problem = make_problem()
    frozen = next(iter(problem.outer))
    before = {name: p.detach().clone() for name, p in problem.outer.items()}
    run(tmp_path, problem=problem, settings=replace(SETTINGS, rates={f"encoder/{frozen}": 0.0}))
    same = {name for name, p in problem.outer.items() if torch.equal(p, before[name])}
    assert frozen in same
    assert len(same) < len(before)


def test_the_average_by_a_plain_loop() -> None:
    variables, average = outer(), MovingAverage(0.5)
    expected = None
    for step in range(20):
        with torch.no_grad():
            variables["head/w"] += step
        average.update(variables, step)
        d = min(0.5, (1 + step) / (10 + step))
        value = variables["head/w"].detach().clone()
        expected = value if expected is None else d * expected + (1 - d) * value
    assert expected is not None
    torch.testing.assert_close(average.values["head/w"], expected)
    own = variables["head/w"].detach().clone()
    with average.applied(variables):
        assert torch.equal(variables["head/w"], average.values["head/w"])
    assert torch.equal(variables["head/w"], own)
    none = MovingAverage(0.0)
    none.update(variables, 0)
    with none.applied(variables):
        assert torch.equal(variables["head/w"], own)


def test_the_first_steps_are_soon_forgotten() -> None:
    """d is 2/11, 3/12, 4/13, ... until ``decay`` is less."""
    points = [torch.tensor([p], dtype=torch.float64) for p in (1.0, 10.0, -5.0, 3.0, 7.0)]
    average = MovingAverage(0.3)
    found = []
    for step, p in enumerate(points):
        average.update({"p": p}, step)
        found.append(float(average.values["p"]))
    first = 1.0
    second = (2 * first + 9 * 10.0) / 11
    third = (3 * second + 9 * -5.0) / 12
    fourth = 0.3 * third + 0.7 * 3.0  # 4/13 is more than 0.3.
    fifth = 0.3 * fourth + 0.7 * 7.0
    assert found == pytest.approx([first, second, third, fourth, fifth], rel=1e-12)


@pytest.mark.slow
def test_validation_takes_the_average_and_resume_keeps_it(tmp_path: Path) -> None:
    settings = replace(SETTINGS, ema=0.9, validate_every=1, steps=4)
    problem = make_problem()
    run(tmp_path / "whole", problem=problem, settings=settings)
    last, best = (torch.load(tmp_path / "whole" / n, weights_only=True) for n in (LAST, BEST))
    assert last["average"].keys() == problem.outer.keys()
    name = next(iter(problem.outer))
    assert torch.equal(best["outer"][name], best["average"][name])
    assert not torch.equal(last["outer"][name], last["average"][name])
    assert torch.equal(problem.outer[name], best["outer"][name])

    tasks = SignallingSampler(2, signal.SIGINT)
    run(tmp_path / "parts", problem=make_problem(), settings=settings, tasks=tasks)
    run(tmp_path / "parts", problem=make_problem(), settings=settings, resume=True)
    again = checkpoint_data(tmp_path / "parts")["average"]
    assert all(torch.equal(p, last["average"][name]) for name, p in again.items())


def test_decays_that_make_no_sense() -> None:
    with pytest.raises(ConfigurationError, match="ema is 1"):
        replace(SETTINGS, ema=1.0)


def test_a_validation_that_is_nan_saves_the_variables_and_not_their_average(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends where one ends whose validation is a number, once it is resumed."""

    def undefined(*args: Any, **settings: Any) -> Evaluation:
        result = evaluate(*args, **settings)
        result.values[0] = torch.nan
        return result

    settings = replace(SETTINGS, ema=0.9)
    run(tmp_path / "whole", settings=settings)
    with monkeypatch.context() as patched:
        patched.setattr(validation, "evaluate", undefined)
        with pytest.raises(ConfigurationError, match="step 2: accuracy is NaN for 1 of 4"):
            run(tmp_path / "parts", settings=settings)
    saved = checkpoint_data(tmp_path / "parts")
    assert any(not torch.equal(p, saved["average"][name]) for name, p in saved["outer"].items())
    run(tmp_path / "parts", settings=settings, resume=True)
    whole, parts = (checkpoint_data(tmp_path / name) for name in ("whole", "parts"))
    assert all(torch.equal(p, parts["outer"][name]) for name, p in whole["outer"].items())
