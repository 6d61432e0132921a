# %% [markdown]
# # Few-shot regression: sinusoids
#
# A task is a sine wave with its own amplitude and phase, known at ten points. MAML learns initial
# weights from which a few gradient steps on these ten points come near the whole wave.

# %%
import matplotlib.pyplot as plt
import torch

from fewshot_blo import (
    MLP,
    SGD,
    Initialization,
    InnerSteps,
    TrainSettings,
    Unroll,
    classifier,
    evaluate,
    train,
)
from fewshot_blo.evaluation.evaluate import adapted
from fewshot_blo.objectives import MeanSquaredError
from fewshot_blo.records.figure import COLOURS
from fewshot_blo.tasks import TaskBatch
from fewshot_blo.tasks.families import FunctionSampler, Sinusoid

torch.manual_seed(0)
tasks = FunctionSampler(Sinusoid(), shot=10, query=10, tasks=25, split="train")
validation = FunctionSampler(Sinusoid(), shot=10, query=10, tasks=25, split="validation")
test = FunctionSampler(Sinusoid(), shot=10, query=50, tasks=25, split="test")
print(tasks.batch(0))

# %% [markdown]
# ## Meta-training
#
# All weights of a small network adapt (`Initialization`). `Unroll` differentiates through one inner
# step.

# %%
problem = Initialization(classifier(MLP(shape=(1,)), 40, 1), loss=MeanSquaredError())
step = InnerSteps(1, SGD(0.02))
result = train(
    problem,
    Unroll(step),
    tasks,
    validation,
    folder="run",
    settings=TrainSettings(steps=1000, learning_rate=5e-3, validate_every=500),
    adaptation=step,
    progress=False,
)
print(f"best validation error after one step: {result.validation:.2f}")

# %% [markdown]
# ## Error by inner steps
#
# The mean squared error of new points of 200 test tasks, with 95 % intervals. Training took one
# inner step; more of them help all the same.

# %%
counts = (0, 1, 2, 3, 5, 9, 20)
found = [
    evaluate(problem, test, tasks=200, adaptation=InnerSteps(count, SGD(0.02)), progress=False)
    for count in counts
]
means = [tested.mean for tested in found]
for count, tested in zip(counts, found, strict=True):
    print(f"{count:2} steps: {tested.mean:.2f} ± {tested.interval:.2f}")
assert means[1] < means[0] / 2, "one step halves the error"
assert means[-1] < means[1], "further steps lower it"
plt.figure(figsize=(6, 3.5))
plt.errorbar(counts, means, [tested.interval for tested in found], marker="o", capsize=3)
plt.yscale("log")
plt.xticks(range(0, 21, 5))
ticks = (0.3, 0.5, 1, 2, 3)
plt.yticks(ticks, [str(tick) for tick in ticks])
plt.minorticks_off()
plt.xlabel("inner steps on ten points")
plt.ylabel("mean squared error on new points")
plt.title("Test error after adaptation, mean and 95 % interval")
plt.grid(alpha=0.3)
plt.show()

# %% [markdown]
# ## Before and after adaptation
#
# The first four test tasks. Before the first step the function is the same for all of them: it is
# what training learned. The ten points of a task then bend it towards the wave that they are from.

# %%
batch = test.between(0, 4)
grid = torch.linspace(-5, 5, 200)[:, None]
dense = TaskBatch(
    batch.support_x, batch.support_y, grid.expand(4, -1, -1), torch.zeros(4, len(grid), 1)
)
with torch.no_grad():
    curves = {
        count: adapted(problem, dense, "support", InnerSteps(count, SGD(0.02)))()
        for count in (0, 1, 20)
    }

figure, axes = plt.subplots(2, 2, figsize=(9, 5.4), sharex=True, sharey=True, layout="constrained")
names = {0: "before adaptation", 1: "after 1 inner step", 20: "after 20 inner steps"}
looks = {0: (COLOURS[2], ":"), 1: (COLOURS[1], "--"), 20: (COLOURS[0], "-")}
for task, axis in enumerate(axes.flat):
    wave = test.function(task)(grid.numpy())
    axis.plot(grid, wave, color="gray", linewidth=4, alpha=0.4, label="true wave")
    for count, (colour, line) in looks.items():
        axis.plot(grid, curves[count][task], line, color=colour, label=names[count])
    axis.plot(batch.support_x[task], batch.support_y[task], "ko", markersize=4, label="ten points")
    axis.set_title(f"task {task}")
    axis.grid(alpha=0.3)
for axis in axes[1]:
    axis.set_xlabel("x")
for axis in axes[:, 0]:
    axis.set_ylabel("value")
figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
figure.suptitle("Four test tasks: the learned function before and after adaptation")
plt.show()

targets = torch.stack([torch.from_numpy(test.function(n)(grid.numpy())) for n in range(4)])
errors = {count: float((curve - targets).square().mean()) for count, curve in curves.items()}
for count, value in errors.items():
    print(f"{names[count]:21} mean squared error of the four curves {value:.2f}")
assert errors[20] < errors[1] < errors[0]
