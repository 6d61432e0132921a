"""Running statistics of trained networks, against plain PyTorch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_runs import make_dataset, make_problem, make_sampler
from torch import Tensor, nn
from torch.func import functional_call

from fewshot_blo.evaluation.evaluate import evaluate
from fewshot_blo.kernel import SGD, InnerSteps, StepwiseBatchNorm
from fewshot_blo.networks import Conv4, classifier
from fewshot_blo.problems import Initialization, SharedEncoder
from fewshot_blo.problems.few_shot import norm_modes
from fewshot_blo.tasks import ClassDataset, TaskBatch
from fewshot_blo.training.running_statistics import update_statistics

DATASET = make_dataset(7, 8, noise=150)
ADAPTATION = InnerSteps(3, SGD(0.2))


def test_running_statistics_are_of_all_training_classes_without_dropout() -> None:
    dataset = make_dataset(10, 20)
    problem = make_problem()
    assert isinstance(problem, SharedEncoder)
    problem.network.train()
    update_statistics(problem, make_sampler(dataset))
    assert problem.network.training
    first = next(m for m in problem.network.modules() if isinstance(m, nn.BatchNorm2d))
    assert first.running_mean is not None
    assert first.running_var is not None
    means = first.running_mean.clone()
    torch.manual_seed(99)
    update_statistics(problem, make_sampler(dataset))
    assert torch.equal(first.running_mean, means)
    convolution = problem.network[0].blocks[0].convolution  # type: ignore[index]
    outputs = convolution(dataset.images.float() / 255)
    assert torch.allclose(first.running_mean, outputs.mean((0, 2, 3)), atol=0.02)
    assert torch.allclose(first.running_var, outputs.var((0, 2, 3)), rtol=0.1)


def test_every_batch_holds_images_of_all_classes() -> None:
    """Class by class, batches of 128 images would hold one class each, with a variance of zero."""
    images = torch.full((256, 1, 4, 4), 200, dtype=torch.uint8)
    images[:128] = 50
    dataset = ClassDataset(images, torch.arange(2).repeat_interleave(128), ("dark", "bright"))
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten())
    problem = SharedEncoder(network)
    update_statistics(problem, make_sampler(dataset, way=2))
    norm = next(problem.network.children())
    torch.testing.assert_close(norm.running_mean, torch.tensor([125 / 255]))
    variance = torch.tensor([(75 / 255) ** 2])
    torch.testing.assert_close(norm.running_var, variance, rtol=0.02, atol=0)


def plain_network() -> nn.Sequential:
    """The network as users write it, with norms of PyTorch."""
    torch.manual_seed(0)
    network = classifier(Conv4(hidden=8), 8, 3).double()
    for block in network.encoder.blocks:  # type: ignore[union-attr]
        block.norm = nn.BatchNorm2d(8).double()
    return network


def adapted_by_hand(network: nn.Module, batch: TaskBatch) -> dict[str, Tensor]:
    """Parameters after the steps of ``ADAPTATION``, with batch statistics of the support set."""
    params = {name: p.detach().requires_grad_() for name, p in network.named_parameters()}
    network.train()
    for _ in range(ADAPTATION.most):
        logits = functional_call(network, params, (batch.support_x[0],))
        loss = F.cross_entropy(logits, batch.support_y[0])
        gradients = torch.autograd.grad(loss, list(params.values()))
        params = {
            name: (p - 0.2 * g).detach().requires_grad_()
            for (name, p), g in zip(params.items(), gradients, strict=True)
        }
    return params


@pytest.mark.parametrize("backend", ["loop", "batched"])
def test_those_of_an_initialization_are_of_query_sets_after_adaptation(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fewshot_blo.problems.passes._IMAGES", 30)
    sampler = make_sampler(DATASET, dtype=torch.float64)
    problem = Initialization(plain_network(), backend=backend)  # type: ignore[arg-type]
    assert norm_modes(problem) == ("transductive", "support")
    update_statistics(problem, sampler, ADAPTATION)
    assert problem.backend == backend
    assert norm_modes(problem) == ("transductive", "support", "running")

    network, seen = plain_network(), []
    norm = network.encoder.blocks[2].norm  # type: ignore[union-attr, index]
    for index in range(5):  # 5 tasks of 6 queries.
        batch = sampler.between(index, index + 1)
        params = adapted_by_hand(network, batch)
        hook = norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))  # type: ignore[union-attr]
        functional_call(network, params, (batch.query_x[0],))
        hook.remove()
    ours: Any = problem.network.encoder.blocks[2].norm  # type: ignore[union-attr, index]
    means = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    variances = torch.stack([x.var((0, 2, 3), correction=0) for x in seen]).mean(0)
    torch.testing.assert_close(ours.running_mean, means)
    torch.testing.assert_close(ours.running_var, variances)

    for theirs, mine in zip(network.encoder.blocks, problem.network.encoder.blocks, strict=True):  # type: ignore[arg-type, union-attr]
        theirs.norm.load_state_dict(mine.norm.state_dict(), strict=False)
    test = make_sampler(DATASET, dtype=torch.float64, seed=7)
    expected = []
    for index in range(4):
        batch = test.between(index, index + 1)
        params = adapted_by_hand(copy.deepcopy(network), batch)
        logits = functional_call(network.eval(), params, (batch.query_x[0],))
        expected.append(float((logits.argmax(1) == batch.query_y[0]).double().mean()))
    evaluation = evaluate(problem, test, tasks=4, norm="running", adaptation=ADAPTATION)
    assert evaluation.values.tolist() == pytest.approx(expected)


def test_padding_plays_no_part() -> None:
    """The statistics are of real rows alone, so no padded zeros pull them down."""
    bright = make_dataset(7, 8)
    bright.images.fill_(200)
    norms = []
    for way in (5, (3, 5)):
        torch.manual_seed(0)
        network = classifier(nn.Sequential(nn.BatchNorm2d(1), nn.Flatten()), 256, 5)
        problem = Initialization(network, backend="loop")
        sampler = make_sampler(bright, way=way, query=(2, 4))
        update_statistics(problem, sampler, InnerSteps(1, SGD(0.0)))
        norms.append(problem.network.encoder[0].running_mean)  # type: ignore[index, union-attr]
    torch.testing.assert_close(norms[0], torch.tensor([200 / 255]))
    torch.testing.assert_close(norms[1], norms[0])


def test_stepwise_norms_have_them_for_the_passes_after_the_last_step() -> None:
    torch.manual_seed(0)
    network = classifier(Conv4(hidden=8, norm="stepwise", steps=3), 8, 3)
    problem = Initialization(network, backend="loop")
    update_statistics(problem, make_sampler(DATASET), ADAPTATION)
    norms = [m for m in problem.network.modules() if isinstance(m, StepwiseBatchNorm)]
    means = [norm.running_mean for norm in norms]
    assert all(mean is not None and mean.shape == (8,) for mean in means)
    assert norm_modes(problem) == ("transductive", "support", "running")
