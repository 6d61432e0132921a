"""A problem of a user's own, which shares no code with ours but the interface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_same
from small_runs import SETTINGS, make_dataset, make_sampler
from torch import Tensor, nn

from fewshot_blo.bilevel import Bilevel, TaskParams
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.evaluation.evaluate import evaluate
from fewshot_blo.hypergrad import Implicit, Unroll
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.problems import BoundTasks, FewShotProblem, NormMode
from fewshot_blo.problems.few_shot import norm_modes
from fewshot_blo.tasks import TaskBatch
from fewshot_blo.training.running_statistics import update_statistics
from fewshot_blo.training.step import hypergradient
from fewshot_blo.training.train import train

STEPS = InnerSteps(2, SGD(0.1))


class ScaledPrototypes(FewShotProblem):
    """outer: a network and a first scale; inner: each task's scale of squared distances."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.outer = {
            **dict(network.named_parameters()),
            "scale": torch.ones((), dtype=torch.float64, requires_grad=True),
        }
        self.bound: list[torch.Size] = []

    def bind(self, batch: TaskBatch, norm: NormMode, keys: Tensor | None = None) -> BoundTasks:
        del keys
        self.bound.append(batch.support_x.shape[2:])
        way = batch.classes.shape[1]

        def features(x: Tensor) -> Tensor:
            # Batch statistics of momentum 0 change no running ones.
            self.network.train(norm != "running")
            return torch.stack([self.network(images) for images in x])

        def logits(v: TaskParams, x: Tensor) -> Tensor:
            support, labels = features(batch.support_x), batch.support_y
            own = [
                [f[y == n].mean(0) for n in range(way)]
                for f, y in zip(support, labels, strict=True)
            ]
            means = torch.stack([torch.stack(of_task) for of_task in own])
            distances = (features(x).unsqueeze(2) - means.unsqueeze(1)).square().sum(3)
            return -v["scale"].reshape(-1, 1, 1) * distances

        def loss(v: TaskParams, x: Tensor, y: Tensor) -> Tensor:
            every = F.cross_entropy(logits(v, x).transpose(1, 2), y, reduction="none")
            return every.mean(1) + 0.1 * (v["scale"] - self.outer["scale"]).square()

        start = {"scale": self.outer["scale"].expand(batch.tasks)}
        bilevel = Bilevel(
            self.outer,
            start,
            lambda v: loss(v, batch.support_x, batch.support_y),
            lambda v: loss(v, batch.query_x, batch.query_y),
        )
        return BoundTasks(bilevel, lambda v: logits(v, batch.query_x), lambda gradient: gradient)


class Embedding(ScaledPrototypes):
    """The same, which says how it embeds."""

    @property
    def embedder(self) -> nn.Module:
        return self.network

    def on_features(self) -> ScaledPrototypes:
        found = ScaledPrototypes(nn.Identity())
        found.outer, found.bound = {"scale": self.outer["scale"]}, self.bound
        return found


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2),
        nn.BatchNorm2d(4, momentum=0.0),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
    ).double()


def sampler(**options: Any) -> Any:
    return make_sampler(make_dataset(), shot=2, dtype=torch.float64, **options)


@pytest.mark.parametrize("make", [ScaledPrototypes, Embedding])
def test_it_trains(make: Callable[[nn.Module], ScaledPrototypes], tmp_path: Path) -> None:
    problem = make(make_network())
    before = {name: p.detach().clone() for name, p in problem.outer.items()}
    result = train(
        problem,
        Implicit(STEPS),
        sampler(),
        sampler(seed=1),
        folder=tmp_path,
        settings=SETTINGS,
        adaptation=STEPS,
        progress=False,
    )
    assert result.step == SETTINGS.steps
    assert all(not torch.equal(before[name], p) for name, p in problem.outer.items())
    assert norm_modes(problem) == ("transductive", "support", "running")


def test_a_strategy_differentiates_it() -> None:
    problem, batch = ScaledPrototypes(make_network()), sampler().batch(0)
    step = hypergradient(problem, Unroll(InnerSteps(0)), Unroll(InnerSteps(0)).init(), batch)
    bilevel = problem.bind(batch, "transductive").bilevel
    loss = bilevel.outer_loss(bilevel.inner_init).mean()
    names, leaves = zip(*problem.outer.items(), strict=True)
    gradients = torch.autograd.grad(loss, leaves, materialize_grads=True)
    assert_same(step.gradient, dict(zip(names, gradients, strict=True)))


def test_its_running_statistics_are_of_the_images_that_are_classified_by() -> None:
    problem, tasks = ScaledPrototypes(make_network()), sampler()
    update_statistics(problem, tasks, STEPS)
    convolution, norm = problem.network[0], problem.network[1]  # type: ignore[index]
    means = []
    for index in range(5):
        batch = tasks.between(index, index + 1)
        # Its query sets are classified beside the support sets.
        means += [convolution(x[0]).mean((0, 2, 3)) for x in (batch.support_x, batch.query_x)]
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))
    assert problem.backend == "loop"


def test_tasks_are_drawn_from_its_embeddings_where_it_has_an_embedder() -> None:
    plain, embedding = ScaledPrototypes(make_network()), Embedding(make_network())
    found = []
    for problem in (plain, embedding):
        update_statistics(problem, sampler(), STEPS)
        problem.bound.clear()
        options: Any = {"tasks": 9, "norm": "running", "adaptation": STEPS}
        found.append(evaluate(problem, sampler(seed=3), **options))
    assert torch.equal(found[0].values, found[1].values)
    assert set(plain.bound) == {torch.Size([1, 16, 16])}
    assert set(embedding.bound) == {torch.Size([36])}


class Early(ScaledPrototypes):
    """Its images go through the network before it is asked for logits."""

    def bind(self, batch: TaskBatch, norm: NormMode, keys: Tensor | None = None) -> BoundTasks:
        bound = super().bind(batch, norm, keys)
        logits = bound.query_outputs(bound.bilevel.inner_init)
        return replace(bound, query_outputs=lambda _: logits)


def test_norms_that_meet_no_images_are_an_error() -> None:
    with pytest.raises(
        ConfigurationError, match=r"no image went through a batch norm.*query_outputs"
    ):
        update_statistics(Early(make_network()), sampler(), STEPS)


def test_what_it_does_not_say_is_an_error() -> None:
    problem = ScaledPrototypes(make_network())
    with pytest.raises(
        ConfigurationError, match="the problem is ScaledPrototypes: several views need"
    ):
        evaluate(problem, sampler(), tasks=2, views="mirrored")
    with pytest.raises(
        ConfigurationError, match="the problem is ScaledPrototypes: they need a shared encoder"
    ):
        evaluate(problem, sampler(), tasks=2, embeddings=torch.zeros(36, 4, dtype=torch.float64))
    problem.outer = {}
    with pytest.raises(ConfigurationError, match="there is nothing to learn"):
        problem.check_suits(Unroll(), "cold")
