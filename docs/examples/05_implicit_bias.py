# %% [markdown]
# # Implicit bias in pictures
#
# Where an inner problem has many solutions, the outcome of bilevel optimisation depends on which of
# them is found. Vicol et al. (arXiv 2212.14032) showed what this means for cold starts, where each
# inner problem begins anew, and warm starts, where it begins where the last one ended. This example
# repeats their observation on a small problem of our own: one learned example has to stand for 30.

# %%
import warnings
from functools import partial

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from fewshot_blo import SGD, InnerSteps, Unroll, solve
from fewshot_blo.errors import NotSolvedWarning
from fewshot_blo.solving.driver import Start
from fewshot_blo.studies.vectors.one_point import OnePoint

torch.set_num_threads(1)  # Tensors are small: more threads would wait for each other.
study = OnePoint(seed=0)

# %% [markdown]
# ## The problem
#
# A function is a sum of waves with weights `w`. The inner problem fits it to *one* example (x,
# y): infinitely many functions go through it. The outer problem moves this example so that the
# function agrees with 30 given points.
#
# The inner step goes to the nearest function through the example. From zero this is a single bump
# of height y at x, and no bump fits 30 points.


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
# ## Cold and warm
#
# Everything is the same in these runs, except where the inner problem starts.

# %%
# From a warm start, unrolling one step is far from implicit differentiation, which `solve` tells.
warnings.simplefilter("ignore", NotSolvedWarning)
starts: dict[str, Start] = {"cold": "cold", "warm": "warm"}
found: dict[str, Tensor] = {}
again: dict[str, Tensor] = {}
losses: dict[str, list[float]] = {}
retrained: dict[str, float] = {}
for name, start in starts.items():
    problem = study.problem()
    solution = solve(
        problem,
        Unroll(InnerSteps(1, SGD(1.0))),
        partial(torch.optim.Adam, lr=0.1),
        steps=600,
        start=start,
        progress=False,
        every=10,
    )
    x, y = float(solution.outer["x"]), float(solution.outer["y"])
    found[name], again[name] = function(solution.inner["w"]), bump(x, y)
    steps = [int(record["step"]) for record in solution.history]
    losses[name] = [float(record["loss/outer"]) for record in solution.history]
    anew = 0.5 * float((again[name] - study.targets).square().mean())
    print(f"{name:8} outer loss {losses[name][-1]:.3f}, with inner weights trained anew {anew:.3f}")
    retrained[name] = anew

assert abs(retrained["cold"] - losses["cold"][-1]) < 0.01
assert losses["warm"][-1] < best < retrained["warm"]

# %% [markdown]
# With warm starts the outer loss falls below that of the best single bump. One example cannot hold
# that much: the rest is in the inner weights, which retain a part of every earlier example. Trained
# anew on the learned example, they lose it.

# %%
colours = {"cold": "#0072B2", "warm": "#D55E00"}
plt.figure(figsize=(6.5, 3.6))
for name, values in losses.items():
    plt.plot(steps, values, color=colours[name], label=name)
plt.axhline(best, color="black", linestyle="--", label="best single bump")
plt.xlabel("outer step")
plt.ylabel("outer loss")
plt.ylim(0.3, 0.52)
plt.title("Warm starts fall below what one example can do")
plt.legend(title="inner start", loc="upper right", bbox_to_anchor=(1, 0.97))
plt.show()

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
for axis, name in zip(axes, starts, strict=True):
    axis.plot(study.places, study.targets, "o", color="gray", markersize=4, label="given points")
    axis.plot(study.places, found[name], color="#009E73", label="as found")
    axis.plot(study.places, again[name], "--", color="black", label="trained anew")
    axis.set_title(f"{name} start")
    axis.set_xlabel("place x")
axes[0].set_ylabel("value")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
figure.suptitle("The learned function, and the one trained anew on the learned example")
plt.show()

# %% [markdown]
# Neither start is wrong, but they answer different questions. If the learned outer variables are
# to be used with a freshly trained model, as in data set distillation, evaluate them that way, and
# prefer cold starts. If the inner model itself is kept, a warm start is cheaper and fits better.
# `solve` starts warm by default, and cold where a strategy differentiates the start. The studies
# `implicit-bias-*.yaml` in `recipes/studies` measure more strategies and problems.
