"""``fit``: selects a way to fine-tune by cross-validation and returns the classifier."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import Tensor

from fewshot_blo.backbones import Adapts, Backbone, Views
from fewshot_blo.finetune.candidate_jobs import held_out_by_jobs
from fewshot_blo.finetune.candidates import BALANCED, candidates
from fewshot_blo.finetune.choosing import Choosing
from fewshot_blo.finetune.classifier import Classifier, Source, fit_classifier
from fewshot_blo.finetune.images import LabelledImages
from fewshot_blo.finetune.plays import FOLDS, plays, questions
from fewshot_blo.finetune.promise import measured
from fewshot_blo.finetune.selection import Selection, select
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Counting, Positive

_REPEATS, _MANY = 4, 200
"""Repetitions of the folds, of heads alone and up to so many images; otherwise there is one."""
_FEW_FOLDS = 5
"""Folds where parts of the network adapt, which takes most of the time."""


@checked
def fit(
    data: LabelledImages,
    backbone: Backbone,
    source: Source,
    *,
    adapts: Adapts | Literal["auto"] = "auto",
    views: Views | Literal["auto"] = "auto",
    groups: Tensor | None = None,
    test: LabelledImages | None = None,
    minutes: Positive | None = None,
    jobs: Counting = 1,
    progress: bool = True,
) -> tuple[Classifier, Selection]:
    """Selects a way to fine-tune by cross-validation, then fine-tunes on all images.

    Args:
        data: the labelled images.
        backbone: a pretrained network.
        source: arguments from which the backbone is built again.
        adapts: parameters that adapt; "auto" selects them by cross-validation.
        views: views of each image; "auto" selects them by cross-validation.
        groups: group of each image, ``[M]``; images of one group, as near-duplicates, are held out
            together and count as one. By default those of ``data``.
        test: images of the same classes that are not in ``data``, on which the accuracy is measured
            instead of by cross-validation. By default those that ``data`` holds out, if any.
        minutes: time to choose in. Candidates are tried from the cheapest on, and those that would
            not fit are left out and named; the first one is always tried. None for no limit.
        jobs: processes of this machine that try candidates beside each other; those that share
            frozen features are tried in one. The choice and the classifier are those of one process
            with as many threads as a job has.
        progress: print the result and time of each candidate and show a progress bar, or lines if
            there is no terminal; Ctrl-C then ends the choice among the candidates tried so far.
            False is silent.

    Returns:
        The classifier, and the selection with the accuracy to expect.

    Raises:
        ChildProcessError: if a job was killed.
        ConfigurationError: if ``adapts`` is unknown, or ``minutes`` is not positive.
    """
    groups = data.groups if groups is None else groups
    test = data.held_out if test is None else test
    options = candidates(adapts, views, images=len(data.labels), classes=len(data.class_names))
    heads = all(option.adapts == "head" for option in options)
    repeats = _REPEATS if heads and len(data.labels) <= _MANY else 1
    parts = plays(data.labels, groups, repeats=repeats, folds=FOLDS if heads else _FEW_FOLDS)
    asked = questions(parts, data.labels, groups)
    options = options if parts else (BALANCED,)
    choosing = Choosing(data, backbone, parts, asked, minutes, progress)
    tried = held_out_by_jobs(choosing, options, jobs) if jobs > 1 else choosing.held_out(options)
    selection = select(tried)
    best = selection.best
    classifier = fit_classifier(
        best.candidate,
        backbone,
        source,
        data,
        choosing.features(best.candidate),
        best.scale,
        selection.known,
        counts=asked.counts,
    )
    if test is None:
        return classifier, selection
    right = classifier.predict(test.images).probabilities.argmax(1) == test.labels
    return classifier, replace(
        selection, promise=measured(right, test.labels, len(data.class_names))
    )
