"""Transductive heads against loops over single tasks, easyfsl and finite differences."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import transductive_oracles as plain
from oracles import normal
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.heads import (
    AlphaTIMHead,
    BDCSPNHead,
    LaplacianShotHead,
    PTMAPHead,
    SoftKMeansHead,
    TIMHead,
)
from fewshot_blo.heads.balancing import Sizes, balanced
from fewshot_blo.heads.head import SupportSet
from fewshot_blo.heads.transductive import TransductiveHead
from fewshot_blo.tasks.reading.torchvision_import import torchvision_module

Plain = Callable[[Any, Any, Any], Any]

WAYS, FEATURES = (3, 2, 3), 6
SHOTS = ((2, 1, 3), (1, 2), (1, 1, 1))
QUERIES = (7, 5, 9)

_TIM: dict[str, Any] = {"steps": 4, "step_size": 0.05}
CASES: dict[str, tuple[TransductiveHead, Plain]] = {
    "soft k-means": (
        SoftKMeansHead(scale=0.7, steps=3),
        partial(plain.soft_k_means, scale=0.7, steps=3),
    ),
    "PT-MAP": (PTMAPHead(steps=4), partial(plain.pt_map, lam=10.0, steps=4)),
    "TIM": (
        TIMHead(temperature=0.5, **_TIM),
        partial(plain.tim, weights=(0.1, 1.0, 0.1), temperature=0.5, **_TIM),
    ),
    "TIM, cosine": (
        TIMHead(distance="cosine", temperature=5.0, **_TIM),
        partial(plain.tim, weights=(0.1, 1.0, 0.1), temperature=5.0, cosine=True, **_TIM),
    ),
    "alpha-TIM": (
        AlphaTIMHead(alpha=3.0, temperature=0.5, **_TIM),
        partial(plain.tim, weights=(1.0, 1.0, 1.0), temperature=0.5, alpha=3.0, **_TIM),
    ),
    "BD-CSPN": (BDCSPNHead(scale=3.0), partial(plain.bd_cspn, scale=3.0)),
    "LaplacianShot": (
        LaplacianShotHead(lam=0.6, steps=5, scale=2.0),
        partial(plain.laplacian_shot, lam=0.6, neighbours=2, steps=5, scale=2.0),
    ),
    "LaplacianShot, not rectified": (
        LaplacianShotHead(neighbours=3, rectified=False, steps=2),
        partial(plain.laplacian_shot, lam=0.7, neighbours=3, steps=2, scale=None),
    ),
}
every_head = pytest.mark.parametrize("name", CASES)


def task(number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Support features ``[S, D]``, their labels and query features ``[B, D]``; not negative."""
    labels = torch.tensor([n for n, shot in enumerate(SHOTS[number]) for _ in range(shot)])
    centres = 2 * normal(WAYS[number], FEATURES, seed=number).abs()
    support = centres[labels] + normal(len(labels), FEATURES, seed=10 + number)
    of_query = torch.arange(QUERIES[number]) % WAYS[number]
    queries = centres[of_query] + normal(QUERIES[number], FEATURES, seed=20 + number)
    return support.abs(), labels, queries.abs()


def padded_batch() -> tuple[SupportSet, Tensor, Tensor]:
    """The three tasks, padded with rows in the middle, and which queries exist."""
    rows, most = max(len(task(t)[1]) for t in range(3)), max(QUERIES)
    support, queries = normal(3, rows, FEATURES, seed=30), normal(3, most, FEATURES, seed=31)
    labels, real = torch.full((3, rows), -1), torch.zeros(3, most, dtype=torch.bool)
    classes = torch.full((3, 3), -1)
    for t in range(3):
        x, y, q = task(t)
        support[t, rows - len(y) :], labels[t, rows - len(y) :] = x, y
        queries[t, : len(q)], real[t, : len(q)] = q, True
        classes[t, : WAYS[t]] = torch.arange(WAYS[t])
    return SupportSet(support, labels, classes), queries, real


