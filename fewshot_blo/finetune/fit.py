"""``fit``: selects a way to fine-tune by cross-validation and returns the classifier."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from fewshot_blo.backbones import Adapts, Backbone, Views
from fewshot_blo.evaluation.evaluate import embed
from fewshot_blo.finetune.candidates import PROTOTYPES, candidates
from fewshot_blo.finetune.classifier import Classifier, Source, fit_classifier
from fewshot_blo.finetune.cross_validation import HeldOut, folds, hold_out, temperature
from fewshot_blo.finetune.images import LabelledImages
from fewshot_blo.finetune.selection import Selection, select
from fewshot_blo.records.progress import Progress


def fit(
    data: LabelledImages,
    backbone: Backbone,
    source: Source,
    *,
    adapts: Adapts | Literal["auto"] = "auto",
    views: Views | Literal["auto"] = "auto",
    progress: bool = True,
) -> tuple[Classifier, Selection]:
    """Selects a way to fine-tune by cross-validation, then fine-tunes on all images.

    Args:
        data: the labelled images.
        backbone: a pretrained network.
        source: arguments from which the backbone is built again.
        adapts: parameters that adapt; "auto" selects them by cross-validation.
        views: views of each image; "auto" selects them by cross-validation.
        progress: print the result of each candidate and show a progress bar, or lines if there is
            no terminal; False is silent.

    Returns:
        The classifier, and the selection with the accuracy to expect.

    Raises:
        ConfigurationError: if ``adapts`` is unknown.
    """
    parts = folds(data.labels)
    tried: list[HeldOut] = []
    options = candidates(adapts, views, images=len(data.labels)) if parts else (PROTOTYPES,)
    embedded: dict[tuple[object, ...], Tensor] = {}
    with Progress("fine-tuning", len(options), "candidate", shown=progress) as bar:
        for candidate in options:
            problem = candidate.problem(backbone, data.images.shape[1:])
            if candidate.frozen not in embedded:
                embedded[candidate.frozen] = embed(problem.network, data.images, progress=progress)
            result = hold_out(candidate, problem, embedded[candidate.frozen], data, parts)
            tried.append(result)
            bar.advance()
            if parts:
                bar.say(result.describe())
    selection = select(tried)
    best = selection.held_out[selection.chosen]
    scale = temperature(best.logits[best.known], best.labels[best.known])
    features = embedded[best.candidate.frozen]
    classifier = fit_classifier(best.candidate, backbone, source, data, features, scale)
    return classifier, selection
