# %% [markdown]
# # A strategy of your own
#
# A strategy says how the hypergradient of a bilevel problem is computed. It is one class with one
# method. This example writes one that the package does not have, checks it, and trains with it
# beside one that comes with the package.

# %%
import time
from collections.abc import Mapping
from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from fewshot_blo import (
    SGD,
    Bilevel,
    ConfigurationError,
    ConjugateGradient,
    Conv4,
    Implicit,
    InnerSteps,
    OneStep,
    OuterStep,
    PlainProblem,
    SharedEncoder,
    TrainSettings,
    evaluate,
    train,
)
from fewshot_blo.bilevel import task_dot
from fewshot_blo.checks.backends import check_kernel
from fewshot_blo.checks.hypergradient import measure_hypergradient
from fewshot_blo.evaluation.result import Evaluation
from fewshot_blo.hypergrad.gradients import (
    IN_NO_LOSS,
    add_gradients,
    both_gradients,
    hessian_products,
    inner_gradients,
    outer_gradients,
)
from fewshot_blo.hypergrad.strategy import State, Strategy, inner_start
from fewshot_blo.kernel import BackendChoice, adapt
from fewshot_blo.records.checked import checked
from fewshot_blo.records.figure import COLOURS
from fewshot_blo.records.ranges import Counting, Positive
from fewshot_blo.studies.products import passes_of_step
from fewshot_blo.tasks import EpisodicSampler, glyphs

# %% [markdown]
# ## The idea
#
# Let G be the inner loss, F the outer loss, and subscripts derivatives. At a minimiser v of G the
# hypergradient is `F_u - G_uv q`, where q solves the linear system `G_vv q = F_v`. `Implicit`
# solves it by conjugate gradients. Here only the diagonal of `G_vv` is used, so that solving is a
# division.
#
# The diagonal is estimated. For a vector s of random signs, the mean of `s * (G_vv s)` is the
# diagonal, and each sample costs one product with the Hessian.
#
# In the class, all tensors of inner parameters have a first dimension of tasks. All tasks share the
# same signs, so that the result of a task does not depend on the tasks beside it.


# %%
@checked
@dataclass(frozen=True)
class DiagonalHessian(Strategy[State]):
    """``du = F_u - G_uv q`` with ``q = F_v / diag(G_vv)``, its diagonal estimated.

    Attributes:
        inner: inner steps.
        probes: number of vectors of random signs.
        floor: smallest value of the diagonal; lower estimates are raised to it.
    """

    inner: InnerSteps = InnerSteps(16, SGD(0.5))
    probes: Counting = 4
    floor: Positive = 0.1

    def hypergradient(self, problem: Bilevel, state: State) -> OuterStep:
        """Adapts without a graph, divides by the diagonal and differentiates once."""
        v = adapt(problem.inner_loss, inner_start(problem, state), self.inner, outer=problem.outer)
        v = {name: p.detach().requires_grad_() for name, p in v.items()}
        outer_loss, inner_loss = problem.outer_loss(v), problem.inner_loss(v)
        f_v, f_u = both_gradients(outer_loss, v, problem.outer)
        g_v = inner_gradients(inner_loss.sum(), v, create_graph=True)
        diagonal = self.diagonal(g_v, v)
        q = {name: g / diagonal[name].clamp(min=self.floor) for name, g in f_v.items()}
        minus_g_uv_q = outer_gradients(-task_dot(g_v, q).mean(), problem.outer)
        gradient = add_gradients(
            problem.outer, [f_u, minus_g_uv_q], method="DiagonalHessian", remedy=IN_NO_LOSS
        )
        reached = {name: p.detach() for name, p in v.items()}
        return OuterStep(gradient, reached, outer_loss.detach(), inner_loss.detach())

    def diagonal(self, g_v: dict[str, Tensor], v: dict[str, Tensor]) -> dict[str, Tensor]:
        """Estimate of the diagonal of ``G_vv``, ``[T, ...]``, from the gradient with its graph."""
        product = hessian_products(g_v, v)
        generator = torch.Generator().manual_seed(0)
        total = {name: torch.zeros_like(p) for name, p in v.items()}
        for _ in range(self.probes):
            drawn = {
                name: torch.randint(2, p.shape[1:], generator=generator) for name, p in v.items()
            }
            signs = {name: (2 * drawn[name] - 1).to(p).expand_as(p) for name, p in v.items()}
            found = product(signs)
            total = {name: p + signs[name] * found[name] for name, p in total.items()}
        return {name: p / self.probes for name, p in total.items()}


