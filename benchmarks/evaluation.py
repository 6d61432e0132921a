"""Time of evaluating a head on embedded tasks, by its parts, beside a plain loop over tasks.

    python benchmarks/evaluation.py [--root DIR] [--tasks 10000] [--loop_tasks 500] [--repeats 3]
        [--threads 2] [--device cuda] [--output FILE]

5-way 1-shot tasks with 15 queries a class from Omniglot's 1692 test classes (of ``--root``, or
synthetic images of that number and shape), Conv4-64 with running statistics, a linear head that
starts at the prototypes and takes 10 steps of SGD. The weights are random: they do not change the
time. The loop is what a script does: for each task it indexes the images, runs the encoder on them,
fits the head with autograd and predicts. It runs on fewer tasks, whose time is scaled to all, and
its accuracies must be those of ``evaluate``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from machine import describe
from timing import Spread, seconds
from torch import Tensor, nn

from fewshot_blo import Conv4, SharedEncoder
from fewshot_blo.evaluation.evaluate import embed, evaluate
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.machine.allocator import keep_freed_memory
from fewshot_blo.records.files import atomic_write
from fewshot_blo.tasks import ClassDataset, EpisodicSampler, omniglot
from fewshot_blo.training.running_statistics import update_statistics

CLASSES, IMAGES, WAY, SHOT, QUERY, PROX = 1692, 20, 5, 1, 15, 0.5
STEPS, STEP_SIZE = InnerSteps(10, SGD(0.5)).most, 0.5


def main() -> None:
    """Prints seconds of the whole, of its parts and of the loop."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="folder of Omniglot; synthetic images without")
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--loop_tasks", type=int, default=500, help="tasks of the plain loop")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()

    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    dataset = (omniglot.load(arguments.root).test if arguments.root else synthetic()).to(device)
    sampler = EpisodicSampler(dataset, way=WAY, shot=SHOT, query=QUERY, tasks=32, seed=1000)
    problem = SharedEncoder(Conv4().to(device), prox=PROX)
    update_statistics(problem, sampler)
    plain = plain_encoder(problem.network).to(device).eval()
    tasks, loop_tasks = arguments.tasks, min(arguments.tasks, arguments.loop_tasks)

    embeddings = embed(problem.network, dataset.images)

    def draw() -> None:
        for start in range(0, tasks, 1000):
            sampler.between(start, min(start + 1000, tasks), embeddings)

    def from_embeddings() -> None:
        with mock.patch("fewshot_blo.evaluation.evaluate.embed", return_value=embeddings):
            evaluate(problem, sampler, tasks=tasks, norm="running")

    in_loop = loop(plain, sampler, loop_tasks)
    found = evaluate(problem, sampler, tasks=loop_tasks, norm="running").values
    different = int((found != in_loop.cpu()).sum())
    if different > loop_tasks // 100:  # Ties in float32 may fall either way.
        raise AssertionError(f"{different} of {loop_tasks} tasks have another accuracy in the loop")

    measured: dict[str, list[float]] = {}
    contenders = {
        "whole": lambda: evaluate(problem, sampler, tasks=tasks, norm="running"),
        "embedding": lambda: embed(problem.network, dataset.images),
        "from embeddings": from_embeddings,
        "sampling": draw,
        "loop": lambda: loop(plain, sampler, loop_tasks),
    }
    for _ in range(arguments.repeats):
        for name, contender in contenders.items():
            scale = tasks / loop_tasks if name == "loop" else 1
            measured.setdefault(name, []).append(scale * seconds(contender, device))
    measured["adaptation"] = [
        both - drawing
        for both, drawing in zip(measured["from embeddings"], measured["sampling"], strict=True)
    ]
    measured["loop / whole"] = [
        slow / fast for slow, fast in zip(measured["loop"], measured["whole"], strict=True)
    ]
    print(f"{tasks} tasks on {device}, {arguments.threads} threads, {len(dataset)} images")
    for name, words in ROWS.items():
        spread = Spread.of(measured[name])
        print(f"{words:46} {spread.median:8.2f}  ({spread.low:.2f} to {spread.high:.2f})")
    if arguments.output:
        figures = {"machine": describe(device), "tasks": tasks, "loop_tasks": loop_tasks}
        with atomic_write(arguments.output) as file:
            file.write(json.dumps({**figures, "measured": measured}, indent=1).encode())


ROWS = {
    "whole": "evaluate, s",
    "embedding": "  of it embedding the split",
    "from embeddings": "  of it from the embeddings on",
    "sampling": "    of that drawing tasks",
    "adaptation": "    of that adapting and scoring",
    "loop": "loop over tasks, scaled to as many, s",
    "loop / whole": "ratio, run by run",
}


def synthetic() -> ClassDataset:
    """Noise in the shape of Omniglot's test split."""
    return ClassDataset(
        torch.randint(0, 256, (CLASSES * IMAGES, 1, 28, 28), dtype=torch.uint8),
        torch.arange(CLASSES).repeat_interleave(IMAGES),
        tuple(str(n) for n in range(CLASSES)),
    )


def plain_encoder(network: nn.Module) -> nn.Sequential:
    """The same encoder of PyTorch's own layers."""
    state = network.state_dict()
    layers: list[nn.Module] = []
    for block in range(4):
        prefix = f"blocks.block{block + 1}"
        weight = state[f"{prefix}.convolution.weight"]
        convolution = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
        norm = nn.BatchNorm2d(weight.shape[0])
        for name, layer in (("convolution", convolution), ("norm", norm)):
            own = {n: state[f"{prefix}.{name}.{n}"] for n in layer.state_dict() if "num" not in n}
            layer.load_state_dict(own, strict=False)
        layers += [convolution, norm, nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten())


def loop(encoder: nn.Module, sampler: EpisodicSampler, tasks: int) -> Tensor:
    """Accuracy of each task, one after another."""
    support_labels = torch.arange(WAY, device=sampler.device).repeat_interleave(SHOT)
    query_labels = torch.arange(WAY, device=sampler.device).repeat_interleave(QUERY)
    accuracies = []
    for number in range(tasks):
        task = sampler.between(number, number + 1)
        with torch.no_grad():
            features = encoder(torch.cat([task.support_x[0], task.query_x[0]]))
        support, query = (features / features.shape[1] ** 0.5).split([WAY * SHOT, WAY * QUERY])
        prototypes = support.reshape(WAY, SHOT, -1).mean(1)
        start = 2 * prototypes, -prototypes.square().sum(1)
        weight, bias = (p.clone().requires_grad_() for p in start)
        optimizer = torch.optim.SGD([weight, bias], lr=STEP_SIZE)
        for _ in range(STEPS):
            distance = (weight - start[0]).square().sum() + (bias - start[1]).square().sum()
            loss = F.cross_entropy(support @ weight.T + bias, support_labels) + PROX / 2 * distance
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            guesses = (query @ weight.T + bias).argmax(1)
        accuracies.append((guesses == query_labels).double().mean())
    return torch.stack(accuracies)


if __name__ == "__main__":
    main()
