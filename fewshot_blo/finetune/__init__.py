"""Fine-tunes a pretrained network on a few labelled images, with candidates, report and export."""

from __future__ import annotations

from fewshot_blo.finetune.classifier import Classifier, Predictions, Source
from fewshot_blo.finetune.files import load_classifier, save_classifier
from fewshot_blo.finetune.fit import fit
from fewshot_blo.finetune.images import LabelledImages
from fewshot_blo.finetune.labelled_folder import read_labelled
from fewshot_blo.finetune.selection import Selection

__all__ = [
    "Classifier",
    "LabelledImages",
    "Predictions",
    "Selection",
    "Source",
    "fit",
    "load_classifier",
    "read_labelled",
    "save_classifier",
]