# %% [markdown]
# The range of a setting stands beside its type, and `@checked` holds it to that.

# %%
try:
    DiagonalHessian(probes=0)
except ConfigurationError as error:
    print(error)

# %% [markdown]
# ## A problem where it must be exact
#
# If `G_vv` is diagonal, nothing is left out, and one vector of signs finds the diagonal exactly.
# With `G = sum(exp(u) v² / 2 - c v)` the minimiser is `c / exp(u)`, and the hypergradient of
# `F = sum((v - target)²) / 2` is `-(v - target) v`.

# %%
torch.manual_seed(0)
c, target = torch.randn(2, 6, dtype=torch.float64)
u = torch.linspace(-1, 1, 6, dtype=torch.float64)


def inner_loss(v: Mapping[str, Tensor], u: Mapping[str, Tensor]) -> Tensor:
    """G."""
    each: Tensor = u["u"].exp() * v["v"].square() / 2 - c * v["v"]
    return each.sum()


def outer_loss(v: Mapping[str, Tensor], u: Mapping[str, Tensor]) -> Tensor:
    """F."""
    error: Tensor = v["v"] - target
    return error.square().sum() / 2


exact = -(c / u.exp() - target) * c / u.exp()
separable = PlainProblem(
    outer={"u": u}, inner={"v": torch.zeros_like(c)}, inner_loss=inner_loss, outer_loss=outer_loss
)
strategy = DiagonalHessian(InnerSteps(300, SGD(0.3)), probes=1)
found = strategy.hypergradient(separable.at(0), strategy.init()).gradient["u"]
difference = float((found - exact).abs().max())
print(f"largest entry {float(exact.abs().max()):.2f}, largest difference {difference:.1e}")
assert difference < 1e-12

# %% [markdown]
# ## Few-shot tasks: the same as a plain loop
#
# Each task has five printed letters with one labelled picture each. `check_kernel` takes an outer
# step with each way to run the network for all tasks at once, and compares it with a loop over the
# tasks, in float64. It does so for the strategy in use and for others of the package.

# %%
splits = glyphs.load()
tasks, validation, test = (
    EpisodicSampler(split, way=5, shot=1, query=5, tasks=8) for _, split in splits
)


def letters(backend: BackendChoice = "auto", *, double: bool = False) -> SharedEncoder:
    """A shared network of four convolutions, always from the same initial weights."""
    torch.manual_seed(1)
    encoder = Conv4(hidden=16)
    return SharedEncoder(encoder.double() if double else encoder, backend=backend)


batch = tasks.batch(0)[:4].to(torch.device("cpu"), torch.float64)
compared = check_kernel(
    lambda backend: letters(backend, double=True), DiagonalHessian(probes=2), batch[:2]
)
for row in compared:
    if row.quantity.startswith("DiagonalHessian"):
        print(f"{row.quantity}, backend {row.backend}: relative difference {row.difference:.1e}")
assert all(row.agrees for row in compared)

# %% [markdown]
# ## Few-shot tasks: angle and cost
#
# Here `G_vv` is not diagonal, and something is left out. `measure_hypergradient` solves the inner
# problems by Newton's method, differentiates there by the implicit function theorem, and says at
# which angle a strategy's hypergradient is to this one. It uses nothing of the strategy.
#
# `passes_of_step` counts the products with second derivatives. One of them, with `G_uv`, is needed
# in any case; `Implicit` with `OneStep` takes no other, as if `G_vv` were a multiple of the
# identity.

# %%
inner = InnerSteps(16, SGD(0.5))
problem = letters(double=True)
methods: dict[str, list[Strategy]] = {
    "DiagonalHessian, 1 to 16 probes": [DiagonalHessian(inner, n) for n in (1, 2, 4, 16)],
    "Implicit, CG of 1 to 4 steps": [Implicit(inner, ConjugateGradient(n)) for n in (1, 2, 4)],
    "Implicit, OneStep": [Implicit(inner, OneStep(0.5))],
}
angles: dict[str, list[tuple[int, float]]] = {}
for name, budgets in methods.items():
    for method in budgets:
        angle = measure_hypergradient(problem, method, batch).angle
        passes = passes_of_step(problem.bind(batch, "transductive").bilevel, method)
        angles.setdefault(name, []).append((passes.products, angle))
        print(f"{name:32} {passes.products:2} products, {angle:6.2f} degrees")

