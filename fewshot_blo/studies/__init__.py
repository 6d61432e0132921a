"""Studies: bilevel problems beyond few-shot learning as experiments with a table and a figure."""

from __future__ import annotations

from fewshot_blo.studies.images.augmentation import LearnedAugmentation
from fewshot_blo.studies.images.cleaning import Cleaning
from fewshot_blo.studies.images.denoising import Denoising
from fewshot_blo.studies.images.distillation import Distillation
from fewshot_blo.studies.images.meta_weight_net import MetaWeightNet
from fewshot_blo.studies.images.poisoning import Poisoning, TargetedPoisoning
from fewshot_blo.studies.images.poisoning_features import CleanLabelPoisoning
from fewshot_blo.studies.images.sources import SourceReweighting
from fewshot_blo.studies.images.weight_decay import WeightDecay
from fewshot_blo.studies.recipe import STUDIES, read_study
from fewshot_blo.studies.rows import RowSettings, solve_row
from fewshot_blo.studies.run import run_study, run_study_part
from fewshot_blo.studies.study import AS_FOUND, RETRAINED, Figures, Study
from fewshot_blo.studies.vectors.anti_distillation import AntiDistillation
from fewshot_blo.studies.vectors.logistic import LogisticRegularisation
from fewshot_blo.studies.vectors.min_norm import MinNorm
from fewshot_blo.studies.vectors.one_point import OnePoint
from fewshot_blo.studies.vectors.sampled_quadratics import SampledQuadratics
from fewshot_blo.studies.vectors.spurious import Spurious
from fewshot_blo.studies.vectors.synthetic import Synthetic

__all__ = [
    "AS_FOUND",
    "RETRAINED",
    "STUDIES",
    "AntiDistillation",
    "CleanLabelPoisoning",
    "Cleaning",
    "Denoising",
    "Distillation",
    "Figures",
    "LearnedAugmentation",
    "LogisticRegularisation",
    "MetaWeightNet",
    "MinNorm",
    "OnePoint",
    "Poisoning",
    "RowSettings",
    "SampledQuadratics",
    "SourceReweighting",
    "Spurious",
    "Study",
    "Synthetic",
    "TargetedPoisoning",
    "WeightDecay",
    "read_study",
    "run_study",
    "run_study_part",
    "solve_row",
]
