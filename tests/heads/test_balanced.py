"""The balanced head against scikit-learn and plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fewshot_blo.heads import BalancedHead
from fewshot_blo.heads.head import SupportSet


@pytest.mark.parametrize("width", [60, 12])
def test_average_of_prototypes_and_weighted_ridge_regressions(width: int) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    torch.manual_seed(0)
    x = F.normalize(torch.randn(1, 40, width, dtype=torch.float64), dim=-1)
    y = torch.cat([torch.arange(4), torch.randint(4, (36,)).clamp(max=2)])[None]
    support = SupportSet(x, y, torch.arange(4)[None])
    head = BalancedHead(lams=(0.3, 2.0))
    params = head.from_support(support, {})
    features, labels = x[0].numpy(), y[0].numpy()
    counts = np.bincount(labels)
    weights = 40 / (4 * counts[labels])
    means = np.stack([features[labels == n].mean(0) for n in range(4)])
    maps = [features @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T]
    for lam in head.lams:
        ridge = linear.Ridge(alpha=lam)
        ridge.fit(features, np.eye(4)[labels], sample_weight=weights)
        maps.append(ridge.predict(features))
    expected = 0
    for logits in maps:
        centred = logits - logits.mean(1, keepdims=True)
        level = np.average(logits.mean(1), weights=weights)
        size = np.sqrt(np.average((centred**2).mean(1), weights=weights))
        expected += (logits - level) / size / 3
    found = head.logits(params, x, {})[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)


def test_tasks_with_padding_and_without_a_class_are_those_alone() -> None:
    torch.manual_seed(0)
    x = F.normalize(torch.randn(2, 12, 20, dtype=torch.float64), dim=-1)
    y = torch.arange(12)[None] % 4
    labels = torch.cat([y, y.masked_fill(y == 3, -1)])
    both = BalancedHead().from_support(SupportSet(x, labels, torch.arange(4).expand(2, 4)), {})
    kept = labels[1] >= 0
    alone = SupportSet(x[1:, kept], labels[1:, kept], torch.arange(3)[None])
    one = BalancedHead().from_support(alone, {})
    torch.testing.assert_close(both["head.weight"][1, :3], one["head.weight"][0])
    torch.testing.assert_close(both["head.bias"][1, :3], one["head.bias"][0])
    assert (both["head.weight"][1, 3] == 0).all()
