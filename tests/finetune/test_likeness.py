"""Images of none of the classes, and prediction sets."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot_blo.backbones import Backbone, Preprocessing
from fewshot_blo.finetune import LabelledImages, Source, fit
from fewshot_blo.finetune.likeness import Known, Scores


def clusters(count: int, generator: torch.Generator, strange: bool = False) -> Tensor:
    """Pictures of four classes, or of four others, as features in 40 dimensions."""
    centres = 3 * torch.eye(40)[4 * strange : 4 * strange + 4]
    labels = torch.arange(4).repeat_interleave(count)
    return (centres[labels] + 0.5 * torch.randn(4 * count, 40, generator=generator))[
        ..., None, None
    ]


@pytest.mark.parametrize("count", [6, 40])
def test_strangers_are_found_at_the_stated_rates(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, labels = clusters(count, generator), torch.arange(4).repeat_interleave(count)
    data = LabelledImages(x, labels, tuple("abcd"), ())
    same = Backbone(nn.Identity(), Preprocessing(None, (0.0,) * 40, (1.0,) * 40), pool="flatten")
    settings = {"adapts": "head", "views": "one", "progress": False}
    classifier, selection = fit(data, same, Source("features"), **settings)  # type: ignore[arg-type]
    known = selection.known
    assert classifier.known is known
    assert known.detects
    assert known.auroc is not None
    assert known.auroc > 0.95
    new = classifier.predict(clusters(100, generator))
    others = classifier.predict(clusters(100, generator, strange=True))
    # A quantile of 24 held-out images is far less precise than one of 160.
    assert float((~new.known).double().mean()) < (0.25 if count == 6 else 0.12)
    assert float((~others.known).double().mean()) > (0.5 if count == 6 else 0.9)
    truth = torch.arange(4).repeat_interleave(100)
    sets = known.sets(new.probabilities, 0.9)
    assert float(sets.gather(1, truth[:, None]).double().mean()) > 0.85
    assert sets.any(1).all()


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
    assert able.describe() == (
        "'none of these' flags about 5 % of images of known classes and 40 % of images of others"
    )
    assert "needs at least three classes" in Known().describe()


def test_sets_of_nothing_held_out_hold_all_classes() -> None:
    probabilities = F.softmax(torch.randn(5, 3), 1)
    assert Known().sets(probabilities, 0.9).all()
