"""Fine-tuning in one stack of tasks against a plain loop over them."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_runs import make_dataset, make_sampler
from torch import Tensor, nn
from torch.func import functional_call

from fewshot_blo.backbones import Adapts, Backbone, Preprocessing, Views, choose_parameters
from fewshot_blo.backbones.layers import prepared
from fewshot_blo.evaluation.evaluate import adapted, evaluate
from fewshot_blo.heads import CosineHead
from fewshot_blo.kernel import SGD, InnerSteps, TaskForward, adapt
from fewshot_blo.kernel.stacked.merged import MergedForward
from fewshot_blo.problems.few_shot import norm_modes
from fewshot_blo.problems.fine_tuning import fine_tuning
from fewshot_blo.tasks import TaskBatch

DATASET = make_dataset(7, 8, noise=150)
STEPS, SIZE = 3, 0.3
ADAPTS: tuple[Adapts, ...] = ("head", "last_blocks", "bias", "norms", "low_rank", "all")


class Network(nn.Module):
    """Convolutions, an attention and a linear layer, with norms of PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [
            nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Hardswish()),
            nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU(inplace=True)),
        ]
        self.blocks = nn.Sequential(*blocks)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.blocks(x).flatten(2).transpose(1, 2)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        output: Tensor = self.last(tokens + mixed)
        return output


def make_backbone() -> Backbone:
    torch.manual_seed(0)
    network = Network()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    settings = Preprocessing(12, (0.5,) * 3, (0.2,) * 3)
    return Backbone(prepared(network), settings).double()


def by_hand(adapts: Adapts, task: TaskBatch, views: Views) -> Tensor:
    """Query logits after the steps, with calls of the whole network, for one task."""
    network, names = choose_parameters(make_backbone().with_views(views), adapts, rank=2)
    parameters = {n: p.detach() for n, p in network.named_parameters()}
    chosen = {n: parameters[n].clone().requires_grad_() for n in names}

    def features(images: Tensor, own: dict[str, Tensor]) -> Tensor:
        return F.normalize(functional_call(network, {**parameters, **own}, (images,)))

    support, labels = task.support_x[0], task.support_y[0]
    means = torch.stack([features(support, chosen)[labels == n].mean(0) for n in range(3)]).detach()
    v = {**chosen, "weight": 2 * means, "bias": -means.square().sum(1)}
    for _ in range(STEPS):
        v = {name: p.detach().requires_grad_() for name, p in v.items()}
        own = {name: v[name] for name in names}
        loss = F.cross_entropy(F.linear(features(support, own), v["weight"], v["bias"]), labels)
        gradients = torch.autograd.grad(loss, list(v.values()))
        v = {n: p - SIZE * g for (n, p), g in zip(v.items(), gradients, strict=True)}
    own = {name: v[name] for name in names}
    return F.linear(features(task.query_x[0], own), v["weight"], v["bias"]).detach()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("views", ["one", "crops", "scales"])
@pytest.mark.parametrize("adapts", ADAPTS)
def test_stacked_tasks_equal_tasks_by_hand(adapts: Adapts, views: Views) -> None:
    batch = make_sampler(DATASET, dtype=torch.float64, shot=2).between(0, 3)
    image = batch.support_x.shape[2:]
    backbone = make_backbone().with_views(views)
    problem = fine_tuning(backbone, image, adapts=adapts, rank=2, prox=0.0)
    problem.prepare(batch)
    assert norm_modes(problem) == ("support",)
    with torch.no_grad():
        logits = adapted(problem, batch, "support", InnerSteps(STEPS, SGD(SIZE)))()
    for t in range(3):
        torch.testing.assert_close(
            logits[t], by_hand(adapts, batch[t : t + 1], views), rtol=1e-8, atol=1e-9
        )


