# %% [markdown]
# # A first model
#
# Few-shot learning means learning new classes from a handful of examples each. Here a small network
# is meta-trained on printed letters, until one picture of a letter that it has never seen is enough
# to recognise it. Nothing is downloaded.

# %% [markdown]
# ## Tasks
#
# `glyphs` draws letters of many scripts from the fonts that come with matplotlib. Classes, not
# pictures, are divided into three parts: no test letter occurs in training.

# %%
import matplotlib.pyplot as plt
import torch

from fewshot_blo import (
    SGD,
    Conv4,
    InnerSteps,
    SharedEncoder,
    TrainSettings,
    Unroll,
    evaluate,
    train,
)
from fewshot_blo.evaluation.result import Evaluation
from fewshot_blo.tasks import EpisodicSampler, glyphs

torch.manual_seed(0)
splits = glyphs.load()
for part, split in splits:
    print(f"{part}: {len(split.class_names)} letters, {len(split)} pictures")
scripts = {name.partition("/")[0] for _, split in splits for name in split.class_names}
print(f"{len(scripts)} scripts, such as {', '.join(sorted(scripts)[:4])}")

# %% [markdown]
# A sampler makes tasks, which are also called episodes. Each has five letters (5-way) with one
# labelled picture (1-shot): the support set. The query set asks about other pictures of the same
# letters.

# %%
tasks, validation, test = (
    EpisodicSampler(split, way=5, shot=1, query=5, tasks=8) for _, split in splits
)
batch = tasks.batch(0)
print(batch)

figure, axes = plt.subplots(5, 6, figsize=(5, 4.6))
for row in range(5):
    letters = [batch.support_x[0, row], *batch.query_x[0][batch.query_y[0] == row]]
    for axis, letter in zip(axes[row], letters, strict=True):
        axis.imshow(letter[0], cmap="gray_r")
        axis.set_xticks([])
        axis.set_yticks([])
    axes[row, 0].set_ylabel(f"class {row}", rotation=0, ha="right", va="center")
axes[0, 0].set_title("support")
axes[0, 3].set_title("query")
figure.suptitle("One task: five letters, one labelled picture each")
plt.show()

# %% [markdown]
# ## Problem and strategy
#
# The *problem* says what adapts to a task and what all tasks share: `SharedEncoder` shares a
# network of four convolutions and gives each task a linear classifier of its own. The *strategy*
# says how the shared part learns: `Unroll` takes five gradient steps on the support set, and
# differentiates the loss on the query set through all of them.

# %%
problem = SharedEncoder(Conv4(hidden=32))
strategy = Unroll(InnerSteps(5, SGD(0.5)))

history: list[tuple[int, Evaluation]] = []
result = train(
    problem,
    strategy,
    tasks,
    validation,
    folder="run",
    settings=TrainSettings(steps=80, validate_every=20, validation_tasks=100),
    progress=False,
    validated=lambda step, found: history.append((step, found)),
)
print(f"best validation accuracy: {100 * result.validation:.1f} %")

# %% [markdown]
# ## What it learned
#
# Guessing would be right in 20 % of the answers. The band is the 95 % confidence interval of the
# mean over 100 tasks. The weights of the best validation are kept, in the problem and in
# `run/best.pt`.

# %%
steps = [step for step, _ in history]
means = torch.tensor([100 * found.mean for _, found in history])
widths = torch.tensor([100 * found.interval for _, found in history])

plt.figure(figsize=(6, 3.5))
plt.fill_between(steps, means - widths, means + widths, alpha=0.3, label="95 % interval")
plt.plot(steps, means, marker="o", label="mean over 100 tasks")
plt.axhline(20, color="gray", linestyle="--", label="guessing")
plt.ylim(0, 102)
plt.xlabel("outer step (8 tasks each)")
plt.ylabel("accuracy on new letters, %")
plt.title("Validation while meta-training")
plt.legend(loc="center right")
plt.show()

# %% [markdown]
# ## The figure to report
#
# Test letters were seen neither in training nor in the choice of the best step. The network has
# batch norm, and whose statistics normalise the queries is part of the protocol:
#
# - `transductive`: those of the query set. Queries see each other, which usually helps.
# - `support`: those of the support set.
# - `running`: averages from training. Each query is answered alone.
#
# Accuracies under different norm modes are not comparable, so each result names its own.

# %%
results = {
    norm: evaluate(problem, test, tasks=200, norm=norm, progress=False)
    for norm in ("transductive", "support", "running")
}
for found in results.values():
    print(found)

assert all(found.mean - found.interval > 0.5 for found in results.values())

# %% [markdown]
# Each line has the mean, the half-width of its 95 % confidence interval, and the protocol: all that
# a reader needs to compare it. On the command line, `fewshot-blo train` and `fewshot-blo evaluate`
# do the same.
