"""Few-shot learning as bilevel optimisation, in PyTorch.

A name is imported when it is first asked for, so that importing the package is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # The same names for type checkers and editors.
    from fewshot_blo.backbones import load_backbone as load_backbone
    from fewshot_blo.bilevel import Bilevel as Bilevel
    from fewshot_blo.bilevel import OuterStep as OuterStep
    from fewshot_blo.errors import CheckpointError as CheckpointError
    from fewshot_blo.errors import ConfigurationError as ConfigurationError
    from fewshot_blo.errors import DivergenceError as DivergenceError
    from fewshot_blo.errors import StructuralZeroError as StructuralZeroError
    from fewshot_blo.evaluation.evaluate import evaluate as evaluate
    from fewshot_blo.experiments.tuning.tune import tune as tune
    from fewshot_blo.finetune import fit as fit
    from fewshot_blo.finetune import load_classifier as load_classifier
    from fewshot_blo.heads import AlphaTIMHead as AlphaTIMHead
    from fewshot_blo.heads import AnchoredLinearHead as AnchoredLinearHead
    from fewshot_blo.heads import AnchoredRidgeHead as AnchoredRidgeHead
    from fewshot_blo.heads import BDCSPNHead as BDCSPNHead
    from fewshot_blo.heads import CosineHead as CosineHead
    from fewshot_blo.heads import FullContextHead as FullContextHead
    from fewshot_blo.heads import LabelPropagationHead as LabelPropagationHead
    from fewshot_blo.heads import LaplacianShotHead as LaplacianShotHead
    from fewshot_blo.heads import LinearHead as LinearHead
    from fewshot_blo.heads import LinearRegressionHead as LinearRegressionHead
    from fewshot_blo.heads import MatchingHead as MatchingHead
    from fewshot_blo.heads import MaxMarginHead as MaxMarginHead
    from fewshot_blo.heads import PTMAPHead as PTMAPHead
    from fewshot_blo.heads import RelationHead as RelationHead
    from fewshot_blo.heads import RidgeHead as RidgeHead
    from fewshot_blo.heads import RidgeRegressionHead as RidgeRegressionHead
    from fewshot_blo.heads import SoftKMeansHead as SoftKMeansHead
    from fewshot_blo.heads import TailHead as TailHead
    from fewshot_blo.heads import TIMHead as TIMHead
    from fewshot_blo.hypergrad import BOME as BOME
    from fewshot_blo.hypergrad import SABA as SABA
    from fewshot_blo.hypergrad import SOBA as SOBA
    from fewshot_blo.hypergrad import AmIGO as AmIGO
    from fewshot_blo.hypergrad import FiniteDifference as FiniteDifference
    from fewshot_blo.hypergrad import Implicit as Implicit
    from fewshot_blo.hypergrad import MoreauEnvelope as MoreauEnvelope
    from fewshot_blo.hypergrad import Penalty as Penalty
    from fewshot_blo.hypergrad import Reptile as Reptile
    from fewshot_blo.hypergrad import StocBiO as StocBiO
    from fewshot_blo.hypergrad import Unroll as Unroll
    from fewshot_blo.hypergrad import ValueFunction as ValueFunction
    from fewshot_blo.hypergrad.linear_solve import MINRES as MINRES
    from fewshot_blo.hypergrad.linear_solve import ConjugateGradient as ConjugateGradient
    from fewshot_blo.hypergrad.linear_solve import Dense as Dense
    from fewshot_blo.hypergrad.linear_solve import Neumann as Neumann
    from fewshot_blo.hypergrad.linear_solve import Nystrom as Nystrom
    from fewshot_blo.hypergrad.linear_solve import OneStep as OneStep
    from fewshot_blo.kernel import SGD as SGD
    from fewshot_blo.kernel import Adam as Adam
    from fewshot_blo.kernel import InnerSteps as InnerSteps
    from fewshot_blo.kernel import LearnedSGD as LearnedSGD
    from fewshot_blo.kernel import Momentum as Momentum
    from fewshot_blo.machine.allocator import keep_freed_memory as keep_freed_memory
    from fewshot_blo.models import PretrainedModel as PretrainedModel
    from fewshot_blo.models import load_pretrained as load_pretrained
    from fewshot_blo.networks import GRU as GRU
    from fewshot_blo.networks import MLP as MLP
    from fewshot_blo.networks import Conv4 as Conv4
    from fewshot_blo.networks import ResNet12 as ResNet12
    from fewshot_blo.networks import SineNetwork as SineNetwork
    from fewshot_blo.networks import TransformerEncoder as TransformerEncoder
    from fewshot_blo.networks import WideResNet as WideResNet
    from fewshot_blo.networks import classifier as classifier
    from fewshot_blo.objectives import Accuracy as Accuracy
    from fewshot_blo.objectives import CrossEntropy as CrossEntropy
    from fewshot_blo.objectives import MeanAbsoluteError as MeanAbsoluteError
    from fewshot_blo.objectives import MeanSquaredError as MeanSquaredError
    from fewshot_blo.objectives import Torchmetrics as Torchmetrics
    from fewshot_blo.problems import Initialization as Initialization
    from fewshot_blo.problems import Pretraining as Pretraining
    from fewshot_blo.problems import SharedEncoder as SharedEncoder
    from fewshot_blo.records.loggers import CSV as CSV
    from fewshot_blo.records.loggers import LoggedRun as LoggedRun
    from fewshot_blo.records.loggers import Logger as Logger
    from fewshot_blo.records.loggers import MLflow as MLflow
    from fewshot_blo.records.loggers import WeightsAndBiases as WeightsAndBiases
    from fewshot_blo.solving import PlainProblem as PlainProblem
    from fewshot_blo.solving import solve as solve
    from fewshot_blo.tasks import DataError as DataError
    from fewshot_blo.training.settings import TrainSettings as TrainSettings
    from fewshot_blo.training.train import train as train

_HOMES = {
    "backbones": "load_backbone",
    "bilevel": "Bilevel OuterStep",
    "errors": ("CheckpointError ConfigurationError DivergenceError StructuralZeroError"),
    "evaluation.evaluate": "evaluate",
    "experiments.tuning.tune": "tune",
    "finetune": "fit load_classifier",
    "heads": (
        "AlphaTIMHead AnchoredLinearHead AnchoredRidgeHead BDCSPNHead CosineHead FullContextHead "
        "LabelPropagationHead LaplacianShotHead LinearHead LinearRegressionHead MatchingHead "
        "MaxMarginHead PTMAPHead RelationHead RidgeHead RidgeRegressionHead SoftKMeansHead TIMHead "
        "TailHead"
    ),
    "hypergrad": (
        "AmIGO BOME FiniteDifference Implicit MoreauEnvelope Penalty Reptile SABA SOBA StocBiO "
        "Unroll ValueFunction"
    ),
    "hypergrad.linear_solve": "ConjugateGradient Dense MINRES Neumann Nystrom OneStep",
    "kernel": "SGD Adam InnerSteps LearnedSGD Momentum",
    "machine.allocator": "keep_freed_memory",
    "models": "PretrainedModel load_pretrained",
    "networks": "Conv4 GRU MLP ResNet12 SineNetwork TransformerEncoder WideResNet classifier",
    "objectives": "Accuracy CrossEntropy MeanAbsoluteError MeanSquaredError Torchmetrics",
    "problems": "Initialization Pretraining SharedEncoder",
    "records.loggers": "CSV LoggedRun Logger MLflow WeightsAndBiases",
    "solving": "PlainProblem solve",
    "tasks": "DataError",
    "training.settings": "TrainSettings",
    "training.train": "train",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fewshot_blo' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"fewshot_blo.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
