# %% [markdown]
# # Which hypergradient?
#
# A bilevel problem needs the derivative of an outer loss through the solution of an inner one.
# There are many ways to compute it. Here seven of them meet one problem whose answer is known in
# closed form: how large is the error, and what does it cost?

# %%
import math
import time
from collections.abc import Mapping

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from fewshot_blo import (
    SGD,
    ConjugateGradient,
    FiniteDifference,
    Implicit,
    InnerSteps,
    Neumann,
    Penalty,
    PlainProblem,
    Unroll,
    ValueFunction,
)
from fewshot_blo.hypergrad import Strategy
from fewshot_blo.studies.products import count_passes

torch.set_num_threads(1)  # Tensors are small: more threads would wait for each other.
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## The problem
#
# A linear regression on 40 examples, with one learned weight decay `exp(u)` for each of its ten
# weights `v`. The outer loss is the error on 40 other examples.

# %%
x, x_outer = torch.randn(2, 40, 10)
truth = torch.randn(10) * (torch.arange(10) < 5)
y, y_outer = x @ truth + torch.randn(40), x_outer @ truth + torch.randn(40)
u = torch.full((10,), -1.5)


def inner_loss(v: Mapping[str, Tensor], u: Mapping[str, Tensor]) -> Tensor:
    """Error on the first examples, and weight decay."""
    error: Tensor = x @ v["w"] - y
    decay: Tensor = u["decay"].exp() @ v["w"].square()
    return error.square().mean() / 2 + decay / 2


def outer_loss(v: Mapping[str, Tensor], u: Mapping[str, Tensor]) -> Tensor:
    """Error on the other examples."""
    error: Tensor = x_outer @ v["w"] - y_outer
    return error.square().mean() / 2


problem = PlainProblem(
    outer={"decay": u}, inner={"w": torch.zeros(10)}, inner_loss=inner_loss, outer_loss=outer_loss
)

# %% [markdown]
# The inner solution solves a linear system with the matrix H, the Hessian of the inner loss. By the
# implicit function theorem the hypergradient is `-exp(u) v H⁻¹ F_v`, where `F_v` is the gradient of
# the outer loss. Autograd through the linear system says the same.

# %%
leaf = u.detach().clone().requires_grad_()
hessian = x.T @ x / 40 + leaf.exp().diag()
solution = torch.linalg.solve(hessian, x.T @ y / 40)
(exact,) = torch.autograd.grad(outer_loss({"w": solution}, {}), leaf)

outer_gradient = x_outer.T @ (x_outer @ solution - y_outer) / 40
formula = -leaf.exp() * solution * torch.linalg.solve(hessian, outer_gradient)
assert torch.allclose(exact, formula, rtol=1e-12)

curvatures = torch.linalg.eigvalsh(hessian.detach())
print(f"curvatures of the inner loss: {curvatures[0]:.2f} to {curvatures[-1]:.2f}")

# %% [markdown]
# ## Strategies with growing budgets
#
# Each strategy begins at `v = 0`. A budget of T means T inner steps; those that solve a linear
# system get T steps for it, too. The penalty method and the value function have a weight that must
# grow with the precision that is asked for: here it is T.

# %%
step = SGD(float(1 / curvatures[-1]))


def budgets(t: int) -> dict[str, Strategy]:
    """All strategies with a budget of ``t`` inner steps."""
    inner = InnerSteps(t, step)
    stiff = InnerSteps(t, SGD(float(1 / (t * curvatures[-1] ** 2 + curvatures[-1]))))
    return {
        "Unroll": Unroll(inner),
        "Unroll, last 4 steps": Unroll(inner, truncate=min(t, 4)),
        "Implicit, CG": Implicit(inner, ConjugateGradient(t)),
        "Implicit, Neumann": Implicit(inner, Neumann(t, step.step_size)),
        "FiniteDifference, CG": FiniteDifference(inner, ConjugateGradient(t)),
        "Penalty": Penalty(stiff, rho=float(t), lam=0.0, multiplier=0.0),
        "ValueFunction": ValueFunction(inner, value_steps=t, lam=float(t)),
    }


def degrees(a: Tensor, b: Tensor) -> float:
    """Angle between two vectors, precise for small angles."""
    a, b = a / a.norm(), b / b.norm()
    return math.degrees(2 * math.atan2(float((a - b).norm()), float((a + b).norm())))


rows: dict[str, list[tuple[float, int, int, float, float]]] = {}
for t in (2, 4, 8, 16, 32, 64, 128):
    for name, strategy in budgets(t).items():
        begun = time.perf_counter()
        found = strategy.hypergradient(problem.at(0), strategy.init()).gradient["decay"]
        milliseconds = 1e3 * (time.perf_counter() - begun)
        error = float((found - exact).norm() / exact.norm())
        angle = degrees(found, exact)
        passes = count_passes(problem, strategy)
        row = (error, passes.gradients, passes.products, milliseconds, angle)
        rows.setdefault(name, []).append(row)

print(
    f"{'with T = 128':22} {'error':>8} {'degrees':>8} {'gradients':>10} {'products':>9} {'ms':>6}"
)
for name, found_rows in rows.items():
    error, gradients, products, milliseconds, angle = found_rows[-1]
    figures = f"{error:8.1e} {angle:8.1e} {gradients:10} {products:9} {milliseconds:6.0f}"
    print(f"{name:22} {figures}")

# %% [markdown]
# ## Error against cost
#
# A gradient of a loss counts as one, a product with the Hessian as two. The angle to the exact
# hypergradient decides whether an outer step goes downhill: beyond 90 degrees it goes uphill.

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
colours = ["#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#000000", "#CC79A7", "#009E73"]
for (name, series), colour, marker in zip(rows.items(), colours, "ovsD^PX", strict=True):
    costs = [gradients + 2 * products for _, gradients, products, _, _ in series]
    style = {"marker": marker, "color": colour, "label": name, "alpha": 0.85}
    axes[0].loglog(costs, [error for error, *_ in series], **style)
    axes[1].loglog(costs, [angle for *_, angle in series], **style)
axes[0].set_title("Error of the hypergradient")
axes[0].set_ylabel("relative error")
axes[1].set_title("Angle to the exact hypergradient")
axes[1].set_ylabel("angle, degrees")
for axis in axes:
    axis.set_xlabel("cost: gradients + 2 × Hessian products")
    axis.grid(alpha=0.3)
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
plt.show()

# %%
last = {name: row[-1] for name, row in rows.items()}
assert all(last[name][0] < 1e-10 for name in ("Unroll", "Implicit, CG", "FiniteDifference, CG"))
assert all(1e-3 < last[name][0] < 3e-2 for name in ("Penalty", "ValueFunction"))
assert last["ValueFunction"][2] == last["FiniteDifference, CG"][2] == 0

# %% [markdown]
# ## What to choose
#
# - **Implicit** with conjugate gradients is exact at little more than the cost of the inner steps,
#   where the inner problem is convex and solved. `FiniteDifference` does the same without second
#   derivatives, up to rounding.
# - **Unroll** is the derivative of the steps that were taken, so that it also suits few steps from
#   a fixed start, as in few-shot learning. Its memory grows with T unless steps are recomputed.
#   With only the last steps an error remains, however many steps there are.
# - **ValueFunction** takes no second derivatives, and **Penalty** keeps no graph of the steps. Both
#   solve a nearby problem, whose error falls as the weight grows; with a large weight the
#   steps must be small. With too few steps for its weight the penalty method even pointed uphill.
#
# This is one small convex problem. For your own, `fewshot-blo check` measures the error, and
# `solve` reports how far a strategy is from implicit differentiation.
