from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.objectives.open_set import AUPR, AUROC, OpenSetAccuracy
from fewshot_blo.tasks.batch import UNKNOWN


def example(ties: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, labels and rows of 6 tasks of up to 4 classes, with padding."""
    generator = torch.Generator().manual_seed(int(ties))
    logits = torch.randn(6, 40, 4, generator=generator, dtype=torch.float64)
    logits = logits.round() if ties else logits
    logits[3, :, 2:] = -torch.inf
    labels = torch.randint(-2, 4, (6, 40), generator=generator)
    labels[3] = torch.where(labels[3] >= 2, UNKNOWN, labels[3])
    return logits, labels, labels != -1


def scores(logits: torch.Tensor, score: str) -> np.ndarray[Any, Any]:
    if score == "probability":
        return logits.softmax(-1).amax(-1).numpy()
    return (logits.amax(-1) if score == "logit" else logits.logsumexp(-1)).numpy()


@pytest.mark.parametrize("score", ["probability", "logit", "energy"])
@pytest.mark.parametrize("ties", [False, True])
def test_areas_are_those_of_scikit_learn(score: Any, ties: bool) -> None:
    logits, labels, rows = example(ties)
    found = AUROC(score)(logits, labels, rows), AUPR(score)(logits, labels, rows)
    for task in range(6):
        real = rows[task].numpy()
        own = scores(logits[task], score)[real]
        unknown = (labels[task] == UNKNOWN).numpy()[real]
        assert float(found[0][task]) == pytest.approx(roc_auc_score(~unknown, own), rel=1e-10)
        expected = average_precision_score(unknown, -own)
        assert float(found[1][task]) == pytest.approx(expected, rel=1e-10)


def test_accuracy_at_95_percent_of_known() -> None:
    logits, labels, rows = example()
    found = OpenSetAccuracy()(logits, labels, rows)
    for task in range(6):
        own = scores(logits[task], "probability")
        known = [i for i in range(40) if labels[task, i] >= 0]
        accepted = sorted((own[i] for i in known), reverse=True)
        limit = next(s for s in accepted if sum(own[i] >= s for i in known) >= 0.95 * len(known))
        right = [
            own[i] >= limit and int(logits[task, i].argmax()) == int(labels[task, i]) for i in known
        ]
        right += [own[i] < limit for i in range(40) if labels[task, i] == UNKNOWN]
        assert float(found[task]) == pytest.approx(np.mean(right), rel=1e-10)


def test_perfect_separation() -> None:
    logits = torch.tensor([[[9.0, 0.0], [0.0, 9.0], [0.1, 0.0], [0.0, 0.1]]])
    labels = torch.tensor([[0, 1, UNKNOWN, UNKNOWN]])
    for metric in (AUROC(), AUPR(), OpenSetAccuracy()):
        assert metric(logits, labels, labels != -1).tolist() == [1.0]
    assert OpenSetAccuracy(accepted=0.5).name == "accuracy at 50 % of known"
    assert (AUROC().name, AUPR("logit").name) == ("AUROC", "AUPR (logit)")


def test_tasks_without_unknown_queries() -> None:
    labels = torch.tensor([[0, 1]])
    with pytest.raises(ConfigurationError, match="AUROC needs queries of known and of unknown"):
        AUROC()(torch.zeros(1, 2, 2), labels, labels >= 0)
