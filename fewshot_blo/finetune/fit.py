"""From a person's images to a classifier."""

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
    """Chooses how to fine-tune by held-out images, and does it on all.

    Args:
        data: a person's images.
        backbone: a pretrained network.
        source: where it comes from.
        adapts: what adapts; "auto" lets the images choose.
        views: of each image; "auto" lets the images choose.
        progress: print what each candidate gets right, and show a progress bar, or lines where
            there is no terminal; False is silent.

    Raises:
        ConfigurationError: if nothing of that kind adapts.
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