@pytest.mark.parametrize("adapts", ["head", "last_blocks"])
def test_evaluation_runs_the_frozen_layers_once_an_image(adapts: Adapts) -> None:
    backbone, images = make_backbone(), 0

    def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal images
        images += len(inputs[0])

    sampler = make_sampler(DATASET, dtype=torch.float64)
    problem = fine_tuning(backbone, DATASET.images.shape[1:], adapts=adapts, prox=0.0)
    first = next(m for m in problem.network.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_pre_hook(count)
    evaluation = evaluate(
        problem, sampler, tasks=20, norm="support", adaptation=InnerSteps(2, SGD(0.5))
    )
    assert len(evaluation.values) == 20
    # One tells how many fit into memory, and 5 batches of 6 that features do not depend on others.
    assert images == len(DATASET) + 1 + 30


def test_a_mean_that_is_subtracted_changes_cosines() -> None:
    sampler = make_sampler(DATASET, dtype=torch.float64)
    image = DATASET.images.shape[1:]
    backbone = make_backbone()
    with torch.no_grad():
        mean = backbone((DATASET.images / 255).double()).mean(0)

    def measure(**settings: Any) -> Tensor:
        problem = fine_tuning(copy.deepcopy(backbone), image, head=CosineHead(), **settings)
        batch = sampler.between(0, 2)
        problem.prepare(batch)
        with torch.no_grad():
            return adapted(problem, batch, "support", InnerSteps(0, SGD(0.5)))()

    plain, centred = measure(), measure(mean=mean)
    assert not torch.allclose(plain, centred)
    tuned = measure(mean=mean, adapts="last_blocks")
    torch.testing.assert_close(tuned, centred)


def test_hypergradients_of_low_rank_updates_equal_a_plain_loop_to_second_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = make_sampler(DATASET, dtype=torch.float64, shot=2).between(0, 2)
    backbone, image = make_backbone(), batch.support_x.shape[2:]
    monkeypatch.setattr(
        "fewshot_blo.problems.fine_tuning._seconds", lambda f, *_: float(type(f) is TaskForward)
    )
    problem = fine_tuning(backbone, image, adapts="low_rank", rank=2, prox=0.0)
    for name, p in problem.outer.items():
        p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name)))
    problem.prepare(batch)
    bound = problem.bind(batch, "support").bilevel
    inner = adapt(
        bound.inner_loss,
        bound.inner_init,
        InnerSteps(STEPS, SGD(SIZE)),
        outer=bound.outer,
        derivatives="second",
    )
    ours = torch.autograd.grad(bound.outer_loss(inner).sum(), list(problem.outer.values()))

    network, names = choose_parameters(backbone, "low_rank", rank=2)
    fixed = {n: p.detach() for n, p in network.named_parameters()}
    given = {n: problem.outer[f"head/tail.{n}"].detach().requires_grad_() for n in names}

    def features(images: Tensor, own: dict[str, Tensor]) -> Tensor:
        return F.normalize(functional_call(network, {**fixed, **own}, (images,)))

    losses = []
    for task in batch.chunks(1):
        support, labels = task.support_x[0], task.support_y[0]
        seen = features(support, given)
        means = torch.stack([seen[labels == n].mean(0) for n in range(3)])
        # Views: the head starts from means that depend on what is given, not on these.
        v = {n: p.view_as(p) for n, p in given.items()}
        v = {**v, "weight": 2 * means, "bias": -means.square().sum(1)}
        for _ in range(STEPS):
            own = {name: v[name] for name in names}
            loss = F.cross_entropy(F.linear(features(support, own), v["weight"], v["bias"]), labels)
            gradients = torch.autograd.grad(loss, list(v.values()), create_graph=True)
            v = {n: p - SIZE * g for (n, p), g in zip(v.items(), gradients, strict=True)}
        own = {name: v[name] for name in names}
        logits = F.linear(features(task.query_x[0], own), v["weight"], v["bias"])
        losses.append(F.cross_entropy(logits, task.query_y[0]))
    plain = torch.autograd.grad(torch.stack(losses).sum(), list(given.values()))
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


class Ranks(nn.Module):
    """Images that meet in an operation that keeps their number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(192, 6)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer(x.flatten(1)).softmax(0)
        return output


def test_a_tail_in_which_images_meet_runs_task_by_task(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    backbone = Backbone(Ranks().double(), Preprocessing(8))
    problem = fine_tuning(backbone, torch.Size((3, 8, 8)), adapts="last_blocks")
    assert type(problem.head.forward) is TaskForward  # type: ignore[attr-defined]
    assert "merged, it differs by" in caplog.text


def test_a_traced_tail_is_merged_where_that_is_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, image = make_backbone(), torch.Size((3, 12, 12))
    for seconds, kind in (
        ({MergedForward: 1.0, TaskForward: 2.0}, MergedForward),
        ({MergedForward: 2.0, TaskForward: 1.0}, TaskForward),
    ):
        monkeypatch.setattr(
            "fewshot_blo.problems.fine_tuning._seconds", lambda f, *_, s=seconds: s[type(f)]
        )
        problem = fine_tuning(backbone, image, adapts="low_rank", rank=2)
        assert type(problem.head.forward) is kind  # type: ignore[attr-defined]