def logits_of(
    head: TransductiveHead, support: Tensor, labels: Tensor, queries: Tensor, way: int = 3
) -> Tensor:
    """Logits of one task, ``[B, N]``."""
    params = head.from_support(SupportSet(support[None], labels[None], torch.arange(way)[None]), {})
    return head.logits(params, queries[None], {})[0]


@every_head
def test_padded_tasks_equal_a_loop(name: str) -> None:
    head, loop = CASES[name]
    support, queries, real = padded_batch()
    logits = head.logits(head.from_support(support, {}), queries, {}, real)
    assert logits.isfinite().all()
    for t in range(3):
        x, y, q = task(t)
        expected = torch.tensor(loop(x.numpy(), y.numpy(), q.numpy()))
        found = logits[t, : len(q), : WAYS[t]].log_softmax(1)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
        alone = logits_of(head, x, y, q, WAYS[t]).log_softmax(1)
        torch.testing.assert_close(found, alone, rtol=1e-10, atol=1e-10)


@every_head
def test_order_of_classes_and_queries_does_not_matter(name: str) -> None:
    head, (x, y, q) = CASES[name][0], task(0)
    classes, rows = torch.tensor([2, 0, 1]), torch.tensor([4, 2, 0, 6, 1, 3, 5])
    expected = logits_of(head, x, y, q)[rows]
    found = logits_of(head, x, classes[y], q[rows])[:, classes]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@every_head
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    head, (support, queries, real) = CASES[name][0], padded_batch()
    # Without the third task, whose single shot has no length after centring.
    support = SupportSet(support.features[:2], support.labels[:2], support.classes[:2])
    shown = real[:2].unsqueeze(2) & (support.classes >= 0).unsqueeze(1)

    def function(x: Tensor, q: Tensor) -> Tensor:
        params = head.from_support(SupportSet(x, support.labels, support.classes), {})
        return head.logits(params, q, {}, real[:2]) * shown

    leaves = [x.clone().requires_grad_() for x in (support.features.abs(), queries[:2].abs())]
    assert torch.autograd.gradcheck(function, leaves, atol=1e-6, fast_mode=True)


@every_head
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_empty_features_and_classes_are_finite(name: str, dtype: torch.dtype) -> None:
    """Dead units, equal rows, and a class without a support row, which nothing is assigned to."""
    head = CASES[name][0]
    x = torch.zeros(2, FEATURES, dtype=dtype, requires_grad=True)
    q = torch.zeros(4, FEATURES, dtype=dtype, requires_grad=True)
    logits = logits_of(head, x, torch.tensor([0, 2]), q)
    assert (logits.softmax(1)[:, 1] == 0).all()
    for gradient in torch.autograd.grad(logits.softmax(1).square().sum(), (x, q)):
        assert gradient.isfinite().all()


def test_assignments_are_balanced_and_optimal() -> None:
    scores = 3 * normal(2, 8, 3)
    real = torch.ones(2, 8, dtype=torch.float64)
    real[1, 6:] = 0
    sizes = Sizes.equal(real, torch.ones(2, 1, 3, dtype=torch.bool))
    log_plan, _ = balanced(scores, sizes, torch.zeros(2, 3, dtype=torch.float64))
    columns = (log_plan.exp() * real.unsqueeze(2)).sum(1)
    torch.testing.assert_close(columns, sizes.sizes, rtol=1e-13, atol=1e-13)
    for t, rows in ((0, 8), (1, 6)):
        expected = plain.sinkhorn(-scores[t, :rows].numpy(), 1.0)
        np.testing.assert_allclose(log_plan[t, :rows].exp(), expected, atol=1e-12)


