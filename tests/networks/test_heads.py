from __future__ import annotations

import pytest
import torch
from oracles import plain_cosine, plain_linear
from torch import Tensor

from fewshot_blo.networks import CosineHead, Head, LinearHead
from fewshot_blo.networks.heads import class_means

FEATURES = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PROTOTYPES = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(
    ("head", "plain"), [(LinearHead(), plain_linear), (CosineHead(), plain_cosine)]
)
def test_logits_equal_those_of_single_tasks(head: Head, plain) -> None:  # type: ignore[no-untyped-def]
    params = head.from_prototypes(PROTOTYPES)
    logits = head.logits(params, FEATURES)
    for t in range(2):
        expected = plain({name: p[t] for name, p in params.items()}, FEATURES[t])
        torch.testing.assert_close(logits[t], expected)


def test_linear_prototypes_classify_by_squared_distance() -> None:
    head = LinearHead()
    logits = head.logits(head.from_prototypes(PROTOTYPES), FEATURES)
    distances = torch.cdist(FEATURES, PROTOTYPES).square()
    torch.testing.assert_close(logits.softmax(2), (-distances).softmax(2))


def test_cosine_logits_are_scaled_cosines() -> None:
    head = CosineHead(scale=3.0)
    logits = head.logits(head.from_prototypes(PROTOTYPES), FEATURES)
    expected = torch.cosine_similarity(FEATURES[:, :, None], PROTOTYPES[:, None], dim=3)
    torch.testing.assert_close(logits, 3 * expected)


@pytest.mark.parametrize("head", [LinearHead(), CosineHead()])
def test_zeros_have_the_shape_of_prototypes(head: Head) -> None:
    zeros, other = head.zeros(2, 3, FEATURES), head.from_prototypes(PROTOTYPES)
    assert {n: p.shape for n, p in zeros.items()} == {n: p.shape for n, p in other.items()}
    assert all(p.dtype == torch.float64 and not p.any() for p in zeros.values())


@pytest.mark.parametrize("head", [LinearHead(), CosineHead()])
def test_zero_rows_have_finite_derivatives_of_any_order(head: Head) -> None:
    """Padded classes have zero weights, dead units give zero features."""
    features, prototypes = FEATURES.clone(), PROTOTYPES.clone()
    features[0, 0], prototypes[0, 0] = 0, 0
    leaves = [features.requires_grad_(), prototypes.requires_grad_()]
    out: Tensor = head.logits(head.from_prototypes(prototypes), features)[:, 1:, 1:].sum()
    for _ in range(3):
        gradients = torch.autograd.grad(out, leaves, create_graph=True)
        assert all(g.isfinite().all() for g in gradients)
        out = torch.stack([g.square().sum() for g in gradients]).sum()


def test_class_means_leave_padding_out() -> None:
    labels = torch.tensor([[0, 0, 1, 2, -1], [1, 0, 1, -1, -1]])
    means = class_means(FEATURES, labels, 3)
    torch.testing.assert_close(means[0, 0], FEATURES[0, :2].mean(0))
    torch.testing.assert_close(means[0, 2], FEATURES[0, 3])
    torch.testing.assert_close(means[1, 1], FEATURES[1, [0, 2]].mean(0))
    assert (means[1, 2] == 0).all()
