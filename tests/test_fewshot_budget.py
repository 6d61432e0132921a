"""Few-shot rows with equal passes: what is counted, what is trained, and what is written."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_runs import make_dataset, make_folder, make_sampler
from torch import Tensor, nn

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad import Implicit, Penalty, Reptile, Strategy, Unroll, ValueFunction
from fewshot_blo.hypergrad.linear_solve import ConjugateGradient, Neumann
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.problems import Initialization
from fewshot_blo.studies.products import Passes, passes_of_step

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
calls: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


class TapGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        calls["second"] += 1
        return gradient


class Tap(torch.autograd.Function):
    """The identity, which counts backward passes through it and through its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        calls["backward"] += 1
        return TapGradient.apply(gradient)  # type: ignore[no-untyped-call]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(256, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x.flatten(1)).tanh())
        return Tap.apply(logits)  # type: ignore[no-any-return, no-untyped-call]


STEPS = InnerSteps(3, SGD(0.1))


@pytest.mark.parametrize(
    ("strategy", "over_u"),
    [
        (Unroll(STEPS), (0, 0)),
        (Unroll(STEPS, truncate=1), (0, 0)),
        (Unroll(STEPS, first_order=True), (0, 0)),
        (Implicit(STEPS, ConjugateGradient(2)), (0, 1)),
        (Implicit(STEPS, Neumann(2, 0.1)), (0, 1)),
        (Penalty(STEPS, rho=0.1).for_training(), (0, 0)),
        (ValueFunction(STEPS, 2, lam=1.0), (3, 0)),
        (Reptile(STEPS), (0, 0)),
    ],
    ids=lambda value: "" if isinstance(value, tuple) else type(value).__name__,
)
def test_passes_are_those_through_the_network(strategy: Strategy, over_u: tuple[int, int]) -> None:
    # A product goes backward through a gradient, and then once more through the network. What is
    # over u alone, which is in the proximal term alone, does not go through it.
    problem = Initialization(Network(), prox=1.0, backend="reference", prove=False)
    batch = make_sampler(make_dataset(), tasks=2).batch(0)
    calls.clear()
    found = passes_of_step(problem.bind(batch, "support").bilevel, strategy)
    assert calls["backward"] == batch.tasks * (sum(found) - sum(over_u))
    assert calls["second"] == batch.tasks * (found.products - over_u[1])


EXPECTED = {
    "omniglot-head": {
        "penalty": (2 * 5 + 2, 5 + 1),
        "penalty, recipe's settings": (2 * 20 + 2, 20 + 1),
        "unrolling": (5 + 1, 5),
        "first-order unrolling": (5 + 1, 0),
        "implicit, conjugate gradients": (10 + 2, 5 + 1),
        "implicit, Neumann": (10 + 2, 10 + 1),
        "value function": (3 * 20 + 3, 0),
    },
    "omniglot-initialization": {
        "unrolling, 1 step (MAML)": (1 + 1, 1),
        "unrolling, 5 steps (MAML)": (5 + 1, 5),
        "first-order MAML, 5 steps": (5 + 1, 0),
        "Reptile, 5 steps": (2 * 5, 0),
        "implicit, conjugate gradients (iMAML)": (16 + 2, 5 + 1),
        "implicit, Neumann": (16 + 2, 5 + 1),
        "penalty": (2 * 20 + 2, 20 + 1),
        "value function": (3 * 10 + 3, 0),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_passes_of_the_rows_are_those_of_the_formulas(name: str) -> None:
    import fewshot_budget

    from fewshot_blo.experiments.settings import config_from
    from fewshot_blo.experiments.training import build_start

    rows = fewshot_budget.read_budget(BENCHMARKS / "budgets" / f"{name}.yaml").rows
    batch = make_sampler(make_dataset(), way=5, tasks=4).batch(0)
    found = {}
    for row, settings in rows.items():
        config = config_from(settings)
        problem = build_start(config, torch.Size((1, 16, 16)))
        problem.prepare(batch)
        found[row] = fewshot_budget.passes_of(problem, config.strategy, batch)
    assert found == {row: Passes(*counts) for row, counts in EXPECTED[name].items()}


@pytest.mark.slow
def test_a_small_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import fewshot_budget

    steps = {"steps": 1, "rule": {"name": "SGD", "step_size": 0.1}}
    content: dict[str, Any] = {
        "common": {
            "data": {"name": "Folder", "size": 16},
            "episodes": {"way": 3, "query": 2, "validation_query": 2, "tasks": 2},
            "encoder": {"name": "Conv4", "hidden": 4},
            "problem": {"name": "SharedEncoder"},
            "adaptation": steps,
            "train": {"schedule": "constant", "validation_tasks": 4},
        },
        "passes": 30,
        "rows": {
            "second order": {"strategy": {"name": "Unroll", "inner": steps}},
            "first order": {
                "strategy": {"name": "Unroll", "inner": steps, "first_order": True},
                "train": {"learning_rate": 0.01},
            },
        },
    }
    recipe, output = tmp_path / "small.yaml", tmp_path / "out"
    recipe.write_text(yaml.safe_dump(content))
    monkeypatch.setattr(fewshot_budget, "keep_freed_memory", lambda: True)
    root = make_folder(tmp_path / "images")
    options = f"x {recipe} --root {root} --seeds 0 1 --test_tasks 4 --output {output}"
    monkeypatch.setattr(sys, "argv", options.split())
    fewshot_budget.main()
    table = capsys.readouterr().out
    assert "Mean over 2 seeds" in table
    assert "| second order" in table
    results = [json.loads((output / row / "seed1.json").read_text()) for row in content["rows"]]
    assert [result["log"][-1]["step"] for result in results] == [30 // 3, 30 // 2]
    assert results[1]["settings"]["train"]["learning_rate"] == 0.01
    for result in results:
        seconds = [record["seconds"] for record in result["log"]]
        assert 0 < seconds[0] < seconds[-1]
        assert all(0 <= record["validation accuracy, %"] <= 100 for record in result["log"])
    assert (output / "progress.png").stat().st_size > 10_000
    assert (output / "table.csv").is_file()

    # The same command trains nothing anew.
    monkeypatch.setattr(fewshot_budget, "train_row", None)
    fewshot_budget.main()
    assert capsys.readouterr().out.strip() == table[table.index("| method") :].strip()
    monkeypatch.setattr(sys, "argv", [*options.split(), "--passes", "60"])
    with pytest.raises(ConfigurationError, match="other settings"):
        fewshot_budget.main()