# %%
figure, axis = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
for (name, points), colour, marker in zip(angles.items(), COLOURS[:3], "os^", strict=True):
    axis.loglog(*zip(*points, strict=True), color=colour, marker=marker, label=name)
axis.set_xticks([1, 2, 3, 5, 17], ["1", "2", "3", "5", "17"])
axis.set_xticks([], minor=True)
axis.set_xlabel("products with second derivatives, per outer step")
axis.set_ylabel("angle to the exact one, degrees")
axis.set_title("Hypergradient of four tasks at initial weights")
axis.grid(alpha=0.3)
axis.legend()
plt.show()

# %% [markdown]
# ## Training
#
# `train` takes the new strategy as it takes any other. Both runs have the same initial weights,
# tasks and number of products.

# %%
settings = TrainSettings(steps=45, learning_rate=3e-3, validate_every=15, validation_tasks=50)
chosen: dict[str, Strategy] = {
    "DiagonalHessian, 4 probes": DiagonalHessian(inner, 4),
    "Implicit, CG of 4 steps": Implicit(inner, ConjugateGradient(4)),
}


def trained(method: Strategy, folder: str) -> tuple[list[tuple[int, Evaluation]], Evaluation]:
    """Validations by outer step, and the result on test tasks."""
    problem, course = letters(), list[tuple[int, Evaluation]]()
    train(
        problem,
        method,
        tasks,
        validation,
        folder=folder,
        settings=settings,
        adaptation=inner,
        progress=False,
        validated=lambda step, found: course.append((step, found)),
    )
    return course, evaluate(problem, test, tasks=150, adaptation=inner, progress=False)


courses: dict[str, list[tuple[int, Evaluation]]] = {}
results: dict[str, Evaluation] = {}
for number, (name, method) in enumerate(chosen.items()):
    begun = time.perf_counter()
    courses[name], tested = trained(method, f"run{number}")
    results[name] = tested
    accuracy = f"{100 * tested.mean:.1f} ± {100 * tested.interval:.1f} %"
    print(f"{name:26} test accuracy {accuracy}, {time.perf_counter() - begun:.0f} s in all")

# %%
figure, axis = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
for shift, (name, course), colour, marker in zip(
    (-0.5, 0.5), courses.items(), COLOURS[:2], "os", strict=True
):
    steps = [step + 0.7 * shift for step, _ in course]
    means = [100 * found.mean for _, found in course]
    widths = [100 * found.interval for _, found in course]
    axis.errorbar(steps, means, widths, color=colour, marker=marker, capsize=3, label=name)
axis.axhline(20, color="gray", linestyle="--", label="guessing")
axis.set_xlabel("outer step (8 tasks each)")
axis.set_ylabel("accuracy on new letters, %")
axis.set_ylim(0, 100)
axis.set_title("Validation: mean of 50 tasks, 95 % interval")
axis.grid(alpha=0.3)
axis.legend(loc="center right")
plt.show()

# %%
own, built_in = angles["DiagonalHessian, 1 to 16 probes"], angles["Implicit, CG of 1 to 4 steps"]
assert all(ours > theirs for (_, ours), (_, theirs) in zip(own, built_in, strict=False))
assert own[-1][1] < own[0][1] < angles["Implicit, OneStep"][0][1]
ours, theirs = results["DiagonalHessian, 4 probes"], results["Implicit, CG of 4 steps"]
assert abs(ours.mean - theirs.mean) < ours.interval + theirs.interval

# %% [markdown]
# ## What this says
#
# - The class is right: exact where it must be, and the same for all tasks at once as in a loop.
# - It is far closer to the exact hypergradient than `OneStep`, for a few more products.
# - With as many products, conjugate gradients are closer still. They solve the whole system, and
#   the diagonal keeps an error however many probes there are. Take `Implicit` for this problem.
# - In so short a training the test intervals of the diagonal and of conjugate gradients overlap:
#   these figures do not tell which one trains better. The seconds contain validations and test.
#
# In a file of `fewshot_blo/hypergrad/`, and with its name in `STRATEGIES` of that package, the
# class is also on the command line, in recipes, and in the test suite, which compares it with a
# plain loop on every problem: see the guide "A strategy, head, encoder or data set of your own".
