"""Plays, held-out answers, their scale, the choice among candidates and what it promises."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_images import network
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.evaluation.evaluate import embed
from fewshot_blo.finetune import LabelledImages, Source, fit, read_labelled
from fewshot_blo.finetune.calibration import Scale, fit_scale
from fewshot_blo.finetune.candidates import BALANCED, HEADS, TAILS, Candidate, candidates
from fewshot_blo.finetune.cross_validation import HeldOut, hold_out
from fewshot_blo.finetune.plays import Play, plays, prior_strength, questions
from fewshot_blo.finetune.promise import ClassAccuracy, Promise, measured, promise
from fewshot_blo.finetune.proportion import wilson
from fewshot_blo.finetune.selection import select

PROTOTYPES = Candidate("prototypes", head="cosine")
HEAD = Candidate("linear", adapts="head")


def classes(*counts: int) -> Tensor:
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


@pytest.mark.parametrize("counts", [(1, 2, 3), (9, 9, 9), (40, 1, 3), (12, 30, 11)])
def test_folds_hold_every_image_out_once_and_leave_each_class_one(counts: tuple[int, ...]) -> None:
    labels = classes(*counts)
    found = plays(labels, torch.arange(len(labels)), repeats=2)
    folds = [play for play in found if play.absent < 0 and not play.size and not play.half]
    held = torch.cat([play.asked for play in folds]).sort().values
    able = [row for row, label in enumerate(labels.tolist()) if counts[label] > 1]
    assert held.tolist() == sorted(2 * able)
    assert len(folds) == 2 * min(10, max(counts))
    for play in folds:
        assert sorted(play.kept.tolist() + play.asked.tolist()) == list(range(len(labels)))
        left = torch.bincount(labels[play.kept], minlength=3)
        assert (left >= 1).all()
        # Stratified: no fold has more than its share of a class.
        asked = torch.bincount(labels[play.asked], minlength=3)
        assert (asked <= -(-torch.tensor(counts) // min(10, max(counts)))).all()
    halves = torch.cat([play.asked for play in found if play.half]).sort().values
    assert halves.tolist() == sorted(2 * able)
    for play in (play for play in found if play.half):
        asked = torch.bincount(labels[play.asked], minlength=3)
        assert (asked <= -(-torch.tensor(counts) // 2)).all()


def test_larger_classes_play_the_smaller_ones_and_each_class_plays_the_stranger() -> None:
    labels = classes(1, 8, 3)
    found = plays(labels, torch.arange(12), repeats=3)
    reduced = [play for play in found if play.size]
    assert [play.size for play in reduced] == [1] * 6 + [3] * 3
    for play in reduced:
        label = int(labels[play.asked][0])
        assert (labels[play.asked] == label).all()
        assert int((labels[play.kept] == label).sum()) == play.size
        others = labels[play.kept] != label
        assert int(others.sum()) == int((labels != label).sum())
    strangers = [play for play in found if play.absent >= 0]
    assert [play.absent for play in strangers] == [0, 1, 2]
    assert all((labels[play.asked] == play.absent).all() for play in strangers)
    assert all((labels[play.kept] != play.absent).all() for play in strangers)
    assert plays(classes(1, 1, 1), torch.arange(3), repeats=1) == []
    assert all(play.absent < 0 for play in plays(classes(3, 3), torch.arange(6), repeats=1))


def test_groups_are_never_separated_and_count_once() -> None:
    labels, groups = classes(6, 4, 8), torch.tensor([0, 0, 0, 1, 1, 2, *[3] * 4, *range(4, 12)])
    found = plays(labels, groups, repeats=2)
    for play in found:
        assert not set(groups[play.kept].tolist()) & set(groups[play.asked].tolist())
    asked = questions(found, labels, groups)
    assert asked.counts.tolist() == [3, 1, 8]
    assert not ((asked.labels == 1) & asked.judged).any()
    assert (asked.kept <= asked.counts).all()
    assert asked.kept[asked.sizes == 1][:, :].amin().item() == 1


def test_every_class_weighs_alike() -> None:
    labels = classes(1, 30, 5)
    asked = questions(plays(labels, torch.arange(36), repeats=2), labels, torch.arange(36))
    assert float(asked.weights.sum()) == pytest.approx(1)
    assert float(asked.weights[asked.strange | asked.half].sum()) == 0
    assert asked.half.any()
    ones, fives = asked.sizes == 1, asked.sizes == 5
    own = [(asked.labels == n) & (asked.sizes == 0) & asked.judged for n in range(3)]
    assert float(asked.weights[ones].sum()) == pytest.approx(1 / 3)
    assert float(asked.weights[own[1]].sum()) == pytest.approx(1 / 3)
    share = 5 / (5 + prior_strength(5))
    assert float(asked.weights[own[2]].sum()) == pytest.approx(share / 3)
    assert float(asked.weights[fives].sum()) == pytest.approx((1 - share) / 3)


def test_a_class_without_answers_leaves_its_weight_to_the_others() -> None:
    labels = torch.tensor([0, 1, 1])
    parts = [Play(torch.tensor([0, 1]), torch.tensor([2]))]
    asked = questions(parts, labels, torch.arange(3))
    assert asked.weights.tolist() == [1]
    assert questions([], labels, torch.arange(3)).weights.tolist() == []


@pytest.mark.parametrize("candidate", [BALANCED, PROTOTYPES, HEAD, *TAILS])
def test_answers_are_those_of_a_fit_on_the_play_alone(
    candidate: Candidate, make_folder: Callable[..., Path]
) -> None:
    data = read_labelled(make_folder(2, 4, 2), 16)
    candidate = Candidate(**{**candidate.__dict__, "blocks": min(candidate.blocks, 1), "rank": 1})
    problem = candidate.problem(network(), data.images.shape[1:])
    features, groups = embed(problem.network, data.images), torch.arange(8)
    parts = plays(data.labels, groups, repeats=1)
    asked = questions(parts, data.labels, groups)
    together = hold_out(candidate, problem, features, data.labels, parts, asked)
    for place in (0, len(parts) - 4, len(parts) - 1):
        play = parts[place]
        one = questions([play], data.labels, groups)
        alone = hold_out(candidate, problem, features, data.labels, [play], one)
        start = sum(len(earlier.asked) for earlier in parts[:place])
        own = together.answers[start : start + len(play.asked)]
        torch.testing.assert_close(own, alone.answers, rtol=1e-4, atol=1e-4)
        if play.absent >= 0:
            assert (own[:, play.absent] == -torch.inf).all()
    assert together.known.all()
    others = (asked.sizes != 0) | asked.strange | asked.half
    mean = together.scaled[(asked.rows == 3) & ~others].mean(0)
    torch.testing.assert_close(together.logits[3] / together.scale.temperature, mean)


def test_the_scale_against_a_fine_search() -> None:
    """Two grids that are refined find what the quasi-Newton method of scipy finds."""
    optimize = pytest.importorskip("scipy.optimize")
    torch.manual_seed(0)
    labels = classes(1, 20, 6, 6)
    asked = questions(plays(labels, torch.arange(33), repeats=2), labels, torch.arange(33))
    logits = torch.randn(len(asked.rows), 4) + 2 * F.one_hot(asked.labels, 4)
    logits[:, 0] -= 1
    found = fit_scale(logits, asked, 1.0)
    own = ~asked.strange & ~asked.half
    counts = asked.kept[own].double().numpy()
    terms = counts**-0.5 - (counts**-0.5).mean(1, keepdims=True)
    weights, y = asked.weights[own].numpy(), asked.labels[own].numpy()

    def loss(v: tuple[float, float]) -> float:
        z = logits[own].double().numpy() / math.exp(v[0]) + v[1] * terms
        losses = np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y]
        return float(weights @ losses + 0.01 * (v[1] - 2.4) ** 2)

    best = optimize.minimize(loss, (0.0, 2.0))
    assert found.offset == pytest.approx(best.x[1], abs=0.13)  # Half a step of its grid.
    at = optimize.minimize_scalar(lambda t: loss((t, found.offset)))
    assert math.log(found.temperature) == pytest.approx(at.x, abs=0.01)
    assert fit_scale(logits[:0], questions([], labels, torch.arange(33)), 0.3).temperature == 0.3


def test_sizes_shift_small_classes_up_and_present_ones_only() -> None:
    scale = Scale(2.0, 3.0)
    counts = torch.tensor([4, 1, 0])
    expected = 3 * torch.tensor([-0.25, 0.25, 0.0])
    torch.testing.assert_close(scale.apply(torch.zeros(1, 3), counts[None])[0], expected)
    torch.testing.assert_close(scale.biases(counts), 2 * expected)


def held_out(name: str, right: list[bool], sure: float = 3.0, ways: int = 2) -> HeldOut:
    """A candidate with these images right, of two classes in turn."""
    labels = torch.arange(len(right)) % ways
    rows = torch.arange(len(right))
    parts = [Play(rows[rows != row], rows[rows == row]) for row in rows]
    asked = questions(parts, labels, rows)
    said = torch.where(torch.tensor(right), labels, (labels + 1) % ways)
    logits = sure * F.one_hot(said, ways)
    return HeldOut(Candidate(name), logits, asked, fit_scale(logits, asked, 1.0))


def test_the_choice_is_that_of_the_lowest_balanced_log_loss() -> None:
    good = [held_out("a", [True] * 9 + [False]), held_out("b", [True] * 2 + [False] * 8)]
    selection = select(good)
    assert selection.chosen == 0
    assert f"'a' has the lowest log-loss on held-out images, {good[0].loss:.3f}" in selection.reason
    weights = good[0].asked.weights[:, None]
    by_hand = -(good[0].scaled.log_softmax(1) * F.one_hot(good[0].labels, 2) * weights).sum()
    assert good[0].loss == pytest.approx(float(by_hand))
    assert good[0].accuracy == pytest.approx(0.9)


@pytest.mark.slow
def test_of_many_coins_the_best_is_not_believed() -> None:
    torch.manual_seed(0)
    promised, looks = [], []
    for _ in range(40):
        coins = [held_out(str(n), (torch.rand(30) < 0.5).tolist()) for n in range(10)]
        chosen = select(coins)
        promised.append(promise(chosen.best, 0.0).accuracy or 0)
        looks.append(chosen.accuracy or 0)
    assert sum(promised) / 40 > 0.6
    assert sum(looks) / 40 == pytest.approx(0.5, abs=0.06)


def test_the_promise_of_one_accuracy() -> None:
    chosen = select([held_out("a", [True] * 16 + [False] * 4)])
    assert chosen.count == 20
    gain = 0.6 * math.log(10 / 9)
    expected = 1 / (1 + math.exp(-gain) / 4)
    assert chosen.accuracy == pytest.approx(expected)
    low, high = chosen.interval or (0.0, 0.0)
    assert 0.5 < low < 0.65
    assert 0.9 < high < 0.97
    text = f"accuracy to expect on new images {100 * expected:.1f} % if all classes are equally"
    assert chosen.describe().startswith(text)
    assert chosen.promise.unmeasured(["x", "y"]) == ""


def test_classes_without_answers_are_named() -> None:
    some = Promise((ClassAccuracy(0.8, 6, 10), ClassAccuracy(0.5, 1, 0), ClassAccuracy(None, 0, 0)))
    assert some.accuracy == pytest.approx(0.65)
    said = some.unmeasured(["a", "b", "c"])
    assert "no image of 'b' could be held out" in said
    assert "the accuracy does not include 'c'" in said


def test_nothing_to_measure() -> None:
    labels = torch.arange(3)
    asked = questions([], labels, labels)
    selection = select([HeldOut(PROTOTYPES, torch.zeros(0, 3), asked, Scale())])
    assert (selection.accuracy, selection.interval) == (None, None)
    assert "not measured" in selection.describe()
    assert not selection.known.detects


def test_a_test_set_counts_classes_alike() -> None:
    right = torch.tensor([True] * 30 + [False] * 2)
    found = measured(right, torch.tensor([0] * 30 + [1] * 2), 3)
    assert found.accuracy == pytest.approx(0.5)
    assert found.count == 32
    assert "on the test images 50.0 %" in found.describe()
    assert "does not include 'c', of which none has test images" in found.unmeasured("abc")


def test_independent_answers_give_the_interval_of_wilson() -> None:
    found = measured(torch.arange(400) % 4 > 0, torch.zeros(400, dtype=torch.int64), 1)
    assert found.interval == pytest.approx(wilson(0.75, 400), abs=2e-3)


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


def test_candidates_by_name() -> None:
    def found(adapts: str, views: str, images: int) -> tuple[Candidate, ...]:
        return candidates(adapts, views, images=images, classes=2)  # type: ignore[arg-type]

    assert found("auto", "one", 30) == HEADS
    assert found("auto", "one", 40) == HEADS + TAILS
    assert found("auto", "auto", 900) == found("auto", "one", 900) == HEADS
    assert found("head", "one", 30) == HEADS
    assert [c.adapts for c in found("last_blocks", "auto", 900)] == ["last_blocks"]
    assert {c.adapts for c in found("bias", "one", 30)} == {"bias"}
    assert [c.views for c in found("auto", "auto", 30)] == ["one", "mirrored", "crops"]
    assert {c.views for c in found("auto", "mirrored", 900)} == {"mirrored"}
    with pytest.raises(ConfigurationError, match="adapts is 'nothing'"):
        found("nothing", "one", 3)


def test_fit_with_groups_and_with_a_test_set(
    make_folder: Callable[..., Path], small_networks: str
) -> None:
    data = read_labelled(make_folder(5, 5, 5), 16)
    source = Source(small_networks)
    groups = torch.arange(15) // 5 * 5 + torch.tensor([0, 0, 1, 1, 2]).repeat(3)
    new = read_labelled(make_folder(7, 7, 7, name="new"), 16)
    some = [row for row in range(21) if row % 7 > 4]
    test = LabelledImages(new.images[some], new.labels[some], new.class_names, ())
    settings = {"adapts": "head", "views": "one", "progress": False}
    classifier, selection = fit(data, source.load(), source, groups=groups, test=test, **settings)  # type: ignore[arg-type]
    assert selection.best.asked.counts.tolist() == [3, 3, 3]
    assert selection.promise.test
    assert selection.count == 6
    right = classifier.predict(test.images).probabilities.argmax(1) == test.labels
    assert selection.accuracy == pytest.approx(float(right.double().mean()))


@pytest.mark.parametrize("accuracies", [(0.9,), (0.95, 0.95), (1.0, 0.9), (0.98,) * 5, (0.8,) * 5])
def test_the_interval_of_a_test_set_holds_where_almost_all_answers_are_right(
    accuracies: tuple[float, ...],
) -> None:
    true, ways = torch.tensor(accuracies).double(), len(accuracies)
    labels = torch.arange(ways).repeat_interleave(10)
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(400):
        right = torch.rand(len(labels), generator=generator) < true[labels]
        low, high = measured(right, labels, ways).interval or (1.0, 0.0)
        held += low <= float(true.mean()) <= high
    assert 0.9 <= held / 400 <= 1


def test_the_interval_of_equal_classes_without_an_error_is_that_of_one_class() -> None:
    found = measured(torch.ones(50).bool(), torch.arange(5).repeat_interleave(10), 5)
    assert found.interval == pytest.approx(wilson(1.0, 50))


def test_the_interval_of_classes_that_differ_is_that_of_a_stratified_sample() -> None:
    """With many answers the variance is the mean of the classes' own, divided by their number."""
    labels = torch.arange(2).repeat_interleave(20_000)
    found = measured((labels == 0) | (torch.arange(40_000) % 2 == 0), labels, 2)
    variance = (0 + 0.25) / 20_000 / 4
    low, high = found.interval or (0.0, 0.0)
    assert high - low == pytest.approx(2 * 1.96 * variance**0.5, rel=1e-2)
