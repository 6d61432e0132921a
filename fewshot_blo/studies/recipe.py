"""Reads a study and its rows from a recipe, a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.plan import Plan
from fewshot_blo.experiments.settings import SLOTS
from fewshot_blo.experiments.values import in_words
from fewshot_blo.hypergrad import Strategy
from fewshot_blo.records.older import strategy_of_run
from fewshot_blo.records.shipped import recipe_file, recipe_instead_of
from fewshot_blo.studies.images.augmentation import LearnedAugmentation
from fewshot_blo.studies.images.cleaning import Cleaning
from fewshot_blo.studies.images.denoising import Denoising
from fewshot_blo.studies.images.distillation import Distillation
from fewshot_blo.studies.images.meta_weight_net import MetaWeightNet
from fewshot_blo.studies.images.poisoning import Poisoning, TargetedPoisoning
from fewshot_blo.studies.images.poisoning_features import CleanLabelPoisoning
from fewshot_blo.studies.images.sources import SourceReweighting
from fewshot_blo.studies.images.weight_decay import WeightDecay
from fewshot_blo.studies.rows import RowSettings
from fewshot_blo.studies.study import Study
from fewshot_blo.studies.vectors.anti_distillation import AntiDistillation
from fewshot_blo.studies.vectors.logistic import LogisticRegularisation
from fewshot_blo.studies.vectors.min_norm import MinNorm
from fewshot_blo.studies.vectors.one_point import OnePoint
from fewshot_blo.studies.vectors.sampled_quadratics import SampledQuadratics
from fewshot_blo.studies.vectors.spurious import Spurious
from fewshot_blo.studies.vectors.synthetic import Synthetic

STUDIES: Mapping[str, type[Study]] = {
    "synthetic": Synthetic,
    "spurious": Spurious,
    "sampled-quadratics": SampledQuadratics,
    "logistic-regularisation": LogisticRegularisation,
    "denoising": Denoising,
    "cleaning": Cleaning,
    "poisoning": Poisoning,
    "poisoning-targeted": TargetedPoisoning,
    "poisoning-clean-label": CleanLabelPoisoning,
    "distillation": Distillation,
    "weight-decay": WeightDecay,
    "augmentation": LearnedAugmentation,
    "meta-weight-net": MetaWeightNet,
    "source-reweighting": SourceReweighting,
    "min-norm": MinNorm,
    "one-point": OnePoint,
    "anti-distillation": AntiDistillation,
}


# A row's unset settings are chosen for its problem, and are not those of few-shot training.
_SLOTS = {**SLOTS, Strategy: replace(SLOTS[Strategy], usual=lambda kind: None)}


def read_study(path: Path | str, root: str = "") -> tuple[Study, dict[str, RowSettings]]:
    """The study of a recipe, and the settings of its rows by name.

    Args:
        path: file with ``study``, its ``settings``, and ``rows`` by name.
        root: folder of the data set; empty for that of the recipe.

    Raises:
        ConfigurationError: if the file cannot be read, or its settings are invalid.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(recipe_file(path).read_text(encoding="utf-8"))
        kind, rows = STUDIES[content["study"]], dict(content["rows"])
        settings = content.get("settings", {})
    except OSError as error:
        raise ConfigurationError(
            f"recipe {path} cannot be read: {error.strerror}{recipe_instead_of(path)}"
        ) from error
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ConfigurationError(f"recipe {path} cannot be read: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigurationError(
            f"recipe {path} is not a study ({error}): it must have study (one of "
            f"{', '.join(STUDIES)}), settings, and rows by name"
        ) from error
    study: Study = _built(kind, settings, f"{path}, settings")
    if root:
        study = replace(study, root=root)
    named = {str(name): _row(row or {}, f"{path}, row {name}") for name, row in rows.items()}
    odd = next((name for name in named if Path(name).name != name or name == "baselines"), None)
    if odd is not None:
        raise ConfigurationError(
            f"{path}: the row '{odd}' must have another name, which can name a folder and is not "
            "'baselines'"
        )
    return study, named


def _row(settings: Mapping[str, Any], where: str) -> RowSettings:
    """The settings of a row, in the present form or that of earlier versions."""
    if not isinstance(settings, Mapping):
        raise ConfigurationError(f"recipe {where} is {in_words(settings)}: it must be settings")
    today, strategy = dict(settings), settings.get("strategy", {})
    named = isinstance(strategy, Mapping) and "name" in strategy
    if "inner" in settings or (named and str(strategy["name"]).islower()):
        inner = today.pop("inner", {})
        today["strategy"] = strategy_of_run(settings.get("strategy", {}), inner)
    row: RowSettings = _built(RowSettings, today, where)
    return row


def _built(kind: type[Any], settings: Mapping[str, Any], where: str) -> Any:
    try:
        return Plan(_SLOTS, kind, "", dict(settings)).build()
    except (ConfigurationError, TypeError, ValueError) as error:
        raise ConfigurationError(f"recipe {where}: {' '.join(str(error).split())}") from error
