"""A network that maps losses to weights, on a long-tailed set."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad import Unroll
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.solving.driver import solve
from fewshot_blo.studies import MetaWeightNet
from fewshot_blo.studies.images.classifiers import make_network
from fewshot_blo.studies.images.digits import Digits, Labelled, read_long_tail
from fewshot_blo.studies.images.meta_weight_net import BALANCED, RARE, RATIO


class Double(MetaWeightNet):
    """On random images in float64."""

    @property
    def _digits(self) -> Digits:
        generator = torch.Generator().manual_seed(0)

        def part(count: int) -> Labelled:
            x = torch.rand(count, 1, 28, 28, generator=generator, dtype=torch.float64)
            return Labelled(x, torch.arange(count) % 10)

        return Digits([part(sum(self.counts)), part(20)], part(10))

    @property
    def _model(self) -> nn.Module:
        return make_network("perceptron", self.seed, hidden=self.hidden).double()

    @property
    def _weighting(self) -> nn.Module:
        generator = torch.Generator().manual_seed(1)
        network = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1), nn.Sigmoid()).double()
        for p in network.parameters():
            p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        return network


def cross_entropies(v: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
    logits = (x @ v[0].T + v[1]).clamp(min=0) @ v[2].T + v[3]
    return logits.logsumexp(1) - logits[torch.arange(len(y)), y]


def loss_after(study: Double, u: list[Tensor], steps: int, step_size: float) -> float:
    """F after gradient descent on G, both written out with matrices."""
    train, balanced = study._digits.parts
    v = [p.detach().clone() for p in study._model.parameters()]
    for _ in range(steps):
        leaves = [p.requires_grad_() for p in v]
        losses = cross_entropies(leaves, train.x.flatten(1), train.y)
        hidden = (losses[:, None] * u[0][:, 0] + u[1]).clamp(min=0)
        weights = 1 / (1 + torch.exp(-(hidden @ u[2][0] + u[3])))
        total = (weights * losses).sum() / weights.sum()
        total = total + study.l2 / 2 * torch.stack([p.square().sum() for p in leaves]).sum()
        slopes = torch.autograd.grad(total, leaves)
        v = [(p - step_size * g).detach() for p, g in zip(leaves, slopes, strict=True)]
    return float(cross_entropies(v, balanced.x.flatten(1), balanced.y).mean())


@pytest.mark.parametrize("steps", [1, 3])
def test_hypergradient_of_unrolling_is_that_of_finite_differences(steps: int) -> None:
    study = Double(most=8, imbalance=4.0, hidden=5, weighting=3, batch=0)
    problem = study.problem()
    strategy = Unroll(InnerSteps(steps, SGD(0.3)), recompute=False)
    found = strategy.hypergradient(problem.at(0), strategy.init()).gradient
    u = [p.detach().clone() for p in problem.outer.values()]
    for place, gradient in enumerate(found.values()):
        for entry in range(gradient.numel()):
            losses = []
            for sign in (1, -1):
                moved = [p.clone() for p in u]
                moved[place].view(-1)[entry] += sign * 1e-5
                losses.append(loss_after(study, moved, steps, 0.3))
            slope = (losses[0] - losses[1]) / 2e-5
            assert float(gradient.view(-1)[entry]) == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_the_tail_is_as_long_as_told(digits_root: Path) -> None:
    study = MetaWeightNet(str(digits_root), most=40, imbalance=10.0, balanced=3)
    train, balanced = study._digits.parts
    assert torch.bincount(train.y).tolist() == study.counts
    assert study.counts[0] == 40
    assert study.counts[-1] == 4
    assert torch.bincount(balanced.y).tolist() == [3] * 10
    flat = torch.cat([train.x, balanced.x]).flatten(1)
    assert len(flat.unique(dim=0)) == len(flat)  # No image is in both parts.


def test_it_runs_beside_its_baselines(digits_root: Path) -> None:
    study = MetaWeightNet(
        str(digits_root), most=40, imbalance=20.0, balanced=5, hidden=16, batch=20, updates=100
    )
    optimizer: Any = partial(torch.optim.Adam, lr=1e-2)
    strategy = Unroll(InnerSteps(1, SGD(0.1)))
    found = solve(
        study.problem(), strategy, optimizer, steps=100, start="warm", progress=False, every=50
    )
    figures = study.measure(found.outer, found.inner)
    assert figures[""][BALANCED] > 50  # Of chance: 10.
    assert figures[""][RATIO] > 0
    assert {BALANCED, RARE} == set(figures[" + retrain"])
    rows = study.baselines()
    assert rows["weights 1 / images of the digit"][RARE] >= rows["plain training"][RARE] - 5


def test_images_must_suffice(digits_root: Path) -> None:
    with pytest.raises(ConfigurationError, match="imbalance is 100"):
        MetaWeightNet(str(digits_root), most=50)
    with pytest.raises(ConfigurationError, match="of the digit 0: there are"):
        read_long_tail(str(digits_root), [[1000] * 10], 0)
    with pytest.raises(ConfigurationError, match="set root"):
        read_long_tail("", [[1] * 10], 0)
