# %% [markdown]
# # Implicit bias in pictures
#
# Where an inner problem has many solutions, the outcome of bilevel optimisation depends on which of
# them is found. Vicol et al. (arXiv 2212.14032) showed what this means for cold starts, where each
# inner problem begins anew, and warm starts, where it begins where the last one ended. This example
# repeats their observation on a small problem of our own: one learned example has to stand for 30.

# %%
from functools import partial

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from fewshot_blo import SGD, InnerSteps, Unroll, solve
from fewshot_blo.solving.driver import Partial, Start
from fewshot_blo.studies.vectors.one_point import OnePoint

torch.set_num_threads(1)  # Tensors are small: more threads would wait for each other.
study = OnePoint(seed=0)

# %% [markdown]
# ## The problem
#
# A function is a sum of 21 waves with weights `w`. The inner problem fits it to *one* example (x, y):
# infinitely many functions go through it. The outer problem moves this example so that the function
# agrees with 30 given points.
#
# The inner step goes to the nearest function through the example. From zero this is a single bump of
# height y at x, and no bump fits 30 points.


# %%
def function(w: Tensor) -> Tensor:
    """Values at the places of the given points."""
    return study.features(study.places) @ w


def bump(x: float, y: float) -> Tensor:
    """The function that one inner step from zero finds for the example (x, y)."""
    return function(study.features(torch.tensor([x], dtype=torch.float64))[0] * y)


best = study.baselines()["best single example"]["outer loss"]
print(f"outer loss of the zero function 0.500, of the best single bump {best:.3f}")

# %% [markdown]
# ## Cold, warm, and in between
#
# Everything is the same in these runs, except where the inner problem starts.

# %%
starts: dict[str, Start] = {"cold": "cold", "partial": Partial(keep=0.9), "warm": "warm"}
found: dict[str, Tensor] = {}
again: dict[str, Tensor] = {}
paths: dict[str, list[float]] = {}
losses: dict[str, list[float]] = {}
for name, start in starts.items():
    problem = study.problem()
    places: list[float] = []
    solution = solve(
        problem,
        Unroll(InnerSteps(1, SGD(1.0))),
        partial(torch.optim.Adam, lr=0.01),
        steps=600,
        start=start,
        progress=False,
        every=10,
    )
    x, y = float(solution.outer["x"]), float(solution.outer["y"])
    found[name], again[name] = function(solution.inner["w"]), bump(x, y)
    losses[name] = [float(record["loss/outer"]) for record in solution.history]
    anew = 0.5 * float((again[name] - study.targets).square().mean())
    print(f"{name:8} outer loss {losses[name][-1]:.3f}, with inner weights trained anew {anew:.3f}")
