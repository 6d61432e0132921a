from __future__ import annotations

import pytest
import torch
from oracles import PLAIN_HEADS, normal, plain_cosine, plain_linear
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.heads import (
    CosineHead,
    FullContextHead,
    Head,
    LabelPropagationHead,
    LinearHead,
    MatchingHead,
    MaxMarginHead,
    RelationHead,
    RidgeHead,
    RidgeRegressionHead,
)
from fewshot_blo.heads.head import SupportSet, normalize

FEATURES = normal(2, 5, 4)
PROTOTYPES = normal(2, 3, 4, seed=1)
LABELS = CLASSES = torch.arange(3).expand(2, 3)


def from_prototypes(head: Head, prototypes: Tensor) -> dict[str, Tensor]:
    """Of a support set with one image a class."""
    return head.from_support(SupportSet(prototypes, LABELS, CLASSES), {})


@pytest.mark.parametrize(
    ("head", "plain"), [(LinearHead(), plain_linear), (CosineHead(), plain_cosine)]
)
def test_logits_equal_those_of_single_tasks(head: Head, plain) -> None:  # type: ignore[no-untyped-def]
    params = from_prototypes(head, PROTOTYPES)
    logits = head.logits(params, FEATURES, {})
    for t in range(2):
        expected = plain({name: p[t] for name, p in params.items()}, FEATURES[t])
        torch.testing.assert_close(logits[t], expected)


def test_linear_prototypes_classify_by_squared_distance() -> None:
    head = LinearHead()
    logits = head.logits(from_prototypes(head, PROTOTYPES), FEATURES, {})
    distances = torch.cdist(FEATURES, PROTOTYPES).square()
    torch.testing.assert_close(logits.softmax(2), (-distances).softmax(2))


def test_cosine_logits_are_scaled_cosines() -> None:
    head = CosineHead(scale=3.0)
    logits = head.logits(from_prototypes(head, PROTOTYPES), FEATURES, {})
    expected = torch.cosine_similarity(FEATURES[:, :, None], PROTOTYPES[:, None], dim=3)
    torch.testing.assert_close(logits, 3 * expected)


@pytest.mark.parametrize("head", [LinearHead(), CosineHead()])
def test_zeros_have_the_shape_of_prototypes(head: Head) -> None:
    zeros, other = head.zeros(2, 3, FEATURES), from_prototypes(head, PROTOTYPES)
    assert {n: p.shape for n, p in zeros.items()} == {n: p.shape for n, p in other.items()}
    assert all(p.dtype == torch.float64 and not p.any() for p in zeros.values())


@pytest.mark.parametrize("head", [LinearHead(), CosineHead()])
def test_zero_rows_have_finite_derivatives_of_any_order(head: Head) -> None:
    """Padded classes have zero weights, dead units give zero features."""
    features, prototypes = FEATURES.clone(), PROTOTYPES.clone()
    features[0, 0], prototypes[0, 0] = 0, 0
    leaves = [features.requires_grad_(), prototypes.requires_grad_()]
    out: Tensor = head.logits(from_prototypes(head, prototypes), features, {})[:, 1:, 1:].sum()
    for _ in range(3):
        gradients = torch.autograd.grad(out, leaves, create_graph=True)
        assert all(g.isfinite().all() for g in gradients)
        out = torch.stack([g.square().sum() for g in gradients]).sum()


def test_class_means_leave_padding_out() -> None:
    labels = torch.tensor([[0, 0, 1, 2, -1], [1, 0, 1, -1, -1]])
    means = SupportSet(FEATURES, labels, CLASSES).class_means
    torch.testing.assert_close(means[0, 0], FEATURES[0, :2].mean(0))
    torch.testing.assert_close(means[0, 2], FEATURES[0, 3])
    torch.testing.assert_close(means[1, 1], FEATURES[1, [0, 2]].mean(0))
    assert (means[1, 2] == 0).all()


def test_ridge_solution_is_the_minimiser() -> None:
    head, learned = (
        RidgeHead(),
        {"log_scale": torch.tensor(0.5).double(), "log_lam": torch.tensor(-1.0).double()},
    )
    labels = torch.tensor([[0, 0, 1, 2, -1], [1, 0, 1, -1, -1]])
    classes = torch.tensor([[7, 8, 9], [7, 8, -1]])
    support = SupportSet(FEATURES, labels, classes)
    params = head.from_support(support, learned)
    weight = params["head.weight"].detach().requires_grad_()
    loss = head.loss({"head.weight": weight}, support, learned)
    (gradient,) = torch.autograd.grad(loss.sum(), weight)
    assert gradient.abs().max() < 1e-12
    assert (params["head.weight"][1, 2] == 0).all()
    scaled = learned["log_scale"].exp() * FEATURES @ weight.transpose(1, 2)
    torch.testing.assert_close(head.logits(params, FEATURES, learned), scaled)


@pytest.mark.parametrize("settings", [{"lam": 0.0}, {"scale": -1.0}])
def test_numbers_learned_by_logarithm_are_positive(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="must be positive"):
        RidgeHead(**settings).learned(None)


