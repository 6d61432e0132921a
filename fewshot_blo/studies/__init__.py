"""Bilevel problems beyond few-shot learning, each an experiment with a table and a picture."""

from __future__ import annotations

from fewshot_blo.studies.anti_distillation import AntiDistillation
from fewshot_blo.studies.augmentation import LearnedAugmentation
from fewshot_blo.studies.denoising import Denoising
from fewshot_blo.studies.distillation import Distillation
from fewshot_blo.studies.min_norm import MinNorm
from fewshot_blo.studies.one_point import OnePoint
from fewshot_blo.studies.poisoning import Poisoning, TargetedPoisoning
from fewshot_blo.studies.poisoning_features import CleanLabelPoisoning
from fewshot_blo.studies.recipe import STUDIES, is_study, read_study
from fewshot_blo.studies.rows import RowSettings, run_study, solve_row
from fewshot_blo.studies.spurious import Spurious
from fewshot_blo.studies.study import AS_FOUND, RETRAINED, Figures, Study
from fewshot_blo.studies.synthetic import Synthetic
from fewshot_blo.studies.weight_decay import WeightDecay

__all__ = [
    "AS_FOUND",
    "RETRAINED",
    "STUDIES",
    "AntiDistillation",
    "CleanLabelPoisoning",
    "Denoising",
    "Distillation",
    "Figures",
    "LearnedAugmentation",
    "MinNorm",
    "OnePoint",
    "Poisoning",
    "RowSettings",
    "Spurious",
    "Study",
    "Synthetic",
    "TargetedPoisoning",
    "WeightDecay",
    "is_study",
    "read_study",
    "run_study",
    "solve_row",
]
