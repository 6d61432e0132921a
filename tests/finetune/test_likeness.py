"""Images of none of the classes, and prediction sets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot_blo.backbones import Backbone, Preprocessing
from fewshot_blo.finetune import Classifier, LabelledImages, Source, fit
from fewshot_blo.finetune.likeness import Known, Scores
from fewshot_blo.finetune.selection import Selection


def clusters(
    counts: Sequence[int],
    generator: torch.Generator,
    strange: bool = False,
    noise: float = 0.5,
    common: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Pictures of classes of such sizes, or of as many others, as 40 features, and labels.

    All pictures have ``common`` added to each feature.
    """
    ways = len(counts)
    centres = 3 * torch.eye(40)[ways * strange : ways * strange + ways]
    labels = torch.arange(ways).repeat_interleave(torch.tensor(counts))
    noises = torch.randn(len(labels), 40, generator=generator)
    return (centres[labels] + noise * noises + common)[..., None, None], labels


def fitted(x: Tensor, labels: Tensor) -> tuple[Classifier, Selection]:
    data = LabelledImages(x, labels, tuple(map(str, range(int(labels.max()) + 1))), ())
    same = Backbone(nn.Identity(), Preprocessing(None, (0.0,) * 40, (1.0,) * 40), pool="flatten")
    return fit(data, same, Source("features"), adapts="head", views="one", progress=False)


@pytest.mark.parametrize(("count", "draws", "least"), [(6, 30, 0.5), (40, 8, 0.9)])
def test_strangers_are_found_at_the_stated_rates(count: int, draws: int, least: float) -> None:
    flagged, found, covered = [], [], []
    for seed in range(draws):
        generator = torch.Generator().manual_seed(seed)
        classifier, selection = fitted(*clusters([count] * 4, generator))
        known = selection.known
        assert classifier.known is known
        assert known.detects
        assert known.auroc is not None
        assert known.auroc > 0.95
        new = classifier.predict(clusters([100] * 4, generator)[0])
        others = classifier.predict(clusters([100] * 4, generator, strange=True)[0])
        flagged.append(float((~new.known).double().mean()))
        found.append(float((~others.known).double().mean()))
        truth = torch.arange(4).repeat_interleave(100)
        sets = known.sets(new.probabilities, 0.9)
        covered.append(float(sets.gather(1, truth[:, None]).double().mean()))
        assert sets.any(1).all()
    # Below the second lowest of 24 held-out images lie 2 of 25 new ones, in a draw 0 to 25 %.
    assert sum(flagged) / draws < (0.11 if count == 6 else 0.07)
    assert min(found) > least
    assert sum(covered) / draws > 0.88


def test_what_all_features_share_does_not_hide_strangers() -> None:
    """As after a ReLU: all prototypes are alike, and logits large for every picture."""
    flagged, found, inside = [], [], []
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        classifier, selection = fitted(*clusters([10] * 6, generator, common=6.0, noise=1.0))
        new = classifier.predict(clusters([100] * 6, generator, common=6.0, noise=1.0)[0])
        others = classifier.predict(
            clusters([100] * 6, generator, strange=True, noise=1.0, common=6.0)[0]
        )
        flagged.append(float((~new.known).double().mean()))
        found.append(float((~others.known).double().mean()))
        assert selection.known.interval is not None
        low, high = selection.known.interval
        inside.append(low <= found[-1] <= high)
    assert 0.02 < sum(flagged) / 8 < 0.08
    assert min(found) > 0.2, found
    assert sum(inside) >= 7, (found, flagged)


@pytest.mark.parametrize("counts", [(5,) * 5, (10,) * 5, (1, 20, 20, 5, 5)])
@pytest.mark.parametrize("noise", [0.5, 0.8])
def test_about_five_percent_of_known_images_are_flagged(
    counts: tuple[int, ...], noise: float
) -> None:
    rates = []
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        classifier, _ = fitted(*clusters(counts, generator, noise=noise))
        new, _ = clusters([40] * 5, generator, noise=noise)
        rates.append(float((~classifier.predict(new).known).double().mean()))
    assert 0.03 < sum(rates) / len(rates) < 0.11


def test_few_held_out_images_set_no_threshold() -> None:
    _, selection = fitted(*clusters([2] * 5, torch.Generator().manual_seed(0)))
    assert not selection.known.detects
    assert "at least 15 held-out images, and there are 10" in selection.known.describe()


def test_p_values_by_hand() -> None:
    scores = Scores(torch.tensor([1.0, 2.0, 3.0]), torch.full((3,), 1 / 3).double(), 3)
    found = scores.p_values(torch.tensor([0.0, 1.0, 2.5, 9.0]))
    torch.testing.assert_close(found, torch.tensor([1, 2, 3, 4]) / 4)
    assert (Known().evidence.p_values(torch.zeros(2)) == 1).all()


def test_without_power_nothing_is_flagged_and_a_sentence_says_so() -> None:
    scores = Scores(torch.arange(100.0), torch.full((100,), 0.01).double(), 100)
    p = torch.tensor([0.001])
    blind = Known(scores, scores, 0.05, 0.06, 0.5)
    assert blind.is_known(p).all()
    assert "are not detected, because they cannot be told" in blind.describe()
    able = Known(scores, scores, 0.05, 0.4, 0.8)
    assert not able.is_known(p).any()
    rates = (
        "'none of these' flags about 5 % of images of known classes and 40 % of images of others"
    )
    assert able.describe() == rates
    counted = Known(scores, scores, 0.05, 0.4, 0.8, left_out=5)
    assert counted.describe() == rates + " (95 % interval 9 to 81 %)"
    assert "needs at least three classes" in Known().describe()


def test_sets_of_nothing_held_out_hold_all_classes() -> None:
    probabilities = F.softmax(torch.randn(5, 3), 1)
    assert Known().sets(probabilities, 0.9).all()


def test_evidence_is_raised_as_from_halves_to_folds() -> None:
    """Against a plain loop over images: the gain is linear in the logarithm of their number."""
    generator = torch.Generator().manual_seed(0)
    _, selection = fitted(*clusters([4] * 3, generator))
    best, asked = selection.best, selection.best.asked
    level = asked.kept.clamp(min=1).double().rsqrt().sum(1) / (asked.kept > 0).sum(1)
    level -= (asked.kept == 0).sum(1) / (asked.kept > 0).sum(1)  # Absent classes count nothing.
    evidence = best.scaled.double().logsumexp(1) + best.scale.offset * (level - 4**-0.5)
    folds, halves = [], []
    for image in range(12):
        of_image = (asked.rows == image) & ~asked.strange
        folds.append(float(evidence[of_image & ~asked.half].mean()))
        halves.append(float(evidence[of_image & asked.half].mean()))
    slope = (sum(folds) - sum(halves)) / 12 / math.log(3 / 2)
    raised = evidence[asked.judged] + slope * math.log(4 / 3)
    expected = raised.sort().values.float()
    torch.testing.assert_close(selection.known.evidence.values, expected, rtol=1e-5, atol=1e-5)
