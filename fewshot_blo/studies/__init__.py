"""Bilevel problems beyond few-shot learning, each an experiment with a table and a picture."""

from __future__ import annotations

from fewshot_blo.studies.anti_distillation import AntiDistillation
from fewshot_blo.studies.denoising import Denoising
from fewshot_blo.studies.min_norm import MinNorm
from fewshot_blo.studies.one_point import OnePoint
from fewshot_blo.studies.recipe import STUDIES, read_study
from fewshot_blo.studies.rows import RowSettings, run_study, solve_row
from fewshot_blo.studies.spurious import Spurious
from fewshot_blo.studies.study import AS_FOUND, RETRAINED, Figures, Study

__all__ = [
    "AS_FOUND",
    "RETRAINED",
    "STUDIES",
    "AntiDistillation",
    "Denoising",
    "Figures",
    "MinNorm",
    "OnePoint",
    "RowSettings",
    "Spurious",
    "Study",
    "read_study",
    "run_study",
    "solve_row",
]