def test_matching_is_attention_over_the_support_set() -> None:
    head = MatchingHead(scale=2.0)
    labels = torch.tensor([[0, 0, 1, 2, -1], [1, 0, 1, -1, -1]])
    queries = normal(2, 6, 4, seed=2)
    params = head.from_support(SupportSet(FEATURES, labels, CLASSES), {})
    probabilities = head.logits(params, queries, {}).softmax(2)
    rows = slice(4)
    attention = (2 * torch.cosine_similarity(queries[0][:, None], FEATURES[0, rows], 2)).softmax(1)
    expected = torch.stack([attention[:, labels[0, rows] == n].sum(1) for n in range(3)], 1)
    torch.testing.assert_close(probabilities[0], expected)


def test_labels_spread_to_their_neighbours() -> None:
    """Queries in two clusters follow the one labelled image of each."""
    centres = torch.tensor([[0.0, 0.0], [5.0, 5.0]], dtype=torch.float64)
    queries = (centres.repeat_interleave(4, 0) + 0.3 * normal(8, 2))[None]
    head = LabelPropagationHead(sigma=1.0, neighbours=3)
    learned = {name: p.double() for name, p in head.learned(None).items()}
    labels = torch.tensor([[0, 1]])
    params = head.from_support(SupportSet(centres[None], labels, labels), learned)
    chosen = head.logits(params, queries, learned).argmax(2)
    assert chosen.tolist() == [[0] * 4 + [1] * 4]


@pytest.mark.parametrize("side", [1, 3, 4, 7])
def test_relations_of_maps_of_any_size(side: int) -> None:
    """Against a plain network, pair by pair."""
    torch.manual_seed(0)
    head = RelationHead(channels=2, hidden=4, units=3)
    learned = {name: p.double() for name, p in head.learned(2 * side**2).items()}
    weight, features = normal(2, 3, 2 * side**2), normal(2, 5, 2 * side**2, seed=1)
    logits = head.logits({"head.weight": weight}, features, learned)
    outer = {f"head/{name}": p for name, p in learned.items()}
    for t in range(2):
        expected = PLAIN_HEADS["relation"].logits({"head.weight": weight[t]}, features[t], outer)
        torch.testing.assert_close(logits[t], expected)


def test_relations_need_square_maps() -> None:
    with pytest.raises(ConfigurationError, match=r"24 features are not square maps of 2 channels"):
        RelationHead(channels=2).learned(24)
    with pytest.raises(ConfigurationError, match=r"needs features"):
        RelationHead().learned(None)


def test_full_context_embeddings_read_no_padding() -> None:
    """A task with a padded row in the middle equals the task without it."""
    torch.manual_seed(0)
    head = FullContextHead(steps=2)
    learned = {name: p.double() for name, p in head.learned(4).items()}
    rows, labels = normal(1, 4, 4), torch.tensor([[0, -1, 1, 2]])
    whole = rows[:, [0, 2, 3]]
    padded = head.from_support(SupportSet(rows, labels, CLASSES[:1]), learned)
    plain = head.from_support(SupportSet(whole, LABELS[:1], CLASSES[:1]), learned)
    torch.testing.assert_close(padded["head.support"][:, [0, 2, 3]], plain["head.support"])
    logits = [head.logits(params, FEATURES[:1], learned) for params in (padded, plain)]
    torch.testing.assert_close(logits[0], logits[1])


def test_full_context_needs_steps_and_features() -> None:
    with pytest.raises(ConfigurationError, match="steps is 0"):
        FullContextHead(steps=0)
    with pytest.raises(ConfigurationError, match="needs features"):
        FullContextHead().learned(None)


@pytest.mark.parametrize("head", [LinearHead(), CosineHead(), RidgeHead(), MaxMarginHead()])
def test_linear_heads_are_exported_as_weights_and_biases(head: Head) -> None:
    features, learned = normalize(FEATURES), {n: p.double() for n, p in head.learned(4).items()}
    params = head.from_support(SupportSet(PROTOTYPES, LABELS, CLASSES), learned)
    weight, bias = head.linear(params, learned)
    logits = features @ weight.transpose(1, 2) + bias.unsqueeze(1)
    torch.testing.assert_close(logits, head.logits(params, features, learned))


def test_other_heads_cannot_be_exported() -> None:
    with pytest.raises(ConfigurationError, match="logits of MatchingHead are not linear"):
        MatchingHead().linear({}, {})


def test_ridge_regression_equals_scikit_learns() -> None:
    ridge = pytest.importorskip("sklearn.linear_model").Ridge(alpha=0.3)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64) + 5
    rows = torch.ones(2, 6, dtype=torch.bool)
    rows[1, 4:] = False
    head = RidgeRegressionHead(lam=0.3)
    learned = {name: value.double() for name, value in head.learned(4).items()}
    support = SupportSet(x, y, torch.zeros(2, 0, dtype=torch.int64), rows)
    found = head.logits(head.from_support(support, learned), x, learned)
    for t in range(2):
        ridge.fit(x[t][rows[t]], y[t][rows[t]])
        assert torch.allclose(found[t], torch.from_numpy(ridge.predict(x[t])), rtol=1e-6)
