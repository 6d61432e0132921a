from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.evaluation.counts import Counts
from fewshot_blo.evaluation.ranking import rank
from fewshot_blo.evaluation.result import Evaluation
from fewshot_blo.records.quantity import Quantity

NOISE = torch.linspace(-0.1, 0.1, 50, dtype=torch.float64)
SHUFFLED = NOISE[torch.randperm(50, generator=torch.Generator().manual_seed(0))]


def evaluation(values: Tensor, episodes: str = "5-way, seed 0") -> Evaluation:
    return Evaluation("support", episodes, 0, values, ("a", "b"), Counts.none())


def test_ties_share_the_mean_of_their_places() -> None:
    # On "one", b and c are 0.001 apart with differences of 0.08: they tie behind a.
    one = {"a": 0.8 + NOISE, "b": 0.7 + NOISE, "c": 0.699 + SHUFFLED, "d": 0.3 + NOISE}
    two = {"a": 0.5 + NOISE, "b": 0.9 + NOISE, "c": 0.1 + NOISE, "d": 0.5 + SHUFFLED}
    results = {m: {"one": evaluation(one[m]), "two": evaluation(two[m])} for m in "abcd"}
    found = rank(results)
    assert found.ranks == {
        "a": {"one": 1.0, "two": 2.5},
        "b": {"one": 2.5, "two": 1.0},
        "c": {"one": 2.5, "two": 4.0},
        "d": {"one": 4.0, "two": 2.5},
    }
    assert found.average == {"a": 1.75, "b": 1.75, "c": 3.25, "d": 3.25}
    assert str(found).splitlines() == [
        "| method | one | two | average rank |",
        "|---|---|---|---|",
        "| a | 1 | 2.5 | 1.75 |",
        "| b | 2.5 | 1 | 1.75 |",
        "| c | 2.5 | 4 | 3.25 |",
        "| d | 4 | 2.5 | 3.25 |",
    ]


def test_low_errors_are_best() -> None:
    error = Quantity("mean squared error")
    results = {
        name: {"one": replace(evaluation(mean + NOISE), metric=error)}
        for name, mean in (("a", 0.9), ("b", 0.2))
    }
    assert rank(results).average == {"a": 2.0, "b": 1.0}


def test_all_methods_on_all_data_sets_and_the_same_tasks() -> None:
    own = evaluation(NOISE)
    with pytest.raises(ConfigurationError, match="different data sets, or none"):
        rank({"a": {"one": own}, "b": {"two": own}})
    with pytest.raises(ConfigurationError, match="different data sets, or none"):
        rank({})
    with pytest.raises(ConfigurationError, match="needs the same tasks"):
        rank({"a": {"one": own}, "b": {"one": evaluation(NOISE, "5-way, seed 1")}})


def test_nan_has_no_rank() -> None:
    """It is neither above nor below any number, and sorted anywhere."""
    values = {"a": 0.1 + NOISE, "b": NOISE.clone(), "c": 0.9 + NOISE}
    values["b"][3] = torch.nan
    results = {method: {"one": evaluation(own)} for method, own in values.items()}
    with pytest.raises(ConfigurationError, match="accuracy of b on one is NaN for 1 tasks"):
        rank(results)