@pytest.mark.parametrize("factor", [1.0, 30.0, 300.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_assignments_that_are_nearly_certain_are_balanced(
    factor: float, dtype: torch.dtype
) -> None:
    scores = (factor * normal(3, 30, 5)).to(dtype).requires_grad_()
    sizes = Sizes.equal(torch.ones(3, 30, dtype=dtype), torch.ones(3, 1, 5, dtype=torch.bool))
    log_plan, _ = balanced(scores, sizes, torch.zeros(3, 5, dtype=dtype))
    assert (log_plan.exp().sum(1) - 6).abs().max() < (1e-6 if dtype == torch.float64 else 2e-2)
    (gradient,) = torch.autograd.grad(log_plan.exp().square().sum(), scores)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: PTMAPHead(lam=1e3), r"lam is 1000.0: it must be in \(0, 200\]"),
        (lambda: PTMAPHead(rate=1.5), r"rate is 1.5: it must be in \[0, 1\]"),
        (lambda: AlphaTIMHead(alpha=1.0), "alpha is 1.0: it must be above 1"),
        (lambda: LaplacianShotHead(neighbours=0), "neighbours is 0: it must be at least 1"),
        (lambda: TIMHead(distance="l1"), "distance is 'l1'"),  # type: ignore[arg-type]
    ],
)
def test_settings_have_ranges(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        make()


@pytest.fixture
def easyfsl(monkeypatch: pytest.MonkeyPatch) -> Any:
    """easyfsl's methods in float64; it imports torchvision, whose extension may not load."""
    try:
        torchvision_module()
        methods = importlib.import_module("easyfsl.methods")
    except ImportError as error:
        pytest.skip(f"easyfsl cannot be imported: {error}")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield methods
    torch.set_default_dtype(before)


def of_easyfsl(method: Any, *, exact: bool = True) -> Tensor:
    """Its scores for the balanced task below; without its early stops if exact."""
    if exact and hasattr(method, "compute_optimal_transport"):
        whole = method.compute_optimal_transport
        method.compute_optimal_transport = lambda cost, epsilon: whole(cost, 1e-13)
    if exact and hasattr(method, "compute_upper_bound"):
        method.compute_upper_bound = lambda *_: float("nan")
    x, y, q = balanced_task()
    method.process_support_set(x, y)
    found: Tensor = method(q)
    return found


def balanced_task() -> tuple[Tensor, Tensor, Tensor]:
    """Three classes, two shots and five queries of each."""
    centres, y = 2 * normal(3, FEATURES, seed=5).abs(), torch.arange(3).repeat_interleave(2)
    x = centres[y] + normal(6, FEATURES, seed=6)
    q = centres.repeat_interleave(5, 0) + normal(15, FEATURES, seed=7)
    return x.abs() / 4, y, q.abs() / 4


def test_pt_map_equals_easyfsl(easyfsl: Any) -> None:
    ours = logits_of(PTMAPHead(steps=10, centred=False), *balanced_task()).exp()
    torch.testing.assert_close(ours, of_easyfsl(easyfsl.PTMAP()), rtol=0, atol=1e-8)
    torch.testing.assert_close(ours, of_easyfsl(easyfsl.PTMAP(), exact=False), rtol=0, atol=1e-5)


def test_tim_equals_easyfsl(easyfsl: Any) -> None:
    head = TIMHead(10.0, 50, 0.01, support_weight=1.0, distance="cosine")
    theirs = of_easyfsl(easyfsl.TIM(fine_tuning_lr=0.01))
    torch.testing.assert_close(logits_of(head, *balanced_task()) / 10, theirs, rtol=0, atol=1e-6)


def test_bd_cspn_equals_easyfsl(easyfsl: Any) -> None:
    ours = logits_of(BDCSPNHead(scale=1.0), *balanced_task())
    torch.testing.assert_close(ours, of_easyfsl(easyfsl.BDCSPN()), rtol=0, atol=1e-10)


def test_laplacian_shot_equals_easyfsl(easyfsl: Any) -> None:
    ours = logits_of(LaplacianShotHead(scale=1.0), *balanced_task()).softmax(1)
    theirs = of_easyfsl(easyfsl.LaplacianShot())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
