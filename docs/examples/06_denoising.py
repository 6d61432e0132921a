# %% [markdown]
# # Denoising labels, a bilevel problem
#
# A third of the training labels is wrong, and nobody knows which. Each training example gets a
# weight. The inner problem fits a classifier to the weighted examples; the outer problem chooses
# the weights so that this classifier is right on a few clean examples.

# %%
import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fewshot_blo import PlainProblem, solve

CLASSES, FEATURES, WRONG = 3, 10, 0.33


def made(seed: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """Training (90), clean (45) and test examples (2000): points around three centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = 1.2 * torch.randn(CLASSES, FEATURES, generator=generator)
    parts = []
    for count in (90, 45, 2000):
        y = torch.randint(CLASSES, (count,), generator=generator)
        x = centres[y] + 1.5 * torch.randn(count, FEATURES, generator=generator)
        parts.append((x, y))
    return tuple(parts)


# %% [markdown]
# ## Two losses
#
# `u` are the logits of the weights, `v` the weights of softmax regression. The small squared term
# makes the inner minimiser unique; the one on `u` keeps logits near zero where nothing speaks for
# a weight.


# %%
def denoised(seed: int) -> tuple[Tensor, Tensor, float, float]:
    """Learned weights, which labels are wrong, and test accuracies before and after."""
    (x, true), (clean_x, clean_y), (test_x, test_y) = made(seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    wrong = torch.rand(len(true), generator=generator) < WRONG
    shift = torch.randint(1, CLASSES, (len(true),), generator=generator)
    y = torch.where(wrong, (true + shift) % CLASSES, true)
    start = {"w": torch.zeros(FEATURES, CLASSES)}

    def fitted(weights: Tensor, w: Tensor) -> Tensor:
        each = cross_entropy(x @ w, y, reduction="none")
        return (weights * each).mean() + 0.02 * w.square().sum()

    def accuracy(w: Tensor) -> float:
        return 100 * float(((test_x @ w).argmax(1) == test_y).float().mean())

    problem = PlainProblem(
        outer={"u": torch.zeros(len(y))},
        inner=start,
        inner_loss=lambda v, u: fitted(u["u"].sigmoid(), v["w"]),
        outer_loss=lambda v, u: (
            cross_entropy(clean_x @ v["w"], clean_y) + 1e-3 * u["u"].square().mean()
        ),
    )
    w = torch.zeros(FEATURES, CLASSES, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = fitted(torch.full((len(y),), 0.5), w)
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)
    solution = solve(problem, steps=30, progress=False)
    weights = problem.outer["u"].detach().sigmoid()
    return weights, wrong, accuracy(w.detach()), accuracy(solution.inner["w"].detach())


found = [denoised(seed) for seed in range(5)]
before = torch.tensor([row[2] for row in found])
after = torch.tensor([row[3] for row in found])
for seed in range(5):
    print(f"seed {seed}: {before[seed]:.1f} % before, {after[seed]:.1f} % after")
assert after.mean() > before.mean()

# %% [markdown]
# ## What the weights say
#
# No weight was told which labels are wrong. Equal weights do not use the 45 clean examples, which
# learned weights do: part of the gain is this further knowledge.

# %%
weights = torch.cat([row[0] for row in found])
wrong = torch.cat([row[1] for row in found])
assert weights[~wrong].mean() > weights[wrong].mean() + 0.2
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
bins = torch.linspace(0, 1, 21).tolist()
left.hist(weights[~wrong].tolist(), bins, color="#0072B2", alpha=0.7, label="right label")
left.hist(weights[wrong].tolist(), bins, color="#E69F00", alpha=0.7, label="wrong label")
left.set(xlabel="learned weight", ylabel="training examples", title="Weights, five seeds")
left.legend()
for start, end in zip(before.tolist(), after.tolist(), strict=True):
    right.plot([0, 1], [start, end], color="#0072B2", marker="o")
right.set_xticks([0, 1], ["equal weights", "learned weights"])
right.set(
    xlabel="inner problem",
    ylabel="test accuracy, %",
    title="Accuracy, one line a seed",
    xlim=(-0.3, 1.3),
)
plt.show()
