# %% [markdown]
# # MAML by hand
#
# MAML (Finn et al., arXiv 1703.03400) looks for initial weights from which a few gradient steps on
# a new task go a long way. This example builds it from one function, `adapt`, which takes the inner
# steps of all tasks at once, and checks it against a plain loop. The loop over outer steps is
# yours.

# %%
import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fewshot_blo import SGD, InnerSteps
from fewshot_blo.kernel import adapt

torch.set_num_threads(1)  # Tensors are small: more threads would wait for each other.
torch.manual_seed(0)
network = nn.Sequential(
    nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1)
).double()
inner = InnerSteps(5, SGD(0.1))

# %% [markdown]
# ## Tasks
#
# A task is a bump of random height, up or down, at a random place. Ten points of it are given (the
# support set); the loss that counts is on ten others (the query set).


# %%
def bump(x: Tensor, height: Tensor, place: Tensor) -> Tensor:
    """Values of bumps at x ``[T, points, 1]``, one bump per task."""
    return height * torch.exp(-((x - place) ** 2))


def tasks(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x and y of the support set, then of the query set, each ``[count, 10, 1]``."""
    height, place, first, second = torch.rand(
        4, count, 10, 1, generator=generator, dtype=torch.float64
    )
    height, place = 6 * height[:, :1] - 3, 4 * place[:, :1] - 2
    x, x_query = 6 * first - 3, 6 * second - 3
    return x, bump(x, height, place), x_query, bump(x_query, height, place)


# %% [markdown]
# ## Inner steps of all tasks at once
#
# `adapt` works on stacked parameters: each tensor has a first dimension of tasks. The loss maps
# them to one loss per task. With `derivatives="second"` the result is differentiable with respect
# to the initial weights, through all five steps.


# %%
def losses(stacked: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of each task, ``[T]``."""
    outputs = torch.vmap(lambda p, inputs: functional_call(network, p, (inputs,)))(stacked, x)
    errors: Tensor = outputs - y
    return errors.square().mean((1, 2))


def outer_loss(batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Mean query loss after adaptation, a function of the network's initial weights."""
    x, y, x_query, y_query = batch
    start = {name: p.expand(len(x), *p.shape) for name, p in network.named_parameters()}
    adapted = adapt(lambda v: losses(dict(v), x, y), start, inner, derivatives="second")
    return losses(dict(adapted), x_query, y_query).mean()


batch = tasks(8, torch.Generator().manual_seed(1))
weights = list(network.parameters())
hypergradient = torch.autograd.grad(outer_loss(batch), weights)
print("entries of the hypergradient:", sum(g.numel() for g in hypergradient))

# %% [markdown]
# ## The same with a plain loop
#
# One task after another, one step after another, as on paper. In float64 the two agree to rounding.

# %%
total = torch.zeros((), dtype=torch.float64)
for x, y, x_query, y_query in zip(*batch, strict=True):
    v: dict[str, Tensor] = dict(network.named_parameters())
    for _ in range(5):
        loss = (functional_call(network, v, (x,)) - y).square().mean()
        gradients = torch.autograd.grad(loss, list(v.values()), create_graph=True)
        v = {name: p - 0.1 * g for (name, p), g in zip(v.items(), gradients, strict=True)}
    total = total + (functional_call(network, v, (x_query,)) - y_query).square().mean() / 8
plain = torch.autograd.grad(total, weights)

pairs = list(zip(hypergradient, plain, strict=True))
error = max(float((a - b).abs().max()) for a, b in pairs)
size = max(float(b.abs().max()) for b in plain)
print(f"largest entry {size:.3f}, largest difference {error:.1e}")
assert error < 1e-12 * max(size, 1.0)

# %% [markdown]
# ## Training
#
# The outer loop is ordinary PyTorch.

# %%
generator = torch.Generator().manual_seed(2)
unseen = tasks(200, torch.Generator().manual_seed(3))
initial = {name: p.detach().clone() for name, p in network.named_parameters()}
before = outer_loss(unseen).item()

optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
curve = []
for _ in range(800):
    step_loss = outer_loss(tasks(16, generator))
    optimizer.zero_grad()
    step_loss.backward()
    optimizer.step()
    curve.append(step_loss.item())

after = outer_loss(unseen).item()
print(f"mean loss on 200 new tasks: {before:.3f} before, {after:.3f} after")
assert after < before / 4

means = torch.tensor(curve).unfold(0, 20, 20).mean(1)
plt.figure(figsize=(6, 3.3))
plt.semilogy(range(20, 801, 20), means, label="training tasks, mean of 20 steps")
plt.axhline(before, color="gray", linestyle="--", label="new tasks, random weights")
plt.xlabel("outer step (16 tasks each)")
plt.ylabel("query loss after 5 inner steps\n(mean squared error)")
plt.title("Meta-training")
plt.legend(loc="center right", bbox_to_anchor=(1, 0.75))
plt.show()

# %% [markdown]
# ## A new task
#
# From random weights, five steps find little more than a slope. From the learned initial weights,
# the same five steps on ten points find the shape of a bump that was never seen.

# %%
x, y = tasks(1, torch.Generator().manual_seed(11))[:2]
grid = torch.linspace(-3, 3, 200, dtype=torch.float64)[:, None]
learned = {name: p.detach() for name, p in network.named_parameters()}

figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), sharey=True, layout="constrained")
for axis, title, start in (
    (axes[0], "From random weights", initial),
    (axes[1], "From learned weights", learned),
):
    axis.plot(x[0], y[0], "o", color="black", label="given points")
    for count, style in ((0, ":"), (1, "--"), (5, "-")):
        adapted = dict(
            adapt(
                lambda v: losses(dict(v), x, y),
                {name: p[None] for name, p in start.items()},
                InnerSteps(count, SGD(0.1)),
            )
        )
        values = functional_call(network, {name: p[0] for name, p in adapted.items()}, (grid,))
        axis.plot(grid, values.detach(), style, label=f"inner steps: {count}")
    axis.set_title(title)
    axis.set_xlabel("x")
axes[0].set_ylabel("y")
axes[1].legend()
plt.show()
