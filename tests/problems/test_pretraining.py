"""Supervised training over all classes, tested by tasks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_same, make_batch, make_ragged_batch, plain_cosine, plain_linear
from torch import Tensor
from torch.func import functional_call

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.heads import CosineHead, Head, LinearHead, RidgeHead
from fewshot_blo.hypergrad import Unroll
from fewshot_blo.kernel import InnerSteps
from fewshot_blo.networks import Conv4
from fewshot_blo.problems import Pretraining
from fewshot_blo.tasks import TaskBatch

CLASSES = 9


def make(head: Head) -> Pretraining:
    torch.manual_seed(0)
    encoder = Conv4(hidden=8, norm="group").double()
    return Pretraining(encoder, classes=CLASSES, features=8, head=head, backend="batched")


def supervised(problem: Pretraining, batch: TaskBatch) -> Tensor:
    """Mean over tasks of the cross-entropy of the classifier on all of a task's real images."""
    classifier = {
        n.removeprefix("classifier/"): p
        for n, p in problem.outer.items()
        if n.startswith("classifier/")
    }
    weights = {n: p for n, p in problem.outer.items() if not n.startswith("classifier/")}
    plain = plain_cosine if isinstance(problem.head, CosineHead) else plain_linear
    losses = []
    for t in range(batch.tasks):
        images = torch.cat([batch.support_x[t], batch.query_x[t]])
        labels = torch.cat([batch.support_y[t], batch.query_y[t]])
        real = labels >= 0
        features = functional_call(problem.network, weights, (images[real],)) / 8**0.5
        targets = batch.classes[t][labels[real]]
        losses.append(F.cross_entropy(plain(classifier, features), targets))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("head", [LinearHead(), CosineHead()])
@pytest.mark.parametrize("batch", [make_batch(), make_ragged_batch()], ids=["full", "padded"])
def test_gradient_is_that_of_supervised_training(head: Head, batch: TaskBatch) -> None:
    problem = make(head)
    bound = problem.bind(batch, "support")
    step = Unroll(InnerSteps(0)).hypergradient(bound.bilevel, Unroll(InnerSteps(0)).init())
    expected = supervised(problem, batch)
    gradients = torch.autograd.grad(expected, list(problem.outer.values()))
    torch.testing.assert_close(step.outer_loss.mean(), expected.detach())
    assert_same(bound.pullback(step.gradient), dict(zip(problem.outer, gradients, strict=True)))


def test_tasks_are_solved_by_prototypes() -> None:
    problem, batch = make(LinearHead()), make_batch()
    bound = problem.bind(batch, "support")
    weights = {n: p for n, p in problem.outer.items() if not n.startswith("classifier/")}
    support, query = (
        functional_call(problem.network, weights, (x.flatten(0, 1),)).reshape(3, -1, 8) / 8**0.5
        for x in (batch.support_x, batch.query_x)
    )
    means = support.reshape(3, 3, 2, 8).mean(2)
    logits = bound.query_outputs(bound.bilevel.inner_init)
    expected = (-torch.cdist(query, means).square()).softmax(2)
    torch.testing.assert_close(logits.softmax(2), expected)


def test_the_head_is_a_classifier() -> None:
    with pytest.raises(
        ConfigurationError,
        match="RidgeHead cannot be the classifier of pretraining: use a linear or a cosine",
    ):
        Pretraining(Conv4(hidden=8), classes=3, features=8, head=RidgeHead())


def test_needs_the_number_of_classes() -> None:
    with pytest.raises(ConfigurationError, match="must be the number of training classes"):
        Pretraining(Conv4(hidden=8), classes=0, features=8)
