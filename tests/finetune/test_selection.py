"""Held-out predictions, the choice among candidates, temperatures and likeness."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_images import network
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.evaluation.evaluate import embed
from fewshot_blo.finetune import read_labelled
from fewshot_blo.finetune.candidates import HEADS, PROTOTYPES, TAILS, Candidate, candidates
from fewshot_blo.finetune.cross_validation import HeldOut, folds, hold_out, temperature, wilson
from fewshot_blo.finetune.likeness import held_out_scores, is_known, p_values
from fewshot_blo.finetune.selection import select


@pytest.mark.parametrize("counts", [(1, 2, 3), (9, 9, 9), (40, 1, 3)])
def test_folds_hold_every_image_out_once_and_leave_each_class_one(counts: tuple[int, ...]) -> None:
    labels = torch.arange(3).repeat_interleave(torch.tensor(counts))
    parts = folds(labels)
    held = torch.cat(parts).sort().values
    assert held.tolist() == [i for i, label in enumerate(labels.tolist()) if counts[label] > 1]
    for part in parts:
        left = torch.bincount(labels, minlength=3) - torch.bincount(labels[part], minlength=3)
        assert (left >= 1).all()
    assert len(parts) == (len(held) if len(held) <= 20 else 10)


@pytest.mark.parametrize("counts", [(12, 30, 11), (40, 3, 2), (10, 2, 12)])
def test_folds_are_as_stratified_as_those_of_scikit_learn(counts: tuple[int, ...]) -> None:
    """Which refuses classes that all have fewer images than there are folds, as 5 of 5 images."""
    splits = pytest.importorskip("sklearn.model_selection")
    labels = torch.arange(3).repeat_interleave(torch.tensor(counts))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of a class with fewer images than folds.
        theirs = splits.StratifiedKFold(10).split(labels, labels)
        expected = [torch.bincount(labels[rows], minlength=3) for _, rows in theirs]
    found = [torch.bincount(labels[part], minlength=3) for part in folds(labels)]
    for own, other in zip(torch.stack(found).T, torch.stack(expected).T, strict=True):
        assert own.sort().values.tolist() == other.sort().values.tolist()
    few = torch.arange(5).repeat_interleave(5)
    with pytest.raises(ValueError, match="cannot be greater than the number of members"):
        next(splits.StratifiedKFold(10).split(few, few))
    assert sorted(torch.cat(folds(few)).tolist()) == list(range(25))


@pytest.mark.parametrize("candidate", [PROTOTYPES, HEADS[1], HEADS[3], TAILS[0], TAILS[1]])
def test_held_out_logits_are_those_of_a_fit_without_the_image(
    candidate: Candidate, make_folder: Callable[..., Path]
) -> None:
    data = read_labelled(make_folder(2, 3, 2), 16)
    candidate = Candidate(**{**candidate.__dict__, "blocks": min(candidate.blocks, 1), "rank": 1})
    problem = candidate.problem(network(), data.images.shape[1:])
    features = embed(problem.network, data.images)
    together = hold_out(candidate, problem, features, data, folds(data.labels))
    alone = hold_out(candidate, problem, features, data, [torch.tensor([3])])
    assert alone.known.tolist() == [row == 3 for row in range(7)]
    torch.testing.assert_close(together.logits[3], alone.logits[3], rtol=1e-4, atol=1e-4)
    assert together.known.all()


def test_prototypes_by_hand(make_folder: Callable[..., Path]) -> None:
    data = read_labelled(make_folder(2, 3, 1), 16)
    backbone = network()
    problem = PROTOTYPES.problem(backbone, data.images.shape[1:])
    features = embed(problem.network, data.images)
    result = hold_out(PROTOTYPES, problem, features, data, folds(data.labels))
    with torch.no_grad():
        x = F.normalize(backbone(data.images / 255))
    for row in range(6):
        kept = torch.arange(6) != row
        if not (data.labels[kept] == data.labels[row]).any():
            assert not result.known[row]
            continue
        means = torch.stack([x[kept & (data.labels == n)].mean(0) for n in range(3)])
        torch.testing.assert_close(result.logits[row], 10 * F.normalize(means) @ x[row])


def held_out(name: str, right: list[bool], sure: float = 3.0) -> HeldOut:
    """A candidate with these images right."""
    labels = torch.zeros(len(right), dtype=torch.int64)
    logits = torch.tensor([[sure, 0.0] if hit else [0.0, sure] for hit in right])
    return HeldOut(Candidate(name), logits, labels)


def test_the_choice_and_its_honest_estimate() -> None:
    """Of many coins one looks good; the estimate does not believe it, on average."""
    torch.manual_seed(0)
    estimates, looks = [], []
    for _ in range(40):
        coins = [held_out(str(n), (torch.rand(30) < 0.5).tolist()) for n in range(10)]
        selection = select(coins)
        best = max(int(coin.right.sum()) for coin in coins)
        assert int(coins[selection.chosen].right.sum()) == best
        assert f"{best} of 30" in selection.reason
        estimates.append(selection.accuracy or 0)
        looks.append(best / 30)
    assert sum(looks) / 40 > 0.6
    assert sum(estimates) / 40 == pytest.approx(0.5, abs=0.05)


def test_a_clear_choice_keeps_its_figure() -> None:
    good = [held_out("a", [True] * 10), held_out("b", [True] * 2 + [False] * 8)]
    selection = select(good)
    assert (selection.chosen, selection.accuracy) == (0, 1.0)
    low, high = selection.interval or (0.0, 0.0)
    assert 0.6 < low < high == 1.0
    assert "accuracy on held-out images 100.0 % (95 % interval 72 to 100 %" in selection.describe()
    alone = select(good[1:])
    assert alone.accuracy == pytest.approx(0.2)


def test_equals_are_told_apart_by_log_loss() -> None:
    right = [True] * 6 + [False]
    doubtful = held_out("doubtful", right)
    doubtful.logits[:5] *= 0.01
    selection = select([doubtful, held_out("sure", right)])
    assert selection.chosen == 1
    assert "as 1 other does" in selection.reason


def test_nothing_to_measure() -> None:
    nothing = HeldOut(PROTOTYPES, torch.full((3, 3), torch.nan), torch.arange(3))
    selection = select([nothing])
    assert (selection.accuracy, selection.interval) == (None, None)
    assert "not measured" in selection.describe()


def test_temperature_against_a_fine_search() -> None:
    torch.manual_seed(0)
    labels = torch.randint(3, (200,))
    logits = 4 * torch.randn(200, 3) + 6 * F.one_hot(labels, 3)
    scales = torch.logspace(-2, 3, 4001)
    losses = torch.stack([F.cross_entropy(logits / t, labels) for t in scales])
    assert temperature(logits, labels) == pytest.approx(float(scales[losses.argmin()]), rel=0.01)
    assert temperature(logits[:0], labels[:0]) == 1.0


def test_wilson_interval_is_scipys() -> None:
    """Of whole counts, which alone scipy takes; 1.96 stands for the quantile 1.959964."""
    stats = pytest.importorskip("scipy.stats")
    level = 1 - 2 * float(stats.norm.sf(1.96))
    for right, count in ((0, 5), (3, 10), (10, 10), (50, 200), (1, 1)):
        expected = stats.binomtest(right, count).proportion_ci(level, method="wilson")
        assert wilson(right / count, count) == pytest.approx((expected.low, expected.high))


def test_wilson_interval() -> None:
    """Against its defining equation: |p - share| = z sqrt(p (1 - p) / n), of any share."""
    for share, count in ((0.3, 10), (0.9, 10), (0.25, 200), (0.337, 10)):
        for bound in wilson(share, count):
            expected = 1.96 * math.sqrt(bound * (1 - bound) / count)
            assert abs(bound - share) == pytest.approx(expected)
    assert wilson(0.0, 5)[0] == pytest.approx(0)
    assert wilson(1.0, 5)[1] == pytest.approx(1)


def clusters(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three classes far from each other in 500 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3).repeat_interleave(count)
    centres = 15 * torch.eye(3, 500)
    return centres[labels] + torch.randn(3 * count, 500, generator=generator), labels


def test_likeness_is_uniform_for_known_images_and_low_for_others() -> None:
    torch.manual_seed(0)
    new, _ = clusters(200, seed=1)
    others = torch.randn(200, 500) + 15 * torch.eye(500)[7]
    for count, share in ((6, 0.75), (40, 0.9)):
        features, labels = clusters(count)
        p = p_values(new, features, labels)
        assert float(p.median()) == pytest.approx(0.5, abs=0.2)
        assert float(is_known(p, len(labels)).double().mean()) > share
        assert not is_known(p_values(others, features, labels), len(labels)).any()
    assert len(held_out_scores(features, labels)) == 120
    alone = p_values(new, features[[0, 50]], torch.tensor([0, 1]))
    assert (alone == 1).all()


def test_images_as_likely_as_a_new_one_count_for_it() -> None:
    """Of M training images, all as likely as the new one, the p-value is (M + 1) / (M + 1)."""
    features = torch.eye(2)[[0, 0, 0, 0]]
    p = p_values(torch.eye(2), features, torch.tensor([0, 0, 1, 1]))
    assert p.tolist() == pytest.approx([1, 1 / 5])


def test_candidates_by_name() -> None:
    assert candidates("auto", "one", images=30) == HEADS + TAILS
    assert candidates("auto", "auto", images=900) == candidates("auto", "one", images=900) == HEADS
    assert candidates("head", "one", images=30) == HEADS
    assert [c.adapts for c in candidates("last_blocks", "auto", images=900)] == ["last_blocks"]
    assert {c.adapts for c in candidates("bias", "one", images=30)} == {"bias"}
    some = candidates("auto", "auto", images=30)
    assert some[: len(HEADS + TAILS)] == HEADS + TAILS
    assert [(c.adapts, c.views) for c in some[len(HEADS + TAILS) :]] == [("head", "crops")] * 5
    assert {c.views for c in candidates("auto", "mirrored", images=900)} == {"mirrored"}
    with pytest.raises(ConfigurationError, match="adapts is 'nothing'"):
        candidates("nothing", "one", images=3)  # type: ignore[arg-type]
