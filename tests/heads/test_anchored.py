"""Heads pulled towards prior weights: zero-shot without shots, closed forms and minimisers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from oracles import normal
from torch import Tensor, nn

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.evaluation.evaluate import adapted
from fewshot_blo.heads import AnchoredLinearHead, AnchoredRidgeHead
from fewshot_blo.heads.anchored import AnchoredHead
from fewshot_blo.heads.head import SupportSet
from fewshot_blo.kernel import InnerSteps
from fewshot_blo.problems import SharedEncoder
from fewshot_blo.tasks import TaskBatch

PRIORS = normal(6, 4, seed=3)
CLASSES = torch.tensor([[5, 0, 2], [1, 3, -1]])
FEATURES = normal(2, 5, 4)
# Class 1 of the first task has no support row; the second task has padded rows and a padded class.
LABELS = torch.tensor([[0, 0, 2, 2, 2], [1, 0, -1, 0, -1]])
HEADS = {"ridge": AnchoredRidgeHead(PRIORS, lam=0.3), "linear": AnchoredLinearHead(PRIORS)}
every_head = pytest.mark.parametrize("name", HEADS)


def learned(head: AnchoredHead) -> dict[str, Tensor]:
    return {name: p.double() for name, p in head.learned(4).items()}


def batch(labels: Tensor = LABELS) -> TaskBatch:
    queries = normal(2, 3, 4, seed=2)
    return TaskBatch(FEATURES, labels, queries, torch.tensor([[0, 1, 2], [1, 0, -1]]), CLASSES)


def fitted(head: AnchoredHead, tasks: TaskBatch, prox: float = 0.7) -> tuple[Tensor, Tensor]:
    """Weights ``[T, N, D]`` and query logits after the inner problem is solved."""
    problem = SharedEncoder(nn.Identity(), head, features=4, prox=prox, unit=True)
    in_double = {n: p.detach().double().requires_grad_() for n, p in problem.outer.head.items()}
    problem.outer = replace(problem.outer, head=in_double)
    steps = InnerSteps(0) if head.starts == ("closed_form",) else InnerSteps(tolerance=1e-12)
    problem.prepare(tasks)
    run = adapted(problem, tasks, "transductive", steps)
    found: Tensor = run.args[0]["head.weight"]  # type: ignore[attr-defined]
    return found, run()


@every_head
def test_without_shots_it_is_zero_shot(name: str) -> None:
    head, tasks = HEADS[name], batch(torch.full_like(LABELS, -1))
    weight, logits = fitted(head, tasks)
    unit = nn.functional.normalize(tasks.query_x, dim=2)
    for t, classes in enumerate(([5, 0, 2], [1, 3])):
        assert torch.equal(weight[t, : len(classes)], PRIORS[classes])
        real = tasks.query_rows[t]
        expected = head.scale * unit[t, real] @ PRIORS[classes].T
        found = logits[t, real, : len(classes)]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@every_head
def test_a_task_without_support_rows_at_all(name: str) -> None:
    head = HEADS[name]
    support = SupportSet(FEATURES[:, :0], LABELS[:, :0], CLASSES)
    params = head.from_support(support, learned(head))
    assert torch.equal(params["head.weight"][0], PRIORS[[5, 0, 2]])
    assert (head.loss(params, support, learned(head)) == 0).all()


@every_head
def test_a_class_without_support_rows_keeps_its_prior(name: str) -> None:
    weight, _ = fitted(HEADS[name], batch())
    assert torch.equal(weight[0, 1], PRIORS[0])
    assert (weight[0, 0] - PRIORS[5]).abs().max() > 0.01


def test_ridge_is_the_closed_form_of_each_class() -> None:
    """By the normal equations in the features, class by class."""
    weight, _ = fitted(HEADS["ridge"], batch())
    unit = nn.functional.normalize(FEATURES, dim=2)
    for t, n, c in ((0, 0, 5), (0, 2, 2), (1, 0, 1), (1, 1, 3)):
        x = unit[t][LABELS[t] >= 0]
        y = (LABELS[t] == n)[LABELS[t] >= 0].double()
        system = x.T @ x + 0.3 * torch.eye(4, dtype=torch.float64)
        expected = torch.linalg.solve(system, x.T @ y + 0.3 * PRIORS[c])
        torch.testing.assert_close(weight[t, n], expected, rtol=1e-6, atol=1e-6)


def test_ridge_minimises_its_loss() -> None:
    head = HEADS["ridge"]
    support = SupportSet(FEATURES, LABELS, CLASSES)
    weight = head.from_support(support, learned(head))["head.weight"].requires_grad_()
    loss = head.loss({"head.weight": weight}, support, learned(head)).sum()
    assert torch.autograd.grad(loss, weight)[0].abs().max() < 1e-12


def test_linear_minimises_cross_entropy_and_distance() -> None:
    """Where the gradient of the objective, written for one task, is zero."""
    head = HEADS["linear"]
    weight, _ = fitted(head, batch())
    unit = nn.functional.normalize(FEATURES, dim=2)
    for t, classes, own in ((0, [5, 0, 2], [0, 2]), (1, [1, 3], [0, 1])):
        w = weight[t, : len(classes)].clone().requires_grad_()
        rows = LABELS[t] >= 0
        scores = head.scale * unit[t][rows] @ w.T
        pull = 0.7 / 2 * (w - PRIORS[classes])[own].square().sum()
        loss = nn.functional.cross_entropy(scores, LABELS[t][rows]) + pull
        (gradient,) = torch.autograd.grad(loss, w)
        assert gradient[own].abs().max() < 1e-6


@every_head
def test_hypergradients_flow_through_it(name: str) -> None:
    head = HEADS[name]

    def loss(x: Tensor) -> Tensor:
        support = SupportSet(x, LABELS, CLASSES)
        params = head.from_support(support, learned(head))
        moved = {"head.weight": params["head.weight"] + 0.1}
        return head.loss(moved, support, learned(head)) + moved["head.weight"].square().sum((1, 2))

    assert torch.autograd.gradcheck(loss, FEATURES.clone().requires_grad_())


@pytest.mark.parametrize(
    "priors", [torch.ones(3), torch.ones(3, 4, dtype=torch.long), torch.ones(1, 3, 4)]
)
def test_priors_are_a_matrix(priors: Tensor) -> None:
    with pytest.raises(ConfigurationError, match=r"priors has shape .* floating-point matrix"):
        AnchoredRidgeHead(priors)


def test_priors_suit_classes_and_features() -> None:
    with pytest.raises(ConfigurationError, match="4 features a class and the encoder has 8"):
        HEADS["ridge"].learned(8)
    support = SupportSet(FEATURES, LABELS, CLASSES)
    with pytest.raises(ConfigurationError, match=r"rows for 3 classes and a task has class 5"):
        AnchoredLinearHead(PRIORS[:3]).from_support(support, {})
